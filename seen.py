"""What a policy's cameras see and what its encoders make of it: python seen.py ckpt.pt --png x.png

A row is drawn for every camera: its picture with the crop that is encoded; on the crop the 32
points of ResNet18's spatial softmax, or four principal components of the last convolution's maps;
and how far the executed chunk moves when a patch of the crop is painted over.
"""

import startup  # noqa: F401 - first, see there

import torch

from baselines import prepare
from commands import START_SEEDS, BadInput, Parser, check_device, check_seed, cli
from envs import closing, draw_camera, make_vec, task_named
from files import atomic, check_output
from policy import Policy
from vision import centre_crop, middle

MAPS = 4  # components that are drawn
PATCH = 6  # pixels of a side
LATENTS = 16  # that the chunk's move is the root mean square over


def first_sight(policy, task, seed):
    """The first observation of an episode, {name: (1, T_o, ...)}, on the policy's device."""
    env = make_vec(task, 1, T_o=policy.T_o, T_a=policy.T_a, workers=False)
    with closing(env):
        obs, _ = env.reset(seed=[seed])
        return policy.tensors(obs)


@torch.no_grad()
def maps_of(encoder, frame):
    """The first MAPS principal components of the maps of a frame (h, w, 3): (MAPS, h', w')."""
    maps = encoder.maps(frame[None])[0].float()
    flat = maps.flatten(1)
    components = torch.linalg.svd(flat - flat.mean(1, keepdim=True)).Vh[:MAPS]
    return components.unflatten(1, maps.shape[1:]).cpu()


@torch.no_grad()
def points_of(encoder, frame):
    """The places of ResNet18's spatial softmax on a frame (h, w, 3): (POINTS, 2) pixels x, y."""
    h, w = frame.shape[:2]
    at = encoder.points(encoder.maps(frame[None]))[0].cpu()  # from -1 to 1
    return (at + 1) / 2 * torch.tensor([w - 1, h - 1])


def painted_over(pictures, crop):
    """A copy of pictures (1, T_o, H, W, 3) for each patch of their crop: (n, T_o, H, W, 3).

    A patch has the crop's median colour there, mostly the ground's, in all T_o frames. Returns the
    rows and columns of patches, too: n is their product.
    """
    top, left = (middle(size, part) for size, part in zip(pictures.shape[2:4], crop))
    rows, columns = (side // PATCH for side in crop)
    colour = centre_crop(pictures, crop).reshape(-1, 3).median(0).values
    copies = pictures.repeat(rows * columns, 1, 1, 1, 1)
    for n in range(len(copies)):
        y = top + PATCH * (n // columns)
        x = left + PATCH * (n % columns)
        copies[n, :, y : y + PATCH, x : x + PATCH] = colour
    return copies, rows, columns


def moves(policy, obs, camera):
    """How far the executed chunk moves without each patch, action units: (rows, columns).

    The root mean square over LATENTS latents, the steps of the chunk and its dimensions.
    """
    generator = torch.Generator(policy.device).manual_seed(0)
    z = policy.latent(LATENTS, generator=generator)
    copies, rows, columns = painted_over(obs[camera], policy.encoder.crop[camera])

    def chunks(seen):  # (n, LATENTS, T_a, D_a)
        n = len(seen[camera])
        each = {name: y.repeat_interleave(LATENTS, 0) for name, y in seen.items()}
        chunk = policy.act(each, z.repeat(n, 1, 1), generator=generator)
        return policy.executed(chunk).unflatten(0, (n, LATENTS))

    whole = chunks(obs)
    moved = []
    for picture in copies.split(columns):
        others = {name: y.expand(len(picture), *y.shape[1:]) for name, y in obs.items()}
        moved.append(chunks({**others, camera: picture}) - whole)
    return torch.cat(moved).square().mean((1, 2, 3)).sqrt().view(rows, columns).cpu()


def draw_made(axes, encoder, frame):
    """Draw what an encoder makes of a frame (h, w, 3): points, or maps in a row of MAPS axes."""
    if getattr(encoder, "points", None) is not None:
        axes[0].imshow(frame.cpu())
        axes[0].scatter(
            *points_of(encoder, frame).T, s=12, c="tab:cyan", edgecolors="black", lw=0.5
        )
        axes[0].set_title("points of the spatial softmax")
        for unused in axes[1:]:
            unused.remove()
        return
    for k, (ax, m) in enumerate(zip(axes, maps_of(encoder, frame))):
        ax.imshow(m, cmap="viridis")
        ax.set_title(f"component {k + 1}")


def figure_of(policy, task, seed):
    """A figure of all cameras at the start `seed`; see the head of this file."""
    from matplotlib.figure import Figure

    obs = first_sight(policy, task, seed)
    crops = policy.encoder.crop
    figure = Figure(figsize=(2.3 * (MAPS + 2), 2.6 * len(crops)), layout="constrained")
    grid = figure.subplots(len(crops), MAPS + 2, squeeze=False)
    for row, (camera, crop) in zip(grid, crops.items()):
        for ax in row:
            ax.set(xticks=[], yticks=[])
        picture = obs[camera][0, -1]
        frame = centre_crop(picture, crop)
        draw_camera(row[0], camera, picture.cpu(), crop)
        moved = moves(policy, obs, camera)
        h, w = (PATCH * n for n in moved.shape)
        row[1].imshow(frame.cpu())
        row[1].imshow(moved, cmap="magma", alpha=0.65, extent=(-0.5, w - 0.5, h - 0.5, -0.5))
        row[1].set_title(f"the chunk moves, up to {moved.max():.3g}")
        encoder = policy.encoder.camera(camera)
        draw_made(row[2:], encoder, frame)
    figure.suptitle(f"{task.name}, start seed {seed}")
    return figure


def main():
    """Run the command."""
    p = Parser(__doc__)
    p.add_argument("ckpt", help="the policy's checkpoint: the ckpt.pt of a run folder")
    p.add_argument("--png", default="seen.png", help="the picture to write")
    p.add_argument("--seed", type=int, default=100_000, help="the start seed that is drawn")
    p.add_argument("--device", default="cpu", help="torch device of the network")
    args = p.parse_args()
    check_device(args.device)
    check_output(args, "png")
    check_seed(args, "seed", below=START_SEEDS)
    policy, _ = Policy.load(args.ckpt, args.device)
    task = task_named(policy.task)
    policy.check_task(task, args.ckpt)
    if not policy.encoder.crop:
        raise BadInput(f"{args.ckpt}: a policy of {task.name} has no cameras")
    prepare(policy, 10 if policy.method == "diffusion" else None)  # DDIM draws no noise of its own
    figure = figure_of(policy, task, args.seed)
    atomic(args.png, lambda f: figure.savefig(f, format="png", dpi=100))
    print(f"drawn: {args.png}")


if __name__ == "__main__":
    cli(main)

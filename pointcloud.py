"""Point clouds straight from MuJoCo by casting rays: no OpenGL, no display, no GPU.

A camera is a pose and a field of view; every pixel is a ray (`mj_ray`), every hit a point in world coordinates.
What lies outside a box in the world is dropped, and farthest-point sampling keeps n points of the rest (3D Diffusion
Policy's pre-processing, arXiv 2403.03954). Rays meet what the model says now, so cast them in a private MjData that
`settle` has brought up to date: live data lags one sub-step behind its qpos.

  python pointcloud.py --task metaworld-assembly --png cloud.png
"""
import functools
import time
from dataclasses import dataclass, replace

import mujoco
import numpy as np

VISIBLE = (0, 1, 2)     # groups of geoms and sites that MuJoCo's own viewer shows


@dataclass(frozen=True)
class Camera:
    """pos (3,) and quat (w, x, y, z) in the world, looking down its own -z, x to the right; fovy in degrees; size pixels."""
    pos: tuple
    quat: tuple
    fovy: float = 45.0
    size: int = 84

    @classmethod
    def named(cls, model, name, size=84, **change):
        """The model's fixed camera of that name; change: fields to set otherwise. ValueError if there is none."""
        i = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if i < 0:
            raise ValueError(f"the model has no camera {name!r}: it has "
                             f"{', '.join(model.camera(j).name for j in range(model.ncam)) or 'none'}")
        found = {"pos": tuple(model.cam_pos[i]), "quat": tuple(model.cam_quat[i]), "fovy": float(model.cam_fovy[i])}
        return cls(**{**found, "size": size, **change})

    @classmethod
    def looking(cls, pos, at, fovy=45.0, size=84):
        """From pos to at, both (3,), the picture's upper side up."""
        back = np.subtract(pos, at) / np.linalg.norm(np.subtract(pos, at))
        right = np.cross([0, 0, 1], back) / np.linalg.norm(np.cross([0, 0, 1], back))
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, np.stack([right, np.cross(back, right), back], 1).ravel())
        return cls(tuple(pos), tuple(quat), fovy, size)

    @functools.lru_cache(32)
    def directions(self):
        """Unit vectors through the pixels' centres, (size * size, 3), row after row from the top left."""
        half = self.size / 2
        right, down = np.meshgrid(*2 * [np.arange(self.size) + 0.5 - half])
        ahead = np.full_like(right, half / np.tan(np.deg2rad(self.fovy) / 2))
        rays = np.stack([right, -down, -ahead], -1).reshape(-1, 3)
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True) @ self.matrix().T
        rays.flags.writeable = False            # one array for all who ask
        return rays

    def matrix(self):
        """Its axes in the world, columns right, up, back, (3, 3)."""
        R = np.empty(9)
        mujoco.mju_quat2Mat(R, np.asarray(self.quat, float))
        return R.reshape(3, 3)


def settle(model, data, qpos, qvel=None):
    """Put a state into data and bring all poses up to date, without a step. qpos (nq,), qvel (nv,)."""
    if len(qpos) != model.nq or (qvel is not None and len(qvel) != model.nv):
        raise ValueError(f"a state of {len(qpos)} positions does not fit this model, which has {model.nq} "
                         f"(and {model.nv} velocities)")
    data.qpos[:] = qpos
    if qvel is not None:
        data.qvel[:] = qvel
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def seen_spheres(model, data, groups):
    """Sites that `cast` hits: ids (M,) of the spheres among those of the groups that are not transparent."""
    return np.flatnonzero((model.site_type == mujoco.mjtGeom.mjGEOM_SPHERE) & np.isin(model.site_group, groups)
                          & (model.site_rgba[:, 3] > 0))


def near_spheres(rays, pos, centre, radius):
    """Where rays (N, 3) from pos enter spheres, centre (M, 3), radius (M,): distances (N, M), inf where they do not."""
    to = centre - pos
    along = rays @ to.T
    inside = along ** 2 - (to ** 2).sum(1) + radius ** 2
    return np.where((inside > 0) & (along > -radius), along - np.sqrt(np.maximum(inside, 0)), np.inf)


def through_box(pos, rays, half):
    """Where rays (N, 3) from pos (3,) or (N, 3) enter and leave the box of that half size around 0: distances (N,)
    twice; those that miss it leave before they enter."""
    with np.errstate(divide="ignore", invalid="ignore"):                       # a ray along an axis
        a, b = ((-half - pos) / rays).T, ((half - pos) / rays).T               # (3, N): reduces faster than (N, 3)
    return np.fmin(a, b).max(0), np.fmax(a, b).min(0)


def promising(model, data, camera, box, groups=VISIBLE):
    """Which rays (N,) can meet anything inside the box: those that are in it and in some geom's own bounding box, or in
    a sphere that is seen, at once."""
    low, high = np.asarray(box)
    rays, pos = camera.directions(), np.asarray(camera.pos, float)
    R, half = data.geom_xmat.reshape(-1, 3, 3), model.geom_aabb[:, 3:] + 1e-6
    centre = data.geom_xpos + np.einsum("gij,gj->gi", R, model.geom_aabb[:, :3])
    reach = np.einsum("gij,gj->gi", np.abs(R), half)                           # half size along the world's axes
    sites = seen_spheres(model, data, groups)
    marked = (near_spheres(rays, pos, data.site_xpos[sites], model.site_size[sites, 0]) < np.inf).any(1)
    g = np.flatnonzero(((centre + reach > low) & (centre - reach < high)).all(1) & np.isin(model.geom_group, groups))
    i, j = np.nonzero(near_spheres(rays, pos, centre[g], np.linalg.norm(half[g], axis=1)) < np.inf)   # pairs: ray, geom
    g = g[j]
    enter, leave = through_box(pos - (low + high) / 2, rays, (high - low) / 2)
    to, ray = (np.einsum("nji,nj->ni", R[g], y) for y in (pos - centre[g], rays[i]))                  # in the geom's frame
    into, out = through_box(to, ray, half[g])
    marked[i[np.maximum(into, np.maximum(enter[i], 0)) <= np.minimum(out, leave[i])]] = True
    return marked


def cast(model, data, camera, groups=VISIBLE, only=None):
    """One ray a pixel -> points (size * size, 3) in world coordinates, NaN where nothing is hit, and what was hit:
    a geom's id, ngeom + a site's id, or -1.

    groups: the groups of geoms and sites that rays see; only: a mask of the rays to cast. Of sites, which MuJoCo's rays
    pass through though its renderer draws them, spheres are hit: they mark the goals of Meta-World. The loop is over
    mj_ray, because mj_multiRay (MuJoCo 3.3.0) passes through large geoms, and through many seen from straight above.
    """
    rays, pos = camera.directions(), np.asarray(camera.pos, float)
    only = np.ones(len(rays), bool) if only is None else only
    seen, found = np.isin(np.arange(6), groups).astype(np.uint8), np.empty(1, np.int32)
    hit, distance = np.full(len(rays), -1), np.full(len(rays), np.inf)
    for i in np.flatnonzero(only):
        distance[i] = mujoco.mj_ray(model, data, pos, rays[i], seen, 1, -1, found)
        hit[i] = found[0]
    distance[hit < 0] = np.inf
    sites = seen_spheres(model, data, groups)
    if len(sites):
        near = near_spheres(rays[only], pos, data.site_xpos[sites], model.site_size[sites, 0])
        closer = np.zeros(len(rays), bool)
        closer[only] = near.min(1) < distance[only]
        first, near = near.argmin(1)[closer[only]], near.min(1)[closer[only]]
        distance[closer], hit[closer] = near, model.ngeom + sites[first]
    distance[hit < 0] = np.nan
    return pos + distance[:, None] * rays, hit


def farthest(points, n):
    """Indices (n,) of a farthest-point sample of points (N, 3), from the first on; all of them, repeated, if N < n.

    Each next point is the one farthest from those taken. Raises ValueError without points or with NaN.
    """
    if not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} points, {np.isnan(points).any(-1).sum()} of them NaN: cannot sample {n}")
    if len(points) <= n:
        return np.arange(n) % len(points)
    p = points - points.mean(0, dtype=np.float64)
    square, one = (p * p).sum(1), np.ones(len(p))
    here, there = np.stack([*p.T, one, square]).T, np.stack([*(-2 * p.T), square, one], 1)
    taken, nearest, distance = np.zeros(n, np.int64), np.full(len(p), np.inf), np.empty(len(p))
    for k in range(1, n):
        np.dot(here, there[taken[k - 1]], out=distance)             # |p|² - 2 p·q + |q|², all p at once
        np.minimum(nearest, distance, out=nearest)
        taken[k] = nearest.argmax()
    return taken


def colours(model, hit):
    """RGB in [0, 1] of what `cast` hit (N,), its material's or its own -> (N, 3)."""
    own = np.concatenate([model.geom_rgba, model.site_rgba])[hit, :3]
    material = np.concatenate([model.geom_matid, model.site_matid])[hit]
    return np.where(material[:, None] >= 0, model.mat_rgba[material, :3], own) if model.nmat else own


def capture(model, data, camera, box, n=512, *, groups=VISIBLE, colour=False):
    """The cloud a policy sees: (n, 3) float32 world coordinates, or (n, 6) with each geom's colour.

    box ((x, y, z) low, (x, y, z) high): what is kept. Raises ValueError if no point lies inside.
    """
    points, hit = cast(model, data, camera, groups, promising(model, data, camera, box, groups))
    points, hit = points[hit >= 0], hit[hit >= 0]
    low, high = np.asarray(box)
    inside = ((points > low) & (points < high)).all(1)
    if not inside.any():
        raise ValueError(f"no point inside the crop box {np.round(low, 3).tolist()} to {np.round(high, 3).tolist()}: "
                         "move the camera, or widen the box")
    points, hit = points[inside].astype(np.float32), hit[inside]
    i = farthest(points, n)
    return np.concatenate([points[i], colours(model, hit[i]).astype(np.float32)], 1) if colour else points[i]


def picture(model, data, camera, groups=VISIBLE):
    """What the camera sees, by rays: colours shaded by the angle of the surface -> (size, size, 3) uint8."""
    points, hit = cast(model, data, camera, groups)
    grid = points.reshape(camera.size, camera.size, 3)
    normal = np.cross(np.gradient(grid, axis=0), np.gradient(grid, axis=1))    # NaN at the rim of what is hit
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
    facing = np.abs((normal.reshape(-1, 3) * camera.directions()).sum(1, keepdims=True))
    shade = np.where(hit[:, None] >= 0, colours(model, hit) * (0.35 + 0.65 * np.nan_to_num(facing)), 1.0)
    return (255 * shade).astype(np.uint8).reshape(camera.size, camera.size, 3)


def draw(axes, cloud, box):
    """Scatter a cloud (n, 3) in its crop box into matplotlib 3-D axes, coloured by height."""
    low, high = np.asarray(box, float)
    low, high = np.maximum(low, cloud.min(0) - 0.02), np.minimum(high, cloud.max(0) + 0.02)
    axes.scatter(*cloud.T, c=cloud[:, 2], s=3, cmap="viridis")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(high - low)


def contact_sheet(scenes, columns=6):
    """A figure of many tasks: what the camera sees beside the cloud. scenes: (name, picture, cloud (n, 3), box)."""
    from matplotlib.figure import Figure
    rows = -(-len(scenes) // columns)
    fig = Figure(figsize=(3.2 * columns, 1.75 * rows + 0.2), layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.2 / (1.75 * rows + 0.2)))     # room for the first row's titles
    for i, (name, seen, cloud, box) in enumerate(scenes):
        ax = fig.add_subplot(rows, 2 * columns, 2 * i + 1)
        ax.imshow(seen)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name.removeprefix("metaworld-"), fontsize=8)
        ax = fig.add_subplot(rows, 2 * columns, 2 * i + 2, projection="3d", elev=30, azim=-30)
        draw(ax, cloud, box)
        ax.set(xticklabels=[], yticklabels=[], zticklabels=[])
    return fig


def main():
    from matplotlib.figure import Figure
    from envs import task_named             # of the floor above: only this command knows tasks
    from runs import BadInput, Parser, above_zero, atomic
    p = Parser("Draw the point cloud that a task's policy sees: the camera's picture, and the cloud from two sides.")
    p.add_argument("--task", required=True, help="task of envs.py that is seen as a point cloud")
    p.add_argument("--seed", type=int, default=100_000, help="start seed")
    p.add_argument("--png", help="picture to write; TASK.png if not given")
    p.add_argument("--size", type=int, help="pixels a side of the camera; the task's if not given")
    p.add_argument("--groups", type=int, nargs="+", default=list(VISIBLE), help="groups of geoms and sites that are seen")
    args = p.parse_args()
    above_zero(args, "size")
    task = task_named(args.task)
    if not task.points:
        raise BadInput(f"{task.name} is not seen as a point cloud")
    env = task.env()
    env.reset(seed=args.seed)
    model, data, box = env.model, env.settled(), env.box
    camera = replace(env.camera, size=args.size or env.camera.size)
    t0 = time.perf_counter()
    try:
        cloud = capture(model, data, camera, box, task.points, groups=args.groups)
    except ValueError as e:
        raise BadInput(str(e)) from e
    ms = 1e3 * (time.perf_counter() - t0)
    fig = Figure(figsize=(12, 4), layout="constrained")
    seen = fig.add_subplot(1, 3, 1)
    seen.imshow(picture(model, data, replace(camera, size=200), args.groups))
    seen.set(xticks=[], yticks=[], title=f"{task.name}, seed {args.seed}")
    for i, (elev, azim) in enumerate(((25, -60), (80, -90)), 2):
        axes = fig.add_subplot(1, 3, i, projection="3d", elev=elev, azim=azim)
        draw(axes, cloud, box)
    png = args.png or f"{task.name}.png"
    atomic(png, lambda f: fig.savefig(f, format="png", dpi=100))
    print(f"{png}: {len(np.unique(cloud, axis=0))} points of {camera.size} x {camera.size} rays, {ms:.1f} ms, "
          f"from {cloud.min(0).round(3).tolist()} to {cloud.max(0).round(3).tolist()} m")


if __name__ == "__main__":
    from runs import cli
    cli(main)

"""A policy as one ONNX file, which onnxruntime runs without torch's overhead at every layer.

  python export.py runs/pusht-dbp-seed0/ckpt.pt --onnx pusht.onnx

The graph is one action: the normalisers, the encoders and the generator. Its inputs are the
observations, `obs.NAME` (1, T_o, ...) in the data's units and pictures as bytes, and the latent z
(1, T_p, D_a); its output is the chunk (1, T_p, D_a) in action units. The features of a camera's
frames, `frames.NAME` (T_o, C), are outputs, too: there the graph is cut, where a robot encodes each
frame once. The file also says what the policy is, so that it takes the place of a checkpoint:
evaluate.py --onnx, bench.py infer --onnx, realrobot.py run.

The file is written only if it acts as the checkpoint does: on 100 random observations and latents
no number of a chunk may differ by more than 1e-4 of the action's range.
"""

import startup  # noqa: F401 - first, see there

import importlib.util
import json
import logging
import warnings

import numpy as np
import torch
from torch import nn

from baselines import prepare
from commands import BadInput, Parser, cli
from files import atomic, brief, check_output, read_bytes, refusing
from policy import Policy, batch_of, check_shape

FORMAT = "drift-policy-onnx-1"
KEY = "drift-policy"  # of the file's metadata: JSON of format, shape and parity
PARITY = 1e-4  # of the action's range
OBSERVATIONS = 100  # that the parity is checked on
LARGEST = 2**31  # bytes of a file: protobuf writes no more


def library(name, why):
    """Import one of the packages that are needed here alone. Raises BadInput without it."""
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise BadInput(
            f"{why} needs the package {name}: pip install onnx onnxscript onnxruntime"
        ) from e


# ---- a policy from the file ----------------------------------------------------------------------


def session_of(content):
    """A session of onnxruntime on one thread, which is as quick as several at batch 1.

    content: an ONNX file's bytes.
    """
    onnxruntime = library("onnxruntime", "an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Graph(nn.Module):
    """The graph of an ONNX file, run row by row of a batch. content: the file's bytes."""

    def __init__(self, content):
        super().__init__()
        self.content = content
        self.session = session_of(content)
        self.inputs = [given.name for given in self.session.get_inputs()]  # a latent may be unused
        self.encoders = {}  # sessions of the cameras, and of what follows them: see cut()
        self.rest = None

    @property
    def frame_sizes(self):
        """{camera: the number C of a frame's features}, of the cameras that can be cut off."""
        ends = {out.name: out.shape[1] for out in self.session.get_outputs()}
        return {name[7:]: C for name, C in ends.items() if name.startswith("frames.")}

    def cut(self, specs, T_o):
        """Make sessions of each camera's encoder, and of the rest. specs: the policy's.

        Raises BadInput without the package onnx.
        """
        onnx = library("onnx", "an ONNX policy on a robot")
        model = onnx.load_model_from_string(self.content)
        value = onnx.helper.make_tensor_value_info
        given = {y.name: y for y in model.graph.input}
        for name, C in self.frame_sizes.items():
            end = value(f"frames.{name}", onnx.TensorProto.FLOAT, [T_o, C])
            part = piece(model, [given.pop(f"obs.{name}")], [end])
            self.encoders[name] = session_of(part)
            given[end.name] = end
        self.rest = session_of(piece(model, list(given.values()), list(model.graph.output)[:1]))

    def encode(self, name, frames):
        """A camera's frames (T_o, H, W, 3) -> features (T_o, C), numpy arrays."""
        return self.encoders[name].run(None, {f"obs.{name}": frames[None]})[0]

    def forward(self, obs, z):
        """obs {name: (B, T_o, ...)}, z (B, T_p, D_a) -> chunks (B, T_p, D_a) in action units."""
        named = {f"obs.{name}": y.numpy() for name, y in obs.items()} | {"z": z.numpy()}
        rows = []
        for i in range(len(z)):
            feed = {name: named[name][i : i + 1] for name in self.inputs}
            rows.append(self.session.run(["chunk"], feed)[0])
        return torch.from_numpy(np.concatenate(rows))

    def from_features(self, obs, z):
        """The same at batch 1, where the cameras' entries are features (1, T_o, C)."""
        feed = {} if "z" not in self.inputs else {"z": z.numpy()}
        for name, y in obs.items():
            if name in self.encoders:
                feed[f"frames.{name}"] = y[0].numpy()
            else:
                feed[f"obs.{name}"] = y.numpy()
        return torch.from_numpy(self.rest.run(["chunk"], feed)[0])


def piece(model, inputs, outputs):
    """The part of onnx's ModelProto that leads from some values to others, as a file's bytes."""
    import onnx

    given = {y.name for y in inputs}
    wanted = {y.name for y in outputs}
    nodes = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.insert(0, node)
            wanted |= set(node.input) - given
    weights = [w for w in model.graph.initializer if w.name in wanted]
    graph = onnx.helper.make_graph(nodes, "piece", inputs, outputs, weights)
    made = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, functions=model.functions
    )
    made.ir_version = model.ir_version
    return made.SerializeToString()


class OnnxPolicy:
    """A policy that acts as policy.Policy does, by the graph of an ONNX file. It cannot be trained.

    shape: as a Policy's. net: a Graph.
    """

    taken = Policy.taken
    tensors = Policy.tensors
    check = Policy.check
    check_task = Policy.check_task
    latent = Policy.latent
    executed = Policy.executed
    set_executed = Policy.set_executed

    def __init__(self, shape, net):
        self.shape = shape
        self.task = shape["task"]
        self.specs = shape["obs"]
        self.D_a = shape["D_a"]
        self.T_o = shape["T_o"]
        self.T_p = shape["T_p"]
        self.T_a = shape["T_a"]
        self.method = shape.get("method", "dbp")
        self.sampler = None  # not used: what another method does stands in the graph
        self.z_scale = 1.0
        self.net = net
        self.frame_sizes = net.frame_sizes if importlib.util.find_spec("onnx") else {}  # cut()
        self.device = torch.device("cpu")

    def encoded(self, name, frame):
        """A camera's frame (H, W, 3) -> its features (C,). See Policy.encoded.

        The graph takes T_o frames, so it encodes as many copies.
        """
        if self.net.rest is None:
            self.net.cut(self.specs, self.T_o)
        return self.net.encode(name, np.broadcast_to(frame, (self.T_o, *frame.shape)))[0]

    @torch.inference_mode()
    def act(self, obs, z=None, *, generator=None):
        """A chunk of each observation, in action units: (B, T_p, D_a). z is drawn if not given."""
        self.check(obs)
        if z is None:
            z = self.z_scale * self.latent(batch_of(obs), generator=generator)
        if any(obs[name].ndim == 3 for name in self.frame_sizes):
            return self.net.from_features(obs, z)
        return self.net(obs, z)

    @classmethod
    def load(cls, path, *, task=None):
        """Read a file that this script wrote. No code in it is run.

        task: refuse a file of any other. Raises BadInput if it is missing, damaged or of others, or
        without onnxruntime.
        """
        content = read_bytes(path, LARGEST)
        with refusing(f"{path} is not an ONNX file, or is damaged"):
            net = Graph(content)
        about = net.session.get_modelmeta().custom_metadata_map.get(KEY)
        try:
            about = json.loads(about or "{}")
        except (ValueError, RecursionError):
            about = {}
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise BadInput(f"{path} was not written by export.py of this version: export again")
        shape = about.get("shape")
        check_shape(shape, path)
        check_graph(shape, net, path)
        if task not in (None, shape["task"]):
            raise BadInput(
                f"{path} was trained on {brief(shape['task'])}, not {task}: export a checkpoint "
                f"of {task}"
            )
        return cls(shape, net)


def check_graph(shape, net, path):
    """Refuse a graph that does not take and give what its description names. Raises BadInput."""
    due = {f"obs.{name}": [1, shape["T_o"], *s["shape"]] for name, s in shape["obs"].items()}
    due["z"] = [1, shape["T_p"], shape["D_a"]]
    given = {y.name: list(y.shape) for y in net.session.get_inputs()}
    if any(due.get(name) != size for name, size in given.items()):
        raise BadInput(f"{path} takes {brief(given)}, but says {brief(due)}: export again")
    ends = {y.name: list(y.shape) for y in net.session.get_outputs()}
    frames = {f"frames.{name}" for name, s in shape["obs"].items() if s["dtype"] == "uint8"}
    for name, size in ends.items():
        known = name in frames and len(size) == 2 and size[0] == shape["T_o"]
        if name != "chunk" and not (known and isinstance(size[1], int)):
            raise BadInput(f"{path} gives {brief(name)} {brief(size)}: export again")


def load_policy(path, *, task=None):
    """The policy of a checkpoint or, where the path ends in .onnx, of a file of this script.

    Raises BadInput as their own `load` does.
    """
    if str(path).endswith(".onnx"):
        return OnnxPolicy.load(path, task=task)
    return prepare(Policy.load(path, task=task)[0])


# ---- a file from the policy ----------------------------------------------------------------------


class Acting(nn.Module):
    """What Policy.act computes, as a module for the exporter.

    Observations and z go in; the chunk comes out, and the features of each camera's frames, unless
    all cameras share an encoder: those run as one batch, which cannot be cut.
    """

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.cameras = list(policy.frame_sizes)

    def forward(self, *inputs):
        """The observations in the order of the policy's specs, then z -> (chunk, *features)."""
        *seen, z = inputs
        obs = dict(zip(self.policy.specs, seen))
        frames = {}
        if not self.policy.encoder.shared:
            frames = self.policy.encoder.of_cameras({name: obs[name] for name in self.cameras})
        obs |= {name: y[None] for name, y in frames.items()}
        if self.policy.sampler is None:
            chunk = self.policy(obs, z)
        else:
            chunk = self.policy.sampler(self.policy, obs, z, None)
        return self.policy.norm_action.inverse(chunk), *frames.values()


def random_observation(policy, generator):
    """One observation {name: (1, T_o, ...)}: numbers in the range that they are normalised by."""
    obs = {}
    for name, spec in policy.specs.items():
        size = (1, policy.T_o, *spec["shape"])
        if spec["dtype"] == "uint8":
            obs[name] = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        else:
            norm = policy.norm_obs[name]
            obs[name] = norm.inverse(2 * torch.rand(size, generator=generator) - 1)
    return obs


def graph_of(policy):
    """The graph of a policy, as onnx's ModelProto. Raises BadInput if it cannot be exported."""
    library("onnx", "an export")
    library("onnxscript", "an export")
    if policy.method == "diffusion":
        raise BadInput(
            "a diffusion policy acts with many network evaluations and draws noise in each: "
            "export one that acts with a single one (dbp, meanflow, bc)"
        )
    prepare(policy)
    example = random_observation(policy, torch.Generator().manual_seed(0))
    names = [f"obs.{name}" for name in policy.specs]
    ends = [] if policy.encoder.shared else [f"frames.{name}" for name in policy.frame_sizes]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not needed
    with torch.no_grad(), warnings.catch_warnings(), refusing("the policy cannot be exported"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Acting(policy).eval(),
            (*example.values(), policy.latent(1)),
            input_names=[*names, "z"],
            output_names=["chunk", *ends],
            dynamo=True,  # the older exporter writes graphs of pictures that are not valid
            external_data=False,
            verbose=False,
        )
    return program.model_proto


def parity(policy, other, n=OBSERVATIONS, seed=0):
    """The largest difference of two policies' chunks on n random observations.

    It is a share of the action's range, of each coordinate by itself. other: the OnnxPolicy.
    """
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(n):
        obs = random_observation(policy, generator)
        z = policy.latent(1, generator=generator)
        difference = policy.act(obs, z) - other.act(obs, z)
        half = policy.norm_action.inverse(1.0) - policy.norm_action.inverse(0.0)
        share = (difference / (2 * half)).abs().max().item()
        if not share <= worst:  # also what is not a number
            worst = share
    return worst


def export(policy, path):
    """Write a policy as an ONNX file -> the parity. Raises BadInput if it is not exact enough."""
    model = graph_of(policy)
    found = parity(policy, OnnxPolicy(policy.shape, Graph(model.SerializeToString())))
    if not found <= PARITY:
        raise BadInput(
            f"the graph differs from the checkpoint by {found:.1e} of the action's range, more "
            f"than {PARITY:g}, so {path} is not written: use the checkpoint"
        )
    about = {"format": FORMAT, "shape": policy.shape}
    about |= {"parity": found, "observations": OBSERVATIONS, "torch": torch.__version__}
    model.metadata_props.add(key=KEY, value=json.dumps(about))
    content = model.SerializeToString()
    atomic(path, lambda f: f.write(content))
    return found


# ---- python export.py ----------------------------------------------------------------------------


def parse(argv=None):
    """The flags of this script."""
    p = Parser(
        __doc__,
        examples=[
            "python export.py runs/pusht-dbp-seed0/ckpt.pt --onnx pusht.onnx",
            "python evaluate.py --onnx pusht.onnx --episodes 50",
        ],
    )
    p.add_argument("ckpt", help="the policy's checkpoint: the ckpt.pt of a run folder")
    p.add_argument("--onnx", required=True, metavar="FILE", help="the file to write, *.onnx")
    p.add_argument("--raw", action="store_true", help="export the raw weights, not the EMA's")
    args = p.parse_args(argv)
    if not args.onnx.endswith(".onnx"):
        raise BadInput(f"--onnx {args.onnx}: name it *.onnx, by which other scripts know it")
    check_output(args, "onnx")
    return args


def main():
    """Run the command."""
    args = parse()
    policy, _ = Policy.load(args.ckpt, ema=not args.raw)
    found = export(policy, args.onnx)
    print(
        f"{args.onnx}: the largest difference on {OBSERVATIONS} random observations is "
        f"{found:.1e} of the action's range"
    )


if __name__ == "__main__":
    cli(main)

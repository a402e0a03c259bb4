"""The ONNX file acts as its checkpoint does, and what cannot be exported is refused in one line."""

import json
import sys

import numpy as np
import pytest
import torch

import export
from commands import BadInput
from envs import task_named
from export import OnnxPolicy
from made_up import make_policy, random_arrays


@pytest.fixture
def packages():
    """Skips without the packages of an export."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for the files of this module."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def pusht(packages, folder):
    """A small policy of Push-T, its checkpoint and its ONNX file; it is exported once."""
    policy = make_policy((8, 8), "cpu").eval()
    ckpt = folder / "pusht.pt"
    onnx = folder / "pusht.onnx"
    if not onnx.exists():
        policy.save(ckpt, flags={}, ema={})
        export.export(policy, onnx)
    return policy, ckpt, onnx


def test_the_file_acts_as_the_checkpoint(pusht):
    policy, _, onnx = pusht
    other = OnnxPolicy.load(onnx)
    obs = policy.tensors(random_arrays(policy, 3, policy.T_o))
    z = policy.latent(3)
    difference = (policy.act(obs, z) - other.act(obs, z)).abs().max().item()
    assert difference < 1e-5
    assert other.act(obs, z).shape == (3, policy.T_p, policy.D_a)
    generator = torch.Generator()
    drawn = [p.act(obs, generator=generator.manual_seed(5)) for p in (policy, other)]
    assert torch.allclose(*drawn, atol=1e-5), "the latents are drawn alike"
    with pytest.raises(BadInput, match="do not fit this policy"):
        other.act({"state": obs["state"][:, :1]}, z)


def test_the_parity_is_checked_and_stored(pusht, monkeypatch, tmp_path):
    policy, _, onnx = pusht
    about = OnnxPolicy.load(onnx).net.session.get_modelmeta().custom_metadata_map[export.KEY]
    told = json.loads(about)
    assert told["observations"] == 100 and 0 <= told["parity"] < 1e-4
    wrong = OnnxPolicy.load(onnx)
    wrong.act = lambda obs, z: policy.act(obs, z) + 0.01  # of a range of 2
    assert export.parity(policy, wrong, n=2) == pytest.approx(0.005, rel=1e-3)
    monkeypatch.setattr(export, "graph_of", lambda _: graph(onnx))
    monkeypatch.setattr(export, "parity", lambda *_: float("nan"))
    with pytest.raises(BadInput, match="differs from the checkpoint"):
        export.export(policy, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


def graph(path):
    """The graph of a file, without what it says of itself."""
    import onnx

    model = onnx.load_model_from_string(path.read_bytes())
    del model.metadata_props[:]
    return model


def test_evaluation_by_the_file_is_the_checkpoints(pusht, capsys, monkeypatch):
    import evaluate

    _, ckpt, onnx = pusht
    scores = []
    for source in ([str(ckpt)], ["--onnx", str(onnx)]):
        out = ckpt.parent / "scores.json"
        argv = ["evaluate.py", *source, "--episodes", "1", "--one-process", "--json", str(out)]
        monkeypatch.setattr(sys, "argv", argv)
        evaluate.main()
        scores.append(json.loads(out.read_text()))
    assert scores[0]["scores"] == pytest.approx(scores[1]["scores"], abs=1e-3)
    assert scores[1]["nfe"] == 1


def test_pictures(packages):
    policy = make_policy((8, 8), "cpu", task_named("pusht-image")).eval()
    model = export.graph_of(policy)
    other = OnnxPolicy(policy.shape, export.Graph(model.SerializeToString()))
    assert export.parity(policy, other, n=3) < 1e-4


def test_the_graph_is_cut_where_frames_are_encoded(packages):
    """Three cameras: features of single frames in the pictures' place give the same chunk."""
    policy = make_policy((8, 8), "cpu", task_named("ur5-lift")).eval()
    model = export.graph_of(policy)
    other = OnnxPolicy(policy.shape, export.Graph(model.SerializeToString()))
    assert other.frame_sizes == policy.frame_sizes and len(other.frame_sizes) == 3
    arrays = random_arrays(policy, 1, policy.T_o)
    z = policy.latent(1)
    before = dict(arrays)
    for name in other.frame_sizes:
        before[name] = np.stack([other.encoded(name, frame) for frame in arrays[name][0]])[None]
    chunk = other.act(other.tensors(before), z)
    torch.testing.assert_close(chunk, policy.act(policy.tensors(arrays), z), atol=1e-4, rtol=1e-4)
    for session in (*other.net.encoders.values(), other.net.rest):
        assert sum(y.name.startswith("obs.") for y in session.get_inputs()) == 1


def test_a_graph_that_gives_something_else_is_refused(pusht, tmp_path):
    """An output that claims to be a camera's, of a policy without one."""
    import onnx

    _, _, path = pusht
    model = graph(path)
    about = OnnxPolicy.load(path).net.session.get_modelmeta().custom_metadata_map[export.KEY]
    node = onnx.helper.make_node("Identity", [model.graph.output[0].name], ["frames.front"])
    model.graph.node.append(node)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("frames.front", onnx.TensorProto.FLOAT, None)
    )
    model.metadata_props.add(key=export.KEY, value=about)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="gives frames.front"):
        OnnxPolicy.load(tmp_path / "x.onnx")


@pytest.mark.parametrize("content, words", [(b"", "not an ONNX file"), (b"x" * 99, "not an ONNX")])
def test_damaged_files_are_refused(packages, tmp_path, content, words):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        OnnxPolicy.load(path)


def test_files_of_others_are_refused(pusht, tmp_path):
    _, _, onnx = pusht
    model = graph(onnx)
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="was not written by export.py"):
        OnnxPolicy.load(foreign)
    shape = json.loads(
        OnnxPolicy.load(onnx).net.session.get_modelmeta().custom_metadata_map[export.KEY]
    )["shape"]
    about = {"format": export.FORMAT, "shape": {**shape, "D_a": 3}}
    model.metadata_props.add(key=export.KEY, value=json.dumps(about))
    foreign.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="export again"):
        OnnxPolicy.load(foreign)
    with pytest.raises(BadInput, match="was trained on pusht, not hopper"):
        OnnxPolicy.load(onnx, task="hopper")


def test_a_diffusion_policy_is_refused(packages):
    policy = make_policy((8, 8), "cpu", method="diffusion").eval()
    with pytest.raises(BadInput, match="many network evaluations"):
        export.graph_of(policy)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadInput, match="an export needs the package onnx: pip install onnx"):
        export.graph_of(make_policy((8, 8), "cpu"))

"""The renderer: fresh pictures whatever else draws, cameras that see the same with and without what
is left out, and robosuite's own picture beside it."""

import gc
import importlib.util
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

import renderer
from commands import BadInput
from conftest import ROOT
from renderer import Renderer, decimate, distinct_faces, in_view, shrink

SIZE = 64
SCENE = """
<mujoco>
  <asset>
    <texture name="board" type="2d" builtin="checker" rgb1=".2 .3 .4" rgb2=".8 .8 .7" width="600"
      height="400"/>
    <material name="floor" texture="board" texrepeat="4 4" reflectance="0.5"/>
    <mesh name="ball" vertex="{vertex}" face="{face}"/>
  </asset>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <geom type="plane" size="2 2 .1" material="floor"/>
    <camera name="front" pos="0 -1.2 .6" xyaxes="1 0 0 0 .45 .9"/>
    <camera name="wide" pos="0 -1.2 .6" xyaxes="1 0 0 0 .45 .9" fovy="70"/>
    <body name="cube" pos="0 0 .1">
      <freejoint/>
      <geom type="box" size=".1 .1 .1" rgba="1 0 0 1"/>
    </body>
    <body name="still" pos=".35 0 .1"><geom type="sphere" size=".1" rgba="0 1 0 1"/></body>
    <body name="mesh" pos="-.35 0 .2"><geom type="mesh" mesh="ball" rgba=".3 .3 1 1"/></body>
    <body name="marked" mocap="true" pos="0 .5 .3"><geom type="box" size=".1 .02 .1"/></body>
    <geom type="box" size=".1 .1 .1" pos="0 0 .5" group="3" rgba="1 1 0 1"/>
    {others}
  </worldbody>
</mujoco>
"""
START = np.array([0, 0, 0.1, 1, 0, 0, 0])  # of the cube


def sphere(n):
    """Vertices (n * 2n, 3) and faces (F, 3) of a sphere of radius 0.15."""
    polar, around = np.meshgrid(
        np.linspace(0.01, np.pi - 0.01, n), np.arange(2 * n) * np.pi / n, indexing="ij"
    )
    z = np.cos(polar)
    vertices = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), z], -1)
    i, j = np.meshgrid(np.arange(n - 1), np.arange(2 * n), indexing="ij")
    a = i * 2 * n + j
    b = i * 2 * n + (j + 1) % (2 * n)
    faces = np.stack([[a, a + 2 * n, b], [b, a + 2 * n, b + 2 * n]])  # (2, 3, n - 1, 2 n)
    return 0.15 * vertices.reshape(-1, 3), np.moveaxis(faces, 1, -1).reshape(-1, 3)


def xml(others=""):
    """A scene of a cube that moves, things that do not, and a mesh of many faces."""
    vertex, face = (" ".join(map(str, a.ravel().tolist())) for a in sphere(36))
    return SCENE.format(vertex=vertex, face=face, others=others)


def scene(others=""):
    """Its model."""
    return mujoco.MjModel.from_xml_string(xml(others))


@pytest.fixture(scope="module")
def model():
    return scene()


def made(model, cameras=("front",), **arguments):
    """A renderer of square pictures; skips without OpenGL."""
    try:
        renderer.opengl()
    except BadInput as e:
        pytest.skip(f"needs OpenGL: {e}")
    return Renderer(model, dict.fromkeys(cameras, SIZE), **arguments)


def difference(a, b):
    """The mean absolute difference of two pictures, of 255."""
    return np.abs(a.astype(int) - b).mean()


def moved(x):
    """The cube x metres aside."""
    return START + np.eye(7)[0] * x


# ---- pictures are fresh --------------------------------------------------------------------------


def test_moving_an_object_changes_pixels(model):
    """A picture is of the positions given, with the cube where the camera should see it."""
    r = made(model)
    first = r.draw(START, "front")
    assert first.shape == (SIZE, SIZE, 3) and first.dtype == np.uint8 and first.std() > 20
    right = r.draw(moved(0.15), "front")
    assert difference(first, right) > 1
    assert np.array_equal(r.draw(START, "front"), first)

    def middle(picture):
        """Where the red pixels are: mean row and column."""
        red = (picture[..., 0] > 100) & (picture[..., 1:].max(-1) < 60)
        return np.argwhere(red).mean(0)

    assert middle(right)[1] > middle(first)[1] + 4
    up = START + np.eye(7)[2] * 0.2
    assert middle(r.draw(up, "front"))[0] < middle(first)[0] - 4  # row 0 is at the top


def test_renderers_in_turn_do_not_mix_their_pictures(model):
    a = made(model)
    b = made(model, ["wide"])
    in_a = [a.draw(moved(x), "front") for x in (0, 0.1)]
    in_b = [b.draw(moved(x), "wide") for x in (0, 0.1)]
    assert difference(in_a[0], in_b[0]) > 1
    for i, x in enumerate((0, 0.1)):
        assert np.array_equal(a.draw(moved(x), "front"), in_a[i])
        assert np.array_equal(b.draw(moved(x), "wide"), in_b[i])


def test_freeing_a_renderer_does_not_break_another(model):
    a = made(model)
    pictures = [a.draw(moved(x), "front") for x in (0, 0.1)]
    b = made(model)
    b.draw(START, "front")
    a.draw(START, "front")  # OpenGL's current context is now a's
    b.free()
    assert np.array_equal(a.draw(moved(0.1), "front"), pictures[1])
    c = made(model)
    c.draw(START, "front")
    del c
    gc.collect()
    assert np.array_equal(a.draw(START, "front"), pictures[0])
    b.free()  # a second time does nothing
    with pytest.raises(ValueError, match="freed"):
        b.draw(START, "front")


def test_beside_mujocos_own_renderer(model):
    r = made(model)
    pictures = [r.draw(moved(x), "front") for x in (0, 0.1)]
    own = renderer.opengl()(100, 100)
    own.make_current()
    con = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    assert np.array_equal(r.draw(moved(0.1), "front"), pictures[1])
    own.make_current()
    con.free()
    own.free()
    assert np.array_equal(r.draw(START, "front"), pictures[0])


def run(code, environ):
    """Run a program that reads the scene -> its output and exit code."""
    return subprocess.run(
        [sys.executable, "-c", code],
        input=xml(),
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )


FORKED = """
import os, sys
import mujoco
import numpy as np
from renderer import Renderer

model = mujoco.MjModel.from_xml_string(sys.stdin.read())
states = np.array([[0, 0, 0.1, 1, 0, 0, 0], [0.1, 0, 0.1, 1, 0, 0, 0]])
r = Renderer(model, {"front": 64})
pictures = [r.draw(qpos, "front") for qpos in states]
child = os.fork()
if child == 0:
    other = Renderer(model, {"front": 64})
    fresh = [np.array_equal(other.draw(states[i], "front"), pictures[i]) for i in (1, 0)]
    os._exit(0 if all(fresh) else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert np.array_equal(r.draw(states[1], "front"), pictures[1])
assert not np.array_equal(*pictures)
print(status, os.environ["LP_NUM_THREADS"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_after_a_picture_draws_too(model):
    """It would hang if Mesa had threads; and the end of a process says nothing."""
    made(model)
    environ = {k: v for k, v in os.environ.items() if k != "LP_NUM_THREADS"}
    done = run(FORKED, environ)
    assert (done.stdout, done.stderr, done.returncode) == ("0 0\n", "", 0)


# ---- what the model says and qpos does not -------------------------------------------------------


def test_the_model_is_copied_and_updated(model):
    """The simulator's model stays as it is; what it changes is seen after `update`."""
    own = scene()
    before = own.mesh_facenum.copy(), own.geom_group.copy(), own.tex_width.copy()
    r = made(own)
    first = r.draw(START, "front")
    after = own.mesh_facenum, own.geom_group, own.tex_width
    assert all(np.array_equal(a, b) for a, b in zip(before, after))

    own.body("still").pos[0] = 0.6
    assert np.array_equal(r.draw(START, "front"), first)
    r.update(own)
    second = r.draw(START, "front")
    assert difference(first, second) > 0.5
    assert np.array_equal(made(own).draw(START, "front"), second)

    data = mujoco.MjData(own)
    data.mocap_pos[0] = (0, 0.2, 0.5)
    r.update(own, data)
    assert difference(second, r.draw(START, "front")) > 0.5
    with pytest.raises(ValueError, match="another model"):
        r.update(scene('<geom type="sphere" size=".1"/>'))


def test_groups(model):
    yellow = made(model, groups=(0, 3)).draw(START, "front")
    none = made(model).draw(START, "front")
    is_yellow = (yellow[..., :2].min(-1) > 100) & (yellow[..., 2] < 50)
    assert is_yellow.sum() > 20 and difference(yellow, none) > 1


def test_bad_input(model):
    r = made(model)
    with pytest.raises(BadInput, match="no camera 'side': it has front, wide"):
        Renderer(model, {"side": SIZE})
    with pytest.raises(ValueError, match="a state of 3 positions does not fit"):
        r.draw(np.zeros(3), "front")


def test_no_opengl(monkeypatch):
    monkeypatch.setattr(renderer.ctypes.util, "find_library", {}.get)
    monkeypatch.setattr(renderer.sys, "platform", "linux")
    with pytest.raises(BadInput, match="no OpenGL .*libosmesa6 .*libegl1"):
        renderer.opengl.__wrapped__()


BROKEN = """
import sys
import mujoco
from commands import BadInput
from renderer import Renderer

try:
    Renderer(mujoco.MjModel.from_xml_string(sys.stdin.read()), {"front": 64})
except BadInput as e:
    print(e)
"""


def test_opengl_that_fails():
    """It is told in one line, and nothing else is said."""
    if sys.platform != "linux" or not renderer.ctypes.util.find_library("EGL"):
        pytest.skip("needs EGL on Linux")
    environ = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    environ |= {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}
    done = run(BROKEN, environ)
    assert done.stdout.startswith("no OpenGL: egl is installed but fails (The MUJOCO_EGL_DEVICE_ID")
    assert done.stdout.count("\n") == 1 and done.stderr == ""


# ---- what is left out ----------------------------------------------------------------------------


def test_culling_changes_no_pixel():
    """With boxes, balls and meshes all around, of which the cameras see a few."""
    rng = np.random.default_rng(0)
    kinds = ('type="box" size=".1 .02 .2"', 'type="sphere" size=".06"', 'type="mesh" mesh="ball"')
    others = "".join(
        f'<geom {kinds[i % 3]} pos="{x} {y} {z}" euler="{i * 20} {i * 50} 0"/>'
        for i, (x, y, z) in enumerate(rng.uniform((-2, -2.5, 0), (2, 2, 1.5), (150, 3)).round(3))
    )
    model = scene(others)
    sizes = {"front": (48, 80), "wide": (80, 48)}
    made(model)
    culled = Renderer(model, sizes)
    whole = Renderer(model, sizes, cull=False)
    for camera, (h, w) in sizes.items():
        assert culled.draw(START, camera).shape == (h, w, 3)
        assert np.array_equal(culled.draw(START, camera), whole.draw(START, camera))
        seen = in_view(culled.model, culled.data, culled.ids[camera], w / h, culled.culled)
        assert 10 < seen.sum() < 100, "the test says something only if there is much to leave out"


def test_decimation_and_smaller_textures_hardly_change_a_picture(model):
    whole = made(model, grid=None, texture=None)
    coarse = made(model, grid=(0.02, 0.02), texture=150, cull=False)
    assert coarse.model.mesh_facenum[0] < 0.75 * whole.model.mesh_facenum[0]
    assert (coarse.model.tex_width[0], coarse.model.tex_height[0]) == (150, 100)
    a, b = (r.draw(START, "front") for r in (whole, coarse))
    assert 0 < difference(a, b) < 1
    usual = made(model).draw(START, "front")
    assert difference(a, usual) < 0.5


def test_smooth_pictures_are_nearer_to_large_ones(model):
    """Nearer to the means of 8 x 8 pixels than pictures of one pixel each."""
    plain = made(model).draw(START, "front")
    smooth = made(model, smooth=True).draw(START, "front")
    large = Renderer(model, {"front": 8 * SIZE}).draw(START, "front")
    means = large.reshape(SIZE, 8, SIZE, 8, 3).mean((1, 3))
    assert smooth.shape == plain.shape
    assert difference(smooth, means) < 0.7 * difference(plain, means)


def test_decimate():
    """A mesh's vertices move by less than a cell, and its faces keep normals of their own side."""
    whole = scene()
    model = scene()
    decimate(model, [0], finest=0.03, coarsest=0.03)
    assert 50 < model.mesh_facenum[0] < 0.5 * whole.mesh_facenum[0]
    assert np.linalg.norm(model.mesh_vert - whole.mesh_vert, axis=1).max() < 0.03 * 3**0.5
    faces = model.mesh_face[: model.mesh_facenum[0]]
    normals = model.mesh_normal[model.mesh_facenormal[: model.mesh_facenum[0]]].mean(1)
    a, b, c = np.moveaxis(model.mesh_vert[faces], 1, 0)
    across = np.cross(b - a, c - a)
    large = np.linalg.norm(across, axis=1) > 1e-5  # slivers may be turned
    assert ((across * normals).sum(1) > 0)[large].mean() > 0.98


def test_distinct_faces():
    faces = np.array([[0, 1, 2], [1, 1, 2], [2, 0, 1], [0, 2, 1], [3, 1, 2], [4, 5, 4]])
    assert distinct_faces(faces).tolist() == [0, 3, 4]
    assert len(distinct_faces(faces[[1, 5]])) == 0


def test_shrink(model):
    own = scene()
    W, H, channels = (int(a[0]) for a in (own.tex_width, own.tex_height, own.tex_nchannel))
    pixels = own.tex_data[: W * H * channels].reshape(H, W, channels).astype(float)
    shrink(own, W)
    assert own.tex_width[0] == W
    shrink(own, W // 2)
    assert (own.tex_width[0], own.tex_height[0]) == (W // 2, H // 2)
    means = pixels.reshape(H // 2, 2, W // 2, 2, channels).mean((1, 3))
    got = own.tex_data[: means.size].reshape(means.shape)
    assert np.abs(got - means).max() <= 0.5


# ---- robosuite -----------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs robosuite")
def test_robosuites_own_pictures(model):
    """The pictures of lift's two cameras are robosuite's but for edges and reflections; a reset,
    and robosuite's own OpenGL, do not disturb them."""
    made(model)  # or skip
    if "robosuite" in sys.modules:  # it chose its OpenGL at its import: again in a fresh process
        again = [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_robosuites_own_pictures"]
        told = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
        assert told.returncode == 0, told.stdout
        return
    os.environ["MUJOCO_GL"] = os.environ.get("PYOPENGL_PLATFORM", "")  # robosuite goes by it
    import robosuite

    env = robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=False,
        hard_reset=False,
    )
    np.random.seed(0)
    env.reset()
    sizes = {"agentview": 84, "robot0_eye_in_hand": 84}
    r = Renderer(env.sim.model._model, sizes, groups=(1, 2))
    for _ in range(2):
        env.sim.forward()
        for camera in sizes:
            context = env.sim._render_context_offscreen
            context.vopt.geomgroup[:3] = (0, 1, 1)
            context.gl_ctx.make_current()
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context.con)
            own = env.sim.render(camera_name=camera, width=84, height=84)[::-1]
            picture = r.draw(env.sim.data.qpos, camera)
            assert own.std() > 20 and 0 < difference(picture, own) < 3, camera
        env.reset()
    env.close()

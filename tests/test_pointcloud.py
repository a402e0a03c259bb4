"""pointcloud.py: rays hit where geometry says, the sample is the plain loop's, bad clouds cost one clear line."""
import mujoco
import numpy as np
import pytest

from conftest import make_renderer
from pointcloud import VISIBLE, Camera, capture, cast, colours, farthest, promising, settle

XML = """<mujoco><asset><material name="blue" rgba="0 0 1 1"/></asset><worldbody>
<geom type="plane" size="5 5 .1" rgba=".5 .5 .5 1"/>
<geom name="ball" type="sphere" size=".2" pos="0 0 .5" rgba="1 0 0 1"/>
<geom name="ghost" type="sphere" size=".4" pos="0 0 .5" rgba="1 0 0 0"/>
<geom name="hull" type="sphere" size=".3" pos="0 0 .5" group="3"/>
<body name="cube" pos="1 0 .1"><joint type="slide" axis="0 0 1"/><geom type="box" size=".1 .1 .1" material="blue"/></body>
<camera name="top" pos="0 0 2" fovy="60"/></worldbody></mujoco>"""
DOWN = Camera((0, 0, 2), (1, 0, 0, 0), fovy=60, size=41)
ROOM = ((-9, -9, 0.001), (9, 9, 9))


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    settle(model, data, [0.])
    return model, data


def test_rays_hit_where_geometry_says(scene):
    points, geom = cast(*scene, DOWN)
    grid, ids = points.reshape(41, 41, 3), geom.reshape(41, 41)
    np.testing.assert_allclose(grid[20, 20], [0, 0, 0.7], atol=1e-9)          # the ball's top, not ghost, not hull
    assert scene[0].geom(ids[20, 20]).name == "ball"
    np.testing.assert_allclose(grid[0, 0], [-2 * np.tan(np.pi / 6) * 40 / 41, 2 * np.tan(np.pi / 6) * 40 / 41, 0],
                               atol=1e-9)                                      # top left: -x, +y, on the floor
    on_ball = geom == scene[0].geom("ball").id
    np.testing.assert_allclose(np.linalg.norm(points[on_ball] - [0, 0, 0.5], axis=1), 0.2, atol=1e-9)
    hull = cast(*scene, DOWN, groups=(3,))[1]
    assert set(hull) == {-1, scene[0].geom("hull").id}


def test_camera_pose(scene):
    """Turned to look along +x: the pixel in the middle goes to +x; right is -y, up is +z."""
    camera = Camera((0, 0, 1), (0.5, 0.5, -0.5, -0.5), fovy=90, size=3)
    np.testing.assert_allclose(camera.directions()[4], [1, 0, 0], atol=1e-12)
    right, up = camera.directions()[5] - [1, 0, 0], camera.directions()[1]
    assert right[1] < -0.3 and up[2] > 0.3
    assert Camera.named(scene[0], "top", size=41) == DOWN
    assert Camera.named(scene[0], "top", pos=(1, 1, 1)).pos == (1, 1, 1)
    with pytest.raises(ValueError, match="no camera 'side': it has top"):
        Camera.named(scene[0], "side")


def test_promising_rays(scene):
    """No ray that is left out would have met anything inside the box."""
    model, data = scene
    for box in (ROOM, ((0.85, -1, 0.05), (2, 1, 2)), ((-0.5, -0.5, 0.6), (0.05, 0.5, 2))):
        some = promising(model, data, DOWN, box)
        full, part = cast(model, data, DOWN)[0], cast(model, data, DOWN, VISIBLE, some)[0]
        inside = ((full > box[0]) & (full < box[1])).all(1)
        assert 0 < inside.sum() <= some.sum() < len(some)
        np.testing.assert_array_equal(part[some], full[some])
        assert some[inside].all() and np.isnan(part[~some]).all()


def test_promising_rays_are_exact_for_boxes():
    """A box is its own bounding box: turned any way, just the rays that hit it are promising, cropped or not."""
    rng = np.random.default_rng(0)
    boxes = "".join(f'<geom type="box" size="{" ".join(map(str, rng.uniform(0.02, 0.3, 3)))}" '
                    f'pos="{" ".join(map(str, rng.uniform(-0.5, 0.5, 3)))}" quat="{" ".join(map(str, rng.normal(size=4)))}"/>'
                    for _ in range(12))
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{boxes}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    settle(model, data, [])
    points, hit = cast(model, data, DOWN)
    np.testing.assert_array_equal(promising(model, data, DOWN, ((-9, -9, -9), (9, 9, 9))), hit >= 0)
    low, high = (-0.2, -0.1, 0), (0.3, 0.6, 0.4)
    inside, some = ((points > low) & (points < high)).all(1), promising(model, data, DOWN, (low, high))
    assert some[inside].all() and inside.sum() <= some.sum() < (hit >= 0).sum()


def test_sites():
    """Spheres of sites are hit where they are nearer, and named by ngeom + their id; others are not."""
    model = mujoco.MjModel.from_xml_string('''<mujoco><worldbody><geom type="plane" size="5 5 .1"/>
        <site name="mark" size=".1" pos="0 0 .5" rgba="0 1 0 1"/><site name="clear" size=".3" rgba="0 1 0 0"/>
        <site name="box" type="box" size=".3 .3 .3"/><site name="below" size=".1" pos="1 0 -.5"/></worldbody></mujoco>''')
    data = mujoco.MjData(model)
    settle(model, data, [])
    points, hit = cast(model, data, DOWN)
    assert points.reshape(41, 41, 3)[20, 20] == pytest.approx([0, 0, 0.6]) and set(hit) == {0, model.ngeom}
    assert colours(model, hit[[20 * 41 + 20, 0]]).tolist() == [[0, 1, 0], [0.5, 0.5, 0.5]]
    marks = capture(model, data, DOWN, ROOM, n=16)
    assert (np.linalg.norm(marks - [0, 0, 0.5], axis=1) < 0.1001).all()


def test_sky_is_nan(scene):
    points, geom = cast(*scene, Camera((0, 0, 2), (0, 1, 0, 0)))              # looking up
    assert np.isnan(points).all() and (geom == -1).all()


def slow_farthest(points, n):
    taken = [0]
    while len(taken) < n:
        taken.append(int(np.argmax([min(((p - points[t]) ** 2).sum() for t in taken) for p in points])))
    return taken


def test_farthest_is_the_plain_loop():
    points = np.random.default_rng(0).normal(size=(80, 3))
    assert farthest(points, 20).tolist() == slow_farthest(points, 20)
    assert farthest(points[:3], 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert farthest(np.repeat(points[:2], 50, 0), 3).tolist()[:2] == [0, 50]


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.array([[0, 0, np.nan]])])
def test_farthest_refuses(points):
    with pytest.raises(ValueError, match="cannot sample 4"):
        farthest(points, 4)


def test_capture(scene):
    cloud = capture(*scene, DOWN, ROOM, n=64)
    assert cloud.shape == (64, 3) and cloud.dtype == np.float32 and (cloud[:, 2] > 0.001).all()       # no floor
    coloured = capture(*scene, DOWN, ROOM, n=64, colour=True)
    np.testing.assert_array_equal(coloured[:, :3], cloud)
    red = cloud[:, 2] > 0.3
    assert red.any() and (coloured[red, 3:] == [1, 0, 0]).all() and (coloured[~red & (cloud[:, 0] > 0.85), 3:] == [0, 0, 1]).all()
    np.testing.assert_array_equal(cloud, capture(*scene, DOWN, ROOM, n=64))                           # deterministic
    with pytest.raises(ValueError, match="no point inside the crop box"):
        capture(*scene, DOWN, ((0, 0, 5), (1, 1, 6)))


def test_settle_moves_what_rays_see(scene):
    model, data = scene[0], mujoco.MjData(scene[0])
    settle(model, data, [0.5])
    above = Camera((1, 0, 2), (1, 0, 0, 0))
    top = capture(model, data, above, ROOM, n=8)[:, 2].max()
    assert top == pytest.approx(0.7, abs=1e-6)                                # cube of height 0.2 raised by 0.5
    with pytest.raises(ValueError, match="2 positions does not fit this model, which has 1"):
        settle(model, data, [0., 0.])


def test_colours_without_materials():
    model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1" rgba="0 1 0 1"/></worldbody></mujoco>')
    assert colours(model, np.array([0])).tolist() == [[0, 1, 0]]


@pytest.mark.filterwarnings("ignore")                       # of a renderer that could not be made
def test_depth_of_the_renderer(scene):
    """Where OpenGL is present: rendered depth on the same camera agrees within 1 cm on 99 % of what both see."""
    renderer = make_renderer(scene[0], 84)
    camera = Camera((0, 0, 2), (1, 0, 0, 0), fovy=60)
    renderer.enable_depth_rendering()
    renderer.update_scene(scene[1], camera="top")
    depth = renderer.render().ravel()
    points, geom = cast(*scene, camera)
    both = (geom >= 0) & (depth < 10)
    assert both.mean() > 0.5 and (np.abs(2 - points[both, 2] - depth[both]) < 0.01).mean() >= 0.99

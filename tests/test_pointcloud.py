"""pointcloud.py: rays hit where geometry says, the sample is that of the plain loop, and bad input
costs one clear line."""

import mujoco
import numpy as np
import pytest
from matplotlib.figure import Figure

from conftest import make_renderer
from pointcloud import (
    VISIBLE,
    Camera,
    capture,
    cast,
    colours,
    contact_sheet,
    draw,
    farthest,
    picture,
    promising,
    settle,
)

XML = """
<mujoco>
  <asset><material name="blue" rgba="0 0 1 1"/></asset>
  <worldbody>
    <geom type="plane" size="5 5 .1" rgba=".5 .5 .5 1"/>
    <geom name="ball" type="sphere" size=".2" pos="0 0 .5" rgba="1 0 0 1"/>
    <geom name="ghost" type="sphere" size=".4" pos="0 0 .5" rgba="1 0 0 0"/>
    <geom name="hull" type="sphere" size=".3" pos="0 0 .5" group="3"/>
    <body name="cube" pos="1 0 .1">
      <joint type="slide" axis="0 0 1"/>
      <geom type="box" size=".1 .1 .1" material="blue"/>
      <camera name="above the cube" pos="0 0 1" fovy="60"/>
    </body>
    <camera name="top" pos="0 0 2" fovy="60"/>
  </worldbody>
</mujoco>
"""
SITES = """
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <site name="mark" size=".1" pos="0 0 .5" rgba="0 1 0 1"/>
    <site name="clear" size=".3" rgba="0 1 0 0"/>
    <site name="box" type="box" size=".3 .3 .3"/>
    <site name="below" size=".1" pos="1 0 -.5"/>
  </worldbody>
</mujoco>
"""
DOWN = Camera((0, 0, 2), (1, 0, 0, 0), fovy=60, size=41)
ROOM = ((-9, -9, 0.001), (9, 9, 9))


def settled(xml, qpos):
    """The model of a text and its data at these positions."""
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    settle(model, data, qpos)
    return model, data


@pytest.fixture(scope="module")
def scene():
    return settled(XML, [0.0])


# ---- cameras -------------------------------------------------------------------------------------


def test_camera_pose():
    """Turned to look along +x: the pixel in the middle goes to +x; right is -y, up is +z."""
    camera = Camera((0, 0, 1), (0.5, 0.5, -0.5, -0.5), fovy=90, size=3)
    rays = camera.directions()
    np.testing.assert_allclose(rays[4], [1, 0, 0], atol=1e-12)
    assert (rays[5] - [1, 0, 0])[1] < -0.3
    assert rays[1][2] > 0.3
    assert not rays.flags.writeable and camera.directions() is rays


def test_looking_camera():
    camera = Camera.looking((1, 2, 3), (1, 5, 3), size=3)
    np.testing.assert_allclose(camera.directions()[4], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(camera.matrix().T, [[1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=1e-12)


def test_named_camera(scene):
    """A camera of the model stands where its body is; one that is not there is refused."""
    assert Camera.named(*scene, "top", size=41) == DOWN
    model, data = settled(XML, [0.5])
    np.testing.assert_allclose(Camera.named(*scene, "above the cube").pos, [1, 0, 1.1])
    np.testing.assert_allclose(Camera.named(model, data, "above the cube").pos, [1, 0, 1.6])
    with pytest.raises(ValueError, match="no camera 'side': it has top, above the cube"):
        Camera.named(*scene, "side")


# ---- rays ----------------------------------------------------------------------------------------


def test_rays_hit_where_geometry_says(scene):
    points, geom = cast(*scene, DOWN)
    grid = points.reshape(41, 41, 3)
    np.testing.assert_allclose(grid[20, 20], [0, 0, 0.7], atol=1e-9)  # the ball's top
    assert scene[0].geom(geom.reshape(41, 41)[20, 20]).name == "ball"  # not ghost, not hull
    corner = 2 * np.tan(np.pi / 6) * 40 / 41  # on the floor; top left is -x, +y
    np.testing.assert_allclose(grid[0, 0], [-corner, corner, 0], atol=1e-9)
    on_ball = geom == scene[0].geom("ball").id
    off_centre = np.linalg.norm(points[on_ball] - [0, 0, 0.5], axis=1)
    np.testing.assert_allclose(off_centre, 0.2, atol=1e-9)
    hull = cast(*scene, DOWN, groups=(3,))[1]
    assert set(hull) == {-1, scene[0].geom("hull").id}


def test_sky_is_nan(scene):
    points, geom = cast(*scene, Camera((0, 0, 2), (0, 1, 0, 0)))  # looking up
    assert np.isnan(points).all() and (geom == -1).all()


def test_promising_rays(scene):
    """No ray that is left out would have met anything inside the box."""
    model, data = scene
    for box in (ROOM, ((0.85, -1, 0.05), (2, 1, 2)), ((-0.5, -0.5, 0.6), (0.05, 0.5, 2))):
        some = promising(model, data, DOWN, box)
        full = cast(model, data, DOWN)[0]
        part = cast(model, data, DOWN, VISIBLE, some)[0]
        inside = ((full > box[0]) & (full < box[1])).all(1)
        assert 0 < inside.sum() <= some.sum() < len(some)
        np.testing.assert_array_equal(part[some], full[some])
        assert some[inside].all() and np.isnan(part[~some]).all()


def test_promising_rays_are_exact_for_boxes():
    """A box is its own bounding box: however it is turned, just the rays that hit it are promising.

    With a crop box, all rays that hit inside it are, and others that hit are left out.
    """
    rng = np.random.default_rng(0)
    boxes = ""
    for _ in range(12):
        size = " ".join(map(str, rng.uniform(0.02, 0.3, 3)))
        pos = " ".join(map(str, rng.uniform(-0.5, 0.5, 3)))
        quat = " ".join(map(str, rng.normal(size=4)))
        boxes += f'<geom type="box" size="{size}" pos="{pos}" quat="{quat}"/>'
    model, data = settled(f"<mujoco><worldbody>{boxes}</worldbody></mujoco>", [])
    points, hit = cast(model, data, DOWN)
    everywhere = ((-9, -9, -9), (9, 9, 9))
    np.testing.assert_array_equal(promising(model, data, DOWN, everywhere), hit >= 0)
    low = (-0.2, -0.1, 0)
    high = (0.3, 0.6, 0.4)
    inside = ((points > low) & (points < high)).all(1)
    some = promising(model, data, DOWN, (low, high))
    assert some[inside].all() and inside.sum() <= some.sum() < (hit >= 0).sum()


def test_sites():
    """Spheres of sites are hit where they are nearer, and named by ngeom + their id; others not."""
    model, data = settled(SITES, [])
    points, hit = cast(model, data, DOWN)
    middle = 20 * 41 + 20
    assert points[middle] == pytest.approx([0, 0, 0.6])
    assert set(hit) == {0, model.ngeom}
    assert colours(model, hit[[middle, 0]]).tolist() == [[0, 1, 0], [0.5, 0.5, 0.5]]
    marks = capture(model, data, DOWN, ROOM, n=16)
    assert (np.linalg.norm(marks - [0, 0, 0.5], axis=1) < 0.1001).all()


def test_settle_moves_what_rays_see(scene):
    model, data = settled(XML, [0.5])
    above = Camera((1, 0, 2), (1, 0, 0, 0))
    top = capture(model, data, above, ROOM, n=8)[:, 2].max()
    assert top == pytest.approx(0.7, abs=1e-6)  # the cube of height 0.2, raised by 0.5
    with pytest.raises(ValueError, match="2 positions does not fit this model, which has 1"):
        settle(model, data, [0.0, 0.0])


# ---- clouds and pictures -------------------------------------------------------------------------


def slow_farthest(points, n):
    """farthest(), as its definition says."""
    taken = [0]
    while len(taken) < n:
        nearest = [min(((p - points[t]) ** 2).sum() for t in taken) for p in points]
        taken.append(int(np.argmax(nearest)))
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
    assert cloud.shape == (64, 3) and cloud.dtype == np.float32
    assert (cloud[:, 2] > 0.001).all()  # no floor
    coloured = capture(*scene, DOWN, ROOM, n=64, colour=True)
    np.testing.assert_array_equal(coloured[:, :3], cloud)
    ball = cloud[:, 2] > 0.3
    cube = ~ball & (cloud[:, 0] > 0.85)
    assert ball.any() and (coloured[ball, 3:] == [1, 0, 0]).all()
    assert cube.any() and (coloured[cube, 3:] == [0, 0, 1]).all()
    np.testing.assert_array_equal(cloud, capture(*scene, DOWN, ROOM, n=64))  # deterministic
    with pytest.raises(ValueError, match="no point inside the crop box"):
        capture(*scene, DOWN, ((0, 0, 5), (1, 1, 6)))


def test_colours_without_materials():
    xml = '<mujoco><worldbody><geom size="1" rgba="0 1 0 1"/></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(xml)
    assert colours(model, np.array([0])).tolist() == [[0, 1, 0]]


def test_picture(scene):
    """The floor is grey, brightest where it faces the camera; the ball is red; the sky is white."""
    seen = picture(*scene, DOWN)
    assert seen.shape == (41, 41, 3) and seen.dtype == np.uint8
    red, green, blue = seen[20, 20]
    assert red > 150 and green == blue == 0
    assert (seen[3, 20] == seen[3, 20, 0]).all() and 100 < seen[3, 20, 0] <= 127
    sky = picture(*scene, Camera((0, 0, 2), (0, 1, 0, 0), size=9))
    assert (sky == 255).all()


def test_drawing(scene):
    """A cloud is drawn into its box; a sheet has a picture and a cloud for each scene."""
    cloud = capture(*scene, DOWN, ROOM, n=64)
    axes = Figure().add_subplot(projection="3d")
    draw(axes, cloud, ROOM)
    assert axes.get_zlim() == pytest.approx((0.001, cloud[:, 2].max() + 0.02))
    sheet = contact_sheet(3 * [("a scene", picture(*scene, DOWN), cloud, ROOM)], columns=2)
    assert len(sheet.axes) == 6 and sheet.axes[4].get_title() == "a scene"


@pytest.mark.filterwarnings("ignore")  # of a renderer that could not be made
def test_depth_of_the_renderer(scene):
    """Rendered depth of the same camera agrees within 1 cm on 99 % of what both see."""
    renderer = make_renderer(scene[0], 84)
    camera = Camera((0, 0, 2), (1, 0, 0, 0), fovy=60)
    renderer.enable_depth_rendering()
    renderer.update_scene(scene[1], camera="top")
    depth = renderer.render().ravel()
    points, geom = cast(*scene, camera)
    both = (geom >= 0) & (depth < 10)
    close = np.abs(2 - points[both, 2] - depth[both]) < 0.01
    assert both.mean() > 0.5 and close.mean() >= 0.99

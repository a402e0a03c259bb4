"""Pictures of a MuJoCo simulator's cameras, fast enough to draw in software.

A `Renderer` draws positions, not a running simulator: it keeps a copy of the model, in which it
may change what it likes, and brings the copy's poses up to date itself. What it leaves out costs
much in software and shows little in a small picture (note 40):

  reflections and shadows     each draws the scene once more
  multisampling               each pixel is drawn once; `smooth` draws four and takes their mean
  what a camera cannot see    geoms outside the camera's field of view are not handed to OpenGL
  the finest parts of meshes  vertices that lie close together are made one, see `decimate`
  the finest textures         they take memory, and small pictures never show them, see `shrink`

OpenGL draws into memory, without a display: in software by OSMesa, or on a GPU by EGL, as
$MUJOCO_GL says (osmesa, egl). Where it says nothing the first that is installed is taken.

Shapes: G geoms, V vertices and F faces of a mesh. Lengths are metres, angles degrees.
"""

import atexit
import contextlib
import copy
import ctypes.util
import functools
import importlib
import os
import sys
import weakref

import numpy as np

from commands import BadInput

LIBRARIES = {"osmesa": "OSMesa", "egl": "EGL"}  # what $MUJOCO_GL calls them -> lib*.so
CURE = "apt install libosmesa6 (software), or libegl1 libgl1-mesa-dri and MUJOCO_GL=egl"
GROUPS = (0, 1, 2)  # the groups of geoms that MuJoCo's own viewer shows
DRAWN = 0  # the groups that the geoms of the copy are in
HIDDEN = 1
# The parts of a model that a simulator may move, resize or recolour between episodes.
CHANGING = ("qpos0", "body_", "jnt_", "geom_", "site_", "cam_", "light_", "mat_")


# ---- OpenGL --------------------------------------------------------------------------------------


@functools.cache  # a process can load only one of the libraries
def opengl():
    """MuJoCo's class of OpenGL contexts that draw into memory. Raises BadInput if there is none."""
    # Mesa reads it when it makes its first context. Threads of its own would not live on in a
    # forked process, which would wait for them for ever.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if sys.platform != "linux":
        from mujoco import GLContext

        return GLContext
    installed = [name for name, library in LIBRARIES.items() if ctypes.util.find_library(library)]
    if not installed:
        raise BadInput(f"no OpenGL that draws without a display: {CURE}")
    loaded = os.environ.get("PYOPENGL_PLATFORM")  # set where another part of MuJoCo loaded it
    asked = loaded or os.environ.get("MUJOCO_GL", "").lower()
    name = asked if asked in installed else installed[0]
    with refusing_opengl(name):
        context = importlib.import_module(f"mujoco.{name}").GLContext
    context._context = None  # or Python tells of an error at the end of one that was never made
    return context


@contextlib.contextmanager
def refusing_opengl(name):
    """Turn what a library that does not work raises into a BadInput."""
    try:
        yield
    except (ImportError, AttributeError, RuntimeError) as e:
        raise BadInput(f"no OpenGL: {name} is installed but fails ({e}): {CURE}") from e


alive = weakref.WeakSet()  # the renderers of this process


@functools.cache
def free_at_exit():
    """Have all renderers freed before EGL is closed. Call it once EGL has been opened."""
    atexit.register(free_all)


def free_all():
    """Free all renderers."""
    for renderer in list(alive):
        with contextlib.suppress(Exception):  # another package may have closed EGL already
            renderer.free()


# ---- the copy of a model that is drawn -----------------------------------------------------------


def simplified(model, groups, grid, texture):
    """A copy of a model that is good for pictures only; see Renderer for the arguments."""
    import mujoco

    model = copy.copy(model)
    if grid is not None:
        is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
        shown = np.isin(model.geom_group, groups)
        decimate(model, np.unique(model.geom_dataid[shown & is_mesh]), *grid)
    if texture is not None:
        shrink(model, texture)
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    return model


def decimate(model, meshes, finest, coarsest, cells=56):
    """Give meshes of a model, by their ids, fewer faces.

    A grid is laid over a mesh, and the vertices of a cell become their mean; faces of which no area
    is left are dropped. A cell's side is the mesh's largest extent / cells, but not below `finest`
    nor above `coarsest`, in metres: what is small is usually seen from near.
    """
    for i in meshes:
        first = model.mesh_vertadr[i]
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[i]]  # (V, 3), a view
        extent = np.ptp(vertices, axis=0).max()
        cell = cluster(vertices, np.clip(extent / cells, finest, coarsest))
        for axis in range(3):
            mean = np.bincount(cell, vertices[:, axis]) / np.bincount(cell)
            vertices[:, axis] = mean[cell]

        first = model.mesh_faceadr[i]
        faces = slice(first, first + model.mesh_facenum[i])
        kept = distinct_faces(cell[model.mesh_face[faces]])
        for rows in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
            rows[first : first + len(kept)] = rows[faces][kept]
        model.mesh_facenum[i] = len(kept)


def cluster(vertices, side):
    """The number (V,) of the cell that each vertex (V, 3) is in; cells are numbered from 0."""
    place = np.floor((vertices - vertices.min(0)) / side).astype(np.int64)
    number = np.ravel_multi_index(place.T, place.max(0) + 1)
    return np.unique(number, return_inverse=True)[1].ravel()


def distinct_faces(faces):
    """Indices, in order, of the faces (F, 3) whose corners differ, and of equal ones the first.

    Faces are equal if they have the same corners in the same sense: the same three in the other
    sense are the back of a sheet.
    """
    a, b, c = faces.T
    proper = np.flatnonzero((a != b) & (b != c) & (c != a))
    turn = faces[proper].argmin(1)  # the smallest corner comes first
    columns = (turn[:, None] + np.arange(3)) % 3
    turned = np.take_along_axis(faces[proper], columns, axis=1)
    return proper[np.sort(np.unique(turned, axis=0, return_index=True)[1])]


def shrink(model, width):
    """Halve a model's textures until none is wider than `width` pixels.

    Each pixel becomes the mean of k x k. OpenGL itself makes such means for what is far away, so it
    shows only where a picture has more pixels than the texture.
    """
    import mujoco

    for i in range(model.ntex):
        W, H, channels = (
            int(a[i]) for a in (model.tex_width, model.tex_height, model.tex_nchannel)
        )
        k = 1
        while W // k > width:
            k *= 2
        if k == 1:
            continue
        flat = model.tex_type[i] == mujoco.mjtTexture.mjTEXTURE_2D
        sides = 1 if flat else H // W  # the squares of a cube lie one below the other
        first = model.tex_adr[i]
        pixels = model.tex_data[first : first + H * W * channels]
        pixels = pixels.reshape(sides, H // sides, W, channels)
        h = H // sides // k
        w = W // k
        blocks = pixels[:, : h * k, : w * k].reshape(sides, h, k, w, k, channels)
        means = blocks.mean((2, 4)).round().astype(np.uint8)
        model.tex_data[first : first + means.size] = means.ravel()
        model.tex_width[i] = w
        model.tex_height[i] = h * sides


# ---- pictures ------------------------------------------------------------------------------------


class Renderer:
    """Draws what cameras of a model see.

    model: a mujoco.MjModel; of robosuite's simulators `sim.model._model`. It is copied, so later
    changes of it are not seen before `update`.
    cameras: {name of a camera of the model: (h, w) or the side of a square, in pixels}.
    groups: the groups of geoms that are drawn; of robosuite's (1, 2), as 0 are its collision geoms.
    cull: leave out what a camera cannot see, which changes no pixel.
    grid: (finest, coarsest) of `decimate`, or None for meshes as they are.
    texture: the width of `shrink`, or None for textures as they are.
    smooth: draw twice the size and take means of 2 x 2 pixels, for smoother edges.

    It may be made before or after a fork, and beside others; `free` it when it is no longer needed,
    or let Python do so. Raises BadInput if there is no OpenGL or no such camera.
    """

    def __init__(
        self,
        model,
        cameras,
        *,
        groups=GROUPS,
        cull=True,
        grid=(0.00125, 0.005),
        texture=512,
        smooth=False,
    ):
        self.gl = None  # the OpenGL context, and MuJoCo's part in it
        self.con = None
        context = opengl()
        import mujoco

        self.groups = groups
        self.cull = cull
        self.scale = 2 if smooth else 1
        self.sizes = {name: tuple(np.broadcast_to(size, 2)) for name, size in cameras.items()}
        self.ids = {name: camera_id(model, name) for name in cameras}
        self.model = simplified(model, groups, grid, texture)
        height, width = np.max(list(self.sizes.values()), axis=0) * self.scale
        self.model.vis.global_.offheight = height
        self.model.vis.global_.offwidth = width
        self.data = mujoco.MjData(self.model)

        self.option = mujoco.MjvOption()
        self.option.geomgroup[:] = 0
        self.option.geomgroup[DRAWN] = 1
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.scene = mujoco.MjvScene(self.model, model.ngeom + model.nsite + 1000)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self.update(model)

        with refusing_opengl(context.__module__.removeprefix("mujoco.")):
            self.gl = context(width, height)
            self.gl.make_current()
        self.con = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_50)
        alive.add(self)
        free_at_exit()

    def update(self, model, data=None):
        """Take over what a simulator has changed in its model: places, sizes, colours.

        robosuite hides its marks at the first reset; RoboMimic's tasks, without hard resets, change
        nothing later. Mocap bodies stand where the model puts them, or where data has them. Meshes
        and textures must be those that the renderer was made with; ValueError if the models' sizes
        differ.
        """
        import mujoco

        arrays = {name: getattr(model, name) for name in dir(model) if name.startswith(CHANGING)}
        for name, array in arrays.items():
            if array.shape != getattr(self.model, name).shape:
                raise ValueError(f"another model ({name}): make another Renderer for it")
        for name, array in arrays.items():
            getattr(self.model, name)[:] = array
        self.model.geom_group[:] = np.where(np.isin(model.geom_group, self.groups), DRAWN, HIDDEN)
        # These are culled; planes are drawn always, for they may be without end.
        drawn = self.model.geom_group == DRAWN
        self.culled = np.flatnonzero(drawn & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE))
        mujoco.mj_resetData(self.model, self.data)
        if data is not None:
            self.data.mocap_pos[:] = data.mocap_pos
            self.data.mocap_quat[:] = data.mocap_quat

    def draw(self, qpos, camera):
        """What a camera sees when the simulator is at positions qpos (nq,) -> (h, w, 3) uint8.

        Raises ValueError if qpos does not fit the model.
        """
        import mujoco

        from pointcloud import settle

        if self.con is None:
            raise ValueError("this renderer was freed")
        settle(self.model, self.data, qpos)
        if self.model.ntendon:
            mujoco.mj_tendon(self.model, self.data)
        i = self.ids[camera]
        h, w = self.sizes[camera]
        if self.cull:
            seen = in_view(self.model, self.data, i, w / h, self.culled)
            self.model.geom_group[self.culled] = np.where(seen, DRAWN, HIDDEN)
        self.camera.fixedcamid = i
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self.model, self.data, self.option, None, self.camera, everything, self.scene
        )
        # Another renderer may have made its own context the current one, or freed it: the picture
        # would be an old one, without an error.
        self.gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.con)
        k = self.scale
        place = mujoco.MjrRect(0, 0, k * w, k * h)
        pixels = np.empty((k * h, k * w, 3), np.uint8)
        mujoco.mjr_render(place, self.scene, self.con)
        mujoco.mjr_readPixels(pixels, None, place, self.con)
        pixels = pixels[::-1]  # OpenGL's first row is the lowest
        if k > 1:
            total = pixels.reshape(h, k, w, k, 3).sum((1, 3), dtype=np.uint16)
            return ((total + k * k // 2) // (k * k)).astype(np.uint8)
        return np.ascontiguousarray(pixels)

    def free(self):
        """Give back what OpenGL holds. The renderer can then draw no more."""
        gl = self.gl
        con = self.con
        self.gl = None
        self.con = None
        if con is not None:
            gl.make_current()  # or another context's lists would be freed
            con.free()
        if gl is not None:
            gl.free()

    def __del__(self):
        with contextlib.suppress(Exception):  # Python may be half gone
            self.free()


def camera_id(model, name):
    """The number of a model's camera. Raises BadInput with the names of those it has."""
    import mujoco

    i = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if i < 0:
        names = ", ".join(model.camera(j).name for j in range(model.ncam))
        raise BadInput(f"the model has no camera {name!r}: it has {names or 'none'}")
    return i


def in_view(model, data, camera, aspect, geoms):
    """Whether the boxes around geoms (G,) reach into a camera's field of view -> (G,) bool.

    aspect: a picture's width / its height. The field of view is the cone between four planes
    through the camera. A box is outside if it lies wholly behind one of them.
    """
    if model.cam_sensorsize[camera].any() or model.cam_orthographic[camera]:
        return np.ones(len(geoms), bool)  # another field of view than this one
    y = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    x = y * aspect
    # The planes' normals, which point inside. The camera looks down its own -z.
    inwards = np.array([[1, 0, -x], [-1, 0, -x], [0, 1, -y], [0, -1, -y]])
    inwards = inwards @ data.cam_xmat[camera].reshape(3, 3).T  # (4, 3) in the world
    R = data.geom_xmat[geoms].reshape(-1, 3, 3)
    normals = inwards @ R  # (G, 4, 3), in each geom's own frame
    centre, half = np.split(model.geom_aabb[geoms], 2, axis=1)  # (G, 3) each
    from_camera = data.geom_xpos[geoms] - data.cam_xpos[camera]
    distance = from_camera @ inwards.T + np.einsum("gpk,gk->gp", normals, centre)  # (G, 4)
    reach = np.einsum("gpk,gk->gp", np.abs(normals), half)
    return (distance + reach > -1e-6).all(1)

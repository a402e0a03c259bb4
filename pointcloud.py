"""Point clouds straight from MuJoCo by casting rays: no OpenGL, no display, no GPU.

A camera is a pose and a field of view. Every pixel is a ray (`mj_ray`), and every hit is a point in
world coordinates. Points outside a box are dropped, and farthest-point sampling keeps n of the
rest: the pre-processing of 3D Diffusion Policy (arXiv 2403.03954).

Rays meet the poses that a MjData holds. In a simulator that is running these lag one sub-step
behind its positions, so cast rays in a private MjData that `settle` has brought up to date.

Shapes: N rays, one a pixel, or N points; M spheres; G geoms; P pairs of a ray and a geom. Lengths
are metres, angles degrees.
"""

import functools
from dataclasses import dataclass

import mujoco
import numpy as np

VISIBLE = (0, 1, 2)  # the groups of geoms and sites that MuJoCo's own viewer shows


# ---- cameras -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the world; it looks down its own -z, with x to the right and y up.

    pos (3,) and quat (w, x, y, z) are its pose, fovy is its field of view in degrees, and its
    pictures are square, `size` pixels a side.
    """

    pos: tuple
    quat: tuple
    fovy: float = 45.0
    size: int = 84

    @classmethod
    def named(cls, model, data, name, size=84):
        """The model's camera of that name where it stands in data. ValueError if there is none."""
        i = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if i < 0:
            names = ", ".join(model.camera(j).name for j in range(model.ncam))
            raise ValueError(f"the model has no camera {name!r}: it has {names or 'none'}")
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, data.cam_xmat[i])
        return cls(tuple(data.cam_xpos[i]), tuple(quat), float(model.cam_fovy[i]), size)

    @classmethod
    def looking(cls, pos, at, fovy=45.0, size=84):
        """A camera at pos that looks at the point `at`, both (3,), with the world's z up."""
        back = np.subtract(pos, at) / np.linalg.norm(np.subtract(pos, at))
        right = np.cross([0, 0, 1], back) / np.linalg.norm(np.cross([0, 0, 1], back))
        up = np.cross(back, right)
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, np.stack([right, up, back], axis=1).ravel())
        return cls(tuple(pos), tuple(quat), fovy, size)

    def matrix(self):
        """Its axes in the world as columns: right, up, back. Shape (3, 3)."""
        R = np.empty(9)
        mujoco.mju_quat2Mat(R, np.asarray(self.quat, float))
        return R.reshape(3, 3)

    def directions(self):
        """Unit vectors through the pixels' centres, row by row from the top left: (size², 3)."""
        return pixel_directions(self)


@functools.lru_cache(32)
def pixel_directions(camera):
    """Camera.directions(), computed once a camera."""
    half = camera.size / 2
    offset = np.arange(camera.size) + 0.5 - half
    right, down = np.meshgrid(offset, offset)
    ahead = np.full_like(right, half / np.tan(np.deg2rad(camera.fovy) / 2))
    rays = np.stack([right, -down, -ahead], axis=-1).reshape(-1, 3)
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True) @ camera.matrix().T
    rays.flags.writeable = False  # all callers share this array
    return rays


# ---- poses ---------------------------------------------------------------------------------------


def settle(model, data, qpos, qvel=None):
    """Put a state into data and bring all poses up to date, without a step.

    qpos (nq,), qvel (nv,). Raises ValueError if they do not fit the model.
    """
    if len(qpos) != model.nq or (qvel is not None and len(qvel) != model.nv):
        raise ValueError(
            f"a state of {len(qpos)} positions does not fit this model, which has {model.nq} "
            f"(and {model.nv} velocities)"
        )
    data.qpos[:] = qpos
    if qvel is not None:
        data.qvel[:] = qvel
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


# ---- rays ----------------------------------------------------------------------------------------


def cast(model, data, camera, groups=VISIBLE, only=None):
    """Cast one ray a pixel -> points (N, 3) in world coordinates and what was hit (N,).

    A point is NaN where nothing is hit. What was hit is a geom's id, or ngeom + a site's id, or -1.
    groups: the groups of geoms and sites that rays meet. only (N,): a mask of the rays to cast.
    """
    rays = camera.directions()
    origin = np.asarray(camera.pos, float)
    if only is None:
        only = np.ones(len(rays), bool)
    hit = np.full(len(rays), -1)
    distance = np.full(len(rays), np.inf)
    met = np.isin(np.arange(mujoco.mjNGROUP), groups).astype(np.uint8)
    geom = np.empty(1, np.int32)
    for i in np.flatnonzero(only):  # note 17: mj_multiRay would miss geoms
        distance[i] = mujoco.mj_ray(model, data, origin, rays[i], met, 1, -1, geom)
        hit[i] = geom[0]
    distance[hit < 0] = np.inf

    sites = seen_spheres(model, data, groups)  # note 18
    if len(sites):
        radius = model.site_size[sites, 0]
        to_spheres = near_spheres(rays[only], origin, data.site_xpos[sites], radius)  # (N, M)
        nearest = to_spheres.min(1)
        closer = nearest < distance[only]
        i = np.flatnonzero(only)[closer]
        distance[i] = nearest[closer]
        hit[i] = model.ngeom + sites[to_spheres.argmin(1)[closer]]

    distance[hit < 0] = np.nan
    return origin + distance[:, None] * rays, hit


def seen_spheres(model, data, groups):
    """The sites that `cast` hits: ids (M,) of the groups' spheres that are not transparent."""
    sphere = model.site_type == mujoco.mjtGeom.mjGEOM_SPHERE
    opaque = model.site_rgba[:, 3] > 0
    return np.flatnonzero(sphere & np.isin(model.site_group, groups) & opaque)


def near_spheres(rays, origin, centre, radius):
    """Distances (N, M) at which rays (N, 3) from the origin (3,) enter spheres; inf if they do not.

    centre (M, 3), radius (M,).
    """
    to = centre - origin
    along = rays @ to.T
    inside = along**2 - (to**2).sum(1) + radius**2
    within = (to**2).sum(1) < radius**2  # the camera is in the sphere
    entered = (inside > 0) & ((along > 0) | within)
    return np.where(entered, along - np.sqrt(np.maximum(inside, 0)), np.inf)


def through_box(origin, rays, half):
    """Distances (N,) at which rays (N, 3) enter a box around 0, and (N,) at which they leave it.

    origin (3,) or (N, 3); half: half the box's size, (3,) or (N, 3). A ray that misses the box
    leaves it before it enters.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a ray along an axis
        one_side = ((-half - origin) / rays).T  # (3, N), which is faster to reduce than (N, 3)
        other_side = ((half - origin) / rays).T
    return np.fmin(one_side, other_side).max(0), np.fmax(one_side, other_side).min(0)


def promising(model, data, camera, box, groups=VISIBLE):
    """Mark the rays (N,) that can meet anything inside the box ((x, y, z) low, (x, y, z) high).

    Such a ray meets a sphere that is seen, or is inside the box and inside some geom's own bounding
    box at once.
    """
    low, high = np.asarray(box)
    rays = camera.directions()
    origin = np.asarray(camera.pos, float)

    sites = seen_spheres(model, data, groups)
    to_spheres = near_spheres(rays, origin, data.site_xpos[sites], model.site_size[sites, 0])
    marked = (to_spheres < np.inf).any(1)

    R = data.geom_xmat.reshape(-1, 3, 3)
    half = model.geom_aabb[:, 3:] + 1e-6  # (G, 3) of each geom's bounding box, in its own frame
    centre = data.geom_xpos + np.einsum("gij,gj->gi", R, model.geom_aabb[:, :3])
    reach = np.einsum("gij,gj->gi", np.abs(R), half)  # half its size along the world's axes
    overlaps = ((centre + reach > low) & (centre - reach < high)).all(1)
    geoms = np.flatnonzero(overlaps & np.isin(model.geom_group, groups))

    # Pairs (P,) of a ray i and a geom g whose bounding sphere it meets.
    to_geoms = near_spheres(rays, origin, centre[geoms], np.linalg.norm(half[geoms], axis=1))
    i, j = np.nonzero(to_geoms < np.inf)
    g = geoms[j]

    # A pair is promising if the ray is in the crop box and in the geom's bounding box at once.
    enter, leave = through_box(origin - (low + high) / 2, rays, (high - low) / 2)
    origin_in_geom = np.einsum("nji,nj->ni", R[g], origin - centre[g])
    ray_in_geom = np.einsum("nji,nj->ni", R[g], rays[i])
    into, out = through_box(origin_in_geom, ray_in_geom, half[g])
    first = np.maximum(into, np.maximum(enter[i], 0))
    last = np.minimum(out, leave[i])
    marked[i[first <= last]] = True
    return marked


# ---- clouds and pictures -------------------------------------------------------------------------


def farthest(points, n):
    """Indices (n,) of a farthest-point sample of points (N, 3), which begins with the first point.

    Each further point is the one farthest from those taken. If N <= n, all points are taken in
    order, again and again. Raises ValueError if there are no points, or if any is NaN.
    """
    if not len(points) or not np.isfinite(points).all():
        bad = np.isnan(points).any(-1).sum()
        raise ValueError(f"{len(points)} points, {bad} of them NaN: cannot sample {n}")
    if len(points) <= n:
        return np.arange(n) % len(points)
    p = points - points.mean(0, dtype=np.float64)
    square = (p * p).sum(1)
    one = np.ones(len(p))
    # |p - q|² = p · (-2 q) + 1 · |q|² + |p|² · 1: one product gives all distances to a q.
    here = np.stack([*p.T, one, square]).T  # (N, 5), column after column, which is the fastest
    there = np.stack([*(-2 * p.T), square, one], axis=1)  # (N, 5)
    taken = np.zeros(n, np.int64)
    nearest = np.full(len(p), np.inf)  # squared distance of each p to the points taken
    distance = np.empty(len(p))
    for k in range(1, n):
        np.dot(here, there[taken[k - 1]], out=distance)
        np.minimum(nearest, distance, out=nearest)
        taken[k] = nearest.argmax()
    return taken


def colours(model, hit):
    """RGB in [0, 1] of what `cast` hit (N,), from its material or its own colour -> (N, 3)."""
    own = np.concatenate([model.geom_rgba, model.site_rgba])[hit, :3]
    if not model.nmat:
        return own
    material = np.concatenate([model.geom_matid, model.site_matid])[hit]
    return np.where(material[:, None] >= 0, model.mat_rgba[material, :3], own)


def capture(model, data, camera, box, n=512, *, groups=VISIBLE, colour=False):
    """The cloud that a policy sees: (n, 3) float32 in world coordinates, or (n, 6) with RGB.

    box ((x, y, z) low, (x, y, z) high): what is kept. Raises ValueError if no point is inside.
    """
    only = promising(model, data, camera, box, groups)
    points, hit = cast(model, data, camera, groups, only)
    points = points[hit >= 0]
    hit = hit[hit >= 0]
    low, high = np.asarray(box)
    inside = ((points > low) & (points < high)).all(1)
    if not inside.any():
        raise ValueError(
            f"no point inside the crop box {np.round(low, 3).tolist()} to "
            f"{np.round(high, 3).tolist()}: move the camera, or widen the box"
        )
    points = points[inside].astype(np.float32)
    hit = hit[inside]
    i = farthest(points, n)
    if not colour:
        return points[i]
    return np.concatenate([points[i], colours(model, hit[i]).astype(np.float32)], axis=1)


def picture(model, data, camera, groups=VISIBLE):
    """What the camera sees, shaded by the angle of the surface -> (size, size, 3) uint8."""
    points, hit = cast(model, data, camera, groups)
    grid = points.reshape(camera.size, camera.size, 3)
    # The normal is NaN at the rim of what is hit.
    normal = np.cross(np.gradient(grid, axis=0), np.gradient(grid, axis=1))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
    facing = np.abs((normal.reshape(-1, 3) * camera.directions()).sum(1, keepdims=True))
    lit = colours(model, hit) * (0.35 + 0.65 * np.nan_to_num(facing))
    shade = np.where(hit[:, None] >= 0, lit, 1.0)
    return (255 * shade).astype(np.uint8).reshape(camera.size, camera.size, 3)


def draw(axes, cloud, box):
    """Scatter a cloud (n, 3) in its crop box into matplotlib's 3-D axes, coloured by height."""
    low, high = np.asarray(box, float)
    low = np.maximum(low, cloud.min(0) - 0.02)
    high = np.minimum(high, cloud.max(0) + 0.02)
    axes.scatter(*cloud.T, c=cloud[:, 2], s=3, cmap="viridis")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(high - low)


def contact_sheet(scenes, columns=6):
    """A figure of many tasks: what the camera sees beside the cloud.

    scenes: tuples (title, picture (H, W, 3), cloud (n, 3), box).
    """
    from matplotlib.figure import Figure

    rows = -(-len(scenes) // columns)
    height = 1.75 * rows + 0.2
    fig = Figure(figsize=(3.2 * columns, height), layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.2 / height))  # room for the first row's titles
    for i, (title, seen, cloud, box) in enumerate(scenes):
        axes = fig.add_subplot(rows, 2 * columns, 2 * i + 1)
        axes.imshow(seen)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=8)
        axes = fig.add_subplot(rows, 2 * columns, 2 * i + 2, projection="3d", elev=30, azim=-30)
        draw(axes, cloud, box)
        axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
    return fig

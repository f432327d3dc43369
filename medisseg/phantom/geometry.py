"""Shape of the phantom: a bent tube with haustral folds, polyps on its wall, and ray marching.

Lengths are in mean tube radii (about 25 mm in a colon). The camera looks along growing ``z``. A
scene is a signed distance field, positive in the lumen, and is marched for all pixels at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FAR = 9.0  # what is farther lies in the dark of the lumen
STEPS = 72
# The wall's slope is up to about 1.4, so its radial distance overestimates the true one.
STEP_FRACTION = 0.62
TOUCH = 5e-4
NEAR = 0.12
SAMPLE_WIDTH = 1024


def sample(texture: Floats, column: Floats, row: Floats) -> Floats:
    """Sample ``texture`` [H, W] or [H, W, C] bilinearly at [N] places, around in columns.

    Returns:
        [N] or [N, C] float32.
    """
    import cv2

    count = len(column)
    # OpenCV takes pictures below 32768 a side, so the list of places becomes a picture.
    height = -(-count // SAMPLE_WIDTH)
    places = np.zeros((2, height * SAMPLE_WIDTH), np.float32)
    places[0, :count] = column
    np.clip(row, 0, texture.shape[0] - 1.001, out=places[1, :count])
    maps = places.reshape(2, height, SAMPLE_WIDTH)
    out = cv2.remap(texture, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(out, np.float32).reshape(-1, *texture.shape[2:])[:count]


@dataclass(frozen=True)
class Tube:
    """Wall of the colon: radius over angle and depth around a bent centre line.

    Attributes:
        relief: Radius and its derivatives by angle and depth, float32 [Z, A, 3].
        start, length: Range of depths that ``relief`` covers.
        bend: For x and y: amplitude, angular frequency and phase of the centre line.
    """

    relief: Floats
    start: float
    length: float
    bend: tuple[tuple[float, float, float], tuple[float, float, float]]

    def centre(self, z: Floats) -> tuple[Floats, Floats]:
        """Return x and y of the centre line at depths ``z``."""
        (a, f, p), (b, g, q) = self.bend
        return a * (np.sin(f * z + p) - np.sin(p)), b * (np.sin(g * z + q) - np.sin(q))

    def slope(self, z: Floats) -> tuple[Floats, Floats]:
        """Return the derivatives of :meth:`centre` by ``z``."""
        (a, f, p), (b, g, q) = self.bend
        return a * f * np.cos(f * z + p), b * g * np.cos(g * z + q)

    def unroll(self, point: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return offset x and y from the centre line, turn [0, 1) and depth share [0, 1]."""
        import cv2

        cx, cy = self.centre(point[2])
        u, v = point[0] - cx, point[1] - cy
        turn = cv2.phase(u, v).reshape(-1) * np.float32(0.5 / np.pi)
        return u, v, turn, (point[2] - self.start) * np.float32(1 / self.length)

    def distance(self, point: Floats) -> Floats:
        """Return the radial distance of points [3, N] to the wall, positive in the lumen."""
        u, v, turn, depth = self.unroll(point)
        rows, columns = self.relief.shape[:2]
        radius = sample(self.radius, turn * columns, depth * rows)
        return radius - np.sqrt(u * u + v * v)

    @cached_property
    def radius(self) -> Floats:
        """Radius alone, contiguous for sampling, [Z, A]."""
        return np.ascontiguousarray(self.relief[..., 0])

    def gradient(self, point: Floats) -> Floats:
        """Return the gradient [3, N] of :meth:`distance`; it points into the lumen."""
        u, v, turn, depth = self.unroll(point)
        rows, columns = self.relief.shape[:2]
        _, by_angle, by_depth = sample(self.relief, turn * columns, depth * rows).T
        square = u * u + v * v + np.float32(1e-6)
        radius = np.sqrt(square)
        gx = -by_angle * v / square - u / radius
        gy = by_angle * u / square - v / radius
        sx, sy = self.slope(point[2])
        return np.stack([gx, gy, by_depth - gx * sx - gy * sy])


@dataclass(frozen=True)
class Polyp:
    """A lesion on the wall: ellipsoids melted together, perhaps on a stalk.

    Attributes:
        kind: "pedunculated", "sessile" or "flat".
        base: Place on the wall, [3].
        frame: Rows: two tangents and the normal into the lumen, [3, 3].
        lobes: Centre and semi-axes of every ellipsoid in the frame, [L, 2, 3].
        stalk: Length and radius of the stalk; (0, 0) without one.
        knobs: Amplitude and angular frequency of the surface's lobulation.
        blend: Width over which the foot melts into the mucosa.
        sway: Shift of the top along the tangents by the camera's movement.
        squash: Stretch along the normal by the camera's movement; volume is kept.
    """

    kind: str
    base: Floats
    frame: Floats
    lobes: Floats
    stalk: tuple[float, float]
    knobs: tuple[float, float]
    blend: float
    sway: tuple[float, float] = (0.0, 0.0)
    squash: float = 1.0

    @property
    def height(self) -> float:
        """Extent along the normal, at rest."""
        return float((self.lobes[:, 0, 2] + self.lobes[:, 1, 2]).max())

    @property
    def reach(self) -> float:
        """Radius of a sphere about the base that holds the whole polyp, blend and sway."""
        corners = np.linalg.norm(self.lobes[:, 0], axis=1) + self.lobes[:, 1].max(1)
        return float(corners.max()) * max(self.squash, 1.0) + 0.12 + float(np.hypot(*self.sway))

    def local(self, point: Floats) -> Floats:
        """Return points [3, N] in the polyp's frame, with sway and squash undone."""
        inside = self.frame @ (point - self.base[:, None])
        lift = np.clip(inside[2] / np.float32(self.height), 0, 1.3) ** 2
        inside[0] -= np.float32(self.sway[0]) * lift
        inside[1] -= np.float32(self.sway[1]) * lift
        inside[2] /= np.float32(self.squash)
        inside[:2] *= np.float32(self.squash**0.5)
        return inside

    def distance(self, point: Floats) -> Floats:
        """Return the distance of points [3, N] to the polyp's surface, approximate."""
        q = self.local(point)
        total: Floats | None = None
        for centre, axes in self.lobes:
            scaled = (q - centre[:, None]) / axes[:, None]
            near = np.sqrt((scaled * scaled).sum(0)) + np.float32(1e-6)
            steep = np.sqrt(((scaled / axes[:, None]) ** 2).sum(0)) + np.float32(1e-6)
            lobe = near * (near - 1) / steep
            total = lobe if total is None else melt(total, lobe, 0.06)[0]
        assert total is not None
        length, radius = self.stalk
        if length:
            along = np.clip(q[2], -0.1, length)
            # The stalk widens to its foot, where it leaves the mucosa.
            foot = np.float32(0.5 * radius) * np.exp(-along * np.float32(4 / length))
            stem = np.sqrt(q[0] ** 2 + q[1] ** 2 + (q[2] - along) ** 2) - radius - foot
            total = melt(total, stem, 0.05)[0]
        amplitude, frequency = self.knobs
        if amplitude:
            waves = np.sin(q * np.float32(frequency) + np.float32(0.7))
            total = total - np.float32(amplitude) * waves[0] * waves[1] * waves[2]
        return total

    def gradient(self, point: Floats) -> Floats:
        """Return the gradient [3, N] of :meth:`distance`, by differences."""
        step = np.float32(4e-3)
        out = np.zeros_like(point)
        # Four corners of a tetrahedron instead of six axis points.
        for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            way = np.array(corner, np.float32)[:, None]
            out += way * self.distance(point + step * way)
        return out / (4 * step)


def melt(a: Floats, b: Floats, width: float) -> tuple[Floats, Floats]:
    """Return the smooth minimum (polynomial, quadratic) and the share of ``b`` in it."""
    share = np.clip(0.5 + (a - b) * np.float32(0.5 / width), 0, 1)
    return a + (b - a) * share - np.float32(width) * share * (1 - share), share


@dataclass(frozen=True)
class Scene:
    """A tube and its polyps."""

    tube: Tube
    polyps: tuple[Polyp, ...] = ()

    def distance(self, point: Floats, polyps: tuple[Polyp, ...]) -> Floats:
        """Return the distance to the wall and to ``polyps``, melted."""
        total = self.tube.distance(point)
        for polyp in polyps:
            total = melt(total, polyp.distance(point), polyp.blend)[0]
        return total


@dataclass
class Hits:
    """Where rays ended.

    Attributes:
        depth: Distance along the ray, float32 [N]; ``FAR`` in the dark.
        point: float32 [3, N].
        normal: Unit vectors into the lumen, float32 [3, N].
        polyp: Index of the polyp that was hit, -1 on the wall, int8 [N].
        gap: Distance of the point to the nearest polyp, float32 [N]; ``FAR`` where none is near.
    """

    depth: Floats
    point: Floats
    normal: Floats
    polyp: npt.NDArray[np.int8]
    gap: Floats = field(repr=False)


def march(scene: Scene, origin: Floats, ways: Floats) -> Hits:
    """Follow rays from ``origin`` [3] along unit vectors ``ways`` [3, N] to the first surface."""
    depth = np.empty(ways.shape[1], np.float32)
    near = np.zeros(ways.shape[1], bool)
    for polyp in scene.polyps:
        near |= _meets(polyp, origin, ways)
    # Most rays pass no polyp: they are spared its distance.
    for rays, polyps in ((near, scene.polyps), (~near, ())):
        index = np.flatnonzero(rays)
        if len(index):
            depth[index] = _march(scene, polyps, origin, ways[:, index])
    return _surface(scene, depth, origin[:, None] + ways * depth, np.flatnonzero(near))


def _meets(polyp: Polyp, origin: Floats, ways: Floats) -> npt.NDArray[np.bool_]:
    to_base = polyp.base - origin
    along = np.maximum(to_base @ ways, 0)
    miss = to_base[:, None] - ways * along
    meets: npt.NDArray[np.bool_] = (miss * miss).sum(0) < polyp.reach**2
    return meets


def _march(scene: Scene, polyps: tuple[Polyp, ...], origin: Floats, ways: Floats) -> Floats:
    depth = np.full(ways.shape[1], 0.02, np.float32)
    active = np.arange(ways.shape[1])
    way, reached = ways, depth.copy()
    before, stride = np.full_like(depth, FAR), np.ones_like(depth)
    for step in range(STEPS):
        gap = scene.distance(origin[:, None] + way * reached, polyps)
        moving = (np.abs(gap) > np.float32(TOUCH) * (0.5 + reached)) & (reached < FAR)
        # Near a surface the distance falls evenly along the ray: aim at where it meets zero.
        fall = np.maximum((before - gap) / stride, np.float32(0.4))
        stride = gap * np.where(gap < NEAR, 1 / fall, np.float32(STEP_FRACTION)) * moving
        before, stride = gap, np.where(stride == 0, np.float32(1e-9), stride)
        reached = np.minimum(reached + stride, np.float32(FAR))
        depth[active] = reached
        # Packing the arrays costs as much as a step: done when a fifth of the rays is at rest.
        if step % 3 == 2 and np.count_nonzero(moving) < 0.8 * len(active):
            active, way, reached = active[moving], way[:, moving], reached[moving]
            before, stride = before[moving], stride[moving]
            if not len(active):
                break
    return depth


def _surface(scene: Scene, depth: Floats, point: Floats, near: npt.NDArray[np.intp]) -> Hits:
    normal = scene.tube.gradient(point)
    polyp = np.full(len(depth), -1, np.int8)
    gap = np.full(len(depth), FAR, np.float32)
    if len(near):
        spot = point[:, near]
        total, slope = scene.tube.distance(spot), normal[:, near]
        slope /= np.linalg.norm(slope, axis=0) + np.float32(1e-6)
        for index, lesion in enumerate(scene.polyps):
            own = lesion.distance(spot)
            hit = near[(own < total) & (depth[near] < FAR)]
            total, share = melt(total, own, lesion.blend)
            slope = slope + (lesion.gradient(spot) - slope) * share
            polyp[hit] = index
            gap[near] = np.minimum(gap[near], own)
        normal[:, near] = slope
    normal /= np.linalg.norm(normal, axis=0) + np.float32(1e-6)
    return Hits(depth, point, normal, polyp, gap)

"""The endoscope: where it looks, and what its optics, exposure and sensor make of the light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medisseg.phantom.geometry import FAR, Floats, Hits, Scene, march
from medisseg.phantom.tissue import Tissue, shade

BLUR_SAMPLES = 7


@dataclass(frozen=True)
class Pose:
    """Place [3] and axes of the camera: rows right, down, forward, [3, 3]."""

    place: Floats
    axes: Floats


@dataclass(frozen=True)
class Optics:
    """One endoscope.

    Attributes:
        reach: Angle from the axis to the middle of the shorter image edge, radians.
        corner: Cut of the octagon, share of the shorter edge; 0 for a full frame.
        rounding: Softness of the mask's corners, share of the shorter edge.
        box: Height and width of the black inset at the lower left, shares; (0, 0) without it.
        noise: Standard deviation of sensor noise at black and at white, display values.
        target: Display brightness that exposure aims at for the brighter parts, [0, 1].
        balance: Gains of red, green and blue.
        falloff: Vignette at the corner of the shorter edge.
    """

    reach: float
    corner: float
    rounding: float
    box: tuple[float, float]
    noise: tuple[float, float]
    target: float
    balance: tuple[float, float, float]
    falloff: float


@dataclass
class Exposure:
    """Light of one picture before it is developed: linear [H, W, 3], depth [H, W], truth."""

    body: Floats
    shine: Floats
    depth: Floats
    mask: npt.NDArray[np.uint8]


def look(
    place: npt.NDArray[np.floating], target: npt.NDArray[np.floating], roll: float = 0.0
) -> Pose:
    """Return the pose at ``place`` [3] that looks at ``target`` [3], turned by ``roll`` radians."""
    forward = (target - place) / np.linalg.norm(target - place)
    up = np.array([np.sin(roll), np.cos(roll), 0.0])
    right = np.cross(up, forward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    return Pose(np.asarray(place, np.float32), axes.astype(np.float32))


def grid(size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return x and y of pixel centres [H, W]; the shorter edge spans [-1, 1]."""
    height, width = size
    half = min(size) / 2
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / half
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / half
    return np.broadcast_to(x, size), np.broadcast_to(y[:, None], size)


def rays(pose: Pose, optics: Optics, size: tuple[int, int]) -> Floats:
    """Return unit vectors [3, H * W]: equidistant lens, as in endoscopes of wide angle."""
    x, y = grid(size)
    radius = np.hypot(x, y).ravel() + np.float32(1e-6)
    angle = np.minimum(radius * np.float32(optics.reach), np.float32(1.5))
    side = np.sin(angle) / radius
    inside = np.stack([x.ravel() * side, y.ravel() * side, np.cos(angle)])
    turned: Floats = pose.axes.T @ inside
    return turned


def aperture(optics: Optics, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels [H, W] that the endoscope's mask leaves free."""
    height, width = size
    x, y = np.abs(grid(size)[0]), np.abs(grid(size)[1])
    wide, high = width / min(size), height / min(size)
    free = x - wide + y - high < -2 * optics.corner
    if optics.rounding:
        r = 2 * optics.rounding
        beyond = np.hypot(np.maximum(x - wide + r, 0), np.maximum(y - high + r, 0))
        free &= beyond < r
    if optics.box[0]:
        free[round(height * (1 - optics.box[0])) :, : round(width * optics.box[1])] = False
    return free


def truth(scene: Scene, pose: Pose, optics: Optics, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return only the mask of :func:`expose`, [H, W] of 0 and 1."""
    hits = march(scene, pose.place, rays(pose, optics, size))
    return _mask(hits, aperture(optics, size))


def _mask(hits: Hits, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return ((hits.polyp >= 0).reshape(free.shape) & free).astype(np.uint8)


def expose(
    scene: Scene, tissue: Tissue, pose: Pose, optics: Optics, size: tuple[int, int]
) -> Exposure:
    """Return the light and the exact mask of a still: one ray through each pixel's centre."""
    ways = rays(pose, optics, size)
    hits = march(scene, pose.place, ways)
    body, shine = shade(scene, tissue, hits, pose.place, ways)
    return Exposure(
        body.reshape(*size, 3),
        shine.reshape(*size, 3),
        hits.depth.reshape(size),
        _mask(hits, aperture(optics, size)),
    )


def gain(light: Exposure, optics: Optics) -> float:
    """Return the gain with which the brighter parts of the free picture meet the target."""
    grey = light.body[..., :2].mean(-1)[aperture(optics, light.depth.shape)]
    typical, bright = np.percentile(grey, (75, 97))
    return float(optics.target**2.2 / max(float(typical), 0.35 * float(bright), 1e-4))


def smear(
    light: Exposure, pose: Pose, before: Pose, optics: Optics, share: float
) -> tuple[Floats, Floats]:
    """Blur light along the way each pixel's surface moved since the pose ``before``.

    Args:
        share: Part of the time between the poses for which the shutter is open.
    """
    import cv2

    size = light.depth.shape
    point = pose.place[:, None] + rays(pose, optics, size) * np.minimum(light.depth, FAR).ravel()
    seen = before.axes @ (point - before.place[:, None])
    flat = np.hypot(seen[0], seen[1]) + np.float32(1e-6)
    radius = np.arctan2(flat, seen[2]) / np.float32(optics.reach) * np.float32(min(size) / 2)
    height, width = size
    old = np.stack([seen[0] / flat * radius + width / 2, seen[1] / flat * radius + height / 2])
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    dx = (old[0].reshape(size) - 0.5 - x).astype(np.float32)
    dy = (old[1].reshape(size) - 0.5 - y).astype(np.float32)
    both = np.concatenate([light.body, light.shine], axis=-1)
    total = np.zeros_like(both)
    # Centred on the pose, so that the mask belongs to the middle of the exposure.
    for part in np.linspace(-share / 2, share / 2, BLUR_SAMPLES, dtype=np.float32):
        total += cv2.remap(
            both, x + dx * part, y + dy * part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    total /= BLUR_SAMPLES
    return total[..., :3], total[..., 3:]


def develop(
    body: Floats, shine: Floats, amplification: float, optics: Optics, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Return the picture, uint8 RGB [H, W, 3]: bloom, vignette, tone curve, noise, mask."""
    import cv2

    height, width = body.shape[:2]
    x, y = grid((height, width))
    light = body * np.float32(amplification)
    glint = np.minimum(shine * np.float32(amplification), 3)
    unit = min(height, width) / 256
    light += glint + np.float32(0.25) * cv2.GaussianBlur(glint, (0, 0), 3 * unit)
    light *= (1 - np.float32(optics.falloff) * np.minimum((x * x + y * y) / 2, 1))[..., None]
    light *= np.array(optics.balance, np.float32)
    # Bright parts run into a pale peach, as when the red of the sensor is full before the others.
    excess = np.maximum(light[..., :1] - np.float32(0.75), 0)
    light[..., 1:] += excess * np.array([0.36, 0.28], np.float32)
    toned = 1.04 * (1 - np.exp(-1.25 * light - 0.9 * light * light))
    shown = np.clip(toned, 0, 1) ** np.float32(1 / 2.2) * 255
    shown = cv2.GaussianBlur(shown, (0, 0), 0.5 * unit + 0.1)
    low, high = optics.noise
    grain = rng.standard_normal((height, width, 3), np.float32)
    shown += grain * (low + (high - low) * shown / np.float32(255))
    shown[~aperture(optics, (height, width))] = rng.uniform(0, 6)
    picture: npt.NDArray[np.uint8] = np.clip(shown + 0.5, 0, 255).astype(np.uint8)
    return picture

"""Look of the phantom: mucosa with vessels and residue, skins of polyps, light from the camera.

Colours are linear RGB until :mod:`medisseg.phantom.camera` develops them. Haemoglobin takes green
and blue, so what is vascular, deep or lit by its surroundings is redder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medisseg.phantom.geometry import FAR, Floats, Hits, Scene, sample

ROWS, COLUMNS = 1152, 768  # wall texture: depth, angle
SKIN = 256
# Display values of mucosa in good light: pink, orange, pale, deep red.
MUCOSA = ((218, 132, 120), (222, 132, 98), (212, 146, 138), (214, 108, 90), (218, 148, 116))
# Skins relative to mucosa: hyperaemic, pale adenoma, yellowish, dusky.
TINTS = ((1.05, 0.62, 0.58), (1.10, 1.32, 1.32), (1.10, 1.22, 0.85), (0.90, 0.58, 0.62))


def noise(rng: np.random.Generator, cells: tuple[int, int], shape: tuple[int, int]) -> Floats:
    """Return value noise [H, W] in about [-1, 1], smooth over ``cells``, seamless in columns."""
    import cv2

    rows, columns = cells
    grid = rng.random((rows, columns), np.float32) * 2 - 1
    grid = np.concatenate([grid[:, -2:], grid, grid[:, :2]], axis=1)
    margin = round(2 * shape[1] / columns)
    wide = cv2.resize(grid, (shape[1] + 2 * margin, shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(wide[:, margin : margin + shape[1]], np.float32)


def clouds(
    rng: np.random.Generator, cells: tuple[int, int], shape: tuple[int, int], octaves: int = 3
) -> Floats:
    """Return noise summed over octaves, about [-1, 1]."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = (cells[0] << octave, cells[1] << octave)
        total += noise(rng, size, shape) * np.float32(0.55**octave)
    return total * np.float32(0.62)


def linear(display: npt.ArrayLike) -> Floats:
    """Return linear light of display values [0, 255]."""
    return ((np.asarray(display, np.float32) / 255) ** 2.2).astype(np.float32)


@dataclass(frozen=True)
class Tissue:
    """Textures of one scene.

    Attributes:
        wall: Albedo (3) and wetness (1) of the wall, [ROWS, COLUMNS, 4].
        ripple: Disturbance of the normal on the wet wall, [ROWS, COLUMNS, 3].
        skins: The same 7 channels for every polyp, [SKIN, SKIN, 7].
        gloss: Strength of highlights.
        hollow: Share of light that arrives after bounces.
    """

    wall: Floats
    ripple: Floats
    skins: tuple[Floats, ...]
    gloss: float
    hollow: float


def make_tissue(rng: np.random.Generator, scene: Scene) -> Tissue:
    """Paint a scene: its mucosa, and a skin for each of its polyps."""
    import cv2

    base = linear(MUCOSA[rng.integers(len(MUCOSA))]) * rng.uniform(0.92, 1.08, 3)
    shape = (ROWS, COLUMNS)
    # Noise at a quarter of the size: finer than a pixel's footprint, and 16 times cheaper.
    quarter = (ROWS // 4, COLUMNS // 4)
    patch = _grow(clouds(rng, (10, 7), quarter), shape)
    grain = _grow(noise(rng, (180, 120), quarter), shape)
    flush = patch * np.float32(rng.uniform(0.08, 0.25)) + grain * np.float32(0.045)
    dark = _crevices(scene)
    # Planes are several times faster to work on than interleaved colours.
    planes = [
        np.float32(base[channel]) * dark * (1 - np.float32(share) * flush)
        for channel, share in enumerate((0.35, 1.0, 0.9))
    ]
    _add_vessels(rng, planes)
    wet = _grow(np.clip(0.45 + 0.8 * clouds(rng, (14, 9), quarter), 0.05, 1), shape)
    wall = np.asarray(cv2.merge([*planes, wet]), np.float32)
    ripple = np.stack([clouds(rng, (96, 60), quarter, 2) for _ in range(3)], axis=-1)
    ripple = _grow(ripple * np.float32(rng.uniform(0.16, 0.38)), shape)
    _add_residue(rng, wall, ripple)
    skins = tuple(_skin(rng, base.astype(np.float32), polyp.kind) for polyp in scene.polyps)
    return Tissue(wall, ripple, skins, float(rng.uniform(0.5, 1.4)), float(rng.uniform(0.02, 0.06)))


def _grow(texture: Floats, shape: tuple[int, int]) -> Floats:
    import cv2

    return np.asarray(cv2.resize(texture, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _crevices(scene: Scene) -> Floats:
    """Darken what lies deeper than its surroundings, where little light arrives."""
    import cv2

    radius = np.ascontiguousarray(scene.tube.relief[..., 0])
    deep = radius - cv2.GaussianBlur(radius, (0, 0), radius.shape[1] / 40)
    return _grow(np.clip(1 - 2.2 * deep, 0.45, 1.12).astype(np.float32), (ROWS, COLUMNS))


def _add_vessels(rng: np.random.Generator, planes: list[Floats]) -> None:
    import cv2

    margin = 128
    fine = np.zeros((ROWS, COLUMNS + 2 * margin), np.uint8)
    deep = np.zeros_like(fine)
    for _ in range(int(rng.integers(30, 90))):
        start = rng.uniform((0, 0), (COLUMNS, ROWS))
        for width, line in _tree(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.6)):
            # Around in columns: the middle of the line lies on the picture.
            line[:, 0] += margin - np.floor(line[len(line) // 2, 0] / COLUMNS) * COLUMNS
            cv2.polylines(
                deep if width > 1.8 else fine,
                [np.round(line * 8).astype(np.int32)],
                False,
                255,
                max(1, round(width)),
                cv2.LINE_AA,
                shift=3,
            )
    strength = np.float32(rng.uniform(0.25, 0.85))
    for canvas, blur, shares in ((fine, 0.8, (0.22, 0.68, 0.58)), (deep, 2.0, (0.26, 0.5, 0.34))):
        canvas[:, margin : 2 * margin] |= canvas[:, -margin:]
        canvas[:, -2 * margin : -margin] |= canvas[:, :margin]
        soft = cv2.GaussianBlur(canvas, (0, 0), blur)[:, margin:-margin]
        cover = soft.astype(np.float32) * (strength / np.float32(255))
        for plane, part in zip(planes, shares, strict=True):
            plane *= 1 - np.float32(part) * cover


def _tree(
    rng: np.random.Generator, start: npt.NDArray[np.float64], heading: float, width: float
) -> list[tuple[float, npt.NDArray[np.float64]]]:
    """Return a branching vessel: widths and lines [N, 2] in texels."""
    lines: list[tuple[float, npt.NDArray[np.float64]]] = []
    open_ends = [(start, heading, width)]
    while open_ends and len(lines) < 26:
        place, angle, size = open_ends.pop(0)
        count = int(rng.integers(6, 16))
        angles = angle + np.cumsum(rng.normal(0, 0.24, count))
        line = np.empty((count + 1, 2))
        line[0] = 0
        np.cumsum(np.cos(angles), out=line[1:, 0])
        np.cumsum(np.sin(angles), out=line[1:, 1])
        line = place + line * (4 + 1.5 * size)
        lines.append((size, line.copy()))
        if size > 0.7:
            for side in (-1, 1):
                onward = float(angles[-1]) + side * rng.uniform(0.25, 0.9)
                open_ends.append((line[-1], onward, size * rng.uniform(0.55, 0.85)))
    return lines


def _add_residue(rng: np.random.Generator, wall: Floats, ripple: Floats) -> None:
    """Strew stool bits, mucus films and bubbles: what a network has to tell from polyps."""
    for _ in range(int(rng.integers(0, 14))):
        colour = linear(rng.uniform((150, 105, 30), (215, 175, 90)))
        _blot(rng, wall, colour, rng.uniform(3, 13), rng.uniform(0.5, 0.95))
    if rng.random() < 0.4:
        for _ in range(int(rng.integers(1, 6))):
            colour = linear(rng.uniform((190, 150, 60), (225, 190, 110)))
            _blot(rng, wall, colour, rng.uniform(24, 70), rng.uniform(0.15, 0.5))
    if rng.random() < 0.45:
        middle = rng.uniform((0, 220), (COLUMNS, 520))
        for _ in range(int(rng.integers(6, 40))):
            _bubble(wall, ripple, middle + rng.normal(0, 50, 2), rng.uniform(3, 10))


def _window(
    place: npt.NDArray[np.float64], size: float
) -> tuple[Floats, Floats, tuple[npt.NDArray[np.intp], ...]]:
    """Return offsets [h, w] about a place and the index of those texels, seamless in columns."""
    x, y = place
    reach = int(size) + 1
    rows = np.arange(max(int(y) - reach, 0), min(int(y) + reach + 1, ROWS))
    columns = np.arange(int(x) - reach, int(x) + reach + 1)
    dy, dx = np.meshgrid((rows - y) / size, (columns - x) / size, indexing="ij")
    index = np.ix_(rows, columns % COLUMNS)
    return dx.astype(np.float32), dy.astype(np.float32), index


def _blot(
    rng: np.random.Generator, wall: Floats, colour: Floats, size: float, opacity: float
) -> None:
    dx, dy, index = _window(rng.uniform((0, 0), (COLUMNS, ROWS)), 1.6 * size)
    if not dx.size:
        return
    angle, phase = np.arctan2(dy, dx), rng.uniform(0, 6, 2)
    edge = 0.6 + 0.2 * np.sin(2 * angle + phase[0]) + 0.12 * np.sin(5 * angle + phase[1])
    cover = np.clip((edge - np.hypot(dx, dy)) * 5, 0, 1)[..., None] * opacity
    spot = wall[index]
    spot[..., :3] += (colour * rng.uniform(0.8, 1.1) - spot[..., :3]) * cover
    wall[index] = spot


def _bubble(wall: Floats, ripple: Floats, place: npt.NDArray[np.float64], size: float) -> None:
    dx, dy, index = _window(place, size)
    if not dx.size:
        return
    far = np.hypot(dx, dy)
    rim = np.exp(-(((far - 0.85) / 0.12) ** 2))
    inside = far < 1
    spot = wall[index]
    spot[..., :3] *= np.where(inside, 1.06 - 0.4 * rim, 1)[..., None]
    spot[..., 3] = np.where(inside, 1.3, spot[..., 3])
    wall[index] = spot
    tilt = ripple[index]
    tilt[..., 0] = np.where(inside, 0.9 * (dx - 0.35), tilt[..., 0])
    tilt[..., 2] = np.where(inside, 0.9 * (dy - 0.35), tilt[..., 2])
    ripple[index] = tilt


def _skin(rng: np.random.Generator, base: Floats, kind: str) -> Floats:
    """Return albedo (3), wetness (1) and ripple (3) of a polyp, mapped along its frame."""
    shape = (SKIN, SKIN)
    tint = np.array(TINTS[rng.integers(len(TINTS))], np.float32)
    # Flat lesions lack the shading that betrays the others: their tint has to.
    tint = 1 + (tint - 1) * np.float32(
        rng.uniform(0.85, 1.2) if kind == "flat" else rng.uniform(0.55, 1.1)
    )
    pits = np.abs(noise(rng, (44, 44), shape)) * np.float32(rng.uniform(0.18, 0.45))
    flush = clouds(rng, (5, 5), shape) * np.float32(rng.uniform(0.15, 0.35))
    skin = np.empty((*shape, 7), np.float32)
    for channel, share in enumerate((0.4, 1.0, 1.0)):
        dark = 1 - np.float32(share) * (flush + pits - np.float32(0.05))
        skin[..., channel] = np.clip(base[channel] * tint[channel] * dark, 0.01, 0.95)
    skin[..., 3] = np.clip(0.7 + 0.6 * noise(rng, (9, 9), shape), 0.1, 1.2)
    strength = np.float32(rng.uniform(0.10, 0.24))
    for channel in (4, 5, 6):
        skin[..., channel] = strength * noise(rng, (22, 22), shape)
    return skin


def shade(
    scene: Scene, tissue: Tissue, hits: Hits, origin: Floats, ways: Floats
) -> tuple[Floats, Floats]:
    """Light what rays hit, with the lamp beside the lens.

    Returns:
        Linear radiance [N, 3] of the tissue and of the highlights on it.
    """
    _, _, turn, depth = scene.tube.unroll(hits.point)
    columns, rows = turn * COLUMNS, depth * ROWS
    paint = sample(tissue.wall, columns, rows)
    ripple = sample(tissue.ripple, columns, rows)
    _paint_polyps(scene, tissue, hits, paint, ripple)
    facing = -(hits.normal * ways).sum(0)
    light = 1 / (np.float32(0.22) + hits.depth ** np.float32(1.8))
    light[hits.depth >= FAR] = 0
    diffuse = np.clip(np.float32(0.74) * facing + np.float32(0.26), 0.14, 1) * light
    # The crease around a polyp's foot receives less.
    crease = 1 - np.float32(0.4) * np.exp(-np.maximum(hits.gap, 0) * np.float32(14))
    diffuse *= np.where(hits.polyp < 0, crease, np.float32(1))
    albedo = paint[:, :3]
    bounce = np.float32(tissue.hollow) / (np.float32(0.5) + hits.depth)
    body = albedo * diffuse[:, None] + albedo * albedo * bounce[:, None]
    # What is far is lit by light that met mucosa before.
    body *= np.exp(-hits.depth[:, None] * np.array([0.06, 0.17, 0.19], np.float32))
    bent = hits.normal + ripple.T
    bent /= np.linalg.norm(bent, axis=0) + np.float32(1e-6)
    mirror = np.clip(-(bent * ways).sum(0), 0, 1)
    peak = np.clip((mirror - np.float32(0.988)) * np.float32(140), 0, 1)
    sheen = np.float32(0.05) * mirror ** np.float32(24)
    shine = (peak * peak * np.float32(1.6) + sheen) * paint[:, 3] * light * tissue.gloss
    return body, shine[:, None] * np.array([1.0, 0.97, 0.92], np.float32)


def _paint_polyps(scene: Scene, tissue: Tissue, hits: Hits, paint: Floats, ripple: Floats) -> None:
    for index, polyp in enumerate(scene.polyps):
        # The mucosa takes the polyp's colour gradually, over the foot.
        near = np.flatnonzero((hits.gap < 0.05) & (hits.depth < FAR))
        near = near[(hits.polyp[near] == index) | (hits.polyp[near] < 0)]
        if not len(near):
            continue
        own = polyp.local(hits.point[:, near])
        scale = np.float32(0.42 * SKIN / max(polyp.reach, 0.1))
        across = own[0] * scale + np.float32(SKIN / 2) + own[2] * scale * np.float32(0.5)
        skin = sample(tissue.skins[index], across, own[1] * scale + np.float32(SKIN / 2))
        share = np.clip(np.float32(1) - hits.gap[near] * np.float32(40), 0, 1)[:, None]
        share = np.where(hits.polyp[near, None] == index, np.float32(1), share * np.float32(0.5))
        # Flank and stalk are still covered by mucosa; the tint grows towards the top.
        rise = np.clip(own[2] / np.float32(0.65 * polyp.height), 0, 1)
        own_tint = np.float32(0.5 if polyp.kind != "flat" else 0.8)
        paint[near] += (
            (skin[:, :4] - paint[near]) * share * (own_tint + (1 - own_tint) * rise)[:, None]
        )
        ripple[near] += (skin[:, 4:] - ripple[near]) * share

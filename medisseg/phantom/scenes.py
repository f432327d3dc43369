"""Scenes of the phantom: which colon, which polyps, where the camera goes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medisseg.phantom.camera import Optics, Pose, look, truth
from medisseg.phantom.geometry import Floats, Polyp, Scene, Tube
from medisseg.phantom.tissue import Tissue, clouds, make_tissue

KINDS = ("pedunculated", "sessile", "flat")
START, LENGTH = -1.5, 12.0
RELIEF = (512, 320)
ATTEMPTS = 40
PREVIEW = (40, 40)
# Shares of the picture that a polyp takes: what a still, and a frame of the video, may show.
STILL_SHARE = (0.03, 0.45)
FRAME_SHARE = (0.03, 0.45)


@dataclass(frozen=True)
class Shot:
    """One picture to take: a scene as it is at that instant, and the camera now and before."""

    scene: Scene
    tissue: Tissue
    optics: Optics
    pose: Pose
    before: Pose | None = None
    first: bool = True


def make_tube(rng: np.random.Generator) -> Tube:
    """Return a colon: three bands of muscle, and between them folds that stand in as rings."""
    rows, columns = RELIEF
    z = (START + (np.arange(rows, dtype=np.float32) + 0.5) * LENGTH / rows)[:, None]
    angle = ((np.arange(columns, dtype=np.float32) + 0.5) * 2 * np.pi / columns)[None]
    bands = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.15, 0.15) * z
    three = np.cos(3 * (angle - bands.astype(np.float32)))
    radius = 1.05 - 0.07 * three + 0.13 * clouds(rng, (9, 5), RELIEF, 2)
    radius += 0.008 * clouds(rng, (70, 36), RELIEF, 1)
    place, height = rng.uniform(0.1, 0.9), rng.uniform(0.10, 0.34)
    while place < START + LENGTH:
        turn = rng.uniform(0, 2 * np.pi, 3)
        tall = height * rng.uniform(0.5, 1.5)
        ring = place + 0.16 * np.sin(angle - turn[0]) + 0.05 * np.sin(3 * angle - turn[1])
        width = 0.10 + 0.50 * tall
        rows_near = np.abs(z[:, 0] - place) < 0.21 + 2.6 * width
        around = 0.50 + 0.50 * np.cos(angle - turn[2]) + 0.38 * three[rows_near]
        away = (z[rows_near] - ring.astype(np.float32)) / np.float32(width)
        fold = np.clip(around, 0.05, 1) * np.exp(-away * away)
        radius[rows_near] -= np.float32(tall) * fold
        place += rng.uniform(0.55, 1.35)
    radius = radius.astype(np.float32)
    by_angle = (np.roll(radius, -1, 1) - np.roll(radius, 1, 1)) * (columns / (4 * np.pi))
    relief = np.stack([radius, by_angle, np.gradient(radius, LENGTH / rows, axis=0)], axis=-1)
    bend = tuple(
        (rng.uniform(0.3, 1.3), rng.uniform(0.4, 0.9), rng.uniform(0, 2 * np.pi)) for _ in "xy"
    )
    return Tube(relief.astype(np.float32), START, LENGTH, bend)  # type: ignore[arg-type]


def make_polyp(rng: np.random.Generator, tube: Tube, kind: str, z: float) -> Polyp:
    """Return a polyp of a kind at depth ``z``, anywhere around."""
    angle = rng.uniform(0, 2 * np.pi)
    way = np.array([np.cos(angle), np.sin(angle)], np.float32)
    centre = np.stack(tube.centre(np.array([z], np.float32)))[:, 0]
    probe = np.array([[*(centre + 0.3 * way), z]], np.float32).T
    base = np.array([*(centre + (0.3 + tube.distance(probe)[0]) * way), z], np.float32)
    normal = tube.gradient(base[:, None])[:, 0]
    # On the flank of a fold a polyp stands between the fold's normal and the way to the axis.
    normal = normal / np.linalg.norm(normal) - np.array([*way, 0.0], np.float32)
    normal /= np.linalg.norm(normal)
    first = np.cross(normal, rng.normal(size=3))
    first /= np.linalg.norm(first)
    frame = np.stack([first, np.cross(normal, first), normal]).astype(np.float32)
    size = float(rng.uniform(0.20, 0.44))
    lobes, stalk, knobs = _shape(rng, kind, size)
    blend = {"pedunculated": 0.07, "sessile": 0.08, "flat": 0.04}[kind]
    lean = rng.normal(0, 0.35 * size, 2) if kind == "pedunculated" else (0.0, 0.0)
    return Polyp(
        kind,
        base,
        frame,
        np.array(lobes, np.float32),
        stalk,
        knobs,
        blend,
        (float(lean[0]), float(lean[1])),
    )


def _shape(
    rng: np.random.Generator, kind: str, size: float
) -> tuple[list[list[list[float]]], tuple[float, float], tuple[float, float]]:
    """Return lobes, stalk and knobs for a head of half-width ``size``."""
    narrow = size * rng.uniform(0.7, 1.0)
    knobs = (size * rng.uniform(0.05, 0.15), rng.uniform(2.4, 5.0) / size)
    if kind == "flat":
        wide = 1.25 * size
        return [[[0, 0, 0], [wide, 1.2 * narrow, 0.42 * size]]], (0.0, 0.0), knobs
    if kind == "pedunculated":
        size, narrow = 0.8 * size, 0.8 * narrow
        length = size * rng.uniform(1.0, 2.2)
        tall = size * rng.uniform(0.75, 1.15)
        head = [[0.0, 0.0, length + 0.5 * tall], [size, narrow, tall]]
        lobes = [head, *_side_lobes(rng, head, 0.5)]
        return lobes, (length, size * rng.uniform(0.32, 0.5)), knobs
    tall = size * rng.uniform(0.55, 0.95)
    whole = [[0.0, 0.0, 0.15 * tall], [size, narrow, tall]]
    return [whole, *_side_lobes(rng, whole, 0.8)], (0.0, 0.0), knobs


def _side_lobes(
    rng: np.random.Generator, whole: list[list[float]], spread: float
) -> list[list[list[float]]]:
    """Return none to three smaller lobes that bulge out of the ellipsoid ``whole``."""
    (_, _, z), (wide, narrow, tall) = whole
    lobes = []
    for _ in range(int(rng.integers(0, 4))):
        turn, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.7)
        aside = [spread * wide * np.cos(turn), spread * narrow * np.sin(turn)]
        axes = [share * wide, share * rng.uniform(0.8, 1.2) * wide, share * tall * 1.1]
        lobes.append([[*aside, z + tall * rng.uniform(-0.05, 0.3)], axes])
    return lobes


def make_optics(rng: np.random.Generator) -> Optics:
    """Return an endoscope: octagonal, rounded or full picture, its exposure and its noise."""
    shape = rng.choice(["octagon", "rounded", "full"], p=[0.6, 0.25, 0.15])
    boxed = shape != "full" and rng.random() < 0.4
    warm = rng.uniform(-0.07, 0.07)
    return Optics(
        reach=float(rng.uniform(0.95, 1.18)),
        corner=float(rng.uniform(0.14, 0.27)) if shape == "octagon" else 0.0,
        rounding=float(rng.uniform(0.06, 0.2)) if shape == "rounded" else 0.0,
        box=(float(rng.uniform(0.28, 0.36)), float(rng.uniform(0.25, 0.35))) if boxed else (0, 0),
        noise=(float(rng.uniform(1.0, 3.0)), float(rng.uniform(1.5, 4.0))),
        target=float(rng.uniform(0.66, 0.82)),
        balance=(float(1 + warm), 1.0, float(1 - warm)),
        falloff=float(rng.uniform(0.15, 0.45)),
    )


def make_still(rng: np.random.Generator, kind: str | None) -> Shot:
    """Return a still that shows a polyp of ``kind``, or none."""
    for _ in range(ATTEMPTS):
        tube, optics = make_tube(rng), make_optics(rng)
        for _ in range(6):
            place = np.array([*rng.uniform(-0.35, 0.35, 2), 0.0])
            if kind is None:
                target = np.array([*rng.uniform(-1.0, 1.0, 2), rng.uniform(0.8, 2.5)])
                scene = Scene(tube)
                return Shot(scene, make_tissue(rng, scene), optics, look(place, target))
            scene = Scene(tube, (make_polyp(rng, tube, kind, rng.uniform(0.15, 1.2)),))
            polyp = scene.polyps[0]
            target = polyp.base + polyp.frame[2] * polyp.height * 0.6 + rng.normal(0, 0.22, 3)
            pose = look(place, target, rng.uniform(-0.6, 0.6))
            share = float(truth(scene, pose, optics, PREVIEW).mean())
            if STILL_SHARE[0] <= share <= STILL_SHARE[1]:
                return Shot(scene, make_tissue(rng, scene), optics, pose)
    raise AssertionError("no view of a polyp in 240 attempts")


def make_passage(rng: np.random.Generator, count: int, kind: str | None) -> list[Shot]:
    """Return the frames of one passage through a colon, towards a polyp of ``kind`` or none."""
    for _ in range(ATTEMPTS):
        scene, optics = Scene(make_tube(rng)), make_optics(rng)
        depth = float(rng.uniform(2.2, 3.0))
        if kind is not None:
            scene = replace(scene, polyps=(make_polyp(rng, scene.tube, kind, depth),))
        poses = _path(rng, scene, count + 1, depth)
        scenes = _moved(rng, scene, poses)
        if kind is None or _stays_in_view(scenes, poses, optics):
            tissue = make_tissue(rng, scene)
            return [
                Shot(scenes[i], tissue, optics, poses[i], poses[i - 1], i == 1)
                for i in range(1, count + 1)
            ]
    raise AssertionError("no passage that keeps its polyp in view in 40 attempts")


def _stays_in_view(scenes: list[Scene], poses: list[Pose], optics: Optics) -> bool:
    for index in np.unique(np.linspace(1, len(poses) - 1, 9).astype(int)):
        share = float(truth(scenes[index], poses[index], optics, PREVIEW).mean())
        if not FRAME_SHARE[0] <= share <= FRAME_SHARE[1]:
            return False
    return True


def _path(rng: np.random.Generator, scene: Scene, count: int, depth: float) -> list[Pose]:
    """Return poses on the way to the polyp at ``depth``: forwards, with an unsteady hand."""
    time = np.arange(count, dtype=np.float64) / 25
    near, far = sorted(rng.uniform((0.35, 0.8), (0.75, 1.35)))
    z = depth - np.linspace(far, near, count)
    if rng.random() < 0.35:
        z = z[::-1].copy()  # withdrawal
    z += 0.04 * np.sin(2 * np.pi * rng.uniform(0.3, 0.7) * time + rng.uniform(0, 6))
    aim = np.array(
        [*np.stack(scene.tube.centre(np.array([depth + 1], np.float32)))[:, 0], depth + 1]
    )
    if scene.polyps:
        polyp = scene.polyps[0]
        aim = polyp.base + polyp.frame[2] * polyp.height * 0.6
    centre = np.stack(scene.tube.centre(z.astype(np.float32)))
    phase, speed = rng.uniform(0, 6, (3, 5)), rng.uniform((0.15, 0.9), (0.5, 1.8))
    slow, quick = (np.sin(2 * np.pi * rate * time + phase[..., None]) for rate in speed)
    roll = rng.uniform(-0.5, 0.5) + 0.12 * slow[0, 4]
    side = rng.uniform(-0.2, 0.2, 2)
    poses = []
    for i in range(count):
        place = np.array([*(centre[:, i] + side + 0.10 * slow[0, :2, i]), z[i]])
        target = aim + 0.20 * slow[1, :3, i] + 0.04 * quick[2, :3, i]
        poses.append(look(place, target, float(roll[i])))
    return poses


def _moved(rng: np.random.Generator, scene: Scene, poses: list[Pose]) -> list[Scene]:
    """Return the scene at every pose: polyps swing and stretch as the camera drags the wall."""
    out = [scene]
    place: Floats = np.stack([pose.place for pose in poses])
    push = np.diff(place, axis=0, prepend=place[:1]) * 25
    turn = np.stack([pose.axes[2] for pose in poses])
    push = push + np.diff(turn, axis=0, prepend=turn[:1]) * 12
    phase = rng.uniform(0, 6)
    shift, speed = np.zeros(3), np.zeros(3)
    for i in range(1, len(poses)):
        # A damped spring of about 1.6 Hz, pulled along by the camera's movement.
        speed = speed + (-100 * shift - 5 * speed + 14 * push[i]) / 25
        shift = shift + speed / 25
        polyps = []
        for polyp in scene.polyps:
            soft = {"pedunculated": 1.0, "sessile": 0.4, "flat": 0.2}[polyp.kind]
            along = polyp.frame @ np.clip(shift, -0.25, 0.25).astype(np.float32)
            breath = 0.05 * np.sin(2 * np.pi * 0.8 * i / 25 + phase)
            lean = (
                float(polyp.sway[0] + soft * along[0]),
                float(polyp.sway[1] + soft * along[1]),
            )
            squash = float(np.clip(1 + breath + 0.6 * soft * along[2], 0.8, 1.25))
            polyps.append(replace(polyp, sway=lean, squash=squash))
        out.append(replace(scene, polyps=tuple(polyps)))
    return out

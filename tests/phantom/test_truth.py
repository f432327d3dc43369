"""The masks against a slow second opinion: every ray sampled densely, nothing skipped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medisseg.phantom.camera import Pose, aperture, expose, grid, look, rays, truth
from medisseg.phantom.geometry import FAR, Polyp, Scene, Tube
from medisseg.phantom.scenes import KINDS, Shot, make_passage, make_still

SIZE = (64, 80)
NEAR = 0.05


def still(kind: str | None, seed: int) -> Shot:
    return make_still(np.random.default_rng(seed), kind)


def second_opinion(shot: Shot, ways: np.ndarray, samples: int = 700) -> np.ndarray:
    """Whether the first surface along each ray [3, N] is a polyp's, by sampling every ray."""
    depths = np.geomspace(NEAR, FAR, samples, dtype=np.float32)
    label = np.full(ways.shape[1], -1, np.int8)
    for depth in depths:
        open_rays = np.flatnonzero(label < 0)
        if not len(open_rays):
            break
        point = shot.pose.place[:, None] + ways[:, open_rays] * depth
        wall = shot.scene.tube.distance(point)
        polyp = np.min([p.distance(point) for p in shot.scene.polyps], axis=0)
        whole = shot.scene.distance(point, shot.scene.polyps)
        inside = whole <= 0
        label[open_rays[inside]] = (polyp < wall)[inside]
    return label == 1


def around(shot: Shot, size: tuple[int, int], chosen: np.ndarray) -> list[np.ndarray]:
    """Rays [3, N] through a pixel's centre and through four points near its corners."""
    offsets = [(0, 0), (-0.45, -0.45), (-0.45, 0.45), (0.45, -0.45), (0.45, 0.45)]
    x, y = grid(size)
    bundles = []
    for dx, dy in offsets:
        u = (x.ravel()[chosen] + dx * 2 / min(size)).astype(np.float64)
        v = (y.ravel()[chosen] + dy * 2 / min(size)).astype(np.float64)
        radius = np.hypot(u, v) + 1e-6
        angle = np.minimum(radius * shot.optics.reach, 1.5)
        side = np.sin(angle) / radius
        inside = np.stack([u * side, v * side, np.cos(angle)])
        bundles.append((shot.pose.axes.T @ inside).astype(np.float32))
    return bundles


@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_what_dense_sampling_finds(kind: str) -> None:
    shot = still(kind, 3)
    mask = truth(shot.scene, shot.pose, shot.optics, SIZE)
    free = aperture(shot.optics, SIZE)
    rng = np.random.default_rng(0)
    edge = mask != np.roll(mask, 1, 0)
    edge |= mask != np.roll(mask, 1, 1)
    pools = [np.flatnonzero(part & free) for part in (edge, mask == 1, mask == 0)]
    chosen = np.unique(np.concatenate([rng.choice(p, min(len(p), 60), False) for p in pools]))
    opinions = np.stack([second_opinion(shot, w) for w in around(shot, SIZE, chosen)])
    said = mask.ravel()[chosen] == 1
    agreed = (opinions == opinions[0]).all(0)
    assert agreed.sum() > 80
    np.testing.assert_array_equal(said[agreed], opinions[0][agreed])
    # Where the outline crosses the pixel its centre decides; finer, as rays graze the polyp there.
    closer = second_opinion(shot, around(shot, SIZE, chosen[~agreed])[0], 5000)
    assert (said[~agreed] != closer).sum() <= 0.1 * (~agreed).sum() + 1


@pytest.mark.parametrize("kind", KINDS)
def test_double_size_agrees(kind: str) -> None:
    shot = still(kind, 11)
    single = truth(shot.scene, shot.pose, shot.optics, (96, 96))
    double = truth(shot.scene, shot.pose, shot.optics, (192, 192))
    share = double.reshape(96, 2, 96, 2).mean((1, 3))
    agreed = (share == 0) | (share == 1)
    assert agreed.mean() > 0.9
    different = (single != share)[agreed].sum()
    # A block of four may still hide a corner of the outline between its centres.
    assert different <= 0.01 * (~agreed).sum() + 1
    assert abs(single.mean() - double.mean()) < 0.004


@pytest.mark.parametrize("kind", KINDS)
def test_picture_and_mask_show_the_same_polyp(kind: str) -> None:
    """Without its polyp the picture changes on the mask and, farther off, nowhere."""
    import cv2

    shot = still(kind, 21)
    size = (128, 128)
    light = expose(shot.scene, shot.tissue, shot.pose, shot.optics, size)
    mask = truth(shot.scene, shot.pose, shot.optics, size)
    np.testing.assert_array_equal(light.mask, mask)
    bare = expose(Scene(shot.scene.tube), shot.tissue, shot.pose, shot.optics, size)
    free = aperture(shot.optics, size)
    assert (light.depth <= bare.depth + 0.01)[(mask == 1) & free].all()
    distant = (cv2.dilate(mask, np.ones((41, 41), np.uint8)) == 0) & free
    assert distant.any()
    np.testing.assert_allclose(light.depth[distant], bare.depth[distant], atol=0.02)
    on = np.abs(light.body - bare.body).mean(-1)
    assert on[(mask == 1) & free].mean() > 5 * on[distant].mean()


def straight_tube(fold: float) -> Tube:
    """A tube of radius 1 with one ring at z = 1.5 that leaves an opening of 1 - ``fold``."""
    rows, columns, start, length = 512, 64, -1.5, 12.0
    z = start + (np.arange(rows, dtype=np.float32) + 0.5) * length / rows
    radius = 1 - fold * np.exp(-(((z - 1.5) / 0.45) ** 2))
    relief = np.zeros((rows, columns, 3), np.float32)
    relief[..., 0] = radius[:, None]
    relief[..., 2] = np.gradient(radius, length / rows)[:, None]
    return Tube(relief, start, length, ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)))


def ball(z: float, x: float = 1.0) -> Polyp:
    """A half ball of radius 0.3 on the wall at (``x``, 0, ``z``)."""
    frame = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], np.float32)
    lobes = np.array([[[0, 0, 0], [0.3, 0.3, 0.3]]], np.float32)
    return Polyp(
        "sessile", np.array([x, 0, z], np.float32), frame, lobes, (0.0, 0.0), (0.0, 0.0), 1e-4
    )


def ahead() -> Pose:
    return look(np.zeros(3), np.array([0.0, 0.0, 1.0]))


def test_a_fold_hides_what_lies_behind_it() -> None:
    optics = replace(still("flat", 0).optics, corner=0.0, rounding=0.0, box=(0.0, 0.0))
    shown = truth(Scene(straight_tube(0.0), (ball(2.5),)), ahead(), optics, (128, 128))
    partly = truth(Scene(straight_tube(0.45), (ball(2.5),)), ahead(), optics, (128, 128))
    hidden = truth(Scene(straight_tube(0.7), (ball(2.5),)), ahead(), optics, (128, 128))
    assert shown.sum() > 100
    assert 0 < partly.sum() < 0.8 * shown.sum()
    assert not (partly & (1 - shown)).any()
    assert hidden.sum() == 0


def test_mask_is_the_disc_that_a_ball_subtends() -> None:
    """A ball hanging free in the tube covers the pixels within asin(radius / distance)."""
    optics = replace(still("flat", 0).optics, corner=0.0, rounding=0.0, box=(0.0, 0.0), reach=1.0)
    free_ball = ball(1.5, x=0.2)
    mask = truth(Scene(straight_tube(0.0), (free_ball,)), ahead(), optics, (256, 256))
    ways = rays(ahead(), optics, (256, 256))
    to_ball = np.array([0.2, 0.0, 1.5])
    distance = float(np.linalg.norm(to_ball))
    cosine = (to_ball / distance) @ ways.astype(np.float64)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1))).reshape(256, 256)
    limit = np.degrees(np.arcsin(0.3 / distance))
    pixel = np.degrees(2 / 256)
    assert mask[angle < limit - 0.5 * pixel].all()
    assert not mask[angle > limit + 0.5 * pixel].any()


def test_endoscope_mask_is_background() -> None:
    for seed in range(2):
        shot = still("sessile", 40 + seed)
        mask = truth(shot.scene, shot.pose, shot.optics, SIZE)
        assert not mask[~aperture(shot.optics, SIZE)].any()


def test_polyps_deform_with_the_movement() -> None:
    for kind in KINDS:
        shots = make_passage(np.random.default_rng(5), 12, kind)
        shapes = {(shot.scene.polyps[0].sway, shot.scene.polyps[0].squash) for shot in shots}
        assert len(shapes) == 12
        last = shots[-1]
        assert last.before is not None
        moved = truth(last.scene, last.pose, last.optics, (128, 128))
        rest = truth(shots[0].scene, last.pose, last.optics, (128, 128))
        assert 0 < (moved != rest).mean() < 0.1

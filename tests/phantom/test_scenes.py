"""Where rays end in scenes whose answer is known, and what the kinds of polyps are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medisseg.phantom.camera import aperture, expose, look, truth
from medisseg.phantom.geometry import FAR, Floats, Polyp, Scene, Tube, march
from medisseg.phantom.scenes import KINDS, make_still
from medisseg.phantom.writer import plan_passages

PIPE = Tube(np.tile(np.array([1, 0, 0], np.float32), (64, 64, 1)), -1.5, 12.0, ((0, 0, 0),) * 2)
HERE = np.zeros(3, np.float32)
AHEAD = np.array([[0, 0, 1.0]], np.float32).T


def ball(z: float, radius: float) -> Polyp:
    """A ball that floats on the axis of the pipe."""
    lobe = np.array([[[0, 0, 0], [radius] * 3]], np.float32)
    base: Floats = np.array([0, 0, z], np.float32)
    return Polyp("sessile", base, np.eye(3, dtype=np.float32), lobe, (0, 0), (0, 0), 1e-3)


def test_rays_meet_a_straight_pipe_where_it_is() -> None:
    angle = np.linspace(0.4, 1.4, 200, dtype=np.float32)
    ways = np.stack([np.sin(angle) * 0.6, np.sin(angle) * 0.8, np.cos(angle)])
    hits = march(Scene(PIPE), HERE, ways)
    # Rays stop within 5e-4 * (0.5 + depth) of the wall, which the depth sees slanted.
    np.testing.assert_allclose(hits.depth, 1 / np.sin(angle), rtol=0.01)
    np.testing.assert_allclose(hits.normal[:2], np.tile([[-0.6], [-0.8]], 200), atol=1e-3)
    assert (hits.polyp == -1).all()


def test_a_ball_is_met_at_its_front_and_the_dark_is_far() -> None:
    hits = march(Scene(PIPE, (ball(2, 0.5),)), HERE, AHEAD)
    assert hits.depth[0] == pytest.approx(1.5, abs=5e-3)
    assert hits.polyp[0] == 0
    assert hits.normal[:, 0] == pytest.approx([0, 0, -1], abs=1e-2)
    assert march(Scene(PIPE), HERE, AHEAD).depth[0] == FAR


def test_mask_is_the_disc_of_a_ball() -> None:
    optics = make_still(np.random.default_rng(0), None).optics
    optics = replace(optics, corner=0.0, rounding=0.0, box=(0.0, 0.0))
    mask = truth(Scene(PIPE, (ball(2, 0.5),)), look(HERE, AHEAD[:, 0]), optics, (256, 256))
    # Seen under asin(r / d); the lens maps angles to the radius in proportion.
    radius = np.arcsin(0.5 / 2) / optics.reach * 128
    assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_do_not_depend_on_the_size_of_the_picture(kind: str) -> None:
    """Three times the size has a pixel at the very centre of each small one."""
    shot = make_still(np.random.default_rng([3, KINDS.index(kind)]), kind)
    small = expose(shot.scene, shot.tissue, shot.pose, shot.optics, (64, 96)).mask
    large = truth(shot.scene, shot.pose, shot.optics, (192, 288))
    # Float rounding of the rays may decide a pixel that the outline meets.
    assert (large[1::3, 1::3] != small).sum() <= 2
    assert small.sum() > 50


def test_kinds_have_their_shapes() -> None:
    polyps = {kind: make_still(np.random.default_rng(5), kind).scene.polyps[0] for kind in KINDS}
    assert {kind: polyp.kind for kind, polyp in polyps.items()} == {kind: kind for kind in KINDS}
    assert polyps["pedunculated"].stalk[0] > 0
    assert polyps["sessile"].stalk == polyps["flat"].stalk == (0, 0)
    assert polyps["flat"].height < 0.5 * polyps["flat"].lobes[0, 1].max()
    assert polyps["pedunculated"].height > polyps["sessile"].height > polyps["flat"].height


def test_the_aperture_hides_polyps() -> None:
    optics = make_still(np.random.default_rng(0), None).optics
    optics = replace(optics, corner=0.25, rounding=0.0, box=(0.3, 0.3))
    free = aperture(optics, (128, 128))
    assert not free[0, 0] and not free[127, 0] and free[64, 64] and free[0, 64]
    assert not free[90:, :38].any()
    mask = truth(Scene(PIPE, (ball(0.4, 0.35),)), look(HERE, AHEAD[:, 0]), optics, (128, 128))
    assert mask.any() and not mask[~free].any()


@pytest.mark.parametrize("frames", [1, 3, 48, 200, 1000])
def test_few_frames_are_without_polyp(frames: int) -> None:
    plan = plan_passages(frames)
    assert sum(count for count, _ in plan) == frames
    assert all(count > 0 for count, _ in plan)
    assert sum(count for count, kind in plan if kind is None) <= 0.1 * frames

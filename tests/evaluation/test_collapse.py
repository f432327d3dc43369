"""Collapse measures on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from medisseg.evaluation.collapse import (
    collapse,
    effective_rank,
    mean_cosine,
    project,
    uniformity,
    unit,
)

GENERATOR = np.random.default_rng(0)


def test_effective_rank_counts_equal_directions() -> None:
    axes = np.concatenate([np.eye(6), -np.eye(6)])  # six equal singular values, mean zero
    assert effective_rank(axes) == pytest.approx(6)
    assert effective_rank(axes + 100) == pytest.approx(6)  # the mean does not count
    line = np.outer(np.arange(9.0), GENERATOR.normal(size=20))
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert effective_rank(np.full((5, 4), 3.3)) == 0.0


def test_uniformity() -> None:
    assert uniformity(np.outer([1.0, 2.0, 5.0], [1.0, 1.0])) == pytest.approx(0, abs=1e-9)
    pair = np.array([[1.0, 0.0], [-3.0, 0.0]])  # opposite: squared distance 4
    assert uniformity(pair) == pytest.approx(-8)
    square = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])  # 4 pairs at 2, 2 pairs at 4
    assert uniformity(square) == pytest.approx(np.log((4 * np.exp(-4) + 2 * np.exp(-8)) / 6))


def test_spread_features_score_better_than_collapsed_ones() -> None:
    base = GENERATOR.normal(size=32)
    tight = base + 0.05 * GENERATOR.normal(size=(40, 32))
    wide = GENERATOR.normal(size=(40, 32))
    assert collapse(wide)["uniformity"] < collapse(tight)["uniformity"] - 2
    assert mean_cosine(tight) > 0.98 and abs(mean_cosine(wide)) < 0.05


def test_projection_keeps_a_plane() -> None:
    plane = GENERATOR.normal(size=(30, 2)) * (5, 1)
    basis = np.linalg.qr(GENERATOR.normal(size=(10, 10)))[0][:, :2]
    got = project(plane @ basis.T)
    distances = np.linalg.norm(got[:, None] - got[None], axis=-1)
    expected = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    assert np.allclose(distances, expected)
    assert got[:, 0].var() > got[:, 1].var()


def test_unit_length_at_every_scale() -> None:
    rows = np.array([[3.0, 4.0], [3e-9, 4e-9], [0.0, 0.0]])
    assert np.allclose(unit(rows), [[0.6, 0.8], [0.6, 0.8], [0, 0]])
    tiny = 1e-9 * GENERATOR.normal(size=(20, 5))
    assert uniformity(tiny) == pytest.approx(uniformity(1e9 * tiny))


def test_too_few_or_broken_rows_are_refused() -> None:
    for wrong in (np.zeros((1, 4)), np.zeros(4), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="expected finite"):
            effective_rank(wrong)

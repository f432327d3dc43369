"""The paper's figures, drawn from generated study folders: the drawn values are the runs'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import figures
from medisseg.errors import UserError
from medisseg.training.ablations import ABLATIONS, slug, write_table

SEEDS = (0, 1)


def write_study(root: Path, study: str, title: str = "edge: on val", lift: float = 0.0) -> Path:
    """Write runs whose Dice is known: 50 % and 2 points more a row and 1 a seed; IoU 10 less."""
    out = root / f"study-{study}"
    for index, row in enumerate(ABLATIONS[study]):
        for seed in SEEDS:
            dice = 0.5 + 0.02 * index + 0.01 * seed + lift
            folder = out / slug(row.label) / f"seed{seed}"
            (folder / "stage2").mkdir(parents=True)
            lines = [
                f"i{k},{dice - 0.1 + 0.001 * k:.6f},{dice + 0.001 * k:.6f}" for k in (-1, 0, 1)
            ]
            (folder / "scores.csv").write_text("\n".join(["name,iou,dice", *lines]) + "\n")
            curve = [f"{e},{dice * e / 4 - 0.1},{dice * e / 4}" for e in range(1, 5)]
            curve.insert(1, "9,,")  # an epoch without validation
            told = "\n".join(["epoch,val_iou,val_dice", *curve]) + "\n"
            (folder / "stage2" / "curves.csv").write_text(told)
    write_table(out, study, title, SEEDS)
    return out


@pytest.mark.parametrize("study", ["variants", "attention", "tau", "placement"])
def test_bars_are_the_rows_means(tmp_path: Path, study: str) -> None:
    figure = figures.bars([write_study(tmp_path, study)])
    rows = ABLATIONS[study]
    for axes, less, paper in zip(figure.axes, (10, 0), (0, 1), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        assert heights == pytest.approx([50.5 + 2 * k - less for k in range(len(rows))], abs=0.01)
        lines = [line for part in axes.collections for line in part.get_segments()]
        known = [row.paper[paper] for row in rows if row.paper[paper] is not None]
        drawn = [line[0][1] for line in lines if len(line) == 2 and line[0][1] == line[1][1]]
        assert set(known) <= set(drawn)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [row.label for row in rows]


def test_several_data_sets_are_groups(tmp_path: Path) -> None:
    sets = [write_study(tmp_path / name, "dispersive", f"{name}: on val", lift)
            for name, lift in (("kvasir", 0.0), ("glas", 0.1))]  # fmt: skip
    axes = figures.bars(sets).axes[1]
    places = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    heights = [bar.get_height() for bar in axes.patches]
    rows = len(ABLATIONS["dispersive"])
    assert heights == pytest.approx(
        [50.5 + 2 * k + s for s in (0, 10) for k in range(rows)], abs=0.01
    )
    assert max(places[:rows]) < 0.5 < min(places[rows:])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["kvasir: on val", "glas: on val"]
    with pytest.raises(UserError, match="dispersive, tau: expected folders of one study"):
        figures.bars([sets[0], write_study(tmp_path, "tau")])


def test_curves_are_means_over_seeds_within_their_range(tmp_path: Path) -> None:
    figure = figures.curves(write_study(tmp_path, "attention"))
    for axes, less in zip(figure.axes, (10, 0), strict=True):
        assert len(axes.lines) == len(ABLATIONS["attention"])
        for index, line in enumerate(axes.lines):
            assert line.get_xdata().tolist() == [1, 2, 3, 4]
            expected = (50.5 + 2 * index) * np.arange(1, 5) / 4 - less
            assert line.get_ydata() == pytest.approx(expected)
        bounds = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert bounds.min() == pytest.approx(12.5 - less)
        assert bounds.max() == pytest.approx(51 - less)


@pytest.mark.parametrize("kind", ["bars", "curves"])
@pytest.mark.parametrize("name", ["figure.png", "figure.svg"])
def test_the_command(tmp_path: Path, kind: str, name: str) -> None:
    study = write_study(tmp_path, "lambda")
    assert figures.main([kind, str(study), "--out", str(tmp_path / name)]) == 0
    start = (tmp_path / name).read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if name.endswith("png") else b"<?xml" in start


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    study = write_study(tmp_path, "tau")
    for words, message in (
        (["bars", str(tmp_path)], "is no study with a finished run"),
        (["curves", str(study), str(study)], "curves are of one study; got 2"),
        (["curves", str(study), "--stage", "1"], "has no curves of stage 1"),
        (["bars", str(study), "--out", "a.pdf"], r"ends in \.png or \.svg"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            figures.main(
                [*words, *([] if "--out" in words else ["--out", str(tmp_path / "a.png")])]
            )
        assert "\n" not in str(caught.value)
    (study / "table.json").write_text("{}")
    with pytest.raises(UserError, match="is no study"):
        figures.bars([study])

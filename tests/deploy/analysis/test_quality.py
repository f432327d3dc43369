"""The gate lets real frames through and stops what no one can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.analysis.quality import GOOD, QualityGate, measure


def mucosa(size: tuple[int, int] = (288, 384)) -> np.ndarray:
    """A red surface with fine vessels."""
    draw = np.random.default_rng(2)
    noise = np.repeat(np.repeat(draw.normal(0, 18, (size[0] // 2, size[1] // 2)), 2, 0), 2, 1)
    picture = np.array([170, 80, 60]) + noise[..., None]
    return picture.clip(0, 255).astype(np.uint8)


def test_real_frames_pass(shared: Path) -> None:
    from PIL import Image

    gate = QualityGate()
    for folder, step in (("cvc-clinicdb", 3), ("kvasir-seg", 10)):
        paths = sorted((shared / "data" / folder / "images").iterdir())[::step]
        judged = {path.name: gate(np.asarray(Image.open(path).convert("RGB"))) for path in paths}
        assert len(judged) > 50 and set(judged.values()) == {GOOD}, judged


def test_blurred_real_frames_do_not(shared: Path) -> None:
    from PIL import Image, ImageFilter

    paths = sorted((shared / "data" / "kvasir-seg" / "images").iterdir())[:200:10]
    gate = QualityGate()
    judged = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        blurred = image.filter(ImageFilter.GaussianBlur(image.width / 30))
        judged.append(gate(np.asarray(blurred)))
    assert judged.count("blurred") >= 0.75 * len(judged)


@pytest.mark.parametrize("size", [(288, 384), (1080, 1920), (575, 719), (64, 48)])
def test_what_no_one_can_read(size: tuple[int, int]) -> None:
    gate = QualityGate()
    if min(size) > 200:
        assert gate(mucosa(size)) == GOOD
    assert gate(mucosa(size) // 16) == "dark"
    assert gate(np.zeros((*size, 3), np.uint8)) == "dark"
    assert gate(np.full((*size, 3), 255, np.uint8)) == "saturated"
    assert gate(np.ascontiguousarray(mucosa(size)[..., ::-1])) == "out of body"
    grey = np.repeat(mucosa(size)[..., :1], 3, axis=2)
    assert gate(grey) == "out of body"


def test_dark_corners_count_neither_way() -> None:
    picture = mucosa()
    picture[:, :60] = picture[:, -60:] = 0
    measured, whole = measure(picture), measure(mucosa())
    assert measured["redness"] == pytest.approx(whole["redness"], rel=0.05)
    assert QualityGate()(picture) == GOOD


def test_gated_frames_are_shown_and_not_segmented(fake: Any, lab: Any, tmp_path: Path) -> None:
    from deploy import options, runner

    pictures = [
        mucosa((240, 320)) if i < 5 else np.zeros((240, 320, 3), np.uint8) for i in range(10)
    ]
    video = lab.write_video(tmp_path / "v.mp4", pictures)
    words = [str(video), "--model", "m", "--out", str(tmp_path / "run"), "--window", "off"]
    engine = fake.FakeEngine()
    assert runner.run(options.parse(words), lambda: engine) == 0
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    assert [line["quality"] for line in result.lines] == [GOOD] * 5 + ["dark"] * 5
    assert [line["rle"] is None for line in result.lines] == [False] * 5 + [True] * 5
    assert len(engine.batches) == 1 + 5  # the warm-up, and the frames that could be read
    assert len(result.video()) == 10
    assert result.report["streams"][0]["quality"] == {"dark": 5}

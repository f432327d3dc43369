"""A mask belongs to its frame: numbers drawn into frames are read back from what was written."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.frames import decode_rle


def check_identity(run: Any, lab: Any, stream: int = 0, size: tuple[int, int] = (240, 320)) -> int:
    """Every recorded frame shows its own number and its own mask; return how many there are."""
    number = f"-{stream + 1}" if len(run.report["streams"]) > 1 else ""
    overlay, raw = run.video(f"overlay{number}"), run.video(f"raw{number}")
    lines = run.processed(stream)
    assert lines and len(overlay) == len(lines)
    for index, line in enumerate(lines):
        assert line["overlay"] == index
        shown, original = overlay[index], raw[line["raw"]]
        numbers = lab.read_number(shown), lab.read_number(original)
        assert numbers[0] == numbers[1], f"frame {line['id']}: {numbers}"
        x, y = lab.polyp_corner(numbers[0], size)
        (box,) = line["boxes"]
        assert np.abs(np.subtract(box[:2], (x, y))).max() <= 3
        mask = decode_rle(line["rle"]).astype(bool)
        changed = np.abs(shown.astype(int) - original).max(axis=2)
        assert mask[y + 5 : y + 40, x + 5 : x + 55].all()
        inside = np.zeros(mask.shape, bool)
        inside[y + 6 : y + 40, x + 6 : x + 56] = True
        if line["tracks"]:
            assert line["tracks"][0]["box"] == box
            assert changed[inside].mean() > 20
    return len(lines)


def test_a_file(play: Any, lab: Any, numbered: Path) -> None:
    run = play(numbered, "--hold-off", 0, "--crf", 12)
    assert check_identity(run, lab) == 100
    assert [lab.read_number(picture) for picture in run.video()] == [*range(100)]


def test_a_live_source_with_an_engine_of_changing_pace(
    play: Any, lab: Any, fake: Any, numbered: Path
) -> None:
    draw = random.Random(5)

    def uneven(batch: np.ndarray) -> None:
        time.sleep(draw.choice([0.0, 0.02, 0.15]))

    run = play(
        numbered, "--realtime", "--hold-off", 0, "--crf", 12, engine=lambda: fake.FakeEngine(uneven)
    )
    run.check_accounts()
    assert run.report["frames"]["dropped"] > 5
    shown = check_identity(run, lab)
    assert shown == run.report["frames"]["processed"]
    assert len(run.video("raw")) == 100  # dropped frames are in the raw video all the same


def test_four_streams_in_shared_batches(play: Any, lab: Any, fake: Any, tmp_path: Path) -> None:
    sources = [
        lab.write_video(
            tmp_path / f"{first}.mp4", map(lab.numbered_frame, range(first, first + 25))
        )
        for first in (0, 100, 200, 300)
    ]
    engine = fake.FakeEngine(fake.slow(5))
    run = play(*sources, "--hold-off", 0, "--crf", 12, engine=lambda: engine)
    run.check_accounts()
    assert max(engine.batches) > 1
    for stream, first in enumerate((0, 100, 200, 300)):
        assert check_identity(run, lab, stream) == 25
        pictures = run.video(f"overlay-{stream + 1}")
        assert [lab.read_number(picture) for picture in pictures] == [*range(first, first + 25)]


def test_a_mask_of_another_slot_would_be_noticed(lab: Any) -> None:
    corners = {lab.polyp_corner(number) for number in range(40)}
    assert len(corners) == 40
    for number in (0, 1, 513, 1023):
        assert lab.read_number(lab.numbered_frame(number)) == number


@pytest.mark.parametrize("hold_off", [0, 2])
def test_hidden_masks_are_recorded_and_not_drawn(
    play: Any, lab: Any, tmp_path: Path, hold_off: int
) -> None:
    path = lab.write_video(tmp_path / "v.mp4", map(lab.numbered_frame, range(6)))
    run = play(path, "--hold-off", hold_off, "--crf", 12)
    for index, line in enumerate(run.lines):
        held = index < hold_off
        assert line["alarm"] is not held and line["area"] > 0
        assert (line["shown_rle"] is None) is not held
        x, y = lab.polyp_corner(index)
        green = run.video()[index][y + 10 : y + 38, x + 10 : x + 54].reshape(-1, 3).mean(axis=0)
        assert bool(abs(green - lab.GREEN).max() < 16) is held

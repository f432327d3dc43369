"""Two named classes on their way through the runner: picture, results, report and replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.player import draw
from deploy.replay.recorded import RecordedRun
from medisseg.labels import Label

TWO = (Label("neoplastic", (255, 0, 255)), Label("non-neoplastic", (255, 255, 0)))


def test_classes_reach_the_screen_and_the_files(
    play: Any, fake: Any, lab: Any, tmp_path: Path
) -> None:
    class TwoClasses(fake.FakeEngine):
        """Green in the left half is the first class, in the right half the second."""

        classes, labels = 3, TWO

        def infer(self, batch: np.ndarray) -> np.ndarray:
            found = super().infer(batch)
            right = np.arange(batch.shape[3]) >= batch.shape[3] // 2
            answers = [-found, np.where(right, -9.0, found), np.where(right, found, -9.0)]
            return np.concatenate(answers, 1).astype(np.float32)

    still = np.full((240, 320, 3), 90, np.uint8)
    still[60:120, 40:100] = lab.GREEN
    still[60:120, 220:300] = lab.GREEN
    video = lab.write_video(tmp_path / "two.mp4", [still] * 12)
    run = play(video, "--hold-off", 2, "--opacity", 1, engine=TwoClasses)
    assert run.report["classes"] == ["neoplastic", "non-neoplastic"]
    page = (run.folder / "report.html").read_text()
    for label in TWO:
        assert f'style="background:rgb{label.color}"></i>{label.name}<' in page
    last = run.processed()[-1]
    names = {track["label"]["name"]: track["box"][0] for track in last["tracks"]}
    assert abs(names["neoplastic"] - 40) < 8 and abs(names["non-neoplastic"] - 220) < 8
    pixels = {one["name"]: one["pixels"] for one in last["classes"]}
    assert abs(pixels["neoplastic"] - 60 * 60) < 600
    assert abs(pixels["non-neoplastic"] - 60 * 80) < 700
    shown = run.video()[-1]
    replayed = RecordedRun(run.folder)
    again = draw(replayed, replayed.entries[-1])
    for picture in (shown, again):
        assert np.abs(picture[90, 70].astype(int) - TWO[0].color).max() < 60
        assert np.abs(picture[90, 260].astype(int) - TWO[1].color).max() < 60

"""``--truth`` reads masks as ``medisseg evaluate`` does, or refuses them with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_files import png

from deploy.outputs.results import Truth
from medisseg.errors import UserError

DISC = np.zeros((48, 64), np.uint8)
cv2.circle(DISC, (30, 24), 12, 1, -1)
BACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


def palette(mask: np.ndarray) -> Any:
    from PIL import Image

    image = Image.fromarray(mask)
    image = image.convert("P")
    image.putpalette([*BACK, *(128, 0, 0), *(0, 128, 0)])
    return image


def colored(mask: np.ndarray, *colors: tuple[int, int, int]) -> Any:
    from PIL import Image

    return Image.fromarray(np.array([BACK, *colors], np.uint8)[mask])


def grey(mask: np.ndarray, value: int = 255) -> Any:
    from PIL import Image

    return Image.fromarray((mask * value).astype(np.uint8))


@pytest.mark.parametrize(
    ("store", "name"),
    [
        (grey, "m.png"),
        (lambda mask: grey(mask, 1), "m.png"),
        (grey, "m.jpg"),
        (palette, "m.png"),
        (lambda mask: colored(mask, RED), "m.png"),
        (lambda mask: colored(mask, GREEN), "m.png"),
        (lambda mask: colored(mask, RED), "m.jpg"),
        (lambda mask: colored(mask, (128, 0, 0)), "m.png"),  # no channel above 127
    ],
    ids=["255", "0 and 1", "JPEG", "palette", "red", "green", "red JPEG", "dark red"],
)
def test_every_way_of_marking_foreground(store: Any, name: str, tmp_path: Path) -> None:
    stem, suffix = name.split(".")
    for number, mask in enumerate((DISC, np.roll(DISC, 9, 1), 0 * DISC)):
        store(mask).save(tmp_path / f"{stem}{number}.{suffix}")
    truth = Truth(tmp_path)
    for number, mask in enumerate((DISC, np.roll(DISC, 9, 1), 0 * DISC)):
        found = truth.read(number, DISC.shape)[0]
        assert found is not None
        assert (found != (mask > 0)).mean() < (0.02 if suffix == "jpg" else 1e-9)
    larger = truth.read(0, (96, 128))[0]
    assert larger is not None and larger.sum() == pytest.approx(4 * DISC.sum(), rel=0.02)
    assert truth.read(3, DISC.shape) is None


def test_two_classes_are_both_foreground(tmp_path: Path) -> None:
    both = DISC + np.roll(DISC, 25, 1) * 2
    both[both > 2] = 2
    colored(both, RED, GREEN).save(tmp_path / "0.png")
    colored(DISC, RED, GREEN).save(tmp_path / "1.png")
    found = Truth(tmp_path).read(0, DISC.shape)[0]
    np.testing.assert_array_equal(found, both > 0)


def test_the_case_of_coloured_masks(shared: Path) -> None:
    folder = shared / "cases" / "video" / "truth-colours" / "truth"
    truth = Truth(folder)
    for number, path in enumerate(truth.paths):
        stored = cv2.imread(str(path))
        assert stored is not None and stored.max() > 127
        np.testing.assert_array_equal(truth.read(number, stored.shape[:2])[0], stored.max(2) > 127)


def huge(path: Path) -> None:
    """A PNG of some bytes that claims 60000 x 60000 pixels."""
    path.write_bytes(png(60_000, 60_000, bytes(64), color=2))


def test_what_is_no_mask_is_refused_before_the_run(
    tmp_path: Path, fake: Any, numbered: Path
) -> None:
    from deploy import options, runner

    photograph = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    wrong: dict[str, Any] = {
        "photo": lambda path: cv2.imwrite(str(path), photograph),
        "text": lambda path: path.write_text("no image"),
        "huge": huge,
        "cut": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9)),
    }
    for name, make in wrong.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / "0.png")
        words = [str(numbered), "--model", "fake", "--truth", str(tmp_path / name)]
        out = tmp_path / f"out-{name}"
        with pytest.raises(UserError) as refused:
            runner.run(options.parse([*words, "--out", str(out)]), fake.FakeEngine)
        assert "\n" not in str(refused.value) and "--truth" in str(refused.value)
        assert not out.exists()


def test_a_mask_that_breaks_later_stops_the_comparison_alone(
    play: Any, numbered: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "truth"
    folder.mkdir()
    for number in range(20):
        grey(DISC).save(folder / f"{number}.png")
    (folder / "12.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    run = play(numbered, "--truth", folder, "--frames", 20)
    run.check_accounts()
    assert run.report["frames"]["processed"] == 20 and len(run.video("overlay")) == 20
    (said,) = run.report["streams"][0]["stopped"]
    assert said.startswith("comparison with the truth stopped") and "12.png" in said

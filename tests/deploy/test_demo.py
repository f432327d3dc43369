"""The demo refuses early what would fail late, and keeps what stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy import demo, demo_report
from export import build_engine
from export.verify import Diverged
from medisseg.errors import UserError


def folder(root: Path, masks: bool = True) -> Path:
    for name in ("images", "masks") if masks else ("images",):
        (root / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / name / f"{i}.png")
    (root / "train.txt").write_text("0\n")
    (root / "val.txt").write_text("1\n")
    return root


def test_wrong_inputs_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"not a video" * 100)
    good = str(folder(tmp_path / "good"))
    for arguments, says in (
        (["--data", str(folder(tmp_path / "bare", masks=False))], "no mask for"),
        (["--data", str(tmp_path / "absent")], "absent"),
        (["--data", good, "--video", str(tmp_path / "no.mp4")], "is not a video"),
        (["--data", good, "--video", str(tmp_path / "absent.mp4")], "is not a video"),
        (["--data", good, "--truth", str(tmp_path / "absent")], "is not a folder"),
        (["--data", good, "--minutes", "0"], "expected more than 0"),
    ):
        with pytest.raises(UserError, match=says):
            demo.main([*arguments, "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is a file"):
        demo.main(["--data", good, "--out", str(tmp_path / "no.mp4")])


def test_products_stand_until_the_inputs_change(tmp_path: Path) -> None:
    out, product = tmp_path / "out", tmp_path / "out" / "product"
    demo.begin(out, {"data": "a"})
    product.write_text("made")
    demo.begin(out, {"data": "a"})
    demo.step("again", product, lambda: pytest.fail("made twice"))
    demo.begin(out, {"data": "b"})
    assert not product.exists() and json.loads((out / "settings.json").read_text()) == {"data": "b"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        demo.begin(other, {"data": "a"})
    assert (other / "thesis.tex").read_text() == "precious"


def test_a_video_alone_goes_through_the_packaged_checkpoint(tmp_path: Path) -> None:
    args = demo.parse(["--video", "exam.mp4", "--out", str(tmp_path)])
    assert demo.sources(args) == (None, Path("exam.mp4"), None)
    checkpoint, dice = demo.packaged()
    assert checkpoint.name == "edge-polyp.safetensors" and 0.8 < dice < 1


def test_a_command_that_fails_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    demo.medisseg("--version")
    with pytest.raises(SystemExit) as ended:
        demo.evaluate(tmp_path / "absent.safetensors", tmp_path, tmp_path / "out")
    reported = capfd.readouterr()
    assert ended.value.code == 2 and reported.out.startswith("medisseg ")
    assert reported.err.startswith("error: ") and len(reported.err.splitlines()) == 1
    monkeypatch.setattr(demo.sys, "executable", "false")
    with pytest.raises(UserError, match="medisseg evaluate ended with exit code 1"):
        demo.medisseg("evaluate")


def test_a_busy_machine_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user may give more time."""
    with pytest.raises(UserError):
        demo.main(["--minutes", "-1"])
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "medisseg", lambda *arguments: asked.append(arguments))
    for options in ([], ["--minutes", "20"]):
        demo.train(Path("d"), demo.parse(options), Path("o"))
    assert asked[1] == (*asked[0], "budget_minutes=20.0")


@pytest.mark.parametrize(("dice", "reported"), [(0.155, True), (0.93, False)])
def test_a_network_that_had_no_time_is_told(
    dice: float, reported: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {
        "dice_video": dice,
        "dice_val": dice,
        "backend": "openvino",
        "frames": {"in": 3, "processed": 2, "dropped": 1, "failed": 0},
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "fps": 9.0,
        **dict.fromkeys(("overlay", "engine", "rtx_engine", "checkpoint"), "x"),
    }
    demo_report.print_table(Path("out"), result)
    shown = capsys.readouterr().out
    assert "3 = 2 + 1 + 0" in shown and ("MINUTES=20" in shown) is reported


def test_an_engine_that_is_not_the_network_is_built_in_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, object]] = []

    def refuse_fp16(checkpoint: Path, **options: object) -> None:
        asked.append(options)
        if "precision" not in options:
            raise Diverged("fp16 is not the network")

    monkeypatch.setattr(build_engine, "build", refuse_fp16)
    demo.build(Path("c"), None, Path("o"), gpu=("sm86",))
    assert asked[1] == {**asked[0], "precision": "fp32"} and asked[0]["gpu"] == ("sm86",)
    assert "fp16 is not the network; the demo builds fp32" in capsys.readouterr().out

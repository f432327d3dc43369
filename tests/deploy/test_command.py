"""The command as a person meets it: options, errors, exit codes, terminals, pipes, displays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import options
from deploy.options import Options
from medisseg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def parse(*words: object) -> Options:
    return options.parse([*map(str, words)])


def test_options_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "sources: [a.mp4, b.mp4]\nmodel: edge\nhold-off: 2\nbudget_ms: 80\nquality: false\nout: o\n"
    )
    chosen = parse("--config", config)
    assert chosen.sources == ("a.mp4", "b.mp4") and chosen.out == Path("o")
    assert (chosen.hold_off, chosen.budget_ms, chosen.quality) == (2, 80.0, False)
    chosen = parse("c.mp4", "--config", config, "--hold-off", 0, "--quality")
    assert (chosen.sources, chosen.hold_off, chosen.quality) == (("c.mp4",), 0, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: edge", "unknown key 'modle'; did you mean 'model'?"),
        ("hold_of: 3", "did you mean 'hold_off'?"),
        ("budget-m: 3", "did you mean 'budget_ms'?"),
        ("hold_off: soon", "hold_off is 'soon'; expected int"),
        ("quality: 1", "quality is 1; expected bool"),
        ("- a list", "holds list; expected option: value"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_configuration_is_answered_with_the_nearest(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse("v.mp4", "--model", "m", "--config", tmp_path / "run.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hold-off", 7], "--hold-off is 7"),
        (["--threshold", 1], "--threshold is 1"),
        (["--opacity", -1], "--opacity is -1"),
        (["--budget-ms", 0], "--budget-ms is 0.0; expected 1 or more"),
        (["--crf", 52], "--crf is 52"),
        (["--preset", "slowest"], "--preset is 'slowest'; expected one of ultrafast"),
        (["--window", "maybe"], "--window is 'maybe'; expected one of auto, on, off"),
        (["--input-size", "640"], "--input-size is '640'; expected HxW"),
        (["--config", "nothing.yaml"], "cannot be read"),
        (["--record", "overly"], "both, overlay, raw, none; did you mean overlay?"),
        (["--hold_off", 3], "--hold_off 3; did you mean --hold-off?"),
        (["--hold-off", "x"], "argument --hold-off: invalid int value: 'x'"),
        (["--serve", "127.0.0.1"], "--serve is '127.0.0.1'; expected HOST:PORT"),
        (["--serve", "8080", "--token", "short"], "--token has 5 characters; expected 12 to 200"),
        (["second.mp4", "--truth", "masks"], "--truth goes with one source"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(words: list[object], message: str) -> None:
    from deploy import run

    with pytest.raises(UserError) as error:
        run.main(["v.mp4", "--model", "m", *map(str, words)])
    assert message in str(error.value)


def test_nothing_to_run_is_answered_with_an_example() -> None:
    with pytest.raises(UserError, match=r"no source given; for example: medisseg run"):
        parse("--model", "m")
    with pytest.raises(UserError, match="no --model given"):
        parse("v.mp4")


def test_help_and_errors_from_any_folder(tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "deploy" / "run.py"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    helped = call("--help")
    assert helped.returncode == 0 and "rtsp://camera/stream" in helped.stdout
    assert "--hold-off INT" in helped.stdout
    wrong = call("nothing.mp4", "--model", "m", "--out", "run")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: nothing.mp4: no such file, folder or camera\n"
    assert not (tmp_path / "run").exists()


def test_a_missing_model_is_refused_before_anything_is_written(
    numbered: Path, tmp_path: Path
) -> None:
    from deploy import run

    with pytest.raises(UserError):
        run.main([str(numbered), "--model", "no-such-model", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_output_goes_into_a_closed_pipe(
    spawn: Any, lab: Any, numbered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    read, write = os.pipe()
    os.close(read)
    process = spawn(numbered, "--out", out, "--frames", 10, stdout=write)
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 141 and b"Traceback" not in errors
    lab.Run(out).check_accounts()


def test_frames_from_standard_input(spawn: Any, lab: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = b"".join(lab.numbered_frame(i, (240, 320)).tobytes() for i in range(12))
    process = spawn(
        "-", "--input-size", "240x320", "--out", out, "--no-quality", stdin=subprocess.PIPE
    )
    _, errors = process.communicate(data, timeout=60)
    assert process.returncode == 0, errors.decode()
    run = lab.Run(out)
    run.check_accounts()
    assert [lab.read_number(picture) for picture in run.video()] == [*range(12)]


def test_a_terminal_shows_the_accounts(spawn: Any, numbered: Path) -> None:
    import pty

    reader, writer = pty.openpty()
    process = spawn(
        numbered,
        "--realtime",
        "--frames",
        30,
        stderr=writer,
        stdout=writer,
        env={"TERM": "xterm-256color", "NO_COLOR": "1"},
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(reader)
    assert process.wait(30) == 0, shown.decode(errors="replace")
    assert b"in = processed + dropped + failed" in shown
    assert b"\x1b[3" not in shown  # NO_COLOR


def test_no_display_is_no_obstacle_unless_a_window_was_asked_for(
    fake: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy import runner

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    words = [numbered, "--model", "m", "--frames", 5, "--no-quality"]
    assert runner.run(parse(*words), fake.FakeEngine) == 0
    monkeypatch.setenv("DISPLAY", ":63")  # a display that is not there
    assert runner.run(parse(*words), fake.FakeEngine) == 0
    with pytest.raises(UserError, match="--window on: "):
        runner.run(parse(*words, "--window", "on"), fake.FakeEngine)


def test_a_fault_of_ours_ends_the_run_with_a_report_and_is_raised(
    play: Any, lab: Any, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults of a frame stay in that frame; one in the accounts themselves leaves none to keep."""
    from deploy.pipeline.accounting import FrameAccounting

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    for name in ("finish", "broke"):
        monkeypatch.setattr(FrameAccounting, name, broken)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        play(numbered)
    report = lab.Run(tmp_path / "run0").report
    assert report["ended"] == "error: ZeroDivisionError('a fault of ours')"


def test_duration_and_frames_end_a_run(play: Any, numbered: Path) -> None:
    assert play(numbered, "--frames", 7).report["frames"]["in"] == 7
    report = play(numbered, "--realtime", "--duration", 1).report
    assert report["ended"] == "--duration" and 10 <= report["frames"]["in"] <= 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay", "x", "--sped", "2"], "--sped 2; did you mean --speed?"),
        (["compare", "x"], "the following arguments are required: run_b"),
        (["chaos", "--josn"], "did you mean --json?"),
    ],
)
def test_the_other_commands_answer_in_one_line_too(words: list[str], message: str) -> None:
    from deploy import run

    with pytest.raises(UserError) as error:
        run.main(words)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_lost_gpu_ends_the_run_with_a_code_that_asks_for_a_new_start(
    play: Any, fake: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.engine import supervisor

    def fault(batch: np.ndarray) -> None:
        if len(engine.batches) == 5:
            raise RuntimeError("CUDA error: unspecified launch failure")

    engine = fake.FakeEngine(fault)
    monkeypatch.setattr(supervisor, "lost", lambda _: "CUDA error: unspecified launch failure")
    run = play(numbered, engine=lambda: engine, code=75)
    assert run.report["ended"] == "GPU lost" and run.report["frames"]["in"] >= 4
    run.check_accounts()

"""A run can be tied to its hour, its machine, its weights, its configuration and its operators."""

from __future__ import annotations

import csv
import hashlib
import json
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.audit import identity, model_digests
from medisseg.checkpoint import resolve


def test_a_report_says_when_where_and_with_what(play: Any, numbered: Path) -> None:
    before = datetime.now(timezone.utc)
    run = play(numbered, "--frames", 5, "--record", "none")
    report = run.report
    audit = report["audit"]
    started, ended = (
        datetime.fromisoformat(audit[k][:-1] + "+00:00") for k in ("started", "ended")
    )
    assert audit["started"].endswith("Z") and started <= ended <= datetime.now(timezone.utc)
    assert (before - started).total_seconds() < 0.001
    assert audit["host"] == socket.gethostname() and "UTC" in audit["time_zone"]
    text = json.dumps(report["options"], sort_keys=True)
    assert audit["configuration_sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_weights_are_named_by_their_digest() -> None:
    wanted = hashlib.sha256(resolve("edge-kvasir").read_bytes()).hexdigest()
    assert model_digests("edge-kvasir") == {"checkpoint": wanted}
    assert model_digests("no such model") == {}
    assert identity("edge-kvasir", {})["model_sha256"] == {"checkpoint": wanted}


def test_weights_that_are_replaced_during_a_run_are_not_named(
    fake: Any, numbered: Path, tmp_path: Path
) -> None:
    from deploy import options, runner

    model, out = tmp_path / "model.safetensors", tmp_path / "run"
    model.write_bytes(b"what was opened")
    words = [str(numbered), "--model", str(model), "--window", "off", "--out", str(out)]

    def opened() -> Any:
        model.write_bytes(b"what came later")
        return fake.FakeEngine()

    runner.run(options.parse([*words, "--frames", "3", "--record", "none"]), opened)
    audit = json.loads((out / "report.json").read_text())["audit"]
    wanted = hashlib.sha256(b"what was opened").hexdigest()
    assert audit["model_sha256"] == {"checkpoint": wanted}


def test_every_change_of_a_setting_is_written_down(
    fake: Any, numbered: Path, tmp_path: Path
) -> None:
    from websockets.sync.client import connect

    from deploy import options, runner
    from deploy.watch.page import serve

    words = [str(numbered), "--model", "fake", "--window", "off", "--no-quality"]
    chosen = options.parse([*words, "--out", str(tmp_path / "run"), "--record", "none"])

    def watched(*arguments: Any) -> Any:
        pipeline = runner.Pipeline(*arguments)
        live = pipeline.live
        with serve(live, "127.0.0.1:0") as page:
            address = f"ws://127.0.0.1:{page.port}/live"
            with connect(address, max_size=None, proxy=None) as browser:
                here = browser.socket.getsockname()[1]
                browser.send('{"set": {"threshold": 0.7, "opacity": 0.4}}')
                browser.send('{"set": {"threshold": 7}}')  # refused
                while live.controls.get().threshold != 0.7:
                    pass
        ports.append(here)
        live.controls.set(ai=False)
        return pipeline

    ports: list[int] = []
    assert runner.run(chosen, fake.FakeEngine, watched) == 0
    rows = list(csv.DictReader((tmp_path / "run/events.csv").open()))
    settings = [row for row in rows if row["event"] == "setting"]
    assert [row["detail"] for row in settings] == [
        f"threshold = 0.7 by 127.0.0.1:{ports[0]}",  # opacity was 0.4 before
        "ai = False by this machine",
    ]
    assert all(row["utc"].endswith("Z") and float(row["time_s"]) >= 0 for row in rows)

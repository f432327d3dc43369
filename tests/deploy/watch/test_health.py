"""What a monitor asks: /healthz, and alarms and a dashboard whose metrics exist."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from deploy.pipeline.live import Live
from deploy.pipeline.timing import Timing
from deploy.status import AI_OFF, LIVE, OFFLINE, STALE, Settings, StreamStatus, fault_of
from deploy.watch.page import serve
from deploy.watch.prometheus import prometheus_text

MONITORING = Path(__file__).resolve().parents[3] / "tools/monitoring"
OFF = Settings(ai=False)
STATES = {
    "segmented": (StreamStatus(0, "camera", LIVE), ""),
    "turned off": (StreamStatus(0, "camera", AI_OFF, "turned off", settings=OFF), ""),
    "engine away": (
        StreamStatus(1, "camera", AI_OFF, "engine away: grpc://rack"),
        "stream 1: AI-OFF engine away: grpc://rack",
    ),
    "no camera": (StreamStatus(0, "camera", OFFLINE, settings=OFF), "stream 0: OFFLINE"),
    "silence": (StreamStatus(0, "c", STALE, age_s=2), "stream 0: STALE picture is 2.0 s old"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_fault_is_what_a_person_must_look_at(name: str) -> None:
    status, fault = STATES[name]
    assert fault_of(status) == fault
    text = prometheus_text([status], [Timing()]).decode()
    value = float(bool(fault))
    assert f'medisseg_fault{{stream="{status.stream}"}} {value}' in text.splitlines()


def test_a_person_who_turns_it_off_raises_no_alarm() -> None:
    """The rule, read as it is written: both metrics are 1 for the same stream."""
    from prometheus_client.parser import text_string_to_metric_families

    (rule,) = [expr for expr in expressions()["alarms"] if "AI-OFF" in expr]
    form = r'\((\w+){state="(.+)"} == 1\) and on \(instance, stream\) \((\w+) == 1\)'
    metric, wanted, fault = re.fullmatch(form, rule).groups()
    for name, fires in (("turned off", False), ("engine away", True), ("segmented", False)):
        text = prometheus_text([STATES[name][0]], [Timing()]).decode()
        ones = {
            (sample.name, sample.labels.get("state"))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.value == 1
        }
        assert ({(metric, wanted), (fault, None)} <= ones) == fires


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_is_answered_by_the_page() -> None:
    live = Live(["one", "two"])
    with serve(live, "127.0.0.1:0") as page:
        url = f"http://127.0.0.1:{page.port}/healthz"
        for stream in (0, 1):
            live.update(StreamStatus(stream, "one", LIVE))
        assert ask(url) == (200, "ok\n")
        live.update(StreamStatus(1, "two", OFFLINE, "timed out"))
        assert ask(url) == (503, "stream 1: OFFLINE timed out\n")


def asked_for(text: str) -> set[str]:
    return set(re.findall(r"\b(?:medisseg|nv)_\w+", text)) - {"medisseg_run"}


def expressions() -> dict[str, list[str]]:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alarms.yaml").read_text())["groups"]
    return {
        "dashboard": [target["expr"] for panel in board["panels"] for target in panel["targets"]],
        "alarms": [rule["expr"] for group in rules for rule in group["rules"]],
    }


@pytest.mark.parametrize("name", ["dashboard", "alarms"])
def test_every_metric_that_is_asked_for_is_there(name: str) -> None:
    timing = Timing()
    text = prometheus_text([StreamStatus(0, "camera", LIVE)], [timing]).decode()
    given = set(re.findall(r"^(medisseg_\w+)", text, re.MULTILINE))
    ours = {m for e in expressions()[name] for m in asked_for(e) if m.startswith("medisseg")}
    assert len(ours) >= 5 and ours <= given
    labels = set(re.findall(r"(\w+)=~?!?\"", " ".join(expressions()[name])))
    assert labels <= {"state", "stage", "outcome", "job"}


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})
    assert all(panel["datasource"]["uid"] == "${source}" for panel in board["panels"])

"""What the dashboard and the alarms ask of a Triton server is what a real one gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).resolve().parents[2] / "tools/monitoring"


def test_the_servers_metrics_are_there(shared_server: Any) -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alarms.yaml").read_text())["groups"]
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules for rule in group["rules"]]
    wanted = {name for one in asked for name in re.findall(r"\bnv_\w+", one)}
    given = set(re.findall(r"^(nv_\w+)\{", shared_server.scrape(), re.MULTILINE))
    assert len(wanted) >= 6 and wanted <= given

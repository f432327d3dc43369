"""Container files: what goes into an image, and that what they mount is there."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS, MONITORING = ROOT / "tools/containers", ROOT / "tools/monitoring"


def mounts(service: str) -> dict[str, Path]:
    """The files of ours that a service of the rack mounts, by their place in it."""
    services = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
    parts = [volume.split(":") for volume in services[service]["volumes"]]
    return {inside: (CONTAINERS / ours).resolve() for ours, inside, _ in parts}


def test_an_image_holds_no_history_environment_or_recording() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv", ".triton", "build", "dist", "runs"} <= {*ignored}
    assert "wheels" not in ignored and "!" not in "".join(ignored)  # the Jetson's packages
    copied = [path for path in CONTAINERS.glob("*.Dockerfile") if "COPY . ." in path.read_text()]
    assert len(copied) == 2


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    files = mounts("grafana")
    assert all(path.is_file() for path in files.values())
    provisioning = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(files[f"{provisioning}/datasources/medisseg.yaml"].read_text())[
        "datasources"
    ]
    asked = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in asked
    (board,) = json.loads((MONITORING / "dashboard.json").read_text())["templating"]["list"]
    assert source["type"] == board["query"] and source["isDefault"]  # what ${source} becomes
    (provider,) = yaml.safe_load(files[f"{provisioning}/dashboards/medisseg.yaml"].read_text())[
        "providers"
    ]
    assert files[f"{provider['options']['path']}/medisseg.json"] == MONITORING / "dashboard.json"


def test_prometheus_finds_its_rules() -> None:
    files = mounts("prometheus")
    asked = yaml.safe_load(files["/etc/prometheus/prometheus.yml"].read_text())
    rules = {f"/etc/prometheus/{name}" for name in asked["rule_files"]}
    assert rules <= files.keys() and all(path.is_file() for path in files.values())

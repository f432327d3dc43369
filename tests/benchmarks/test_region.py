"""The queueing model gives what can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.region import Rooms, Server, check, most_rooms, simulate

FAST_LINK = {"link_gbit": 1e9, "own_ms": 0.0, "network_ms": 2.0}


def test_one_client_that_asks_again_at_once() -> None:
    made = simulate(Server("s", 0, 10, 0, 1), Rooms(1, fps=0, **FAST_LINK), 60)
    assert made["p50_ms"] == pytest.approx(12, abs=0.01) and made["fps"] == pytest.approx(
        83.3, 0.01
    )
    assert made["load"] == pytest.approx(10 / 12, abs=0.01) and made["lost"] == 0


def test_clients_share_a_server_that_is_full() -> None:
    """Each waits for all others: N x 10 ms; with batches of N all are answered together."""
    one_by_one = simulate(Server("s", 0, 10, 0, 1), Rooms(6, fps=0, **FAST_LINK), 60)
    assert one_by_one["p50_ms"] == pytest.approx(60, abs=0.1) and one_by_one["fps"] == 100
    together = simulate(Server("s", 8, 2, 0, 6), Rooms(6, fps=0, **FAST_LINK), 60)
    assert together["fps"] > 2 * one_by_one["fps"]


def test_a_frame_is_displaced_by_a_newer_one_and_never_queued() -> None:
    """A server of 100 ms and 25 frames a second: three of four frames are displaced."""
    made = simulate(Server("s", 100, 0, 0, 1), Rooms(1, fps=25, own_ms=0, network_ms=0), 120)
    assert made["fps"] == pytest.approx(10, abs=0.2) and made["lost"] == pytest.approx(
        0.6, abs=0.01
    )
    assert made["p99_ms"] < 100 + 2 * 40


def test_the_link_is_shared() -> None:
    """1 MB images on 1 Gbit/s: 8 ms each, so that 125 a second is the most."""
    rooms = Rooms(10, fps=25, image_kb=1000, link_gbit=1)
    made = simulate(Server("s", 0, 0.01, 0, 64), rooms, 60)
    assert made["fps"] == pytest.approx(125, rel=0.02) and made["lost"] > 0.4


def test_the_most_rooms() -> None:
    server = Server("s", 0, 4, 0, 1)  # 250 images a second are 10 rooms of 25
    assert most_rooms(server, Rooms(1, own_ms=0, network_ms=0)) in (9, 10)
    assert most_rooms(Server("s", 0, 120, 0, 1), Rooms(1)) == 0


def test_it_is_set_beside_what_was_measured(tmp_path: Path) -> None:
    rows = [{"table": "batches", "case": f"batch of {n}", "batch": n, "p50_ms": 5 + 3 * n,
             "sigma": 0.0} for n in (1, 2, 3, 4)]  # fmt: skip
    rows += [
        {"table": "one", "case": "gRPC", "added_ms": 1.0},
        {"table": "eight", "case": "8 clients, gRPC", "fps": 235.0, "p50_ms": 34.0},
    ]
    path = tmp_path / "serving.json"
    path.write_text(json.dumps({"rows": rows}))
    (row,) = check(path)
    assert row["fps"] == pytest.approx(4e3 / 17, rel=0.01)  # full batches of four, one on another
    assert row["p50_ms"] == pytest.approx(34, abs=0.5) and abs(row["off"]) < 0.01

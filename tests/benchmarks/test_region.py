"""The queueing model gives what can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.region import candidates, check, loss, most_rooms, table_of_rooms
from benchmarks.region_model import Rooms, Server, simulate, simulate_loss

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


def test_a_server_that_dies_takes_masks_for_as_long_as_its_rooms_need() -> None:
    """Three of six rooms, 25 frames a second, two seconds: 150 frames, one more or less a room."""
    server = Server("s", 0, 1, 0, 8)
    made = simulate_loss(server, Rooms(6, **FAST_LINK), away_s=2, seconds=20)
    assert abs(made["unmasked"] - 3 * 25 * 2) <= 3
    assert 2 <= made["no_mask_s"] < 2 + 3 * 0.04
    assert made["p50_ms"] < 2 + 6 and made["lost"] == 0  # network and at most all rooms together
    two = simulate_loss(server, Rooms(6, streams=2, **FAST_LINK), away_s=2, seconds=20)
    assert abs(two["unmasked"] - 2 * 3 * 25 * 2) <= 2 * 3


def test_what_is_under_way_is_lost_with_the_server() -> None:
    """Batches of 400 ms: each of two rooms has a request at work and a frame that waits."""
    slow, rooms = Server("s", 400, 0, 0, 8), Rooms(4, fps=25, own_ms=0, network_ms=0)
    assert simulate_loss(slow, rooms, away_s=0, seconds=20)["unmasked"] == 4
    # What the dead server worked on comes from nobody: a second away, and a batch of the other.
    one_each = Rooms(2, fps=25, own_ms=0, network_ms=0)
    assert simulate_loss(slow, one_each, away_s=1, seconds=20)["no_mask_s"] > 1.4


def test_the_server_that_is_left_is_full() -> None:
    """100 images a second: three rooms of 25 frames are carried, of eight one frame in two."""
    server = Server("s", 0, 10, 0, 1)
    three = simulate_loss(server, Rooms(3, **FAST_LINK), seconds=40)
    assert three["p99_ms"] < 100 and three["lost"] < 0.01
    eight = simulate_loss(server, Rooms(8, **FAST_LINK), seconds=40)
    assert eight["lost"] == pytest.approx(0.5, abs=0.02)  # 100 of 200


def test_the_h200_is_as_measured_and_every_other_gpu_is_a_range() -> None:
    made = {server.name: server for server in candidates()}
    assert len(made) == 7 and made["H200"].where == "measured"
    h200 = made["H200"]
    assert h200.fixed_ms + h200.each_ms == pytest.approx(2.52, abs=0.01)  # inference.json
    assert h200.fixed_ms + 4 * h200.each_ms == pytest.approx(5.69, abs=0.01)
    for name, bandwidth in (("RTX 6000 Ada", 960), ("L4", 300), ("AGX Orin 64 GB", 205)):
        fast, slow = made[f"{name}, fast"], made[f"{name}, slow"]
        assert slow.each_ms == pytest.approx(1.056 * 4800 / bandwidth)
        assert h200.each_ms <= fast.each_ms < slow.each_ms
        assert fast.each_ms >= 0.387 / bandwidth * 2e3 and "guess" in fast.where


def test_tables_have_one_stream_and_two(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("s", 0, 4, 0, 8, "by hand")  # 250 images a second
    monkeypatch.setattr("benchmarks.region.candidates", lambda: [server])
    rows = {(row["streams"], row["fps_each"]): row for row in table_of_rooms(5)}
    assert rows[1, 25.0]["rooms"] in (9, 10) and rows[1, 60.0]["rooms"] in (3, 4)
    assert rows[2, 25.0]["rooms"] in (4, 5)
    two = rows[2, 25.0]
    assert two["gbit_s"] == pytest.approx(two["rooms"] * 2 * 25 * 1048.5e3 * 8 / 1e9, abs=0.01)
    before, after = loss(5)
    assert before["within"] and before["fps"] == pytest.approx(150, abs=2)
    assert not after["within"] and after["lost"] == pytest.approx(1 - 250 / 300, abs=0.03)
    assert after["no_mask_s"] > 1

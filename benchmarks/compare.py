"""Compare a run of benchmarks.kernels with the committed one of the same device.

    python -m benchmarks.compare FOLDER/kernels.json [--baseline FILE] [--limit 5]

The baseline is the one below benchmarks/results whose device has the same name. A row is slower if
its median grew by more than the limit in percent and by more than the two runs' own spread, which
is the distance of their 95th percentiles from their medians. Exit code 1 if one of ours is slower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import show
from medisseg.errors import UserError, command

RESULTS = Path(__file__).resolve().parent / "results"
KEYS = ("op", "dtype", "shape", "mode", "provider")
LIMIT = 5.0  # percent

Row = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Return a results file.

    Raises:
        UserError: It is not one.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(whole["rows"], list) and isinstance(whole["machine"]["device"], str):
            return dict(whole)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no results file of benchmarks.kernels ({error!r})") from error
    raise UserError(f"{path} is no results file of benchmarks.kernels")


def baseline_of(new: dict[str, Any], results: Path = RESULTS) -> Path:
    """Return the committed results of the same device.

    Raises:
        UserError: There are none.
    """
    device = new["machine"]["device"]
    found = sorted(results.glob("*/kernels.json"))
    names = {path: read(path)["machine"]["device"] for path in found}
    for path, name in names.items():
        if name == device:
            return path
    known = ", ".join(names.values()) or "none"
    raise UserError(
        f"no baseline of {device!r} below {results}: there is {known}; commit this run there, or "
        "name one with --baseline"
    )


def compared(old: dict[str, Any], new: dict[str, Any], limit: float) -> list[Row]:
    """Return a row for each that both runs measured, with its change in percent and a verdict.

    Raises:
        UserError: Other devices, other clocks, or no row in common.
    """
    for what in ("device", "timing"):
        pair = [run["machine"].get(what) for run in (old, new)]
        if pair[0] != pair[1]:
            raise UserError(
                f"the baseline has {what} {pair[0]!r}, the new run {pair[1]!r}: not comparable; "
                "measure both with the same benchmarks.kernels on one device"
            )
    before = {tuple(row.get(key) for key in KEYS): row for row in old["rows"] if row.get("p50_ms")}
    found = []
    for row in new["rows"]:
        was = before.get(tuple(row.get(key) for key in KEYS))
        if was and row.get("p50_ms"):
            change = 100 * (row["p50_ms"] / was["p50_ms"] - 1)
            noise = max(limit, *(100 * (r["p95_ms"] / r["p50_ms"] - 1) for r in (was, row)))
            verdict = "slower" if change > noise else "faster" if change < -noise else "same"
            about = {key: row.get(key) for key in KEYS}
            times = {"before_ms": was["p50_ms"], "now_ms": row["p50_ms"]}
            rounded = {"change_percent": round(change, 1), "noise_percent": round(noise, 1)}
            found.append(about | times | rounded | {"verdict": verdict})
    if not found:
        raise UserError(
            "the two runs have no row in common; expected the same operators and shapes"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; 1 if one of ours is slower."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("new", type=Path, help="kernels.json of the new run")
    options.add_argument("--baseline", type=Path, help="default: the same device's below results")
    options.add_argument("--limit", type=float, default=LIMIT, help="percent (default: 5)")
    args = options.parse_args(argv)
    new = read(args.new)
    rows = compared(read(args.baseline or baseline_of(new)), new, args.limit)
    show("Kernels, against the baseline", rows)
    return int(any(row["verdict"] == "slower" and row["provider"] == "ours" for row in rows))


if __name__ == "__main__":
    command(main)

"""Where two runs of one video differ: ``medisseg run compare RUN_A RUN_B``.

Compares the networks' masks frame by frame (Dice; two empty masks agree fully), the alarms that
were shown and the latency, and writes a page with pictures of the frames that differ most.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.replay.recorded import Entry, Picture, RecordedRun
from medisseg.arguments import Parser
from medisseg.colors import BOTH, ONLY_A, ONLY_B
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.text import console, safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE = """example:
  medisseg run compare runs/exam-fp32 runs/exam-fp16 --out runs/fp32-fp16"""
SAME_TIME_S = 0.002
SAME_PICTURE = 12.0  # mean difference of two recordings of one frame, of 255, compressed anew
HELD_AGAINST = 5  # frames whose pictures are compared


@dataclass(frozen=True)
class FrameComparison:
    """One frame of both runs; areas in pixels."""

    stream: int
    frame: int
    time_s: float
    dice: float
    area_a: int
    area_b: int
    confidence_a: float
    confidence_b: float
    alarm_a: bool
    alarm_b: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the worst frames, write page, table and numbers."""
    parser = Parser(
        prog="medisseg run compare",
        description="Say where two runs of one video differ (two engines, two precisions).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_a", type=Path, help="folder of the first run")
    parser.add_argument("run_b", type=Path, help="folder of the second run")
    parser.add_argument("--out", type=Path, help="folder for page, table and numbers (beside B)")
    parser.add_argument("--worst", type=int, default=12, help="frames to list and to show (12)")
    args = parser.parse_args(argv)
    out = args.out or args.run_b.parent / f"compare-{args.run_a.name}-{args.run_b.name}"
    with closing(RecordedRun(args.run_a)) as a, closing(RecordedRun(args.run_b)) as b:
        pairs = matched(a, b)
        check_pictures(a, b, pairs)
        rows = [row for first, second in pairs if (row := compared(a, b, first, second))]
        if not rows:
            raise UserError("no frame was segmented in both runs; there is nothing to compare")
        result = summarize(a, b, pairs, rows)
        worst = sorted(rows, key=lambda row: (row.dice, row.frame))[: args.worst]
        result["worst"] = [asdict(row) for row in worst]
        print_table(result, worst)
        write(out, result, rows, [(row, *pictures(a, b, row, pairs)) for row in worst])
    print(f"page: {out / 'index.html'}")
    return 0


def matched(a: RecordedRun, b: RecordedRun) -> list[tuple[Entry, Entry]]:
    """Return the frames that both runs have, in order of time.

    Raises:
        UserError: They are not runs of the same frames.
    """
    if a.streams != b.streams:
        raise UserError(f"{a.folder} has {a.streams} stream(s), {b.folder} has {b.streams}")
    others = {(entry.stream, entry.id): entry for entry in b.entries}
    pairs = []
    for entry in a.entries:
        other = others.get((entry.stream, entry.id))
        if other is None:
            continue
        if abs(entry.time_s - other.time_s) > SAME_TIME_S:
            raise UserError(
                f"different sources: frame {entry.id} came at {entry.time_s:.3f} s in {a.folder} "
                f"and at {other.time_s:.3f} s in {b.folder}; compare runs of the same file"
            )
        pairs.append((entry, other))
    return pairs


def check_pictures(a: RecordedRun, b: RecordedRun, pairs: list[tuple[Entry, Entry]]) -> None:
    """Check on a few frames that the two recordings show the same pictures.

    Raises:
        UserError: They show different things, or cannot be told to be the same.
    """
    both = [(first, second) for first, second in pairs if a.recorded(first) and b.recorded(second)]
    if not both:
        named = [[Path(run.source(i)).name for i in range(run.streams)] for run in (a, b)]
        if named[0] != named[1]:
            raise UserError(f"different sources: {', '.join(named[0])} and {', '.join(named[1])}")
        return
    for index in np.linspace(0, len(both) - 1, min(HELD_AGAINST, len(both))).astype(int):
        first, second = both[index]
        picture, other = a.picture(first), b.picture(second)
        if picture is None or other is None:
            continue
        same = picture.shape == other.shape
        if not same or np.abs(picture.astype(np.int16) - other).mean() > SAME_PICTURE:
            raise UserError(
                f"different sources: frame {first.id} shows another picture in {a.folder} "
                f"({a.source(first.stream)}) than in {b.folder} ({b.source(second.stream)})"
            )


def compared(a: RecordedRun, b: RecordedRun, first: Entry, second: Entry) -> FrameComparison | None:
    """Compare one frame; None where one run did not segment it."""
    from kernels.frames import decode_rle
    from medisseg.evaluation.metrics import dice

    one, two = a.line(first), b.line(second)
    if not one.get("rle") or not two.get("rle"):
        return None
    with a.using(first), b.using(second):
        same = one["rle"] == two["rle"]
        value = 1.0 if same else dice(decode_rle(one["rle"]) > 0, decode_rle(two["rle"]) > 0)
        return FrameComparison(
            first.stream,
            first.id,
            first.time_s,
            float(value),
            int(one["area"]),
            int(two["area"]),
            float(one["confidence"]),
            float(two["confidence"]),
            bool(one["alarm"]),
            bool(two["alarm"]),
        )


def summarize(
    a: RecordedRun, b: RecordedRun, pairs: list[tuple[Entry, Entry]], rows: list[FrameComparison]
) -> dict[str, Any]:
    """Return the numbers of a comparison."""
    values = np.array([row.dice for row in rows])
    return {
        "a": described(a),
        "b": described(b),
        "frames": {
            "compared": len(rows),
            "not_segmented_in_one": len(pairs) - len(rows),
            "only_in_a": len(a.entries) - len(pairs),
            "only_in_b": len(b.entries) - len(pairs),
        },
        "dice": {
            "mean": float(values.mean()),
            "min": float(values.min()),
            **{f"p{p}": float(np.percentile(values, p, method="inverted_cdf")) for p in (1, 5, 50)},
            "identical_masks": int((values == 1).sum()),
        },
        "alarms": {
            "both": sum(row.alarm_a and row.alarm_b for row in rows),
            "only_a": sum(row.alarm_a and not row.alarm_b for row in rows),
            "only_b": sum(row.alarm_b and not row.alarm_a for row in rows),
        },
        "confidence_difference_mean": float(
            np.mean([abs(row.confidence_a - row.confidence_b) for row in rows])
        ),
    }


def described(run: RecordedRun) -> dict[str, Any]:
    """Return folder, sources, engine and latency (ms) of a run, from its report."""
    times = run.report.get("latency_ms", {})
    return {
        "run": str(run.folder),
        "source": [run.source(i) for i in range(run.streams)],
        "backend": run.report.get("backend"),
        "engine": run.report.get("engine"),
        "latency_p50_ms": times.get("p50"),
        "latency_p99_ms": times.get("p99"),
    }


def print_table(result: dict[str, Any], worst: list[FrameComparison]) -> None:
    """Print the numbers and the frames that differ most."""
    from rich.table import Table

    for label, value in facts(result):
        print(f"{label:30s} {safe(value)}")
    table = Table(title="frames that differ most")
    for name in ("stream", "frame", "seconds", "Dice", "area A", "area B", "alarm A", "alarm B"):
        table.add_column(name, justify="right")
    for row in worst:
        table.add_row(
            str(row.stream + 1),
            str(row.frame),
            f"{row.time_s:.2f}",
            f"{row.dice:.4f}",
            str(row.area_a),
            str(row.area_b),
            *("on" if alarm else "" for alarm in (row.alarm_a, row.alarm_b)),
        )
    console().print(table)


def facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers to print as (label, value)."""
    frames, dice, alarms = result["frames"], result["dice"], result["alarms"]
    shown = [(f"engine {key.upper()}", str(result[key]["engine"])) for key in ("a", "b")]
    shown += [
        ("frames compared", f"{frames['compared']} ({dice['identical_masks']} masks identical)"),
        ("not comparable", f"{frames['not_segmented_in_one']} not segmented in one run"),
        ("only in A / only in B", f"{frames['only_in_a']} / {frames['only_in_b']}"),
        ("Dice mean / p5 / p1 / min", " / ".join(f"{dice[k]:.4f}" for k in DICE_KEYS)),
        ("alarm in both / only A / only B", " / ".join(str(alarms[k]) for k in ALARM_KEYS)),
    ]
    if result["a"]["latency_p50_ms"] is not None and result["b"]["latency_p50_ms"] is not None:
        times = (f"{result[key]['latency_p50_ms']:.1f}" for key in ("a", "b"))
        shown.append(("latency p50 A / B, ms", " / ".join(times)))
    return shown


DICE_KEYS = ("mean", "p5", "p1", "min")
ALARM_KEYS = ("both", "only_a", "only_b")


def pictures(
    a: RecordedRun, b: RecordedRun, row: FrameComparison, pairs: list[tuple[Entry, Entry]]
) -> tuple[Picture, Picture]:
    """Return a frame uint8 RGB [H, W, 3] as recorded (else black), and with both masks on it."""
    from kernels.frames import decode_rle

    first, second = next(p for p in pairs if (p[0].stream, p[0].id) == (row.stream, row.frame))
    one, two = (decode_rle(run.line(entry)["rle"]) > 0 for run, entry in ((a, first), (b, second)))
    plain = a.picture(first)
    plain = b.picture(second) if plain is None else plain
    plain = np.zeros((*one.shape, 3), np.uint8) if plain is None else plain
    marked = (plain * 0.6).astype(np.uint8)
    for mask, color in ((one & two, BOTH), (one & ~two, ONLY_A), (two & ~one, ONLY_B)):
        marked[mask] = (0.45 * plain[mask] + 0.55 * np.array(color)).astype(np.uint8)
    return plain, marked


def write(
    out: Path,
    result: dict[str, Any],
    rows: list[FrameComparison],
    worst: list[tuple[FrameComparison, Picture, Picture]],
) -> None:
    """Write ``index.html``, ``compare.json`` and ``frames.csv`` into a folder."""
    from medisseg.evaluation.report import Page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --out {out} ({error.strerror})") from error
    with replacing(out / "compare.json") as tmp_path:
        tmp_path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    with replacing(out / "frames.csv") as tmp_path, tmp_path.open("w", newline="") as file:
        table = csv.DictWriter(file, asdict(rows[0]))
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
    page = Page("Two runs compared", f"A: {result['a']['run']}   B: {result['b']['run']}")
    page.table(["what", "found"], facts(result))
    page.figure(chart(rows), "Dice between the masks of A and B, frame by frame")
    page.heading("Frames that differ most")
    page.keys({"both": BOTH, "only A": ONLY_A, "only B": ONLY_B})
    shown = []
    for row, plain, marked in worst:
        shown += [
            (plain, f"frame {row.frame}, {row.time_s:.2f} s"),
            (marked, f"Dice {row.dice:.4f}, area {row.area_a} and {row.area_b} pixels"),
        ]
    page.images(shown)
    page.save(out / "index.html")


def chart(rows: list[FrameComparison]) -> Figure:
    """Draw the Dice between both runs' masks over the video's seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes = figure.subplots()
    for stream in sorted({row.stream for row in rows}):
        own = [row for row in rows if row.stream == stream]
        axes.plot(
            [r.time_s for r in own], [r.dice for r in own], ".", ms=2.5, label=str(stream + 1)
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("Dice")
    least = min(row.dice for row in rows)  # two good engines differ by little
    axes.set_ylim(1.06 * least - 0.06 - 1e-3, 1 + 0.05 * (1 - least) + 1e-3)
    if len({row.stream for row in rows}) > 1:
        axes.legend(title="stream")
    return figure

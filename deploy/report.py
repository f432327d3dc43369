"""The end of a run: ``report.json``, ``report.html``, and a few lines on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medisseg
from deploy.pipeline.state import OUTCOMES
from deploy.pipeline.stream import Stream
from deploy.pipeline.timing import Histogram
from medisseg.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deploy.engine.supervisor import EngineSupervisor
    from deploy.options import Options
    from deploy.outputs.score import VideoScore

FROC_TEXT = "lesions found against false regions a frame, over thresholds; the square is 0.5"


def summarize(
    streams: list[Stream],
    supervisor: EngineSupervisor,
    options: Options,
    ended: str,
    audit: dict[str, object],
) -> dict[str, Any]:
    """Return the report of a run; ``ended`` says why it ended, ``audit`` where and with what."""
    first = streams[0]
    parts = [report_of(stream) for stream in streams]
    latency, warm_up, idle = Histogram(), Histogram(), Histogram()
    for stream in streams:
        latency.merge(stream.timing.latency)
        warm_up.merge(stream.timing.warm_up)
        idle.merge(stream.timing.after_idle)
    return {
        "frames": {key: sum(part["frames"][key] for part in parts) for key in ("in", *OUTCOMES)},
        "latency_ms": (latency if latency.count else warm_up).summary(),
        "latency_warm_up_ms": warm_up.summary(),
        "latency_after_idle_ms": idle.summary(),
        "fps": round(aggregate_fps(streams), 3),
        "backend": supervisor.backend,
        "engine": supervisor.name,
        "model": options.model,
        "classes": [label.name for label in supervisor.labels],
        "ended": ended,
        "state_changes": [
            {"stream": stream.index, **change}
            for stream in streams
            for change in stream.state.changes
        ],
        "engine_restarts": supervisor.restarts,
        **(first.score.summary() if first.score else {}),
        "audit": audit,
        "streams": parts,
        "options": options.to_dict(),
        "version": medisseg.__version__,
    }


def report_of(stream: Stream) -> dict[str, Any]:
    """Return one stream's part of the report."""
    frames = stream.counter.snapshot()
    return {
        "source": stream.source.name,
        "frames": frames,
        "latency_ms": stream.timing.latency_summary(),
        "stages_ms": {name: times.summary() for name, times in stream.timing.stages.items()},
        "over_budget": stream.timing.over_budget,
        "alarms": stream.alarms_on,
        "quality": stream.quality,
        "state_changes": stream.state.changed,
        "picture": stream.last.place.to_list() if stream.last and stream.last.place else None,
        "warnings": stream.warnings,
        "notes": stream.source.notes.texts,
        "stopped": list(stream.alarms()),
        "overlay": stream.overlay.to_list() if stream.overlay else [],
        "raw": stream.raw.to_list() if stream.raw else [],
        "raw_missed": stream.raw_missed,
    }


def aggregate_fps(streams: list[Stream]) -> float:
    """Return shown frames a second over all streams, from first arrival to last picture."""
    shown = [stream for stream in streams if stream.first_shown is not None]
    if not shown:
        return 0.0
    seconds = max(s.last_shown for s in shown) - min(s.first_shown or 0.0 for s in shown)
    count = sum(s.timing.latency.count + s.timing.warm_up.count for s in shown)
    return (count + sum(s.timing.after_idle.count for s in shown)) / max(seconds, 1e-9)


def write(folder: Path, report: dict[str, Any], streams: list[Stream]) -> None:
    """Write ``report.json`` and ``report.html`` into a run's folder."""
    with replacing(folder / "report.json") as tmp_path:
        tmp_path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", "utf-8")
    from medisseg.evaluation.report import Page

    page = Page("Video run", "Not a medical device: for research and engineering only.")
    page.tiles(dict(rows(report)))
    if len(labels := streams[0].labels) > 1:
        page.heading("Classes").keys({label.name: label.color for label in labels})
    for stream, part in zip(streams, report["streams"], strict=True):
        page.heading(part["source"])
        page.table(
            ["stage", "frames", "mean ms", "p50", "p90", "p95", "p99", "p99.9", "max"],
            [table_row(name, summary) for name, summary in stages(part).items()],
        )
        if stream.timing.latency.count:
            figure = histogram(stream.timing.latency)
            page.figure(figure, "latency from arrival to shown, every frame after the warm-up")
        if stream.score is not None and stream.score.raw:
            page.figure(write_froc(stream.score, folder / "froc.png"), FROC_TEXT)
        facts = {
            "endoscopic picture": place(part["picture"]),
            "quality gate": part["quality"] or "every frame good",
            "alarms shown": part["alarms"],
            "warnings": part["warnings"] or "none",
            "notes": "; ".join(part["notes"]) or "none",
            "recording": ", ".join(part["stopped"]) or "complete",
        }
        page.table(["what", "found"], [[key, text(value)] for key, value in facts.items()])
    page.heading("Changes of state")
    page.table(
        ["seconds", "stream", "from", "to", "reason"],
        [
            [change["time_s"], change["stream"], change["from"], change["to"], change["reason"]]
            for change in report["state_changes"][:200]
        ],
    )
    page.save(folder / "report.html")


def write_froc(score: VideoScore, path: Path) -> Figure:
    """Draw lesions found against false regions a frame, as PNG too."""
    from medisseg.evaluation.detection import froc

    figure = froc(score.sweeps())
    with replacing(path) as tmp_path:
        figure.savefig(tmp_path, dpi=110, format="png")
    return figure


def place(picture: list[int] | None) -> str:
    """Return position and size of the endoscopic picture at the end, in pixels, as text."""
    if picture is None:
        return "no frame was shown"
    return "{2} x {3} pixels, {0} from the left, {1} from the top".format(*picture)


def stages(part: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of every stage, and from arrival to shown, by name."""
    return {**part["stages_ms"], "arrival to shown": part["latency_ms"]}


def table_row(name: str, summary: dict[str, float]) -> list[object]:
    """Return a table row of milliseconds; dashes where nothing was measured."""
    keys = ("count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max")
    return [name, *(summary.get(key) for key in keys)]


def histogram(times: Histogram) -> Figure:
    """Draw a histogram of milliseconds with logarithmic axes, without an upper limit."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    edges, counts = times.edges()
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    # 400, not 4 x 10^2; all nine digits of a decade where the times span little of one.
    narrow = edges[-1] / edges[0] < 12
    digits = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if narrow else (1, 2, 5)
    axes.xaxis.set_major_locator(LogLocator(subs=digits))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("frames")
    return figure


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers to print as (label, value)."""
    frames, latency = report["frames"], report["latency_ms"]
    counted = "{in} = {processed} + {dropped} + {failed}".format(**frames)
    shown = [
        ("in = processed + dropped + failed", counted),
        ("frames a second", f"{report['fps']:.1f}"),
        (
            "latency p50 / p99 / max, ms",
            " / ".join(f"{latency.get(k, 0):.1f}" for k in ("p50", "p99", "max")),
        ),
        ("engine", report["engine"]),
    ]
    if report.get("dice_video") is not None:
        shown.append(("Dice", f"{report['dice_video']:.3f}"))
        shown.append(("Dice of what the hold-off shows", f"{report['dice_video_shown']:.3f}"))
        regions, alarms = report["detection"], report["alarms_against_truth"]
        shown.append(("lesions found, frame by frame", "{found} of {lesions}".format(**regions)))
        false = regions["by_least_area"]["0.0005"]["false_regions_per_frame"]
        shown.append(("false regions a frame, of 0.05 % of it or more", f"{false:.3f}"))
        wait = alarms["median_seconds_to_first_alarm"]
        often = alarms["false_alarms_per_minute"]
        appeared = f"{alarms['alarmed']} of {alarms['appearances']} appearances"
        soon = f", after {wait:.2f} s (median)" if wait is not None else ""
        shown.append(("lesions alarmed at, with the hold-off", appeared + soon))
        if often is not None:
            shown.append(("false alarms a minute, with the hold-off", f"{often:.1f}"))
    return shown


def text(value: object) -> str:
    """Return a count, a word, or counts by name as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    return str(value)

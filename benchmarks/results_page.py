"""The text of ``docs/measurements/results.md``: a table a data set or study, tests below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.paper_tables import paper_tables, table
from benchmarks.summaries import PROTOCOLS, Run
from medisseg.evaluation.metrics import paired_test

PAPER = Path(__file__).with_name("paper.yaml")
HEAD = """# Results

Written by `python -m benchmarks.results` from the summaries in `benchmarks/results/runs/`; edit
those, not this page.

Per image, then averaged; percent, at the network's resolution unless a column says otherwise; HD95
in pixels. One seed: the bootstrap 95 % interval over the images stands in brackets. Several seeds:
mean ± standard deviation over the seeds. ECE is the expected calibration error. "Paper" is what
Med-DisSeg's authors report for the row, difference is ours minus theirs in points of mIoU. A
schedule fitted to minutes reaches its lowest rate as they end, however few epochs were done.

Protocols:

"""
COLUMNS = (
    *("network", "protocol", "seeds", "images", "mIoU", "mDSC", "recall", "precision", "HD95"),
    *("boundary IoU", "ECE", "mDSC at image size", "paper mIoU / mDSC", "difference"),
)
RECIPE = (
    *("network", "protocol", "loss", "starts from", "optimiser", "schedule"),
    "reported images measured",
)
FRACTIONS = ("miou", "mdsc", "recall", "precision")


def page(runs: Sequence[Run]) -> str:
    """Return the whole page; the same summaries always give the same text."""
    paper = yaml.safe_load(PAPER.read_text())
    parts = [HEAD + "\n".join(f"- **{key}**: {text}." for key, text in PROTOCOLS.items())]
    if not runs:
        parts.append("No run has been added yet.")
    for title in sorted({run.about["table"] for run in runs}, key=lambda t: _order(t, paper)):
        chosen = [run for run in runs if run.about["table"] == title]
        parts.append(section(title, chosen, paper.get(title, {})))
    return "\n\n".join([*parts, paper_tables(runs, paper)]) + "\n"


def _order(title: str, paper: dict[str, object]) -> tuple[int, str]:
    known = list(paper)
    return (known.index(title) if title in known else len(known), title)


def section(title: str, runs: Sequence[Run], paper: dict[str, list[float]]) -> str:
    """Return one table with its tests, notes and links."""
    rows: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    lines = [_row(seeds, paper) for seeds in rows.values()]
    parts = [f"## {title}", table(COLUMNS, lines)]
    parts += ["What each run was:", table(RECIPE, [recipe(seeds) for seeds in rows.values()])]
    if tests := [line for seeds in rows.values() if (line := _test(seeds, rows))]:
        headers = ["variant", "against", "Dice, points", "95 % interval", "p", "better / worse"]
        text = "Paired test (Wilcoxon signed-rank) on each image's Dice, mean of the common seeds:"
        parts += [text, table(headers, tests)]
    if collapse := [line for seeds in rows.values() if (line := _collapse(seeds))]:
        headers = ["variant", "feature", "effective rank", "uniformity", "mean cosine"]
        parts += ["Collapse of the features (mean over the seeds):", table(headers, collapse)]
    notes = dict.fromkeys(run.about["note"] for run in runs if run.about.get("note"))
    parts += list(notes)
    links = ", ".join(f"[{run.name}](../../benchmarks/results/runs/{run.name})" for run in runs)
    return "\n\n".join([*parts, f"Summaries: {links}."])


def recipe(seeds: Sequence[Run]) -> list[str]:
    """Return what a row's runs were, from their whole configurations."""
    run = seeds[0]
    config, stage = run.config, run.config["stage2"]
    return [
        run.about["label"],
        run.about["protocol"],
        _loss(config),
        _start(config),
        f"{stage['optimizer']}, lr {stage['lr']:g}, batch {stage['batch']}"
        + (f", EMA {stage['ema']:g}" if stage["ema"] else "")
        + (f", clipped at {stage['clip']:g}" if stage["clip"] else ""),
        " / ".join(dict.fromkeys(map(_schedule, seeds))),
        " / ".join(dict.fromkeys(map(_looks, seeds))),
    ]


def _schedule(run: Run) -> str:
    """Return the last stage's schedule with the epochs that both stages did."""
    config, stage = run.config, run.config["stage2"]
    budget = config.get("budget_minutes")
    fitted = f" fitted to {budget:.3g} minutes" if budget else ""
    most = "at most " if budget else ""
    text = f"{stage['schedule']}{fitted}; {run.epochs} of {most}{stage['epochs']} epochs"
    if 1 not in config["stages"]:
        return text
    first = config["stage1"]["epochs"]
    done = run.about.get("stage1_epochs", "a number not recorded" if budget else first)
    return f"{text}, after {done} of {most}{first} in stage 1"


def _looks(run: Run) -> str:
    """Return how often the images that are reported had been measured in the end."""
    if looks := run.about.get("looks"):
        return {1: "once"}.get(looks, f"{looks} times")
    if run.reported and run.config["split"]["validation"] == run.reported:
        return f"at least {run.validations + 1} times, with stage 2's validations"
    return "not recorded"


def _loss(config: dict[str, Any]) -> str:
    loss: dict[str, object] = config["loss"]
    weights = loss.get("dispersive")
    if weights is None and not str(config["preset"]).startswith(("medisseg", "edge")):
        return "no dispersive loss"  # others were published without
    if isinstance(weights, list) and not any(weights):
        return "no dispersive loss"
    if loss["variant"] == "published":
        return "released dispersive loss (a constant, no gradient)"
    form = "unit length" if loss.get("normalize") == "unit" else "features as they are"
    text = f"{loss['variant']}, {loss['granularity']}, {loss['placement']}, {form}"
    return f"{text}, lambda {weights[0]:g} / {weights[1]:g}" if isinstance(weights, list) else text


def _start(config: dict[str, object]) -> str:
    if config.get("start_from"):
        return f"{config['start_from']} (whole network)"
    for key in ("stage_one", "encoder_weights"):
        if config.get(key):
            return f"{config[key]} (encoder)"
    return "random weights"


def _row(seeds: Sequence[Run], paper: dict[str, list[float]]) -> list[str]:
    first = seeds[0]
    reported = paper.get(first.about.get("paper", first.about["label"]))
    ours = 100 * mean(run.metrics["miou"] for run in seeds)
    return [
        first.about["label"],
        first.about["protocol"],
        str(len(seeds)),
        str(first.metrics["images"]),
        *(_spread(seeds, key) for key in FRACTIONS),
        _spread(seeds, "hd95", 1),
        _spread(seeds, "boundary_iou"),
        _spread(seeds, "calibration_error"),
        _spread(seeds, "mdsc", native=True),
        _pair(reported) if reported else "–",
        f"{ours - reported[0]:+.1f}" if reported else "–",
    ]


def _spread(seeds: Sequence[Run], key: str, scale: float = 100, native: bool = False) -> str:
    found = [run.metrics["native"] if native else run.metrics for run in seeds]
    values = [scale * averages[key] for averages in found]
    if len(values) > 1:
        return f"{mean(values):.1f} ± {stdev(values):.1f}"
    low, high = (scale * side for side in found[0]["intervals"][key])
    return f"{values[0]:.1f} ({low:.1f} to {high:.1f})"


def _pair(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values[:2])


def _test(seeds: Sequence[Run], rows: dict[tuple[str, str, str], list[Run]]) -> list[str] | None:
    title, label, protocol = seeds[0].row
    against = seeds[0].about.get("against")
    others = rows.get((title, str(against), protocol))
    if not against or not others or against == label:
        return None
    one, two = _common_seeds(others, seeds)
    images = sorted(set.intersection(*(set(run.dice) for run in (*one, *two))))
    if not images:
        return None
    reference, variant = (
        [mean(run.dice[image] for run in group) for image in images] for group in (one, two)
    )
    got = paired_test(reference, variant)
    points = [100 * got[key] for key in ("difference", "low", "high")]
    return [
        label,
        against,
        f"{points[0]:+.2f}",
        f"{points[1]:+.2f} to {points[2]:+.2f}",
        f"{got['p_value']:.2g}",
        f"{got['better']:.0f} / {got['worse']:.0f} of {len(images)}",
    ]


def _common_seeds(one: Sequence[Run], two: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the runs of the seeds that both have; all of them when the seeds tell nothing."""
    common = {r.config.get("seed") for r in one} & {r.config.get("seed") for r in two}
    picked = [[r for r in group if r.config.get("seed") in common] for group in (one, two)]
    return (picked[0], picked[1]) if common else (list(one), list(two))


def _collapse(seeds: Sequence[Run]) -> list[str] | None:
    found = [run.collapse for run in seeds if run.collapse]
    if not found:
        return None
    measured = [row["models"][0]["image"] for row in found]
    names = ("effective_rank", "uniformity", "mean_cosine")
    numbers = [f"{mean(values[name] for values in measured):.2f}" for name in names]
    return [seeds[0].about["label"], f"{found[0]['placement']}, image", *numbers]

"""The paper's Tables 1, 2 and 4 with every row quoted, our rows below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks.summaries import Run

METRICS = {"mIoU": "miou", "mDSC": "mdsc", "recall": "recall", "precision": "precision"}
TABLES = {
    "Table 1: polyps and glands": (("Kvasir-Sessile", "Kvasir-SEG", "GlaS"), 4),
    "Table 2: skin lesions": (("ISIC-2016", "ISIC-2017"), 2),
}
HEAD = """## The paper's tables, and ours beside

Percent. Rows of other names are quoted from the paper, as the tables in its authors' release show
them; their protocol chooses the epoch on the images that are reported, ours say theirs. A dash: we
did not run it."""
ORGANS = (
    "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach",
)  # fmt: skip
SYNAPSE = """Dice of whole volumes, mean of the organs first. The authors' release has no file
with this table; the paper's own row is all of it that we know. Not run by us: the set asks for a
registration of its own. A row of ours would come from `medisseg train synapse` and
`medisseg evaluate`, which scores whole volumes (Dice and HD95 in millimetres by organ)."""


def paper_tables(runs: Sequence[Run], paper: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the section of the results page; a row of ours has the means over its seeds."""
    parts = [HEAD]
    for title, (sets, count) in TABLES.items():
        columns = list(METRICS)[:count]
        headers = ["method", *(f"{name} {metric}" for name in sets for metric in columns)]
        quoted = dict.fromkeys(method for name in sets for method in paper[name])
        lines = [
            [method, *(cell for name in sets for cell in _quoted(paper[name].get(method), count))]
            for method in quoted
        ]
        lines += _ours(runs, sets, columns)
        parts += [f"### {title}", table(headers, lines)]
    synapse = [[method, *_quoted(row, len(row))] for method, row in paper["Synapse"].items()]
    synapse.append(["**ours: not run**", *["–"] * (1 + len(ORGANS))])
    parts += ["### Table 4: Synapse multi-organ CT", table(["method", "mDSC", *ORGANS], synapse)]
    return "\n\n".join([*parts, SYNAPSE])


def _quoted(values: Sequence[float] | None, count: int) -> list[str]:
    return [f"{value:.1f}" for value in values[:count]] if values else ["–"] * count


def _ours(runs: Sequence[Run], sets: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
    rows: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        name, label, protocol = run.row
        if name in sets:
            rows.setdefault((label, protocol), {}).setdefault(name, []).append(run)
    if not rows:
        return [["**ours: not run**", *["–"] * (len(sets) * len(columns))]]
    return [
        [
            f"**ours: {label}** ({protocol})",
            *(
                f"{100 * mean(run.metrics[METRICS[key]] for run in found[name]):.1f}"
                if name in found
                else "–"
                for name in sets
                for key in columns
            ),
        ]
        for (label, protocol), found in rows.items()
    ]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [list(headers), ["---"] * len(headers), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )

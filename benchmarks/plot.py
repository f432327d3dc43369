"""Draw benchmarks/kernels.py's results: percent of the device's bound, a bar for each provider.

python -m benchmarks.plot FOLDER/kernels.json [OUT.png]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from medisseg.errors import UserError, command
from medisseg.files import replacing

COLORS = {
    "eager": "#8c8c8c",
    "eager, autocast": "#bdbdbd",
    "torch.compile": "#4477aa",
    "convolution": "#ccbb44",
    "ours": "#228833",
}


def bars(source: Path, target: Path) -> None:
    """Write a PNG of two panels, forward and backward; rows without a rate are left out."""
    from matplotlib.figure import Figure

    whole = json.loads(Path(source).read_text(encoding="utf-8"))
    rows = [row for row in whole["rows"] if row.get("percent_of_bound") is not None]
    cases = list(dict.fromkeys((row["op"], row["shape"], row["dtype"]) for row in rows))
    figure = Figure(figsize=(11, 1.6 + 0.62 * max(len(cases), 1)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, mode in zip(panels, ("forward", "backward"), strict=True):
        names = [name for name in COLORS if any(row["provider"] == name for row in rows)]
        for index, name in enumerate(names):
            chosen = [row for row in rows if row["provider"] == name and row["mode"] == mode]
            places = [cases.index((r["op"], r["shape"], r["dtype"])) for r in chosen]
            height = 0.8 / len(names)
            drawn = panel.barh(
                [place + (index - (len(names) - 1) / 2) * height for place in places],
                [row["percent_of_bound"] for row in chosen],
                height,
                label=name,
                color=COLORS[name],
            )
            panel.bar_label(drawn, [f"{r['p50_ms']:.3g} ms" for r in chosen], padding=2, size=6)
        panel.set_title(mode)
        panel.set_xlabel("percent of the bound")
        panel.margins(x=0.15)
    panels[0].set_yticks(range(len(cases)), ["\n".join((a, f"{b}, {c}")) for a, b, c in cases])
    panels[0].tick_params(axis="y", labelsize=7)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"{whole['machine']['device']}, {whole['machine']['date']} UTC", size=10)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one file."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not 1 <= len(words) <= 2 or not Path(words[0]).is_file():
        raise UserError("usage: python -m benchmarks.plot FOLDER/kernels.json [OUT.png]")
    source = Path(words[0])
    bars(source, Path(words[1]) if len(words) == 2 else source.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    command(main)

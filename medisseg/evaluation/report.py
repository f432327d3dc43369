"""One page, one file: a self-contained HTML report that opens anywhere, offline, and prints.

Everything is inside: styles, charts (SVG, in the page's own ink, so they follow light and dark) and
pictures (as data). The page forbids itself to load anything from elsewhere.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medisseg.files import replacing
from medisseg.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1>
"""


@dataclass(frozen=True)
class Key:
    """Text behind a square of a colour, RGB in [0, 255]."""

    text: str
    color: tuple[int, int, int]


class Page:
    """A report, written from top to bottom; every method returns the page, so calls can be chained.

    All text is escaped: file names and labels may hold anything.

    Example:
        >>> page = Page("Validation", "edge on 120 images")
        >>> page.tiles({"Dice": "0.912"}).table(["image", "Dice"], [["a.png", 0.91]])
        >>> page.save("index.html")
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts: list[str] = []
        if subtitle:
            self._add(f'<p class="subtitle">{html.escape(subtitle)}</p>')

    def heading(self, text: str) -> Page:
        """Start a section."""
        return self._add(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> Page:
        """Add plain text; an empty line starts a new paragraph."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._add(f"<p>{html.escape(paragraph.strip())}</p>")
        return self

    def tiles(self, numbers: Mapping[str, object]) -> Page:
        """Add the few numbers that matter most, large: label to value."""
        shown = "".join(
            f'<div class="tile"><b>{html.escape(_shown(value))}</b>'
            f"<span>{html.escape(label)}</span></div>"
            for label, value in numbers.items()
        )
        return self._add(f'<div class="tiles">{shown}</div>')

    def table(
        self, headers: Sequence[str], rows: Iterable[Sequence[object]], caption: str = ""
    ) -> Page:
        """Add a table. Columns of numbers stand on the right; floats get three decimals.

        A :class:`Key` is a cell with a square of its colour.
        """
        listed = [list(row) for row in rows]
        numeric = [
            bool(listed) and all(_is_number(row[i]) for row in listed if i < len(row))
            for i in range(len(headers))
        ]

        def row(cells: Sequence[object], tag: str) -> str:
            kinds = (' class="number"' if right else "" for right in numeric)
            return "".join(
                f"<{tag}{kind}>{_cell(cell)}</{tag}>"
                for cell, kind in zip(cells, kinds, strict=True)
            )

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in listed)
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        return self._add(
            f'<div class="scroll"><table>{title}<thead><tr>{row(headers, "th")}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Figure, caption: str = "") -> Page:
        """Add a matplotlib figure as a drawing; black becomes the page's own ink."""
        for axes in figure.axes:
            if legend := axes.get_legend():
                legend.get_frame().set_alpha(0)  # a white box would hide light ink on dark paper
        name = html.escape(caption or "chart", quote=True)
        return self._add(
            f'<figure class="chart" role="img" aria-label="{name}">{_svg(figure)}'
            f"{_caption(caption)}</figure>"
        )

    def images(self, items: Iterable[tuple[npt.NDArray[np.uint8], str]], columns: int = 4) -> Page:
        """Add a grid of pictures.

        Args:
            items: (uint8 RGB [H, W, 3] or grey [H, W], caption) each.
            columns: Pictures side by side on a wide screen.
        """
        shown = "".join(
            f'<figure><img src="{data_uri(image)}" alt="{html.escape(caption, quote=True)}">'
            f"{_caption(caption)}</figure>"
            for image, caption in items
        )
        return self._add(f'<div class="grid" style="--columns:{columns}">{shown}</div>')

    def keys(self, colors: Mapping[str, tuple[int, int, int]]) -> Page:
        """Add a legend: label to RGB colour in [0, 255]."""
        shown = "".join(
            f"<span>{_cell(Key(label, color))}</span>" for label, color in colors.items()
        )
        return self._add(f'<p class="keys">{shown}</p>')

    def html(self) -> str:
        """Return the whole page."""
        style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
        head = _HEAD.format(title=html.escape(self.title), style=style)
        return head + "\n".join(self._parts) + "\n</main></body></html>\n"

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return its path."""
        with replacing(path) as temporary:
            text = _CONTROL.sub(lambda found: plain(found[0]), self.html())
            temporary.write_text(text, encoding="utf-8")
        return Path(path)

    def _add(self, part: str) -> Page:
        self._parts.append(part)
        return self


def data_uri(image: npt.NDArray[np.uint8], quality: int = 90) -> str:
    """Return a picture (uint8 RGB [H, W, 3] or grey [H, W]) as a JPEG data URI."""
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(
            f"image is {image.dtype} {image.shape}; expected uint8 [H, W, 3] or [H, W]"
        )
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _svg(figure: Figure) -> str:
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "medisseg", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    drawing = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawing)
    return drawing.replace("stroke: #000000", "stroke: currentColor")


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>" if text else ""


def _cell(value: object) -> str:
    if isinstance(value, Key):
        color = tuple(map(int, value.color))
        return f'<i class="key" style="background:rgb{color}"></i>{html.escape(value.text)}'
    return html.escape(_shown(value))


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        # "0.912 (0.90 to 0.92)", "85.9 %" and "–" stand with the numbers.
        return bool(re.fullmatch(r"[-+–]?\d[\d.,e+\-–± ()%/to]*|[–-]", value.strip()))
    return value is None or isinstance(value, (int, float, np.integer, np.floating))


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, (float, np.floating)) else str(value)

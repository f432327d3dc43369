"""Pages are whole, self-contained and safe against what file names may hold."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.evaluation.report import Page, data_uri


class Structure(HTMLParser):
    """Collects tags and checks that they close in order."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def a_page() -> Page:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label="line")
    axes.legend()
    picture = np.zeros((8, 12, 3), np.uint8)
    return (
        Page("Test <1>", "sub & title")
        .heading("Numbers")
        .text("One.\n\nTwo.")
        .tiles({"Dice": "0.912"})
        .table(
            ["image", "Dice", "95 %"], [["a", 0.5, "0.4 to 0.6"], ["<script>x</script>", 1.0, None]]
        )
        .keys({"missed": (1, 2, 3)})
        .figure(figure, "a chart")
        .images([(picture, "black"), (picture[..., 0], 'a"b')], columns=2)
    )


def test_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    path = a_page().save(tmp_path / "deep" / "index.html")
    text = path.read_text()
    structure = Structure()
    structure.feed(text)
    assert structure.open == []
    assert structure.seen.count("img") == 2
    assert "svg" in structure.seen
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_text_is_escaped_and_numbers_are_aligned() -> None:
    text = a_page().html()
    assert "<script" not in text and "&lt;script&gt;x" in text
    assert "<title>Test &lt;1&gt;</title>" in text
    assert 'alt="a&quot;b"' in text
    assert '<td class="number">0.500</td><td class="number">0.4 to 0.6</td>' in text
    assert "<p>One.</p>\n<p>Two.</p>" in text


def test_control_characters_of_names_are_written_out(tmp_path: Path) -> None:
    page = (
        Page("Run")
        .heading("a\x1b[2J\x9b\u202eb")
        .table(["name"], [["c\x07\ud800, \u5185\u8996\u93e1"]])
    )
    text = page.save(tmp_path / "page.html").read_text("utf-8")
    assert "<h2>a\\x1b[2J\\x9b\\u202eb</h2>" in text and "c\\x07\\ud800, \u5185\u8996\u93e1" in text


def test_same_content_gives_the_same_file() -> None:
    assert a_page().html() == a_page().html()


def test_black_lines_take_the_ink_of_the_page() -> None:
    text = a_page().html()
    assert "currentColor" in text and "stroke: #000000" not in text


def test_pictures_keep_their_pixels() -> None:
    image = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    data = base64.b64decode(data_uri(image).split(",")[1])
    again = np.asarray(Image.open(io.BytesIO(data)), int)
    assert np.abs(again - image.astype(int)).max() <= 3
    with pytest.raises(ValueError, match="uint8"):
        data_uri(image.astype(np.float32))

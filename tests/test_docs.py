"""Documents: every relative link and every path of ours that a page names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "medisseg/weights/*.md", ".github/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
OURS = re.compile(
    r"`((?:medisseg|kernels|export|deploy|tests|benchmarks|docs|tools)/[\w./-]+\.\w+)(?:::\w+)?`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link and "mailto:" not in link]
    broken = [link for link in links if not (page.parent / link).exists()]
    broken += [name for name in OURS.findall(text) if not (ROOT / name).exists()]
    assert not broken


def test_there_are_pages() -> None:
    assert len(PAGES) > 15

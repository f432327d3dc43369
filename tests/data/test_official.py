"""Official lists: made from the names, known by their hash, asked for; never drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.config import load_config
from medisseg.data.official import SETS, digest, names
from medisseg.errors import UserError
from medisseg.training.batches import choose_names

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "kvasir-seg"


def folder(root: Path, stems: list[str]) -> Path:
    for index, stem in enumerate(stems):
        for part in ("images", "masks"):
            (root / part).mkdir(exist_ok=True)
            pixels = np.full((4, 4), index % 255, np.uint8)
            Image.fromarray(pixels).save(root / part / f"{stem}.png")
    return root


def test_glas_is_split_by_its_own_names(tmp_path: Path) -> None:
    test = [f"test{part}_{k + 1}" for part, count in (("A", 60), ("B", 20)) for k in range(count)]
    train = [f"train_{k + 1}" for k in range(85)]
    root = folder(tmp_path, [*test, *train])
    parts, _ = choose_names(load_config("glas", [f"data={root}"]))
    assert sorted(parts["train"][0]) == sorted(train)
    assert sorted(parts["validation"][0]) == sorted(test)


def test_nothing_is_drawn_over_an_official_set(tmp_path: Path) -> None:
    root = folder(tmp_path, [f"p{k}" for k in range(20)])
    for name in ("kvasir-seg", "kvasir-sessile", "isic2016", "isic2017", "glas"):
        with pytest.raises(UserError, match=r"split.official= \(empty\) says that you know"):
            choose_names(load_config(name, [f"data={root}"]))
    own = ["split.official=", "split.train=", "split.validation=", "split.held_out=[]"]
    parts, _ = choose_names(load_config("kvasir-seg", [f"data={root}", *own]))
    assert len(parts["train"][0]) + len(parts["validation"][0]) == 20


def test_another_list_of_the_same_length_is_refused() -> None:
    there = [f"image{k}" for k in range(880)]
    with pytest.raises(UserError, match="880 names and is none of Kvasir-SEG's official lists"):
        names("kvasir-seg", "train", there, lambda: there)
    # Of ISIC only the numbers of names are known.
    assert names("isic2016", "mine.txt", there, lambda: there + ["more"] * 20)[879] == "image879"
    with pytest.raises(UserError, match="880 names"):
        names("isic2016", "train", there, lambda: there)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real Kvasir-SEG is not here")
def test_the_real_lists_are_known() -> None:
    parts, _ = choose_names(load_config("kvasir-seg", [f"data={SHARED}"]))
    assert [len(parts[part][0]) for part in ("train", "validation")] == [880, 120]
    for part, name in (("train", "train"), ("val", "validation")):
        assert digest(parts[name][0]).startswith(str(SETS["kvasir-seg"].parts[part].digest))
    swapped = ["split.train=val", "split.validation=train"]  # both are official lists
    assert choose_names(load_config("kvasir-seg", [f"data={SHARED}", *swapped]))

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
    with pytest.raises(UserError, match="880 names and is not Kvasir-SEG's official list of that"):
        names("kvasir-seg", "train", there, lambda: there)
    # Of ISIC the numbers of names and their form are known.
    skin = [f"ISIC_{k:07d}" for k in range(900)]
    assert names("isic2016", "mine.txt", skin, lambda: skin) == skin
    assert names("isic2016", "train", skin, lambda: skin) == skin
    with pytest.raises(UserError, match="880 names"):
        names("isic2016", "train", skin, lambda: skin[:880])
    with pytest.raises(UserError, match=r"holds image0, which is no name of ISIC-2016 \(ISIC_"):
        names("isic2016", "train", there, lambda: [*there, *["more"] * 20])


def test_a_list_of_another_part_is_refused() -> None:
    skin = [f"ISIC_{k:07d}" for k in range(900)]
    for split in ("train", "lists/training.txt"):
        with pytest.raises(UserError, match="has 379 names and is not ISIC-2016's official list"):
            names("isic2016", split, skin, lambda: skin[:379])
    with pytest.raises(UserError, match="has 900 names"):
        names("isic2016", "test", skin, lambda: skin)
    glas = [f"test{part}_{k}" for part, count in (("A", 60), ("B", 25)) for k in range(count)]
    with pytest.raises(UserError, match="has 85 names and is not GlaS's"):
        names("glas", "train", glas, lambda: glas)


def test_sessile_lists_have_kvasirs_names() -> None:
    kvasir = [f"cju0qkwl35piu0993l0d{k:05d}" for k in range(156)]
    assert names("kvasir-sessile", "train", kvasir, lambda: kvasir) == kvasir
    with pytest.raises(UserError, match="holds image0, which is no name of Kvasir-Sessile"):
        names("kvasir-sessile", "train", kvasir, lambda: [f"image{k}" for k in range(156)])


def test_training_on_all_there_is_of_an_official_set_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, [f"p{k}" for k in range(20)])
    for train in ("null", "auto"):
        given = [f"data={root}", f"split.train={train}", "split.validation=null"]
        with pytest.raises(UserError, match="would train on whatever is there, its test images"):
            choose_names(load_config("kvasir-seg", given))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real Kvasir-SEG is not here")
def test_the_packaged_recipes_know_the_official_880() -> None:
    for name in ("edge-kvasir", "edge-kvasir-further"):
        parts, _ = choose_names(load_config(name, [f"data={SHARED}"]))
        assert [len(parts[part][0]) for part in ("train", "validation")] == [792, 88]


def test_the_packaged_recipes_refuse_other_lists(tmp_path: Path) -> None:
    root = folder(tmp_path, [f"p{k}" for k in range(20)])
    for name in ("edge-kvasir", "edge-kvasir-further"):
        with pytest.raises(UserError, match="no list train of Kvasir-SEG"):
            choose_names(load_config(name, [f"data={root}"]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real Kvasir-SEG is not here")
def test_the_real_lists_are_known() -> None:
    parts, _ = choose_names(load_config("kvasir-seg", [f"data={SHARED}"]))
    assert [len(parts[part][0]) for part in ("train", "validation")] == [880, 120]
    for part, name in (("train", "train"), ("val", "validation")):
        assert digest(parts[name][0]).startswith(str(SETS["kvasir-seg"].parts[part].digest))
    swapped = ["split.train=val", "split.validation=train"]  # both are official lists
    assert choose_names(load_config("kvasir-seg", [f"data={SHARED}", *swapped]))

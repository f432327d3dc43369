"""Lists, seeded splits by group, and leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from medisseg.config import load_config
from medisseg.data import lists, splits
from medisseg.data.folder import SegmentationFolder
from medisseg.errors import UserError
from medisseg.training.batches import folder_names

NAMES = [f"p{index:03}" for index in range(100)]


def test_lists_with_and_without_extension_and_folder(tmp_path: Path) -> None:
    text = "# names\na\nb.jpg\nimages/c.PNG\nimages\\d.tif\te\n\nf.v2\n"
    (tmp_path / "val.txt").write_text("\ufeff" + text, encoding="utf-8")
    assert splits.names(tmp_path, "val", NAMES) == ["a", "b", "c", "d", "f.v2"]
    assert splits.names(tmp_path, "validation", NAMES) == ["a", "b", "c", "d", "f.v2"]


def test_the_path_of_a_list_is_that_list_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "val.txt").write_text("a\n")
    for name, text in (("val-2.txt", "b\nc\n"), ("test.csv", "name\nd\n")):
        (tmp_path / name).write_text(text)
        wanted = text.replace("name\n", "").split()
        for path in (name, str(tmp_path / name)):
            assert splits.names(data, path, NAMES + ["a", "b", "c", "d"]) == wanted
    assert splits.names(data, "validation", NAMES) == ["a"]


def test_an_unknown_list_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"no list 'tset'.*there are: train"):
        splits.names(tmp_path, "tset", NAMES)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        splits.names(tmp_path, "empty", NAMES)
    (tmp_path / "twice.txt").write_text("a\na.jpg\n")
    with pytest.raises(UserError, match="names a twice"):
        splits.names(tmp_path, "twice", NAMES)


def test_without_lists_a_seeded_split_covers_everything_once(tmp_path: Path) -> None:
    parts = [splits.names(tmp_path, part, NAMES, seed=3) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(sum(parts, [])) == NAMES
    assert parts[1] == splits.names(tmp_path, "val", list(reversed(NAMES)), seed=3)
    assert parts[1] != splits.names(tmp_path, "val", NAMES, seed=4)


@pytest.mark.parametrize(
    "table",
    [
        "sequence,first_frame,last_frame\n" + "".join(
            f"{k},{10 * k},{10 * k + 9}\n" for k in range(10)
        ),
        "Image,Patient\n" + "".join(f"p{k:03}.jpg,{k // 10}\n" for k in range(100)),
    ],
    ids=["ranges", "names"],
)  # fmt: skip
def test_a_seeded_split_keeps_sequences_together(tmp_path: Path, table: str) -> None:
    (tmp_path / "sequences.csv").write_text(table)
    groups = splits.group_table(tmp_path, None, NAMES)
    assert groups["p037"] == "3" and len(groups) == 100
    rest, taken = splits.take_out(NAMES, 0.2, groups, seed=1)
    assert len(taken) == 20 and sorted(rest + taken) == NAMES
    assert not {groups[name] for name in rest} & {groups[name] for name in taken}


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("who,what\n1,2\n")
    with pytest.raises(UserError, match="columns who, what; expected a group"):
        splits.group_table(tmp_path, None, NAMES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read_as_editors_store_them(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("één.jpg\ntwo.png\n", encoding=encoding)
    listed = lists.read_list(tmp_path / "a.txt", lists.Names(tmp_path, []))
    assert listed.names == ("één", "two")


def test_lists_and_tables_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("één".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        lists.read_list(tmp_path / "a.txt", lists.Names(tmp_path, []))
    table = tmp_path / "sequences.csv"
    table.write_text("sequence,first_frame,last_frame\na,b,c\n")
    with pytest.raises(UserError, match="must be numbers"):
        splits.group_table(tmp_path, None, ["1"])
    table.write_text("name,patient\n1\n2,b\n")  # a row that stops short names no patient
    assert splits.group_table(tmp_path, None, ["1", "2"]) == {"2": "b"}


def test_both_parts_of_a_split_hold_something() -> None:
    rest, taken = splits.take_out(["a", "b"], 0.01, {}, seed=0)
    assert len(rest) == len(taken) == 1
    with pytest.raises(UserError, match="cannot be split"):
        splits.take_out(["a", "b"], 0.5, {"a": "1", "b": "1"}, seed=0)


def test_leaks_are_refused_and_shared_patients_warned_of() -> None:
    with pytest.raises(UserError, match="2 images are in both train and val, e.g. b"):
        splits.refuse_leaks({"train": ["a", "b", "c"], "val": ["c", "b"]}, {})
    warnings = splits.refuse_leaks({"train": ["a"], "val": ["b"]}, {"a": "7", "b": "7"})
    assert len(warnings) == 1 and "e.g. 7" in warnings[0]


def test_the_same_bytes_in_two_splits_are_warned_of(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in "abc"}
    for name, path in files.items():
        path.write_text("same" if name in "ac" else "other")
    within = splits.duplicates({"train": {"a": files["a"], "c": files["c"]}})
    assert within == []
    parts = {"train": {"a": files["a"], "b": files["b"]}, "val": {"c": files["c"]}}
    (warning,) = splits.duplicates(parts)
    assert "c (val) and a (train)" in warning


def test_edge_never_sees_the_official_validation_images(shared: Path) -> None:
    root = shared / "data" / "kvasir-seg"
    folder = SegmentationFolder(root, [])
    parts, warnings = folder_names(folder, load_config("edge").split)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 792, "validation": 88, "val": 120,
    }  # fmt: skip
    assert warnings == []
    official = (root / "val.txt").read_text().split()
    assert set(parts["val"]) == set(official)
    assert not set(official) & set(parts["train"] + parts["validation"])

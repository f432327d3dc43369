"""Checkpoints come back as they were, and everything else is refused in one clear line."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medisseg import checkpoint
from medisseg.checkpoint import WEIGHTS, read_header, resolve, save_checkpoint
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.labels import make_labels
from medisseg.model.create import create_model
from medisseg.model.loading import average, load_checkpoint, load_encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(4)
    model = create_model("edge", stage=1, classes=2, elat=False).eval()
    info = replace(
        model.info,
        convention=InputConvention(color="BGR", size=(96, 128), resize="letterbox"),
        metrics={"mdsc": 0.5},
        data="made up",
        threshold=0.4,
        labels=make_labels(2, ["polyp"], ["#00ff00"]),
    )
    model.info = info
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    return model, save_checkpoint(path, model, info)


def test_a_round_trip_keeps_answers_and_header(saved: tuple) -> None:
    model, path = saved
    again = load_checkpoint(path)
    assert again.info == model.info == read_header(path)
    assert not again.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_half_keeps_vectors_whole_and_loads_as_float32(saved: tuple, tmp_path: Path) -> None:
    model, path = saved
    small = save_checkpoint(tmp_path / "half.safetensors", model, model.info, half=True)
    assert small.stat().st_size < 0.6 * path.stat().st_size
    again = load_checkpoint(small).state_dict()
    for name, value in model.state_dict().items():
        if value.ndim <= 1:
            assert torch.equal(again[name], value)
        else:
            assert again[name].dtype == torch.float32
            torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-6)


def test_a_state_dict_in_channels_last_is_written_the_same(saved: tuple, tmp_path: Path) -> None:
    model, _ = saved
    last = create_model("edge", stage=1, classes=2, elat=False)
    last.load_state_dict(model.state_dict())
    last.to(memory_format=torch.channels_last)
    path = save_checkpoint(tmp_path / "last.safetensors", last.state_dict(), model.info)
    for name, value in load_checkpoint(path).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_packaged_names_are_found(saved: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved
    monkeypatch.setattr(checkpoint, "WEIGHTS", path.parent)
    assert resolve("model") == path
    with pytest.raises(UserError, match="packaged name.*model"):
        resolve("modle")


def test_the_encoder_of_stage_one_moves_to_stage_two(saved: tuple, tmp_path: Path) -> None:
    model, path = saved
    second = create_model("edge", stage=2)
    load_encoder(second, path)
    for name, value in second.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])
    with pytest.raises(UserError, match="same encoder"):
        load_encoder(create_model("medisseg-r18"), path)


@pytest.mark.parametrize("cut", [0, 4, 100, -7])
def test_damaged_files_are_refused(cut: int, saved: tuple, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved[1].read_bytes()[:cut])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(broken)


def test_other_files_are_refused(saved: tuple, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        load_checkpoint(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(UserError, match="without our header"):
        load_checkpoint(foreign)
    header = saved[0].info.to_dict() | {"colour": "mauve"}
    save_file({"w": torch.zeros(2)}, foreign, metadata={"medisseg": json.dumps(header)})
    with pytest.raises(UserError, match="cannot read"):
        load_checkpoint(foreign)


def test_the_checkpoint_of_another_network_is_refused(saved: tuple, tmp_path: Path) -> None:
    model, _ = saved
    wrong = tmp_path / "wrong.safetensors"
    save_checkpoint(wrong, model, replace(model.info, stage=2))
    with pytest.raises(UserError, match=r"another network.*missing.*unknown"):
        load_checkpoint(wrong)
    save_checkpoint(wrong, model, replace(model.info, classes=5, labels=()))
    with pytest.raises(UserError, match="misshapen"):
        load_checkpoint(wrong)


def test_no_code_is_in_a_checkpoint(saved: tuple) -> None:
    with safe_open(saved[1], framework="np") as file:
        assert set(file.metadata()) == {"medisseg"}
        assert json.loads(file.metadata()["medisseg"])["data"] == "made up"


def test_a_full_disk_is_said_in_one_line_and_the_file_before_it_stays(
    saved: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = saved
    before = path.read_bytes()
    # What is written before it takes the file's place goes to a device that is always full.
    full = tmp_path / "full"
    full.mkdir()
    (full / path.name).symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_: str(full))
    with pytest.raises(UserError, match="no space left"):
        save_checkpoint(path, model, model.info)
    assert path.read_bytes() == before


def test_the_mean_of_checkpoints(saved: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    model, path = saved
    torch.manual_seed(5)
    other = create_model("edge", stage=1, classes=2, elat=False)
    second = save_checkpoint(tmp_path / "second.safetensors", other, other.info)
    mean = average([path, path, second])
    assert mean.info == replace(model.info, metrics={}) and not mean.training
    ours, theirs = model.state_dict(), other.state_dict()
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, (2 * ours[name] + theirs[name]) / 3)
    stranger = create_model("edge", stage=1, classes=1, elat=False)
    third = save_checkpoint(tmp_path / "third.safetensors", stranger, stranger.info)
    with pytest.raises(UserError, match=r"third.safetensors has classes 1, .* 2; give both"):
        average([path, third])


def test_the_card_says_how_the_packaged_file_is_written(tmp_path: Path) -> None:
    import re
    import subprocess
    import sys

    card, packaged = (WEIGHTS / f"edge-polyp.{kind}" for kind in ("md", "safetensors"))
    *_, code = re.findall(r'^python -c "(.*)"$', card.read_text("utf-8"), re.MULTILINE)
    for run in ("runs/mean.safetensors", "runs/fifth/last.safetensors"):
        assert run in code
        code = code.replace(run, "edge-polyp")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / packaged.name).read_bytes() == packaged.read_bytes()


def test_the_card_trains_with_settings_that_exist() -> None:
    import re
    import shlex

    from medisseg.config import load_config

    text = (WEIGHTS / "edge-polyp.md").read_text("utf-8")
    lines = re.findall(r"^medisseg train (.*)$", text, re.MULTILINE)
    for line, weight, minutes in zip(lines, (0.5, 0.35, 0.35, 0.6), (69, 95, 66, 80), strict=True):
        name, *overrides = shlex.split(line)
        config = load_config(name, overrides)
        assert [source.weight for source in config.negatives] == [weight]
        assert config.budget_minutes == minutes
    degrade = config.stage2.augment.degrade
    assert config.stage2.lr == 6e-4 and config.stage_one is None
    assert degrade.source_p == 0.6 and degrade.screen_p == 0.15
    assert config.stage2.augment.paste_p == 0.6

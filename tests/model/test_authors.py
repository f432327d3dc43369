"""The authors' checkpoint under our names answers what their network answers."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from medisseg.checkpoint import read_header
from medisseg.cli import main
from medisseg.errors import UserError
from medisseg.model.authors import authors_prefixes, import_state, rename
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint

CLOSE = 1e-4  # of probabilities, as the reference asks


@pytest.fixture(scope="module")
def reference(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "fill_weights", shared / "reference" / "fill_weights.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes(shared: Path) -> dict:
    return json.loads((shared / "reference" / "shapes.json").read_text())


def filled(reference: ModuleType, shapes: dict, stage: int) -> dict[str, torch.Tensor]:
    arrays = reference.fill(shapes[f"stage{stage}"]["shapes"])
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def probability(logits: torch.Tensor) -> np.ndarray:
    return torch.sigmoid(logits)[0, 0].numpy()


@pytest.mark.parametrize("stage", [1, 2])
def test_imported_by_the_command_it_answers_the_reference(
    stage: int, reference: ModuleType, shapes: dict, shared: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "authors.pth", tmp_path / "ours.safetensors"
    torch.save(filled(reference, shapes, stage), source)
    assert main(["import-checkpoint", str(source), str(out)]) == 0
    model = load_checkpoint(out)
    assert model.info.architecture == "medisseg-r50" and model.info.stage == stage
    assert model.info.convention.color == "BGR" and set(model.info.convention.mean) == {0.0}
    expected = np.load(shared / "reference" / "expected_256.npz")
    x = torch.from_numpy(reference.image(1, 256))
    with torch.no_grad():
        mask = model(x)
        assert np.abs(probability(mask) - expected[f"stage{stage}_mask"]).max() < CLOSE
        if stage == 1:
            return
        auxiliary = model.auxiliary_logits(x)
        inference = for_inference(model)(x)
    for name, short in (("foreground", "fg"), ("background", "bg"), ("uncertainty", "uc")):
        assert np.abs(probability(auxiliary[name]) - expected[f"stage2_{short}"]).max() < CLOSE
    assert np.abs(probability(inference) - expected["stage2_mask"]).max() < CLOSE


@pytest.mark.parametrize("stage", [1, 2])
def test_every_name_has_exactly_one_of_ours(stage: int, shapes: dict) -> None:
    theirs = shapes[f"stage{stage}"]["shapes"]
    ours = [rename(name, authors_prefixes(stage)) for name in theirs]
    assert sorted(ours) == sorted(create_model("medisseg-r50", stage=stage).state_dict())


@pytest.fixture(scope="module")
def stage_one(reference: ModuleType, shapes: dict) -> dict[str, torch.Tensor]:
    return filled(reference, shapes, 1)


def test_unknown_missing_and_misshapen_entries_are_listed(stage_one: dict) -> None:
    wrong = dict(stage_one)
    del wrong["head.conv_fuse.weight"]
    wrong["head.extra.weight"] = torch.zeros(3)
    wrong["layer0.0.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(UserError) as caught:
        import_state(wrong, 1)
    for part in ("1 missing (head.logits", "1 unknown (head.extra", "1 misshapen (encoder.conv1"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="another network"):
        import_state(stage_one, 2)


def test_a_condseg_checkpoint_is_recognised(stage_one: dict) -> None:
    plain = {name: value for name, value in stage_one.items() if ".att" not in name}
    assert import_state(plain, 1).info.architecture == "condseg-r50"


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_a_payload_is_refused_and_does_not_run(tmp_path: Path) -> None:
    source, mark, out = (tmp_path / n for n in ("bad.pth", "ran", "out.safetensors"))
    torch.save({"layer0.0.weight": Payload(mark)}, source)
    with pytest.raises(UserError, match="not loaded"):
        main(["import-checkpoint", str(source), str(out)])
    assert not mark.exists() and not out.exists()


def test_no_file_and_no_state_dict_are_told_apart(tmp_path: Path) -> None:
    out = str(tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="no file"):
        main(["import-checkpoint", str(tmp_path / "none.pth"), out])
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="not loaded"):
        main(["import-checkpoint", str(tmp_path / "text.pth"), out])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no state dict"):
        main(["import-checkpoint", str(tmp_path / "list.pth"), out])
    assert not Path(out).exists()


def test_header_says_where_it_came_from(stage_one: dict, tmp_path: Path) -> None:
    source, out = tmp_path / "a.pth", tmp_path / "o.safetensors"
    torch.save({"state_dict": {f"module.{k}": v for k, v in stage_one.items()}}, source)
    main(["import-checkpoint", str(source), str(out), "--stage", "1"])
    assert "authors" in read_header(out).data

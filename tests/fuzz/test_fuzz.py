"""What the fuzzer starts from and what it once found passes through its harnesses."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fuzz.run import NAMES

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_findings(name: str) -> None:
    harness = importlib.import_module(f"tests.fuzz.{name}")
    found = sorted((HERE / "findings" / name).glob("*"))
    inputs = [*harness.seeds(), *(path.read_bytes() for path in found), b"", b"\1"]
    try:
        for data in inputs:
            harness.one(data)
    finally:
        harness.done()


def test_the_values_that_are_edited_are_good_ones() -> None:
    """A harness whose values are refused from the start would look at nothing behind that."""
    import yaml

    from tests.fuzz import checkpoint, manifest, results, settings

    manifest.one(manifest.seeds()[0])
    assert manifest.Bundle.open(manifest.HERE / "bundle").model_info.classes == 2
    path = checkpoint.HERE / "good.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(checkpoint.file_of(checkpoint.dumps(checkpoint.HEADER)))
    assert checkpoint.read_header(path).options["levels"] == 3
    config = path.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings.RUN))
    assert settings.options.parse(["--config", str(config)]).hold_off == 3
    config.write_text(yaml.safe_dump(settings.TRAIN))
    assert settings.load_config(config).stage2.epochs == 5
    run = results.RecordedRun(results.folder_of(results.seeds()[0]))
    assert [results.draw(run, entry).shape for entry in run.entries] == [(48, 64, 3)] * 3
    run.close()

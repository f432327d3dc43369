"""What the paper's text says and the release does not, as options; the release is the default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medisseg.checkpoint import save_checkpoint
from medisseg.errors import UserError
from medisseg.model.blocks import upsample
from medisseg.model.create import create_model
from medisseg.model.decoder import OutputBlock, PaperDecoder
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint, load_encoder, load_network

SMALL = {"width": 8, "heads": 2, "decouple_width": 8, "aux_widths": (8,) * 4, "head_width": 8}


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 45_559_635),
        ({"elat_encoder": True}, 45_954_863),  # the paper's text, about 0.4 M more
        ({"decoder": "paper"}, 50_530_899),  # Eq. 8, about 50 M in all
        ({"fusion": "sum"}, 45_264_723),  # Eq. 9
    ],
)
def test_sizes(options: dict, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model("medisseg-r50", **options)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_equation_8_is_three_residual_steps() -> None:
    torch.manual_seed(0)
    decoder = PaperDecoder(4, torch.nn.Identity(), "telu", False).eval()
    decoder.channel, decoder.spatial = torch.nn.Identity(), torch.nn.Identity()
    decoder.spatial.fused = False
    coarse, skip = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 6, 6)
    x = torch.cat([upsample(coarse), skip], 1)
    for one, three in decoder.steps:
        x = x + three(one(x))
    torch.testing.assert_close(decoder(coarse, skip), decoder.reduce(x))


def test_equation_9_sums_the_decoders() -> None:
    torch.manual_seed(0)
    block = OutputBlock(4, 4, 1, "telu", False, fusion="sum").eval()
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2)]
    joined = maps[0] + upsample(maps[1]) + upsample(maps[2], 4)
    x = block.refine(upsample(block.fuse(joined)))
    torch.testing.assert_close(block(maps, 16), block.logits(block.reduce(x)))


@pytest.mark.parametrize("stage", [1, 2])
def test_elat_gates_what_both_stages_take_of_the_encoder(stage: int) -> None:
    torch.manual_seed(0)
    model = create_model("edge", stage=stage, elat_encoder=True, **SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    for gate, plain, gated in zip(
        model.encoder_gates, model.encoder(x), model.features(x), strict=True
    ):
        torch.testing.assert_close(gated, gate(plain))
    with torch.no_grad():
        torch.testing.assert_close(for_inference(model)(x), model(x), atol=1e-4, rtol=1e-4)


def test_stage_two_takes_over_the_gates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = create_model("edge", stage=1, elat_encoder=True, **SMALL)
    path = save_checkpoint(tmp_path / "one.safetensors", one, one.info)
    two = create_model("edge", stage=2, elat_encoder=True, **SMALL)
    load_encoder(two, path)
    for ours, theirs in zip(
        two.encoder_gates.parameters(), one.encoder_gates.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)  # stored in float16


def test_a_checkpoint_from_before_an_option_is_trained_further(tmp_path: Path) -> None:
    """The packaged checkpoint's header knows fewer options than today's network."""
    model = create_model("edge")
    load_network(model, "edge-kvasir")
    info = replace(model.info, options={"width": 16})
    path = save_checkpoint(tmp_path / "other.safetensors", model, info)
    with pytest.raises(UserError, match="has options"):
        load_network(create_model("edge"), path)


def test_other_classes_keep_all_but_the_last_convolution() -> None:
    """A network of three classes goes on from one class; what was copied is the checkpoint's."""
    model, source = create_model("edge-lite", classes=3), load_checkpoint("edge-polyp")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = load_network(model, "edge-polyp")
    assert fresh == ["output.logits.weight", "output.logits.bias"]
    for name, value in model.state_dict().items():
        want = before[name] if name in fresh else source.state_dict()[name]
        torch.testing.assert_close(value, want, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"decoder": "eq8"}, "released, paper"), ({"fusion": "mean"}, "concat, sum")],
)
def test_wrong_choices(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        create_model("edge", **options)

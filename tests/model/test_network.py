"""The network is the paper's: counts, the literal forms of its reformulated blocks, options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from literal_forms import literal_window_mix
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medisseg.errors import UserError
from medisseg.model.blocks import CBT, TeLU, upsample
from medisseg.model.cdfa import CDFA, positions_innermost
from medisseg.model.create import create_model
from medisseg.model.decoder import Decoder
from medisseg.model.inference import for_inference
from medisseg.model.network import StageOneHead
from medisseg.model.options import PRESETS, NetworkOptions
from medisseg.model.output import TrainingOutput

COUNTS = {
    ("medisseg-r50", 1): 8_673_884,
    ("medisseg-r50", 2): 45_559_635,
    ("condseg-r50", 2): 45_552_786,
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shake(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and affine values that a fold must not lose."""
    generator = torch.Generator().manual_seed(3)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value, low, high in (
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 1.5),
                (part.weight.data, 0.5, 1.2),
                (part.bias.data, -0.2, 0.2),
            ):
                value.uniform_(low, high, generator=generator)
    return model.eval()


def small(stage: int = 2, classes: int = 1, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model("edge", stage=stage, classes=classes, **options)


@pytest.mark.parametrize(("preset", "stage"), COUNTS)
def test_parameters_are_the_published_ones(preset: str, stage: int) -> None:
    assert parameters(create_model(preset, stage=stage)) == COUNTS[preset, stage]


@pytest.mark.parametrize(("preset", "most"), [("edge", 6e9), ("edge-lite", 1.5e9)])
def test_edge_keeps_its_bounds(preset: str, most: float) -> None:
    model = create_model(preset, encoder_weights="imagenet").eval()
    assert parameters(model) <= 8_000_000
    inference = for_inference(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        inference(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() <= most


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", [1, 2])
def test_every_preset_answers_logits_and_a_training_output(preset: str, stage: int) -> None:
    model = create_model(preset, stage=stage, classes=3)
    x = torch.randn(2, 3, 64, 96)
    output = model.train()(x)
    assert isinstance(output, TrainingOutput)
    assert output.logits.shape == (2, 3, 64, 96)
    for auxiliary in output[1:4]:
        assert auxiliary is None if stage == 1 else auxiliary.shape == (2, 1, 64, 96)
    assert set(output.features) == {"early", "middle", "late"}
    output.logits.mean().backward()
    with torch.no_grad():
        answer = model.eval()(x)
    assert answer.shape == (2, 3, 64, 96) and answer.isfinite().all()


def test_odd_sides_are_padded_and_cropped_back() -> None:
    model = shake(small())
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        padded = model(F.pad(x, (0, 26, 0, 14), mode="replicate"))
        torch.testing.assert_close(model(x), padded[..., :50, :70])
    assert model.train()(torch.randn(2, 3, 50, 70)).foreground.shape == (2, 1, 50, 70)


@pytest.mark.parametrize("portable", [False, True])
def test_cdfa_equals_its_literal_form_with_gradients(portable: bool) -> None:
    torch.manual_seed(1)
    block = CDFA(24, 16, 2, "telu", separable=False).eval()
    block.portable = portable
    x, fg, bg = (torch.randn(2, c, 6, 9, requires_grad=True) for c in (24, 16, 16))
    values = block.value(block.before(x))
    for attend, guide in ((block.attend_foreground, fg), (block.attend_background, bg)):
        values = block.project(literal_window_mix(attend(guide) * 8**-0.5, values))
    expected = block.after(values)
    answer = block(x, fg, bg)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((answer * weight).sum(), (x, fg, bg))
    theirs = torch.autograd.grad((expected * weight).sum(), (x, fg, bg))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_logits_of_a_gpu_are_the_convolution(layout: torch.memory_format) -> None:
    x = torch.randn(2, 16, 5, 7).contiguous(memory_format=layout)
    convolution = torch.nn.Conv2d(16, 24, 1)
    given = positions_innermost(x, convolution.weight, convolution.bias)
    torch.testing.assert_close(given, convolution(x))
    assert given.is_contiguous()


def literal_head(head: StageOneHead, features: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The Stage I head as published: upsample every feature first, then project."""
    maps = []
    for x, block, gate in zip(features, head.projections, head.gates, strict=True):
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        maps.append(gate(block(x)))
    return head.logits(torch.cat(maps, 1))


def test_stage_one_head_projects_first_and_equals_the_literal_form() -> None:
    torch.manual_seed(2)
    head = StageOneHead((8, 16, 24, 32), 1, NetworkOptions(head_width=16))
    shake(head)
    sides = (32, 16, 8, 4)
    features = [torch.randn(2, 8 * (i + 1), s, s, requires_grad=True) for i, s in enumerate(sides)]
    ours, expected = head(features, (64, 64))[0], literal_head(head, features, (64, 64))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), features),
        torch.autograd.grad(expected.square().sum(), features),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_decoder_joins_before_it_enlarges_and_equals_the_literal_form() -> None:
    torch.manual_seed(2)
    decoder = Decoder(16, nn.Identity(), "telu", separable=False)
    shake(decoder)
    maps = [torch.randn(2, 16, side, side, requires_grad=True) for side in (5, 10)]
    ours = decoder.joined(*maps)
    expected = decoder.join.conv(torch.cat([upsample(maps[0]), maps[1]], 1))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), maps),
        torch.autograd.grad(expected.square().sum(), maps),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("dilation", "side", "taps"), [(8, 8, 1), (9, 8, 1), (7, 8, 9)])
def test_dilation_as_large_as_the_map_is_its_centre_tap(
    separable: bool, dilation: int, side: int, taps: int
) -> None:
    torch.manual_seed(2)
    block = CBT(6, 6, 3, dilation, separable=separable)
    x = torch.randn(2, 6, side, side - 1)
    expected = block.conv(block.depthwise(x)) if separable else block.conv(x)
    torch.testing.assert_close(block.project(x), expected, rtol=1e-5, atol=1e-6)
    with FlopCounterMode(display=False) as counter:
        block.project(x)
    positions = 2 * 2 * side * (side - 1)
    wanted = positions * (6 * taps + 36 if separable else 36 * taps)
    assert counter.get_total_flops() == wanted


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separable": True, "attention": "emcad"},
        {"levels": 3, "detail": True, "shuffle": 4},
        {"decoder": "paper", "attention": "cbam"},
        {"fusion": "sum"},
    ],
)
def test_inference_form_answers_the_same(stage: int, portable: bool, options: dict) -> None:
    model = shake(small(stage, **options))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stripped = for_inference(model, portable=portable)
    names = [name for name, _ in stripped.named_modules()]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in stripped.modules())
    assert not any("auxiliary" in name or "uncertainty" in name for name in names)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, expected = stripped(x), model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    clear = expected.abs() > 1e-4
    assert torch.equal((logits > 0)[clear], (expected > 0)[clear])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_inference_form_with_kernels_compiles_whole_and_uses_them() -> None:
    """Enlargements into concatenations and spatial gates are the operators, in channels_last."""
    model = shake(small())
    network = for_inference(model, portable=False).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    seen: list[tuple[str, bool]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            if node.op == "call_function" and "medisseg" in str(node.target):
                last = node.meta["example_value"].is_contiguous(memory_format=torch.channels_last)
                seen.append((str(node.target).removeprefix("medisseg."), last))
        return graph.forward

    with torch.inference_mode():
        compiled: Any = torch.compile(network, backend=backend, fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    names = Counter(name.removesuffix(".default") for name, _ in seen)
    # Four fields; three decoders, each with a second gate in its attention unit.
    assert names["spatial_gate"] == 4 + 3 * 2
    # Guides of 1, 2 and 3 doublings, twice; three aggregations; the output block's two.
    assert names["upsample_concat"] == 2 * 6 + 3 + 2
    assert all(last for name, last in seen if name.startswith(("spatial", "upsample")))


def test_detail_reaches_the_mask_and_shuffle_sharpens_it() -> None:
    model = shake(small(levels=3, detail=True, shuffle=4))
    made: dict[str, Tensor] = {}
    for name in ("refine", "logits"):
        part = getattr(model.output, name)
        part.register_forward_hook(lambda _m, _i, out, name=name: made.update({name: out}))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits = model(x)
    assert made["refine"].shape == (1, 32, 16, 24)  # stride 4
    for row, column in ((0, 0), (1, 2), (3, 3)):
        assert torch.equal(made["logits"][:, 4 * row + column], logits[:, 0, row::4, column::4])
    with torch.no_grad():
        model.output.detail.norm.weight.zero_()
        assert not torch.allclose(model(x), logits)


def test_inference_form_can_keep_the_uncertainty() -> None:
    model = shake(small())
    x = torch.randn(1, 3, 60, 64)
    with torch.no_grad():
        logits, uncertainty = for_inference(model, uncertainty=True)(x)
        expected = model.auxiliary_logits(F.pad(x, (0, 0, 0, 4), mode="replicate"))["uncertainty"]
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(uncertainty, expected[..., :60, :], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="Stage I"):
        for_inference(small(1), uncertainty=True)


def test_portable_telu_is_telu() -> None:
    x = torch.linspace(-100, 100, 4001)
    portable = TeLU()
    portable.portable = True
    exact = x.double() * torch.tanh(torch.exp(x.double()))
    torch.testing.assert_close(portable(x), exact.float())
    torch.testing.assert_close(TeLU()(x), exact.float())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widht": 64}, "did you mean 'width'"),
        ({"activation": "gelu"}, "telu, relu"),
        ({"attention": "legonet"}, "expected one of .*LEGO-Net: no definition"),
        ({"width": 0}, "width is 0; expected at least 1"),
        ({"width": "wide"}, "width is 'wide'; expected int"),
        ({"elat": "no"}, "elat is 'no'; expected bool"),
        ({"dilations": []}, "dilations is .*; expected at least 1"),
        ({"cbat": False, "attention": "se"}, "contradicts"),
        ({"width": 30, "heads": 4}, "multiple"),
        ({"levels": 1}, "levels is 1; expected 2, 3 or 4"),
        ({"levels": 5}, "levels is 5; expected 2, 3 or 4"),
        ({"detail": True}, "detail needs levels below 4"),
        ({"levels": 3, "shuffle": 3}, "shuffle is 3; expected one of 1, 2, 4"),
        ({"shuffle": 4}, "shuffle is 4; expected one of 1, 2"),
        ({"encoder_weights": "nowhere.pth"}, "no file"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        create_model("edge", **options)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'medisseg-r50'"):
        create_model("medseg-r50")
    with pytest.raises(UserError, match="did you mean 'attention-unet'"):
        create_model("attentionunet")
    with pytest.raises(UserError, match="stage"):
        create_model("edge", stage=3)


def test_imagenet_weights_of_a_resnet_are_torchvisions_or_refused_with_the_way_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"load_state_dict_from_url\('https://.*resnet18-f37072fd"):
        create_model("medisseg-r18", encoder_weights="imagenet")
    (tmp_path / "checkpoints").mkdir()
    encoder = create_model("medisseg-r18", stage=1).encoder
    state = {name: torch.full_like(value, 3) for name, value in encoder.state_dict().items()}
    torch.save(state, tmp_path / "checkpoints" / "resnet18-5c106cde.pth")
    loaded = create_model("medisseg-r18", stage=1, encoder_weights="imagenet").encoder
    assert all((value == 3).all() for value in loaded.state_dict().values())


def test_options_switch_what_they_say() -> None:
    assert parameters(small(cbat=False)) == parameters(small(attention="none"))
    with_elat = parameters(create_model("medisseg-r50", stage=1))
    assert with_elat - parameters(create_model("medisseg-r50", stage=1, elat=False)) == 4 * 2759
    relu = small(activation="relu")
    assert not any(isinstance(m, TeLU) for m in relu.modules())

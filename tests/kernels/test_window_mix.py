"""kernels.window_mix on a CPU, against unfold, matrix product and fold."""

from __future__ import annotations

import pytest
import torch
from literal_forms import literal_window_mix as literal
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from kernels import window_mix, window_mix_convolution

SHAPES = ((1, 1, 1, 1, 1), (2, 2, 3, 5, 7), (1, 4, 8, 1, 9), (2, 1, 16, 12, 2), (1, 3, 5, 16, 17))


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits and values of (batch, heads, head_dim, height, width)."""
    batch, heads, depth, height, width = shape
    made = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(batch, heads * 81, height, width, generator=made) * 3
    values = torch.randn(batch, heads * depth, height, width, generator=made)
    return logits.to(dtype), values.to(dtype)


def gradients(form, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaves = logits.detach().requires_grad_(), values.detach().requires_grad_()
    out = form(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(out, leaves, weight.to(out.dtype))
    return out.detach(), *found


@pytest.mark.parametrize("form", [window_mix, window_mix_convolution])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], form) -> None:
    expected = gradients(literal, *inputs(shape, torch.float64))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        for ours, known in zip(gradients(form, *inputs(shape, dtype)), expected, strict=True):
            torch.testing.assert_close(ours.double(), known, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_computes_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    logits, values = inputs((2, 2, 4, 6, 5), dtype)
    expected = gradients(literal, logits.double(), values.double())
    for ours, known in zip(gradients(window_mix, logits, values), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), known, rtol=tolerance, atol=tolerance)


def test_layouts() -> None:
    logits, values = inputs((2, 2, 8, 6, 5))
    expected = gradients(window_mix, logits, values)
    last = torch.channels_last
    forms = [
        (logits.to(memory_format=last), values.to(memory_format=last)),
        (logits, values.to(memory_format=last)),
        (logits.transpose(2, 3).contiguous().transpose(2, 3), values),
        (torch.cat([logits, logits])[2:], torch.cat([values, values], 1)[:, 16:]),
    ]
    for a, b in forms:
        found = gradients(window_mix, a, b)
        for ours, known in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, known)
        assert found[0].stride() == torch.empty_like(b).stride()


def test_logits_and_values_of_two_dtypes() -> None:
    logits, values = inputs((1, 2, 4, 6, 5))
    mixed = window_mix(logits.bfloat16(), values)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, window_mix(logits.bfloat16().float(), values))


def test_empty_batch_and_nan() -> None:
    logits, values = inputs((1, 1, 2, 4, 4))
    assert window_mix(logits[:0], values[:0]).shape == (0, 2, 4, 4)
    logits[0, 5, 2, 2] = float("nan")
    assert window_mix(logits, values).isnan().any()


def test_gradcheck_and_opcheck() -> None:
    leaves = [x.requires_grad_() for x in inputs((1, 2, 2, 3, 4), torch.float64)]
    assert torch.autograd.gradcheck(window_mix, leaves, fast_mode=True)
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        pair = [x.to(memory_format=form).requires_grad_() for x in inputs((2, 2, 2, 3, 4))]
        opcheck(torch.ops.medisseg.window_mix, tuple(pair))


class _Mix(torch.nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.form = form

    def forward(self, logits: Tensor, values: Tensor) -> Tensor:
        return self.form(logits, values)


def test_compiles_exports_and_autocasts() -> None:
    pair = inputs((1, 2, 4, 5, 6))
    expected = window_mix(*pair)
    compiled = torch.compile(_Mix(window_mix), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*pair), expected)
    for form in (window_mix, window_mix_convolution):
        program = torch.export.export(_Mix(form), pair)
        torch.testing.assert_close(program.module()(*pair), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        convolve = torch.nn.Conv2d(8, 8, 1)
        mixed = window_mix(F.conv2d(pair[1], torch.randn(162, 8, 1, 1)), convolve(pair[1]))
    assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()
    assert convolve.weight.grad.isfinite().all()


def test_the_convolution_form_exports_to_standard_operators() -> None:
    pair = inputs((1, 2, 4, 8, 6))
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        _Mix(window_mix_convolution),
        tuple(torch.cat([x, x]) for x in pair),
        dynamo=True,
        dynamic_shapes={"logits": {0: batch}, "values": {0: batch}},
        verbose=False,
    )
    kinds = {node.op_type for node in program.model.graph}
    assert {"Conv", "Exp", "MatMul"} <= kinds and "Softmax" not in kinds
    assert not kinds & {"Col2Im", "Loop", "If", "Einsum"} and all(
        node.domain == "" for node in program.model.graph
    )


@pytest.mark.parametrize(
    ("logits", "values", "error", "says"),
    [
        ((1, 81, 2, 2), (1, 4, 2, 3), ValueError, "heads"),
        ((1, 80, 2, 2), (1, 4, 2, 2), ValueError, "heads"),
        ((1, 162, 2, 2), (1, 3, 2, 2), ValueError, "heads"),
        ((2, 81, 2, 2), (1, 4, 2, 2), ValueError, "heads"),
        ((81, 2, 2), (1, 4, 2, 2), ValueError, "4 dimensions"),
    ],
)
def test_wrong_shapes(logits, values, error, says) -> None:
    with pytest.raises(error, match=says):
        window_mix(torch.zeros(logits), torch.zeros(values))


def test_wrong_types_and_devices() -> None:
    with pytest.raises(TypeError, match=r"int64.*float"):
        window_mix(torch.zeros(1, 81, 2, 2).long(), torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"values on meta.*\.to\(\)"):
        window_mix(torch.zeros(1, 81, 2, 2), torch.zeros(1, 4, 2, 2, device="meta"))

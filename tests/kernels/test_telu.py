"""kernels.telu on a CPU: values, derivatives and what PyTorch asks of an operator."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kernels import telu, telu_reference

VALUES = (0.0, 12.0, -12.0, 90.0, -90.0, 1e4, -1e4, 4.0, -1.07886, 1e-30)


def exact(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative in float64, from the definition."""
    x = x.detach().double()
    u = x.clamp(max=5).exp()
    return x * u.tanh(), u.tanh() + x * u / u.cosh().square()


def samples(dtype: torch.dtype) -> Tensor:
    grid = torch.linspace(-15, 15, 4001, dtype=torch.float64)
    return torch.cat([grid, torch.tensor(VALUES, dtype=torch.float64)]).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [
        (torch.float64, 1e-14, 1e-14),
        (torch.float32, 6e-7, 6e-7),
        (torch.float16, 2**-10, 2**-24),  # one rounding; one subnormal
        (torch.bfloat16, 2**-7, 1e-9),
    ],
)
def test_values_and_derivatives(dtype: torch.dtype, relative: float, absolute: float) -> None:
    x = samples(dtype).requires_grad_()
    tiny = 2**-25 if dtype == torch.float16 else 1e-12  # half a float16 subnormal
    y = telu(x)
    y.sum().backward()
    value, slope = exact(x)
    assert y.dtype == x.dtype and x.grad.dtype == x.dtype
    # The value keeps its relative accuracy however small it is; the slope crosses zero.
    torch.testing.assert_close(y.detach().double(), value, rtol=relative, atol=tiny)
    torch.testing.assert_close(x.grad.double(), slope, rtol=relative, atol=absolute)


def test_minimum() -> None:
    x = torch.linspace(-2, 0, 200001, dtype=torch.float64)
    y = telu(x)
    assert y.min().item() == pytest.approx(-0.353286, abs=1e-6)
    assert x[y.argmin()].item() == pytest.approx(-1.07886, abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinities_and_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype).requires_grad_()
    y = telu(x)
    y.sum().backward()
    assert y[0] == math.inf and y[1] == 0 and math.copysign(1, y[1].item()) == -1 and y[2].isnan()
    assert x.grad[0] == 1 and x.grad[1] == 0 and x.grad[2].isnan()


def test_shapes_and_layouts() -> None:
    base = torch.randn(2, 6, 5, 7)
    forms = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(1, 3),
        "strided": base[:, ::2],
        "offset": base[1:],
        "expanded": base[:1].expand(3, -1, -1, -1),
        "one": base[0, 0, 0, 0],
        "empty": base[:0],
        "large": torch.randn(3, 100_003),
    }
    for name, x in forms.items():
        leaf = x.detach().requires_grad_()
        y = telu(leaf)
        weight = torch.randn_like(y)
        y.backward(weight)
        value, slope = exact(x)
        assert y.stride() == torch.empty_like(x).stride(), name
        torch.testing.assert_close(y.double(), value, rtol=1e-6, atol=1e-6, msg=name)
        torch.testing.assert_close(leaf.grad.double(), slope * weight, rtol=1e-6, atol=2e-6)


def every_half(dtype: torch.dtype) -> Tensor:
    """All finite values of a half precision."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stands_the_gpus_own_tanh(dtype: torch.dtype) -> None:
    """The GPU's tanh and exp2, at the worst the PTX ISA allows, against PyTorch's eager error.

    They run on GPUs alone; this is their specification: 2**-11 and 2**-22 relative, tanh(inf) = 1.
    """
    x = every_half(dtype)
    value, _ = exact(x)
    known = value.abs() >= torch.finfo(dtype).tiny

    def error(y: Tensor) -> float:
        return ((y.double() - value).abs() / value.abs())[known].max().item()

    u = torch.exp(x.double())
    worst = 0.0
    for a, b in itertools.product((-1, 1), repeat=2):
        t = ((u * (1 + a * 2**-22)).tanh() * (1 + b * 2**-11)).clamp(max=1)
        t[x > 89] = 1  # exp is infinite in float32
        worst = max(worst, error((x.double() * t).to(dtype)))
    assert worst <= 2 * error(telu_reference(x))
    assert worst <= (1.1e-3 if dtype == torch.float16 else 4.5e-3)


def test_any_layout_of_the_gradient() -> None:
    x = torch.randn(2, 4, 3, 5).requires_grad_()
    weight = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    (telu(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact(x)[1] * weight, rtol=1e-6, atol=1e-6)


def test_gradcheck_and_opcheck() -> None:
    x = torch.linspace(-6, 3, 40, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(telu, (x,))
    for form in (torch.randn(3, 4), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        opcheck(torch.ops.medisseg.telu, (form.requires_grad_(),))


def test_compiles_exports_and_autocasts() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), _TeLU())
    x = torch.randn(3, 4)
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert module[0].weight.grad.isfinite().all()


class _TeLU(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return telu(x)


def test_the_form_for_export_is_four_operators() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return telu_reference(x)

    x = samples(torch.float32)
    torch.testing.assert_close(telu_reference(x).double(), exact(x)[0], rtol=1e-6, atol=1e-7)
    program = torch.onnx.export(Plain(), (x,), dynamo=True, verbose=False)
    kinds = [node.op_type for node in program.model.graph]
    assert sorted(kind for kind in kinds if kind != "Constant") == ["Exp", "Min", "Mul", "Tanh"]


def test_wrong_input() -> None:
    with pytest.raises(TypeError, match=r"int64.*expected a float"):
        telu(torch.arange(3))
    with pytest.raises(TypeError, match="list"):
        telu([1.0])

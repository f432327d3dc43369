"""The operators against their definitions in float64, and their place in PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import kernels

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
HALF = (torch.float16, torch.bfloat16)


def windows_literally(logits: Tensor, values: Tensor) -> Tensor:
    """CDFA mixing as published: unfold, one 9 x 9 product a position and head, fold."""
    n, channels, h, w = values.shape
    heads = logits.shape[1] // 81
    attention = logits.reshape(n, heads, 9, 9, h * w).softmax(3)
    windows = F.unfold(values, 3, padding=1).reshape(n, heads, channels // heads, 9, h * w)
    mixed = torch.einsum("nhqkl,nhdkl->nhdql", attention, windows)
    return F.fold(mixed.reshape(n, channels * 9, h * w), (h, w), 3, padding=1)


def draw(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out, *torch.autograd.grad(out, leaves, torch.ones_like(out))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("scale", [0.1, 1.0, 12.0, 90.0, 1e4])
def test_telu_and_its_gradient(dtype: torch.dtype, scale: float) -> None:
    x = draw(3, 5, 7, dtype=dtype, scale=scale)
    exact, slope = gradients(kernels.telu_reference, x.double())
    got, flowing = gradients(kernels.telu, x)
    assert got.dtype == flowing.dtype == dtype
    # One rounding to the dtype, and float32 arithmetic inside.
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 3e-7}
    torch.testing.assert_close(got.double(), exact, **close)
    # The gradient's terms reach 20 before they cancel.
    torch.testing.assert_close(flowing.double(), slope, **{**close, "atol": 3e-6})


def test_telu_known_values() -> None:
    x = torch.tensor([-float("inf"), -90.0, -1.0788615, 0.0, 3.0, 1e4, float("nan")])
    y, slope = gradients(kernels.telu, x)
    assert y[0] == 0 and torch.signbit(y[0])
    assert y[2].item() == pytest.approx(-0.353286, abs=1e-6)
    assert slope[2].item() == pytest.approx(0, abs=1e-6)
    assert y[4:6].tolist() == [3.0, 1e4] and slope[4:6].tolist() == [1.0, 1.0]
    assert torch.isnan(y[6]) and torch.isnan(slope[6])


def test_telu_keeps_channels_last() -> None:
    x = draw(2, 4, 3, 5, dtype=torch.float32).to(memory_format=torch.channels_last)
    y, slope = gradients(kernels.telu, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert slope.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (16, 16)])
@pytest.mark.parametrize("mix", [kernels.window_mix, kernels.window_mix_convolution])
def test_window_mix_is_the_literal_form(mix: Callable[..., Tensor], size: tuple[int, int]) -> None:
    inputs = draw(2, 3 * 81, *size, scale=3.0), draw(2, 6, *size)
    for got, exact in zip(
        gradients(mix, *inputs), gradients(windows_literally, *inputs), strict=True
    ):
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_window_mix_in_lower_precision(dtype: torch.dtype) -> None:
    inputs = draw(1, 2 * 81, 6, 5, dtype=dtype), draw(1, 8, 6, 5, dtype=dtype)
    exact = windows_literally(*(x.double() for x in inputs))
    got = kernels.window_mix(*(x.to(memory_format=torch.channels_last) for x in inputs))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (7, 5), (5, 300), (65, 3)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("diagonal", [True, False])
def test_dispersive_loss_is_its_definition(
    variant: str, shape: tuple[int, int], normalize: bool, diagonal: bool
) -> None:
    options = {"variant": variant, "normalize": normalize, "include_diagonal": diagonal}
    h = draw(*shape, scale=0.4) + 1
    got = gradients(lambda h: kernels.dispersive_loss(h, **options), h)
    exact = gradients(lambda h: kernels.dispersive_loss_reference(h, **options), h)
    for mine, theirs in zip(got, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dispersive_loss_over_many_blocks(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    h = draw(50, 4)
    whole = gradients(lambda h: kernels.dispersive_loss(h, variant), h)
    monkeypatch.setattr("kernels.dispersive.BLOCK", 50 * 7)
    for got, exact in zip(
        gradients(lambda h: kernels.dispersive_loss(h, variant), h), whole, strict=True
    ):
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-14)


def test_dispersive_loss_is_alive_where_the_published_form_is_dead() -> None:
    h = draw(4, 262_144, dtype=torch.float32).relu()  # distances near 90,000
    leaf = h.clone().requires_grad_()
    squared = torch.cdist(leaf, leaf)[torch.triu(torch.ones(4, 4), 1) > 0].square()
    dead = torch.log(torch.exp(-squared / 0.8).mean() + 1e-8)
    assert torch.autograd.grad(dead, leaf)[0].abs().max() == 0
    _, alive = gradients(kernels.dispersive_loss, h)
    assert alive.abs().max() > 0 and torch.isfinite(alive).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_nearly_constant_rows_keep_their_digits(variant: str) -> None:
    h = 100 + 0.01 * draw(6, 64, dtype=torch.float32)
    got = kernels.dispersive_loss(h, variant)
    exact = kernels.dispersive_loss_reference(h.double(), variant)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_rows(variant: str, dtype: torch.dtype) -> None:
    h = draw(6, 64, dtype=dtype)
    loss, slope = gradients(lambda h: kernels.dispersive_loss(h, variant), h)
    exact, steep = gradients(lambda h: kernels.dispersive_loss(h, variant), h.double())
    assert loss.dtype == torch.float32 and slope.dtype == dtype
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), steep, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_edge_cases(variant: str) -> None:
    for few in (torch.zeros(0, 3), torch.ones(1, 3)):
        loss, slope = gradients(lambda h: kernels.dispersive_loss(h, variant), few)
        assert loss == 0 and slope.abs().sum() == 0
    _, slope = gradients(lambda h: kernels.dispersive_loss(h, variant), torch.ones(4, 3))
    assert slope.abs().max() == 0  # identical rows: by symmetry
    assert torch.isnan(kernels.dispersive_loss(torch.full((3, 2), float("nan")), variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_difference(variant: str) -> None:
    h = draw(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: kernels.dispersive_loss(h, variant), (h,))


def test_operators_by_difference() -> None:
    assert torch.autograd.gradcheck(kernels.telu, (draw(3, 4).requires_grad_(),))
    inputs = draw(1, 81, 2, 3).requires_grad_(), draw(1, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(kernels.window_mix, inputs)


def test_operators_are_registered_soundly() -> None:
    x = draw(3, 4, dtype=torch.float32).requires_grad_()
    inputs = [draw(1, c, 3, 4, dtype=torch.float32).requires_grad_() for c in (81, 2)]
    torch.library.opcheck(torch.ops.medisseg.telu.default, (x,))
    torch.library.opcheck(torch.ops.medisseg.window_mix.default, tuple(inputs))
    torch.library.opcheck(
        torch.ops.medisseg.dispersive.default, (x, "infonce_l2", 0.8, 0.25, False)
    )


class Small(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = kernels.window_mix(kernels.telu(x.repeat(1, 81, 1, 1)), x)
        return y.sum() + kernels.dispersive_loss(y.flatten(1))


def test_compiled_whole_and_exported() -> None:
    x = draw(3, 2, 4, 4, dtype=torch.float32)
    exact = Small()(x)
    compiled = torch.compile(Small(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), exact)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(compiled(leaf), leaf), torch.autograd.grad(Small()(leaf), leaf)
    )
    torch.testing.assert_close(torch.export.export(Small(), (x,)).module()(x), exact)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.telu(torch.ones(2, dtype=torch.int32)), TypeError, "int32"),
        (lambda: kernels.dispersive_loss(torch.ones(3)), ValueError, "2 dimensions"),
        (lambda: kernels.dispersive_loss(torch.ones(3, 2), "l1"), ValueError, "infonce_l2"),
        (lambda: kernels.dispersive_loss(torch.ones(3, 2), tau=0), ValueError, "tau"),
        (lambda: kernels.dispersive_loss([1.0]), TypeError, "list"),
        (
            lambda: kernels.window_mix(torch.ones(1, 80, 2, 2), torch.ones(1, 2, 2, 2)),
            ValueError,
            "heads \\* 81",
        ),
        (
            lambda: kernels.window_mix(torch.ones(1, 81, 2, 2), torch.ones(1, 2, 2, 2).half()),
            TypeError,
            "float16",
        ),
        (
            lambda: kernels.window_mix(
                torch.ones(1, 81, 2, 2), torch.ones(1, 2, 2, 2, device="meta")
            ),
            ValueError,
            "meta",
        ),
    ],
)
def test_wrong_input(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


MEASURE = """
import resource, torch, kernels
h = torch.randn(16384, 64, requires_grad=True)
kernels.dispersive_loss(torch.randn(8, 64, requires_grad=True)).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernels.dispersive_loss(h).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_many_rows_need_little_memory() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    assert int(shown.stdout) < 1_000_000  # KiB above the input; N x N alone would be 1,048,576

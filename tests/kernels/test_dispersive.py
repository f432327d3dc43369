"""kernels.dispersive_loss on a CPU: values and gradients against the definition in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kernels import dispersive_loss, dispersive_loss_reference, pairs
from kernels.dispersive import VARIANTS
from kernels.pairs import Options

INFONCE = VARIANTS[:2]


def rows(n: int, d: int, dtype: torch.dtype = torch.float32, offset: float = 0.0) -> Tensor:
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(n * d)) + offset).to(dtype)


def both(form, h: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
    leaf = h.detach().requires_grad_()
    loss = form(leaf, *args, **options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def check(h: Tensor, variant: str, rtol: float, **options) -> None:
    loss, gradient = both(dispersive_loss, h, variant, **options)
    expected, slope = both(dispersive_loss_reference, h.double(), variant, **options)
    assert gradient.dtype == h.dtype
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=rtol)
    atol = rtol * max(slope.abs().max().item(), 1e-30)
    torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=atol)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 5), (3, 1000), (64, 33), (65, 7), (300, 18), (1100, 3)])
def test_values_and_gradients(shape, variant: str, normalize: bool, diagonal: bool) -> None:
    options = {"normalize": normalize, "include_diagonal": diagonal, "tau": 0.7, "margin": 1.8}
    check(rows(*shape, torch.float64, 1.0), variant, 1e-11, **options)
    check(rows(*shape, torch.float32, 1.0), variant, 1e-5, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [6, 70])
def test_half_precision_computes_in_float32(n: int, variant: str) -> None:
    for dtype, rounding in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        h = rows(n, 40, dtype)
        # As a gradient scaler does, lest float16 gradients vanish.
        loss, gradient = both(lambda x: dispersive_loss(x, variant) * 4096.0, h)
        expected, slope = both(dispersive_loss_reference, h.double(), variant)
        slope *= 4096
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        assert loss.item() / 4096 == pytest.approx(expected.item(), rel=1e-5)
        atol = rounding * slope.abs().max().item()
        torch.testing.assert_close(gradient.double(), slope, rtol=rounding, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [5, 67])
def test_gradcheck(n: int, variant: str) -> None:
    h = rows(n, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dispersive_loss(x, variant), (h,), fast_mode=n > 9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [1, 4, 70])
def test_opcheck(n: int, variant: str) -> None:
    options = (variant, 0.8, 1.0, True, False, 1e-8)
    opcheck(torch.ops.medisseg.dispersive, (rows(n, 6).requires_grad_(), *options))


def test_rows_almost_alike_keep_their_gradient() -> None:
    # Uncentred, ||a||^2 + ||b||^2 - 2ab of these rows is all rounding.
    for n in (8, 80):
        h = 100 + rows(n, 500) * 1e-2
        loss, gradient = both(dispersive_loss, h)
        expected, slope = both(dispersive_loss_reference, h.double())
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-3 * slope.max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [6, 70])
def test_identical_and_zero_rows_have_no_gradient(n: int, variant: str) -> None:
    for h in (rows(1, 9).repeat(n, 1), torch.zeros(n, 9)):
        loss, gradient = both(dispersive_loss, h, variant)
        assert loss.isfinite()
        assert gradient.abs().max() < 1e-6
    mixed = rows(n, 9)
    mixed[1], mixed[2] = mixed[0], 0
    check(mixed, variant, 1e-5)


@pytest.mark.parametrize("variant", INFONCE)
@pytest.mark.parametrize("n", [4, 70])
def test_far_rows_are_finite_and_alive_without_a_floor(n: int, variant: str) -> None:
    for scale in (0.0, 1e-3, 1e2, 1e4):
        h = rows(n, 50) * scale
        loss, gradient = both(dispersive_loss, h, variant, epsilon=0.0)
        assert loss.isfinite() and gradient.isfinite().all()
        if scale:
            assert gradient.abs().max() > 0
    loss, _ = both(dispersive_loss, rows(n, 50) * 1e4, "infonce_l2")
    assert loss.item() == pytest.approx(math.log(1e-8))


def test_official_form_is_at_least_the_log_of_one_over_n() -> None:
    far = torch.eye(10) * 1e3
    loss = dispersive_loss(far, include_diagonal=True)
    assert loss.item() == pytest.approx(math.log(1 / 10))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_are_zero_with_zero_gradient(n: int, variant: str) -> None:
    h = torch.full((n, 4), math.nan)
    loss, gradient = both(dispersive_loss, h, variant)
    assert loss == 0 and torch.equal(gradient, torch.zeros(n, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [5, 70])
def test_nan_and_inf_give_nan(n: int, variant: str, bad: float) -> None:
    h = rows(n, 4)
    h[2, 1] = bad
    loss, gradient = both(dispersive_loss, h, variant)
    assert loss.isnan() and gradient.isnan().any()


@pytest.mark.parametrize("n", [6, 70])
def test_layouts_and_offsets(n: int) -> None:
    h = rows(n, 12)
    for form in (h.T.contiguous().T, torch.cat([h, h])[n:], h.repeat(1, 2)[:, :12]):
        for ours, expected in zip(
            both(dispersive_loss, form), both(dispersive_loss, h), strict=True
        ):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [60, 1500])
def test_deterministic(n: int, variant: str) -> None:
    first, second = (both(dispersive_loss, rows(n, 16), variant) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("n", [4, 70])
def test_compiles_exports_and_autocasts(n: int) -> None:
    h = rows(n, 8)
    compiled = torch.compile(dispersive_loss, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(both(compiled, h), both(dispersive_loss, h), strict=True):
        torch.testing.assert_close(ours, eager)

    class Term(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dispersive_loss(x)

    exported = torch.export.export(Term(), (h,))
    torch.testing.assert_close(exported.module()(h), dispersive_loss(h))
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = both(lambda x: dispersive_loss(x @ torch.eye(8)), h)
    assert loss.dtype == torch.float32 and gradient.abs().max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_constants_are_made_on_the_device(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched from the host they stall a GPU and cannot be captured in a CUDA graph."""

    def refuse(*args, **kwargs):
        raise AssertionError("a constant comes from the host")

    monkeypatch.setattr(Tensor, "new_tensor", refuse)
    monkeypatch.setattr(torch, "tensor", refuse)
    for n in (6, 70):
        h = torch.empty(n, 8, device="meta")
        options = Options(variant, 0.8, 1.0, True, True, 1e-8)
        if n <= pairs.FEW:
            loss, matrix = pairs.few_forward(h, options)
            gradient = pairs.few_backward(torch.ones_like(loss), h, matrix, options)
        else:
            loss = pairs.many_forward(h, options)
            gradient = pairs.many_backward(torch.ones_like(loss), h, loss, options)
        assert loss.is_meta and gradient.is_meta and gradient.shape == h.shape


MEMORY = """
import resource, torch
from kernels import dispersive_loss
torch.set_num_threads(2)
h = torch.randn(16384, 64, requires_grad=True)
dispersive_loss(h[:70]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for variant in ("infonce_l2", "hinge", "covariance"):
    dispersive_loss(h, variant).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_many_rows_need_little_memory() -> None:
    command = [sys.executable, "-c", MEMORY]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 200  # MiB; the pairs alone would be 1024


@pytest.mark.parametrize(
    ("h", "options", "error", "says"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), {}, TypeError, r"int64.*float"),
        ([[1.0]], {}, TypeError, "list"),
        (torch.zeros(3), {}, ValueError, r"\[3\].*2 dim"),
        (torch.zeros(3, 0), {}, ValueError, "column"),
        (torch.zeros(3, 4), {"variant": "infonce"}, ValueError, "infonce_l2"),
        (torch.zeros(3, 4), {"tau": 0.0}, ValueError, "tau is 0"),
        (torch.zeros(3, 4), {"margin": math.nan}, ValueError, "margin is nan"),
        (torch.zeros(3, 4), {"epsilon": 1.0}, ValueError, "epsilon"),
    ],
)
def test_wrong_input(h, options, error, says) -> None:
    with pytest.raises(error, match=says):
        dispersive_loss(h, **options)

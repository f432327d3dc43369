"""The GPU kernels by value: on a GPU, or on CPU tensors under Triton's interpreter.

``test_triton.py`` runs this file both ways; the interpreter is chosen before Triton is imported.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispersive_loss_reference
from kernels.dispersive import VARIANTS
from kernels.pairs import Options
from kernels.spatial_gate import forward as gate_forward
from kernels.telu import backward as telu_backward
from kernels.telu import forward as telu_forward
from kernels.triton_ops import dispersive, few_rows, spatial_gate, telu, upsample, window_mix
from kernels.upsample import empty_joined
from kernels.upsample import forward as upsample_forward
from kernels.window_mix import backward as mix_backward
from kernels.window_mix import forward as mix_forward

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# bfloat16 too: the kernels compute in float32, so the interpreter's own is never used.
HALVES = [torch.float16, torch.bfloat16]
ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 1e-6}


def made(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def exact_telu(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    u = x.clamp(max=5).exp()
    return x * u.tanh(), u.tanh() + x * u / u.cosh().square()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_telu_values_and_derivatives(dtype: torch.dtype) -> None:
    special = [0.0, 12.0, -12.0, 90.0, -90.0, 1e4, -1e4, 4.0, -1.07886, -1.386, -1.387]
    grid = torch.cat([torch.linspace(-15, 15, 2500), torch.tensor(special)])
    x = grid.to(DEVICE, dtype)
    gradient = made(len(x), dtype=dtype)
    value, slope = exact_telu(x)
    tiny = 2**-25 if dtype == torch.float16 else 1e-12
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(telu.forward(x).double(), value, rtol=rounding, atol=tiny)
    found = telu.backward(gradient, x).double()
    expected = slope * gradient.double()
    torch.testing.assert_close(found, expected, rtol=rounding, atol=2 * rounding)


def test_telu_infinities_and_nan() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan], device=DEVICE)
    y, slope = telu.forward(x).tolist(), telu.backward(torch.ones_like(x), x).tolist()
    assert y[0] == math.inf and y[1] == 0 and math.copysign(1, y[1]) == -1 and math.isnan(y[2])
    assert slope[:2] == [1, 0] and math.isnan(slope[2])


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 4096, 5001])
def test_telu_sizes(size: int) -> None:
    x = made(size + 3)[3:]  # an offset that breaks the alignment
    torch.testing.assert_close(telu.forward(x), telu_forward(x))
    torch.testing.assert_close(telu.backward(x, x), telu_backward(x, x))


def test_telu_takes_any_dense_layout_as_it_lies() -> None:
    volume = made(2, 3, 4, 5, 2)
    for x in (
        made(2, 6, 5, 7).to(memory_format=torch.channels_last),
        volume.to(memory_format=torch.channels_last_3d),
        volume.permute(3, 0, 4, 2, 1),
        made(9, 5).T,
        made(6, 1, 4).to(memory_format=torch.contiguous_format)[:, :, None],
    ):
        assert telu.takes(x) and telu.forward(x).stride() == x.stride()
        torch.testing.assert_close(telu.forward(x), telu_forward(x))
        assert telu.takes(x, x) and telu.backward(x, x).stride() == x.stride()
        torch.testing.assert_close(telu.backward(x, x), telu_backward(x, x))


def test_telu_gradients_of_other_strides_in_the_same_memory() -> None:
    x, gradient = made(2, 1, 5, 7), made(2, 1, 5, 7)
    other = gradient.as_strided(x.shape, (35, 1, 7, 1))  # channels_last of one channel
    assert telu.takes(x, other)
    torch.testing.assert_close(telu.backward(other, x), telu_backward(gradient, x))


def test_telu_leaves_gaps_and_other_orders_to_pytorch() -> None:
    x = made(2, 6, 5, 7)
    assert not telu.takes(x, x.to(memory_format=torch.channels_last))
    assert not telu.takes(x, x[:1, :1, :1, :1].expand(x.shape))
    assert not telu.takes(x[:, ::2]) and not telu.takes(x[:0]) and not telu.takes(x.double())
    assert not telu.takes(x[:1].expand(2, -1, -1, -1)) and not telu.takes(x, x.half())


MIXES = [(1, 1, 1, 1, 1), (2, 2, 3, 5, 7), (1, 2, 16, 4, 9), (1, 1, 32, 9, 8)]


def mix_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, depth, height, width = shape
    logits = made(batch, heads * 81, height, width, dtype=dtype, scale=3.0)
    values = made(batch, heads * depth, height, width, dtype=dtype)
    return logits, values, made(batch, heads * depth, height, width, dtype=dtype).flip(0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in MIXES), *((MIXES[2], d) for d in HALVES)],
)
def test_window_mix(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, values, gradient = mix_inputs(shape, dtype)
    assert window_mix.takes(logits, values)
    wide = [x.double() for x in (gradient, logits, values)]
    rounding = 4 * ROUNDING[dtype]
    found = window_mix.forward(logits, values)
    torch.testing.assert_close(found.double(), mix_forward(*wide[1:]), rtol=rounding, atol=rounding)
    for ours, known in zip(
        window_mix.backward(gradient, logits, values), mix_backward(*wide), strict=True
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), known, rtol=rounding, atol=rounding)


def test_window_mix_layouts() -> None:
    logits, values, gradient = mix_inputs((2, 1, 4, 4, 3), torch.float32)
    expected = window_mix.forward(logits, values), *window_mix.backward(gradient, logits, values)
    last = torch.channels_last
    for a, b in (
        (logits.to(memory_format=last), values.to(memory_format=last)),
        (torch.cat([logits, logits])[2:], torch.cat([values, values], 1)[:, 4:]),
        (logits.transpose(2, 3).contiguous().transpose(2, 3), values),
    ):
        found = window_mix.forward(a, b), *window_mix.backward(gradient, a, b)
        assert found[0].stride() == torch.empty_like(b).stride()
        for ours, known in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, known)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 2, 3, 5, 7), (1, 2, 16, 3, 8)])
def test_window_mix_by_fours(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With channels innermost; filters of half-precision values are float16."""
    logits, values, gradient = mix_inputs(shape, dtype)
    values, gradient = (x.permute(0, 2, 3, 1).contiguous() for x in (values, gradient))
    values, gradient = (x.permute(0, 3, 1, 2) for x in (values, gradient))
    assert values.stride(1) == 1
    wide = [x.double() for x in (gradient, logits, values)]
    rounding = 4 * ROUNDING[dtype]
    known = mix_forward(*wide[1:]), *mix_backward(*wide)
    found = window_mix.forward(logits, values), *window_mix.backward(gradient, logits, values)
    for ours, expected in zip(found, known, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=rounding, atol=rounding)


def test_window_mix_extreme_logits() -> None:
    logits, values, _ = mix_inputs((1, 1, 2, 4, 4), torch.float32)
    logits *= 1e4
    torch.testing.assert_close(window_mix.forward(logits, values), mix_forward(logits, values))
    logits[0, 5, 2, 2] = math.nan
    assert window_mix.forward(logits, values).isnan().any()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("channels", [(3, 5), (8, 16), (130, 1)])
def test_upsample_into_a_concatenation(channels: tuple[int, int], dtype: torch.dtype) -> None:
    low, high = (
        made(2, c, *size, dtype=dtype).to(memory_format=torch.channels_last)
        for c, size in zip(channels, ((3, 4), (6, 9)), strict=True)
    )
    assert upsample.takes([low, high]) and not upsample.takes([low.contiguous(), high])
    for maps, size in (([low, high], (6, 9)), ([high, low], (6, 9)), ([low], (1, 1))):
        found = upsample.forward(maps, size, empty_joined(maps, size))
        known = upsample_forward([x.double() for x in maps], size)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        rounding = ROUNDING[dtype]
        torch.testing.assert_close(found.double(), known, rtol=rounding, atol=rounding)


def test_upsample_copies_what_has_the_size_already() -> None:
    """Infinities too, which interpolation would spread as NaN."""
    x = made(2, 8, 5, 7).to(memory_format=torch.channels_last)
    x[0, 3, 2, 2] = math.inf
    found = upsample.forward([x, x], (5, 7), empty_joined([x, x], (5, 7)))
    assert torch.equal(found, torch.cat([x, x], 1))


GATES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 128, 9, 8), (2, 300, 4, 3)]


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("shape", GATES)
def test_spatial_gate(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    last = torch.channels_last
    x, weight = (made(*s, dtype=dtype).to(memory_format=last) for s in (shape, (1, 2, 7, 7)))
    for weight_now in (weight, weight.float().contiguous()):  # autocast leaves weights in float32
        for others in ((None, None), (made(1, dtype=dtype), made(*shape[:2], dtype=dtype))):
            assert spatial_gate.takes(x, weight_now, *others)
            found = spatial_gate.forward(x, weight_now, *others)
            wide = [None if t is None else t.double() for t in (x, weight_now, *others)]
            rounding = ROUNDING[dtype]
            torch.testing.assert_close(
                found.double(), gate_forward(*wide), rtol=2 * rounding, atol=2 * rounding
            )
            assert found.dtype == dtype and found.stride() == x.stride()


def test_spatial_gate_of_special_values() -> None:
    x, weight = made(1, 4, 12, 12).to(memory_format=torch.channels_last), made(1, 2, 7, 7)
    x[0, 1, 5, 5] = math.nan
    x *= 100  # sigmoids of both ends
    found, known = spatial_gate.forward(x, weight, None, None), gate_forward(x, weight, None, None)
    torch.testing.assert_close(found, known, equal_nan=True)
    assert found.isnan().any() and not found[..., 9:, :].isnan().any()


def test_what_the_spatial_gate_leaves_to_pytorch() -> None:
    x, weight = made(2, 4, 5, 7).to(memory_format=torch.channels_last), made(1, 2, 7, 7)
    assert spatial_gate.takes(x, weight)
    assert not spatial_gate.takes(x.contiguous(), weight)
    assert not spatial_gate.takes(x.double(), weight) and not spatial_gate.takes(x[:0], weight)
    assert not spatial_gate.takes(made(1, 1025, 1, 1), weight)


def of_definition(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    leaf = h.double().requires_grad_()
    loss = dispersive_loss_reference(leaf, *options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def ours(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    assert dispersive.takes(h, options.variant)
    loss, matrix = dispersive.forward(h, options)
    one = torch.tensor(1.0, device=h.device)
    return loss, dispersive.backward(one, h, loss, matrix, options)


FEW = [(2, 5), (3, 70), (16, 129), (33, 200), (64, 64)]
MANY = [(65, 7), (130, 18), (200, 64), (100, 130)]
DISPERSIVE = [(v, s) for v in VARIANTS for s in FEW + MANY if v != "covariance" or s in FEW]


@pytest.mark.parametrize(("variant", "shape"), DISPERSIVE)
def test_dispersive(variant: str, shape: tuple[int, int]) -> None:
    h = made(*shape) + 1.0
    for normalize, diagonal in ((True, False), (False, True)):
        options = Options(variant, 0.7, 1.8, normalize, diagonal, 1e-8)
        loss, gradient = ours(h, options)
        expected, slope = of_definition(h, options)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        atol = 1e-5 * max(slope.abs().max().item(), 1e-30)
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", HALVES)
def test_dispersive_in_half_precision(variant: str, dtype: torch.dtype) -> None:
    for shape in [(6, 40)] + [(70, 40)] * (variant != "covariance"):
        h, options = made(*shape, dtype=dtype), Options(variant, 0.8, 1.0, True, False, 1e-8)
        loss, gradient = ours(h, options)
        expected, slope = of_definition(h, options)
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        atol = ROUNDING[dtype] * slope.abs().max().item() + 2**-24
        torch.testing.assert_close(gradient.double(), slope, rtol=ROUNDING[dtype], atol=atol)


def test_dispersive_of_rows_almost_alike() -> None:
    """Distances near tau, so that weights differ: uncentred they are all rounding."""
    for n in (8, 80):
        h, options = 100 + made(n, 50) * 1e-2, Options("infonce_l2", 1e-4, 1.0, True, False, 0.0)
        loss, gradient = ours(h, options)
        expected, slope = of_definition(h, options)
        assert loss.item() == pytest.approx(expected.item(), abs=2e-3)
        atol = 2e-3 * slope.abs().max().item()
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dispersive_of_rows_in_pairs(variant: str) -> None:
    """Each row twice, far from zero: what rounding leaves of their distance pushes nothing."""
    for n in (6, 70) if variant != "covariance" else (6,):
        h = made(n // 2, 33, scale=30.0).repeat(2, 1)
        options = Options(variant, 900.0, 60.0, True, False, 1e-8)
        loss, gradient = ours(h, options)
        expected, slope = of_definition(h, options)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        atol = 1e-5 * slope.abs().max().item()
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dispersive_of_special_rows(variant: str) -> None:
    for n in (6, 70) if variant != "covariance" else (6,):
        options = Options(variant, 0.8, 1.0, True, False, 1e-8)
        for h in (made(1, 9).repeat(n, 1), torch.zeros(n, 9, device=DEVICE)):
            loss, gradient = ours(h, options)
            assert loss.isfinite() and gradient.abs().max() < 1e-6
        for bad in (math.nan, math.inf):
            h = made(n, 9)
            h[2, 1] = bad
            loss, gradient = ours(h, options)
            assert loss.isnan() and gradient.isnan().any()


def test_the_same_bits_every_time() -> None:
    for shape in ((60, 300), (130, 16)):
        h, options = made(*shape), Options("infonce_l2", 0.8, 1.0, True, False, 1e-8)
        for first, second in zip(ours(h, options), ours(h, options), strict=True):
            assert torch.equal(first, second)


class Launches:
    """Stands for a kernel: notes that it was launched, and does nothing."""

    def __init__(self, name: str, noted: list[str]) -> None:
        self.name, self.noted = name, noted

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, **meta: self.noted.append(self.name)


class Computing(TorchDispatchMode):
    """Notes PyTorch's operators, beside those that only allocate or look."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.__name__.startswith(("empty", "new_empty", "detach", "alias", "slice")):
            self.noted.append(func.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_few_rows_take_three_launches_and_one(variant: str, monkeypatch) -> None:
    noted: list[str] = []
    for name in ("gram_kernel", "sum_kernel", "finish_kernel", "backward_kernel"):
        monkeypatch.setattr(few_rows, name, Launches(name, noted))
    h, options = made(8, 700), Options(variant, 0.8, 1.0, True, True, 1e-8)
    one = torch.ones((), device=DEVICE)
    with Computing(noted):
        _, matrix = few_rows.forward(h, options)
        assert noted == ["gram_kernel", "sum_kernel", "finish_kernel"]
        few_rows.backward(one, h, matrix, options)
    assert noted[3:] == ["backward_kernel"]


def test_a_spatial_gate_takes_two_launches_and_a_map_one(monkeypatch) -> None:
    noted: list[str] = []
    for module, name in (
        (spatial_gate, "pool_kernel"),
        (spatial_gate, "gate_kernel"),
        (upsample, "upsample_kernel"),
    ):
        monkeypatch.setattr(module, name, Launches(name, noted))
    x = made(2, 8, 4, 4).to(memory_format=torch.channels_last)
    with Computing(noted):
        spatial_gate.forward(x, made(1, 2, 7, 7), made(1), made(2, 8))
        assert noted[-2:] == ["pool_kernel", "gate_kernel"]
        del noted[:]
        upsample.forward([x, x], (8, 8), empty_joined([x, x], (8, 8)))
    assert noted == ["upsample_kernel"] * 2


def test_what_the_kernels_leave_to_pytorch() -> None:
    assert not dispersive.takes(made(100, 8), "covariance")
    assert not dispersive.takes(made(100, 300), "hinge")
    assert not dispersive.takes(made(8, 6).T, "hinge")
    assert not dispersive.takes(made(1, 6), "hinge")


@pytest.mark.skipif(INTERPRETED, reason="goes through the operators' CUDA registration")
def test_operators_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import dispersive_loss, window_mix_convolution
    from kernels import telu as telu_operator
    from kernels import window_mix as mix_operator

    x = made(2, 8, 16, 16).requires_grad_()
    y = torch.compile(telu_operator, fullgraph=True)(x)
    torch.testing.assert_close(y, telu_forward(x.detach()))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, telu_backward(torch.ones_like(x), x.detach()))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    logits, values, _ = mix_inputs((2, 2, 8, 16, 12), torch.float32)
    torch.testing.assert_close(
        mix_operator(logits, values), window_mix_convolution(logits, values), rtol=1e-4, atol=1e-4
    )
    from kernels import spatial_gate as gate_operator
    from kernels import upsample_concat

    x = made(2, 16, 8, 12).to(memory_format=torch.channels_last)
    gate = x, made(1, 2, 7, 7), made(1), made(2, 16)
    torch.testing.assert_close(gate_operator(*gate), gate_forward(*gate), rtol=1e-4, atol=1e-4)
    compiled = torch.compile(lambda x: upsample_concat([x, x], (16, 24)), fullgraph=True)
    torch.testing.assert_close(compiled(x), upsample_forward([x, x], (16, 24)))
    for shape in ((8, 5000), (4096, 64)):
        h = made(*shape)
        torch.testing.assert_close(
            dispersive_loss(h), dispersive_loss_reference(h), rtol=1e-5, atol=1e-5
        )


@pytest.mark.skipif(INTERPRETED, reason="needs 9 GB of a GPU's memory")
def test_telu_beyond_32_bit_offsets() -> None:
    x = torch.full((2**31 + 5,), -1.0, device=DEVICE, dtype=torch.float16)
    x[-3:] = 2.0
    y = telu.forward(x)
    torch.testing.assert_close(y[-5:], telu_forward(x[-5:]))
    assert y[0] == telu_forward(x[:1])[0]

"""What the operators cannot differentiate says so: it is never silently zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import kernels
from kernels.dispersive import VARIANTS

Form = Callable[[Tensor], Tensor]


def mixed(form: Callable[[Tensor, Tensor], Tensor]) -> Form:
    logits = torch.linspace(-1, 1, 81 * 6, dtype=torch.float64).view(1, 81, 2, 3)
    return lambda x: form(logits * x.mean(), x.view(1, 4, 2, 3))


FORMS: dict[str, tuple[Form, Form]] = {
    "telu": (kernels.telu, kernels.telu_reference),
    "window_mix": (mixed(kernels.window_mix), mixed(kernels.window_mix_convolution)),
}
for name in VARIANTS:
    FORMS[f"dispersive_loss, {name}"] = (
        lambda x, v=name: kernels.dispersive_loss(x.view(8, 3), v),
        lambda x, v=name: kernels.dispersive_loss_reference(x.view(8, 3), v),
    )


def values() -> Tensor:
    return torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def penalty(form: Form, x: Tensor) -> Tensor:
    """The gradient of a gradient penalty."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(form(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    return second


@pytest.mark.parametrize("name", FORMS)
def test_a_second_derivative_raises_and_names_the_form_that_has_one(name: str) -> None:
    ours, other = FORMS[name]
    with pytest.raises(RuntimeError, match=r"second derivative of kernels\.\w+.*kernels\.\w+ can"):
        penalty(ours, values())
    assert penalty(other, values()).abs().max() > 0


@pytest.mark.parametrize("name", FORMS)
def test_torch_func_raises_and_names_the_form_that_works(name: str) -> None:
    ours, other = FORMS[name]
    x = values()
    for call in (
        lambda form: torch.func.grad(lambda v: form(v).sum())(x),
        lambda form: torch.func.jacrev(form)(x),
        lambda form: torch.func.jvp(form, (x,), (x.roll(1),))[1],
    ):
        with pytest.raises(NotImplementedError, match=r"torch\.func.*kernels\.\w+ there"):
            call(ours)
        assert call(other).abs().max() > 0
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="forward mode"),
    ):
        ours(forward_ad.make_dual(x, torch.ones_like(x)))


def test_vmap_still_maps() -> None:
    x = values().view(4, 6)
    torch.testing.assert_close(torch.vmap(kernels.telu)(x), kernels.telu(x))

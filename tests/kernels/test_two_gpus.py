"""The second GPU computes what lies on it, while the first one is current; never run so far."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernels
from kernels import frames

pytestmark = pytest.mark.gpu


@pytest.fixture
def second() -> torch.device:
    """The second GPU; skipped where there is one alone."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} NVIDIA GPU; this needs two")
    torch.cuda.set_device(0)
    return torch.device("cuda:1")


def test_operators(second: torch.device) -> None:
    made = torch.Generator().manual_seed(0)
    x, h = torch.randn(2, 8, 6, 7, generator=made), torch.randn(6, 500, generator=made)
    many = torch.randn(200, 16, generator=made)
    logits = torch.randn(2, 162, 6, 7, generator=made)
    for form, inputs in (
        (kernels.telu, (x,)),
        (kernels.window_mix, (logits, x)),
        (kernels.dispersive_loss, (h,)),
        (kernels.dispersive_loss, (many,)),
    ):
        here = [value.clone().requires_grad_() for value in inputs]
        there = [value.to(second).requires_grad_() for value in inputs]
        ours, known = form(*there), form(*here)
        assert ours.device == second and torch.cuda.current_device() == 0
        torch.testing.assert_close(ours.cpu(), known, rtol=1e-5, atol=1e-5)
        slopes = torch.autograd.grad(ours.sum(), there), torch.autograd.grad(known.sum(), here)
        for mine, wanted in zip(*slopes, strict=True):
            torch.testing.assert_close(mine.cpu(), wanted, rtol=1e-5, atol=1e-5)


def test_frames(second: torch.device) -> None:
    if not frames.build_info()["cuda"]:
        pytest.skip("the extension was built without CUDA")
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    mask[20:70, 30:90] = 1
    there = torch.from_numpy(frame).to(second)
    got = frames.preprocess(there, (64, 64), layout="BGR")
    assert got.device == second and torch.cuda.current_device() == 0
    want = frames.preprocess(frame, (64, 64), layout="BGR")
    np.testing.assert_allclose(got.cpu().numpy(), want, rtol=0, atol=1e-3)
    frames.overlay(there, torch.from_numpy(mask).to(second))
    np.testing.assert_array_equal(there.cpu().numpy(), frames.overlay(frame, mask))

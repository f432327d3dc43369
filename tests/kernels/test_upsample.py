"""kernels.upsample_concat on a CPU, against interpolation and concatenation."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

from kernels import upsample_concat

LAST = torch.channels_last


def maps(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=made).to(dtype, memory_format=LAST) for s in shapes]


def joined(parts: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    large = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in parts]
    return torch.cat(large, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("form", [LAST, torch.contiguous_format])
def test_values_and_layouts(dtype: torch.dtype, form: torch.memory_format) -> None:
    parts = maps((2, 3, 4, 5), (2, 7, 8, 10), (2, 1, 1, 1), dtype=dtype)
    parts = [x.contiguous(memory_format=form) for x in parts]
    found = upsample_concat(parts, (8, 10))
    torch.testing.assert_close(found, joined(parts, (8, 10)))
    assert found.is_contiguous(memory_format=form) and found.dtype == dtype


def test_opcheck_and_compile() -> None:
    parts = maps((2, 8, 3, 5), (2, 4, 6, 10))
    opcheck(torch.ops.medisseg.upsample_concat, (parts, [6, 10]))
    compiled = torch.compile(lambda a, b: upsample_concat([a, b], (6, 10)), backend="aot_eager")
    torch.testing.assert_close(compiled(*parts), joined(parts, (6, 10)))


def test_no_derivative() -> None:
    part = maps((1, 2, 3, 3))[0].requires_grad_()
    with pytest.raises(RuntimeError, match="for inference"):
        upsample_concat([part], (6, 6)).sum().backward()


def test_wrong_input() -> None:
    a, b = maps((1, 2, 3, 3), (2, 2, 3, 3))
    with pytest.raises(ValueError, match="one batch size"):
        upsample_concat([a, b], (6, 6))
    with pytest.raises(ValueError, match="at least one"):
        upsample_concat([], (6, 6))
    with pytest.raises(TypeError, match="one dtype"):
        upsample_concat([a, a.half()], (6, 6))
    with pytest.raises(ValueError, match="4 dimensions"):
        upsample_concat([a[0]], (6, 6))

"""Elementary functions of float32 in one instruction of the GPU, without guards for denormals.

``tl.exp`` and a division cost three to five instructions a number more, which scale arguments that
would be denormal; here those count as zero. Errors, from the PTX ISA: exp2 and reciprocal two units
in the last place, tanh 2**-11 relative. Triton's interpreter has no assembler: it takes ``tl``'s.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp2(x):
    """2**x; 0 below -126."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def reciprocal(x):
    """1 / x."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def tanh(x):
    """tanh of x >= 0."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    q = tl.exp(-2.0 * x)
    return tl.where(x < 0.01, x, (1.0 - q) / (1.0 + q))

"""Open a bundle and run it once: ``python -m export.runtime.trial BUNDLE``, in a child process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from medisseg.errors import command


def main(argv: Sequence[str] | None = None) -> int:
    """Open the bundle named on the command line and answer a black frame."""
    from export.runtime.loading import load_engine

    path = (sys.argv[1:] if argv is None else list(argv))[0]
    with load_engine(path) as engine:
        if engine.traits.frame_size is not None:
            engine.segment(np.zeros((1, *engine.traits.frame_size, 3), np.uint8))
        else:
            engine.infer(np.zeros((1, 3, *engine.convention.size), np.float32))
    return 0


if __name__ == "__main__":
    command(main)

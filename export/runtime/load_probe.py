"""Open a bundle and run it once: ``python -m export.runtime.load_probe BUNDLE DEVICE [KEY]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from medisseg.errors import command


def main(argv: Sequence[str] | None = None) -> int:
    """Open the bundle named on the command line and answer a black frame."""
    from export.runtime.loading import load_engine

    path, device, *key = sys.argv[1:] if argv is None else argv
    with load_engine(path, device, trusted_key=key[0] if key else None) as engine:
        if engine.model_info.frame_size is not None:
            engine.segment(np.zeros((1, *engine.model_info.frame_size, 3), np.uint8))
        else:
            engine.infer(np.zeros((1, 3, *engine.convention.size), np.float32))
    return 0


if __name__ == "__main__":
    command(main)

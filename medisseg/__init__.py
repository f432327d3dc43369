"""Med-DisSeg: polyp segmentation from training images to live endoscopy video."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medisseg.convention import InputConvention as InputConvention
    from medisseg.model.create import create_model as create_model
    from medisseg.model.loading import load_checkpoint as load_checkpoint
    from medisseg.predictor import Predictor as Predictor

_HOMES = {
    "InputConvention": "medisseg.convention",
    "Predictor": "medisseg.predictor",
    "create_model": "medisseg.model.create",
    "load_checkpoint": "medisseg.model.loading",
}
__all__ = ["InputConvention", "Predictor", "__version__", "create_model", "load_checkpoint"]


def __getattr__(name: str) -> object:
    # Importing torch takes seconds; ``medisseg --help`` must not.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medisseg' has no attribute {name!r}")

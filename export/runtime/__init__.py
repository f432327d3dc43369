"""Engines behind one protocol: ``load_engine`` opens a bundle or checkpoint, ``infer`` runs it."""

from export.runtime.engine import Engine, ModelInfo
from export.runtime.loading import load_engine

__all__ = ["Engine", "ModelInfo", "load_engine"]

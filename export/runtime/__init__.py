"""Engines behind one protocol: ``load_engine`` opens a bundle or checkpoint, ``infer`` answers."""

from export.runtime.engine import Engine, Traits
from export.runtime.loading import load_engine

__all__ = ["Engine", "Traits", "load_engine"]

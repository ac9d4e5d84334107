"""Engines, which run training steps: reference, native (CPU), CUDA. Begin with ``base.py``."""

from __future__ import annotations

from nnbackend.engines.base import (
    PRECISIONS,
    Engine,
    EngineFactory,
    EngineState,
    Problem,
    Start,
)
from nnbackend.engines.choice import ENGINES, default_engine, get_engine

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Engine",
    "EngineFactory",
    "EngineState",
    "Problem",
    "Start",
    "default_engine",
    "get_engine",
]

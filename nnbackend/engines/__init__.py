"""Engines, which run training steps: reference, native (CPU), CUDA. Begin with ``base.py``."""

from __future__ import annotations

from nnbackend.engines.base import (
    PRECISIONS,
    Crew,
    Done,
    Engine,
    EngineFactory,
    EngineState,
    Evaluation,
    Problem,
    Start,
    Steps,
    Task,
    Training,
)
from nnbackend.engines.choice import ENGINES, default_engine, get_engine

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Crew",
    "Done",
    "Engine",
    "EngineFactory",
    "EngineState",
    "Evaluation",
    "Problem",
    "Start",
    "Steps",
    "Task",
    "Training",
    "default_engine",
    "get_engine",
]

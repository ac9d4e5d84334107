"""Choose the engine of a training by its name, device and length."""

from __future__ import annotations

import importlib.util
import inspect
import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from nnbackend.checks import lookup
from nnbackend.device import Device
from nnbackend.engines.base import PRECISIONS, EngineFactory, Problem
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.watched import watched
from nnbackend.errors import InputError, MissingDependencyError

__all__ = [
    "ENGINES",
    "checked_engine",
    "checked_precision",
    "default_engine",
    "get_engine",
    "reference_seconds",
]


def _reference(device: Device) -> EngineFactory:
    del device
    return ReferenceEngine


def _cpu(device: Device) -> EngineFactory:
    if device.kind != "cpu":
        raise InputError(
            f"'cpu' runs on device='cpu', got a network on {device}", argument="engine"
        )
    if missing := _missing_packages():
        raise MissingDependencyError(
            f"engine='cpu' needs {missing}, which is not installed; install it with: pip install "
            f"{missing}, or use engine='reference'"
        )
    from nnbackend.engines.native.engine import CpuEngine

    return CpuEngine


def _cuda(device: Device) -> EngineFactory:
    if device.kind != "cuda":
        raise InputError(
            f"'cuda' runs on device='cuda', got a network on {device}", argument="engine"
        )
    from nnbackend.engines.cuda.engine import cuda_engine

    return cuda_engine


ENGINES: dict[str, Callable[[Device], EngineFactory]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "reference": _reference,
}

# Compiling a kind of network takes some seconds; a training shorter than that is not worth it.
COMPILATION_SECONDS = 3.0


def default_engine(device: Device, reference_seconds: float = math.inf) -> str:
    """Return the name of the engine that ``"auto"`` stands for.

    The choice depends only on the device and the length of the training, so that a repeated
    training gives the same bits.

    Parameters
    ----------
    device : Device
        The device of the network.
    reference_seconds : float
        An estimate of how long the training would take on the reference engine.
    """
    if device.kind != "cpu" or reference_seconds < COMPILATION_SECONDS:
        return "reference"
    if missing := _missing_packages():
        warnings.warn(
            f"{missing} is not installed: training runs on the slower reference engine; install it "
            f"with: pip install {missing}",
            stacklevel=_frames_of_this_package() + 1,
        )
        return "reference"
    return "cpu"


def _frames_of_this_package() -> int:
    """Return how many frames there are up to the caller's, which a warning is to name."""
    frame, count = inspect.currentframe(), 0
    while frame is not None and frame.f_globals["__name__"].partition(".")[0] == "nnbackend":
        frame, count = frame.f_back, count + 1
    # This function's own frame is gone when the warning is given.
    return count - 1


def reference_seconds(problem: Problem, n_samples: int, epochs: int) -> float:
    """Estimate the seconds of a training on the reference engine, on two cores of 2021."""
    shapes = problem.objective.structure.weight_shapes
    flops_per_sample = 6 * sum(n_in * n_out for n_in, n_out in shapes)
    n_steps = -(-n_samples // problem.batch_size)
    return epochs * (2e-4 * n_steps + n_samples * flops_per_sample / 4e10)


@cache
def _missing_packages() -> str:
    """Return the names of the packages that the CPU engine needs and that are not installed."""
    names = ("numba", "scipy")
    return " and ".join(name for name in names if importlib.util.find_spec(name) is None)


def checked_engine(name: str, engine: Any) -> str:
    """Return the name of an engine, or ``"auto"``; raise if it is another."""
    lookup(name, engine, dict.fromkeys(("auto", *ENGINES)))
    return str(engine)


def checked_precision(name: str, precision: Any) -> str:
    """Return the name of a precision; raise if it is another."""
    if precision not in PRECISIONS:
        raise InputError(
            f"expected one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}", argument=name
        )
    return str(precision)


def get_engine(engine: str, precision: str, device: Device) -> EngineFactory:
    """Return the factory of the named engine; ``"auto"`` is that of a long training.

    Raises
    ------
    InputError
        If the name is unknown, or the engine does not support the device or the precision.
    MissingDependencyError
        If a named engine needs a package that is not installed.
    """
    engine = checked_engine("engine", engine)
    precision = checked_precision("precision", precision)
    if precision != "float32" and engine != "cuda":
        raise InputError(
            f"{precision!r} is one of engine='cuda' on device='cuda', got "
            f"engine={engine!r} on {device}; use that engine, or 'float32'",
            argument="precision",
        )
    if engine == "auto":
        engine = default_engine(device)
    make = ENGINES[engine](device)
    return make if engine == "reference" else watched(make)

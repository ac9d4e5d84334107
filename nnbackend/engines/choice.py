"""Choose the engine of a training by its name and device."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from nnbackend.checks import lookup
from nnbackend.device import Device
from nnbackend.engines.base import PRECISIONS, EngineFactory
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.watched import watched
from nnbackend.errors import InputError, MissingDependencyError

__all__ = [
    "ENGINES",
    "checked_engine",
    "checked_precision",
    "default_engine",
    "get_engine",
    "trainings_at_once",
]


def _reference(device: Device) -> EngineFactory:
    del device
    return ReferenceEngine


def _native(device: Device) -> EngineFactory:
    if device.kind != "cpu":
        raise InputError(
            f"'native' runs on device='cpu', got a network on {device}", argument="engine"
        )
    from nnbackend.engines.native.library import library, why_missing

    if library() is None:
        raise MissingDependencyError(
            f"engine='native' needs its compiled library: {why_missing()}; or use "
            "engine='reference'"
        )
    from nnbackend.engines.native.engine import NativeEngine

    return NativeEngine


def _cuda(device: Device) -> EngineFactory:
    if device.kind != "cuda":
        raise InputError(
            f"'cuda' runs on device='cuda', got a network on {device}", argument="engine"
        )
    from nnbackend.engines.cuda.engine import cuda_engine

    return cuda_engine


ENGINES: dict[str, Callable[[Device], EngineFactory]] = {
    "native": _native,
    "cuda": _cuda,
    "reference": _reference,
}

# Names that engines had, or that say the same.
ALIASES = {"cpu": "native"}


def default_engine(device: Device) -> str:
    """Return the name of the engine that ``"auto"`` stands for, which depends on the device alone.

    Parameters
    ----------
    device : Device
        The device of the network.
    """
    if device.kind != "cpu":
        return "reference"
    from nnbackend.engines.native.library import library, why_missing

    if library() is not None:
        return "native"
    warnings.warn(
        f"training runs on the slower reference engine: {why_missing()}",
        stacklevel=_frames_of_this_package() + 1,
    )
    return "reference"


def _frames_of_this_package() -> int:
    """Return how many frames there are up to the caller's, which a warning is to name."""
    frame, count = inspect.currentframe(), 0
    while frame is not None and frame.f_globals["__name__"].partition(".")[0] == "nnbackend":
        frame, count = frame.f_back, count + 1
    # This function's own frame is gone when the warning is given.
    return count - 1


def trainings_at_once() -> int:
    """Return how many trainings keep every processor busy, and no more memory than that takes."""
    from nnbackend.engines.native.threads import threads_allowed

    return max(16, 4 * threads_allowed())


def checked_engine(name: str, engine: Any) -> str:
    """Return the name of an engine, or ``"auto"``; raise if it is another."""
    known = {"auto": "auto", **{engine: engine for engine in ENGINES}}
    if isinstance(engine, str):
        engine = ALIASES.get(engine, engine)
    return lookup(name, engine, known)


def checked_precision(name: str, precision: Any) -> str:
    """Return the name of a precision; raise if it is another."""
    if precision not in PRECISIONS:
        raise InputError(
            f"expected one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}", argument=name
        )
    return str(precision)


def get_engine(engine: str, precision: str, device: Device) -> EngineFactory:
    """Return the factory of the named engine.

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

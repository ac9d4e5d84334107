"""TrainingOptions: the options of ``train``, each defined once, with its check."""

# ruff: noqa: RUF009 - each call makes a dataclass field

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any

from nnbackend.checks import positive_integer, real
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Adam, Optimizer, OptimizerState
from nnbackend.core.optimizers import optimizer as get_optimizer
from nnbackend.engines.choice import checked_engine, checked_precision
from nnbackend.errors import InputError
from nnbackend.training.history import Callback, EarlyStopping

__all__ = ["TrainingOptions"]


def _option(default: Any, check: Callable[[str, Any], Any], *, decides: bool = True) -> Any:
    """Return the field of an option.

    Parameters
    ----------
    default : object
        The default value.
    check : callable
        Called with name and value; returns the value in its final form, or raises.
    decides : bool, default True
        Whether the option decides the outcome, so that a training that resumes has to repeat it.
    """
    return field(default=default, metadata={"check": check, "decides": decides})


def _any(_name: str, value: Any) -> Any:
    return value


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"expected True or False, got {value!r}", argument=name)
    return value


def _optimizer(_name: str, value: Any) -> Optimizer:
    return Adam(1e-3) if value is None else get_optimizer(value)


def _shuffle(name: str, value: Any) -> Any:
    if not (isinstance(value, bool) or callable(value)):
        raise InputError(f"expected True, False or a callable, got {value!r}", argument=name)
    return value


def _seed(name: str, value: Any) -> int:
    return positive_integer(name, value, minimum=0)


def _strength(name: str, value: Any) -> float:
    return real(name, value, minimum=0.0)


def _bound(name: str, value: Any) -> float:
    return real(name, value, above=0.0)


def _early_stopping(name: str, value: Any) -> EarlyStopping:
    if not isinstance(value, EarlyStopping):
        raise InputError(f"expected an EarlyStopping or None, got {value!r}", argument=name)
    return value


def _callbacks(name: str, value: Any) -> tuple[Callback, ...]:
    given = tuple(value) if isinstance(value, Iterable) else (value,)
    for callback in given:
        if not callable(callback):
            raise InputError(
                f"expected a callable or several, called as callback(state), got {callback!r}",
                argument=name,
            )
    return given


def _optimizer_state(name: str, value: Any) -> OptimizerState:
    if not isinstance(value, OptimizerState):
        raise InputError(
            f"expected the optimizer_state of a History, got {type(value).__name__}", argument=name
        )
    return value


def _interval(name: str, value: Any) -> float | timedelta:
    if isinstance(value, timedelta):
        if value <= timedelta(0):
            raise InputError(f"expected a time > 0, got {value}", argument=name)
        return value
    if isinstance(value, str):
        raise InputError(
            f"expected a number of epochs or a datetime.timedelta, such as "
            f"timedelta(minutes=1), got {value!r}",
            argument=name,
        )
    return real(name, value, above=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The checked options of ``train``, which documents them.

    Raises
    ------
    InputError
        If an option is invalid, or two options exclude each other.
    """

    optimizer: Optimizer = _option(None, _optimizer)
    loss: str | Loss | None = _option(None, _any)
    epochs: int = _option(50, positive_integer, decides=False)
    batch_size: int | None = _option(128, _optional(positive_integer))
    shuffle: bool | Callable[[], Any] = _option(True, _shuffle)
    seed: int | None = _option(0, _optional(_seed))
    early_stopping: EarlyStopping | None = _option(None, _optional(_early_stopping))
    callbacks: tuple[Callback, ...] = _option((), _callbacks, decides=False)
    l1: float = _option(0.0, _strength)
    l2: float = _option(0.0, _strength)
    penalty_per_sample: bool = _option(False, _flag)
    loss_by_rows: bool = _option(False, _flag)
    clip_value: float | None = _option(None, _optional(_bound))
    clip_norm: float | None = _option(None, _optional(_bound))
    engine: str = _option("auto", checked_engine, decides=False)
    precision: str = _option("float32", checked_precision)
    optimizer_state: OptimizerState | None = _option(
        None, _optional(_optimizer_state), decides=False
    )
    checkpoint: str | os.PathLike[str] | None = _option(None, _any, decides=False)
    checkpoint_every: float | timedelta = _option(timedelta(minutes=1), _interval, decides=False)
    checkpoints_kept: int = _option(3, positive_integer, decides=False)
    resume: bool = _option(False, _flag, decides=False)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = entry.metadata["check"](entry.name, getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
        if self.resume and self.checkpoint is None:
            raise InputError(
                "expected checkpoint, the folder to resume from, got None", argument="resume"
            )
        if self.checkpoint is not None:
            self._require_known_order("checkpoint")

    def require_shared(self) -> None:
        """Raise an InputError if several processes would draw different random numbers."""
        if self.seed is None:
            raise InputError(
                "expected a number with a communicator, so that all processes draw alike, got None",
                argument="seed",
            )
        self._require_known_order("communicator")

    def _require_known_order(self, other: str) -> None:
        if callable(self.shuffle):
            raise InputError(
                f"expected True or False with a {other}, got a callable, whose state "
                "nnbackend does not know",
                argument="shuffle",
            )

    def deciding(self) -> dict[str, Any]:
        """Return by name the options that decide the outcome."""
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.metadata["decides"]
        }

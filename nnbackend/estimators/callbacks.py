"""scikit-learn's callbacks (``set_callbacks``), and what stands for them before 1.9."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from nnbackend.device import get_device
from nnbackend.model.network import Network

__all__ = [
    "CallbackSupportMixin",
    "Tasks",
    "fitted_attributes",
    "has_callbacks",
    "with_callbacks",
]

try:
    from sklearn.callback import CallbackSupportMixin, ProgressBar, with_callbacks

    def _set_callbacks(model: Any) -> None:
        model.set_callbacks(ProgressBar())

except ModuleNotFoundError:  # scikit-learn before 1.9

    class _NoCallbacks:
        """A context without callbacks."""

        def subcontext(self, **_options: Any) -> _NoCallbacks:
            return self

        def call_on_fit_task_begin(self, **_passed: Any) -> None:
            return None

        def call_on_fit_task_end(self, **_passed: Any) -> bool:
            return False

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Estimators have no callbacks there."""

        def _init_callback_context(self, **_options: Any) -> _NoCallbacks:
            return _NoCallbacks()

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method

    def _set_callbacks(model: Any) -> None:
        """Do nothing."""


@cache
def _attributes_of_callbacks() -> frozenset[str]:
    """Return what ``set_callbacks`` sets, whose name is scikit-learn's own affair."""
    probe = CallbackSupportMixin()
    _set_callbacks(probe)
    return frozenset(vars(probe))


def has_callbacks(model: Any) -> bool:
    """Whether ``set_callbacks`` was called on a model, or one that it is a part of."""
    return not _attributes_of_callbacks().isdisjoint(vars(model))


def fitted_attributes(net: Network) -> dict[str, Any]:
    """Return what makes an estimator a fitted one, with the parameters of a network.

    They are views of the parameters of a network in the host's memory.
    """
    to_numpy = get_device(net.device).to_numpy
    return {
        "coefs_": [to_numpy(W) for W in net.weights],
        "intercepts_": [to_numpy(b) for b in net.biases],
    }


class Tasks:
    """The tasks that callbacks are told of: the fit, and every epoch in it.

    They are handed what the caller passed, as scikit-learn's own estimators do: a score of the
    estimator takes labels, not their codes.
    """

    def __init__(
        self, model: Any, net: Network, X: Any, y: Any, sample_weight: Any, max_tasks: int
    ) -> None:
        self._net = net
        self._passed = {
            "estimator": model,
            "X": X,
            "y": y,
            "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
        }
        # Documented as what an estimator calls, though its name begins with an underscore.
        self._fit = model._init_callback_context(max_subtasks=max_tasks)  # noqa: SLF001
        self._fit.call_on_fit_task_begin(**self._passed)

    def _fitted(self) -> dict[str, Any]:
        return fitted_attributes(self._net.copy())

    def begin_epoch(self) -> None:
        """Tell callbacks that an epoch begins."""
        self._epoch = self._fit.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(**self._passed, reconstruction_attributes=self._fitted)

    def end_epoch(self) -> bool:
        """Tell callbacks that the epoch has ended; return whether one asks to stop."""
        return bool(
            self._epoch.call_on_fit_task_end(**self._passed, reconstruction_attributes=self._fitted)
        )

    def end(self) -> None:
        """Tell callbacks that the fit has ended, and the estimator is fitted."""
        self._fit.call_on_fit_task_end(**self._passed, reconstruction_attributes={})

"""scikit-learn's searches and validations, whose networks train side by side."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from joblib.parallel import get_active_backend
from sklearn import model_selection
from sklearn.pipeline import Pipeline

from nnbackend.accel import networks
from nnbackend.accel.patching import Declined
from nnbackend.estimators.meeting import side_by_side

__all__ = ["fit", "validate"]

_GRIDS = {
    model_selection.GridSearchCV: "param_grid",
    model_selection.RandomizedSearchCV: "param_distributions",
}


def fit(original: Callable[..., Any], search: Any, X: Any, y: Any = None, **params: Any) -> Any:
    """Fit a search of scikit-learn's by its own method; the networks train side by side."""
    name = next(name for kind, name in _GRIDS.items() if isinstance(search, kind))
    grids = getattr(search, name)
    for grid in [grids] if isinstance(grids, Mapping) else grids:
        _require_networks(search.estimator, grid, X)
    _require_no_backend()
    with side_by_side(once=True):
        return original(search, X, y, **params)


def validate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of scikit-learn's that fits an estimator to folds, side by side."""
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    _require_networks(given["estimator"], {}, given["X"])
    _require_no_backend()
    with side_by_side(once=True):
        return original(*args, **kwargs)


def _require_no_backend() -> None:
    """Raise Declined where the program has chosen how joblib runs its calls."""
    # The default is made anew for each who asks.
    backend = get_active_backend()[0]
    if backend is get_active_backend()[0]:
        raise Declined(f"the program has chosen joblib's {type(backend).__name__}")


def _require_networks(estimator: Any, grid: Mapping[str, Any], X: Any) -> None:
    """Raise Declined unless all that a search fits ends with a network that is taken over."""
    for key, network, has_steps in _networks(estimator, grid, "", has_steps=False):
        networks.require(network, None if has_steps else X)
        solver = f"{key}__solver" if key else "solver"
        if network.solver == "lbfgs" and solver not in grid:
            raise Declined("solver='lbfgs' trains one network after another")


def _networks(
    estimator: Any, grid: Mapping[str, Any], key: str, *, has_steps: bool
) -> Iterator[tuple[str, Any, bool]]:
    """Yield what trains last, by its name in the grid, and whether steps come before it."""
    if type(estimator) is not Pipeline:
        yield key, estimator, has_steps
        return
    start = f"{key}__" if key else ""
    if f"{start}steps" in grid:
        raise Declined("the grid sets all steps of a pipeline")
    name, last = estimator.steps[-1]
    key = f"{start}{name}"
    choices = grid.get(key, [last])
    if not isinstance(choices, Sequence):
        raise Declined(f"the grid draws {key} from a {type(choices).__name__}")
    for choice in choices:
        yield from _networks(choice, grid, key, has_steps=has_steps or len(estimator.steps) > 1)

"""scikit-learn's searches and validations, whose fits run side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import joblib
import numpy as np
import sklearn
from sklearn import model_selection
from sklearn.base import clone
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline

from nnbackend.estimators.fitting import Estimator
from nnbackend.estimators.meeting import LARGEST, Calls, n_bytes, side_by_side
from nnbackend.io.sklearn import StackedEstimator

__all__ = [
    "GridSearchCV",
    "RandomizedSearchCV",
    "cross_val_predict",
    "cross_val_score",
    "cross_validate",
]

_LOGGER = logging.getLogger("nnbackend")
_F = TypeVar("_F", bound=Callable[..., Any])


class _SideBySide:
    """Fit the models of a search side by side; comes before a search of scikit-learn's.

    Attributes
    ----------
    n_fits_together_ : int
        How many fits of a fold ran side by side; the others ran one by one.
    """

    estimator: Any
    verbose: int
    best_estimator_: Any

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Run fit with all sets of parameters.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            The examples. Rows that a fold takes from an array are read-only, as they are in
            scikit-learn's processes.
        y : array-like (n_samples,) or (n_samples, n_outputs), optional
            Targets.
        **params
            What scikit-learn's search takes: ``groups``, and parameters of ``fit``, of the scorer
            and of the splitter.

        Returns
        -------
        object
            This search.
        """
        settings = getattr(self, "param_grid", None), getattr(self, "param_distributions", None)
        if not _has_ours(self.estimator) and not _has_ours(settings):
            super().fit(X, y, **params)  # type: ignore[misc]
            self.n_fits_together_ = 0
            return self
        kept = _Kept()
        with side_by_side(once=True) as calls, self._with_memory(kept):
            # The model that is refitted then may keep X.
            calls.on_end = kept.close
            try:
                super().fit(_rows(X, kept), y, **params)  # type: ignore[misc]
            finally:
                kept.close()
        self.n_fits_together_ = calls.n_together
        _report(calls, self.verbose)
        return self

    @contextmanager
    def _with_memory(self, kept: _Kept) -> Iterator[None]:
        """Have a pipeline without a memory remember the steps that it has fitted."""
        own = self.estimator
        if not isinstance(own, Pipeline) or own.memory is not None:
            yield
            return
        memory = _Memory(kept)
        self.estimator = clone(own).set_params(memory=memory)
        try:
            yield
        finally:
            self.estimator = own
            best: Any = getattr(self, "best_estimator_", None)
            if getattr(best, "memory", None) is memory:
                best.set_params(memory=None)


class GridSearchCV(_SideBySide, model_selection.GridSearchCV):  # type: ignore[misc]
    """scikit-learn's ``GridSearchCV``, which fits models of nnbackend side by side.

    It has the parameters, attributes and results of scikit-learn's. ``n_jobs`` has no effect: the
    trainings use all processors. Only where no model is nnbackend's, all is as scikit-learn does
    it. In a pipeline without ``memory``, the steps before the last are fitted once for each fold
    and each setting of their own. ``mean_fit_time`` counts the time of a model's own work.
    ``n_fits_together_`` says how many fits ran side by side. Ensembles are fitted one after
    another, the members of each side by side. See ``nnbackend.side_by_side``.

    Examples
    --------
    >>> import nnbackend as nb
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = nb.MLPClassifier(8, tol=0.1, random_state=0)
    >>> search = nb.GridSearchCV(model, {"alpha": [0.01, 0.1]}, cv=3).fit(X, y)
    >>> search.n_fits_together_, search.cv_results_["mean_test_score"].shape
    (6, (2,))
    """


class RandomizedSearchCV(_SideBySide, model_selection.RandomizedSearchCV):  # type: ignore[misc]
    """scikit-learn's ``RandomizedSearchCV``, which fits models of nnbackend side by side.

    See ``nnbackend.GridSearchCV``.
    """


def _sharing(function: _F) -> Callable[[_F], _F]:
    """Make a function of scikit-learn's that fits models side by side."""

    def decorate(described: _F) -> _F:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not _has_ours(args[0] if args else kwargs.get("estimator")):
                return function(*args, **kwargs)
            with side_by_side(once=True) as calls:
                result = function(*args, **kwargs)
            _report(calls, kwargs.get("verbose", 0))
            return result

        run.__doc__, run.__module__ = described.__doc__, described.__module__
        return run  # type: ignore[return-value]

    return decorate


@_sharing(model_selection.cross_validate)
def cross_validate(*args: Any, **kwargs: Any) -> Any:
    """Do what scikit-learn's ``cross_validate`` does; fit models of nnbackend side by side."""


@_sharing(model_selection.cross_val_score)
def cross_val_score(*args: Any, **kwargs: Any) -> Any:
    """Do what scikit-learn's ``cross_val_score`` does; fit models of nnbackend side by side."""


@_sharing(model_selection.cross_val_predict)
def cross_val_predict(*args: Any, **kwargs: Any) -> Any:
    """Do what scikit-learn's ``cross_val_predict`` does; fit models of nnbackend side by side."""


def _has_ours(given: Any) -> bool:
    """Whether there are models of ours in an estimator, or in settings of a search."""
    # nnbackend.accel may have taken scikit-learn's networks over.
    if isinstance(given, Estimator | StackedEstimator | MLPClassifier | MLPRegressor):
        return True
    if isinstance(given, dict):
        return any(map(_has_ours, given.values()))
    if isinstance(given, list | tuple):
        return any(map(_has_ours, given))
    if isinstance(given, type) or not hasattr(given, "get_params"):
        return False
    return any(map(_has_ours, given.get_params(deep=False).values()))


def _report(calls: Calls, verbose: int) -> None:
    """Say how many fits ran side by side."""
    one_by_one = calls.n_calls - calls.n_together
    text = f"{calls.n_together} of {calls.n_calls} fits ran side by side, {one_by_one} one by one"
    _LOGGER.info(text)
    if verbose > 0:
        print(text)


class _Kept:
    """What the calls of a search have computed and others will need, up to some bytes.

    Attributes
    ----------
    is_open : bool
        Whether there are calls to come.
    """

    def __init__(self) -> None:
        self.is_open = True
        self._values: dict[Hashable, Any] = {}
        self._arrays: dict[int, Any] = {}
        self._bytes = 0

    def close(self) -> None:
        """Forget all, and keep nothing from now on."""
        self.is_open = False
        self._values.clear()
        self._arrays.clear()

    def get(self, key: Hashable) -> Any:
        """Return what is kept under a key, or None."""
        return self._values.get(key)

    def add(self, key: Hashable, value: Any, data: Any) -> None:
        """Keep a value, in which data takes the memory, if there is room."""
        if not self.is_open:
            return
        if id(data) in self._arrays:
            self._values[key] = value
        elif self._bytes + n_bytes(data) <= LARGEST:
            self._bytes += n_bytes(data)
            self._values[key], self._arrays[id(data)] = value, data

    def identity(self, data: Any) -> Hashable:
        """Return what is the same for equal data, as far as that is quickly known."""
        return id(data) if id(data) in self._arrays else joblib.hash(data)


class _Rows(np.ndarray[Any, Any]):
    """An array of which the rows of a fold are taken once."""

    kept: _Kept | None

    def __array_finalize__(self, parent: Any) -> None:
        del parent
        self.kept = None

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return results as arrays of NumPy's own class."""
        return np.asarray(self).__array_wrap__(np.asarray(array), context, return_scalar)

    def __reduce__(self) -> Any:
        """Pickle as an array of NumPy's own class."""
        return np.asarray(self).__reduce__()

    def __getitem__(self, key: Any) -> Any:
        match key:
            # As scikit-learn takes rows. It keeps the indices of a fold while it searches.
            case (np.ndarray() as rows, e) if (
                e is Ellipsis and self.kept is not None and self.kept.is_open
            ):
                name = rows.dtype.str, rows.tobytes()
                taken = self.kept.get(name)
                if taken is None:
                    taken = np.asarray(self)[key]
                    taken.flags.writeable = False
                    self.kept.add(name, taken, taken)
                return taken
            case _:
                return np.asarray(self)[key]


def _rows(X: Any, kept: _Kept) -> Any:
    """Return an array in a form of which the rows of a fold are taken once; other data as it is."""
    if type(X) is not np.ndarray or X.ndim == 0 or sklearn.get_config()["array_api_dispatch"]:
        return X
    rows = X.view(_Rows)
    rows.kept = kept
    return rows


class _Memory:
    """Remember the steps that pipelines have fitted, in the interface of ``joblib.Memory``."""

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept

    def __sklearn_clone__(self) -> _Memory:
        return self

    def __reduce__(self) -> Any:
        # A copy of a pipeline in another process has none.
        return type(None), ()

    def cache(self, function: _F, ignore: Sequence[str] = (), **_options: Any) -> _F:
        """Return a function that fits and transforms, but not twice the same."""

        def remembered(transformer: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._kept.is_open:
                return function(transformer, X, *args, **kwargs)
            essence = {name: value for name, value in kwargs.items() if name not in ignore}
            try:
                what = joblib.hash((transformer, args, essence))
                key = function, self._kept.identity(X), what
            except Exception:  # noqa: BLE001 - what cannot be pickled is not remembered
                return function(transformer, X, *args, **kwargs)
            found = self._kept.get(key)
            if found is None:
                found = _protected(function(transformer, X, *args, **kwargs))
                self._kept.add(key, found, found[0])
            transformed, fitted = found
            # Other data than arrays cannot be protected from a step that works in place.
            if not isinstance(transformed, np.ndarray) and hasattr(transformed, "copy"):
                transformed = transformed.copy()
            return transformed, fitted

        return remembered  # type: ignore[return-value]


def _protected(result: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return transformed data, read-only if it is an array, and the step that has made it."""
    transformed, fitted = result
    if isinstance(transformed, np.ndarray):
        transformed = np.asarray(transformed).view()
        transformed.flags.writeable = False
    return transformed, fitted

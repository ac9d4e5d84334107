"""``EnsembleClassifier`` and ``EnsembleRegressor``: networks that are fitted side by side.

They are deep ensembles (Lakshminarayanan, Pritzel and Blundell, 2017): members differ in their
initial weights and the order of their batches, with ``bootstrap`` in the weights of their rows too,
and their outputs are averaged.

A member's rows are given by weights, not by copies: all fits share the features. So every member
knows every class, and early stopping never holds out a row that is also trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data

from nnbackend.core.distributions import DISTRIBUTIONS
from nnbackend.device import get_device
from nnbackend.errors import InputError
from nnbackend.estimators import labels
from nnbackend.estimators.arrays import dense, in_library, native, on_cpu
from nnbackend.estimators.base import FLOATS, TakesArrays, outputs
from nnbackend.estimators.fitting import Estimator, FitDivergedError, Passed, checked_weight
from nnbackend.estimators.mlp import MLPClassifier, MLPRegressor
from nnbackend.estimators.parameters import ENSEMBLE, check_parameters
from nnbackend.estimators.together import Fit, fit_together
from nnbackend.floating_point import own_errors
from nnbackend.io.skl2onnx import register
from nnbackend.io.sklearn import StackedEstimator
from nnbackend.model.stack import deviation

__all__ = ["EnsembleClassifier", "EnsembleRegressor"]

_Array = np.ndarray[Any, Any]
_MOST_SEED = 2**31 - 1


@dataclass(frozen=True, eq=False)
class _Member:
    """A network to fit.

    Attributes
    ----------
    model : Estimator
        With a seed of its own.
    weight : array (n_samples,) or None
        The weights of its rows.
    unseen : array of int
        The rows that tell the noise, which it does not learn from.
    """

    model: Estimator
    weight: _Array | None
    unseen: _Array


class _Ensemble(StackedEstimator, TakesArrays):
    """What both ensembles share; subclasses say what their members are, and decode outputs."""

    estimators_: list[Any]
    _kind: ClassVar[type[Estimator]]
    _theirs: ClassVar[type]
    _target_options: ClassVar[Mapping[str, Any]] = {}

    if TYPE_CHECKING:
        # The parameters, which the subclasses set.
        estimator: Any
        n_estimators: int
        bootstrap: bool
        random_state: Any

    @property
    def device(self) -> str | None:
        """The device of the members; None: where X is."""
        return None if self.estimator is None else self.estimator.device

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimators_")

    def _member(self) -> Estimator:
        """Return an estimator like the members, not fitted."""
        if self.estimator is None:
            return self._kind()
        if not isinstance(self.estimator, self._kind):
            got, advice = type(self.estimator).__name__, ""
            if hasattr(self.estimator, "steps"):
                advice = "; put the ensemble at the end of the Pipeline instead"
            elif isinstance(self.estimator, self._theirs):
                got = f"scikit-learn's {got}"
                advice = f"; pass nb.{self._kind.__name__}(**estimator.get_params()) instead"
            raise InputError(
                f"expected an nb.{self._kind.__name__} or None, got {got}{advice}",
                argument="estimator",
            )
        member: Estimator = clone(self.estimator)
        return member

    def _folds(self) -> int | None:
        """Return of how many parts of the rows the noise is found; None: of none."""
        return None

    @own_errors
    def _fit(self, passed: Passed) -> tuple[Passed, list[_Member], str]:
        """Fit all members; return what they were given, those fitted to find the noise, where."""
        check_parameters(self, ENSEMBLE)
        base = self._member()
        place = self._place_of(passed.X, "fit", is_fit=True)
        X, y = validate_data(
            self,
            native(passed.X),
            on_cpu(passed.y),
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=FLOATS,
            **self._target_options,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        weight = checked_weight(on_cpu(passed.sample_weight), X.shape[0])
        passed = replace(passed, X=dense(X), y=y, sample_weight=weight)
        if passed.X_val is not None:
            passed = replace(passed, X_val=dense(self._features(native(passed.X_val))))
        begun: list[_Member] = []
        ended = self._fitted(self._members(base, passed), passed, begun)
        members = [entry for entry in begun[: self.n_estimators] if entry in ended]
        self.estimators_ = [entry.model for entry in members]
        self.n_outputs_ = self.estimators_[0].n_outputs_
        extra = [entry for entry in begun[self.n_estimators :] if entry in ended]
        return passed, members if self.bootstrap else extra, place

    def _members(self, base: Estimator, passed: Passed) -> Iterator[_Member]:
        """Yield the networks to fit: the members, and those whose residuals tell the noise.

        The draws of a member do not depend on how many follow.
        """
        random, n_samples, weight = (
            check_random_state(self.random_state), len(passed.y), passed.sample_weight,
        )  # fmt: skip
        dtype = passed.X.dtype.name
        rows = np.arange(n_samples) if weight is None else np.flatnonzero(weight)
        own = np.ones(n_samples, dtype) if weight is None else weight
        none = rows[:0]

        def model() -> Any:
            return clone(base).set_params(random_state=random.randint(_MOST_SEED))

        for _ in range(self.n_estimators):
            if not self.bootstrap:
                yield _Member(model(), weight, none)
                continue
            seeded = model()
            drawn = random.randint(len(rows), size=len(rows))
            counts = np.zeros(n_samples, own.dtype)
            counts[rows] = np.bincount(drawn, minlength=len(rows))
            yield _Member(seeded, counts * own, rows[counts[rows] == 0])
        n_folds = self._folds()
        if self.bootstrap or n_folds is None or len(rows) < 2:
            return
        order = random.permutation(rows)
        for fold in range(min(n_folds, len(rows))):
            unseen = order[fold::n_folds]
            seen = own.copy()
            seen[unseen] = 0.0
            yield _Member(model(), seen, unseen)

    def _fitted(
        self, members: Iterator[_Member], passed: Passed, begun: list[_Member]
    ) -> list[_Member]:
        """Fit networks side by side; return those that did not diverge, in no order."""

        def fits() -> Iterator[Fit]:
            for entry in members:
                begun.append(entry)
                yield Fit(entry.model, replace(passed, sample_weight=entry.weight))

        ended: list[_Member] = []
        errors: dict[int, Exception] = {}
        try:
            with warnings.catch_warnings():
                # Every member would say it.
                warnings.filterwarnings("ignore", "Training interrupted by user", UserWarning)
                for end in fit_together(fits()):
                    if end.error is None:
                        ended.append(begun[end.number])
                    elif isinstance(end.error, FitDivergedError):
                        errors[end.number] = end.error
                    else:
                        raise end.error
        except KeyboardInterrupt:
            # As after an interrupt of a single fit, there is a model of what was learnt.
            n_kept = sum(entry in ended for entry in begun[: self.n_estimators])
            if n_kept == 0:
                raise
            warnings.warn(
                f"Training interrupted by user: {n_kept} of {self.n_estimators} members are kept.",
                stacklevel=2,
            )
        lost = [number for number in errors if number < self.n_estimators]
        if not any(entry in ended for entry in begun[: self.n_estimators]):
            raise errors[min(lost)]
        if lost:
            warnings.warn(
                f"{len(lost)} of {self.n_estimators} members diverged and were left out of the "
                "ensemble; lower learning_rate_init, set clip_norm=1.0, or standardize the "
                "features",
                ConvergenceWarning,
                stacklevel=2,
            )
        return ended

    def _each(self, X: Any, method: str) -> tuple[Iterator[Any], str]:
        """Return the outputs of every member for the caller's rows, and the GPU they are on."""
        check_is_fitted(self)
        place = self._place_of(X, method)
        features = dense(self._features(native(X)))
        home = self._home(place)
        if home.kind != "cpu":
            features = home.place(features, features.dtype)
        return (outputs(member, features, place) for member in self.estimators_), place

    def _mean(self, X: Any, method: str) -> tuple[Any, str]:
        """Return the mean of the members' outputs, and the GPU that it is on."""
        each, place = self._each(X, method)
        return sum(each) / len(self.estimators_), place


class EnsembleClassifier(ClassifierMixin, _Ensemble):  # type: ignore[misc]
    """Classifiers fitted side by side, whose probabilities are averaged: a deep ensemble.

    On the CPU the members are spread over threads inside the C library; each gets the bits that it
    would have alone. A member that diverges is left out, with a ``ConvergenceWarning``; if all do,
    ``fit`` raises.

    Parameters
    ----------
    estimator : MLPClassifier, optional
        What each member is; its ``random_state`` is replaced. ``MLPClassifier()`` by default. To
        standardize features, put the ensemble behind a ``StandardScaler`` in a Pipeline.
    n_estimators : int, default 16
        How many members there are.
    bootstrap : bool, default False
        Whether every member draws as many rows as there are, with replacement. A row that it drew
        k times has k times its weight; the features are not copied.
    random_state : int, RandomState or None
        Draws the seeds of the members, and their rows.

    Attributes
    ----------
    estimators_ : list of MLPClassifier
        The members, each with the ``random_state`` that it had.
    classes_ : array (n_classes,)
        The class labels, which every member knows.
    n_features_in_, n_outputs_ : int
        As those of the members.

    See Also
    --------
    EnsembleRegressor : For numbers.

    Examples
    --------
    >>> import nnbackend as nb
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> member = nb.MLPClassifier((16,), learning_rate_init=0.02, max_iter=400)
    >>> model = nb.EnsembleClassifier(member, n_estimators=4, random_state=0).fit(X, y)
    >>> model.predict_proba(X[:3]).shape, model.predict_members(X[:3]).shape
    ((3, 3), (4, 3, 3))
    >>> model.score(X, y) > 0.95
    True
    """

    _kind = MLPClassifier
    _theirs = neural_network.MLPClassifier

    def __init__(
        self,
        estimator: Any = None,
        n_estimators: int = 16,
        *,
        bootstrap: bool = False,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.bootstrap = bootstrap
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_val: Any = None, y_val: Any = None
    ) -> EnsembleClassifier:
        """Fit the members; see ``MLPClassifier.fit`` for the arguments.

        Returns
        -------
        EnsembleClassifier
        """
        self._fit(Passed(X, y, sample_weight, X_val, y_val))
        self.classes_ = self.estimators_[0].classes_
        return self

    @own_errors
    def predict(self, X: Any) -> Any:
        """Return the classes of the highest mean probability; or a row of 0 and 1, label by label.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples,) or (n_samples, n_outputs)
            Of X's library, where X is, with ``array_api_dispatch``; else NumPy's.
        """
        A, place = self._mean(X, "predict")
        is_multilabel = self.estimators_[0].out_activation_ == "logistic" and A.shape[1] > 1
        return in_library(X, labels.decoded(A, None if is_multilabel else self.classes_, place))

    @own_errors
    def predict_proba(self, X: Any) -> Any:
        """Return the mean of the members' probabilities of the classes, or of every label.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples, n_classes)
            Of X's library, where X is, with ``array_api_dispatch``; else NumPy's.
        """
        return in_library(X, _probabilities(*self._mean(X, "predict_proba")))

    @own_errors
    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of what ``predict_proba`` returns."""
        return in_library(X, np.log(_probabilities(*self._mean(X, "predict_log_proba"))))

    @own_errors
    def predict_members(self, X: Any) -> Any:
        """Return the probabilities of every member.

        Where members disagree, the ensemble has seen few such examples.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_members, n_samples, n_classes)
        """
        each, place = self._each(X, "predict_members")
        xp = get_device(place or "cpu").xp
        return in_library(X, xp.stack([_probabilities(A, place) for A in each]))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _probabilities(A: Any, place: str) -> Any:
    """Return a column for each class, also of two."""
    if A.shape[1] > 1:
        return A
    return get_device(place or "cpu").xp.concat([1.0 - A, A], axis=1)


class EnsembleRegressor(RegressorMixin, _Ensemble):  # type: ignore[misc]
    """Regressors fitted side by side, whose predictions are averaged: a deep ensemble.

    ``predict(X, return_std=True)`` also returns a standard deviation for each prediction: that of a
    new observation, as ``BayesianRidge`` returns it. It has two parts,

        std**2 = (variance of the members' predictions) + noise_**2.

    The first tells how little the data say about the function there (epistemic uncertainty). The
    second is one number for all rows: the root mean squared residual on rows that what predicts
    them was not fitted to. It is rather too large than too small, as it has the errors of networks
    in it that saw fewer rows. To get the first alone, take the deviation of ``predict_members``, or
    set ``noise_folds=None``.

    On the CPU the members are spread over threads inside the C library; each gets the bits that it
    would have alone. A member that diverges is left out, with a ``ConvergenceWarning``; if all do,
    ``fit`` raises.

    Parameters
    ----------
    estimator : MLPRegressor, optional
        What each member is; its ``random_state`` is replaced. ``MLPRegressor()`` by default. To
        standardize features, put the ensemble behind a ``StandardScaler`` in a Pipeline.
    n_estimators : int, default 16
        How many members there are.
    bootstrap : bool, default False
        Whether every member draws as many rows as there are, with replacement. A row that it drew
        k times has k times its weight; the features are not copied.
    noise_folds : int or None, default 5
        How ``noise_`` is found. With ``bootstrap`` each row is predicted by the members that did
        not draw it. Without, as many more networks are fitted beside the members, each to all but
        one of so many parts of the rows, and predict that part. None: not at all.
    random_state : int, RandomState or None
        Draws the seeds of the members, and their rows.

    Attributes
    ----------
    estimators_ : list of MLPRegressor
        The members, each with the ``random_state`` that it had.
    noise_ : float, or array (n_outputs,)
        The deviation of the noise; 0 with ``noise_folds=None``, NaN if no row was left out of a
        fit.
    n_features_in_, n_outputs_ : int
        As those of the members.

    See Also
    --------
    EnsembleClassifier : For classes.

    Examples
    --------
    >>> import numpy as np
    >>> import nnbackend as nb
    >>> X = np.linspace(-1.0, 1.0, 200)[:, np.newaxis]
    >>> y = np.random.default_rng(0).normal(X[:, 0], 0.1)
    >>> member = nb.MLPRegressor(hidden_layer_sizes=(16,), solver="lbfgs", alpha=0.1)
    >>> model = nb.EnsembleRegressor(member, n_estimators=8, random_state=0).fit(X, y)
    >>> mean, std = model.predict([[0.0], [5.0]], return_std=True)
    >>> bool(0.08 < model.noise_ < 0.12), bool(std[1] > std[0] > model.noise_)
    (True, True)
    """

    _kind = MLPRegressor
    _theirs = neural_network.MLPRegressor
    _target_options: ClassVar[dict[str, Any]] = {"y_numeric": True}

    def __init__(
        self,
        estimator: Any = None,
        n_estimators: int = 16,
        *,
        bootstrap: bool = False,
        noise_folds: int | None = 5,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.bootstrap = bootstrap
        self.noise_folds = noise_folds
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_val: Any = None, y_val: Any = None
    ) -> EnsembleRegressor:
        """Fit the members; see ``MLPClassifier.fit`` for the arguments, with numbers in ``y``.

        Returns
        -------
        EnsembleRegressor
        """
        noise = self._noise(*self._fit(Passed(X, y, sample_weight, X_val, y_val)))
        self.noise_: Any = float(noise[0]) if self.n_outputs_ == 1 else noise
        if np.isnan(noise).any():
            warnings.warn(
                "noise_ is unknown, and std will be NaN: no row was left out of a fit that ended; "
                "fit again, with more rows or members, or set noise_folds=None",
                stacklevel=2,
            )
        return self

    def _member(self) -> Estimator:
        member = super()._member()
        if getattr(member.loss, "output", member.loss) in DISTRIBUTIONS:
            raise InputError(
                f"expected members whose predictions are values, got loss={member.loss!r}; an "
                "ensemble finds deviations itself, see noise_folds",
                argument="estimator",
            )
        return member

    def _folds(self) -> int | None:
        return self.noise_folds

    @own_errors
    def _noise(self, passed: Passed, members: list[_Member], place: str) -> _Array:
        """Return the root mean squared residual on rows that networks did not learn from."""
        if self.noise_folds is None:
            return np.zeros(self.n_outputs_)
        y = np.reshape(passed.y, (len(passed.y), -1))
        xp = get_device(place or "cpu").xp
        total, count = np.zeros(y.shape), np.zeros((len(y), 1))
        for member in members:
            rows = member.unseen
            if len(rows):
                X = xp.take(passed.X, xp.asarray(rows), axis=0)
                total[rows] += on_cpu(outputs(member.model, X, place))
                count[rows] += 1
        known = count[:, 0] > 0
        if not known.any():
            return np.full(self.n_outputs_, np.nan)
        squares = np.square(total[known] / count[known] - y[known])
        weight = None if passed.sample_weight is None else passed.sample_weight[known]
        deviation: _Array = np.sqrt(np.average(squares, axis=0, weights=weight))
        return deviation

    @own_errors
    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the mean of the members' predictions and, if asked for, standard deviations.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.
        return_std : bool, default False
            Whether to return the deviations of new observations as well: the members' spread and
            ``noise_``.

        Returns
        -------
        mean : array (n_samples,) or (n_samples, n_outputs)
            Of X's library, where X is, with ``array_api_dispatch``; else NumPy's.
        std : array of the same shape
            Only with ``return_std``.
        """
        if not return_std:
            return in_library(X, _squeezed(self._mean(X, "predict")[0]))
        each, place = self._each(X, "predict")
        xp = get_device(place or "cpu").xp
        members = xp.stack(list(each))
        # As without the deviations, bit for bit.
        mean = sum(members) / len(members)
        noise = xp.asarray(np.asarray(self.noise_, members.dtype))
        std = deviation(xp, members, mean, noise)
        return in_library(X, _squeezed(mean)), in_library(X, _squeezed(std))

    @own_errors
    def predict_members(self, X: Any) -> Any:
        """Return the predictions of every member.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_members, n_samples) or (n_members, n_samples, n_outputs)
        """
        each, place = self._each(X, "predict_members")
        xp = get_device(place or "cpu").xp
        return in_library(X, xp.stack([_squeezed(A) for A in each]))


def _squeezed(A: Any) -> Any:
    """Return values without the axis of the outputs if there is only one."""
    return A[:, 0] if A.shape[1] == 1 else A


register(EnsembleClassifier, EnsembleRegressor)

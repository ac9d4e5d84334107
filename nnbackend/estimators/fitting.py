"""What both estimators share in fitting: checking, initializing and training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Number
from typing import Any, ClassVar

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.validation import validate_data

from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Optimizer, OptimizerState
from nnbackend.core.schedules import Schedule
from nnbackend.core.standardization import Standardization
from nnbackend.data.examples import Orders
from nnbackend.data.source import Rows, Source
from nnbackend.data.sources import as_source
from nnbackend.data.validation import no_weight_error
from nnbackend.device import get_device
from nnbackend.engines import Training
from nnbackend.engines.driving import alone
from nnbackend.errors import InputError
from nnbackend.estimators.arrays import dense, native, on_cpu, on_host
from nnbackend.estimators.base import FLOATS, Predictor
from nnbackend.estimators.callbacks import (
    CallbackSupportMixin,
    Tasks,
    has_callbacks,
    with_callbacks,
)
from nnbackend.estimators.formulas import EpochRate, SklearnAdam, SklearnSGD
from nnbackend.estimators.lbfgs import evaluation
from nnbackend.estimators.meeting import fit_alone_or_together
from nnbackend.estimators.parameters import Rule, check_parameters
from nnbackend.estimators.scores import ValidationScore
from nnbackend.estimators.watch import Watch
from nnbackend.floating_point import own_errors
from nnbackend.model.network import Network
from nnbackend.training.errors import DivergenceError
from nnbackend.training.options import TrainingOptions
from nnbackend.training.train import training as train

__all__ = ["Estimator", "FitDivergedError", "Passed", "Standing", "checked_weight"]


_Array = np.ndarray[Any, Any]


class FitDivergedError(ValueError):
    """A fit ended with numbers that are NaN or infinite; scikit-learn raises a ValueError."""


@dataclass(frozen=True)
class Passed:
    """The arguments of ``fit`` or ``partial_fit``, before they are checked and encoded."""

    X: Any
    y: Any
    sample_weight: Any = None
    X_val: Any = None
    y_val: Any = None

    def __post_init__(self) -> None:
        if (self.X_val is None) != (self.y_val is None):
            raise InputError("expected both or neither", argument="X_val, y_val")


@dataclass(frozen=True)
class _Examples:
    """Rows to learn from: features, encoded targets, and weights or None."""

    X: Any
    y: _Array
    sample_weight: _Array | None

    @property
    def n_samples(self) -> int:
        return int(self.X.shape[0])


@dataclass
class Standing:
    """The state of the optimizer, from which ``partial_fit`` continues."""

    learning_rate: float
    state: OptimizerState | None = None


class Estimator(CallbackSupportMixin, Predictor):  # type: ignore[misc]
    """The fitting half of an estimator; subclasses define the parameters and encode targets."""

    _rules: ClassVar[Mapping[str, Sequence[Rule]]]
    # What validate_data is told of targets.
    _target_options: ClassVar[Mapping[str, Any]] = {}

    # What partial_fit, or a warm start, goes on with; named as scikit-learn names them.
    _optimizer: Standing
    _no_improvement_count: int

    def _encoded(self, y: Any, *, is_new: bool) -> tuple[_Array, str]:
        """Return checked targets as rows of numbers, and the output activation they ask for."""
        raise NotImplementedError

    def _begin_output(self, y: _Array, _sample_weight: _Array | None) -> int:
        """Begin to learn encoded targets, and return the number of units of the output layer."""
        return int(y.shape[1])

    def _encoded_validation(self, y: Any) -> _Array:
        """Return the caller's validation targets as rows of numbers."""
        raise NotImplementedError

    def _targets(self, y: _Array) -> _Array:
        """Return encoded targets in the form that ``train`` takes."""
        return y

    def _strata(self, _y: _Array) -> _Array | None:
        """Return by what the held-out rows are drawn alike; None: by nothing."""
        return None

    def _weighted(self, _y: _Array, sample_weight: Any, *, incremental: bool) -> Any:
        """Return the weights of the samples, those of their classes included."""
        del incremental
        return sample_weight

    def _loss(self, net: Network) -> Loss:
        """Return the loss of a fit."""
        raise NotImplementedError

    def _warn(self, message: str, category: type[Warning] = UserWarning) -> None:
        """Warn of what a fit met."""
        warnings.warn(message, category, stacklevel=3)

    @own_errors
    @with_callbacks  # type: ignore[untyped-decorator]
    def _train(self, passed: Passed, *, incremental: bool) -> None:
        """Check what was passed, and fit to it."""
        training = self.fitting(passed, incremental=incremental)
        if self.can_pause:
            fit_alone_or_together(training, passed.X)
        else:
            alone(training)

    @property
    def can_pause(self) -> bool:
        """Whether a fit can run beside others, or has the machine to itself while it lasts."""
        return self.solver != "lbfgs" and not has_callbacks(self)

    def fitting(self, passed: Passed, *, incremental: bool = False) -> Training[str]:
        """Return what ``fit`` does as a ``Training``, whose result is why it stopped."""
        check_parameters(self, self._rules)
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.asarray(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        place = self._place_of(passed.X, "partial_fit" if incremental else "fit", is_fit=True)
        goes_on = self.warm_start or incremental
        is_first = not (goes_on and hasattr(self, "coefs_"))
        X, y = validate_data(
            self,
            native(passed.X),
            on_cpu(passed.y),
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=FLOATS,
            reset=is_first,
            **self._target_options,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y, out_activation = self._encoded(y, is_new=not goes_on)
        weight = checked_weight(on_cpu(passed.sample_weight), X.shape[0])
        random = check_random_state(self.random_state)
        self.n_outputs_ = y.shape[1]
        if is_first:
            self.out_activation_ = out_activation
            n_units = self._begin_output(y, weight)
            self._initialize([X.shape[1], *hidden, n_units], X.dtype, random)
        examples = _Examples(X, y, self._weighted(y, weight, incremental=incremental))
        stopped = "completed"
        if self.solver == "lbfgs":
            self._fit_lbfgs(passed, examples, place)
        else:
            stopped = yield from self._fit_stochastic(
                passed, examples, place, random, incremental=incremental
            )
        if not all(np.isfinite(x).all() for x in (*self.coefs_, *self.intercepts_)):
            raise FitDivergedError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed."
            )
        return stopped

    def _initialize(self, sizes: Sequence[int], dtype: Any, random: np.random.RandomState) -> None:
        """Draw parameters as scikit-learn does, Glorot's, and begin all counts and curves."""
        self.coefs_, self.intercepts_ = [], []
        factor = 2.0 if self.activation == "logistic" else 6.0
        for n_in, n_out in pairwise(sizes):
            bound = np.sqrt(factor / (n_in + n_out))
            # The weights first: the order of the draws is scikit-learn's.
            W, b = (random.uniform(-bound, bound, shape) for shape in ((n_in, n_out), n_out))
            self.coefs_.append(W.astype(dtype, copy=False))
            self.intercepts_.append(b.astype(dtype, copy=False))
        self.n_layers_ = len(sizes)
        self.n_iter_ = 0
        self.t_ = 0
        if self.solver == "lbfgs":
            return
        is_scored = self.early_stopping
        self.loss_curve_: list[float] = []
        self.best_loss_ = None if is_scored else np.inf
        self.validation_scores_: list[float] | None = [] if is_scored else None
        self.best_validation_score_ = -np.inf if is_scored else None
        self._no_improvement_count = 0

    def _blocks(self, X: Any, y: Any, sample_weight: Any, n_outputs: int) -> Iterator[Any]:
        """Yield the examples of ``partial_fit``: in blocks where they are larger than a buffer."""
        is_source = isinstance(X, Source)
        source = as_source(X, y, sample_weight) if is_source else as_source(X)
        if source is None or (y is None and not is_source):
            yield Rows(X, y, sample_weight)
            return
        if not is_source:
            check_consistent_length(X, y, sample_weight)
        # Copies of the features in float64, labels as numbers and as columns, orders of the rows.
        working_bytes = 24 * source.n_features + 16 * n_outputs + 64
        batch_size = self._rows_per_batch(source.n_samples)
        has_weight = False
        for where, rows in source.blocks(working_bytes, batch_size):
            weight = None if sample_weight is None else np.asarray(sample_weight[where])
            block = rows if is_source else Rows(rows.X, y[where], weight)
            # As if such rows were not there.
            if block.sample_weight is None or np.any(block.sample_weight):
                has_weight = True
                yield block
        if not has_weight:
            raise no_weight_error("sample_weight", "a largest of 0")

    def _network(self, place: str) -> Network:
        """Return a network with a copy of the coefficients, in their dtype."""
        sizes = [len(self.coefs_[0]), *(len(b) for b in self.intercepts_)]
        net = Network(
            sizes,
            hidden=self._hidden(len(sizes) - 2),
            output=self.out_activation_,
            initializer="zeros",
            dropout=self.dropout if len(sizes) > 2 else 0.0,
            dtype=str(self.coefs_[0].dtype),
            device=self._home(place),
            quantiles=getattr(self, "quantiles_", None),
        )
        net.set_parameters(self.coefs_, self.intercepts_)
        target = getattr(self, "target_standardization_", None)
        if target is not None:
            net.target_standardization = Standardization(
                *(get_device(net.device).place(x, copy=True) for x in target)
            )
        return net

    def _refuse_a_schedule(self) -> None:
        if isinstance(getattr(self.optimizer, "learning_rate", None), Schedule):
            raise InputError(
                "expected a constant learning rate with partial_fit, each call of which "
                "is a training of one epoch, got a schedule",
                argument="optimizer",
            )

    def _begin_validation_curve(self, is_given: bool) -> None:
        if not is_given:
            self.__dict__.pop("validation_loss_curve_", None)
        elif not (self.warm_start and hasattr(self, "validation_loss_curve_")):
            self.validation_loss_curve_: list[float] = []

    def _refuse_for_lbfgs(self, passed: Passed) -> None:
        """Raise where a parameter is set that L-BFGS has no use for."""
        unused = {
            "optimizer": self.optimizer is not None,
            "dropout": bool(np.any(self.dropout)),
            "clip_norm": self.clip_norm is not None,
            "callbacks": self.callbacks is not None,
            "precision": self.precision != "float32",
            "X_val": passed.X_val is not None,
        }
        for name, is_set in unused.items():
            if is_set:
                raise InputError(
                    "not for solver='lbfgs', which has no epochs; use 'adam'", argument=name
                )

    def _options(self) -> dict[str, Any]:
        """Return what ``train`` takes as it stands."""
        return {
            "l2": self.alpha,
            "penalty_per_sample": True,
            "loss_by_rows": True,
            "clip_norm": self.clip_norm,
            "engine": self.engine,
            "precision": self.precision,
        }

    def _fit_stochastic(
        self,
        passed: Passed,
        examples: _Examples,
        place: str,
        random: np.random.RandomState,
        *,
        incremental: bool,
    ) -> Training[str]:
        validation = self._checked_validation(passed)
        training, score = self._split(passed, examples, validation, place, random, incremental)
        if incremental:
            self._refuse_a_schedule()
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = Standing(float(self.learning_rate_init))
        rate = EpochRate(self._optimizer.learning_rate)
        net = self._network(place)
        epochs = 1 if incremental else self.max_iter
        tasks = None
        if has_callbacks(self):
            tasks = Tasks(self, net, passed.X, passed.y, passed.sample_weight, epochs)
        watch = Watch(self, net, rate, training.n_samples, score, tasks, self._no_improvement_count)
        self.n_iter_ = 0
        self._begin_validation_curve(validation is not None)
        try:
            asked: dict[str, Any] = {
                "optimizer": self._optimizer_of(rate),
                "loss": self._loss(net),
                "epochs": epochs,
                "batch_size": self._rows_per_batch(training.n_samples),
                "shuffle": _Shuffle(training.n_samples, random) if self.shuffle else False,
                "seed": random.randint(2**31) if np.any(self.dropout) else 0,
                "callbacks": watch,
                "optimizer_state": self._optimizer.state,
                **self._options(),
            }
            given = training.X, self._targets(training.y), training.sample_weight
            history = yield from train(net, given, TrainingOptions(**asked), validation)
        except DivergenceError as error:
            if not watch.has_best:
                raise FitDivergedError(
                    "Solver produced non-finite parameter weights. The input data may contain "
                    f"large values and need to be preprocessed. Training diverged: {error}"
                ) from error
            self._warn(watch.divergence(error), ConvergenceWarning)
            stopped = error.history.stopped
        else:
            stopped = history.stopped
            self._optimizer.state = on_host(history.optimizer_state, net)
            if history.stopped == "interrupted":
                self._warn("Training interrupted by user.")
        self._optimizer.learning_rate = rate.value
        self._no_improvement_count = watch.no_improvement_count
        watch.end()
        # An optimizer of the caller's that is to take all epochs has not failed by taking them.
        is_planned = self.optimizer is not None and self.n_iter_no_change >= self.max_iter
        is_short = self.n_iter_ == self.max_iter and not watch.is_converged and not is_planned
        if is_short and not incremental:
            self._warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
            )
        return stopped

    def _checked_validation(self, passed: Passed) -> tuple[Any, Any] | None:
        """Return the caller's validation data in the form that ``train`` takes."""
        if passed.X_val is None:
            return None
        X = dense(self._features(native(passed.X_val)))
        return X, self._targets(self._encoded_validation(on_cpu(passed.y_val)))

    def _split(
        self,
        passed: Passed,
        examples: _Examples,
        validation: tuple[Any, Any] | None,
        place: str,
        random: np.random.RandomState,
        incremental: bool,
    ) -> tuple[_Examples, ValidationScore | None]:
        """Return what to train on and, for early stopping, the score of what decides."""
        examples = replace(examples, X=dense(examples.X))
        if not self.early_stopping:
            return examples, None
        if incremental:
            raise ValueError("partial_fit does not support early_stopping=True")

        def score(checked: Any, X: Any, y: Any, sample_weight: Any) -> ValidationScore:
            return ValidationScore(
                self,
                lambda: self._outputs(checked, place),
                lambda A: self._decoded(A, place),
                X,
                y,
                sample_weight,
                is_held_out=validation is None,
            )

        if validation is not None:
            given = native(passed.X_val), on_cpu(passed.y_val)
            return examples, score(validation[0], *given, None)
        parts = [examples.X, examples.y]
        if examples.sample_weight is not None:
            parts.append(examples.sample_weight)
        halves = train_test_split(
            *parts,
            random_state=random,
            test_size=self.validation_fraction,
            stratify=self._strata(examples.y),
        )
        if examples.sample_weight is None:
            halves += [None, None]
        X, y, weight = halves[1::2]
        if len(X) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        if weight is not None and not weight.any():
            raise InputError(
                f"expected weights above 0 among the {len(X)} rows that early "
                "stopping holds out, got zeros only; raise validation_fraction (it is "
                f"{self.validation_fraction:g}), or pass X_val and y_val",
                argument="sample_weight",
            )
        labels = self._decoded(y, "")
        return _Examples(*halves[::2]), score(X, X, labels, weight)

    def _rows_per_batch(self, n_samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, n_samples)
        if self.batch_size > n_samples:
            self._warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            )
        return int(min(self.batch_size, n_samples))

    def _optimizer_of(self, rate: EpochRate) -> str | Optimizer:
        if self.optimizer is not None:
            chosen: str | Optimizer = self.optimizer
            return chosen
        if self.solver == "sgd":
            return SklearnSGD(rate, float(self.momentum), bool(self.nesterovs_momentum))
        return SklearnAdam(rate, float(self.beta_1), float(self.beta_2), float(self.epsilon))

    def _fit_lbfgs(self, passed: Passed, examples: _Examples, place: str) -> None:
        self._refuse_for_lbfgs(passed)
        net = self._network(place)
        device = get_device(net.device)
        objective = net.objective(self._loss(net), l2=self.alpha, penalty_per_sample=True)
        data = net.preparation.examples(
            dense(examples.X), self._targets(examples.y), objective.loss, examples.sample_weight
        )
        evaluate = evaluation(objective, device, net.parameters, data, self.engine)
        tasks = Tasks(self, net, passed.X, passed.y, passed.sample_weight, 0)
        start = evaluate.vector(net.parameters)
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        with device.activate():
            result = scipy.optimize.minimize(
                evaluate, start, method="L-BFGS-B", jac=True, options=options
            )
        if result.status != 0:
            self._warn(
                f"lbfgs failed to converge after {result.nit} iteration(s) (status="
                f"{result.status}): {result.message}; increase max_iter or scale the data",
                ConvergenceWarning,
            )
        if self.verbose:
            print(f"lbfgs: {result.nit} iterations, loss = {result.fun:.8f}")
        # SciPy may report one iteration more than it was allowed.
        self.n_iter_ = min(result.nit, self.max_iter)
        self.loss_ = result.fun
        # As there, the coefficients keep the digits of SciPy's vector, which is float64, though the
        # objective is computed in the dtype of X. A GPU, slow in float64, goes on in that of X.
        found = result.x if device.kind == "cpu" else result.x.astype(net.dtype)
        self.coefs_, self.intercepts_ = evaluate.unpacked(found)
        tasks.end()


class _Shuffle(Orders):
    """The orders of epochs: each is that before, shuffled, as by ``sklearn.utils.shuffle``."""

    def __init__(self, n_samples: int, random: np.random.RandomState) -> None:
        self._rows, self._random = np.arange(n_samples), random

    def __call__(self) -> _Array:
        order = np.arange(len(self._rows))
        self._random.shuffle(order)
        self._rows = self._rows[order]
        return self._rows


def checked_weight(weight: Any, n_samples: int) -> _Array | None:
    """Return sample weights as scikit-learn's estimators take them, with its messages."""
    if weight is None:
        return None
    if isinstance(weight, Number):
        weight = np.full(n_samples, weight)
    checked: _Array = check_array(
        weight, ensure_2d=False, dtype=FLOATS, order="C", input_name="sample_weight"
    )
    if checked.ndim != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {checked.ndim}D array. Expected "
            f"either a scalar value or a 1D array of length {n_samples}."
        )
    if checked.shape != (n_samples,):
        raise ValueError(f"sample_weight.shape == {checked.shape}, expected {(n_samples,)}!")
    if not checked.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return checked

"""What the estimators do in place of scikit-learn's own code: train, predict, watch and score.

``estimators.py`` has the classes with their parameters. Optimizers and losses here are
scikit-learn's where those differ from nnbackend's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse
import sklearn
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length

from nnbackend.core.activations import Activation, activation
from nnbackend.core.optimizers import Optimizer, OptimizerState
from nnbackend.core.schedules import Schedule
from nnbackend.data.source import Rows, Source
from nnbackend.data.sources import as_source
from nnbackend.data.validation import no_weight_error
from nnbackend.device import device_of, get_device
from nnbackend.errors import InputError
from nnbackend.estimators.arrays import (
    Targets,
    dense,
    in_library,
    library_name,
    native,
    on_cpu,
    on_host,
)
from nnbackend.estimators.formulas import EpochRate, SklearnAdam, SklearnSGD
from nnbackend.estimators.lbfgs import packed, unpacked, value_and_gradient
from nnbackend.estimators.watch import Tasks, Watch
from nnbackend.floating_point import own_errors
from nnbackend.model.network import Network
from nnbackend.training.errors import DivergenceError
from nnbackend.training.train import train

__all__ = ["Estimator"]


try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ModuleNotFoundError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Estimators have no callbacks there."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Given:
    """What the caller passed to ``fit``, or to ``partial_fit``, before it is encoded and split."""

    X: Any
    y: Any
    sample_weight: Any
    validation: tuple[Any, Any] | None


@dataclass
class _Standing:
    """Where the optimizer stands: what ``partial_fit`` goes on with."""

    learning_rate: float
    state: OptimizerState | None = None


class Estimator(CallbackSupportMixin):  # type: ignore[misc]
    """What both estimators do instead of scikit-learn's code; a mixin before its classes."""

    own_constraints: ClassVar[dict[str, list[Any]]] = {
        "activation": [str, "array-like", Activation],
        "optimizer": [str, Optimizer, None],
        "dropout": ["array-like", float, int],
        "clip_norm": [float, int, None],
        "scoring": [str, callable, None],
        "callbacks": ["array-like", callable, None],
        "device": [str, None],
        "engine": [str],
        "precision": [str],
    }

    if TYPE_CHECKING:
        # The parameters and the fitted attributes are those of scikit-learn's classes.
        def __getattr__(self, name: str) -> Any: ...

    # Where the arrays are that a method is working on; empty: not on a GPU.
    _place = ""

    @own_errors
    def _call(self, method: Callable[..., Any], name: str, X: Any, *more: Any, **named: Any) -> Any:
        """Call one of scikit-learn's methods with arrays of any library.

        With ``array_api_dispatch`` X comes as NumPy's, or as CuPy's where it is on a GPU, and what
        goes with it as NumPy's. Without it scikit-learn makes NumPy arrays of all.
        """
        if not sklearn.get_config()["array_api_dispatch"]:
            return method(X, *more, **named)
        home, library = device_of(X), library_name(X)
        if name in ("fit", "partial_fit"):
            self._fitted_with = library, home
        elif getattr(self, "_fitted_with", (library, home)) != (library, home):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{name}() must use the same namespace and "
                f"the same device as those passed to fit(): expected {self._fitted_with[0]}, got "
                f"{library}"
            )
        if home is not None and home.kind == "cuda" and self.device is None:
            self._place = home.name
        named = {name: on_cpu(value) for name, value in named.items()}
        try:
            return method(native(X), *map(on_cpu, more), **named)
        finally:
            self.__dict__.pop("_place", None)

    def _blocks(self, X: Any, y: Any, sample_weight: Any, n_outputs: int) -> Iterator[Targets]:
        """Yield the examples of ``partial_fit``: in blocks where they are larger than a buffer."""
        is_source = isinstance(X, Source)
        source = as_source(X, y, sample_weight) if is_source else as_source(X)
        if source is None or (y is None and not is_source):
            yield X, y, sample_weight
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

    @with_callbacks  # type: ignore[untyped-decorator]
    def _train(
        self,
        method: Callable[..., Any],
        X: Any,
        y: Any,
        sample_weight: Any,
        validation: tuple[Any, Any] = (None, None),
        **more: Any,
    ) -> None:
        """Call scikit-learn's ``fit`` or ``partial_fit``; keep what was given until it returns."""
        X_val, y_val = validation
        if (X_val is None) != (y_val is None):
            raise InputError("X_val, y_val: expected both or neither")
        has_validation = X_val is not None
        self._given = _Given(
            X, y, sample_weight, (native(X_val), on_cpu(y_val)) if has_validation else None
        )
        try:
            self._call(method, method.__name__, X, y, sample_weight=sample_weight, **more)
        finally:
            del self._given

    def _network(self, dtype: Any = None) -> Network:
        """Return the network of the coefficients, on the device, by default in their dtype."""
        sizes = [len(self.coefs_[0]), *(len(b) for b in self.intercepts_)]
        net = Network(
            sizes,
            hidden=self._hidden(len(sizes) - 2),
            output=self.out_activation_,
            initializer="zeros",
            dropout=self.dropout if len(sizes) > 2 else 0.0,
            dtype=str(dtype or self.coefs_[0].dtype),
            device=self._place or self.device or "cpu",
        )
        net.set_parameters(self.coefs_, self.intercepts_)
        return net

    def _hidden(self, n_layers: int) -> list[Activation]:
        """Return the activation of each hidden layer."""
        given = self.activation
        if isinstance(given, str | Activation):
            given = [given] * n_layers
        if len(given) != n_layers:
            raise InputError(
                f"activation: expected a name, or one for each of the {n_layers} hidden layers, "
                f"got {len(given)}"
            )
        return [activation("activation", entry) for entry in given]

    def _refuse_a_schedule(self) -> None:
        if isinstance(getattr(self.optimizer, "learning_rate", None), Schedule):
            raise InputError(
                "optimizer: expected a constant learning rate with partial_fit, each call of which "
                "is a training of one epoch, got a schedule"
            )

    def _begin_validation_curve(self) -> None:
        if self._given.validation is None:
            self.__dict__.pop("validation_loss_curve_", None)
        elif not (self.warm_start and hasattr(self, "validation_loss_curve_")):
            self.validation_loss_curve_: list[float] = []

    def _refuse_for_lbfgs(self) -> None:
        """Raise where a parameter is set that L-BFGS has no use for."""
        unused = {
            "optimizer": self.optimizer is not None,
            "dropout": bool(np.any(self.dropout)),
            "clip_norm": self.clip_norm is not None,
            "callbacks": self.callbacks is not None,
            "precision": self.precision != "float32",
            "X_val": self._given.validation is not None,
        }
        for name, is_set in unused.items():
            if is_set:
                raise InputError(f"{name}: not for solver='lbfgs', which has no epochs; use 'adam'")

    def _take_parameters(self, net: Network) -> None:
        self.__dict__.update(self._fitted_so_far(net))

    def _fitted_so_far(self, net: Network) -> dict[str, Any]:
        """Return what makes this a fitted estimator, with the parameters of a network."""
        to_numpy = get_device(net.device).to_numpy
        return {
            "coefs_": [np.array(to_numpy(W)) for W in net.weights],
            "intercepts_": [np.array(to_numpy(b)) for b in net.biases],
        }

    def _tasks(self, net: Network, max_tasks: int) -> Tasks | None:
        """Return where scikit-learn's callbacks are called; None where there are none."""
        if not (getattr(self, "_skl_callbacks", None) or hasattr(self, "_parent_callback_ctx")):
            return None
        return Tasks(self, net, max_tasks)

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

    def _fit_stochastic(self, X: Any, y: Any, sample_weight: Any, *more: Any) -> None:
        incremental = more[-1]
        sample_weight = self._weighted(y, sample_weight, incremental=incremental)
        training, validation = self._split(X, y, sample_weight, incremental)
        if incremental:
            self._refuse_a_schedule()
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = _Standing(float(self.learning_rate_init))
        rate = EpochRate(self._optimizer.learning_rate)
        n_samples = training[0].shape[0]
        rows = np.arange(n_samples)

        def draw() -> _Array:
            # As there, an epoch's order is that before, shuffled, as by sklearn.utils.shuffle.
            nonlocal rows
            order = np.arange(n_samples)
            self._random_state.shuffle(order)
            rows = rows[order]
            return rows

        net = self._network()
        epochs = 1 if incremental else self.max_iter
        watch = Watch(self, rate, n_samples, validation, self._tasks(net, epochs))
        self.n_iter_ = 0
        self._begin_validation_curve()
        try:
            history = train(
                net,
                training[0],
                self._targets(training[1]),
                optimizer=self._optimizer_of(rate),
                loss=self._loss(net),
                epochs=epochs,
                batch_size=self._rows_per_batch(n_samples),
                shuffle=draw if self.shuffle else False,
                seed=self._random_state.randint(2**31) if np.any(self.dropout) else 0,
                sample_weight=training[2],
                validation_data=self._validation_data(validation),
                callbacks=watch,
                optimizer_state=self._optimizer.state,
                **self._options(),
            )
        except DivergenceError as error:
            if not self._has_best():
                raise ValueError(
                    "Solver produced non-finite parameter weights or outputs. The input data may "
                    f"contain large values and need to be preprocessed: {error}"
                ) from error
            watch.warn_of_divergence(error)
        else:
            self._optimizer.state = on_host(history.optimizer_state, net)
            if history.stopped == "interrupted":
                warnings.warn("Training interrupted by user.", stacklevel=2)
        self._optimizer.learning_rate = rate.value
        if self._has_best():
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts
        else:
            self._take_parameters(net)
        watch.end()
        if self.n_iter_ == self.max_iter and not watch.is_converged and not incremental:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _has_best(self) -> bool:
        """Return whether early stopping has a score of an epoch, and so coefficients to keep."""
        return self.early_stopping and math.isfinite(self.best_validation_score_)

    def _fit_lbfgs(self, X: Any, y: Any, sample_weight: Any, *_more: Any) -> None:
        self._refuse_for_lbfgs()
        sample_weight = self._weighted(y, sample_weight, incremental=False)
        net = self._network()
        device = get_device(net.device)
        objective = net.objective(self._loss(net))
        data = net.preparation.examples(
            dense(X), self._targets(y), objective.loss, sample_weight
        ).arrays

        def evaluate(x: _Array) -> tuple[float, _Array]:
            parameters = unpacked(objective.structure, device.place(x.astype(net.dtype)))
            value, gradient = value_and_gradient(
                device.xp, objective, float(self.alpha), *parameters, *data
            )
            return float(value), device.to_numpy(gradient).astype(np.float64)

        tasks = self._tasks(net, 0)
        start = device.to_numpy(packed(device.xp, net.weights, net.biases)).astype(np.float64)
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        with device.activate():
            result = scipy.optimize.minimize(
                evaluate, start, method="L-BFGS-B", jac=True, options=options
            )
        if result.status != 0:
            warnings.warn(
                f"lbfgs failed to converge after {result.nit} iteration(s) (status="
                f"{result.status}): {result.message}; increase max_iter or scale the data",
                ConvergenceWarning,
                stacklevel=2,
            )
        if self.verbose:
            print(f"lbfgs: {result.nit} iterations, loss = {result.fun:.8f}")
        # SciPy may report one iteration more than it was allowed.
        self.n_iter_ = min(result.nit, self.max_iter)
        self.loss_ = result.fun
        # As there, the coefficients keep the digits of SciPy's vector, which is float64, though the
        # objective is computed in the dtype of X. A GPU, slow in float64, goes on in that of X.
        found = result.x if device.kind == "cpu" else result.x.astype(net.dtype)
        self.coefs_, self.intercepts_ = unpacked(objective.structure, found)
        if tasks is not None:
            tasks.end()

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Any:
        if check_input:
            X = self._check_features(X)
        # The dtype of X times the coefficients, as there.
        is_single = np.result_type(X.dtype, self.coefs_[0].dtype) == np.float32
        return self._network("float32" if is_single else "float64").forward(dense(X))

    def _predict(self, X: Any, check_input: bool = True) -> Any:
        if not self._place:
            return super()._predict(X, check_input=check_input)
        return self._decoded(self._forward_pass_fast(X, check_input))

    def predict(self, X: Any) -> Any:
        """Return classes or values, arrays of X's library where it is."""
        return in_library(X, self._call(super().predict, "predict", X))

    def _check_features(self, X: Any) -> Any:
        from sklearn.utils.validation import validate_data

        return validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)

    def _split(
        self, X: Any, y: Any, sample_weight: Any, incremental: bool
    ) -> tuple[Targets, Targets | None]:
        """Return training and, for early stopping, validation data."""
        X = dense(X)
        if not self.early_stopping:
            return (X, y, sample_weight), None
        if incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        given = self._given.validation
        if given is not None:
            return (X, y, sample_weight), (dense(self._check_features(given[0])), given[1], None)
        parts = [X, y] if sample_weight is None else [X, y, sample_weight]
        halves = train_test_split(
            *parts,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._strata(y),
        )
        training, held_out = halves[::2], halves[1::2]
        if len(held_out[0]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        weights = (None, None) if sample_weight is None else (training[2], held_out[2])
        if weights[1] is not None and not weights[1].any():
            raise InputError(
                f"sample_weight: expected weights above 0 among the {len(held_out[0])} rows that "
                "early stopping holds out, got zeros only; raise validation_fraction (it is "
                f"{self.validation_fraction:g}), or pass X_val and y_val"
            )
        return (
            (training[0], training[1], weights[0]),
            (held_out[0], self._labels(held_out[1]), weights[1]),
        )

    def _validation_data(self, validation: Targets | None) -> tuple[Any, Any] | None:
        """Return the caller's validation data in the form that ``train`` takes."""
        given = self._given.validation
        if given is None:
            return None
        # Where it is watched, it is checked already.
        X = dense(self._check_features(given[0])) if validation is None else validation[0]
        return X, self._targets(self._encoded(given[1]))

    def _rows_per_batch(self, n_samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, n_samples)
        if self.batch_size > n_samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be "
                "clipped",
                stacklevel=3,
            )
        return int(min(self.batch_size, n_samples))

    def _optimizer_of(self, rate: EpochRate) -> str | Optimizer:
        if self.optimizer is not None:
            chosen: str | Optimizer = self.optimizer
            return chosen
        if self.solver == "sgd":
            return SklearnSGD(rate, float(self.momentum), bool(self.nesterovs_momentum))
        return SklearnAdam(rate, float(self.beta_1), float(self.beta_2), float(self.epsilon))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags

    def _score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the score that early stopping goes by; NaN where training has diverged.

        Raises
        ------
        InputError
            If the score is not finite and the network's outputs are: no epoch could be selected.
        """
        with (
            warnings.catch_warnings(record=True) as caught,
            np.errstate(over="ignore", invalid="ignore"),
        ):
            warnings.simplefilter("always")
            # Validation data has lost the names that the training data had.
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            try:
                score = self._score_of(X, y, sample_weight)
            except ValueError:  # so do scikit-learn's scorers refuse infinite predictions
                if self._has_diverged(X):
                    return math.nan
                raise
            is_defined = math.isfinite(score)
            if not is_defined and self._has_diverged(X):
                return math.nan
        if not is_defined:
            raise InputError(self._undefined_score_message(score, y, caught))
        for warning in caught:
            warnings.warn(warning.message, stacklevel=2)
        return score

    def _score_of(self, X: Any, y: Any, sample_weight: Any) -> float:
        if self.scoring is None:
            return float(super()._score(X, y, sample_weight=sample_weight))
        weight = {} if sample_weight is None else {"sample_weight": sample_weight}
        # Scorers predict from arrays in the host's memory, whichever library fit was given.
        place = self.__dict__.pop("_place", None)
        try:
            with sklearn.config_context(array_api_dispatch=False):
                return float(get_scorer(self.scoring)(self, on_cpu(X), y, **weight))
        finally:
            if place is not None:
                self._place = place

    def _has_diverged(self, X: Any) -> bool:
        """Return whether outputs are NaN, infinite, or too large to be squared, as scores do."""
        outputs = on_cpu(self._forward_pass_fast(X, check_input=False)).ravel()
        return not math.isfinite(outputs @ outputs)

    def _undefined_score_message(
        self, score: float, y: Any, caught: Sequence[warnings.WarningMessage]
    ) -> str:
        """Say which score is not finite, and why."""
        given = self.scoring
        scorer = given if isinstance(given, str) else getattr(given, "__name__", repr(given))
        if given is None:
            scorer = "accuracy" if is_classifier(self) else "R^2"
        if self._given.validation is None:
            rows, advice = "the rows held out", "raise validation_fraction, or pass X_val and y_val"
        else:
            rows, advice = "y_val", "pass other validation data"
        y = np.asarray(y)
        if len(y) == 1:
            reason = f"{rows} are 1 row" if rows != "y_val" else "y_val has 1 row"
            advice += " with more rows"
        elif is_classifier(self) and (constant := (y == y[:1]).all(axis=0)).any():
            column = "" if y.ndim == 1 else f" in column {int(np.argmax(constant))}"
            label = y[0] if y.ndim == 1 else y[0, int(np.argmax(constant))]
            reason = f"all {len(y)} rows of {rows} have the label {label!s}{column}"
            advice += " with every label"
        else:
            texts = {str(w.message) for w in caught if w.category is UndefinedMetricWarning}
            reason = " ".join(sorted(texts)) or f"the scorer returned it for {len(y)} rows"
            advice = "choose a scorer that is finite there"
        return (
            f"{'early_stopping' if given is None else 'scoring'}: expected a finite score to "
            f"choose an epoch by, got {score} from {scorer}: {reason}; {advice}"
        )

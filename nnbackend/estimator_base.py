"""What the estimators do in place of scikit-learn's own code: train, predict, watch and score.

``estimators.py`` has the classes with their parameters. Optimizers and losses here are
scikit-learn's where those differ from nnbackend's.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.optimize
import scipy.sparse
import sklearn
from array_api_compat import array_namespace, is_array_api_obj
from array_api_compat import device as array_device
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length
from sklearn.utils._array_api import move_to

from nnbackend.core import losses
from nnbackend.core.activations import Activation, activation
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Adam, Coefficients, Optimizer, OptimizerState, State
from nnbackend.core.schedules import Clock, Schedule
from nnbackend.core.types import Array, Namespace
from nnbackend.device import device_of, get_device, in_library_of
from nnbackend.errors import DivergenceError, InputError
from nnbackend.floating_point import callers_errors, own_errors
from nnbackend.network import Network
from nnbackend.sources import Source, as_source
from nnbackend.training import TrainingState, train

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ModuleNotFoundError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Estimators have no callbacks there."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


__all__ = [
    "Estimator",
    "MeanSquaredError",
    "PoissonDeviance",
    "Targets",
    "in_library",
    "with_callbacks",
]

_Array = np.ndarray[Any, Any]
Targets = tuple[Any, Any, Any]


@dataclass(frozen=True)
class _SGD(Optimizer):
    """scikit-learn's: the rate is a part of the velocity, v := momentum v - rate g."""

    name: ClassVar[str] = "sgd"
    learning_rate: float | Schedule
    momentum: float
    nesterov: bool

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("velocity",)

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        del step
        return (learning_rate,)

    def update(
        self,
        xp: Namespace,
        parameters: Array,
        gradient: Array,
        state: State,
        coefficients: Coefficients,
    ) -> tuple[Array, State]:
        del xp
        descent = coefficients[0] * gradient
        velocity = self.momentum * state[0] - descent
        change = self.momentum * velocity - descent if self.nesterov else velocity
        return parameters + change, (velocity,)


class _Adam(Adam):
    """scikit-learn's: as in section 2 of the paper, epsilon is added to the uncorrected root."""

    def coefficients(self, learning_rate: Any, step: Any) -> Coefficients:
        length = learning_rate * (1.0 - self.beta2**step) ** 0.5 / (1.0 - self.beta1**step)
        return length, 1.0, learning_rate


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Half the squared error: its value a mean over the outputs, its gradient that of their sum."""

    name: ClassVar[str] = "squared_error"
    output: ClassVar[str] = "identity"
    n_outputs: int

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return (Z - Y)^2 / 2 divided by the number of outputs, and Z - Y."""
        del xp
        residual = Z - Y
        return 0.5 * residual * residual / float(self.n_outputs), residual


@dataclass(frozen=True)
class PoissonDeviance(losses.Poisson):
    """Half the Poisson deviance: the loss without its constant, which depends on Y alone."""

    def elements(self, xp: Namespace, Z: Array, Y: Array) -> tuple[Array, Array]:
        """Return exp(Z) - Y Z + Y log(Y) - Y and exp(Z) - Y."""
        element, derivative = super().elements(xp, Z, Y)
        one = xp.ones_like(Y)
        is_positive = Y > 0
        constant = xp.where(is_positive, Y * xp.log(xp.where(is_positive, Y, one)) - Y, 0.0 * one)
        return element + constant, derivative


@dataclass
class _Standing:
    """Where the optimizer stands: what ``partial_fit`` goes on with."""

    learning_rate: float
    state: OptimizerState | None = None


class _Rate(Schedule):
    """The rate of the coming epoch, which whoever watches the training sets."""

    def __init__(self, value: float) -> None:
        self.value = value

    def rate(self, clock: Clock, state: Any = None) -> float:
        del clock, state
        return self.value


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
        home, library = device_of(X), _library(X)
        if name in ("fit", "partial_fit"):
            self._fitted_with = library, home
        elif getattr(self, "_fitted_with", (library, home)) != (library, home):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{name}() must use the same namespace and "
                f"the same device as those passed to fit(): expected {self._fitted_with[0]}, got "
                f"{library}"
            )
        if home is None or home.kind == "cpu":
            native = _on_cpu(X)
        else:
            native = home.share(X)
            if self.device is None:
                self._place = home.name
        try:
            return method(native, *map(_on_cpu, more), **{k: _on_cpu(v) for k, v in named.items()})
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
        for where, rows in source.blocks(working_bytes, batch_size):
            weight = None if sample_weight is None else sample_weight[where]
            yield rows if is_source else (rows.X, y[where], weight)

    @contextlib.contextmanager
    def _validating_on(self, X_val: Any, y_val: Any) -> Iterator[None]:
        """Keep the caller's validation data while the model is fitted."""
        if (X_val is None) != (y_val is None):
            raise InputError("X_val, y_val: expected both or neither")
        self._given_validation = None if X_val is None else (X_val, y_val)
        try:
            yield
        finally:
            del self._given_validation

    def _network(self) -> Network:
        """Return the network of the coefficients, on the device."""
        sizes = [len(self.coefs_[0]), *(len(b) for b in self.intercepts_)]
        net = Network(
            sizes,
            hidden=self._hidden(len(sizes) - 2),
            output=self.out_activation_,
            initializer="zeros",
            dropout=self.dropout if len(sizes) > 2 else 0.0,
            dtype=str(self.coefs_[0].dtype),
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
        if self._given() is None:
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
            "X_val": self._given() is not None,
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

    def _tasks(self, X: Any, y: Any, max_tasks: int) -> _Tasks | None:
        """Return where scikit-learn's callbacks are called; None where there are none."""
        if not (getattr(self, "_skl_callbacks", None) or hasattr(self, "_parent_callback_ctx")):
            return None
        return _Tasks(self, X, y, max_tasks)

    def _options(self) -> dict[str, Any]:
        """Return what ``train`` takes as it stands."""
        return {
            "l2": self.alpha,
            "penalty_per_sample": True,
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
        rate = _Rate(self._optimizer.learning_rate)
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
        watch = _Watch(self, rate, n_samples, validation, self._tasks(X, y, self.max_iter))
        self.n_iter_ = 0
        self._begin_validation_curve()
        try:
            history = train(
                net,
                training[0],
                self._targets(training[1]),
                optimizer=self._optimizer_of(rate),
                loss=self._loss(),
                epochs=1 if incremental else self.max_iter,
                batch_size=self._rows_per_batch(n_samples),
                shuffle=draw if self.shuffle else False,
                seed=self._random_state.randint(2**31) if np.any(self.dropout) else 0,
                sample_weight=training[2],
                validation_data=self._validation_data(),
                callbacks=watch,
                optimizer_state=self._optimizer.state,
                **self._options(),
            )
        except DivergenceError as error:
            if not self.early_stopping:
                raise ValueError(
                    "Solver produced non-finite parameter weights. The input data may contain "
                    f"large values and need to be preprocessed: {error}"
                ) from error
            # A score that cannot be computed ends the search for a better one.
            self.validation_scores_.append(np.nan)
        else:
            self._optimizer.state = _on_host(history.optimizer_state, net)
            if history.stopped == "interrupted":
                warnings.warn("Training interrupted by user.", stacklevel=2)
        self._optimizer.learning_rate = rate.value
        if self.early_stopping:
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

    def _fit_lbfgs(self, X: Any, y: Any, sample_weight: Any, *_more: Any) -> None:
        self._refuse_for_lbfgs()
        sample_weight = self._weighted(y, sample_weight, incremental=False)
        net = self._network()
        device, dtype = get_device(net.device), net.parameters.dtype
        objective = net.objective(self._loss(), l2=self.alpha, penalty_per_sample=True)
        data = net.prepare(_dense(X), self._targets(y), objective.loss, sample_weight)

        def evaluate(x: _Array) -> tuple[float, _Array]:
            parameters = device.place(x.astype(str(dtype)))
            value, gradient = objective.value_and_gradient(device.xp, parameters, *data)
            return float(value), device.to_numpy(gradient).astype(np.float64)

        tasks = self._tasks(X, y, 0)
        start = device.to_numpy(net.parameters).astype(np.float64)
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
        net.parameters[...] = device.place(result.x.astype(str(dtype)))
        self._take_parameters(net)
        if tasks is not None:
            tasks.end(self)

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Any:
        if check_input:
            X = self._check_features(X)
        return self._network().forward(_dense(X))

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
        X = _dense(X)
        if not self.early_stopping:
            return (X, y, sample_weight), None
        if incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        given = self._given()
        if given is not None:
            return (X, y, sample_weight), (*given, None)
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
        return (
            (training[0], training[1], weights[0]),
            (held_out[0], self._labels(held_out[1]), weights[1]),
        )

    def _given(self) -> tuple[Any, Any] | None:
        return getattr(self, "_given_validation", None)

    def _validation_data(self) -> tuple[Any, Any] | None:
        """Return the caller's validation data in the form that ``train`` takes."""
        given = self._given()
        if given is None:
            return None
        return _dense(self._check_features(given[0])), self._targets(self._encoded(given[1]))

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

    def _optimizer_of(self, rate: _Rate) -> str | Optimizer:
        if self.optimizer is not None:
            chosen: str | Optimizer = self.optimizer
            return chosen
        if self.solver == "sgd":
            return _SGD(rate, float(self.momentum), bool(self.nesterovs_momentum))
        return _Adam(rate, float(self.beta_1), float(self.beta_2), float(self.epsilon))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags

    def _score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        if self.scoring is None:
            score: float = super()._score(X, y, sample_weight=sample_weight)
            return score
        with warnings.catch_warnings():
            # Validation data has lost the names that the training data had.
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            weight = {} if sample_weight is None else {"sample_weight": sample_weight}
            return float(get_scorer(self.scoring)(self, X, y, **weight))


def _library(X: Any) -> str:
    """Return the name of the library that an array is of; lists and frames become NumPy's."""
    if not is_array_api_obj(X):
        return "numpy"
    return str(array_namespace(X).__name__).removeprefix("array_api_compat.")


def _on_cpu(x: Any) -> Any:
    """Return an array of any library as NumPy's; what is no array as it is."""
    if not is_array_api_obj(x) or isinstance(x, np.ndarray):
        return x
    return move_to(x, xp=np, device="cpu")


def in_library(X: Any, result: Any) -> Any:
    """Return a result as an array of X's library, where X is; names of classes stay NumPy's."""
    is_dispatched = sklearn.get_config()["array_api_dispatch"] and is_array_api_obj(X)
    if not is_dispatched or isinstance(X, np.ndarray) or result.dtype.kind not in "biuf":
        return result
    if isinstance(result, np.ndarray):
        return move_to(result, xp=array_namespace(X), device=array_device(X))
    return in_library_of(X, result)


class _Tasks:
    """scikit-learn's callbacks (``set_callbacks``): of the fit, and of every epoch in it."""

    def __init__(self, model: Any, X: Any, y: Any, max_tasks: int) -> None:
        self._data = {"X": X, "y": y}
        self._fit = model._init_callback_context(max_subtasks=max_tasks)  # noqa: SLF001 - its mixin
        self._fit.call_on_fit_task_begin(estimator=model, **self._data)

    def begin_epoch(self, model: Any) -> None:
        self._epoch = self._fit.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(estimator=model, **self._data)

    def end_epoch(self, model: Any, fitted: dict[str, Any]) -> bool:
        """Return whether a callback asks to stop."""
        return bool(
            self._epoch.call_on_fit_task_end(
                estimator=model, reconstruction_attributes=fitted, **self._data
            )
        )

    def end(self, model: Any) -> None:
        fitted = {"coefs_": model.coefs_, "intercepts_": model.intercepts_}
        self._fit.call_on_fit_task_end(
            estimator=model, reconstruction_attributes=fitted, **self._data
        )


class _Watch:
    """What happens after every epoch: curves, the search for a better score, and the rate."""

    def __init__(
        self,
        model: Any,
        rate: _Rate,
        n_samples: int,
        validation: Targets | None,
        tasks: _Tasks | None,
    ) -> None:
        self._model, self._rate, self._n_samples = model, rate, n_samples
        self._validation = validation or (None, None, None)
        self._tasks = tasks
        if tasks is not None:
            tasks.begin_epoch(model)
        self._hooks = _callbacks(model.callbacks)
        self.is_converged = False

    @own_errors
    def __call__(self, state: TrainingState) -> None:
        model = self._model
        model.n_iter_ += 1
        model.t_ += self._n_samples
        model.loss_ = state.history.loss[-1]
        model.loss_curve_.append(model.loss_)
        if state.history.validation_loss:
            model.validation_loss_curve_.append(state.history.validation_loss[-1])
        if model.verbose:
            print(f"Iteration {model.n_iter_}, loss = {model.loss_:.8f}")
        if model.early_stopping:
            model._take_parameters(state.network)  # noqa: SLF001 - the other half of it
        model._update_no_improvement_count(model.early_stopping, *self._validation)  # noqa: SLF001
        if model.solver == "sgd" and model.learning_rate == "invscaling":
            self._rate.value = float(model.learning_rate_init) / (model.t_ + 1) ** model.power_t
        if model._no_improvement_count > model.n_iter_no_change:  # noqa: SLF001
            self._stop_or_slow_down(state)
        for hook in self._hooks:
            with callers_errors():
                hook(state)
        if self._tasks is None:
            return
        if self._tasks.end_epoch(model, model._fitted_so_far(state.network)):  # noqa: SLF001
            self.is_converged = True
            state.stop()
        if not state.stop_requested and state.epoch < state.epochs:
            self._tasks.begin_epoch(model)

    def end(self) -> None:
        """Tell scikit-learn's callbacks of the end."""
        if self._tasks is not None:
            self._tasks.end(self._model)

    def _stop_or_slow_down(self, state: TrainingState) -> None:
        """End the training, or take a fifth of the rate where it is adaptive."""
        model = self._model
        what = "Validation score" if model.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={model.tol:f} for {model.n_iter_no_change} "
            "consecutive epochs."
        )
        is_adaptive = model.solver == "sgd" and model.learning_rate == "adaptive"
        if is_adaptive and self._rate.value > 1e-6:
            self._rate.value /= 5.0
            model._no_improvement_count = 0  # noqa: SLF001
            if model.verbose:
                print(f"{message} Setting learning rate to {self._rate.value:f}")
            return
        if model.verbose:
            print(f"{message}{' Learning rate too small.' if is_adaptive else ''} Stopping.")
        self.is_converged = True
        state.stop()


def _callbacks(given: Any) -> Sequence[Callable[[TrainingState], object]]:
    if given is None:
        return ()
    hooks = (given,) if callable(given) else tuple(given)
    for hook in hooks:
        if not callable(hook):
            raise InputError(f"callbacks: expected callables, got {hook!r}")
    return hooks


def _on_host(state: OptimizerState | None, net: Network) -> OptimizerState | None:
    """Return an optimizer's state in NumPy arrays, which can be pickled anywhere."""
    if state is None:
        return None
    to_numpy = get_device(net.device).to_numpy
    return OptimizerState(state.step, tuple(np.array(to_numpy(array)) for array in state.arrays))


def _dense(X: Any) -> Any:
    return X.toarray() if scipy.sparse.issparse(X) else X

"""``MLPClassifier`` and ``MLPRegressor``: scikit-learn's interface, computed by nnbackend.

They have the parameters, attributes, methods, messages and warnings of the classes of these names
in scikit-learn, and are built on its public interface alone. With the same ``random_state`` the
same initial weights and batches are drawn as there, and the optimizers are scikit-learn's, so the
fitted coefficients agree to rounding.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.metaestimators import available_if

from nnbackend.checks import real
from nnbackend.core import losses
from nnbackend.core.activations import Output
from nnbackend.core.distributions import DISTRIBUTIONS, Distribution, output
from nnbackend.core.losses import Loss
from nnbackend.core.standardization import Standardization
from nnbackend.device import get_device
from nnbackend.errors import InputError
from nnbackend.estimators import labels
from nnbackend.estimators.arrays import in_library, on_cpu
from nnbackend.estimators.fitting import Estimator, Passed
from nnbackend.estimators.formulas import (
    BinaryLogLoss,
    MeanSquaredError,
    PoissonDeviance,
    SoftmaxLogLoss,
)
from nnbackend.estimators.parameters import CLASSIFIER, REGRESSOR
from nnbackend.floating_point import own_errors
from nnbackend.io.skl2onnx import register
from nnbackend.model.network import Network

__all__ = ["MLPClassifier", "MLPRegressor"]


_Array = np.ndarray[Any, Any]


def _has_steps(model: Estimator) -> bool:
    """Return True for a solver that takes steps; raise for another, which has no partial_fit."""
    if model.solver not in ("sgd", "adam"):
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. "
            f"{model.solver} is not stochastic."
        )
    return True


class MLPClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """scikit-learn's ``MLPClassifier``, trained by nnbackend, on the CPU or a GPU.

    Every parameter, attribute and method of ``sklearn.neural_network.MLPClassifier`` is there, and
    with the same ``random_state`` the coefficients are the same up to rounding. These are added;
    ``solver="lbfgs"`` refuses those that belong to steps and epochs.

    Parameters
    ----------
    activation : str or sequence of str, default "relu"
        Any hidden activation of nnbackend, or one for each hidden layer.
    optimizer : str or Optimizer, optional
        An optimizer of nnbackend, such as ``nb.AdamW(nb.schedules.OneCycle(1e-2))``, in place of
        the solver's. ``learning_rate``, ``learning_rate_init``, momenta and ``epsilon`` are then
        those of the optimizer.
    label_smoothing : float, default 0.0
        The label smoothing of softmax cross-entropy, for three and more classes.
    class_weight : dict, list of dict or "balanced", optional
        Weights of the classes, which multiply the sample weights; "balanced": inversely
        proportional to their frequencies. With several labels at once, a list with a dict
        ``{0: weight, 1: weight}`` for each.
    dropout : float or sequence of float, default 0.0
        Rates of the hidden layers.
    clip_norm : float, optional
        Bound on the norm of the gradient.
    scoring : str or callable, optional
        The scorer of early stopping, called with NumPy arrays or what ``fit`` was given as
        ``X_val, y_val``; by default accuracy. A score that is NaN or infinite, such as "roc_auc" of
        one class, is an error. If training diverges after an epoch with a score, the best epoch's
        coefficients are kept, with a ``ConvergenceWarning``.
    callbacks : callable or sequence of callables, optional
        Called as ``callback(state)`` after every epoch, with a ``nb.TrainingState``.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``; by default where X is, which is the CPU
        for data in the host's memory. With ``solver="lbfgs"`` and float32 data the coefficients are
        float64 on the CPU, as scikit-learn's are, and float32 on a GPU.
    engine, precision : str
        As for ``nb.train``. With ``solver="lbfgs"`` the reference engine sums in scikit-learn's
        order, so that rounding, which many iterations amplify, is the same as there.

    Attributes
    ----------
    validation_loss_curve_ : list of float
        The loss on the validation data that ``fit`` was given, after every epoch.

    Examples
    --------
    >>> import nnbackend as nb
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = nb.MLPClassifier((16,), solver="lbfgs", alpha=1.0, random_state=0)
    >>> make_pipeline(StandardScaler(), mlp).fit(X, y).score(X, y) > 0.95
    True
    """

    _rules = CLASSIFIER
    loss: ClassVar[str] = "log_loss"

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        optimizer: Any = None,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        dropout: Any = 0.0,
        clip_norm: float | None = None,
        scoring: Any = None,
        callbacks: Any = None,
        device: str | None = None,
        engine: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.optimizer = optimizer
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.scoring = scoring
        self.callbacks = callbacks
        self.device = device
        self.engine = engine
        self.precision = precision

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_val: Any = None, y_val: Any = None
    ) -> MLPClassifier:
        """Fit the model.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            The examples; sparse ones are made dense.
        y : array-like (n_samples,) or (n_samples, n_outputs)
            Class labels, or a matrix of 0 and 1 for several labels at once.
        sample_weight : array-like (n_samples,), optional
            Weights >= 0.
        X_val, y_val : array-likes, optional
            Validation data, whose mean loss, without weights, dropout and penalties, is recorded in
            ``validation_loss_curve_``. With ``early_stopping=True`` it decides in place of a part
            of the training data. A Pipeline does not transform it by itself: route it with
            ``set_fit_request`` and the Pipeline's ``transform_input=["X_val"]``.

        Returns
        -------
        MLPClassifier
        """
        self._train(Passed(X, y, sample_weight, X_val, y_val), incremental=False)
        return self

    @available_if(_has_steps)  # type: ignore[untyped-decorator]
    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, classes: Any = None
    ) -> MLPClassifier:
        """Take one epoch of steps on some examples.

        A source, or a memory-mapped, Zarr or h5py array larger than 2**28 bytes, is read once, in
        order: each block of rows that fits into its buffer is shuffled and trained on as by a call
        of its own, with an entry in ``loss_curve_``.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``; or for X a source of ``nb.sources``, which has the others.
        classes : array-like (n_classes,), optional
            All classes; needed at the first call.

        Returns
        -------
        MLPClassifier
        """
        n_outputs = len(getattr(self, "classes_", ()) if classes is None else classes)
        for rows in self._blocks(X, y, sample_weight, n_outputs):
            known = getattr(self, "classes_", None)
            self.classes_ = labels.classes_of_first_call(known, on_cpu(classes))
            self._train(Passed(*rows), incremental=True)
        return self

    @own_errors
    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes, or of every label.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples, n_classes)
            Of X's library, where X is, with ``array_api_dispatch``; else NumPy's.
        """
        return in_library(X, self._probabilities(X, "predict_proba"))

    @own_errors
    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of what ``predict_proba`` returns."""
        return in_library(X, np.log(self._probabilities(X, "predict_log_proba")))

    def _probabilities(self, X: Any, method: str) -> Any:
        A, place = self._propagated(X, method)
        if A.shape[1] > 1:
            return A
        return get_device(place or "cpu").xp.concat([1.0 - A, A], axis=1)

    def _decoded(self, A: Any, place: str) -> Any:
        is_multilabel = self.out_activation_ == "logistic" and A.shape[1] > 1
        return labels.decoded(A, None if is_multilabel else self.classes_, place)

    @property
    def _label_binarizer(self) -> LabelBinarizer:
        """The encoding of the classes, as converters of fitted models (skl2onnx) read it."""
        if self.out_activation_ == "logistic" and self.n_outputs_ > 1:
            return LabelBinarizer().fit(np.eye(self.n_outputs_, dtype=np.int64))
        # Twice each: of many classes with a single example scikit-learn warns.
        return LabelBinarizer().fit(np.repeat(self.classes_, 2))

    def _encoded(self, y: Any, *, is_new: bool) -> tuple[_Array, str]:
        if is_new or not hasattr(self, "classes_"):
            self.classes_ = labels.classes(y)
        else:
            labels.require_known(y, self.classes_, all_of_them=self.warm_start)
        is_multilabel = y.ndim == 2
        is_softmax = len(self.classes_) > 2 and not is_multilabel
        return labels.indicators(y, self.classes_), "softmax" if is_softmax else "logistic"

    def _weighted(self, y: _Array, sample_weight: Any, *, incremental: bool) -> Any:
        if self.class_weight is None:
            return sample_weight
        if incremental and self.class_weight == "balanced":
            raise InputError(
                "'balanced' is not for partial_fit, which sees a part of "
                "the data; pass a dict of weights",
                argument="class_weight",
            )
        is_multilabel = self.out_activation_ == "logistic" and self.n_outputs_ > 1
        classes = None if is_multilabel else self.classes_
        return labels.weights(self.class_weight, classes, y, sample_weight)

    def _loss(self, net: Network) -> Loss:
        if self.label_smoothing and self.out_activation_ != "softmax":
            raise InputError(
                f"expected 0 with two classes or several labels, got "
                f"{self.label_smoothing!r}: it is for the softmax of three and more classes",
                argument="label_smoothing",
            )
        epsilon = float(np.finfo(net.dtype).eps)
        if self.out_activation_ == "softmax":
            return SoftmaxLogLoss(label_smoothing=self.label_smoothing, epsilon=epsilon)
        return BinaryLogLoss(epsilon)

    def _targets(self, y: _Array) -> _Array:
        return y.argmax(axis=1) if self.out_activation_ == "softmax" else y

    def _encoded_validation(self, y: Any) -> _Array:
        if self.out_activation_ == "softmax" or self.n_outputs_ == 1:
            unknown = np.setdiff1d(np.unique(np.asarray(y)), self.classes_)
            if len(unknown):
                raise InputError(
                    f"expected labels of the training data, {self.classes_.tolist()}, got "
                    f"{unknown.tolist()}, too",
                    argument="y_val",
                )
        return labels.indicators(y, self.classes_)

    def _strata(self, y: _Array) -> _Array | None:
        return y if self.n_outputs_ == 1 else None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """scikit-learn's ``MLPRegressor``, trained by nnbackend, on the CPU or a GPU.

    Every parameter, attribute and method of ``sklearn.neural_network.MLPRegressor`` is there, and
    with the same ``random_state`` the coefficients are the same up to rounding. Added are the
    losses ``"absolute_error"``, ``"huber"``, ``"gaussian"`` and ``"quantile"``, and the parameters
    that ``MLPClassifier`` lists, without ``class_weight`` and ``label_smoothing``; scores are R^2,
    or what ``scoring`` says.

    With ``loss="gaussian"`` the network learns the mean and the deviation of one target, with
    ``loss="quantile"`` its quantiles, for ``predict_interval``. Such targets are standardized
    within the model, with the mean and the deviation of the first ``y`` that it is fitted to; the
    losses in its curves are in those units.

    Parameters
    ----------
    quantiles : sequence of float in (0, 1), optional
        The levels of ``loss="quantile"``, which increase; by default 0.05, 0.5, 0.95.
    standardize_target : bool, default False
        Whether the targets of other losses are standardized within the model as well, as they have
        to be for most networks to learn them: scikit-learn's do not.

    Attributes
    ----------
    quantiles_ : tuple of float
        The levels that were learned; only with ``loss="quantile"``.
    target_standardization_ : tuple (mean, scale) of arrays (1,)
        The units of the coefficients; only with ``loss="quantile"``, ``loss="gaussian"`` and
        ``standardize_target``.

    Examples
    --------
    >>> import nnbackend as nb
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 2.0, 3.0]
    >>> mlp = nb.MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", random_state=0)
    >>> mlp.fit(X, y).predict([[1.5]]).round(1)
    array([1.5])
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(-1.0, 1.0, (500, 1))
    >>> y = rng.normal(2.0 * X[:, 0], np.exp(X[:, 0]))
    >>> mlp = nb.MLPRegressor("quantile", (16,), quantiles=(0.1, 0.5, 0.9), learning_rate_init=0.01)
    >>> lower, upper = mlp.fit(X, y).predict_interval(X, coverage=0.8).T
    >>> bool(0.75 < np.mean((lower < y) & (y < upper)) < 0.85)
    True
    """

    _rules = REGRESSOR
    _target_options: ClassVar[dict[str, Any]] = {"y_numeric": True}

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        optimizer: Any = None,
        dropout: Any = 0.0,
        clip_norm: float | None = None,
        scoring: Any = None,
        callbacks: Any = None,
        device: str | None = None,
        engine: str = "auto",
        precision: str = "float32",
        quantiles: Any = None,
        standardize_target: bool = False,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.optimizer = optimizer
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.scoring = scoring
        self.callbacks = callbacks
        self.device = device
        self.engine = engine
        self.precision = precision
        self.quantiles = quantiles
        self.standardize_target = standardize_target

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_val: Any = None, y_val: Any = None
    ) -> MLPRegressor:
        """Fit the model; see ``MLPClassifier.fit``, with numbers in ``y``.

        Returns
        -------
        MLPRegressor
        """
        self._train(Passed(X, y, sample_weight, X_val, y_val), incremental=False)
        return self

    @available_if(_has_steps)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MLPRegressor:
        """Take one epoch of steps on some examples; see ``MLPClassifier.partial_fit``.

        Returns
        -------
        MLPRegressor
        """
        for rows in self._blocks(X, y, sample_weight, 1):
            self._train(Passed(*rows), incremental=True)
        return self

    @own_errors
    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return values.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.
        return_std : bool, default False
            Whether to return the deviations as well; with ``loss="gaussian"`` only.

        Returns
        -------
        y : array (n_samples,) or (n_samples, n_outputs)
            Of X's library, where X is, with ``array_api_dispatch``; else NumPy's. With
            ``loss="gaussian"`` the means, with ``loss="quantile"`` the medians, as
            ``Network.predict`` has them.
        std : array (n_samples,)
            Only with ``return_std``.
        """
        A, place = self._propagated(X, "predict")
        y = in_library(X, self._decoded(A, place))
        return (y, in_library(X, self._spread(A, "std", "return_std"))) if return_std else y

    @own_errors
    def predict_interval(self, X: Any, coverage: float = 0.9) -> Any:
        """Return intervals that contain the target with a given probability.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.
        coverage : float in (0, 1), default 0.9
            The probability; see ``Network.predict_interval``.

        Returns
        -------
        array (n_samples, 2)
            The lower and the upper ends.
        """
        coverage = real("coverage", coverage, above=0.0, below=1.0)
        A, place = self._propagated(X, "predict_interval")
        xp = get_device(place or "cpu").xp
        return in_library(X, self._output().interval(xp, A, coverage))

    @own_errors
    def predict_quantiles(self, X: Any) -> Any:
        """Return the quantiles that a model with ``loss="quantile"`` has learned.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples, n_quantiles)
            In the order of ``quantiles_``, increasing in each row.
        """
        A, _ = self._propagated(X, "predict_quantiles")
        return in_library(X, self._spread(A, "quantiles", "predict_quantiles"))

    def _spread(self, A: Any, what: str, argument: str) -> Any:
        found = self._output().spread(A)
        if what not in found:
            needed = "gaussian" if what == "std" else "quantile"
            raise InputError(
                f"expected a model with loss={needed!r}, got loss={self.loss!r}", argument=argument
            )
        return found[what]

    def _decoded(self, A: Any, place: str) -> Any:
        del place
        point = self._output().point(A) if A.shape[1] > 1 else A
        return point[:, 0] if point.shape[1] == 1 else point

    def _loss(self, net: Network) -> Loss:
        if self.loss == "squared_error":
            return MeanSquaredError(self.n_outputs_)
        if self.loss == "poisson":
            return PoissonDeviance()
        return losses.loss_function(self.loss, net.structure.output)

    def _encoded(self, y: Any, *, is_new: bool) -> tuple[_Array, str]:
        chosen = self._wanted_output()
        own = getattr(chosen, "quantiles", None)
        if not is_new and hasattr(self, "quantiles_") and own not in (None, self.quantiles_):
            raise InputError(
                f"expected the levels that the model has begun to learn, {self.quantiles_}, got "
                f"{own}; fit with warm_start=False to learn others",
                argument="quantiles",
            )
        column = self._encoded_validation(y)
        if chosen.is_distribution and column.shape[1] != 1:
            raise InputError(
                f"expected one column, (n_samples,), for loss={chosen.name!r}, got shape "
                f"{column.shape}",
                argument="y",
            )
        return column, chosen.name

    def _wanted_output(self) -> Output:
        """Return the output that the parameters ask for."""
        wanted = getattr(self.loss, "output", self.loss)
        name = {"poisson": "exp"}.get(wanted, wanted if wanted in DISTRIBUTIONS else "identity")
        own = getattr(self.loss, "quantiles", None)
        return output("loss", name, own if self.quantiles is None else self.quantiles)

    def _begin_output(self, y: _Array, sample_weight: _Array | None) -> int:
        for attribute in ("quantiles_", "target_standardization_"):
            self.__dict__.pop(attribute, None)
        chosen = self._wanted_output()
        is_distribution = isinstance(chosen, Distribution)
        if self.standardize_target and not chosen.is_standardizable:
            raise InputError(
                f"expected False for loss={self.loss!r}, whose targets have a scale of their own, "
                "got True",
                argument="standardize_target",
            )
        if is_distribution or self.standardize_target:
            seen = y if sample_weight is None else y[sample_weight > 0]
            self.target_standardization_ = Standardization.fit(np, seen)
        if not isinstance(chosen, Distribution):
            return super()._begin_output(y, sample_weight)
        if (own := getattr(chosen, "quantiles", None)) is not None:
            self.quantiles_ = own
        return chosen.n_outputs

    def _encoded_validation(self, y: Any) -> _Array:
        y = np.asarray(y)
        column: _Array = y.reshape(-1, 1) if y.ndim == 1 else y
        return column


register(MLPClassifier, MLPRegressor)

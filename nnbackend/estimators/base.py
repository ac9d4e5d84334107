"""An estimator around a network that predicts: features in, outputs and predictions out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from nnbackend.core import propagation
from nnbackend.core.activations import Activation, Output, activation
from nnbackend.core.distributions import output
from nnbackend.core.propagation import CACHED_ELEMENTS, DEVICE_ELEMENTS
from nnbackend.core.standardization import Standardization
from nnbackend.core.structure import Structure
from nnbackend.device import Device, device_of, get_device
from nnbackend.engines.native.forward import logits as native_logits
from nnbackend.errors import InputError
from nnbackend.estimators.arrays import dense, in_library, library_name, native
from nnbackend.floating_point import own_errors
from nnbackend.io.sklearn import LayeredEstimator

__all__ = ["FLOATS", "Predictor", "TakesArrays", "outputs"]


_Array = np.ndarray[Any, Any]
# The dtypes that features are kept in; others become the first.
FLOATS = (np.dtype("float64"), np.dtype("float32"))
# So many rows are worth a copy of the coefficients, which the C library takes as one vector.
_MANY_ROWS = 64


class TakesArrays(BaseEstimator):  # type: ignore[misc]
    """An estimator that takes features in arrays of any library, wherever they are."""

    n_features_in_: int

    if TYPE_CHECKING:
        # The parameters, which the subclasses set.
        def __getattr__(self, name: str) -> Any: ...

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags

    def _place_of(self, X: Any, method: str, *, is_fit: bool = False) -> str:
        """Return the name of the GPU to compute on because X is there; "" where it is not.

        With ``array_api_dispatch`` all arrays have to be of the library that ``fit`` was given.
        Without it scikit-learn makes NumPy arrays of all.
        """
        if not sklearn.get_config()["array_api_dispatch"]:
            return ""
        home, library = device_of(X), library_name(X)
        if is_fit:
            self._fitted_with = library, home
        elif getattr(self, "_fitted_with", (library, home)) != (library, home):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace "
                f"and the same device as those passed to fit(): expected {self._fitted_with[0]}, "
                f"got {library}"
            )
        if home is None or home.kind != "cuda" or self.device is not None:
            return ""
        return home.name

    def _features(self, X: Any) -> Any:
        """Return features as scikit-learn checks them, in any real dtype."""
        # Checking takes longer than one row's prediction: what is clearly in order is not checked.
        if (
            type(X) is np.ndarray
            and X.dtype in FLOATS
            and X.ndim == 2
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and not hasattr(self, "feature_names_in_")
            and np.isfinite(X.sum())
        ):
            return X
        return validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)

    def _home(self, place: str) -> Device:
        """Return where to compute with arrays that are at a place."""
        return get_device(place or self.device or "cpu")


class Predictor(LayeredEstimator, TakesArrays):
    """The predicting half of an estimator; subclasses define the parameters and decode outputs."""

    coefs_: list[_Array]
    intercepts_: list[_Array]
    n_outputs_: int
    out_activation_: str

    def _decoded(self, A: Any, place: str) -> Any:
        """Return the predictions that outputs stand for, where they are."""
        raise NotImplementedError

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coefs_")

    @own_errors
    def predict(self, X: Any) -> Any:
        """Return classes or values.

        Parameters
        ----------
        X : array-like or sparse matrix (n_samples, n_features)
            One example per row.

        Returns
        -------
        array (n_samples,) or (n_samples, n_outputs)
            Of X's library, where X is, with ``array_api_dispatch``; else NumPy's.
        """
        A, place = self._propagated(X, "predict")
        return in_library(X, self._decoded(A, place))

    def _propagated(self, X: Any, method: str) -> tuple[Any, str]:
        """Return the outputs for the caller's rows, and the GPU that they are on."""
        if not hasattr(self, "coefs_"):
            check_is_fitted(self)
        place = self._place_of(X, method)
        return self._outputs(dense(self._features(native(X))), place), place

    def _outputs(self, X: Any, place: str) -> Any:
        """Return the output activations of checked rows, where these are."""
        device = self._home(place)
        xp, weights, biases = device.xp, self.coefs_, self.intercepts_
        # The dtype of X times the coefficients, as there.
        is_single = np.result_type(X.dtype, weights[0].dtype) == np.float32
        dtype = np.float32 if is_single else np.float64
        n_most = CACHED_ELEMENTS
        if device.kind != "cpu":
            weights = [device.place(W, dtype) for W in weights]
            biases = [device.place(b, dtype) for b in biases]
            n_most = DEVICE_ELEMENTS
        sizes = (len(weights[0]), *map(len, biases))
        hidden = tuple(self._hidden(len(sizes) - 2))
        chosen = self._output()
        structure = Structure(sizes, hidden, chosen, (0.0,) * len(hidden))
        with device.activate():
            X = device.place(X, dtype)
            Z = None
            if device.kind == "cpu" and len(X) >= _MANY_ROWS:
                flat = structure.flatten(xp, weights, biases)
                Z = native_logits(structure, flat.astype(dtype, copy=False), X)
            if Z is None:
                n_rows = max(256, n_most // max(sizes[1:]))
                Z = propagation.logits(xp, structure, weights, biases, X, n_rows)
            target = getattr(self, "target_standardization_", None)
            if target is not None and device.kind != "cpu":
                target = Standardization(*map(device.place, target))
            A = propagation.restored(xp, chosen, chosen.function(xp, Z), target)
        return A if place else device.to_numpy(A)

    def _output(self) -> Output:
        """Return the output activation of the fitted network."""
        return output("out_activation_", self.out_activation_, getattr(self, "quantiles_", None))

    def _hidden(self, n_layers: int) -> list[Activation]:
        """Return the activation of each hidden layer."""
        given = self.activation
        if isinstance(given, str | Activation):
            given = [given] * n_layers
        if len(given) != n_layers:
            raise InputError(
                f"expected a name, or one for each of the {n_layers} hidden layers, "
                f"got {len(given)}",
                argument="activation",
            )
        return [activation("activation", entry) for entry in given]


def outputs(model: Predictor, X: Any, place: str) -> Any:
    """Return the output activations of a fitted model for checked rows, where these are."""
    return model._outputs(X, place)  # noqa: SLF001 - other estimators' part of it is public

"""The contestants on NumPy: textbook code, and scikit-learn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.bench.contestant import Contestant, Parameters, UnsupportedError
from nnbackend.core.optimizers import Adam

__all__ = ["ScikitLearn", "Textbook"]


class Textbook(Contestant):
    """NumPy as written in a course: one example per column, parameters in a dictionary."""

    title = "NumPy textbook"

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Transpose the data, and encode several classes as one-hot columns."""
        workload = self.workload
        activations: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
            "relu": (lambda Z: np.maximum(0, Z), lambda Z, _: Z > 0),
            "tanh": (np.tanh, lambda _, A: 1 - A**2),
            "sigmoid": (lambda Z: 1 / (1 + np.exp(-Z)), lambda _, A: A * (1 - A)),
            "identity": (lambda Z: Z, lambda Z, _: np.ones_like(Z)),
        }
        self._g, self._dg = self.choose(activations)
        self._X = np.ascontiguousarray(X.T)
        if workload.output == "softmax":
            self._Y = np.eye(workload.layer_sizes[-1], dtype=np.float32)[y].T.copy()
        else:
            self._Y = y.reshape(len(y), -1).T.astype(np.float32)
        self._initial = parameters
        self.reset()

    def reset(self) -> None:
        """Copy the initial parameters and forget the moments."""
        self._P: dict[str, Any] = {}
        for layer, (W, b) in enumerate(zip(*self._initial, strict=True), start=1):
            self._P[f"W{layer}"], self._P[f"b{layer}"] = W.T.copy(), b[:, np.newaxis].copy()
        self._v = {name: np.zeros_like(x) for name, x in self._P.items()}
        self._s = {name: np.zeros_like(x) for name, x in self._P.items()}
        self._t = 0
        self.restart_orders()

    def run(self, epochs: int) -> float:
        """Loop over epochs and batches."""
        workload, loss = self.workload, math.nan
        size = workload.batch_size
        with np.errstate(all="ignore"):
            for _ in range(epochs):
                X, Y = self._X, self._Y
                if workload.n_batches > 1:
                    order = self.draw_order()
                    X, Y = X[:, order], Y[:, order]
                losses = [
                    self._step(X[:, start : start + size], Y[:, start : start + size])
                    for start in range(0, workload.n_samples, size)
                ]
                loss = float(np.mean(losses))
        return loss

    def _step(self, X: Any, Y: Any) -> Any:
        P, L, m = self._P, len(self.workload.layer_sizes) - 1, X.shape[1]
        Z: dict[int, Any] = {}
        A: dict[int, Any] = {0: X}
        for layer in range(1, L + 1):
            Z[layer] = np.dot(P[f"W{layer}"], A[layer - 1]) + P[f"b{layer}"]
            if layer < L:
                A[layer] = self._g(Z[layer])
        if self.workload.output == "softmax":
            E = np.exp(Z[L] - np.max(Z[L], axis=0, keepdims=True))
            A[L] = E / np.sum(E, axis=0, keepdims=True)
            loss = -np.sum(Y * np.log(A[L])) / m
        else:
            A[L] = 1 / (1 + np.exp(-Z[L]))
            loss = -np.sum(Y * np.log(A[L]) + (1 - Y) * np.log(1 - A[L])) / m
        gradients = {}
        dZ = A[L] - Y
        for layer in range(L, 0, -1):
            gradients[f"W{layer}"] = np.dot(dZ, A[layer - 1].T) / m
            gradients[f"b{layer}"] = np.sum(dZ, axis=1, keepdims=True) / m
            if layer > 1:
                dA = np.dot(P[f"W{layer}"].T, dZ)
                dZ = dA * self._dg(Z[layer - 1], A[layer - 1])
        self._update(gradients)
        return loss

    def _update(self, gradients: dict[str, Any]) -> None:
        optimizer, P = self.workload.optimizer, self._P
        alpha = self.workload.learning_rate
        if not isinstance(optimizer, Adam):
            for name, g in gradients.items():
                v = g
                if self.workload.momentum:
                    v = self._v[name] = self.workload.momentum * self._v[name] + g
                P[name] = P[name] - alpha * v
            return
        self._t += 1
        beta1, beta2 = optimizer.beta1, optimizer.beta2
        for name, g in gradients.items():
            self._v[name] = beta1 * self._v[name] + (1 - beta1) * g
            self._s[name] = beta2 * self._s[name] + (1 - beta2) * g**2
            v = self._v[name] / (1 - beta1**self._t)
            s = self._s[name] / (1 - beta2**self._t)
            P[name] = P[name] - alpha * v / (np.sqrt(s) + optimizer.epsilon)

    def parameters(self) -> Parameters:
        """Return the parameters, transposed back."""
        layers = range(1, len(self.workload.layer_sizes))
        return [self._P[f"W{i}"].T for i in layers], [self._P[f"b{i}"][:, 0] for i in layers]


class ScikitLearn(Contestant):
    """scikit-learn's ``MLPClassifier``, without early stopping."""

    title = "scikit-learn"
    package = "scikit-learn"

    def load(self) -> None:
        """Import the estimator."""
        self._class = self.import_module("sklearn.neural_network").MLPClassifier
        self._warning = self.import_module("sklearn.exceptions").ConvergenceWarning

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Fit once to set up the shapes, then set the parameters."""
        workload, optimizer = self.workload, self.workload.optimizer
        activation = self.choose(
            {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic", "identity": "identity"}
        )
        n_outputs = workload.layer_sizes[-1]
        if workload.output == "softmax" and n_outputs == 2:
            raise UnsupportedError("has one sigmoid output for two classes, not a softmax of two")
        solver = "adam" if isinstance(optimizer, Adam) else "sgd"
        self._model = self._class(
            hidden_layer_sizes=workload.layer_sizes[1:-1],
            activation=activation,
            solver=solver,
            alpha=0.0,
            batch_size=workload.batch_size,
            learning_rate_init=float(optimizer.learning_rate),  # type: ignore[arg-type]
            momentum=workload.momentum,
            nesterovs_momentum=False,
            shuffle=workload.n_batches > 1,
            random_state=0,
            tol=0.0,
            n_iter_no_change=np.inf,
            warm_start=True,
            **({"epsilon": optimizer.epsilon} if isinstance(optimizer, Adam) else {}),
        )
        self._X, self._y, self._initial = X, y, parameters
        classes = np.arange(max(2, n_outputs))
        self._model.partial_fit(X, y, classes=classes)
        self.reset()

    def reset(self) -> None:
        """Set the initial parameters, and clear the optimizer and the losses."""
        model = self._model
        model.coefs_, model.intercepts_ = ([x.copy() for x in part] for part in self._initial)
        model.loss_curve_, model.best_loss_, model.t_ = [], np.inf, 0
        model.__dict__.pop("_optimizer", None)

    def run(self, epochs: int) -> float:
        """Fit one epoch at a time, which keeps the state of the optimizer."""
        if epochs == 1:
            self._model.partial_fit(self._X, self._y)
        else:
            self._model.max_iter = epochs
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._warning)
                self._model.fit(self._X, self._y)
        return float(self._model.loss_curve_[-1])

    def parameters(self) -> Parameters:
        """Return the model's parameters."""
        return list(self._model.coefs_), list(self._model.intercepts_)

"""Stack: networks of one structure whose outputs are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.core.structure import Structure
from nnbackend.core.types import Array, Namespace
from nnbackend.data.encoding import TableEncoding
from nnbackend.data.target import Target
from nnbackend.model.network import Network

__all__ = ["Stack", "deviation"]


@dataclass(frozen=True, eq=False)
class Stack:
    """Networks of one structure and dtype, and one standardization, whose outputs are averaged.

    Attributes
    ----------
    networks : tuple of Network
        At least one. The first has the names of the features and classes.
    noise : array (n_outputs,) of float64, or None
        The deviation of the noise of every target; NaN if it is not known. None for classes.
    labels : array (n_classes,) or None
        The class labels, whose text the ``class_names`` are. None for targets that are numbers.
    """

    networks: tuple[Network, ...]
    noise: np.ndarray[Any, Any] | None = None
    labels: np.ndarray[Any, Any] | None = None

    @property
    def structure(self) -> Structure:
        """The structure of each network."""
        return self.networks[0].structure

    @property
    def layer_sizes(self) -> list[int]:
        """The sizes of all layers of each network."""
        return self.networks[0].layer_sizes

    @property
    def output(self) -> str:
        """The name of the output activation."""
        return self.networks[0].output

    @property
    def dtype(self) -> str:
        """The dtype of the parameters."""
        return self.networks[0].dtype

    @property
    def n_parameters(self) -> int:
        """The number of parameters of all networks."""
        return sum(net.n_parameters for net in self.networks)

    @property
    def encoding(self) -> TableEncoding | None:
        """What columns of a table become, if the networks take tables."""
        return self.networks[0].encoding

    @property
    def target(self) -> Target | None:
        """What the target column of a file is, if it is known."""
        return self.networks[0].target

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """The names of the features, if they have any."""
        return self.networks[0].feature_names

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, if they have any."""
        return self.networks[0].class_names

    def predict(self, X: Any) -> Array:
        """Return class indices, or the mean of the predictions, as ``Network.predict`` does."""
        if self.output not in ("sigmoid", "softmax"):
            return sum(net.predict(X) for net in self.networks) / len(self.networks)
        for net in self.networks:
            net.predict(X)  # refuses NaN
        probabilities = self.predict_proba(X)
        if self.output == "sigmoid" and self.layer_sizes[-1] > 1:
            return (probabilities > 0.5).astype(np.int64)
        return probabilities.argmax(axis=1)

    def predict_proba(self, X: Any) -> Array:
        """Return the mean of the class probabilities, as ``Network.predict_proba`` does."""
        return sum(net.predict_proba(X) for net in self.networks) / len(self.networks)

    def predict_std(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the deviation of new observations from ``predict``, where targets are numbers."""
        members = np.stack([net.predict(X) for net in self.networks])
        noise = np.asarray(self.noise, members.dtype)
        return deviation(  # type: ignore[no-any-return]
            np, members, self.predict(X), noise[0] if members.ndim == 2 else noise
        )


def deviation(xp: Namespace, A: Array, mean: Array, noise: Array) -> Array:
    """Return the deviation of an observation from the mean of outputs (n_networks, ...)."""
    return xp.sqrt(xp.mean((A - mean) ** 2, axis=0) + noise**2)

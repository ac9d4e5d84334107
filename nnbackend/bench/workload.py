"""Workload: a network, a batch and an optimizer whose training the benchmark times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nnbackend.checks import lookup, positive_integer
from nnbackend.core.activations import activation
from nnbackend.core.optimizers import SGD, Adam
from nnbackend.errors import InputError
from nnbackend.model.network import Network

__all__ = ["DIGITS", "WORKLOADS", "Workload", "custom_workload"]

OPTIMIZERS: dict[str, type[SGD | Adam]] = {"sgd": SGD, "adam": Adam}


@dataclass(frozen=True)
class Workload:
    """A training to time: network, batch, optimizer, and number of batches per epoch.

    Attributes
    ----------
    name : str
        The name of the workload.
    layer_sizes : tuple of int
        Units of the input, the hidden and the output layers.
    hidden, output : str
        Activations; the output is ``"sigmoid"`` or ``"softmax"`` and implies the loss.
    batch_size : int
        Examples per step.
    optimizer : SGD or Adam
        Plain gradient descent, or Adam, with a constant rate.
    n_batches : int
        Batches per epoch; 1 is full-batch gradient descent.
    represents : str
        The kind of training that the workload represents.
    accuracy : float or None
        The held-out accuracy up to which training is timed; None times steps instead.

    Examples
    --------
    >>> WORKLOADS["small"].flops_per_step
    645120
    """

    name: str
    layer_sizes: tuple[int, ...]
    hidden: str
    output: str
    batch_size: int
    optimizer: SGD | Adam
    n_batches: int
    represents: str = ""
    accuracy: float | None = None

    @property
    def n_samples(self) -> int:
        """Rows of the data set."""
        return self.n_batches * self.batch_size

    @property
    def learning_rate(self) -> float:
        """The optimizer's constant learning rate."""
        rate = self.optimizer.learning_rate
        if not isinstance(rate, float):
            raise InputError(
                f"expected a constant learning rate, got {rate!r}", argument="optimizer"
            )
        return rate

    @property
    def flops_per_step(self) -> int:
        """The operations of the 3L - 1 matrix products of a step, 2 * batch * n_in * n_out each."""
        pairs = list(zip(self.layer_sizes[:-1], self.layer_sizes[1:], strict=True))
        products = [
            n_in * n_out * (2 if layer == 0 else 3) for layer, (n_in, n_out) in enumerate(pairs)
        ]
        return 2 * self.batch_size * sum(products)

    def __str__(self) -> str:
        layers = "-".join(map(str, self.layer_sizes))
        batch = f"batch {self.batch_size:,}{' (full)' if self.n_batches == 1 else ''}"
        return f"{layers}, {self.hidden}/{self.output}, {batch}, {self.optimizer.name}"

    def network(self, device: str = "cpu") -> Network:
        """Return the network with its initial parameters."""
        return Network(self.layer_sizes, hidden=self.hidden, output=self.output, device=device)

    def data(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return normal random features in float32, and balanced random labels."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.n_samples, self.layer_sizes[0]), dtype=np.float32)
        n_outputs = self.layer_sizes[-1]
        if self.output == "sigmoid" and n_outputs > 1:
            return X, rng.integers(0, 2, (self.n_samples, n_outputs))
        n_classes = 2 if self.output == "sigmoid" else n_outputs
        return X, rng.permutation(np.arange(self.n_samples) % n_classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the workload as a dictionary of JSON values, for ``from_dict``."""
        facts = asdict(self)
        facts["layer_sizes"] = list(self.layer_sizes)
        facts["optimizer"] = self.optimizer.name
        facts["learning_rate"] = self.learning_rate
        return facts

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Workload:
        """Return the workload that ``to_dict`` described."""
        facts = dict(facts)
        rate = facts.pop("learning_rate")
        facts["optimizer"] = OPTIMIZERS[facts["optimizer"]](rate)
        facts["layer_sizes"] = tuple(facts["layer_sizes"])
        return cls(**facts)


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("planar", (2, 4, 1), "tanh", "sigmoid", 400, SGD(0.1), 1, "two-layer network"),
        Workload("small", (30, 64, 32, 1), "relu", "sigmoid", 32, Adam(), 64, "small tables"),
        Workload(
            "images",
            (12288, 20, 7, 5, 1),
            "relu",
            "sigmoid",
            209,
            SGD(0.0075),
            1,
            "L-layer network on 64x64 colour images",
        ),
        Workload("mnist", (784, 512, 512, 10), "relu", "softmax", 128, Adam(), 32, "digits"),
        Workload("higgs", (28, 256, 256, 256, 1), "relu", "sigmoid", 4096, Adam(), 8, "big tables"),
        Workload(
            "wide", (1024, 2048, 2048, 10), "relu", "softmax", 1024, SGD(0.01), 4, "GEMM-bound"
        ),
    )
}

# The workload for the time to an accuracy: 1408 of scikit-learn's digits in 22 batches, with the
# rest held out.
DIGITS = Workload(
    "digits", (64, 256, 10), "relu", "softmax", 64, Adam(), 22, "real 8x8 digits", accuracy=0.97
)


def custom_workload(
    layer_sizes: Sequence[int],
    batch_size: int,
    *,
    hidden: str = "relu",
    output: str | None = None,
    optimizer: str = "adam",
) -> Workload:
    """Return a custom workload.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units of the input, the hidden and the output layers.
    batch_size : int
        Examples per step.
    hidden : str, default "relu"
        The hidden layers' activation.
    output : {"sigmoid", "softmax"}, optional
        By default sigmoid for one output, softmax for several.
    optimizer : {"adam", "sgd"}, default "adam"
        The optimizer, with its default rate.

    Returns
    -------
    Workload
        A workload with two to 64 batches per epoch, fewer if they are large.

    Raises
    ------
    InputError
        If an argument is invalid.

    Examples
    --------
    >>> print(custom_workload([64, 256, 256, 1], 512))
    64-256-256-1, relu/sigmoid, batch 512, adam
    """
    if len(layer_sizes) < 2:
        raise InputError(
            f"expected at least two sizes, such as 64-256-1, got {layer_sizes!r}", argument="layers"
        )
    sizes = tuple(positive_integer("layers", size) for size in layer_sizes)
    batch_size = positive_integer("batch", batch_size)
    hidden = activation("hidden", hidden).name
    output = output or ("sigmoid" if sizes[-1] == 1 else "softmax")
    lookup("output", output, dict.fromkeys(("sigmoid", "softmax")))
    if output == "softmax" and sizes[-1] == 1:
        raise InputError(
            "expected 'sigmoid' for a single output unit, got 'softmax'", argument="output"
        )
    return Workload(
        "-".join(map(str, sizes)),
        sizes,
        hidden,
        output,
        batch_size,
        lookup("optimizer", optimizer, OPTIMIZERS)(),
        max(2, min(64, 2**22 // (batch_size * sizes[0]))),
        "your own",
    )

"""Workload: a network, a batch and an optimizer whose training the benchmark times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from nnbackend.checks import lookup, positive_integer
from nnbackend.core.activations import ACTIVATIONS, activation, is_built_in
from nnbackend.core.optimizers import SGD, Adam
from nnbackend.errors import InputError
from nnbackend.model.network import Network

__all__ = ["DIGITS", "WORKLOADS", "Workload", "custom_workload", "random_workloads"]

OPTIMIZERS: dict[str, Callable[..., SGD | Adam]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adam": Adam,
}


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
        Gradient descent, plain or with momentum, or Adam, with a constant rate.
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
    def momentum(self) -> float:
        """The momentum of gradient descent; 0 if there is none."""
        return self.optimizer.momentum if isinstance(self.optimizer, SGD) else 0.0

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
        optimizer = "momentum" if self.momentum else self.optimizer.name
        return f"{layers}, {self.hidden}/{self.output}, {batch}, {optimizer}"

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
        facts["momentum"] = self.momentum
        return facts

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Workload:
        """Return the workload that ``to_dict`` described."""
        facts = dict(facts)
        rate, momentum = facts.pop("learning_rate"), facts.pop("momentum")
        chosen = {"momentum": momentum} if momentum else {}
        facts["optimizer"] = OPTIMIZERS[facts["optimizer"]](rate, **chosen)
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


# A turn is at least one epoch, so an epoch is short: fewer batches than 64 if they have this many
# features, or if their products have this many operations.
MAX_FEATURES, MAX_FLOPS = 2**22, 10**10


def custom_workload(
    layer_sizes: Sequence[int],
    batch_size: int,
    *,
    hidden: str = "relu",
    output: str | None = None,
    optimizer: str = "adam",
    is_full_batch: bool = False,
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
    optimizer : {"adam", "sgd", "momentum"}, default "adam"
        The optimizer, with its default rate; "momentum" is "sgd" with a momentum of 0.9.
    is_full_batch : bool, default False
        Whether the batch is the whole data set.

    Returns
    -------
    Workload
        A workload with two to 64 batches per epoch, fewer if they are large; one if it is the full
        batch.

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
    workload = Workload(
        "-".join(map(str, sizes)),
        sizes,
        hidden,
        output,
        batch_size,
        lookup("optimizer", optimizer, OPTIMIZERS)(),
        1,
        "your own",
    )
    if is_full_batch:
        return workload
    most = min(MAX_FEATURES // (batch_size * sizes[0]), MAX_FLOPS // workload.flops_per_step)
    return replace(workload, n_batches=max(2, min(64, most)))


# Every built-in activation that is not linear, which JAX and torch have as well. An alias has the
# name of another.
HIDDEN = tuple(
    name
    for name, entry in ACTIVATIONS.items()
    if name == entry.name != "identity" and is_built_in(entry)
)


def random_workloads(count: int, seed: int = 0) -> list[Workload]:
    """Return workloads that nobody has tuned anything for.

    Parameters
    ----------
    count : int
        The number of workloads.
    seed : int, default 0
        The same seed gives the same workloads on every machine; more of them begin with the same.

    Returns
    -------
    list of Workload
        Each has one to four hidden layers of up to 600 units, no multiples of 8; up to 1000 inputs;
        one output, or up to 20 classes; a batch of 8 to 1024 examples, in one of four cases the
        full one; an activation and an optimizer. Their names say all that.

    Raises
    ------
    InputError
        If an argument is invalid.

    Examples
    --------
    >>> for workload in random_workloads(2, seed=1):
    ...     print(workload.name)
    727-437-3-11, relu/softmax, batch 62, sgd
    16-1-124-31-1, elu/sigmoid, batch 35 (full), adam
    """
    count = positive_integer("random", count)
    rng = np.random.default_rng(positive_integer("seed", seed, minimum=0))

    def size(low: int, high: int) -> int:
        """Return a size of which every order of magnitude is as likely."""
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    workloads = []
    for _ in range(count):
        widths = [size(1, 600) for _ in range(rng.integers(1, 5))]
        workload = custom_workload(
            [
                size(2, 1000),
                # A multiple of 8 is the easy case of vectors and tiles.
                *(width + (width % 8 == 0) for width in widths),
                int(rng.integers(2, 21)) if rng.random() < 0.5 else 1,
            ],
            size(8, 1024),
            hidden=HIDDEN[rng.integers(len(HIDDEN))],
            optimizer=sorted(OPTIMIZERS)[rng.integers(len(OPTIMIZERS))],
            is_full_batch=bool(rng.random() < 0.25),
        )
        workloads.append(
            replace(workload, name=str(workload), represents=f"drawn with seed {seed}")
        )
    return workloads

"""An experiment on a data set: all options that decide its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from nnbackend.checks import real
from nnbackend.cli.presets import DEFAULTS
from nnbackend.core.distributions import DISTRIBUTIONS, Distribution, output
from nnbackend.errors import InputError
from nnbackend.training.history import EarlyStopping
from nnbackend.training.options import TrainingOptions

if TYPE_CHECKING:
    from nnbackend.data.datasets import Dataset
    from nnbackend.data.encoding import TableEncoding
    from nnbackend.model.network import Network

__all__ = ["OPTIONS", "Experiment", "NetworkOptions", "Option", "SplitOptions"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of a network on any data; ``Network`` checks them.

    Attributes
    ----------
    hidden : sequence of int
        Units of each hidden layer.
    activation, initializer, dropout, dtype, device, quantiles
        As for ``Network``, where ``activation`` is ``hidden``.
    """

    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    initializer: str | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    device: str = "cpu"
    quantiles: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Shares of the rows; the rest is for training.

    Attributes
    ----------
    validation, held_out : float in [0, 1)
        The shares of the validation and the held-out part.
    """

    validation: float = 0.2
    held_out: float = 0.2

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = real(entry.name, getattr(self, entry.name), minimum=0.0, below=1.0)
            object.__setattr__(self, entry.name, value)


class Option(NamedTuple):
    """An option of an experiment: int, float or str, and its default."""

    kind: type
    default: Any


def _options(part: type) -> dict[str, Option]:
    hints = get_type_hints(part)
    options = {}
    for entry in fields(part):
        # Leave out where a training is written to, and who watches it.
        if entry.metadata.get("decides", True) or entry.name in ("epochs", "engine"):
            kinds = {hints[entry.name], *get_args(hints[entry.name])}
            kind = next((kind for kind in (int, float) if kind in kinds), str)
            options[entry.name] = Option(kind, DEFAULTS.get(entry.name, entry.default))
    return options


_PARTS = {"network": NetworkOptions, "training": TrainingOptions, "split": SplitOptions}

# All options by name: those of the parts, with patience in place of early_stopping.
OPTIONS = {name: option for part in _PARTS.values() for name, option in _options(part).items()}
del OPTIONS["early_stopping"]
OPTIONS["patience"] = Option(int, DEFAULTS["patience"])


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the outcome of a training on a data set.

    Attributes
    ----------
    network : NetworkOptions
        The options of the network.
    training : TrainingOptions
        The options of the training; its seed also draws the split and the weights.
    split : SplitOptions
        The shares of the rows.
    """

    network: NetworkOptions
    training: TrainingOptions
    split: SplitOptions

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Experiment:
        """Make an experiment of options by name; other options have their defaults.

        Raises
        ------
        InputError
            If one is not as expected.
        """
        values = {**DEFAULTS, **given}
        parts: dict[str, Any] = {
            name: part(**{key: values[key] for key in _options(part) if key in values})
            for name, part in _PARTS.items()
        }
        # 0 turns early stopping off; EarlyStopping checks all other values.
        if values["patience"] != 0:
            monitor = "validation_loss" if parts["split"].validation else "loss"
            stopping = EarlyStopping(patience=values["patience"], monitor=monitor)
            parts["training"] = replace(parts["training"], early_stopping=stopping)
        return cls(**parts)

    def on(self, device: str) -> Experiment:
        """Return the same experiment on another device."""
        return replace(self, network=replace(self.network, device=device))

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, as JSON can hold them."""
        values = {
            name: getattr(part, name)
            for part in (self.network, self.training, self.split)
            for name in _options(type(part))
            if name not in ("hidden", "optimizer", "early_stopping")
        }
        stopping = self.training.early_stopping
        return {
            **values,
            "patience": 0 if stopping is None else stopping.patience,
            "optimizer": repr(self.training.optimizer),
        }

    def make_network(self, dataset: Dataset, encoding: TableEncoding | None = None) -> Network:
        """Return the untrained network for a data set.

        Parameters
        ----------
        dataset : Dataset
            The data.
        encoding : TableEncoding, optional
            What the columns become, where the features are a table.
        """
        from nnbackend.model.network import Network

        n_classes = 0 if dataset.class_names is None else len(dataset.class_names)
        distribution = self._distribution(n_classes)
        if distribution is not None:
            name, n_outputs = distribution.name, distribution.n_outputs
        else:
            name, n_outputs = {0: ("identity", 1), 2: ("sigmoid", 1)}.get(
                n_classes, ("softmax", n_classes)
            )
        n_inputs = dataset.X.shape[1] if encoding is None else encoding.n_outputs
        net = Network(
            [n_inputs, *self.network.hidden, n_outputs],
            hidden=self.network.activation,
            output=name,
            quantiles=self.network.quantiles,
            initializer=self.network.initializer,
            dropout=self.network.dropout,
            dtype=self.network.dtype,
            device=self.network.device,
            seed=self.training.seed,
        )
        net.feature_names, net.class_names = dataset.feature_names, dataset.class_names
        net.target = dataset.target
        return net if encoding is None else net.encode_with(encoding)

    def _distribution(self, n_classes: int) -> Distribution | None:
        """Return the output that a loss on a distribution asks for; None for other losses."""
        loss, quantiles = self.training.loss, self.network.quantiles
        if quantiles is not None and loss != "quantile":
            raise InputError(
                f"expected --loss quantile along with it, got {loss or 'no --loss'}",
                argument="quantiles",
            )
        if loss not in DISTRIBUTIONS:
            return None
        if n_classes:
            raise InputError(
                f"expected a target of numbers for {loss!r}, got {n_classes} classes; leave it "
                "out, or use --task regression if they are quantities",
                argument="loss",
            )
        chosen = output("loss", str(loss), quantiles)
        return chosen if isinstance(chosen, Distribution) else None

"""Find a learning rate: take steps at rising rates, and see where the loss is lowest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer, real
from nnbackend.core.losses import Loss
from nnbackend.core.optimizers import Adam, Optimizer
from nnbackend.core.optimizers import optimizer as get_optimizer
from nnbackend.data.placement import Memory
from nnbackend.device import get_device
from nnbackend.errors import InputError
from nnbackend.floating_point import own_errors
from nnbackend.model.network import Network
from nnbackend.training.errors import DivergenceError
from nnbackend.training.train import train

__all__ = ["RateFinder", "find_learning_rate"]

# Measure the loss always on the same rows, since batches differ by more than one step changes.
MEASURED_ROWS = 1024

# A smoothed loss is the mean over its rate and this many neighbours on either side.
NEIGHBOURS = 2


@dataclass(frozen=True)
class RateFinder:
    """The result of a learning-rate range test.

    Attributes
    ----------
    rates : list of float
        The rates that were tried, in rising order; fewer than requested if the loss exploded.
    losses : list of float
        The loss after the step at each rate.
    optimizer : Optimizer
        The optimizer that was tested.
    batch_size : int or None
        Examples per step; None for all.
    """

    rates: list[float]
    losses: list[float]
    optimizer: Optimizer
    batch_size: int | None

    def __repr__(self) -> str:
        suggestion = "None" if self.suggestion is None else f"{self.suggestion:.3g}"
        return (
            f"RateFinder({len(self.rates)} steps, rates {self.rates[0]:.3g} to "
            f"{self.rates[-1]:.3g}, suggestion={suggestion})"
        )

    @cached_property
    def smoothed_losses(self) -> list[float]:
        """The mean of each loss and its two neighbours on either side."""
        n = NEIGHBOURS
        windows = (self.losses[max(0, i - n) : i + n + 1] for i in range(len(self.losses)))
        return [sum(window) / len(window) for window in windows]

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate with the lowest smoothed loss; None if that is below all rates.

        The rate with the lowest loss itself is about to make training worse. If it is the highest
        rate tried, higher ones may be as good. If there is no suggestion, the loss fell nowhere or
        too close to the lowest rate: test again with a lower ``lowest``.
        """
        suggestion = self.rates[int(np.argmin(self.smoothed_losses))] / 10
        return suggestion if suggestion >= self.rates[0] else None

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses over the rates, with the suggestion.

        Parameters
        ----------
        path : path-like
            The file, with the ending ``.png`` or ``.svg``; its folder has to exist.

        Raises
        ------
        InputError
            If the file has another ending, or cannot be written.
        MissingDependencyError
            If matplotlib is not installed.
        """
        from nnbackend.io.files import checked_path, write_atomically
        from nnbackend.training.curves import rate_curve

        target = checked_path(path)
        file_format = os.path.splitext(target)[1].lower().removeprefix(".")
        if file_format not in ("png", "svg"):
            raise InputError(
                f"expected a file that ends in .png or .svg, got {target!r}", argument="path"
            )
        content = rate_curve(
            self.rates,
            self.losses,
            self.smoothed_losses,
            self.suggestion,
            self._title,
            file_format,
        )
        write_atomically(target, content)

    @property
    def _title(self) -> str:
        """Return the heading, with those options of the optimizer that are not defaults."""
        given: Any = self.optimizer
        options = [
            f"{option.name}={getattr(given, option.name)!r}"
            for option in fields(given)
            if option.name != "learning_rate" and getattr(given, option.name) != option.default
        ]
        name = type(given).__name__ + (f"({', '.join(options)})" if options else "")
        batches = "full batches" if self.batch_size is None else f"batches of {self.batch_size:,}"
        return f"Learning-rate range test\n{name}, {batches}"


@own_errors
def find_learning_rate(
    net: Network,
    X: Any,
    y: Any = None,
    *,
    optimizer: str | Optimizer | None = None,
    loss: str | Loss | None = None,
    batch_size: int | None = 128,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    seed: int | None = 0,
    sample_weight: Any = None,
) -> RateFinder:
    """Try learning rates on a copy of a network with Smith's range test.

    The copy takes one training step at each rate, from ``lowest`` to ``highest``, evenly spaced in
    their logarithms. Each step takes a new batch, and the optimizer keeps its state between steps.
    The loss is measured after every step, without dropout, always on the same 1024 rows (all rows
    if there are fewer). The test ends early if the loss explodes: if it becomes NaN or infinite, or
    exceeds the first loss by more than that loss's size and by more than it had fallen.

    Parameters
    ----------
    net : Network
        The network; it is not changed.
    X, y : array-likes
        As for ``train``, but not an iterable of batches.
    optimizer : str or Optimizer, optional
        The optimizer to test, as for ``train``; its own learning rate does not matter.
    loss : str or Loss, optional
        As for ``train``.
    batch_size : int or None, default 128
        Examples per step; use the same number as in training. None takes all, so that each of the
        ``steps`` costs as much as a whole epoch.
    lowest, highest : float, default 1e-6 and 10.0
        The range of the rates and of the suggestion.
    steps : int, default 100
        The number of rates to try.
    seed : int or None, default 0
        The seed of the batches, the measured rows and the dropout masks. None draws new ones each
        time.
    sample_weight : array-like (n_samples,), optional
        As for ``train``.

    Returns
    -------
    RateFinder
        With ``rates``, ``losses``, ``smoothed_losses``, a ``suggestion`` and ``plot(path)``. The
        suggestion is None if the loss did not fall, or if a tenth of the best rate is below
        ``lowest``; in that case, test again with a lower ``lowest``.

    Raises
    ------
    InputError
        If an argument is invalid.
    DivergenceError
        If the loss is NaN or infinite after the very first step.

    Notes
    -----
    The test is from Smith 2017, arXiv:1506.01186. Taking a tenth of the rate with the lowest loss
    is fastai's rule (Howard and Gugger 2020, arXiv:2002.04688). Use the suggestion as a constant
    rate, or as the highest rate of ``nb.schedules.OneCycle``.

    Examples
    --------
    >>> import nnbackend as nb
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> net = nb.Network([64, 32, 10], output="softmax").standardize(X)
    >>> found = nb.find_learning_rate(net, X, y, optimizer="adam")
    >>> 1e-3 < found.suggestion < 1e-1
    True
    """
    if not isinstance(net, Network):
        raise InputError(f"expected a nnbackend.Network, got {type(net).__name__}", argument="net")
    if y is None:
        raise InputError(
            "expected targets, got None; the range test draws batches of its own: pass arrays X "
            "and y rather than an iterable of batches",
            argument="y",
        )
    chosen: Any = Adam() if optimizer is None else get_optimizer(optimizer)
    lowest, highest = _range(lowest, highest)
    steps = positive_integer("steps", steps, minimum=2)
    if batch_size is not None:
        batch_size = positive_integer("batch_size", batch_size)
    if seed is not None:
        seed = positive_integer("seed", seed, minimum=0)
    rng = np.random.default_rng(seed)
    rows = _Rows(net, X, y, sample_weight, chosen, loss, batch_size)
    measured = rows.take(rng.permutation(rows.all)[:MEASURED_ROWS])
    # Copy the network without its standardization, which the rows have already had.
    probe = Network.from_structure(
        net.structure, net.parameters, dtype=net.dtype, device=net.device
    )
    rates: list[float] = []
    losses: list[float] = []
    state = None
    for rate, batch in zip(
        np.geomspace(lowest, highest, steps).tolist(), rows.batches(rng), strict=False
    ):
        X_batch, y_batch, weight = rows.take(batch)
        try:
            history = train(
                probe,
                X_batch,
                y_batch,
                sample_weight=weight,
                optimizer=replace(chosen, learning_rate=rate),
                loss=loss,
                epochs=1,
                batch_size=None,
                seed=int(rng.integers(2**31)),
                validation_data=measured,
                optimizer_state=state,
            )
        except DivergenceError:
            if not rates:
                raise
            break
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        state = history.optimizer_state
        rates.append(rate)
        losses += history.validation_loss
        if losses[-1] > losses[0] + max(abs(losses[0]), losses[0] - min(losses)):
            break
    return RateFinder(rates, losses, chosen, batch_size)


def _range(lowest: float, highest: float) -> tuple[float, float]:
    """Return the checked range of the rates."""
    lowest, highest = real("lowest", lowest, above=0.0), real("highest", highest, above=0.0)
    if highest <= lowest:
        raise InputError(
            f"expected a number > lowest, {lowest:g}, got {highest:g}", argument="highest"
        )
    return lowest, highest


class _Rows:
    """The training data, checked and standardized once, from which rows can be taken."""

    def __init__(
        self,
        net: Network,
        X: Any,
        y: Any,
        sample_weight: Any,
        optimizer: Optimizer,
        loss: str | Loss | None,
        batch_size: int | None,
    ) -> None:
        self._device = get_device(net.device)
        objective = net.objective(loss)
        self._memory = Memory(net.preparation, objective, optimizer, batch_size)
        with self._device.activate(), self._memory.explained():
            self._data = self._memory.prepare(X, y, objective.loss, sample_weight)
        weight = self._data.sample_weight
        # Leave out examples with weight 0, since a batch of only these would have no loss.
        self.all = (
            np.arange(self._data.n_samples)
            if weight is None
            else np.flatnonzero(self._device.to_numpy(weight))
        )
        self._batch_size = batch_size or len(self.all)

    def batches(self, rng: np.random.Generator) -> Iterator[Any]:
        """Yield the row numbers of one batch after another, in a new order for each epoch."""
        while True:
            order = rng.permutation(self.all)
            for start in range(0, len(order), self._batch_size):
                yield order[start : start + self._batch_size]

    def take(self, rows: Any) -> tuple[Any, Any, Any]:
        """Return X, y and sample_weight of some rows on the device."""
        data, xp = self._data, self._device.xp
        with self._device.activate(), self._memory.explained():
            here = self._device.place(rows)
            weight = data.sample_weight
            return (
                self._device.place(data.X[rows]) if data.streams else xp.take(data.X, here, axis=0),
                xp.take(data.y, here, axis=0),
                None if weight is None else xp.take(weight, here, axis=0),
            )

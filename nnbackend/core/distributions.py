"""Outputs that describe the distribution of one target: its mean and deviation, or quantiles.

A network with such an output has several outputs and one column of targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, ClassVar

from nnbackend.checks import lookup, real
from nnbackend.core.activations import OUTPUTS, Output, softplus
from nnbackend.core.standardization import Standardization
from nnbackend.core.types import Array, Namespace
from nnbackend.errors import InputError

__all__ = [
    "DISTRIBUTIONS",
    "LEAST_DEVIATION",
    "LEVELS",
    "Distribution",
    "GaussianOutput",
    "QuantileOutput",
    "deviation",
    "levels",
    "output",
]

# The least deviation that a Gaussian output gives, in units of the (standardized) target. It bounds
# the gradient of the log-likelihood where a network fits its data exactly.
LEAST_DEVIATION = 1e-4
# The levels of a quantile output by default: the median and an interval of coverage 0.9.
LEVELS = (0.05, 0.5, 0.95)

# Two levels are one if they differ by rounding alone.
_SAME_LEVEL = 1e-9


def _no_pullback(_xp: Namespace, _dA: Array, _A: Array) -> Array:
    raise NotImplementedError("a loss on a distribution is written for its logits")


class Distribution(Output):
    """An output whose columns describe the distribution of one target."""

    is_distribution: ClassVar[bool] = True

    @property
    def is_standardizable(self) -> bool:
        """True."""
        return True

    @property
    def n_outputs(self) -> int:
        """The number of columns."""
        raise NotImplementedError

    def n_targets(self, n_outputs: int) -> int:
        """Return 1."""
        del n_outputs
        return 1

    def require_size(self, n_outputs: int) -> None:
        """Raise an InputError unless there are as many outputs as the distribution has columns."""
        if n_outputs != self.n_outputs:
            raise InputError(
                f"expected {self.n_outputs} units in the last layer, {self._columns}, for "
                f"output={self.name!r}, got {n_outputs}",
                argument="layer_sizes",
            )

    @property
    def _columns(self) -> str:
        raise NotImplementedError


def _gaussian(xp: Namespace, Z: Array) -> Array:
    return xp.concat([Z[..., 0:1], deviation(xp, Z[..., 1:2])], axis=-1)


def deviation(xp: Namespace, Z: Array) -> Array:
    """Return the deviation softplus(Z) + 1e-4 that a logit stands for."""
    return softplus(xp, Z) + LEAST_DEVIATION


@dataclass(frozen=True)
class GaussianOutput(Distribution):
    """The mean and the standard deviation of a normal distribution."""

    @property
    def n_outputs(self) -> int:
        """Two."""
        return 2

    @property
    def _columns(self) -> str:
        return "the mean and the deviation"

    def restored(self, xp: Namespace, A: Array, target: Standardization) -> Array:
        """Return mean scale + shift and deviation scale, in float64."""
        scaled = xp.astype(A[..., 1:2], xp.float64) * target.scale
        return xp.concat([target.undo(xp, A[..., 0:1]), scaled], axis=-1)

    def point(self, A: Array) -> Array:
        """Return the means (n_samples, 1)."""
        return A[..., 0:1]

    def spread(self, A: Array) -> dict[str, Array]:
        """Return the deviations (n_samples,)."""
        return {"std": A[..., 1]}

    def interval(self, xp: Namespace, A: Array, coverage: float) -> Array:
        """Return the central interval of the normal distribution."""
        factor = NormalDist().inv_cdf(0.5 + 0.5 * coverage)
        mean, half = A[..., 0:1], factor * A[..., 1:2]
        return xp.concat([mean - half, mean + half], axis=-1)


def _sorted(xp: Namespace, Z: Array) -> Array:
    return xp.sort(Z, axis=-1)


@dataclass(frozen=True)
class QuantileOutput(Distribution):
    """Quantiles of increasing levels, which do not cross.

    The outputs are the logits in increasing order. Each logit learns its quantile independently of
    the others, and sorting never takes quantiles farther from the true ones (Chernozhukov,
    Fernandez-Val, Galichon, "Quantile and Probability Curves Without Crossing", Econometrica 2010),
    nor makes the sum of their pinball losses larger.

    Attributes
    ----------
    quantiles : tuple of float
        The levels, which increase.
    """

    quantiles: tuple[float, ...] = LEVELS

    @property
    def is_linear(self) -> bool:
        """True: sorting commutes with a positive scale."""
        return True

    @property
    def n_outputs(self) -> int:
        """The number of levels."""
        return len(self.quantiles)

    @property
    def _columns(self) -> str:
        return f"one for each of the quantiles {_listed(self.quantiles)}"

    def point(self, A: Array) -> Array:
        """Return the medians (n_samples, 1).

        Where 0.5 is no level, they are interpolated linearly between the levels around it; where
        all levels are on one side of 0.5, the nearest of them is taken.
        """
        above = next((k for k, level in enumerate(self.quantiles) if level >= 0.5), None)
        if above is None:
            return A[..., -1:]
        upper = A[..., above : above + 1]
        if above == 0 or self.quantiles[above] == 0.5:
            return upper
        low, high = self.quantiles[above - 1], self.quantiles[above]
        share = (0.5 - low) / (high - low)
        return (1.0 - share) * A[..., above - 1 : above] + share * upper

    def spread(self, A: Array) -> dict[str, Array]:
        """Return the quantiles (n_samples, n_levels)."""
        return {"quantiles": A}

    def interval(self, xp: Namespace, A: Array, coverage: float) -> Array:
        """Return the quantiles of the levels (1 - coverage) / 2 and (1 + coverage) / 2."""
        low, high = (self._index(0.5 + side * coverage) for side in (-0.5, 0.5))
        if low is None or high is None:
            raise InputError(self._no_interval(coverage), argument="coverage")
        return xp.concat([A[..., low : low + 1], A[..., high : high + 1]], axis=-1)

    def _index(self, level: float) -> int | None:
        same = (k for k, own in enumerate(self.quantiles) if abs(own - level) < _SAME_LEVEL)
        return next(same, None)

    def _no_interval(self, coverage: float) -> str:
        """Return the message that the network has not learned an interval."""
        own = [2 * level - 1 for level in self.quantiles if level > 0.5]
        known = [c for c in own if self._index(0.5 - 0.5 * c) is not None]
        wanted = _listed([0.5 - 0.5 * coverage, 0.5 + 0.5 * coverage])
        expected = f"expected {_listed(known)}, " if known else ""
        remedy = f"train with the quantiles {wanted}, too"
        return (
            f"{expected}got {coverage:g}: the network has learned the quantiles "
            f"{_listed(self.quantiles)}; {remedy}"
        )


def _listed(numbers: Sequence[float]) -> str:
    texts = [f"{number:.10g}" for number in numbers]
    *first, last = texts if len(texts) < 8 else [*texts[:3], "...", texts[-1]]
    return f"{', '.join(first)} and {last}" if first else last


DISTRIBUTIONS: dict[str, Distribution] = {
    entry.name: entry
    for entry in (
        GaussianOutput("gaussian", _gaussian, _no_pullback),
        QuantileOutput("quantile", _sorted, _no_pullback),
    )
}


def levels(argument: str, given: Any) -> tuple[float, ...]:
    """Return the levels of quantiles, checked: numbers between 0 and 1 that increase."""
    try:
        entries = [given] if isinstance(given, str | bytes) else list(given)
    except TypeError:
        entries = []
    if not entries:
        raise InputError(
            f"expected one or more levels between 0 and 1, such as {LEVELS}, got {given!r}",
            argument=argument,
        )
    checked = tuple(real(argument, level, above=0.0, below=1.0) for level in entries)
    for low, high in pairwise(checked):
        if high - low < _SAME_LEVEL:
            raise InputError(
                f"expected levels that increase, got {high:g} after {low:g}", argument=argument
            )
    return checked


def output(argument: str, value: str, quantiles: Any = None) -> Output:
    """Return the output that ``value`` names.

    Parameters
    ----------
    argument : str
        The name of the argument, for messages.
    value : str
        The name of an output.
    quantiles : sequence of float, optional
        The levels of a quantile output; by default ``LEVELS``.
    """
    chosen = lookup(argument, value, {**OUTPUTS, **DISTRIBUTIONS})
    if quantiles is None:
        return chosen
    if not isinstance(chosen, QuantileOutput):
        raise InputError(
            f"expected None, since levels are for {argument}='quantile' only, got {quantiles!r}",
            argument="quantiles",
        )
    return QuantileOutput(
        chosen.name, chosen.function, chosen.pullback, levels("quantiles", quantiles)
    )

"""Split data, and score a network on the held-out part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.checks import positive_integer
from nnbackend.core.distributions import Distribution, QuantileOutput
from nnbackend.data.datasets import Dataset
from nnbackend.errors import InputError
from nnbackend.model.network import Network
from nnbackend.model.stack import Stack

__all__ = [
    "Split",
    "evaluate",
    "finite_outputs",
    "finite_predictions",
    "split",
]

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """Row indices of the training, validation and held-out part of a data set."""

    training: np.ndarray[Any, Any]
    validation: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]


def split(dataset: Dataset, validation: float, held_out: float, seed: Any) -> Split:
    """Split rows: in their order, by group, or at random, stratified by class where possible.

    Parameters
    ----------
    dataset : Dataset
        The data to split.
    validation, held_out : float in [0, 1)
        Their shares of all rows; the rest, at least one row, is for training. Of ordered rows the
        last are held out, and those before them for validation. Groups are whole: a part has at
        least its share.
    seed : int
        Draws the parts.

    Raises
    ------
    InputError
        If a part with a share above 0 would be empty.
    """
    from sklearn.model_selection import train_test_split

    if positive_integer("seed", seed, minimum=0) >= 2**32:
        raise InputError(
            f"expected an integer from 0 to {2**32 - 1}, got {seed!r}", argument="seed"
        )
    n_samples = len(dataset.y)
    sizes = [round(n_samples * share) for share in (held_out, validation)]
    wanted = [share > 0 for share in (held_out, validation)]
    if sum(sizes) >= n_samples or any(
        w and size == 0 for w, size in zip(wanted, sizes, strict=True)
    ):
        raise InputError(
            f"expected enough rows for a training, a validation ({validation:g}) and a "
            f"held-out part ({held_out:g}), got {n_samples}; change --validation and --held-out",
            argument="DATA",
        )
    if dataset.order is not None:
        rows = np.argsort(dataset.order, kind="stable")
        first, second = n_samples - sum(sizes), n_samples - sizes[0]
        return Split(rows[:first], rows[first:second], rows[second:])
    if dataset.groups is not None:
        return _by_group(dataset.groups, sizes, seed)
    parts = [np.arange(n_samples)]
    for size in sizes:
        rest = parts.pop()
        if size == 0:
            parts += [rest[:0], rest]
            continue
        strata = None
        if dataset.class_names is not None:
            counts = np.bincount(dataset.y[rest])
            n_classes = int((counts > 0).sum())
            if counts[counts > 0].min() >= 2 and n_classes <= min(size, len(rest) - size):
                strata = dataset.y[rest]
        rest, part = train_test_split(rest, test_size=size, random_state=seed, stratify=strata)
        parts += [part, rest]
    chosen, checked, training = parts
    return Split(training, checked, chosen)


def _by_group(groups: np.ndarray[Any, Any], sizes: list[int], seed: int) -> Split:
    """Split rows so that no group is in two parts; groups are drawn at random."""
    counts = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(counts))
    ends = np.cumsum(counts[order])
    parts, begin = [], 0
    for size in sizes:
        taken = int(ends[begin - 1]) if begin else 0
        end = begin if size == 0 else int(np.searchsorted(ends, taken + size)) + 1
        parts.append(np.flatnonzero(np.isin(groups, order[begin:end])))
        begin = end
    training = np.flatnonzero(np.isin(groups, order[begin:]))
    if len(training) == 0:
        raise InputError(
            f"expected enough groups for a training, a validation and a held-out part, got "
            f"{len(counts)}; change --validation and --held-out",
            argument="--group",
        )
    return Split(training, parts[1], parts[0])


def evaluate(net: Network | Stack, X: Any, y: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the metrics of a network's predictions.

    Parameters
    ----------
    net : Network or Stack
        With one target.
    X : array (n_samples, n_features)
        Features.
    y : array (n_samples,)
        Class indices, or values.

    Returns
    -------
    dict of str to float
        ``n_samples``; ``accuracy``, ``macro_f1`` and ``log_loss`` for classes; ``r2`` (of two or
        more examples), ``rmse`` and ``mae`` for values, the latter two in units of the target. Of a
        distribution, also ``nll``, the mean negative log-likelihood, or ``pinball``, the mean
        pinball loss of all levels, in units of the target; and ``coverage``, the share of the
        values within the central interval that ``expected_coverage`` of them should lie within.

    Raises
    ------
    InputError
        If a prediction is not finite.
    """
    from sklearn import metrics

    predicted = finite_predictions(net, X)
    if net.output in ("sigmoid", "softmax"):
        probability = net.predict_proba(X).astype(np.float64)
        probability /= probability.sum(axis=1, keepdims=True)
        labels = np.arange(probability.shape[1])
        scores = {
            "accuracy": metrics.accuracy_score(y, predicted),
            "macro_f1": metrics.f1_score(
                y, predicted, labels=np.unique(y), average="macro", zero_division=0.0
            ),
            "log_loss": metrics.log_loss(y, probability, labels=labels),
        }
    else:
        # Scaling by a power of two is exact, and keeps squares from over- and underflowing.
        largest = max(np.abs(y).max(), np.abs(predicted).max())
        exponent = int(np.frexp(largest)[1])
        y, predicted = (np.ldexp(x.astype(np.float64), -exponent) for x in (y, predicted))
        errors = (
            metrics.root_mean_squared_error(y, predicted),
            metrics.mean_absolute_error(y, predicted),
        )
        with np.errstate(over="ignore"):
            rmse, mae = np.ldexp(errors, exponent)
        scores = {
            **({"r2": metrics.r2_score(y, predicted)} if len(y) > 1 else {}),
            "rmse": rmse,
            "mae": mae,
        }
        if isinstance(net, Network) and isinstance(net.structure.output, Distribution):
            A = np.ldexp(finite_outputs(net, X).astype(np.float64), -exponent)
            scores |= _of_distribution(net.structure.output, A, y, exponent)
    return {"n_samples": len(y), **{name: float(score) for name, score in scores.items()}}


def _of_distribution(
    distribution: Distribution, A: _Array, y: _Array, exponent: int
) -> dict[str, Any]:
    """Return the scores of outputs of float64, in units of 2**exponent, for values in these."""
    from sklearn.metrics import mean_pinball_loss

    scores: dict[str, Any]
    if isinstance(distribution, QuantileOutput):
        levels = zip(distribution.quantiles, A.T, strict=True)
        losses = [mean_pinball_loss(y, quantile, alpha=level) for level, quantile in levels]
        with np.errstate(over="ignore"):
            scores = {"pinball": np.ldexp(np.mean(losses), exponent)}
    else:
        mean, std = A.T
        with np.errstate(over="ignore"):
            distance = (y - mean) / std
            losses = np.log(std) + 0.5 * distance**2 + 0.5 * np.log(2.0 * np.pi)
            scores = {"nll": np.mean(losses) + exponent * np.log(2.0)}
    expected = distribution.usual_coverage
    if expected is not None:
        lower, upper = distribution.interval(np, A, expected).T
        scores["expected_coverage"] = round(expected, 9)
        scores["coverage"] = np.mean((lower <= y) & (y <= upper))
    return scores


def finite_predictions(net: Network | Stack, X: Any) -> _Array:
    """Return ``net.predict(X)``; raise an InputError if one of the values is not finite."""
    return _finite(net, net.predict(X))


def finite_outputs(net: Network, X: Any) -> _Array:
    """Return ``net.forward(X)``; raise an InputError if one of the values is not finite."""
    return _finite(net, net.forward(X))


def _finite(net: Network | Stack, predicted: _Array) -> _Array:
    bad = np.argwhere(~np.isfinite(predicted))
    if len(bad):
        raise InputError(
            f"expected features for which the model's numbers stay finite, got the "
            f"prediction {predicted[tuple(bad[0])]} in row {bad[0][0]} ({len(bad)} such values): "
            f"too large for {net.dtype}; correct the features, or train a model with "
            "--dtype float64",
            argument="DATA",
        )
    return predicted

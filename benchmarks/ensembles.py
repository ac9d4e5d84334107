"""Ensembles of 16 networks beside one: seconds, negative log-likelihood, and coverage.

Seconds: of the fit of one member (that with the middle number of epochs), of 16 one after another,
and of an ensemble of these 16, in turns; the medians of several rounds. A regressor is fitted
without its further networks for the noise, and with them.

Uncertainty: over several splits into training and test rows, the root mean squared error, the mean
negative log-likelihood of normal distributions, and the share of test rows within two standard
deviations. One network leaves a tenth of its rows out; its standard deviation is the root mean
squared residual there. All is in units of the target. A ``StandardScaler`` precedes all networks,
and targets are standardized by the training rows.

"diabetes" comes with scikit-learn. "quality" is synthetic, in the likeness of the set of red wines
and their marks: 1599 rows, 11 skewed and correlated features, marks that are whole numbers from 3
to 8, and noise that is wider for some rows than for others.

The tables go to the standard output as Markdown. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.bench.text import duration
from nnbackend.cli.terminal import to_json
from nnbackend.io.files import write_atomically

MEMBERS, ROUNDS, SPLITS, QUICK_EPOCHS = 16, 5, 10, 5
Array = np.ndarray[Any, Any]


def quality() -> tuple[Array, Array]:
    """Return the synthetic marks."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((1599, 4)) @ rng.standard_normal((4, 11))
    Z = (common + 1.5 * rng.standard_normal((1599, 11))) / np.sqrt(6.25)
    mean = 5.6 + 0.45 * Z[:, 0] - 0.4 * Z[:, 1] + 0.25 * np.tanh(2 * Z[:, 2] * Z[:, 3])
    noise = 0.6 * np.exp(0.25 * Z[:, 4]) * rng.standard_normal(1599)
    return np.exp(0.4 * Z), np.clip(np.round(mean + noise), 3, 8)


DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
    "quality": quality,
}
REGRESSOR = {"hidden_layer_sizes": (32,), "alpha": 1.0, "learning_rate_init": 0.01, "max_iter": 300}
CLASSIFIER = {"hidden_layer_sizes": (32, 16), "alpha": 0.01, "max_iter": 100}


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times(ensemble: Any, member: Any, X: Array, y: Array, rounds: int) -> dict[str, Any]:
    """Return the seconds of one member, of all one after another, and of the ensemble."""
    ensemble = clone(ensemble).set_params(estimator=member, n_estimators=MEMBERS, random_state=0)
    ways: dict[str, Callable[[], Any]] = {}
    if "noise_folds" in ensemble.get_params():
        ways["with noise"] = clone(ensemble).set_params(noise_folds=5).fit
        ensemble.set_params(noise_folds=None)
    ensemble.fit(X, y)
    # The epochs differ, so one member is that in the middle.
    alone = [clone(entry) for entry in sorted(ensemble.estimators_, key=lambda m: m.n_iter_)]
    ways |= {
        "one member": alone[MEMBERS // 2].fit,
        "one after another": lambda X, y: [entry.fit(X, y) for entry in alone],
        "ensemble": ensemble.fit,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, fit in ways.items():
            found[name].append(seconds(lambda fit=fit: fit(X, y)))
    return {
        "shape": X.shape,
        "medians": {name: statistics.median(values) for name, values in found.items()},
        "seconds": found,
    }


def figures(y: Array, mean: Array, std: Array) -> dict[str, float]:
    """Return what normal distributions of these means and deviations are worth."""
    errors = y - mean
    with np.errstate(divide="ignore"):
        likelihood = 0.5 * (np.log(2 * np.pi * std**2) + (errors / std) ** 2)
    return {
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "negative log-likelihood": float(np.mean(likelihood)),
        "coverage": float(np.mean(np.abs(errors) <= 2 * std)),
    }


def one_network(member: Any, X: Array, y: Array, seed: int) -> Callable[[Array], Any]:
    """Return the predictions of one network, whose deviation is that on rows left out."""
    X, X_out, y, y_out = train_test_split(X, y, test_size=0.1, random_state=seed)
    model = clone(member).set_params(random_state=seed).fit(X, y)
    std = np.sqrt(np.mean((model.predict(X_out) - y_out) ** 2))
    return lambda rows: (model.predict(rows), np.full(len(rows), std))


def an_ensemble(**options: Any) -> Callable[..., Callable[[Array], Any]]:
    """Return what fits an ensemble, and returns its predictions."""

    def fit(member: Any, X: Array, y: Array, seed: int) -> Callable[[Array], Any]:
        model = nb.EnsembleRegressor(member, MEMBERS, random_state=seed, **options).fit(X, y)
        return lambda rows: model.predict(rows, return_std=True)

    return fit


WAYS: dict[str, Callable[..., Callable[[Array], Any]]] = {
    "one network": one_network,
    "ensemble": an_ensemble(),
    "ensemble, bootstrap": an_ensemble(bootstrap=True),
    "ensemble, spread alone": an_ensemble(noise_folds=None),
}


def uncertainty(member: Any, X: Array, y: Array, splits: int) -> dict[str, Any]:
    """Return the figures of every way, split by split."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in range(splits):
        train, test, target, truth = train_test_split(X, y, test_size=0.2, random_state=seed)
        scaler, mean, scale = StandardScaler().fit(train), target.mean(), target.std()
        for way, fit in WAYS.items():
            predict = fit(member, scaler.transform(train), (target - mean) / scale, seed)
            center, std = predict(scaler.transform(test))
            found[way].append(figures(truth, center * scale + mean, std * scale))
    summary = {
        way: {
            name: {
                "mean": statistics.fmean(split[name] for split in rows),
                "standard_error": statistics.stdev(split[name] for split in rows) / splits**0.5,
            }
            for name in rows[0]
        }
        for way, rows in found.items()
    }
    return {"shape": X.shape, "summary": summary, "splits": found}


def line(cells: list[str]) -> str:
    """Return cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def time_table(results: dict[str, Any]) -> str:
    """Return the seconds as a table."""
    columns = ["data", "one member", "16 one after another", "ensemble of 16", "with noise"]
    columns += ["members' times", "times as fast"]
    lines = [line(columns), f"|---|{'---:|' * (len(columns) - 1)}"]
    for name, result in results.items():
        found = result["medians"]
        one, many, all_at_once = (
            found[key] for key in ("one member", "one after another", "ensemble")
        )
        cells = [f"{name} ({' x '.join(map(str, result['shape']))})"]
        cells += [duration(one), duration(many), duration(all_at_once)]
        cells.append(duration(found["with noise"]) if "with noise" in found else "")
        lines.append(line([*cells, f"{all_at_once / one:.1f}", f"{many / all_at_once:.2f}"]))
    return "\n".join(lines)


def uncertainty_table(results: dict[str, Any]) -> str:
    """Return errors, likelihoods and coverages as a table."""
    names = ["rmse", "negative log-likelihood", "coverage"]
    lines = [line(["data", "", *names]), "|---|---|---:|---:|---:|"]
    for name, result in results.items():
        for way, found in result["summary"].items():
            cells = [f"{found[n]['mean']:.3f} ± {found[n]['standard_error']:.3f}" for n in names]
            lines.append(line([name, way, *cells]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, metavar="N", help=f"{ROUNDS} unless given")
    parser.add_argument("--splits", type=int, metavar="N", help=f"{SPLITS} unless given")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few rounds and epochs")
    options = parser.parse_args(arguments)
    if (path := options.output) is not None and (path.is_dir() or not path.parent.is_dir()):
        parser.error(f"--output: expected a file in a folder that exists, got {path}")
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    splits = options.splits or (2 if options.quick else SPLITS)
    if rounds < 1 or splits < 2:
        parser.error("expected at least 1 round and 2 splits")
    warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs of all are bounded alike
    regressor, classifier = nb.MLPRegressor(**REGRESSOR), nb.MLPClassifier(**CLASSIFIER)
    if options.quick:
        for model in (regressor, classifier):
            model.set_params(max_iter=QUICK_EPOCHS)
    sets = {name: load() for name, load in DATA.items()}
    timed = {}
    for name, (X, y) in sets.items():
        given = StandardScaler().fit_transform(X), (y - y.mean()) / y.std()
        timed[name] = times(nb.EnsembleRegressor(), regressor, *given, rounds)
    X, y = datasets.load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    timed["breast_cancer"] = times(nb.EnsembleClassifier(), classifier, X, y, rounds)
    print(time_table(timed), "", sep="\n", flush=True)
    judged = {name: uncertainty(regressor, X, y, splits) for name, (X, y) in sets.items()}
    print(uncertainty_table(judged))
    record = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"rounds": rounds, "splits": splits, "quick": options.quick,
                     "members": MEMBERS, "regressor": REGRESSOR, "classifier": CLASSIFIER},
        "seconds": timed,
        "uncertainty": judged,
        "environment": environment(),
    }  # fmt: skip
    if path is not None:
        write_atomically(path, to_json(record, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

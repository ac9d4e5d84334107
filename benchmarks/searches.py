"""Times of ``nnbackend.GridSearchCV`` beside scikit-learn's search over scikit-learn's networks.

Both search the same grid with the same folds and ``random_state``; scikit-learn's with one process
and with two. The searches take turns, in one process; the first turn does not count. Printed are
medians, as a table in Markdown, how often as fast ours is, and by how much mean scores differ at
most. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sklearn import model_selection, neural_network
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.cli.terminal import to_json
from nnbackend.io.files import write_atomically

ROUNDS = 3
WAYS = ("nnbackend", "scikit-learn, n_jobs=1", "scikit-learn, n_jobs=2")
# How to load the data; the parameters of both; the grid; the folds; how often as fast ours shall be
# as each of scikit-learn's.
TASKS: dict[str, tuple[Any, dict[str, Any], dict[str, list[float]], int, tuple[float, float]]] = {
    "breast_cancer": (
        load_breast_cancer,
        {"hidden_layer_sizes": (32, 16), "max_iter": 100},
        {"alpha": list(np.logspace(-5, 0, 6)), "learning_rate_init": [5e-4, 1e-3, 2e-3, 5e-3]},
        5,
        (8.0, 5.0),
    ),
    "digits": (
        load_digits,
        {"hidden_layer_sizes": (128,), "max_iter": 60},
        {"alpha": list(np.logspace(-4, 0, 4)), "learning_rate_init": [5e-4, 1e-3, 2e-3]},
        3,
        (4.0, 2.5),
    ),
}


def search_of(way: str, name: str, epochs: int | None) -> tuple[Any, Any, Any]:
    """Return a search and its data."""
    load, parameters, grid, folds, _ = TASKS[name]
    parameters = {**parameters, "random_state": 0}
    if epochs is not None:
        parameters["max_iter"] = min(epochs, parameters["max_iter"])
    X, y = load(return_X_y=True)
    is_own = way == "nnbackend"
    model = (nb if is_own else neural_network).MLPClassifier(**parameters)
    kind = (nb if is_own else model_selection).GridSearchCV
    options = {} if is_own else {"n_jobs": int(way[-1])}
    named = {f"mlpclassifier__{key}": values for key, values in grid.items()}
    pipe = make_pipeline(StandardScaler(), model)
    return kind(pipe, named, cv=folds, refit=False, **options), X, y


def compare(name: str, rounds: int, epochs: int | None) -> dict[str, Any]:
    """Return the seconds of all ways, and how far their scores differ."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    scores: dict[str, Any] = {}
    # The first turn imports modules, and starts threads and processes.
    for turn in range(rounds + 1):
        for way in WAYS if turn % 2 else reversed(WAYS):
            search, X, y = search_of(way, name, epochs if turn else 2)
            start = perf_counter()
            search.fit(X, y)
            if turn:
                seconds[way].append(perf_counter() - start)
                folds = range(search.n_splits_)
                scores[way] = [search.cv_results_[f"split{k}_test_score"] for k in folds]
    medians = {way: statistics.median(seconds[way]) for way in WAYS}
    own, *others = WAYS
    return {
        "seconds": seconds,
        "medians": medians,
        "times_as_fast": {way: medians[way] / medians[own] for way in others},
        "targets": dict(zip(others, TASKS[name][-1], strict=True)),
        "largest_difference": float(np.abs(np.subtract(scores[own], scores[others[0]])).max()),
    }


def row(name: str, result: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [name, *(f"{seconds:.2f} s" for seconds in result["medians"].values())]
    cells += [
        f"{ratio:.2f} (target {result['targets'][way]:g})"
        for way, ratio in result["times_as_fast"].items()
    ]
    cells.append(f"{result['largest_difference']:.1e}")
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Compare, print and write; return 1 if scores differ by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="at most so many, for a smoke test")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.tasks if name not in TASKS]:
        parser.error(f"TASK: expected some of {', '.join(TASKS)}, got {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    record: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"rounds": options.rounds, "epochs": options.epochs},
        "results": {},
    }
    columns = ["search", *WAYS, "times as fast as n_jobs=1", "as n_jobs=2", "scores differ by"]
    print(f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}", sep="\n")
    for name in options.tasks or TASKS:
        result = record["results"][name] = compare(name, options.rounds, options.epochs)
        print(row(name, result), flush=True)
    record["environment"] = environment()
    if options.output is not None:
        write_atomically(options.output, to_json(record, indent=1).encode())
    differences = [result["largest_difference"] for result in record["results"].values()]
    return 0 if max(differences) <= 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())

"""Tables as they come: the command beside pipelines of scikit-learn's, on the same splits.

For each table and seed, a fifth of the rows is held out. Contestants are

- the command, ``nnbackend train TRAIN --target COL --seed SEED`` with no other option, which learns
  from 60 of 100 rows that it is given, checks itself with 20 and holds out 20 of its own; then
  ``nnbackend evaluate``;
- a pipeline as a person writes it by hand: gaps filled and marked, numbers scaled, everything else
  one-hot, dates as numbers, columns with a value per row left out, and scikit-learn's network;
- gradient-boosted trees on the same columns, as numbers and categories.

Scores are the accuracy for classes and R2 for numbers. A refused table has no score and the last
rank. This is the judge: nothing may be chosen by its scores; ``tabular_defaults.py`` is for that.
Each fit is cached, so a run goes on where another was broken off, and ``--fresh nnbackend`` forgets
what a former version of the command scored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from public_tables import NAMES, Table
from scipy.stats import rankdata
from sklearn import metrics
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from nnbackend.bench.environment import environment
from nnbackend.cli.terminal import to_json
from nnbackend.io.files import write_atomically

SEEDS, RARE = 3, 5
Outcome = dict[str, Any]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    call = [sys.executable, "-m", "nnbackend", *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def by_command(table: Table, seed: int) -> Outcome:
    """Train and evaluate by the command, with the files as they are."""
    training, held_out = table.split(seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("train.csv", "held_out.csv", "run")]
        for path, rows in zip(paths, (training, held_out), strict=False):
            Path(path).write_text(table.part(rows), encoding="utf-8")
        options = ("--target", table.target, "--json")
        trained = command("train", paths[0], *options, "--seed", str(seed), "--out", paths[2])
        if trained.returncode:
            return {"refused": trained.stderr.strip().replace(folder + os.sep, "")}
        judged = command("evaluate", paths[2], paths[1], *options)
        if judged.returncode:
            return {"refused": judged.stderr.strip().replace(folder + os.sep, "")}
    facts = json.loads(judged.stdout)
    wanted = "accuracy" if table.is_classification else "r2"
    if wanted not in facts:
        return {"refused": f"not taken for a {table.task}, so {wanted} is missing"}
    if facts["n_samples"] != len(held_out):
        return {"refused": f"scored {facts['n_samples']} of {len(held_out)} held-out rows"}
    found = {"score": facts[wanted]}
    return {**found, "log_loss": facts["log_loss"]} if table.is_classification else found


def features(table: Table) -> tuple[pd.DataFrame, pd.Series]:
    """Return the frame, without columns that a person would leave out, and the target."""
    frame, target = table.frame.drop(columns=table.target), table.frame[table.target]
    # Constants, and numbers of the rows: some files are sorted by the target.
    useless = [
        name for name in frame if frame[name].nunique(dropna=False) < 2 or is_row_name(frame[name])
    ]
    frame = frame.drop(columns=useless)
    for name in table.dates:
        days = (frame[name] - pd.Timestamp("1970-01-01")).dt.days
        frame[name] = days.astype(float)
        frame[f"{name} month"] = frame[name].where(days.isna(), table.frame[name].dt.month)
    return frame, target


def network(table: Table, frame: pd.DataFrame, seed: int) -> Any:
    """Return the pipeline that a person writes by hand."""
    numbers = list(frame.select_dtypes("number"))
    # A value per row: names and identifiers.
    others = [
        name
        for name in frame.select_dtypes(exclude="number")
        if frame[name].nunique() < 0.9 * len(frame)
    ]
    prepared = ColumnTransformer([
        (
            "numbers",
            make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
            numbers,
        ),
        (
            "others",
            make_pipeline(
                SimpleImputer(strategy="constant", fill_value="missing"),
                OneHotEncoder(handle_unknown="ignore", min_frequency=RARE, sparse_output=False),
            ),
            others,
        ),
    ])  # fmt: skip
    options = {"early_stopping": True, "random_state": seed, "max_iter": 500}
    if table.is_classification:
        return make_pipeline(prepared, MLPClassifier(**options))
    scaled = TransformedTargetRegressor(MLPRegressor(**options), transformer=StandardScaler())
    return make_pipeline(prepared, scaled)


def is_row_name(column: pd.Series) -> bool:
    """Say whether a column numbers the rows."""
    is_count = column.dtype.kind in "iu" and bool((column.diff().dropna() == 1).all())
    return is_count or str(column.name).startswith("Unnamed")


def trees(table: Table, frame: pd.DataFrame, seed: int) -> Any:
    """Return gradient-boosted trees."""
    del frame
    kind = (
        HistGradientBoostingClassifier if table.is_classification else HistGradientBoostingRegressor
    )
    return kind(categorical_features="from_dtype", random_state=seed)


def as_categories(frame: pd.DataFrame, training: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Return text as categories: the 254 most frequent of the training rows, as trees take."""
    frame = frame.copy()
    for name in frame.select_dtypes(exclude="number"):
        kept = frame[name].iloc[training].value_counts().index[:254]
        frame[name] = pd.Categorical(frame[name], categories=kept)
    return frame


def by_hand(model_of: Callable[..., Any]) -> Callable[[Table, int], Outcome]:
    """Return what fits and scores an estimator of scikit-learn's."""

    def fit(table: Table, seed: int) -> Outcome:
        training, held_out = table.split(seed)
        frame, target = features(table)
        training = training[target.iloc[training].notna().to_numpy()]
        if model_of is trees:
            frame = as_categories(frame, training)
        if table.is_classification:
            target = target.astype(str)
        model = model_of(table, frame.iloc[training], seed)
        model.fit(frame.iloc[training], target.iloc[training])
        X, y = frame.iloc[held_out], target.iloc[held_out]
        if not table.is_classification:
            return {"score": metrics.r2_score(y, model.predict(X))}
        loss = metrics.log_loss(y, model.predict_proba(X), labels=model.classes_)
        return {"score": metrics.accuracy_score(y, model.predict(X)), "log_loss": loss}

    return fit


CONTESTANTS: dict[str, Callable[[Table, int], Outcome]] = {
    "nnbackend": by_command,
    "pipeline": by_hand(network),
    "trees": by_hand(trees),
}


def outcomes(
    names: list[str], contestants: list[str], seeds: int, cache: Path, fresh: list[str]
) -> dict[str, dict[str, list[Outcome]]]:
    """Return what all contestants score, out of the cache where it is known."""
    found: dict[str, dict[str, list[Outcome]]] = {}
    for name in names:
        found[name] = {contestant: [] for contestant in contestants}
        for contestant in contestants:
            for seed in range(seeds):
                path = cache / f"{name}-{contestant}-{seed}.json"
                if path.exists() and contestant not in fresh:
                    outcome = json.loads(path.read_text())
                else:
                    start = time.perf_counter()
                    outcome = CONTESTANTS[contestant](NAMES[name], seed)
                    outcome["seconds"] = time.perf_counter() - start
                    write_atomically(path, to_json(outcome).encode())
                found[name][contestant].append(outcome)
        print(row(name, found[name]), flush=True)
    return found


def mean_of(outcomes: list[Outcome]) -> float | None:
    """Return the mean score, or None if a table was refused."""
    if any("refused" in outcome for outcome in outcomes):
        return None
    return statistics.fmean(outcome["score"] for outcome in outcomes)


def row(name: str, found: dict[str, list[Outcome]]) -> str:
    """Return a row of the table in Markdown."""
    table = NAMES[name]
    cells = [name, f"{table.frame.shape[0]} x {table.frame.shape[1]}", table.task]
    for results in found.values():
        mean = mean_of(results)
        if mean is None:
            cells.append("refused")
        else:
            scores = [outcome["score"] for outcome in results]
            spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{mean:.3f}{spread}")
    return f"| {' | '.join(cells)} |"


def summary(found: dict[str, dict[str, list[Outcome]]]) -> dict[str, Any]:
    """Return mean ranks, and how the command differs from the pipeline at worst."""
    means = {name: {who: mean_of(r) for who, r in by.items()} for name, by in found.items()}
    contestants = list(next(iter(means.values())))
    ranks = [
        rankdata([np.inf if value is None else -round(value, 6) for value in by.values()])
        for by in means.values()
    ]
    result: dict[str, Any] = {
        "means": means,
        "mean_ranks": dict(zip(contestants, np.mean(ranks, axis=0).tolist(), strict=True)),
        "refused": [name for name, by in means.items() if None in by.values()],
    }
    differences = {
        name: by["nnbackend"] - by["pipeline"]
        for name, by in means.items()
        if by.get("nnbackend") is not None and by.get("pipeline") is not None
    }
    if differences:
        worst = min(differences, key=differences.__getitem__)
        result["worst_difference"] = {"table": worst, "difference": differences[worst]}
    return result


def chosen(parser: argparse.ArgumentParser, option: str, text: str | None, of: Any) -> list[str]:
    """Return names that are separated by commas, all of them unless given."""
    names = list(of) if text is None else text.split(",")
    if unknown := [name for name in names if name not in of]:
        parser.error(f"{option}: expected some of {', '.join(of)}, got {', '.join(unknown)}")
    return names


def main(arguments: list[str] | None = None) -> int:
    """Judge, print and write; return 1 if a table is refused or ours is behind."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tables", metavar="A,B", help="all unless given")
    parser.add_argument("--contestants", metavar="A,B", help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", required=True, help="of all fits")
    parser.add_argument("--fresh", metavar="A,B", default="", help="contestants to fit anew")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    options = parser.parse_args(arguments)
    names = chosen(parser, "--tables", options.tables, NAMES)
    contestants = chosen(parser, "--contestants", options.contestants, CONTESTANTS)
    fresh = chosen(parser, "--fresh", options.fresh or None, CONTESTANTS) if options.fresh else []
    if options.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {options.seeds}")
    options.cache.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", message="Found unknown categories")
    columns = ["table", "rows x columns", "task", *contestants]
    print(f"| {' | '.join(columns)} |", f"|---|---|---|{'---:|' * len(contestants)}", sep="\n")
    found = outcomes(names, contestants, options.seeds, options.cache, fresh)
    totals = summary(found)
    print("", "mean ranks: " + ", ".join(
        f"{who} {rank:.2f}" for who, rank in totals["mean_ranks"].items()), sep="\n")  # fmt: skip
    for name in totals["refused"]:
        message = next(o["refused"] for by in found[name].values() for o in by if "refused" in o)
        print(f"refused: {name}: {message}")
    if worst := totals.get("worst_difference"):
        print(f"worst difference to the pipeline: {worst['difference']:+.3f} ({worst['table']})")
    if options.output is not None:
        record = {
            "format": 1,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {"seeds": options.seeds, "held_out": 0.2},
            "tables": {
                name: {
                    "source": f"{NAMES[name].package}: {NAMES[name].path}",
                    "about": NAMES[name].about,
                    "target": NAMES[name].target,
                    "task": NAMES[name].task,
                    "shape": NAMES[name].frame.shape,
                }
                for name in names
            },
            "outcomes": found,
            "summary": totals,
            "environment": environment(),
        }
        write_atomically(options.output, to_json(record, indent=1).encode())
    ranks = totals["mean_ranks"]
    is_behind = ranks.get("nnbackend", 0.0) >= ranks.get("pipeline", np.inf)
    is_far = worst is not None and worst["difference"] < -0.02
    return 1 if totals["refused"] or is_behind or is_far else 0


if __name__ == "__main__":
    sys.exit(main())

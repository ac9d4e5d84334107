"""Choose defaults for tables: cross-validation of candidates within the training parts.

``tables.py`` judges on held-out rows. Here only rows take part that none of the judge's seeds holds
out: the intersection of its training parts. They are cut into folds, by seeds of their own. In each
fold a candidate is trained as the command trains: a validation part comes out of the rows to learn
from, early stopping watches it, and the rows left out are scored. All folds and candidates of a
table are trained side by side by ``nb.train_many``.

Scores are the accuracy, the negative log loss beside it, and R2. The normalised score of a table is
0 for the worst tenth of the candidates and 1 for the best, so it depends on who takes part; the
mean rank does as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from public_tables import NAMES, Table
from scipy.stats import rankdata
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from tables import SEEDS, chosen

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.cli.terminal import to_json
from nnbackend.core.schedules import Clock, Schedule
from nnbackend.io.files import write_atomically

FOLDS, FIRST_SEED = 3, 1000
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CosLog4(Schedule):
    """Four cycles of a cosine whose lengths double, as RealMLP's (arXiv:2407.04491)."""

    learning_rate: float

    def rate(self, clock: Clock, state: Any = None) -> float:
        """Return learning_rate (1 - cos(2 pi log2(1 + 15 t))) / 2, t from 0 to 1."""
        del state
        time = clock.step / max(1, clock.total_steps)
        return float(self.learning_rate * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * time))) / 2)


SCHEDULES: dict[str, Any] = {
    "constant": float,
    "cosine": nb.schedules.Cosine,
    "one_cycle": nb.schedules.OneCycle,
    "coslog4": CosLog4,
}


@dataclass(frozen=True)
class Candidate:
    """Settings of a training, by whose differences from the command's today it is named."""

    hidden: tuple[int, ...] = (64, 32)
    activation: str = "relu"
    schedule: str = "constant"
    learning_rate: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.01
    dropout: float = 0.0
    smoothing: float = 0.0  # of labels
    batch_size: int = 32
    epochs: int = 200
    patience: int | None = 20  # None trains all epochs, and keeps those of the best epoch
    share: float = 0.25  # of the rows to learn from that early stopping watches; 0 for none
    # How many times decay alone would divide a weight by e over the training, whatever its number
    # of steps; None for ``weight_decay`` as it is.
    decay: float | None = None

    def decay_per_step(self, n_rows: int) -> float:
        """Return AdamW's weight_decay for a number of rows to learn from."""
        if self.decay is None:
            return self.weight_decay
        n_steps = self.epochs * -(-n_rows // min(self.batch_size, n_rows))
        mean_rate = self.learning_rate * (1.0 if self.schedule == "constant" else 0.5)
        return self.decay / (mean_rate * n_steps)

    @property
    def name(self) -> str:
        """What differs from the command's defaults."""
        other, given = asdict(Candidate()), asdict(self)
        changes = [
            f"{key}={'x'.join(map(str, value)) if key == 'hidden' else value}"
            for key, value in given.items()
            if value != other[key]
        ]
        return " ".join(changes) or "today's command"


REALMLP = Candidate(
    hidden=(256, 256, 256), activation="silu", schedule="coslog4", learning_rate=4e-3, beta2=0.95,
    weight_decay=0.02, dropout=0.15, smoothing=0.1, batch_size=256, epochs=256, patience=None,
)  # fmt: skip
FIXED = Candidate((128, 128), "silu", "cosine", 3e-3, 0.95, 0.1, 0.15, 0.05, 128, 60, None, 0.0)
EVEN = Candidate((256, 128), "silu", "cosine", 3e-3, 0.95, 0.0, 0.15, 0.0, 128, 100, None, 0.0, 2.0)
STRONG = Candidate((256, 128), "silu", "cosine", 1e-3, 0.95, 10.0, 0.15, 0.05, 128, 100, None, 0.0)
# Learning rates are below RealMLP's 0.04, which is for its scaled parametrization.
ROUNDS: dict[str, list[Candidate]] = {
    "first": [
        Candidate(),
        Candidate(patience=40, share=0.15),
        Candidate((128, 128), schedule="cosine", learning_rate=3e-3, epochs=100, patience=None),
        Candidate((128, 128), "silu", "cosine", 3e-3, dropout=0.1, batch_size=64, epochs=100,
                  patience=None, share=0.15),
        Candidate((128, 128), "gelu", "one_cycle", 1e-2, 0.95, 0.1, 0.1, 0.05, 64, 100, None, 0.15),
        REALMLP,
        replace(REALMLP, activation="gelu", schedule="cosine", share=0.15),
        replace(REALMLP, hidden=(128, 128), learning_rate=1e-2, smoothing=0.0, weight_decay=0.1),
        FIXED,
    ],
    # All rows and fixed epochs, more or less decay and dropout, beside early stopping.
    "second": [
        Candidate(),
        Candidate(patience=40, share=0.15),
        *(
            replace(FIXED, **changes)
            for changes in (
                {},
                {"weight_decay": 1.0},
                {"weight_decay": 1.0, "learning_rate": 1e-2},
                {"weight_decay": 3.0, "dropout": 0.3},
                {"dropout": 0.3},
                {"epochs": 30},
                {"batch_size": 32, "epochs": 30},
                {"share": 0.15, "weight_decay": 1.0},
            )
        ),
    ],
    # Stronger decay on wider layers.
    "third": [
        Candidate(),
        *(
            replace(STRONG, **changes)
            for changes in (
                {},
                {"weight_decay": 30.0},
                {"weight_decay": 3.0},
                {"activation": "relu"},
                {"activation": "gelu"},
                {"dropout": 0.3},
                {"hidden": (128, 64)},
                {"learning_rate": 3e-3, "weight_decay": 3.0},
                {"learning_rate": 3e-3, "weight_decay": 10.0},
                {"batch_size": 32, "epochs": 50},
                {"batch_size": 256},
                {"epochs": 200},
                {"hidden": (256, 256), "dropout": 0.3},
                {"schedule": "constant"},
                {"smoothing": 0.0},
            )
        ),
    ],
    # Strong decay suits small tables only: the same sum of it, however many steps there are.
    "fourth": [
        Candidate(),
        *(
            replace(EVEN, **changes)
            for changes in (
                {},
                {"decay": 0.5},
                {"decay": 1.0},
                {"decay": 4.0},
                {"learning_rate": 1e-3},
                {"learning_rate": 1e-3, "decay": 1.0},
                {"learning_rate": 1e-2},
                {"activation": "relu"},
                {"batch_size": 32, "epochs": 50},
                {"epochs": 200},
                {"hidden": (128, 64)},
                {"dropout": 0.3},
                {"dropout": 0.0},
                {"schedule": "coslog4"},
                {"beta2": 0.999},
            )
        ),
    ],
    # More steps.
    "fifth": [
        Candidate(),
        *(
            replace(EVEN, **({"batch_size": 32} | changes))
            for changes in (
                {},
                {"epochs": 50},
                {"decay": 1.0},
                {"decay": 3.0},
                {"learning_rate": 1e-3, "decay": 1.0},
                {"learning_rate": 1e-3},
                {"activation": "relu"},
                {"dropout": 0.3},
                {"schedule": "coslog4"},
                {"epochs": 50, "activation": "relu", "learning_rate": 1e-3, "decay": 1.0},
                {"epochs": 50, "learning_rate": 1e-3, "decay": 1.0},
                {"batch_size": 64},
                {"epochs": 50, "dropout": 0.3},
                {"epochs": 50, "hidden": (128, 64)},
                {"epochs": 50, "hidden": (256, 256)},
            )
        ),
    ],
}  # fmt: skip
AXES: dict[str, list[Any]] = {
    "hidden": [(64, 32), (128, 128), (256, 128), (256, 256, 256)],
    "activation": ["relu", "gelu", "silu"],
    "schedule": list(SCHEDULES),
    "learning_rate": [1e-3, 3e-3, 1e-2, 2e-2],
    "beta2": [0.95, 0.999],
    "weight_decay": [0.01, 0.1, 1.0, 3.0, 10.0],
    "dropout": [0.0, 0.15, 0.3, 0.5],
    "smoothing": [0.0, 0.05, 0.1],
    "batch_size": [32, 64, 128, 256],
    "epochs": [50, 100, 200],
    "patience": [40, None],
    "share": [0.0, 0.15],
}


def drawn(count: int, seed: int) -> list[Candidate]:
    """Return random candidates of the axes, and today's command."""
    rng = np.random.default_rng(seed)
    found = [Candidate()]
    while len(found) <= count:
        picked = {name: values[rng.integers(len(values))] for name, values in AXES.items()}
        candidate = Candidate(**picked)
        if candidate not in found:
            found.append(candidate)
    return found


def encode(table: Table, rows: Array, others: Array) -> tuple[Array, Array]:
    """Return the features of two parts, by an encoder that is fitted to the first."""
    frame = table.frame.drop(columns=table.target)
    encoder = nb.TableEncoder(dtype=np.float32).fit(frame.iloc[rows])
    return encoder.transform(frame.iloc[rows]), encoder.transform(frame.iloc[others])


def rows_of(table: Table) -> Array:
    """Return the rows with a target that no seed of the judge holds out."""
    rows = np.flatnonzero(table.frame[table.target].notna())
    for seed in range(SEEDS):
        rows = np.setdiff1d(rows, table.split(seed)[1])
    return rows


@dataclass
class Fold:
    """Encoded rows to learn from and rows to score, with their targets."""

    X: Array
    y: Array
    X_out: Array
    y_out: Array
    classes: int  # 0 for a regression


def folds(table: Table, repetition: int) -> Iterator[Fold]:
    """Cut the rows into folds."""
    rows, seed = rows_of(table), FIRST_SEED + repetition
    target = table.frame[table.target]
    classes = 0
    if table.is_classification:
        labels, codes = np.unique(target.iloc[rows].astype(str), return_inverse=True)
        classes, y = len(labels), codes
        cut: Any = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    else:
        y = target.iloc[rows].to_numpy(dtype=float)
        cut = KFold(FOLDS, shuffle=True, random_state=seed)
    for learnt, left_out in cut.split(rows, y):
        X, X_out = encode(table, rows[learnt], rows[left_out])
        yield Fold(X, y[learnt], X_out, y[left_out], classes)


def targets(fold: Fold, smoothing: float) -> Array:
    """Return targets for training: smoothed rows of probabilities, or standardized numbers."""
    if not fold.classes:
        return np.float32((fold.y - fold.y.mean()) / fold.y.std())
    exact = np.eye(fold.classes, dtype=np.float32)[fold.y]
    return exact * np.float32(1 - smoothing) + np.float32(smoothing / fold.classes)


def scored(fold: Fold, net: nb.Network) -> dict[str, float]:
    """Return the scores of the rows left out."""
    if not fold.classes:
        predicted = net.predict(fold.X_out) * fold.y.std() + fold.y.mean()
        total = np.sum((fold.y_out - fold.y_out.mean()) ** 2)
        return {"score": float(1 - np.sum((fold.y_out - predicted) ** 2) / total)}
    probability = net.predict_proba(fold.X_out)
    hit = np.clip(probability[np.arange(len(fold.y_out)), fold.y_out], 1e-7, 1)
    accuracy = np.mean(probability.argmax(axis=1) == fold.y_out)
    return {"score": float(accuracy), "negative_log_loss": float(np.mean(np.log(hit)))}


def tried(
    table: Table, candidates: list[Candidate], repetitions: int
) -> list[list[dict[str, float]]]:
    """Return the scores and seconds of each candidate, fold by fold."""
    found: list[list[dict[str, float]]] = [[] for _ in candidates]
    for repetition in range(repetitions):
        parts = list(folds(table, repetition))
        # A call shares its targets, and either all of its networks are watched or none.
        kinds = sorted({(c.smoothing, c.share > 0) for c in candidates})
        for (number, fold), (smoothing, watched) in product(enumerate(parts), kinds):
            group = [
                i
                for i, c in enumerate(candidates)
                if (c.smoothing, c.share > 0) == (smoothing, watched)
            ]
            seed = FIRST_SEED + repetition * FOLDS + number
            nets = [network_of(candidates[i], fold, seed) for i in group]
            histories = train(
                [candidates[i] for i in group], nets, fold, targets(fold, smoothing), seed
            )
            for i, net, history in zip(group, nets, histories, strict=True):
                seconds = float(sum(history.epoch_seconds))
                found[i].append(
                    {**scored(fold, net), "seconds": seconds, "epochs": history.n_epochs}
                )
    return found


def network_of(candidate: Candidate, fold: Fold, seed: int) -> nb.Network:
    """Return a network of a candidate's, not yet trained."""
    sizes = [fold.X.shape[1], *candidate.hidden, fold.classes or 1]
    output = "softmax" if fold.classes else "identity"
    return nb.Network(
        sizes, hidden=candidate.activation, output=output, dropout=candidate.dropout, seed=seed
    )


def train(
    candidates: list[Candidate], nets: list[nb.Network], fold: Fold, y: Array, seed: int
) -> list[nb.History]:
    """Train candidates of a fold side by side; all of them are watched, or none."""
    rows: dict[float, tuple[Array, Array]] = {}
    is_watched = candidates[0].share > 0
    for share in {candidate.share for candidate in candidates}:
        if not is_watched:
            rows[share] = np.arange(len(y)), np.arange(0)
            continue
        strata = fold.y if fold.classes and np.bincount(fold.y).min() >= 2 else None
        learnt, watched = train_test_split(
            np.arange(len(y)), test_size=share, random_state=seed, stratify=strata
        )
        rows[share] = learnt, watched
    return nb.train_many(
        nets,
        fold.X,
        y,
        rows=[rows[c.share][0] for c in candidates],
        validation_rows=[rows[c.share][1] for c in candidates] if is_watched else None,
        optimizer=[
            nb.AdamW(
                SCHEDULES[c.schedule](c.learning_rate),
                beta2=c.beta2,
                weight_decay=c.decay_per_step(len(rows[c.share][0])),
            )
            for c in candidates
        ],
        epochs=[c.epochs for c in candidates],
        batch_size=[min(c.batch_size, len(rows[c.share][0])) for c in candidates],
        early_stopping=[nb.EarlyStopping(patience=c.patience or c.epochs) for c in candidates]
        if is_watched
        else None,
        seed=seed,
    )


def summary(
    results: dict[str, list[list[dict[str, float]]]], candidates: list[Candidate]
) -> list[dict[str, Any]]:
    """Return each candidate's mean rank, normalised score and seconds, the best first."""
    means = np.array([
        [statistics.fmean(fold["score"] for fold in runs) for runs in by] for by in results.values()
    ])  # fmt: skip
    low = np.quantile(means, 0.1, axis=1, keepdims=True)
    span = means.max(axis=1, keepdims=True) - low
    normalised = ((means - low) / np.where(span > 0, span, 1)).clip(0, 1).mean(axis=0)
    ranks = rankdata(-means.round(6), axis=1).mean(axis=0)
    seconds = [
        statistics.fmean(fold["seconds"] for by in results.values() for fold in by[i])
        for i in range(len(candidates))
    ]
    found = [
        {
            "candidate": candidate.name,
            "settings": asdict(candidate),
            "mean_rank": float(ranks[i]),
            "normalised_score": float(normalised[i]),
            "mean_score": float(means[:, i].mean()),
            "below_today": float((means[:, 0] - means[:, i]).max()),
            "seconds_per_fit": seconds[i],
        }
        for i, candidate in enumerate(candidates)
    ]
    return sorted(found, key=lambda entry: entry["mean_rank"])


def main(arguments: list[str] | None = None) -> int:
    """Try the candidates, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tables", metavar="A,B", help="all unless given")
    parser.add_argument("--round", choices=ROUNDS, default="first", help="candidates by name")
    parser.add_argument("--draw", type=int, metavar="N", help="draw N candidates instead")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw")
    parser.add_argument("--repetitions", type=int, default=1, metavar="N", help="of the folds")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    options = parser.parse_args(arguments)
    names = chosen(parser, "--tables", options.tables, NAMES)
    for option in ("draw", "repetitions"):
        if (value := getattr(options, option)) is not None and value < 1:
            parser.error(f"--{option}: expected at least 1, got {value}")
    candidates = drawn(options.draw, options.seed) if options.draw else ROUNDS[options.round]
    warnings.filterwarnings("ignore", message="Found unknown categories")
    results = {}
    for name in names:
        start = perf_counter()
        results[name] = tried(NAMES[name], candidates, options.repetitions)
        scores = [statistics.fmean(fold["score"] for fold in runs) for runs in results[name]]
        shown = " ".join(f"{score:.3f}" for score in scores)
        print(f"{name}: {shown} ({perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    found = summary(results, candidates)
    columns = ["candidate", "mean rank", "normalised score", "most below today's", "seconds a fit"]
    print(f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}", sep="\n")
    for entry in found:
        cells = [entry["candidate"], f"{entry['mean_rank']:.2f}"]
        cells += [f"{entry['normalised_score']:.3f}", f"{entry['below_today']:.3f}"]
        print(f"| {' | '.join(cells)} | {entry['seconds_per_fit']:.2f} |")
    if options.output is not None:
        record = {
            "format": 1,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {"folds": FOLDS, "repetitions": options.repetitions},
            "summary": found,
            "results": results,
            "environment": environment(),
        }
        write_atomically(options.output, to_json(record, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

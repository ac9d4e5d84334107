"""From measured seconds to the model's constants, predictions, and the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scaling_model import (
    ASSUMPTIONS,
    CASES,
    EFFICIENCY,
    MACHINES,
    MPI_ALGORITHMS,
    NETWORKS,
    Fabric,
    Line,
    Model,
    machines,
    n_bytes,
)

from nnbackend.bench.text import duration

WHOSE = {"mpi": "MPI", "team": "a training's"}
KINDS = ("strong", "weak")


class Contestant(NamedTuple):
    """Processes, and the BLAS threads of each."""

    processes: int
    threads: int


ONE, THREADS, RANKS = Contestant(1, 1), Contestant(1, 2), Contestant(2, 1)
TITLES = {
    ONE: "1 process, 1 thread",
    THREADS: "1 process, 2 threads",
    RANKS: "2 processes, 1 thread each",
}


def points(lists: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """Return numbers and the medians that were measured for them."""
    return sorted((float(x), statistics.median(seconds)) for x, seconds in lists.items())


def analyse(measured: dict[str, Any], assumed: Mapping[str, float]) -> dict[str, Any]:
    """Return fits, how measured figures compare with them, and predictions."""
    reduced = {kind: points(lists) for kind, lists in measured["all_reduce"]["2"].items()}
    bare, whole = Line.fit(reduced["mpi"]), Line.fit(reduced["team"])
    # Two processes send and add every byte once: beta and gamma cannot be told apart, and
    # recursive doubling is the cheapest.
    here = Fabric(
        MPI_ALGORITHMS,
        bare.fixed,
        bare.slope,
        start=max(0.0, whole.fixed - bare.fixed),
        packing=max(0.0, whole.slope - bare.slope),
    )
    lines: dict[Contestant, dict[str, Line]] = {ONE: {}, THREADS: {}}
    fits: dict[str, Any] = {
        "all_reduce": {
            "alpha_seconds": here.alpha,
            "beta_seconds_per_byte": here.beta,
            "start_seconds": here.start,
            "packing_seconds_per_byte": here.packing,
            "worst_error": {
                "mpi": bare.worst(reduced["mpi"]),
                "team": whole.worst(reduced["team"]),
            },
        },
        "compute": {},
    }
    for network, by_contestant in measured["steps"].items():
        for contestant, found in lines.items():
            line = Line.fit(points(by_contestant[TITLES[contestant]]))
            found[network] = line
            fits["compute"].setdefault(network, {})[TITLES[contestant]] = {
                "fixed_seconds": line.fixed,
                "seconds_per_row": line.slope,
                "worst_error": line.worst(points(by_contestant[TITLES[contestant]])),
            }
    return {
        "fits": fits,
        "comparison": [
            compare(measured["steps"][name], batch, Model(lines[ONE][name], n_bytes(net), here))
            | {"network": name}
            for name, batch in CASES
            if (net := NETWORKS[name]) and name in measured["steps"]
        ],
        "predictions": [
            prediction
            for machine, model in machines(assumed, lines[THREADS], here).items()
            for name, batch in CASES
            for prediction in predict(
                machine, int(assumed[MACHINES[machine]]), model(NETWORKS[name]), name, batch
            )
        ],
    }


def compare(by_contestant: dict[str, Any], batch: int, model: Model) -> dict[str, Any]:
    """Return two processes beside one, as measured and as the model has it."""
    seconds = {
        contestant: {x: statistics.median(s) for x, s in by_contestant[title].items()}
        for contestant, title in TITLES.items()
    }
    strong, weak = str(batch), str(2 * batch)
    one, threads, two = (seconds[c][strong] for c in (ONE, THREADS, RANKS))
    one_rounds, two_rounds = by_contestant[TITLES[ONE]][strong], by_contestant[TITLES[RANKS]]
    weak_two = seconds[RANKS][weak]
    return {
        "batch": batch,
        "one_seconds": one,
        "threads_seconds": threads,
        "strong": {
            "step_seconds": two,
            "speedup": one / two,
            "speedup_range": ratios(one_rounds, two_rounds[strong]),
            "efficiency": one / two / 2,
            "threads_speedup": one / threads,
            "predicted_seconds": model.step(2, batch),
            "error": model.step(2, batch) / two - 1,
        },
        "weak": {
            "step_seconds": weak_two,
            "speedup": 2 * one / weak_two,
            "speedup_range": [2 * ratio for ratio in ratios(one_rounds, two_rounds[weak])],
            "efficiency": one / weak_two,
            "threads_speedup": 2 * one / seconds[THREADS][weak],
            "predicted_seconds": model.step(2, 2 * batch),
            "error": model.step(2, 2 * batch) / weak_two - 1,
        },
    }


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the smallest and the largest ratio of the rounds."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return [min(found), max(found)]


def predict(
    machine: str, most: int, model: Model, network: str, batch: int
) -> list[dict[str, Any]]:
    """Return the figures of a network on 1, 2, 4, ... of a machine's processes."""
    counts = [2**k for k in range(most.bit_length()) if 2**k < most]
    return [
        {
            "machine": machine,
            "network": network,
            "batch": batch,
            "scaling": kind,
            "processes": p,
            **model.figures(p, batch, is_weak=kind == "weak"),
            "least_rows": model.least_rows(p, EFFICIENCY, is_weak=kind == "weak"),
        }
        for kind in KINDS
        for p in [*counts, most]
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], n_texts: int = 0) -> str:
    """Return a Markdown table: the first column is text, the last ``n_texts`` are as well."""
    numbers = ["---:"] * (len(columns) - 1 - n_texts)
    lines = [columns, ["---", *numbers, *["---"] * n_texts], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(value: float, sign: str = "") -> str:
    """Return a fraction as a percentage."""
    return f"{100 * value:{sign}.0f}%"


def spread(seconds: Sequence[float]) -> str:
    """Return the median, and half the range over the rounds beside it."""
    median = statistics.median(seconds)
    return f"{duration(median)} \u00b1{50 * (max(seconds) - min(seconds)) / median:.0f}%"


def report(record: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    settings, cores = record["settings"], record["environment"]["cores"]
    heading = (
        "# How data-parallel training scales\n\n"
        f"{record['date'][:10]}, {processors(record)}, {cores} cores, float32, Adam, engine "
        f"{settings['engine']}; medians of {settings['rounds']} rounds, \u00b1 half their range. "
        "`benchmarks/scaling.py` made this, and says how."
    )
    sections = (measured_section, reduce_section, check_section, predicted_section, assumed_section)
    return "\n\n".join([heading, *(section(record) for section in sections)]) + "\n"


def measured_section(record: dict[str, Any]) -> str:
    """Return what was measured of training."""
    text = (
        "## Measured: two processes beside one\n\n"
        "Strong: the same batch, in two parts. Weak: twice the batch, so speed-ups are in rows per "
        "second. All speed-ups are against one process with one thread on the given batch. One "
        "process with two threads has the same two cores as two processes; that is its speed-up "
        "in the last column.\n\n"
    )
    columns = ["network, batch", *TITLES.values(), "speed-up", "efficiency", "of two threads"]
    steps = record["measured"]["steps"]
    return text + table(columns, (measured_row(steps, row, kind) for row, kind in rows(record)))


def measured_row(steps: dict[str, Any], row: dict[str, Any], kind: str) -> list[str]:
    """Return a row of the table of what was measured."""
    batch, figures = row["batch"], row[kind]
    on_two = str(batch if kind == "strong" else 2 * batch)
    one, *others = (steps[row["network"]][title] for title in TITLES.values())
    low, high = figures["speedup_range"]
    return [
        f"{row['network']}, {batch:,}, {kind}",
        spread(one[str(batch)]),
        *(spread(by_batch[on_two]) for by_batch in others),
        f"{figures['speedup']:.2f} ({low:.2f} to {high:.2f})",
        percent(figures["efficiency"]),
        f"{figures['threads_speedup']:.2f}",
    ]


def reduce_section(record: dict[str, Any]) -> str:
    """Return what was measured of the all-reduce."""
    fit, reduced = record["analysis"]["fits"]["all_reduce"], record["measured"]["all_reduce"]
    text = (
        "## Measured: the all-reduce alone\n\n"
        f"Between two processes, MPI's is fitted by {duration(fit['alpha_seconds'])} and "
        f"{1e9 * fit['beta_seconds_per_byte']:.3g} ns per byte, off by up to "
        f"{percent(fit['worst_error']['mpi'])} in between. A training's, which weights, divides "
        f"and watches the others, adds {duration(fit['start_seconds'])} and "
        f"{1e9 * fit['packing_seconds_per_byte']:.3g} ns per byte. Where there are more processes "
        "than cores, they take turns, which says nothing of as many cores.\n\n"
    )
    columns = ["bytes", *(f"{p} processes, {whose}" for p in reduced for whose in WHOSE.values())]
    return text + table(
        columns,
        (
            [f"{int(n):,}", *(spread(reduced[p][kind][n]) for p in reduced for kind in WHOSE)]
            for n in reduced["2"]["mpi"]
        ),
    )


def check_section(record: dict[str, Any]) -> str:
    """Return how the model compares with what was measured."""
    worst = max(abs(row[kind]["error"]) for row, kind in rows(record))
    text = (
        "## The model, checked against the two processes\n\n"
        "A step takes the computing of the largest part, a line in its rows fitted to one process "
        "with one thread, and the all-reduce above. That two processes share caches and memory, "
        f"it does not know. It is off by up to {percent(worst)}.\n\n"
    )
    return text + table(
        ["network, batch", "measured", "model", "error"],
        (
            [
                f"{row['network']}, {row['batch']:,}, {kind}",
                duration(row[kind]["step_seconds"]),
                duration(row[kind]["predicted_seconds"]),
                percent(row[kind]["error"], "+"),
            ]
            for row, kind in rows(record)
        ),
    )


def predicted_section(record: dict[str, Any]) -> str:
    """Return the predictions, for each machine with all its processes."""
    networks = (f"{n.name} {'-'.join(map(str, n.layer_sizes))}" for n in NETWORKS.values())
    text = (
        "## Predicted, not measured\n\n"
        "What the model gives for machines that it has not been checked on, with the assumptions "
        "below; scaling.json has it for fewer processes, too. Least rows: of each process, below "
        f"which the efficiency is under {percent(EFFICIENCY)}. The networks: {'; '.join(networks)}."
    )
    columns = ["network, batch", "step", "speed-up", "efficiency", "all-reduce", "least rows"]
    parts = [text]
    for name, most in MACHINES.items():
        found = (
            [
                f"{p['network']}, {p['batch']:,}, {p['scaling']}",
                duration(p["step_seconds"]),
                f"{p['speedup']:.3g}",
                percent(p["efficiency"]),
                percent(p["reduce_share"]),
                f"{math.ceil(p['least_rows']):,}",
            ]
            for p in record["analysis"]["predictions"]
            if (p["machine"], p["processes"]) == (name, record["assumptions"][most])
        )
        parts.append(f"### {record['assumptions'][most]:g} {name}\n\n{table(columns, found)}")
    return "\n\n".join(parts)


def assumed_section(record: dict[str, Any]) -> str:
    """Return the assumptions."""
    assumed = record["assumptions"]
    columns = ["option", "value", "unit", "source"]
    cells = (
        [
            f"`{option(name)}`",
            f"{assumed[name]:g}",
            entry.unit,
            entry.source if assumed[name] == entry.value else "given",
        ]
        for name, entry in ASSUMPTIONS.items()
    )
    return (
        f"## Assumed\n\n{table(columns, cells, n_texts=2)}\n\n"
        "What a team adds per all-reduce and per byte on a node is what was measured here. A "
        "network that was not measured has the fixed part of the largest that was, scaled by the "
        "parameters, and its seconds per operation. On GPUs, the hosts' exchange of flags before "
        "each sum is taken to hide behind computing. Not in the model: contention of links, slow "
        "processes, reading data."
    )


def rows(record: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the rows of the comparison, for each kind of scaling."""
    return [(row, kind) for row in record["analysis"]["comparison"] for kind in KINDS]


def processors(record: dict[str, Any]) -> str:
    """Return the names of the machine's processors."""
    return "; ".join(device["processor"] for device in record["environment"]["devices"])


def option(name: str) -> str:
    """Return the option that changes an assumption."""
    return f"--{name.replace('_', '-')}"

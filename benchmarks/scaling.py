"""How data-parallel training scales: measured here, predicted for eight GPUs and for 64 nodes.

``python benchmarks/scaling.py --out FOLDER`` times training steps in one process and in two, and
the all-reduce alone; fits a cost model (scaling_model.py) to both, says how far it is off, and
applies it to machines that are not here. What is assumed of them has an option each. FOLDER gets
scaling.json, .md, .png and .svg; ``--measured scaling.json`` predicts again without measuring.

Each turn is a launch of mpiexec with processes of its own. They train twice for every batch, first
to warm up, then for ``--seconds``; the time of a step is the mean of ``History.epoch_seconds``
without the first, over the steps of an epoch. It leaves out that a team compares its parameters
between two epochs. Turns alternate; figures are medians over the rounds. One process trains
without a communicator. Run it on a quiet machine with two cores at least.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scaling_model import ASSUMPTIONS, CASES, NETWORKS
from scaling_picture import draw
from scaling_report import ONE, RANKS, THREADS, TITLES, Contestant, analyse, option, report

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.cli.terminal import to_json
from nnbackend.device import get_device
from nnbackend.errors import MissingDependencyError
from nnbackend.figures import drawn
from nnbackend.io.files import write_atomically
from nnbackend.parallel.team import Team

ROUNDS, SECONDS = 5, 0.5
# Against hanging only: a launch that compiles takes a minute.
PATIENCE_SECONDS = 900
FORMAT = 1
# The batches of one process: those that two are compared with, and more for the line of t_compute.
BATCHES = {
    "mnist": (64, 128, 256, 512, 1024, 2048),
    "higgs": (2048, 4096, 8192),
    "wide": (512, 1024, 2048),
}
SIZES = tuple(4**k for k in range(1, 14))
# On two cores, four processes take turns.
REDUCING = (2, 4)


def step_seconds(job: dict[str, Any], comm: Any) -> dict[str, float] | None:
    """Return, on rank 0, the seconds of a step by batch."""
    network, found = NETWORKS[job["network"]], {}
    for batch in job["batches"]:
        workload = replace(network, batch_size=batch, n_batches=network.n_samples // batch)
        train = partial(
            nb.train,
            workload.network(),
            *workload.data(),
            optimizer=workload.optimizer,
            batch_size=batch,
            seed=0,
            engine=job["engine"],
            communicator=comm if comm.size > 1 else None,
        )
        warm = train(epochs=2).epoch_seconds[-1]
        n = comm.bcast(min(1000, max(1, math.ceil(job["seconds"] / warm))))
        seconds = train(epochs=1 + n).epoch_seconds[1:]
        found[str(batch)] = statistics.fmean(seconds) / workload.n_batches
    return found if comm.rank == 0 else None


def bare_all_reduce(comm: Any, vector: Any, in_place: Any) -> None:
    """Sum a vector over the processes, as a team does, but waiting in MPI."""
    comm.Iallreduce(in_place, vector).Wait()


def all_reduce_seconds(job: dict[str, Any], comm: Any) -> dict[str, dict[str, float]] | None:
    """Return, on rank 0, the seconds of MPI's all-reduce, and of a team's, by bytes.

    A team's vector also has the loss and flags, so it has some hundred bytes at least.
    """
    from mpi4py import MPI

    def timed(call: Callable[[], Any]) -> float:
        def run(n: int) -> float:
            comm.Barrier()
            start = perf_counter()
            for _ in range(n):
                call()
            return (perf_counter() - start) / n

        run(2)
        return run(comm.bcast(min(2000, max(3, round(job["seconds"] / 10 / run(3))))))

    found: dict[str, dict[str, float]] = {"mpi": {}, "team": {}}
    for size in job["sizes"]:
        vector = np.zeros(size // 4, np.float32)
        team = Team(comm)
        team.allocate(get_device("cpu"), len(vector), np.float32)
        found["mpi"][str(size)] = timed(partial(bare_all_reduce, comm, vector, MPI.IN_PLACE))
        found["team"][str(size)] = timed(partial(team.reduce_step, vector, np.float32(0), 1))
        team.close()
    return found if comm.rank == 0 else None


def work(job: dict[str, Any]) -> None:
    """Do a job as one of its processes; rank 0 prints what it found, as the last line."""
    from mpi4py import MPI

    do = {"steps": step_seconds, "all-reduce": all_reduce_seconds}[job["what"]]
    found = do(job, MPI.COMM_WORLD)
    if found is not None:
        print(json.dumps(found, allow_nan=False))


@cache
def mpi_command(is_bound: bool) -> tuple[str, ...]:
    """Return how processes are started, each bound to a core of its own or to none."""
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
        raise MissingDependencyError(
            "measuring needs mpi4py and mpiexec; install them with: pip install 'nnbackend[mpi]'"
        )
    told = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    if "Open" in told.stdout:
        bound = ("--bind-to", "core" if is_bound else "none")
        return (mpiexec, "--oversubscribe", "--allow-run-as-root", *bound)
    return (mpiexec, *(("-bind-to", "core") if is_bound else ()))


def launch(contestant: Contestant, job: dict[str, Any]) -> dict[str, Any]:
    """Return what processes find; the number of threads is set for them alone."""
    processes, threads = contestant
    variables = ("OPENBLAS", "OMP", "MKL", "BLIS", "NUMBA")
    command = mpi_command(is_bound=threads == 1 and processes <= 2)
    done = subprocess.run(
        [*command, "-n", str(processes), sys.executable, __file__, "--work", json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in variables}},
    )
    if done.returncode != 0:
        raise SystemExit(f"{TITLES.get(contestant, contestant)} failed at {job}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(engine: str, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Return all that is measured: lists of seconds, one of each round."""
    turns: list[tuple[Contestant, dict[str, Any]]] = []
    for network, alone in BATCHES.items():
        batches: dict[Contestant, Sequence[int]] = {
            RANKS: sorted({b * k for name, b in CASES if name == network for k in (1, 2)}),
            ONE: alone,
            THREADS: alone,
        }
        for contestant in TITLES:
            job: dict[str, Any] = {
                "what": "steps",
                "network": network,
                "batches": batches[contestant],
            }
            turns.append((contestant, {**job, "engine": engine, "seconds": seconds}))
    turns += [
        (Contestant(p, 1), {"what": "all-reduce", "sizes": SIZES, "seconds": seconds})
        for p in REDUCING
    ]
    measured: dict[str, dict[str, Any]] = {"steps": {}, "all_reduce": {}}
    for number in range(rounds):
        # Each round begins with another one.
        first = number * len(turns) // rounds
        for contestant, job in turns[first:] + turns[:first]:
            print(f"round {number + 1}: {contestant.processes} x {contestant.threads}", end=", ")
            print(job["what"], job.get("network", ""), flush=True)
            found = launch(contestant, job)
            if job["what"] == "steps":
                place = measured["steps"].setdefault(job["network"], {})
                add(place.setdefault(TITLES[contestant], {}), found)
            else:
                place = measured["all_reduce"].setdefault(str(contestant.processes), {})
                for kind, by_size in found.items():
                    add(place.setdefault(kind, {}), by_size)
    return measured


def add(lists: dict[str, list[float]], found: Mapping[str, float]) -> None:
    """Append what was found to the list of its name."""
    for name, value in found.items():
        lists.setdefault(name, []).append(value)


def positive(text: str) -> float:
    """Return a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the record is written")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a scaling.json to take over")
    parser.add_argument("--rounds", type=count, default=ROUNDS, metavar="N", help="%(default)s")
    parser.add_argument(
        "--seconds", type=positive, default=SECONDS, metavar="S", help="of a turn, %(default)s"
    )
    parser.add_argument("--engine", choices=("cpu", "reference"), default="cpu")
    group = parser.add_argument_group("assumptions")
    for name, entry in ASSUMPTIONS.items():
        is_count = name in ("gpus", "nodes")
        group.add_argument(
            option(name),
            type=count if is_count else positive,
            default=entry.value,
            metavar="N" if is_count else "X",
            help=f"{entry.value:g} {entry.unit}".replace("%", "%%"),
        )
    options = parser.parse_args(arguments)
    if options.work is None and options.out is None:
        parser.error("--out: expected a folder for the record, got none")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, or take what was measured; write the record, the report and the picture."""
    options = parse(arguments)
    if options.work is not None:
        work(json.loads(options.work))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    if options.measured is None:
        settings = {name: getattr(options, name) for name in ("engine", "rounds", "seconds")}
        record: dict[str, Any] = {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings,
            "environment": environment(),
            "measured": measure(**settings),
        }
    else:
        record = json.loads(options.measured.read_text())
        if record.get("format") != FORMAT:
            raise SystemExit(
                f"--measured: expected a record of format {FORMAT}, got {options.measured} of "
                f"format {record.get('format')}; measure again"
            )
    record["assumptions"] = {name: getattr(options, name) for name in ASSUMPTIONS}
    record["analysis"] = analyse(record["measured"], record["assumptions"])
    write_atomically(options.out / "scaling.json", to_json(record, indent=1).encode())
    text = report(record)
    write_atomically(options.out / "scaling.md", text.encode())
    print(text)
    for name, content in (drawn("scaling.png", lambda: draw(record)) or {}).items():
        write_atomically(options.out / f"scaling.{name}", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())

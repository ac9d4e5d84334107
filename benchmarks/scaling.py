"""How data-parallel training scales on this machine: ``python benchmarks/scaling.py``.

Each turn is a launch of mpiexec, whose processes train a workload of ``nnbackend bench`` twice: to
warm up, and to be timed. Contestants take turns; printed are medians over the rounds, as a table in
Markdown. Run it on a quiet machine. Needs: pip install '.[mpi]'
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nnbackend as nb
from nnbackend.bench.workload import WORKLOADS

# title: processes, threads of each, times the rows of a batch.
CONTESTANTS = {
    "1 process, 1 thread": (1, 1, 1),
    "2 processes": (2, 1, 1),
    "1 process, 2 threads": (1, 2, 1),
    "2 processes, twice the rows": (2, 1, 2),
}
BATCHES = (("mnist", 128), ("mnist", 1024), ("higgs", 4096), ("wide", 1024))
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def step_seconds(name: str, batch_size: int, seconds: float) -> float:
    """Return the seconds of a training step; a process of a team waits for the others."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    n_batches = max(1, WORKLOADS[name].n_samples // batch_size)
    workload = replace(WORKLOADS[name], batch_size=batch_size, n_batches=n_batches)
    net, data = workload.network(), workload.data()
    options: dict[str, Any] = {
        "optimizer": workload.optimizer,
        "batch_size": batch_size,
        "communicator": comm if comm.size > 1 else None,
    }
    warm = nb.train(net, *data, epochs=2, **options).epoch_seconds[-1]
    epochs = comm.bcast(min(1000, max(1, math.ceil(seconds / warm))))
    # The first epoch pays for what is done once.
    timed = nb.train(net, *data, epochs=1 + epochs, **options).epoch_seconds[1:]
    return statistics.fmean(timed) / n_batches


def turn(contestant: tuple[int, int, int], name: str, batch_size: int, seconds: float) -> float:
    """Launch processes, and return what the first one found."""
    processes, threads, times = contestant
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        sys.exit("scaling.py: mpiexec is not installed; install it with: pip install '.[mpi]'")
    job = json.dumps([name, batch_size * times, seconds])
    done = subprocess.run(
        [mpiexec, "-n", str(processes), sys.executable, __file__, "--job", job],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure all, or do the part of one process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="what a turn lasts, at least")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        found = step_seconds(*json.loads(options.job))
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            print(found)
        return
    print(f"| network, batch | {' | '.join(CONTESTANTS)} | speed-up of 2 processes |")
    print(f"|---|{'---:|' * (len(CONTESTANTS) + 1)}")
    for name, batch_size in BATCHES:
        rounds = [
            {
                title: turn(contestant, name, batch_size, options.seconds)
                for title, contestant in CONTESTANTS.items()
            }
            for _ in range(options.rounds)
        ]
        medians = [statistics.median(found[title] for found in rounds) for title in CONTESTANTS]
        cells = " | ".join(f"{1e3 * median:.3g} ms" for median in medians)
        print(f"| {name}, {batch_size} | {cells} | {medians[0] / medians[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""How trainings share a process and its cores: ``python benchmarks/threads.py``.

Each turn is a fresh process that trains workloads of ``nnbackend bench`` with the default engine:
alone; after products of torch, whose threads wait for more; on one core; and twice, in two Python
threads. Turns alternate; printed are medians over the rounds, as a table in Markdown. A last column
is the throughput of two trainings side by side, divided by that of one. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from nnbackend.bench.process import contestant_environment
from nnbackend.bench.workload import WORKLOADS

WAYS = ("alone", "beside torch", "on one core", "in two threads")
NAMES = ("small", "mnist")


def torch_products() -> Callable[[], object]:
    """Return what keeps torch's threads awake."""
    import torch

    A = torch.ones(512, 512)
    return lambda: A @ A


def step_seconds(name: str, way: str, seconds: float) -> float:
    """Return the seconds of a training step, by one training or by each of two."""
    import nnbackend as nb

    workload = WORKLOADS[name]
    data: Any = workload.data()
    options: dict[str, Any] = {
        "optimizer": workload.optimizer,
        "batch_size": workload.batch_size,
    }
    before = torch_products() if way == "beside torch" else lambda: None
    n_threads = 2 if way == "in two threads" else 1

    with ThreadPoolExecutor(n_threads) as threads:

        def timed(epochs: int) -> float:
            nets = [workload.network() for _ in range(n_threads)]
            before()
            start = perf_counter()
            list(threads.map(lambda net: nb.train(net, *data, epochs=epochs, **options), nets))
            return perf_counter() - start

        # The first one pays for what is done once.
        timed(1)
        epochs, found = 1, timed(1)
        while found < seconds:
            epochs = 1 + round(epochs * min(10.0, 1.2 * seconds / found))
            found = timed(epochs)
    return found / (epochs * workload.n_batches)


def turn(name: str, way: str, seconds: float) -> float:
    """Start a process, and return what it found."""
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if way == "on one core" else []
    done = subprocess.run(
        [*one_core, sys.executable, __file__, "--job", json.dumps([name, way, seconds])],
        env=contestant_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout.split()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measure all, or do the part of one process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="what a turn lasts, at least")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job is not None:
        print(step_seconds(*json.loads(options.job)))
        return
    needs = {
        "beside torch": importlib.util.find_spec("torch"),
        "on one core": shutil.which("taskset"),
    }
    ways = [way for way in WAYS if needs.get(way, way) is not None]
    print(f"| workload | {' | '.join(ways)} | throughput of two |")
    print(f"|---|{'---:|' * (len(ways) + 1)}")
    for name in NAMES:
        rounds = [
            {way: turn(name, way, options.seconds) for way in ways} for _ in range(options.rounds)
        ]
        medians = {way: statistics.median(found[way] for found in rounds) for way in ways}
        cells = [
            f"{1e6 * median:.4g} µs ({median / medians['alone']:.2f})"
            for median in medians.values()
        ]
        throughput = 2 * medians["alone"] / medians["in two threads"]
        print(f"| {name} | {' | '.join(cells)} | {throughput:.2f} |", flush=True)


if __name__ == "__main__":
    main()

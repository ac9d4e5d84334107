"""A cost model of data-parallel training, and what it assumes of machines that are not here.

A step of p processes takes t_compute(rows of the largest part) + t_reduce(p, bytes); nothing
overlaps, as a ``Team`` adds gradients once they are whole. t_compute is a line in the rows.
t_reduce is a start, packing per byte, and the cheapest of an all-reduce's algorithms: alpha per
message, beta per byte sent, gamma per byte added, as of Thakur, Rabenseifner and Gropp,
"Optimization of collective communication operations in MPICH" (2005), and, for the ring, of
Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

import nnbackend as nb
from nnbackend.bench.workload import WORKLOADS, Workload


class Assumption(NamedTuple):
    """What is not measured here."""

    value: float
    unit: str
    source: str


OURS = "assumption: nothing has run on a GPU"
NCCL = "NCCL's own tuning table, ring LL128 on NVLink: github.com/NVIDIA/nccl, src/graph/tuning.cc"
ASSUMPTIONS = {
    "gpus": Assumption(8, "GPUs in a node", "a node of NVIDIA HGX H100"),
    "gpu_peak": Assumption(
        66.9, "TFLOP/s", "H100 SXM, float32, no tensor cores: modal.com/gpu-glossary/perf/peak-rate"
    ),
    "gpu_efficiency": Assumption(0.5, "of the peak", OURS),
    "gpu_memory": Assumption(3350, "GB/s", "H100 SXM, HBM3, as commonly given: an assumption"),
    "gpu_launch": Assumption(3, "us per kernel, 3L + 1 in a step", OURS),
    "gpu_update": Assumption(
        28, "bytes of traffic per parameter for Adam", "it reads 4 numbers of 4 bytes, and writes 3"
    ),
    "gpu_packing": Assumption(
        10, "bytes of traffic per byte of gradient", "Team's five array operations, read and write"
    ),
    "nccl_start": Assumption(10.0, "us per all-reduce", NCCL),
    "nccl_step": Assumption(1.9, "us per step of the ring", NCCL),
    "nccl_bandwidth": Assumption(
        370, "GB/s of bus bandwidth", "ring on H100, no SHARP: github.com/NVIDIA/nccl-tests, #212"
    ),
    "nodes": Assumption(64, "nodes", "chosen"),
    "node_speed": Assumption(
        32, "times this machine, all cores", "assumption: 64 cores for its two, each as fast"
    ),
    "node_add": Assumption(20, "GB/s of memory traffic, 3 bytes per byte added", "assumption"),
    "hdr_latency": Assumption(
        1.2, "us", "Azure HBv3 (HDR, 200 Gb/s): learn.microsoft.com, hbv3-performance"
    ),
    "hdr_bandwidth": Assumption(24, "GB/s", "the same page: 192 Gb/s one way"),
    "ndr_latency": Assumption(
        2.0, "us", "Azure HBv4 (NDR, 400 Gb/s), a bound: learn.microsoft.com, hbv4-performance"
    ),
    "ndr_bandwidth": Assumption(
        46, "GB/s", "of one adapter, 46 to 48: github.com/NVIDIA/nccl-tests, #290"
    ),
}

# Measured with as many rows, whatever the batch.
NETWORKS: dict[str, Workload] = {
    "mnist": WORKLOADS["mnist"],
    "higgs": replace(WORKLOADS["higgs"], n_batches=4),
    "wide": replace(WORKLOADS["wide"], optimizer=nb.Adam(), n_batches=2),
    "large": Workload(
        "large", (4096, 8192, 8192, 1000), "relu", "softmax", 8192, nb.Adam(), 1, "only predicted"
    ),
}
# Networks and batches that are reported.
CASES = (("mnist", 128), ("mnist", 1024), ("higgs", 4096), ("wide", 1024), ("large", 8192))
# What is called efficient enough.
EFFICIENCY = 0.8
# The machines to predict for, and which assumption says how many there are.
MACHINES = {
    "GPUs of one node, NVLink": "gpus",
    "nodes, InfiniBand HDR": "nodes",
    "nodes, InfiniBand NDR": "nodes",
}


class Fabric(NamedTuple):
    """What an all-reduce costs, in seconds.

    ``start`` and ``packing`` are what is around it: per all-reduce, and per byte.
    """

    algorithms: tuple[str, ...]
    alpha: float
    beta: float
    gamma: float = 0.0
    start: float = 0.0
    packing: float = 0.0


class Line(NamedTuple):
    """Seconds, as ``fixed + slope * x``."""

    fixed: float
    slope: float

    def __call__(self, x: float) -> float:
        return self.fixed + self.slope * x

    @classmethod
    def fit(cls, points: Iterable[tuple[float, float]]) -> Line:
        """Return the line, of coefficients not below 0, with the least squares of relative errors.

        Examples
        --------
        >>> [round(c, 6) for c in Line.fit([(1, 3.0), (2, 5.0), (4, 9.0)])]
        [1.0, 2.0]
        """
        x, t = np.array(list(points), dtype=float).T
        # A unit of the order of the points keeps the two columns alike.
        unit = x.max()
        (fixed, slope), _ = nnls(np.stack([1 / t, x / unit / t], 1), np.ones(len(t)))
        return cls(float(fixed), float(slope / unit))

    def worst(self, points: Iterable[tuple[float, float]]) -> float:
        """Return the largest relative error."""
        return max(abs(self(x) / t - 1) for x, t in points)


def recursive_doubling(p: int, n: float, f: Fabric) -> float:
    """Return the seconds of an all-reduce that exchanges all with a partner, log2 p times."""
    return math.ceil(math.log2(p)) * (f.alpha + n * (f.beta + f.gamma))


def rabenseifner(p: int, n: float, f: Fabric) -> float:
    """Return the seconds of a reduce-scatter by halving, and an all-gather by doubling."""
    return 2 * math.ceil(math.log2(p)) * f.alpha + (p - 1) / p * n * (2 * f.beta + f.gamma)


def ring(p: int, n: float, f: Fabric) -> float:
    """Return the seconds of a reduce-scatter and an all-gather around a ring."""
    return 2 * (p - 1) * f.alpha + (p - 1) / p * n * (2 * f.beta + f.gamma)


ALGORITHMS: dict[str, Callable[[int, float, Fabric], float]] = {
    "recursive doubling": recursive_doubling,
    "Rabenseifner": rabenseifner,
    "ring": ring,
}
# Those of an MPI library; NCCL's is the ring.
MPI_ALGORITHMS = ("recursive doubling", "Rabenseifner")


def reduce_seconds(p: int, n: float, fabric: Fabric) -> float:
    """Return the seconds that ``n`` bytes of gradient take among ``p`` processes; 0 for one."""
    if p == 1:
        return 0.0
    cheapest = min(ALGORITHMS[name](p, n, fabric) for name in fabric.algorithms)
    return fabric.start + fabric.packing * n + cheapest


@dataclass(frozen=True)
class Model:
    """A training on a machine: its seconds by processes and batch.

    Parameters
    ----------
    compute : Line
        Of one process, in its rows.
    n_bytes : float
        Of the gradient.
    fabric : Fabric
        What adds it.
    """

    compute: Line
    n_bytes: float
    fabric: Fabric

    def step(self, p: int, batch: float) -> float:
        """Return the seconds of a step on a batch, of which each process has a part."""
        return self.compute(math.ceil(batch / p)) + reduce_seconds(p, self.n_bytes, self.fabric)

    def figures(self, p: int, batch: float, *, is_weak: bool) -> dict[str, float]:
        """Return step time, speed-up in rows per second, efficiency and the all-reduce's share.

        Weak scaling gives each process ``batch`` rows; strong scaling, its part of them.
        """
        step = self.step(p, batch * p if is_weak else batch)
        speedup = self.step(1, batch) / step * (p if is_weak else 1)
        reducing = reduce_seconds(p, self.n_bytes, self.fabric)
        return {
            "step_seconds": step,
            "speedup": speedup,
            "efficiency": speedup / p,
            "reduce_share": reducing / step,
        }

    def least_rows(self, p: int, efficiency: float, *, is_weak: bool) -> float:
        """Return the rows per process below which the efficiency is under a given one.

        Weak: t(b) / (t(b) + r) = E for t = f + s b. Strong: t(p b) / (p (t(b) + r)) = E.
        """
        (f, s), r = self.compute, reduce_seconds(p, self.n_bytes, self.fabric)
        if is_weak:
            return max(0.0, (efficiency * r / (1 - efficiency) - f) / s)
        return max(0.0, (efficiency * p * (f + r) - f) / (p * s * (1 - efficiency)))


def n_bytes(workload: Workload) -> int:
    """Return the bytes of a gradient in float32."""
    sizes = workload.layer_sizes
    return 4 * sum((a + 1) * b for a, b in pairwise(sizes))


def machines(
    assumed: Mapping[str, float], nodes: Mapping[str, Line], team: Fabric
) -> dict[str, Callable[[Workload], Model]]:
    """Return, for each of ``MACHINES``, what makes the model of a network.

    Parameters
    ----------
    assumed : mapping
        The values of ``ASSUMPTIONS``.
    nodes : mapping
        By network, seconds of a step here, with all cores, in the rows.
    team : Fabric
        Of which ``start`` and ``packing`` are what ``Team`` adds to MPI's all-reduce here.
    """

    def gpu(workload: Workload) -> Model:
        layers, size = len(workload.layer_sizes) - 1, n_bytes(workload)
        fixed = (3 * layers + 1) * assumed["gpu_launch"] * 1e-6
        fixed += size / 4 * assumed["gpu_update"] / (assumed["gpu_memory"] * 1e9)
        flops = workload.flops_per_step / workload.batch_size
        compute = Line(fixed, flops / (assumed["gpu_peak"] * 1e12 * assumed["gpu_efficiency"]))
        fabric = Fabric(
            ("ring",),
            assumed["nccl_step"] * 1e-6,
            1e-9 / assumed["nccl_bandwidth"],
            start=assumed["nccl_start"] * 1e-6,
            packing=assumed["gpu_packing"] / (assumed["gpu_memory"] * 1e9),
        )
        return Model(compute, size, fabric)

    def node(link: str) -> Callable[[Workload], Model]:
        fabric = Fabric(
            MPI_ALGORITHMS,
            assumed[f"{link}_latency"] * 1e-6,
            1e-9 / assumed[f"{link}_bandwidth"],
            3e-9 / assumed["node_add"],
            team.start,
            team.packing,
        )

        def model(workload: Workload) -> Model:
            fixed, slope = node_line(workload, nodes)
            speed = assumed["node_speed"]
            return Model(Line(fixed / speed, slope / speed), n_bytes(workload), fabric)

        return model

    return dict(zip(MACHINES, (gpu, node("hdr"), node("ndr")), strict=True))


def node_line(workload: Workload, nodes: Mapping[str, Line]) -> Line:
    """Return a network's seconds here; one that is not measured is scaled from the largest.

    That is the fixed part by the parameters, which the update goes through, and the slope by the
    operations.
    """
    if workload.name in nodes:
        return nodes[workload.name]
    known = max((NETWORKS[name] for name in nodes), key=n_bytes)
    line, rate = nodes[known.name], workload.flops_per_step / workload.batch_size
    return Line(
        line.fixed * n_bytes(workload) / n_bytes(known),
        line.slope * rate / (known.flops_per_step / known.batch_size),
    )

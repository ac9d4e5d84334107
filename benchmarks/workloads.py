"""The workloads that every benchmark measures: float32, normal random data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import nnbackend as nb


@dataclass(frozen=True)
class Workload:
    """A network, the batch of a step, and the optimizer; ``represents`` says what for."""

    name: str
    layer_sizes: tuple[int, ...]
    hidden: str
    output: str
    batch_size: int
    optimizer: nb.SGD | nb.Adam
    represents: str

    def network(self, device: str = "cpu") -> nb.Network:
        return nb.Network(self.layer_sizes, hidden=self.hidden, output=self.output, device=device)

    def data(self, n_batches: int = 1) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        n_samples = n_batches * self.batch_size
        X = rng.standard_normal((n_samples, self.layer_sizes[0]), dtype=np.float32)
        n_classes = 2 if self.output == "sigmoid" else self.layer_sizes[-1]
        return X, rng.integers(0, n_classes, n_samples)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("planar", (2, 4, 1), "tanh", "sigmoid", 400, nb.SGD(0.1), "the two-layer network"),
        Workload("small", (30, 64, 32, 1), "relu", "sigmoid", 32, nb.Adam(), "small tables"),
        Workload(
            "images",
            (12288, 20, 7, 5, 1),
            "relu",
            "sigmoid",
            209,
            nb.SGD(0.0075),
            "the L-layer network on 64x64 colour images",
        ),
        Workload("mnist", (784, 512, 512, 10), "relu", "softmax", 128, nb.Adam(), "digits"),
        Workload(
            "higgs", (28, 256, 256, 256, 1), "relu", "sigmoid", 4096, nb.Adam(), "large tables"
        ),
        Workload(
            "wide", (1024, 2048, 2048, 10), "relu", "softmax", 1024, nb.SGD(0.01), "GEMM-bound"
        ),
    )
}

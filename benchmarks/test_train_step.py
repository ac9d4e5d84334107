"""Time of a training step, per workload and device: ``pytest benchmarks/``."""

from __future__ import annotations

import pytest
from workloads import WORKLOADS

import nnbackend as nb
from nnbackend.device import get_device

STEPS = {"planar": 200, "small": 200, "images": 20, "mnist": 20, "higgs": 4, "wide": 2}


@pytest.mark.parametrize("device", [info.name for info in nb.devices()])
@pytest.mark.parametrize("name", WORKLOADS)
def test_train_step(benchmark, name, device):
    """One epoch of several batches; ``extra_info`` holds the steps that the time is divided by."""
    workload, steps = WORKLOADS[name], STEPS[name]
    n_batches = 1 if name in ("planar", "images") else steps
    epochs = steps // n_batches
    net = workload.network(device)
    X, y = (get_device(device).place(x) for x in workload.data(n_batches))

    def run():
        nb.train(
            net,
            X,
            y,
            optimizer=workload.optimizer,
            epochs=epochs,
            batch_size=workload.batch_size,
            engine="reference",
        )

    benchmark.group = f"train step: {name}"
    benchmark.extra_info.update(steps=steps, device=device, engine="reference")
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)

"""Time of training steps, per workload, engine and device.

A round trains for ``extra_info["steps"]`` steps: divide by it.
"""

from __future__ import annotations

import pytest

import nnbackend as nb
from nnbackend.bench.workload import WORKLOADS
from nnbackend.device import get_device

STEPS = {"planar": 512, "small": 512, "images": 32, "mnist": 32, "higgs": 8, "wide": 4}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_train_step(timed, workload, device, engine):
    chosen = WORKLOADS[workload]
    net = chosen.network(device)
    X, y = (get_device(device).place(x) for x in chosen.data())
    initial = net.weights, net.biases
    initial = [[get_device(device).to_numpy(x).copy() for x in part] for part in initial]
    epochs = max(1, STEPS[workload] // chosen.n_batches)

    def train():
        net.set_parameters(*initial)
        nb.train(
            net,
            X,
            y,
            optimizer=chosen.optimizer,
            epochs=epochs,
            batch_size=chosen.batch_size,
            engine=engine,
        )

    steps = epochs * chosen.n_batches
    timed(f"train step: {workload}", device, train, steps=steps, engine=engine, workload=workload)

"""Time of predictions: of one example, and of a batch, which is on the device already."""

from __future__ import annotations

import pytest

from nnbackend.bench.workload import WORKLOADS
from nnbackend.device import get_device


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("examples", ["one", "batch"])
def test_predict(timed, workload, examples, device):
    chosen = WORKLOADS[workload]
    net = chosen.network(device)
    n_samples = 1 if examples == "one" else chosen.batch_size
    X = get_device(device).place(chosen.data()[0][:n_samples])
    timed(f"predict: {workload}", device, lambda: net.predict(X), rounds=None, samples=n_samples)

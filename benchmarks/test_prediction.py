"""Time of predictions: of one example, and of a batch, which is on the device already."""

from __future__ import annotations

import time
import warnings
from statistics import median

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

import nnbackend as nb
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


def _seconds(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize("units", [64, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_estimator_predicts_a_row_no_slower_than_scikit_learns(benchmark, dtype, units, method):
    X = np.random.default_rng(0).standard_normal((200, units)).astype(dtype)
    options = {"hidden_layer_sizes": (units,), "max_iter": 1, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours, theirs = (
            getattr(table(**options).fit(X, np.arange(200) % 10), method)
            for table in (nb.MLPClassifier, MLPClassifier)
        )
    row = X[:1]
    # Interleaved, so that both meet the same machine; on one thread, since the threads of BLAS wait
    # for each other where cores are shared.
    with threadpool_limits(1):
        pairs = [
            [_seconds(lambda call=call: call(row), 6400 // units) for call in (ours, theirs)]
            for _ in range(31)
        ]
        benchmark(ours, row)
    ratio = median(own / other for own, other in pairs)
    benchmark.group = f"estimators, a row: {units} units, {dtype}"
    benchmark.extra_info.update(samples=1, ratio_to_scikit_learn=ratio)
    assert ratio < 1.0

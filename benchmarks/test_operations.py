"""Time of the single operations that a training step is made of, on the sizes of a workload."""

from __future__ import annotations

import numpy as np
import pytest

from nnbackend.bench.workload import WORKLOADS
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.core.losses import LOSSES
from nnbackend.core.optimizers import OPTIMIZERS
from nnbackend.device import get_device

SIZES = {"small": WORKLOADS["small"], "higgs": WORKLOADS["higgs"]}
by_size = pytest.mark.parametrize("workload", SIZES)


def normal(device, *shape):
    rng = np.random.default_rng(0)
    return get_device(device).place(rng.standard_normal(shape, dtype=np.float32))


@by_size
def test_product(timed, workload, device):
    """The first layer's: what the other operations are to be compared with."""
    chosen, xp = SIZES[workload], get_device(device).xp
    A = normal(device, chosen.batch_size, chosen.layer_sizes[0])
    W = normal(device, *chosen.layer_sizes[:2])
    timed(f"operations: {workload}", device, lambda: xp.matmul(A, W), rounds=None)


@by_size
@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("what", ["function", "derivative"])
def test_activation(timed, workload, name, what, device):
    chosen, xp, entry = SIZES[workload], get_device(device).xp, ACTIVATIONS[name]
    Z = normal(device, chosen.batch_size, chosen.layer_sizes[1])
    A = entry.function(xp, Z)

    def call():
        if what == "function":
            entry.function(xp, Z)
        else:
            entry.derivative(xp, Z, A)

    timed(f"operations: {workload}", device, call, rounds=None)


@by_size
@pytest.mark.parametrize("name", ["binary_cross_entropy", "softmax_cross_entropy", "squared_error"])
def test_loss(timed, workload, name, device):
    chosen, xp, loss = SIZES[workload], get_device(device).xp, LOSSES[name]()
    Z = normal(device, chosen.batch_size, 10)
    largest = xp.max(Z, axis=1, keepdims=True)
    Y = xp.astype(largest <= Z, Z.dtype)
    group = f"operations: {workload}"
    timed(group, device, lambda: loss.value_and_gradient(xp, Z, Y), rounds=None)


@by_size
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_update(timed, workload, name, device):
    xp, optimizer = get_device(device).xp, OPTIMIZERS[name]()
    parameters = normal(device, SIZES[workload].network().n_parameters)
    state = optimizer.init(xp, parameters)
    coefficients = optimizer.coefficients(1e-3, 1)

    def call():
        optimizer.update(xp, parameters, parameters, state, coefficients)

    timed(f"operations: {workload}", device, call, rounds=None)


@by_size
def test_loss_and_gradients(timed, workload, device):
    """Forward and backward propagation through the public door, with its checks."""
    chosen = SIZES[workload]
    net = chosen.network(device)
    X, y = (get_device(device).place(x[: chosen.batch_size]) for x in chosen.data())
    group = f"operations: {workload}"
    timed(group, device, lambda: net.loss_and_gradients(X, y), rounds=None)

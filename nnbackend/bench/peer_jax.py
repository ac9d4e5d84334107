"""The contestants on JAX: one compiled call per step, and one scan per epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.bench.contestant import Contestant, Parameters, UnsupportedError
from nnbackend.core.optimizers import Adam

__all__ = ["JAX", "JAXScan"]


class JAX(Contestant):
    """JAX: one compiled call per step, which gathers its batch and reuses its arguments' memory."""

    title = "JAX step"
    package = "jax"
    kinds = ("cpu", "cuda")
    _state: Any

    def load(self) -> None:
        """Import JAX and wake up the device."""
        kind, _, index = self.device.partition(":")
        if kind == "cuda":
            # Without this, the process would take three quarters of the memory from the others.
            os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        self._jax = jax = self.import_module("jax")
        self._jnp = self.import_module("jax.numpy")
        if kind == "cpu":
            jax.config.update("jax_platforms", "cpu")
        # On a GPU, JAX's own default for float32 is TF32, and its "bfloat16" is TF32 as well.
        jax.config.update(
            "jax_default_matmul_precision",
            {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}[
                self.precision
            ],
        )
        try:
            jax_device = jax.devices(kind)[int(index or 0)]
        except (RuntimeError, IndexError) as error:
            raise UnsupportedError(f"JAX {jax.__version__} finds no CUDA device") from error
        jax.config.update("jax_default_device", jax_device)
        self._jnp.zeros(1).block_until_ready()

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Copy the data to the device; compile at the first call."""
        jnp, workload = self._jnp, self.workload
        # JAX has the same activations under the same names.
        self._activation = self.choose(vars(self._jax.nn))
        softmax = workload.output == "softmax"
        self._X = jnp.asarray(X)
        self._y = jnp.asarray(y if softmax else y.reshape(len(y), -1).astype(np.float32))
        self._run_epochs = self._build()
        self._initial = parameters
        self.reset()

    def _loss(self, parameters: Any, X: Any, y: Any) -> Any:
        jax, jnp = self._jax, self._jnp
        *hidden, (W, b) = parameters
        A = X
        for V, c in hidden:
            A = self._activation(A @ V + c)
        Z = A @ W + b
        if self.workload.output == "softmax":
            chosen = jnp.take_along_axis(jax.nn.log_softmax(Z), y[:, None], axis=1)
            return -jnp.mean(chosen)
        return jnp.mean(jnp.sum(jax.nn.softplus(Z) - Z * y, axis=1))

    def _step(self, state: Any, X: Any, y: Any) -> tuple[Any, Any]:
        """Return the state after a step, and the loss before it."""
        jnp, tree = self._jnp, self._jax.tree
        optimizer = self.workload.optimizer
        rate = self.workload.learning_rate
        momentum = self.workload.momentum
        parameters, mean, square, t = state
        loss, gradient = self._jax.value_and_grad(self._loss)(parameters, X, y)
        if not isinstance(optimizer, Adam):
            if momentum:
                gradient = mean = tree.map(lambda v, g: momentum * v + g, mean, gradient)
            parameters = tree.map(lambda p, g: p - rate * g, parameters, gradient)
            return (parameters, mean, square, t), loss
        beta1, beta2, t = optimizer.beta1, optimizer.beta2, t + 1
        mean = tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, mean, gradient)
        square = tree.map(lambda s, g: beta2 * s + (1 - beta2) * g * g, square, gradient)
        length, root = rate / (1 - beta1**t), jnp.sqrt(1 - beta2**t)

        def move(p: Any, m: Any, s: Any) -> Any:
            return p - length * m / (jnp.sqrt(s) / root + optimizer.epsilon)

        return (tree.map(move, parameters, mean, square), mean, square, t), loss

    def _build(self) -> Callable[[int], float]:
        """Return a function that runs epochs; here, by a loop of calls."""
        jax, jnp, workload = self._jax, self._jnp, self.workload
        n_batches = workload.n_batches

        def step(state: Any, total: Any, X: Any, y: Any, order: Any, batch: Any) -> Any:
            if n_batches > 1:
                X, y = X[order[batch]], y[order[batch]]
            state, loss = self._step(state, X, y)
            return state, total + loss

        compiled = jax.jit(step, donate_argnums=(0, 1))
        # Keep the numbers on the device, to which every call would send a Python integer.
        numbers = [jnp.asarray(batch) for batch in range(n_batches)]

        def run(epochs: int) -> float:
            loss = math.nan
            for _ in range(epochs):
                order, total = self._device_order(), jnp.zeros(())
                for batch in numbers:
                    self._state, total = compiled(
                        self._state, total, self._X, self._y, order, batch
                    )
                loss = float(total) / n_batches
            return loss

        return run

    def _device_order(self) -> Any:
        if self.workload.n_batches == 1:
            return None
        order = self.draw_order().astype(np.int32)
        return self._jnp.asarray(order.reshape(self.workload.n_batches, -1))

    def reset(self) -> None:
        """Copy the initial parameters, since a donated array cannot be used again."""
        jnp = self._jnp

        def place(make: Callable[[Any], Any]) -> Any:
            return [(make(W), make(b)) for W, b in zip(*self._initial, strict=True)]

        copied = place(lambda x: jnp.array(x, copy=True))
        has_square = isinstance(self.workload.optimizer, Adam)
        mean = place(jnp.zeros_like) if has_square or self.workload.momentum else None
        square = place(jnp.zeros_like) if has_square else None
        self._state = (copied, mean, square, jnp.zeros((), jnp.float32))
        self.restart_orders()

    def run(self, epochs: int) -> float:
        """Train, and wait for the last loss."""
        return self._run_epochs(epochs)

    def parameters(self) -> Parameters:
        """Return the parameters of the state."""
        layers = self._state[0]
        return [np.asarray(W) for W, _ in layers], [np.asarray(b) for _, b in layers]


class JAXScan(JAX):
    """JAX: one compiled call of ``lax.scan`` for an epoch, or for 64 full-batch epochs."""

    title = "JAX scan"

    @property
    def epochs_per_call(self) -> int:
        """Several full-batch steps, so that the cost of a call is small."""
        return 64 if self.workload.n_batches == 1 else 1

    def _build(self) -> Callable[[int], float]:
        jax, jnp, workload = self._jax, self._jnp, self.workload
        length = max(workload.n_batches, self.epochs_per_call)

        def scan(state: Any, X: Any, y: Any, order: Any) -> Any:
            def body(state: Any, rows: Any) -> Any:
                if rows is None:
                    return self._step(state, X, y)
                return self._step(state, X[rows], y[rows])

            state, losses = jax.lax.scan(body, state, order, length=length)
            return state, jnp.mean(losses) if workload.n_batches > 1 else losses

        compiled = jax.jit(scan, donate_argnums=0)

        def run(epochs: int) -> float:
            losses: Any = math.nan
            for _ in range(-(-epochs // self.epochs_per_call)):
                self._state, losses = compiled(self._state, self._X, self._y, self._device_order())
                losses = np.asarray(losses)
            return float(losses.flat[-1])

        return run

"""The peers of ``nnbackend bench``: one training, written for each library as its users do."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from nnbackend.contestants import (
    Contestant,
    Limit,
    NNBackend,
    Parameters,
    UnsupportedError,
    own_name,
    with_engine,
)
from nnbackend.core.optimizers import Adam
from nnbackend.engines import ENGINES

__all__ = ["CONTESTANTS", "LIMIT", "OWN"]


class Textbook(Contestant):
    """NumPy as one writes it in a course: one example per column, a dictionary of parameters."""

    title = "NumPy textbook"

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Transpose the data, one-hot for several classes."""
        workload = self.workload
        activations: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
            "relu": (lambda Z: np.maximum(0, Z), lambda Z, _: Z > 0),
            "tanh": (np.tanh, lambda _, A: 1 - A**2),
            "sigmoid": (lambda Z: 1 / (1 + np.exp(-Z)), lambda _, A: A * (1 - A)),
            "identity": (lambda Z: Z, lambda Z, _: np.ones_like(Z)),
        }
        self._g, self._dg = self.choose(activations)
        self._X = np.ascontiguousarray(X.T)
        if workload.output == "softmax":
            self._Y = np.eye(workload.layer_sizes[-1], dtype=np.float32)[y].T.copy()
        else:
            self._Y = y.reshape(len(y), -1).T.astype(np.float32)
        self._initial = parameters
        self.reset()

    def reset(self) -> None:
        """Copy the initial parameters and forget the moments."""
        self._P: dict[str, Any] = {}
        for layer, (W, b) in enumerate(zip(*self._initial, strict=True), start=1):
            self._P[f"W{layer}"], self._P[f"b{layer}"] = W.T.copy(), b[:, np.newaxis].copy()
        self._v = {name: np.zeros_like(x) for name, x in self._P.items()}
        self._s = {name: np.zeros_like(x) for name, x in self._P.items()}
        self._t = 0
        self.restart_orders()

    def run(self, epochs: int) -> float:
        """Loop over epochs and batches."""
        workload, loss = self.workload, math.nan
        size = workload.batch_size
        with np.errstate(all="ignore"):
            for _ in range(epochs):
                X, Y = self._X, self._Y
                if workload.n_batches > 1:
                    order = self.draw_order()
                    X, Y = X[:, order], Y[:, order]
                losses = [
                    self._step(X[:, start : start + size], Y[:, start : start + size])
                    for start in range(0, workload.n_samples, size)
                ]
                loss = float(np.mean(losses))
        return loss

    def _step(self, X: Any, Y: Any) -> Any:
        P, L, m = self._P, len(self.workload.layer_sizes) - 1, X.shape[1]
        Z: dict[int, Any] = {}
        A: dict[int, Any] = {0: X}
        for layer in range(1, L + 1):
            Z[layer] = np.dot(P[f"W{layer}"], A[layer - 1]) + P[f"b{layer}"]
            if layer < L:
                A[layer] = self._g(Z[layer])
        if self.workload.output == "softmax":
            E = np.exp(Z[L] - np.max(Z[L], axis=0, keepdims=True))
            A[L] = E / np.sum(E, axis=0, keepdims=True)
            loss = -np.sum(Y * np.log(A[L])) / m
        else:
            A[L] = 1 / (1 + np.exp(-Z[L]))
            loss = -np.sum(Y * np.log(A[L]) + (1 - Y) * np.log(1 - A[L])) / m
        gradients = {}
        dZ = A[L] - Y
        for layer in range(L, 0, -1):
            gradients[f"W{layer}"] = np.dot(dZ, A[layer - 1].T) / m
            gradients[f"b{layer}"] = np.sum(dZ, axis=1, keepdims=True) / m
            if layer > 1:
                dA = np.dot(P[f"W{layer}"].T, dZ)
                dZ = dA * self._dg(Z[layer - 1], A[layer - 1])
        self._update(gradients)
        return loss

    def _update(self, gradients: dict[str, Any]) -> None:
        optimizer, P = self.workload.optimizer, self._P
        alpha = self.workload.learning_rate
        if not isinstance(optimizer, Adam):
            for name, g in gradients.items():
                P[name] = P[name] - alpha * g
            return
        self._t += 1
        beta1, beta2 = optimizer.beta1, optimizer.beta2
        for name, g in gradients.items():
            self._v[name] = beta1 * self._v[name] + (1 - beta1) * g
            self._s[name] = beta2 * self._s[name] + (1 - beta2) * g**2
            v = self._v[name] / (1 - beta1**self._t)
            s = self._s[name] / (1 - beta2**self._t)
            P[name] = P[name] - alpha * v / (np.sqrt(s) + optimizer.epsilon)

    def parameters(self) -> Parameters:
        """Transpose back."""
        layers = range(1, len(self.workload.layer_sizes))
        return [self._P[f"W{i}"].T for i in layers], [self._P[f"b{i}"][:, 0] for i in layers]


class ScikitLearn(Contestant):
    """scikit-learn's ``MLPClassifier``, without early stopping."""

    title = "scikit-learn"
    package = "scikit-learn"

    def load(self) -> None:
        """Import the estimator."""
        self._class = self.import_module("sklearn.neural_network").MLPClassifier
        self._warning = self.import_module("sklearn.exceptions").ConvergenceWarning

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Fit once for the shapes, then set the parameters."""
        workload, optimizer = self.workload, self.workload.optimizer
        activation = self.choose(
            {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic", "identity": "identity"}
        )
        n_outputs = workload.layer_sizes[-1]
        if workload.output == "softmax" and n_outputs == 2:
            raise UnsupportedError("has one sigmoid output for two classes, not a softmax of two")
        solver = "adam" if isinstance(optimizer, Adam) else "sgd"
        self._model = self._class(
            hidden_layer_sizes=workload.layer_sizes[1:-1],
            activation=activation,
            solver=solver,
            alpha=0.0,
            batch_size=workload.batch_size,
            learning_rate_init=float(optimizer.learning_rate),  # type: ignore[arg-type]
            momentum=0.0,
            nesterovs_momentum=False,
            shuffle=workload.n_batches > 1,
            random_state=0,
            tol=0.0,
            n_iter_no_change=np.inf,
            warm_start=True,
            **({"epsilon": optimizer.epsilon} if isinstance(optimizer, Adam) else {}),
        )
        self._X, self._y, self._initial = X, y, parameters
        classes = np.arange(max(2, n_outputs))
        self._model.partial_fit(X, y, classes=classes)
        self.reset()

    def reset(self) -> None:
        """Set the initial parameters, and forget the optimizer and the losses."""
        model = self._model
        model.coefs_, model.intercepts_ = ([x.copy() for x in part] for part in self._initial)
        model.loss_curve_, model.best_loss_, model.t_ = [], np.inf, 0
        model.__dict__.pop("_optimizer", None)

    def run(self, epochs: int) -> float:
        """Fit for that many epochs; one at a time keeps the state of the optimizer."""
        if epochs == 1:
            self._model.partial_fit(self._X, self._y)
        else:
            self._model.max_iter = epochs
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._warning)
                self._model.fit(self._X, self._y)
        return float(self._model.loss_curve_[-1])

    def parameters(self) -> Parameters:
        """Return the model's own."""
        return list(self._model.coefs_), list(self._model.intercepts_)


class Torch(Contestant):
    """torch, eager: ``nn.Sequential`` of ``nn.Linear``, and the fused optimizer."""

    title = "torch"
    package = "torch"
    kinds: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    # Whether a step's launches on a GPU are captured in a CUDA graph.
    is_captured: ClassVar[bool] = False

    def load(self) -> None:
        """Import torch, wake up the device, and set how float32 products are computed."""
        self._torch = torch = self.import_module("torch")
        if self.device != "cpu":
            if not torch.cuda.is_available():
                raise UnsupportedError(f"torch {torch.__version__} finds no CUDA device")
            torch.cuda.set_device(self.device)
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.zeros(1, device=self.device)

    def prepare(self, X: Any, y: Any, parameters: Parameters) -> None:
        """Build the modules and the optimizer."""
        torch, workload = self._torch, self.workload
        nn, F = torch.nn, torch.nn.functional
        activation = self.choose(
            {
                "identity": nn.Identity,
                "sigmoid": nn.Sigmoid,
                "tanh": nn.Tanh,
                "relu": nn.ReLU,
                "leaky_relu": nn.LeakyReLU,
                "elu": nn.ELU,
                "softplus": nn.Softplus,
                "silu": nn.SiLU,
                "gelu": lambda: nn.GELU(approximate="tanh"),
            }
        )
        layers: list[Any] = []
        for n_in, n_out in zip(workload.layer_sizes[:-1], workload.layer_sizes[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), activation()]
        self._model = nn.Sequential(*layers[:-1]).to(self.device)
        self._linears = [layer for layer in self._model if isinstance(layer, nn.Linear)]
        n_outputs = workload.layer_sizes[-1]
        if workload.output == "softmax":
            self._y = torch.as_tensor(y, device=self.device)
            mean_loss = F.cross_entropy
        else:
            columns = y.reshape(len(y), -1).astype(np.float32)
            self._y = torch.as_tensor(columns, device=self.device)

            def mean_loss(Z: Any, Y: Any) -> Any:
                # torch's mean is over all elements, ours over examples.
                return F.binary_cross_entropy_with_logits(Z, Y) * n_outputs

        def loss(X: Any, Y: Any) -> Any:
            return mean_loss(self._model(X), Y)

        if self.precision == "bfloat16":
            kind = self.device.partition(":")[0]
            loss = torch.autocast(kind, dtype=torch.bfloat16)(loss)
        self._X = torch.as_tensor(X, device=self.device)
        self._total = torch.zeros((), device=self.device)
        self._loss = self._compile(loss)
        is_captured = self.is_captured and self.device != "cpu"
        self._optimizer = self._make_optimizer(is_captured=is_captured)
        self._take_step = self._capture() if is_captured else self._step
        self._initial = parameters
        self.reset()

    def _compile(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return loss

    def _make_optimizer(self, *, is_captured: bool) -> Any:
        optim, optimizer = self._torch.optim, self.workload.optimizer
        rate = self.workload.learning_rate

        def make(**how: bool) -> Any:
            parameters = self._model.parameters()
            if isinstance(optimizer, Adam):
                betas = (optimizer.beta1, optimizer.beta2)
                how["capturable"] = is_captured
                return optim.Adam(parameters, rate, betas, optimizer.epsilon, **how)
            return optim.SGD(parameters, rate, **how)

        try:
            return make(fused=True)
        except (RuntimeError, TypeError):
            return make(foreach=True)

    def reset(self) -> None:
        """Copy the initial parameters and forget the optimizer's state."""
        torch = self._torch
        with torch.no_grad():
            for linear, W, b in zip(self._linears, *self._initial, strict=True):
                linear.weight.copy_(torch.as_tensor(np.ascontiguousarray(W.T)))
                linear.bias.copy_(torch.as_tensor(np.ascontiguousarray(b)))
        # In place: a captured step knows where the state lies.
        for state in self._optimizer.state.values():
            for x in state.values():
                x.zero_()
        self.restart_orders()

    def run(self, epochs: int) -> float:
        """Loop over epochs and batches; the loss leaves the device once per epoch."""
        torch, workload, loss = self._torch, self.workload, math.nan
        for _ in range(epochs):
            self._total.zero_()
            if workload.n_batches > 1:
                order = torch.as_tensor(self.draw_order(), device=self.device)
                batches = order.split(workload.batch_size)
            else:
                batches = (None,)
            for rows in batches:
                self._take_step(rows)
            loss = float(self._total) / workload.n_batches
        return loss

    def _step(self, rows: Any) -> None:
        X, y = (self._X, self._y) if rows is None else (self._X[rows], self._y[rows])
        self._optimizer.zero_grad(set_to_none=True)
        value = self._loss(X, y)
        value.backward()
        self._optimizer.step()
        self._total += value.detach()

    def _capture(self) -> Callable[[Any], None]:
        """Return a step that replays what was captured, on rows that are copied to one place."""
        torch, cuda, workload = self._torch, self._torch.cuda, self.workload
        rows: Any = None
        if workload.n_batches > 1:
            rows = torch.arange(workload.batch_size, device=self.device)
        # As torch's documentation has it: some steps on a stream of their own, then the capture.
        stream, graph = cuda.Stream(), cuda.CUDAGraph()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(3):
                self._step(rows)
        cuda.current_stream().wait_stream(stream)
        with cuda.graph(graph, stream=stream):
            self._step(rows)

        def replay(batch: Any) -> None:
            if batch is not None:
                rows.copy_(batch)
            graph.replay()

        return replay

    def parameters(self) -> Parameters:
        """Transpose to (n_in, n_out)."""
        pairs = [
            (layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy())
            for layer in self._linears
        ]
        return [W for W, _ in pairs], [b for _, b in pairs]


class TorchGraph(Torch):
    """torch, eager, with the launches of a whole step in a CUDA graph."""

    title = "torch graph"
    kinds = ("cuda",)
    is_captured = True


class TorchCompiled(Torch):
    """torch, with forward propagation and loss compiled, and with them the backward pass.

    On a GPU with the products autotuned, and the whole step, optimizer included, in a CUDA graph.
    """

    title = "torch compiled"
    is_captured = True

    def _compile(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        mode = "default" if self.device == "cpu" else "max-autotune-no-cudagraphs"
        # A process that serves several workloads is to compile each anew.
        self._torch.compiler.reset()
        compiled: Callable[..., Any] = self._torch.compile(loss, mode=mode, dynamic=False)
        return compiled


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
            # Else the process takes three quarters of the memory from the others.
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
        """Place the data and compile lazily."""
        jax, jnp, workload = self._jax, self._jnp, self.workload
        nn = jax.nn
        self._activation = self.choose(
            {
                "identity": lambda Z: Z,
                "sigmoid": nn.sigmoid,
                "tanh": jnp.tanh,
                "relu": nn.relu,
                "leaky_relu": nn.leaky_relu,
                "elu": nn.elu,
                "softplus": nn.softplus,
                "silu": nn.silu,
                "gelu": nn.gelu,
            }
        )
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
        parameters, mean, square, t = state
        loss, gradient = self._jax.value_and_grad(self._loss)(parameters, X, y)
        if not isinstance(optimizer, Adam):
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
        """Return what runs epochs: here, a loop of calls."""
        jax, jnp, workload = self._jax, self._jnp, self.workload
        n_batches = workload.n_batches

        def step(state: Any, total: Any, X: Any, y: Any, order: Any, batch: Any) -> Any:
            if n_batches > 1:
                X, y = X[order[batch]], y[order[batch]]
            state, loss = self._step(state, X, y)
            return state, total + loss

        compiled = jax.jit(step, donate_argnums=(0, 1))
        # A Python integer would be sent to the device with every call.
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
        """Place the initial parameters; a donated array cannot be used again."""
        jnp = self._jnp

        def place(make: Callable[[Any], Any]) -> Any:
            return [(make(W), make(b)) for W, b in zip(*self._initial, strict=True)]

        copied = place(lambda x: jnp.array(x, copy=True))
        moments = [place(jnp.zeros_like), place(jnp.zeros_like)]
        if not isinstance(self.workload.optimizer, Adam):
            moments = [None, None]
        self._state = (copied, *moments, jnp.zeros((), jnp.float32))
        self.restart_orders()

    def run(self, epochs: int) -> float:
        """Train, and wait for the last loss."""
        return self._run_epochs(epochs)

    def parameters(self) -> Parameters:
        """Return the state's own."""
        layers = self._state[0]
        return [np.asarray(W) for W, _ in layers], [np.asarray(b) for _, b in layers]


class JAXScan(JAX):
    """JAX: an epoch, or 64 full-batch ones, in one compiled call of ``lax.scan``."""

    title = "JAX scan"

    @property
    def epochs_per_call(self) -> int:
        """As many full-batch steps as make the call's own cost small."""
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


LIMIT = "limit"
OWN = tuple(own_name(engine) for engine in ("auto", *sorted(ENGINES)))
CONTESTANTS: dict[str, type[Contestant]] = {
    "nnbackend": NNBackend,
    **{own_name(engine): with_engine(engine) for engine in ENGINES},
    "textbook": Textbook,
    "sklearn": ScikitLearn,
    "torch": Torch,
    "torch-graph": TorchGraph,
    "torch-compiled": TorchCompiled,
    "jax": JAX,
    "jax-scan": JAXScan,
    LIMIT: Limit,
}

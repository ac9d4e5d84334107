"""The contestants on torch: eager, as a CUDA graph, and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from nnbackend.bench.contestant import Contestant, Parameters, UnsupportedError
from nnbackend.core.optimizers import Adam

__all__ = ["Torch", "TorchCompiled", "TorchGraph"]


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
                # torch averages over all elements, nnbackend over examples.
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
            return optim.SGD(parameters, rate, self.workload.momentum, **how)

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
        # Write in place, since a captured step refers to this memory.
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
        """Return a step that copies its rows to a fixed array and replays the captured launches."""
        torch, cuda, workload = self._torch, self._torch.cuda, self.workload
        rows: Any = None
        if workload.n_batches > 1:
            rows = torch.arange(workload.batch_size, device=self.device)
        # Follow torch's documentation: run some steps on a separate stream, then capture.
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
        """Return the parameters, with weights transposed to (n_in, n_out)."""
        pairs = [
            (layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy())
            for layer in self._linears
        ]
        return [W for W, _ in pairs], [b for _, b in pairs]


class TorchGraph(Torch):
    """torch, eager, with all launches of a step in a CUDA graph."""

    title = "torch graph"
    kinds = ("cuda",)
    is_captured = True


class TorchCompiled(Torch):
    """torch, with forward propagation, loss and backward pass compiled.

    On a GPU, products are autotuned, and the whole step including the optimizer is a CUDA graph.
    """

    title = "torch compiled"
    is_captured = True

    def _compile(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        mode = "default" if self.device == "cpu" else "max-autotune-no-cudagraphs"
        # Compile anew for each workload that this process serves.
        self._torch.compiler.reset()
        compiled: Callable[..., Any] = self._torch.compile(loss, mode=mode, dynamic=False)
        return compiled

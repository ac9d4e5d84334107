"""Plan the training steps of a problem on a GPU: buffers, epilogues and the list of launches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nnbackend.core.activations import ACTIVATIONS
from nnbackend.engines.cuda.grids import (
    MAX_BLOCKS,
    MAX_ROW_BLOCKS,
    block_shape,
    column_grid,
    element_grid,
    flat_grid,
)
from nnbackend.engines.cuda.layout import Layout, round_up
from nnbackend.engines.cuda.plan import (
    ITEM_BYTES,
    Buffer,
    Epilogue,
    Kernel,
    Launch,
    Matrix,
    Product,
    Vector,
)
from nnbackend.engines.cuda.source import DRAWS_PER_THREAD, THREADS
from nnbackend.engines.tracing.formulas import hidden_kinds, is_in_place

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = ["Planner"]

_LOGGER = logging.getLogger("nnbackend")

# The epilogues of a hidden layer's forward and backward product, by its activation. The planner
# takes the first pair that is available. ``RELU_BIAS`` leaves the backward pass to our own kernel.
_Fusion = tuple[Epilogue, Epilogue]
_UNFUSED: _Fusion = (Epilogue.NONE, Epilogue.NONE)

_FUSIONS: dict[str, list[_Fusion]] = {
    "relu": [
        (Epilogue.RELU_AUX_BIAS, Epilogue.DRELU_BGRAD),
        (Epilogue.RELU_BIAS, Epilogue.NONE),
    ],
    "gelu": [(Epilogue.GELU_AUX_BIAS, Epilogue.DGELU_BGRAD)],
}

# For each forward epilogue that keeps an aux: the divisor of its leading dimension, and its type
# (bits, or the type of the data).
_AUX = {Epilogue.RELU_AUX_BIAS: (128, "bit"), Epilogue.GELU_AUX_BIAS: (8, "")}

# Weights and biases of each layer begin at multiples of 256 bytes within the flat vector.
_ALIGNMENT_BYTES = 256


class Planner:
    """Plans the buffers and the launches of a problem's steps.

    A step of L layers takes at least 3 L + 1 launches and the gather of its batch: L products with
    bias and activation in their epilogue; the loss; L - 1 backward products, with the derivative
    and the bias gradient in their epilogue; L products for the weight gradients, the last layer's
    with its bias gradient; the update. If ``offers`` says that a product is not available with an
    epilogue, a separate kernel does that work.

    Parameters
    ----------
    problem : Problem
        The training problem.
    dtype : {"float32", "float64"}
        The dtype of the parameters.
    precision : {"float32", "tf32", "bfloat16", "float64"}
        The precision of the products.
    n_samples : int
        Rows of the data.
    labels, weighted : bool
        Whether the targets are integer labels, and whether there are sample weights.
    streams : bool
        Whether X stays on the host; the rows of each batch are then copied to one of the buffers
        ``stage0`` and ``stage1`` before its step.
    reductions : sequence of str
        The kernels whose results the update needs.
    n_hyper : int
        The number of elements of the kernels' argument ``hyper``.
    offers : callable
        ``offers(product) -> bool`` says whether a product is available with its epilogue.

    Attributes
    ----------
    layout : Layout
        The layout of the parameters.
    n_samples : int
        Rows of the data.
    max_epochs : int
        The number of epochs for whose orders and losses the buffers have room.
    buffers : dict of str to Buffer
        All buffers except the data ``X``, ``y`` and ``weight``.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        dtype: str,
        precision: str,
        n_samples: int,
        labels: bool,
        weighted: bool,
        streams: bool,
        reductions: Sequence[str],
        n_hyper: int,
        offers: Callable[[Product], bool],
    ) -> None:
        self._problem = problem
        self._structure = structure = problem.objective.structure
        self._dtype, self._precision = dtype, precision
        self._is_bfloat16 = precision == "bfloat16"
        self._operand = "bfloat16" if self._is_bfloat16 else dtype
        self._multiple = 16 // (2 if self._is_bfloat16 else ITEM_BYTES[dtype])
        self.n_samples, self._size = n_samples, problem.batch_size
        self._labels, self._weighted, self._streams = labels, weighted, streams
        self._reductions = reductions
        self._kinds = hidden_kinds(problem)
        step = _ALIGNMENT_BYTES // ITEM_BYTES[dtype]
        self.layout = Layout(structure.weight_shapes, dtype, self._ld, step)
        # Limit the epochs of a call so that their orders take few megabytes.
        self.max_epochs = max(1, min(1024, 2**20 // n_samples)) if self.gathers else 1024
        if streams:
            self.max_epochs = 1
        self._fusions: list[_Fusion] = []
        for layer in range(len(structure.hidden)):
            self._fusions[layer:] = [self._choose_fusion(layer, offers)]
        self._sums_last = self._choose_last_sums(offers)
        self.buffers = {**self._plan_vectors(n_hyper), **self._plan_batch(), **self._plan_layers()}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, including a shorter last one."""
        return -(-self.n_samples // self._size)

    @property
    def gathers(self) -> bool:
        """Whether a batch is a part of the data, so that its rows have to be gathered."""
        return self._streams or self.n_samples > self._size

    @property
    def converts(self) -> bool:
        """Whether the data is one batch that has to be converted for the products."""
        n_features = self._structure.layer_sizes[0]
        is_aligned = n_features % self._multiple == 0
        return not self.gathers and (self._is_bfloat16 or not is_aligned)

    @property
    def last_rows(self) -> int:
        """Rows of an epoch's last step."""
        return self.n_samples - (self.steps_per_epoch - 1) * self._size

    def _plan_vectors(self, n_hyper: int) -> dict[str, Buffer]:
        """Return the buffers of the parameters, the optimizer, and the epochs' results."""
        optimizer, real = self._problem.optimizer, self._dtype
        n_layers = len(self.layout.biases)
        n_steps = self.max_epochs * self.steps_per_epoch
        flat = Buffer(self.layout.size, real)
        states = {f"state{i}": flat for i in range(len(optimizer.state_names))}
        plan = {
            "parameters": flat,
            "gradient": flat,
            "finite": flat,
            **states,
            "hyper": Buffer(max(1, n_hyper), real),
            "coefficients": Buffer(max(1, n_steps * len(optimizer.coefficients(1.0, 1))), real),
            "scalars": Buffer(max(1, len(self._reductions)), real),
            "biases": Buffer(2 * n_layers, "int64"),
            "counters": Buffer(3, "int64"),
            "batch_weight": Buffer(1, "float64"),
            "sums": Buffer(2, "float64"),
            "losses": Buffer(self.max_epochs, "float64"),
            "status": Buffer(4, "uint32"),
            "partial": Buffer(MAX_BLOCKS, "float64"),
        }
        if self._is_bfloat16:
            plan["operands"] = Buffer(self.layout.size, "uint16")
        if self._structure.has_dropout:
            plan["generator"] = Buffer(4, "uint64")
        return plan

    def _plan_batch(self) -> dict[str, Buffer]:
        """Return the buffers of a batch's rows."""
        rows, real = self._size, self._dtype
        plan = {}
        if self.gathers or self.converts:
            ld = self._ld(self._structure.layer_sizes[0])
            plan["X0"] = Buffer(rows * ld, "uint16" if self._is_bfloat16 else real)
        if self.gathers:
            plan["order"] = Buffer(self.max_epochs * self.n_samples, "int32")
            plan["y0"] = Buffer(rows * self._y_columns, "int64" if self._labels else real)
            if self._weighted:
                plan["w0"] = Buffer(rows, real)
        if self._streams:
            n_features = self._structure.layer_sizes[0]
            plan["stage0"] = plan["stage1"] = Buffer(rows * n_features, real)
        return plan

    def _plan_layers(self) -> dict[str, Buffer]:
        """Return the buffers of all that is computed for a batch."""
        structure, rows, real = self._structure, self._size, self._dtype
        sizes = structure.layer_sizes[1:]
        plan = {}
        for layer, width in enumerate(sizes):
            matrix = Buffer(rows * self._ld(width), real)
            operands = Buffer(matrix.size, "uint16" if self._is_bfloat16 else real)
            plan[f"Z{layer}"] = matrix
            if self._is_bfloat16:
                plan[f"E{layer}"] = operands
            if layer == len(structure.hidden):
                break
            plan[f"D{layer}"] = matrix
            if not self._is_in_place(layer):
                plan[f"A{layer}"] = matrix
            if self._has_operands(layer):
                plan[f"H{layer}"] = operands
            if structure.dropout[layer]:
                plan[f"M{layer}"] = matrix
            aux = self._aux(layer, rows)
            if aux is not None:
                n_bytes = rows * aux.ld // 8
                plan[aux.buffer] = (
                    Buffer(n_bytes, "uint8") if aux.dtype == "bit" else Buffer(rows * aux.ld, real)
                )
        grids = [column_grid(rows, width)[0] for width in sizes]
        n_partials = max(grid[1] * width for grid, width in zip(grids, sizes, strict=True))
        plan["column_partial"] = Buffer(n_partials, real)
        plan["arrived"] = Buffer(max(grid[0] for grid in grids), "uint32")
        return plan

    @property
    def _y_columns(self) -> int:
        return 1 if self._labels else self._structure.n_targets

    def _ld(self, width: int) -> int:
        return round_up(width, self._multiple)

    def _matrix(self, name: str, rows: int, width: int, dtype: str = "") -> Matrix:
        return Matrix(name, rows, width, self._ld(width), 0, dtype or self._dtype)

    def _input(self, layer: int, rows: int) -> Matrix:
        """Return the matrix that a layer multiplies with its weights."""
        width = self._structure.layer_sizes[layer]
        if layer == 0:
            if self.gathers or self.converts:
                return self._matrix("X0", rows, width, self._operand)
            return Matrix("X", rows, width, width, 0, self._dtype)
        below = layer - 1
        if self._has_operands(below):
            return self._matrix(f"H{below}", rows, width, self._operand)
        return self._matrix(f"{'Z' if self._is_in_place(below) else 'A'}{below}", rows, width)

    def _is_in_place(self, layer: int) -> bool:
        """Whether a hidden layer's activations overwrite its pre-activations."""
        return self._fusions[layer] != _UNFUSED or is_in_place(
            self._structure.hidden[layer], self._dtype
        )

    def _has_operands(self, layer: int) -> bool:
        """Whether the next layer's operands differ from the activations."""
        return self._is_bfloat16 or self._structure.dropout[layer] > 0.0

    def _gradient_of(self, layer: int, rows: int) -> Matrix:
        """Return dZ of a layer in the form that products take."""
        width = self._structure.layer_sizes[layer + 1]
        if self._is_bfloat16:
            return self._matrix(f"E{layer}", rows, width, self._operand)
        is_last = layer == len(self._structure.hidden)
        return self._matrix(f"Z{layer}" if is_last else f"D{layer}", rows, width)

    def _weights(self, layer: int) -> Matrix:
        matrix = self.layout.weights[layer]
        if self._is_bfloat16:
            return replace(matrix, buffer="operands", dtype="bfloat16")
        return matrix

    def _forward(self, layer: int, rows: int) -> Product:
        """Return the product A W, with the epilogue of its hidden layer."""
        out = self._matrix(f"Z{layer}", rows, self._structure.layer_sizes[layer + 1])
        product = Product(
            self._input(layer, rows), self._weights(layer), out, precision=self._precision
        )
        if layer == len(self._structure.hidden) or self._fusions[layer] == _UNFUSED:
            return product
        return replace(
            product,
            epilogue=self._fusions[layer][0],
            vector=self.layout.biases[layer],
            aux=self._aux(layer, rows),
        )

    def _backward(self, layer: int, rows: int) -> Product:
        """Return the product dA = dZ W^T, with the epilogue of the hidden layer below."""
        out = self._matrix(f"D{layer - 1}", rows, self._structure.layer_sizes[layer])
        product = Product(
            self._gradient_of(layer, rows),
            self._weights(layer),
            out,
            transpose_B=True,
            precision=self._precision,
        )
        epilogue = self._fusions[layer - 1][1]
        if epilogue is Epilogue.NONE:
            return product
        return replace(
            product,
            epilogue=epilogue,
            vector=self._bias_gradient(layer - 1),
            aux=self._aux(layer - 1, rows),
        )

    def _weight_gradient(self, layer: int, rows: int) -> Product:
        return Product(
            self._input(layer, rows),
            self._gradient_of(layer, rows),
            replace(self.layout.weights[layer], buffer="gradient"),
            transpose_A=True,
            precision=self._precision,
        )

    def _bias_gradient(self, layer: int) -> Vector:
        return replace(self.layout.biases[layer], buffer="gradient")

    def _choose_fusion(self, layer: int, offers: Callable[[Product], bool]) -> _Fusion:
        """Return the epilogues of a hidden layer's products, forward and back."""
        activation = self._structure.hidden[layer]
        # Our own kernels have to write operands in bfloat16, and to multiply with a mask.
        choices = [] if self._has_operands(layer) else _FUSIONS.get(activation.name, [])
        if activation is not ACTIVATIONS.get(activation.name):
            choices = []
        for choice in choices:
            self._fusions[layer:] = [choice]
            products = [
                product
                for rows in sorted({self._size, self.last_rows})
                for product in (self._forward(layer, rows), self._backward(layer + 1, rows))
            ]
            if all(product.epilogue is Epilogue.NONE or offers(product) for product in products):
                return choice
        if choices:
            _LOGGER.info(
                "nnbackend: no product with the epilogue of layer %d (%s, %d units): its "
                "activation runs in a kernel of its own",
                layer + 1,
                activation.name,
                self._structure.layer_sizes[layer + 1],
            )
        return _UNFUSED

    def _aux(self, layer: int, rows: int) -> Matrix | None:
        """Return the matrix that a hidden layer's forward epilogue keeps for the backward one."""
        epilogue = self._fusions[layer][0]
        if epilogue not in _AUX:
            return None
        multiple, dtype = _AUX[epilogue]
        width = self._structure.layer_sizes[layer + 1]
        ld = round_up(width, multiple)
        return Matrix(f"aux{layer}", rows, width, ld, 0, dtype or self._dtype)

    def _choose_last_sums(self, offers: Callable[[Product], bool]) -> bool:
        """Return whether one product gives the last layer's weight and bias gradients."""
        layer = len(self._structure.hidden)
        return not self._is_bfloat16 and all(
            offers(self._with_sums(layer, rows)) for rows in {self._size, self.last_rows}
        )

    def _with_sums(self, layer: int, rows: int) -> Product:
        product = self._weight_gradient(layer, rows)
        return replace(product, epilogue=Epilogue.BGRAD_B, vector=self._bias_gradient(layer))

    def preparation(self) -> list[Launch]:
        """Return the launches before the first step."""
        if not self.converts:
            return []
        n_features = self._structure.layer_sizes[0]
        X = Matrix("X", self.n_samples, n_features, n_features, 0, self._dtype)
        X0 = self._input(0, self.n_samples)
        grid, block = element_grid(X.rows, n_features)
        return [Kernel("convert", grid, block, (X, X.rows, n_features, X.ld, X0.ld, X0))]

    def refresh(self) -> list[Launch]:
        """Return the launches after a change of the parameters that no step made."""
        if not self._is_bfloat16:
            return []
        n = self.layout.size
        grid, block = element_grid(1, n)
        arguments = (self._flat("parameters"), 1, n, n, n, self._one("operands"))
        return [Kernel("convert", grid, block, arguments)]

    def step(self, rows: int, stage: int = 0) -> list[Launch]:
        """Return the launches of a step on a batch of ``rows`` rows.

        With streaming, the rows of X are in the buffer with the number ``stage``.
        """
        structure = self._structure
        last = len(structure.hidden)
        launches: list[Launch] = []
        if self.gathers:
            launches.append(self._gather(rows, stage))
        if self._weighted:
            weight = Vector("w0" if self.gathers else "weight", rows, 0, self._dtype)
            launches.append(
                Kernel("weigh", (1, 1), (THREADS, 1), (weight, rows, self._one("batch_weight")))
            )
        launches += self._draw_masks(rows)
        for layer in range(last):
            launches.append(self._forward(layer, rows))
            if self._fusions[layer] == _UNFUSED:
                launches.append(self._activate(layer, rows))
        launches += [self._forward(last, rows), self._output_loss(rows)]
        for layer in range(last, -1, -1):
            if layer == last and self._sums_last:
                launches.append(self._with_sums(layer, rows))
            else:
                launches.append(self._weight_gradient(layer, rows))
            if layer == last and not self._sums_last:
                launches.append(self._column_sums(layer, rows))
            if layer > 0:
                launches.append(self._backward(layer, rows))
                if self._fusions[layer - 1][1] is Epilogue.NONE:
                    launches.append(self._pull_back(layer - 1, rows))
        return [*launches, *self._update(rows)]

    def end_of_epoch(self) -> list[Launch]:
        """Return the launches at the end of an epoch."""
        grid, n = flat_grid(self.layout.size), self.layout.size
        parameters, status = self._flat("parameters"), self._one("status")
        return [
            Kernel("find_nonfinite", grid, (THREADS, 1), (parameters, n, status)),
            Kernel(
                "finish_epoch",
                grid,
                (THREADS, 1),
                (
                    parameters, n, self._flat("finite"), self._one("sums"), self._one("losses"),
                    status, self._one("arrived"),
                ),
            ),
        ]  # fmt: skip

    def _one(self, name: str) -> Vector:
        """Return a whole buffer as a vector."""
        buffer = self.buffers[name]
        dtype = "bfloat16" if buffer.dtype == "uint16" else buffer.dtype
        return Vector(name, buffer.size, 0, dtype)

    def _flat(self, name: str) -> Vector:
        return Vector(name, self.layout.size, 0, self._dtype)

    def _gather(self, rows: int, stage: int) -> Kernel:
        n_features = self._structure.layer_sizes[0]
        n, real = self.n_samples, self._dtype
        # Unused arguments may be any address.
        nothing = self._flat("parameters")
        X0 = self._input(0, rows)
        X = Matrix("X", n, n_features, n_features, 0, real)
        if self._streams:
            X = replace(X, buffer=f"stage{stage}", rows=rows)
        y_dtype = "int64" if self._labels else real
        grid, block = element_grid(rows, max(n_features, self._y_columns))
        return Kernel(
            "gather",
            grid,
            block,
            (
                X, Matrix("y", n, self._y_columns, self._y_columns, 0, y_dtype),
                Vector("weight", n, 0, real) if self._weighted else nothing,
                self._one("order"), self._one("counters"),
                rows, n_features, n_features, X0.ld, self._y_columns,
                int(self._streams), int(self._weighted),
                X0, self._one("y0"), self._one("w0") if self._weighted else nothing,
            ),
        )  # fmt: skip

    def _draw_masks(self, rows: int) -> list[Launch]:
        launches: list[Launch] = []
        offset = 0
        for layer, rate in enumerate(self._structure.dropout):
            if not rate:
                continue
            width = self._structure.layer_sizes[layer + 1]
            mask = self._matrix(f"M{layer}", rows, width)
            blocks = -(-rows * width // (THREADS * DRAWS_PER_THREAD))
            arguments = (
                mask, rows, width, mask.ld, rate, self._one("generator"), self._one("counters"),
                offset,
            )  # fmt: skip
            launches.append(Kernel("draw_mask", (blocks, 1), (THREADS, 1), arguments))
            offset += rows * width
        return launches

    def _hidden(self, layer: int, rows: int) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """Return Z, A, M and H of a hidden layer; those that do not exist may be any address."""
        width = self._structure.layer_sizes[layer + 1]
        Z = self._matrix(f"Z{layer}", rows, width)
        A = Z if self._is_in_place(layer) else replace(Z, buffer=f"A{layer}")
        M = replace(Z, buffer=f"M{layer}") if self._structure.dropout[layer] else Z
        return Z, A, M, self._input(layer + 1, rows)

    def _kind(self, layer: int) -> int:
        structure = self._structure
        return self._kinds.index((structure.hidden[layer], structure.dropout[layer] > 0.0))

    def _activate(self, layer: int, rows: int) -> Kernel:
        Z, A, M, H = self._hidden(layer, rows)
        grid, block = element_grid(rows, Z.columns)
        bias = self.layout.biases[layer]
        arguments = (Z, bias, A, M, H, rows, Z.columns, Z.ld)
        return Kernel(f"activate_{self._kind(layer)}", grid, block, arguments)

    def _pull_back(self, layer: int, rows: int) -> Kernel:
        Z, A, M, _ = self._hidden(layer, rows)
        D = replace(Z, buffer=f"D{layer}")
        grid, block = column_grid(rows, Z.columns)
        arguments = (
            D, Z, A, M, self._gradient_of(layer, rows), rows, Z.columns, Z.ld,
            self._bias_gradient(layer), self._one("column_partial"), self._one("arrived"),
        )  # fmt: skip
        return Kernel(f"pull_back_{self._kind(layer)}", grid, block, arguments)

    def _column_sums(self, layer: int, rows: int) -> Kernel:
        Z = self._matrix(f"Z{layer}", rows, self._structure.layer_sizes[layer + 1])
        grid, block = column_grid(rows, Z.columns)
        arguments = (
            Z, rows, Z.columns, Z.ld, self._bias_gradient(layer), self._one("column_partial"),
            self._one("arrived"),
        )  # fmt: skip
        return Kernel("column_sums", grid, block, arguments)

    def _output_loss(self, rows: int) -> Kernel:
        structure = self._structure
        last = len(structure.hidden)
        Z = self._matrix(f"Z{last}", rows, structure.layer_sizes[-1])
        suffix = "0" if self.gathers else ""
        y_dtype = "int64" if self._labels else self._dtype
        y = Matrix(f"y{suffix}", rows, self._y_columns, self._y_columns, 0, y_dtype)
        weight = Vector("w0" if self.gathers else "weight", rows, 0, self._dtype)
        width, height = block_shape(Z.columns, THREADS)
        grid = (min(-(-rows // height), MAX_ROW_BLOCKS), 1)
        draws = sum(
            rows * size
            for rate, size in zip(structure.dropout, structure.layer_sizes[1:], strict=False)
            if rate
        )
        arguments = (
            Z, self.layout.biases[last], y, weight if self._weighted else self._flat("parameters"),
            self._one("batch_weight"), self._gradient_of(last, rows), rows, Z.columns, Z.ld,
            self._y_columns, int(self._weighted), draws, self._one("sums"), self._one("counters"),
            self._one("partial"), self._one("arrived"),
        )  # fmt: skip
        return Kernel("output_loss", grid, (width, height), arguments)

    def _update(self, rows: int) -> list[Launch]:
        n, n_layers = self.layout.size, len(self.layout.biases)
        grid, block = flat_grid(n), (THREADS, 1)
        vectors = (self._flat("parameters"), self._flat("gradient"))
        hyper, scalars = self._one("hyper"), self._one("scalars")
        biases, partial, arrived = map(self._one, ("biases", "partial", "arrived"))
        weights = (rows, int(self._weighted), self._one("batch_weight"))
        arguments: tuple[Matrix | Vector | int | float, ...] = (
            *vectors, hyper, scalars, n, biases, n_layers, *weights, partial, arrived,
        )  # fmt: skip
        launches: list[Launch] = [Kernel(name, grid, block, arguments) for name in self._reductions]
        count = len(self._problem.optimizer.state_names)
        states = (self._flat(f"state{i}") for i in range(count))
        operands = self._one("operands" if self._is_bfloat16 else "parameters")
        arguments = (
            *vectors, *states, operands, hyper, scalars, self._one("coefficients"),
            self._one("counters"), n, biases, n_layers, *weights,
            self._one("sums"), partial, arrived,
        )  # fmt: skip
        return [*launches, Kernel("update", grid, block, arguments)]

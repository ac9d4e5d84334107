"""Train tiny networks on the GPU: one block runs many epochs in one launch, in shared memory.

If the arithmetic of a step takes a microsecond, launching its kernels takes most of the time. In
this module, parameters, optimizer state, activations and gradients of a batch stay in the shared
memory of one multiprocessor, and only a barrier separates two parts of a step.

A layer's weights and biases are one matrix of n_in + 1 rows, and a layer's input has a column of
ones. So Z = [A 1] [W; b], and the gradient [A 1]^T dZ has the bias gradient in its last row. Rows
are padded to an odd number of elements, so that threads that walk down a column use different banks
of shared memory. Sizes are constants of the source.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nnbackend.engines.cuda.formulas import (
    activated,
    derivative_of,
    loss_outputs,
    step_count,
    step_scalars,
    update_outputs,
)
from nnbackend.engines.cuda.layout import Layout
from nnbackend.engines.cuda.plan import ITEM_BYTES, Buffer, Kernel, Launch, Matrix, Vector
from nnbackend.engines.cuda.printer import CudaPrinter
from nnbackend.engines.cuda.source import fill, prelude
from nnbackend.engines.tracing.expression import Recorder
from nnbackend.engines.tracing.formulas import is_in_place

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = ["TinyPlanner"]

_THREADS = 512

# Limits of a call, which keep the orders of its epochs within few megabytes.
_MAX_EPOCHS, _MAX_ROWS = 2**14, 2**20
_TILES = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4), (4, 4))

# The cycles of a barrier, and of a load from shared memory: guesses, to be replaced by
# measurements.
_BARRIER_CYCLES, _LATENCY_CYCLES = 40, 30

_PRODUCTS = r"""
// out(m, n) = sum over k of a(m, k) b(k, n); a thread computes a tile of it. Its columns lie apart,
// so that neighbouring threads read neighbouring elements.
template <int TM, int TN, typename A, typename B, typename Store>
__device__ __forceinline__ void product(int rows, int columns, int inner, A a, B b, Store store) {
    const int across = (columns + TN - 1) / TN;
    const int tiles = across * ((rows + TM - 1) / TM);
    for (int tile = threadIdx.x; tile < tiles; tile += THREADS) {
        const int top = tile / across * TM, left = tile % across;
        real sums[TM][TN] = {};
        int m[TM], n[TN];
        for (int i = 0; i < TM; ++i) m[i] = top + i < rows ? top + i : rows - 1;
        for (int j = 0; j < TN; ++j)
            n[j] = left + j * across < columns ? left + j * across : columns - 1;
        #pragma unroll 4
        for (int k = 0; k < inner; ++k) {
            real x[TM], y[TN];
            for (int i = 0; i < TM; ++i) x[i] = a(m[i], k);
            for (int j = 0; j < TN; ++j) y[j] = b(k, n[j]);
            for (int i = 0; i < TM; ++i)
                for (int j = 0; j < TN; ++j) sums[i][j] += x[i] * y[j];
        }
        for (int i = 0; i < TM; ++i)
            for (int j = 0; j < TN; ++j)
                if (top + i < rows && left + j * across < columns)
                    store(top + i, left + j * across, sums[i][j]);
    }
}

// The same where there are fewer results than threads: PARTS threads share the sum of each.
template <int PARTS, typename A, typename B, typename Store>
__device__ __forceinline__ void product_in_parts(
    int rows, int columns, int inner, A a, B b, Store store, real* scratch
) {
    const int results = rows * columns;
    const int result = threadIdx.x % results, part = threadIdx.x / results;
    const int m = result / columns, n = result % columns;
    real sum = 0;
    if (part < PARTS)
        for (int k = part; k < inner; k += PARTS) sum += a(m, k) * b(k, n);
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (part == 0) {
        for (int i = 1; i < PARTS; ++i) sum += scratch[i * results + result];
        store(m, n, sum);
    }
    __syncthreads();
}
"""

_KERNEL = r"""
extern "C" __global__ void __launch_bounds__(THREADS, 1) run_epochs(
    const real* X, const target* y, const real* weight, const int* order, const real* hyper,
    const real* coefficients, real* parameters, real* finite,@STATES@ int n_samples, int n_epochs,
    int is_shuffled, int is_weighted, double* losses, unsigned* status
) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
@ARRAYS@
@NUMBERS@
    for (int k = threadIdx.x; k < SIZE; k += THREADS) {
        p[k] = parameters[k];
@LOAD@
    }
    // A gradient's padding stays zero; a layer's input ends in a column of ones.
    for (int k = threadIdx.x; k < SIZE; k += THREADS) g[k] = 0;
    for (int row = threadIdx.x; row < BATCH; row += THREADS) {
@ONES@
    }
    int step = 0, epochs = 0;
    bool is_bad = false;
    for (int epoch = 0; epoch < n_epochs && !is_bad; ++epoch) {
        // A thread's share of the losses, and what the steps count.
        double loss_sum = 0, count_sum = 0;
        for (int start = 0; start < n_samples; start += BATCH, ++step) {
            const int rows = n_samples - start < BATCH ? n_samples - start : BATCH;
            // A batch of all rows stays where it is.
            if (step == 0 || n_samples > BATCH) {
                const int64 first = (int64)epoch * n_samples + start;
                for (int i = threadIdx.x; i < rows * N_FEATURES; i += THREADS) {
                    const int row = i / N_FEATURES, k = i % N_FEATURES;
                    const int64 source = is_shuffled ? order[first + row] : start + row;
                    h0[row * LD_H0 + k] = X[source * N_FEATURES + k];
                }
                for (int i = threadIdx.x; i < rows * Y_COLUMNS; i += THREADS) {
                    const int row = i / Y_COLUMNS;
                    const int64 source = is_shuffled ? order[first + row] : start + row;
                    y0[i] = y[source * Y_COLUMNS + i % Y_COLUMNS];
                    w0[row] = is_weighted ? weight[source] : (real)1;
                }
            }
            __syncthreads();
            double total = rows;
            if (is_weighted) {
                total = 0;
                for (int row = threadIdx.x; row < rows; row += THREADS) total += (double)w0[row];
                total = block_reduce<Sum>(total);
            }
            const double divisor = total > 0 ? total : 1.0;
@FORWARD@
            real loss = 0;
            for (int row = threadIdx.x; row < rows; row += THREADS) {
                real* z = @LOGITS@ + row * @LD@;
                const real share = (real)((double)w0[row] / divisor);
@TARGET@
@LOSS@
            }
            __syncthreads();
@BACKWARD@
@UPDATE@
            const double count = @COUNT@;
            loss_sum += (double)loss * count;
            count_sum += count;
        }
        __shared__ int found;
        if (threadIdx.x == 0) found = 0;
        loss_sum = block_reduce<Sum>(loss_sum);
        const double loss = count_sum > 0 ? loss_sum / count_sum : 0.0;
        bool bad = !is_finite(loss);
        for (int k = threadIdx.x; k < SIZE; k += THREADS) bad |= !is_finite((double)p[k]);
        if (bad) found = 1;
        __syncthreads();
        is_bad = found;
        if (!is_bad)
            for (int k = threadIdx.x; k < SIZE; k += THREADS) finite[k] = p[k];
        if (threadIdx.x == 0) losses[epoch] = loss;
        ++epochs;
    }
    for (int k = threadIdx.x; k < SIZE; k += THREADS) {
        parameters[k] = p[k];
@STORE@
    }
    if (threadIdx.x == 0) {
        status[EPOCHS] = epochs;
        status[IS_BAD] = is_bad;
    }
}
"""


class TinyPlanner:
    """Plans a problem's epochs as one launch of one block.

    Parameters
    ----------
    problem : Problem
        The training problem, without dropout.
    dtype : {"float32", "float64"}
        The dtype of all arrays.
    n_samples : int
        Rows of the data.
    labels, weighted : bool
        Whether the targets are integer labels, and whether there are sample weights.

    Attributes
    ----------
    layout : Layout
        The layout of the parameters.
    buffers : dict of str to Buffer
        All buffers except the data ``X``, ``y`` and ``weight``.
    gathers : bool
        Whether a batch is a part of the data, so that the order has to be uploaded.
    max_epochs : int
        The number of epochs for whose orders and losses the buffers have room.
    source : str
        The module's text.
    hyperparameters : list of float
        The kernel's argument ``hyper``.
    shared_bytes : int
        Shared memory of the block.
    step_cycles : float
        An estimate of the processor cycles of a step.

    Raises
    ------
    UnrecordedError
        If a formula cannot be recorded.
    """

    def __init__(
        self, problem: Problem, *, dtype: str, n_samples: int, labels: bool, weighted: bool
    ) -> None:
        self._problem = problem
        self._structure = structure = problem.objective.structure
        self._dtype, self._labels, self._weighted = dtype, labels, weighted
        self._xp = Recorder(dtype)
        self._n_samples, self._size = n_samples, problem.batch_size
        self._y_columns = 1 if labels else structure.n_targets
        self.layout = Layout(structure.weight_shapes, dtype, _odd, 1)
        self.gathers = n_samples > self._size
        most = _MAX_ROWS // n_samples if self.gathers else _MAX_EPOCHS
        self.max_epochs = max(1, min(_MAX_EPOCHS, most))
        self.hyperparameters: list[float] = []
        self.step_cycles: float = (2 * len(structure.weight_shapes) + 3) * _BARRIER_CYCLES
        self._arrays: dict[str, int] = {}
        self.shared_bytes = self._plan_shared()
        self.source = self._print()
        self.buffers = self._plan_buffers()

    def _plan_buffers(self) -> dict[str, Buffer]:
        optimizer, real = self._problem.optimizer, self._dtype
        flat = Buffer(self.layout.size, real)
        n_steps = self.max_epochs * -(-self._n_samples // self._size)
        return {
            "parameters": flat,
            "finite": flat,
            **{f"state{i}": flat for i in range(len(optimizer.state_names))},
            "hyper": Buffer(max(1, len(self.hyperparameters)), real),
            "coefficients": Buffer(max(1, n_steps * len(optimizer.coefficients(1.0, 1))), real),
            "order": Buffer(self.max_epochs * self._n_samples if self.gathers else 1, "int32"),
            "losses": Buffer(self.max_epochs, "float64"),
            "status": Buffer(4, "uint32"),
        }

    def _plan_shared(self) -> int:
        """Place the arrays one after another in shared memory; return its size in bytes."""
        structure, rows = self._structure, self._size
        n_states = len(self._problem.optimizer.state_names)
        sizes = dict.fromkeys(["p", "g", *(f"s{i}" for i in range(n_states))], self.layout.size)
        for layer, (n_in, n_out) in enumerate(structure.weight_shapes):
            sizes[f"h{layer}"] = rows * _odd(n_in + 1)
            sizes[f"d{layer}"] = rows * _odd(n_out)
            if layer < len(structure.hidden) and not is_in_place(
                structure.hidden[layer], self._dtype
            ):
                sizes[f"z{layer}"] = rows * _odd(n_out)
        sizes |= {"w0": rows, "scratch": _THREADS}
        start = 0
        for name, size in sizes.items():
            self._arrays[name] = start
            start += size
        target = "int64" if self._labels else self._dtype
        self._target_bytes = -(-rows * self._y_columns * ITEM_BYTES[target] // 16) * 16
        return self._target_bytes + start * ITEM_BYTES[self._dtype]

    def epochs(self, n_epochs: int, *, shuffled: bool) -> Launch:
        """Return the launch that runs epochs, and stops after one that is not finite."""
        n, structure = self._n_samples, self._structure
        n_features, real = structure.layer_sizes[0], self._dtype
        target = "int64" if self._labels else real
        parameters = self._one("parameters")
        count = len(self._problem.optimizer.state_names)
        states = (self._one(f"state{i}") for i in range(count))
        arguments: tuple[Matrix | Vector | int, ...] = (
            Matrix("X", n, n_features, n_features, 0, real),
            Matrix("y", n, self._y_columns, self._y_columns, 0, target),
            Vector("weight", n, 0, real) if self._weighted else parameters,
            self._one("order"), self._one("hyper"), self._one("coefficients"), parameters,
            self._one("finite"), *states, n, n_epochs, int(shuffled), int(self._weighted),
            self._one("losses"), self._one("status"),
        )  # fmt: skip
        return Kernel("run_epochs", (1, 1), (_THREADS, 1), arguments, self.shared_bytes)

    def _one(self, name: str) -> Vector:
        return Vector(name, self.buffers[name].size, 0, self.buffers[name].dtype)

    def _print(self) -> str:
        structure = self._structure
        last = len(structure.hidden)
        head = "\n".join(
            f"#define {name} {value}"
            for name, value in (
                ("SIZE", self.layout.size),
                ("BATCH", self._size),
                ("N_FEATURES", structure.layer_sizes[0]),
                ("N_OUTPUTS", structure.layer_sizes[-1]),
                ("Y_COLUMNS", self._y_columns),
                ("LD_H0", _odd(structure.layer_sizes[0] + 1)),
            )
        )
        states = range(len(self._problem.optimizer.state_names))
        ones = [
            f"        h{layer}[row * {_odd(n_in + 1)} + {n_in}] = 1;"
            for layer, (n_in, _) in enumerate(structure.weight_shapes)
        ]
        numbers, update = self._update()
        target, loss = self._loss()
        forward = "\n".join(self._forward(layer) for layer in range(last + 1))
        backward = "\n".join(self._backward(layer) for layer in range(last, -1, -1))
        unused = {"p"} if "scratch" in forward + backward else {"p", "scratch"}
        arrays = [
            "    target* const y0 = (target*)dynamic_shared;",
            f"    real* const p = (real*)(dynamic_shared + {self._target_bytes});",
            *(
                f"    real* const {name} = p + {start};"
                for name, start in self._arrays.items()
                if name not in unused
            ),
        ]
        kernel = fill(
            _KERNEL,
            STATES="".join(f" real* state{i}," for i in states),
            ARRAYS="\n".join(arrays),
            NUMBERS=numbers,
            LOAD="\n".join(f"        s{i}[k] = state{i}[k];" for i in states),
            STORE="\n".join(f"        state{i}[k] = s{i}[k];" for i in states),
            ONES="\n".join(ones),
            FORWARD=forward,
            LOGITS=f"d{last}",
            LD=_odd(structure.layer_sizes[-1]),
            TARGET=target,
            LOSS=loss,
            BACKWARD=backward,
            UPDATE=update,
            COUNT=step_count(self._problem),
        )
        start = prelude(self._dtype, "float32", labels=self._labels, threads=_THREADS)
        return f"{start}\n{head}\n{_PRODUCTS}\n{self._is_weight()}\n{kernel}"

    def _product(
        self, rows: str, most_rows: int, columns: int, inner: str, most_inner: int, a: str, b: str,
        store: list[str],
    ) -> str:  # fmt: skip
        """Print a product, with the tile, or the parts of each sum, that take the fewest cycles."""
        body = "\n".join(f"                    {line}" for line in store)
        a = f"[=](int m, int k) {{ return {a}; }}"
        b = f"[=](int k, int n) {{ return {b}; }}"
        result = f"[=](int m, int n, real value) {{\n{body}\n                }}"
        call = f"({rows}, {columns}, {inner}, {a}, {b}, {result}"
        # The parts are summed one by one, so about the root of the length is best.
        most_parts = _THREADS // (most_rows * columns)
        parts = max(1, min(most_parts, math.isqrt(most_inner)))
        in_parts = (most_inner / parts + parts) * _LATENCY_CYCLES + 2 * _BARRIER_CYCLES
        costs = {tile: _tile_cycles(tile, most_rows, columns, most_inner) for tile in _TILES}
        tile = min(costs, key=costs.__getitem__)
        if parts > 1 and in_parts < costs[tile]:
            self.step_cycles += in_parts
            return f"            product_in_parts<{parts}>{call}, scratch);"
        self.step_cycles += costs[tile]
        return f"            product<{tile[0]}, {tile[1]}>{call});"

    def _forward(self, layer: int) -> str:
        structure = self._structure
        n_in, n_out = structure.weight_shapes[layer]
        W, ld = self.layout.weights[layer], _odd(n_in + 1)
        if layer == len(structure.hidden):
            store = [f"d{layer}[m * {_odd(n_out)} + n] = value;"]
        else:
            activation = structure.hidden[layer]
            Z = self._xp.symbol("value")
            A = activated(self._xp, activation, Z)
            outputs = [(f"h{layer + 1}[m * {_odd(n_out + 1)} + n]", A)]
            if not is_in_place(activation, self._dtype):
                outputs.append((f"z{layer}[m * {_odd(n_out)} + n]", Z))
            store = CudaPrinter().statements(outputs, "")
        text = self._product(
            "rows", self._size, n_out, str(n_in + 1), n_in + 1,
            f"h{layer}[m * {ld} + k]", f"p[{W.offset} + k * {W.ld} + n]", store,
        )  # fmt: skip
        return f"{text}\n            __syncthreads();"

    def _backward(self, layer: int) -> str:
        """Print the gradients of a layer's weights and of its input, through the activation."""
        structure = self._structure
        n_in, n_out = structure.weight_shapes[layer]
        W, ld = self.layout.weights[layer], _odd(n_out)
        place = f"{W.offset} + m * {W.ld} + n"
        lines = [
            self._product(
                str(n_in + 1), n_in + 1, n_out, "rows", self._size,
                f"h{layer}[k * {_odd(n_in + 1)} + m]", f"d{layer}[k * {ld} + n]",
                [f"g[{place}] = value;"],
            )
        ]  # fmt: skip
        if layer > 0:
            below = layer - 1
            activation = structure.hidden[below]
            A = self._xp.symbol(f"h{layer}[m * {_odd(n_in + 1)} + n]")
            Z = self._xp.symbol(f"z{below}[m * {_odd(n_in)} + n]")
            gradient = self._xp.symbol("value") * derivative_of(self._xp, activation, Z, A)
            store = CudaPrinter().statements([(f"d{below}[m * {_odd(n_in)} + n]", gradient)], "")
            lines.append(
                self._product(
                    "rows", self._size, n_in, str(n_out), n_out,
                    f"d{layer}[m * {ld} + k]", f"p[{W.offset} + n * {W.ld} + k]", store,
                )
            )  # fmt: skip
        return "\n".join([*lines, "            __syncthreads();"])

    def _loss(self) -> tuple[str, str]:
        """Print the target of a row, and its loss and gradient, by one thread per row."""
        outputs, needs_row = loss_outputs(self._xp, self._problem, labels=self._labels)
        if self._labels:
            head = "                const int64 label = y0[row];"
        else:
            head = "                const target* y_row = y0 + row * Y_COLUMNS;"
        if needs_row:
            head += "\n                const real n_row = N_OUTPUTS;"
        lines = CudaPrinter().row(outputs, "N_OUTPUTS", " " * 16)
        stores = ["z[k] = slope * share;", "loss += element * share;"]
        lines[-1:] = [*(" " * 20 + store for store in stores), lines[-1]]
        return head, "\n".join(lines)

    def _update(self) -> tuple[str, str]:
        """Print the numbers of penalties, clipping and optimizer, and the update."""
        outputs = update_outputs(self._xp, self._problem, "k", "is_weight(k)")
        numbers: dict[str, float] = {}
        printer = CudaPrinter(numbers, first="threadIdx.x", step="THREADS", reduce="block_reduce")
        lines = [
            step_scalars(self._problem, outputs, " " * 12),
            *printer.row(outputs, "SIZE", " " * 12),
        ]
        objective = self._problem.objective
        if objective.is_penalized and objective.penalty_per_sample:
            lines.insert(0, "            const real penalty_scale = (real)(1.0 / divisor);")
        if objective.is_penalized:
            lines.append("            loss += penalty;")
        lines.append("            __syncthreads();")
        self.hyperparameters += numbers.values()
        self.step_cycles += 40 * -(-self.layout.size // _THREADS)
        heads = [f"    const real {name} = hyper[{i}];" for i, name in enumerate(numbers)]
        return "\n".join(heads), "\n".join(lines)

    def _is_weight(self) -> str:
        if not self._problem.objective.is_penalized:
            return ""
        biases = " || ".join(
            f"(k >= {bias.offset} && k < {bias.offset + bias.size})" for bias in self.layout.biases
        )
        return f"__device__ bool is_weight(int k) {{ return !({biases}); }}"


def _odd(n: int) -> int:
    return n | 1


def _tile_cycles(tile: tuple[int, int], rows: int, columns: int, inner: int) -> float:
    """Estimate the cycles of a product with a tile size, from its latency and instruction count.

    In a cycle, a multiprocessor loads for one warp, or multiplies for four.
    """
    tiles = -(-rows // tile[0]) * -(-columns // tile[1])
    rounds = -(-tiles // _THREADS)
    warps = -(-min(tiles, _THREADS) // 32)
    issue = warps * (tile[0] + tile[1] + tile[0] * tile[1] / 4)
    return rounds * inner * max(issue, _LATENCY_CYCLES / 4)

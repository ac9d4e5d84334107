"""Generate the kernels of a training step as CUDA C, from the core's recorded formulas.

They do the work between two products: the gather of a batch; bias and activation; bias, loss and
its gradient; gradient through an activation, and its column sums; penalties, clipping and update
over the flat parameter vector; and the losses and checks of an epoch. They read everything that
changes from step to step (rates, rows of a batch, position) from device memory, so that a captured
step can be replayed. The block that finishes last completes a sum over blocks, always in the same
order, so that results have the same bits every time, without atomic additions.

The text uses barriers and shared memory, but no warp instructions, so that it also compiles as C++,
where tests run it. Sizes are arguments; one module serves a kind of problem (activations, loss,
optimizer, options, dtype).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnbackend.core.activations import Activation
from nnbackend.core.regularization import (
    clip_by_global_norm,
    clip_by_value,
    dropout_mask,
    penalty_elements,
)
from nnbackend.engines.tracing.expression import Printer, Recorder, Symbol, walk
from nnbackend.engines.tracing.formulas import (
    Outputs,
    UnrecordedError,
    depends_on,
    element,
    hidden_kinds,
    is_in_place,
    is_rowwise,
    keeps_zero,
    loss_elements,
    recorded,
    update_elements,
)

if TYPE_CHECKING:
    from nnbackend.engines.base import Problem

__all__ = [
    "DRAWS_PER_THREAD",
    "THREADS",
    "CudaKernels",
    "CudaPrinter",
    "activated",
    "derivative_of",
    "fill",
    "loss_outputs",
    "prelude",
    "step_count",
    "step_scalars",
    "update_outputs",
]

# The threads of a block, in every kernel of this module.
THREADS = 256

# Each thread draws random numbers for this many elements, one after another.
DRAWS_PER_THREAD = 32

_PRELUDE = r"""
typedef {real} real;
typedef {operand} operand;
typedef {target} target;
typedef long long int64;
typedef unsigned long long uint64;

#define THREADS {threads}
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

__device__ __forceinline__ bool is_finite(double x) {{ return x - x == 0.0; }}
"""

_KERNEL = 'extern "C" __global__ void __launch_bounds__(THREADS) '

_OPERANDS = {
    "real": "__device__ __forceinline__ operand to_operand(real x) { return x; }\n",
    # Round to the nearest bfloat16, ties to even; keep NaN.
    "unsigned short": """\
__device__ __forceinline__ operand to_operand(real x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (operand)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
""",
}

# The counters on the device: steps done in this call, rows and random numbers used.
_COMMON = r"""
enum { STEP, ROW, DRAWN };
enum { LOSS_SUM, COUNT_SUM };
enum { EPOCHS, IS_BAD, HAS_NONFINITE, POSITION };

struct Sum {
    template <typename T> static __device__ __forceinline__ T of(T a, T b) { return a + b; }
};
struct Max {
    template <typename T> static __device__ __forceinline__ T of(T a, T b) {
        return (a > b) | (a != a) ? a : b;
    }
};

// Combine the values of all threads; everyone gets the result.
template <typename Op, typename T> __device__ __forceinline__ T block_reduce(T value) {
    __shared__ T scratch[THREADS];
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] = Op::of(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    const T result = scratch[0];
    __syncthreads();
    return result;
}
"""

_KERNELS = r"""
// Combine the values of the threads of one row of the block.
template <typename Op> __device__ __forceinline__ real row_reduce(real value) {
    if (blockDim.x == 1) return value;
    __shared__ real scratch[THREADS];
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) scratch[t] = Op::of(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    const real result = scratch[t - threadIdx.x];
    __syncthreads();
    return result;
}

// Add up the values of the threads of one column of the block.
__device__ __forceinline__ real column_sum(real value) {
    __shared__ real scratch[THREADS];
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half) scratch[t] += scratch[t + half * blockDim.x];
        __syncthreads();
    }
    const real result = scratch[threadIdx.x];
    __syncthreads();
    return result;
}

// Whether this block is the last of `blocks` to arrive; it then sees what the others wrote.
__device__ __forceinline__ bool is_last_block(unsigned* arrived, unsigned blocks) {
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        is_last = atomicAdd(arrived, 1u) == blocks - 1;
        if (is_last) *arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return is_last;
}

// Reduce over all blocks; the block that is done last returns true, and has the result.
template <typename Op>
__device__ __forceinline__ bool grid_reduce(
    double& value, volatile double* partial, unsigned* arrived, double start
) {
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    value = block_reduce<Op>(value);
    if (t == 0) partial[blockIdx.x] = value;
    if (!is_last_block(arrived, gridDim.x)) return false;
    value = start;
    for (unsigned i = t; i < gridDim.x; i += THREADS) value = Op::of(value, (double)partial[i]);
    value = block_reduce<Op>(value);
    return true;
}

// Complete the sums of the block's columns over the blocks above and below it.
__device__ __forceinline__ void finish_columns(
    real value, int column, int columns, real* sums, volatile real* partial, unsigned* arrived
) {
    value = column_sum(value);
    if (threadIdx.y == 0 && column < columns) partial[blockIdx.y * columns + column] = value;
    if (!is_last_block(arrived + blockIdx.x, gridDim.y)) return;
    value = 0;
    if (column < columns)
        for (unsigned i = threadIdx.y; i < gridDim.y; i += blockDim.y)
            value += partial[i * columns + column];
    value = column_sum(value);
    if (threadIdx.y == 0 && column < columns) sums[column] = value;
}

// The rows of the next batch, out of the data; those of X may have been staged in their order.
KERNEL gather(
    const real* X, const target* y, const real* weight, const int* order, const int64* counters,
    int rows, int columns, int ld_in, int ld_out, int y_columns, int is_staged, int takes_weight,
    operand* X0, target* y0, real* w0
) {
    const int64 first = counters[ROW];
    const int start = blockIdx.x * blockDim.x + threadIdx.x;
    const int step = gridDim.x * blockDim.x;
    for (int i = blockIdx.y * blockDim.y + threadIdx.y; i < rows; i += gridDim.y * blockDim.y) {
        const int64 row = order[first + i];
        for (int k = start; k < columns; k += step)
            X0[(int64)i * ld_out + k] = to_operand(X[(is_staged ? i : row) * ld_in + k]);
        for (int k = start; k < y_columns; k += step)
            y0[(int64)i * y_columns + k] = y[row * y_columns + k];
        if (takes_weight && start == 0) w0[i] = weight[row];
    }
}

// A matrix as operands of products.
KERNEL convert(const real* X, int rows, int columns, int ld_in, int ld_out, operand* out) {
    const int start = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = blockIdx.y * blockDim.y + threadIdx.y; i < rows; i += gridDim.y * blockDim.y)
        for (int k = start; k < columns; k += gridDim.x * blockDim.x)
            out[(int64)i * ld_out + k] = to_operand(X[(int64)i * ld_in + k]);
}

// The sum of a batch's weights.
KERNEL weigh(const real* weight, int rows, double* batch_weight) {
    double sum = 0;
    for (int i = threadIdx.x; i < rows; i += THREADS) sum += (double)weight[i];
    sum = block_reduce<Sum>(sum);
    if (threadIdx.x == 0) *batch_weight = sum;
}

// Column sums of a matrix.
KERNEL column_sums(
    const real* Z, int rows, int columns, int ld, real* sums, real* partial, unsigned* arrived
) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    real sum = 0;
    if (k < columns)
        for (int i = blockIdx.y * blockDim.y + threadIdx.y; i < rows; i += gridDim.y * blockDim.y)
            sum += Z[(int64)i * ld + k];
    finish_columns(sum, k, columns, sums, partial, arrived);
}

// Whether an epoch left a parameter that is not finite.
KERNEL find_nonfinite(const real* parameters, int64 n, unsigned* status) {
    bool found = false;
    for (int64 i = (int64)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (int64)gridDim.x * THREADS)
        found |= !is_finite((double)parameters[i]);
    if (found) atomicOr(&status[HAS_NONFINITE], 1u);
}

// Write down an epoch's loss; keep its parameters, if it and all before it are good.
KERNEL finish_epoch(
    const real* parameters, int64 n, real* finite, double* sums, double* losses, unsigned* status,
    unsigned* arrived
) {
    const double loss = sums[COUNT_SUM] > 0 ? sums[LOSS_SUM] / sums[COUNT_SUM] : 0.0;
    const bool is_good = is_finite(loss) && !status[HAS_NONFINITE] && !status[IS_BAD];
    if (is_good)
        for (int64 i = (int64)blockIdx.x * THREADS + threadIdx.x; i < n;
             i += (int64)gridDim.x * THREADS)
            finite[i] = parameters[i];
    if (!is_last_block(arrived, gridDim.x) || threadIdx.x != 0) return;
    losses[status[POSITION]] = loss;
    status[POSITION] += 1;
    if (!status[IS_BAD]) status[EPOCHS] += 1;
    if (!is_good) status[IS_BAD] = 1;
    status[HAS_NONFINITE] = 0;
    sums[LOSS_SUM] = sums[COUNT_SUM] = 0;
}
"""

# PCG64 (O'Neill 2014), NumPy's default generator: a 128-bit linear congruential generator, from
# which XSL-RR makes 64 bits. A thread jumps ahead to its first number (Brown 1994).
_RANDOM = r"""
struct Wide { uint64 high, low; };
__device__ __forceinline__ Wide multiply(Wide a, Wide b) {
    const uint64 high = __umul64hi(a.low, b.low) + a.high * b.low + a.low * b.high;
    const Wide product = {high, a.low * b.low};
    return product;
}
__device__ __forceinline__ Wide add(Wide a, Wide b) {
    const uint64 low = a.low + b.low;
    const Wide sum = {a.high + b.high + (low < a.low), low};
    return sum;
}
__device__ __forceinline__ uint64 next_random(Wide& state, Wide multiplier, Wide increment) {
    state = add(multiply(state, multiplier), increment);
    const uint64 value = state.high ^ state.low;
    const int rotation = (int)(state.high >> 58);
    return (value >> rotation) | (value << ((64 - rotation) & 63));
}
__device__ __forceinline__ Wide jump_ahead(
    Wide state, Wide multiplier, Wide increment, uint64 count
) {
    Wide product = {0, 1}, sum = {0, 0};
    const Wide one = {0, 1};
    for (; count > 0; count /= 2) {
        if (count % 2) {
            product = multiply(product, multiplier);
            sum = add(multiply(sum, multiplier), increment);
        }
        increment = multiply(add(multiplier, one), increment);
        multiplier = multiply(multiplier, multiplier);
    }
    return add(multiply(product, state), sum);
}

// A dropout mask of the numbers that NumPy's generator draws for it.
KERNEL draw_mask(
    real* mask, int rows, int columns, int ld, real rate, const uint64* generator,
    const int64* counters, int64 offset
) {
    const Wide multiplier = {2549297995355413924ULL, 4865540595714422341ULL};
    const Wide increment = {generator[2], generator[3]};
    const int64 n = (int64)rows * columns;
    const int64 first = ((int64)blockIdx.x * THREADS + threadIdx.x) * @DRAWS@;
    if (first >= n) return;
    int64 number = counters[DRAWN] + offset + first;
    const Wide seeded = {generator[0], generator[1]};
    Wide state = jump_ahead(seeded, multiplier, increment, (uint64)(number / @PER_DRAW@));
    uint64 bits = 0;
    bool has_bits = false;
    for (int64 element = first; element < n && element < first + @DRAWS@; ++element, ++number) {
        const int part = (int)(number % @PER_DRAW@);
        if (part == 0 || !has_bits) bits = next_random(state, multiplier, increment);
        has_bits = true;
        const real uniform = @UNIFORM@;
        const int64 i = element / columns * ld + element % columns;
@FORMULA@
    }
}
"""

_ACTIVATE = r"""
KERNEL activate_@NUMBER@(
    real* Z, const real* bias, real* A, const real* M, operand* H, int rows, int columns, int ld
) {
    const int start = blockIdx.x * blockDim.x + threadIdx.x;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y)
        for (int k = start; k < columns; k += gridDim.x * blockDim.x) {
            const int64 i = (int64)row * ld + k;
@FORMULA@
        }
}
"""

_PULL_BACK = r"""
KERNEL pull_back_@NUMBER@(
    real* D, const real* Z, const real* A, const real* M, operand* E, int rows, int columns, int ld,
    real* sums, real* partial, unsigned* arrived
) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    real sum = 0;
    if (k < columns)
        for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows;
             row += gridDim.y * blockDim.y) {
            const int64 i = (int64)row * ld + k;
@FORMULA@
            sum += gradient;
        }
    finish_columns(sum, k, columns, sums, partial, arrived);
}
"""

_OUTPUT_LOSS = r"""
KERNEL output_loss(
    real* Z, const real* bias, const target* y, const real* weight, const double* batch_weight,
    operand* E, int rows, int columns, int ld, int y_columns, int is_weighted, int64 draws,
    double* sums, int64* counters, double* partial, unsigned* arrived
) {
    const double total = is_weighted ? *batch_weight : (double)rows;
    const double divisor = total > 0 ? total : 1.0;
    real loss = 0;
    // All threads take part in the reductions of a row.
    for (int top = blockIdx.x * blockDim.y; top < rows; top += gridDim.x * blockDim.y) {
        const int row = top + threadIdx.y;
        const bool is_row = row < rows;
        const int length = is_row ? columns : 0;
        real* z = Z + (int64)row * ld;
@TARGET@
        const double own = is_row && is_weighted ? (double)weight[row] : 1.0;
        const real share = (real)(own / divisor);
        for (int k = threadIdx.x; k < length; k += blockDim.x) z[k] += bias[k];
@FORMULA@
    }
    double sum = (double)loss;
    if (!grid_reduce<Sum>(sum, partial, arrived, 0.0) || threadIdx.x + threadIdx.y > 0) return;
    const double count = @COUNT@;
    sums[LOSS_SUM] += sum * count;
    sums[COUNT_SUM] += count;
    counters[STEP] += 1;
    counters[ROW] += rows;
    counters[DRAWN] += draws;
}
"""

_BIASES = r"""
// Whether element i of the flat vector is a bias; they are few and short segments.
__device__ bool is_bias(int64 i, const int64* biases, int n_layers) {
    for (int layer = 0; layer < n_layers; ++layer)
        if (i >= biases[2 * layer] && i < biases[2 * layer + 1]) return true;
    return false;
}
"""

_REDUCE = r"""
KERNEL reduce_@NUMBER@(
    const real* p, const real* g, const real* hyper, real* scalars, int64 n, const int64* biases,
    int n_layers, int rows, int is_weighted, const double* batch_weight, double* partial,
    unsigned* arrived
) {
@SCALE@
@NUMBERS@
    real total = @START@;
    for (int64 i = (int64)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (int64)gridDim.x * THREADS) {
@FORMULA@
        total = @OPERATION@::of(total, element);
    }
    double result = (double)total;
    if (grid_reduce<@OPERATION@>(result, partial, arrived, (double)@START@) && threadIdx.x == 0)
        scalars[@NUMBER@] = (real)result;
}
"""

# When the update runs, the loss kernel has already counted this step.
_UPDATE = r"""
KERNEL update(
    real* p, const real* g,@STATES@ operand* operands, const real* hyper, const real* scalars,
    const real* coefficients, const int64* counters, int64 n, const int64* biases, int n_layers,
    int rows, int is_weighted, const double* batch_weight, double* sums, double* partial,
    unsigned* arrived
) {
    [[maybe_unused]] const int64 step = counters[STEP] - 1;
@COEFFICIENTS@
@SCALE@
@NUMBERS@
    for (int64 i = (int64)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (int64)gridDim.x * THREADS) {
@FORMULA@
    }
@PENALTY@
}
"""

_PENALTY = """\
    double sum = (double)penalty;
    const double total = is_weighted ? *batch_weight : (double)rows;
    if (grid_reduce<Sum>(sum, partial, arrived, 0.0) && threadIdx.x == 0)
        sums[LOSS_SUM] += sum * @COUNT@;"""

# NumPy turns 64 random bits into two float32 numbers (low half first) or one float64 number.
_UNIFORM = {
    "float": (2, "(real)((unsigned)(bits >> (32 * part)) >> 8) * (1.0f / 16777216.0f)"),
    "double": (1, "(real)(bits >> 11) * (1.0 / 9007199254740992.0)"),
}


def prelude(dtype: str, precision: str, *, labels: bool, threads: int = THREADS) -> str:
    """Return the types and functions at the beginning of every module."""
    real = {"float32": "float", "float64": "double"}[dtype]
    operand = "unsigned short" if precision == "bfloat16" else "real"
    text = _PRELUDE.format(
        real=real, operand=operand, target="long long" if labels else "real", threads=threads
    )
    return text + _OPERANDS[operand] + _COMMON


class CudaPrinter(Printer):
    """Prints expressions as CUDA C.

    Parameters
    ----------
    numbers : dict, optional
        Receives constants by the names of variables, which the caller defines. Without it,
        constants are printed in place.
    first, step : str
        The first index and the increment of the loop over a row, which several lanes share.
    reduce : str
        The function that combines the lanes' reductions; empty for one lane.
    """

    def __init__(
        self,
        numbers: dict[str, float] | None = None,
        *,
        first: str = "0",
        step: str = "1",
        reduce: str = "",
    ) -> None:
        super().__init__({} if numbers is None else numbers, set())
        self._is_literal = numbers is None
        self._first, self._step, self._reduce = first, step, reduce

    def loop(self, length: str, body: Sequence[str], indent: str) -> list[str]:
        """Return a loop over this lane's share of the index ``k``."""
        head = f"for (int k = {self._first}; k < {length}; k += {self._step}) {{"
        return [f"{indent}{head}", *body, f"{indent}}}"]

    def statement(self, code: str) -> str:
        """Return an assignment as a statement."""
        return f"{code};"

    def definition(self, name: str, code: str, kind: str) -> str:
        """Return the definition of a constant variable."""
        return f"const {kind} {name} = {code};"

    def accumulator(self, name: str, start: str) -> str:
        """Return the definition of a reduction's variable."""
        return f"real {name} = {start};"

    def reduced(self, operation: str, name: str) -> list[str]:
        """Return the statements that combine the lanes."""
        if not self._reduce:
            return []
        return [f"{name} = {self._reduce}<{'Max' if operation == 'max' else 'Sum'}>({name});"]

    def choice(self, condition: str, yes: str, no: str) -> str:
        """Return a conditional expression."""
        return f"({condition}) ? {yes} : {no}"

    def call(self, function: str, x: str) -> str:
        """Return a call of a function, which is overloaded by the argument's type."""
        return f"{'fabs' if function == 'abs' else function}({x})"

    def constant(self, value: float) -> str:
        """Return the code of a number in the arrays' dtype."""
        if not self._is_literal:
            return super().constant(value)
        if math.isinf(value):
            return f"(real){'-' if value < 0 else ''}INFINITY"
        if math.isnan(value):
            return "(real)NAN"
        return f"(real){value!r}"

    def known(self, node: Symbol, name: str) -> None:
        """Declare that a variable holds the value of a reduction."""
        self._names[node.key] = name


class CudaKernels:
    """The source of a problem's kernels.

    Parameters
    ----------
    problem : Problem
        The training problem.
    dtype : {"float32", "float64"}
        The dtype of all arrays except the operands of products.
    precision : {"float32", "tf32", "bfloat16", "float64"}
        The precision of the products; with ``"bfloat16"`` their operands are stored in it.
    labels : bool
        Whether ``y`` is a vector of integer labels.

    Attributes
    ----------
    dtype, precision, labels
        The arguments.
    hyperparameters : list of float
        The numbers of optimizer, penalties and clipping. Kernels take them as an argument, so that
        a search over them does not compile again.
    reductions : list of str
        The kernels whose results the update needs, in their order.
    source : str
        The module's text.

    Raises
    ------
    UnrecordedError
        If a formula cannot be recorded, such as a user's activation that branches on data.
    """

    def __init__(self, problem: Problem, dtype: str, precision: str, *, labels: bool) -> None:
        self._problem = problem
        self.dtype, self.precision, self.labels = dtype, precision, labels
        self._real = {"float32": "float", "float64": "double"}[dtype]
        self._xp = Recorder(dtype)
        self.hyperparameters: list[float] = []
        self.reductions: list[str] = []
        self._is_bfloat16 = precision == "bfloat16"
        parts = [prelude(dtype, precision, labels=labels), fill(_KERNELS)]
        for number, (activation, drops) in enumerate(hidden_kinds(problem)):
            parts.append(self._activate(number, activation, drops=drops))
            parts.append(self._pull_back(number, activation, drops=drops))
        if problem.objective.structure.has_dropout:
            parts.append(self._draw_mask())
        parts += [self._output_loss(), *self._update()]
        self.source = "\n".join(parts)

    def _activate(self, number: int, activation: Activation, *, drops: bool) -> str:
        xp = self._xp
        Z = xp.symbol("Z[i]") + xp.symbol("bias[k]")
        A = activated(xp, activation, Z)
        is_alone = is_in_place(activation, self.dtype)
        outputs = [("Z[i]", A)] if is_alone else [("Z[i]", Z), ("A[i]", A)]
        stores = []
        if drops or self._is_bfloat16:
            outputs.append(("const real active", A * xp.symbol("M[i]") if drops else A))
            stores.append("            H[i] = to_operand(active);")
        lines = [*CudaPrinter().statements(outputs, " " * 12), *stores]
        return fill(_ACTIVATE, NUMBER=number, FORMULA="\n".join(lines))

    def _pull_back(self, number: int, activation: Activation, *, drops: bool) -> str:
        xp = self._xp
        D = xp.symbol("D[i]") * xp.symbol("M[i]") if drops else xp.symbol("D[i]")
        gradient = D * derivative_of(xp, activation, xp.symbol("Z[i]"), xp.symbol("A[i]"))
        lines = CudaPrinter().statements([("const real gradient", gradient)], " " * 12)
        store = "E[i] = to_operand(gradient);" if self._is_bfloat16 else "D[i] = gradient;"
        lines.append(" " * 12 + store)
        return fill(_PULL_BACK, NUMBER=number, FORMULA="\n".join(lines))

    def _draw_mask(self) -> str:
        rate: Any = self._xp.symbol("rate", extent="number")
        formula = dropout_mask(self._xp, self._xp.symbol("uniform"), rate)
        lines = CudaPrinter().statements([("mask[i]", formula)], " " * 8)
        per_draw, code = _UNIFORM[self._real]
        return fill(
            _RANDOM,
            FORMULA="\n".join(lines),
            PER_DRAW=per_draw,
            DRAWS=DRAWS_PER_THREAD,
            UNIFORM=code,
        )

    def _output_loss(self) -> str:
        """Print bias, loss and its gradient, with several lanes for the outputs of a row."""
        outputs, needs_row = loss_outputs(self._xp, self._problem, labels=self.labels)
        if self.labels:
            head = "        const int64 label = is_row ? y[row] : 0;"
        else:
            head = "        const target* y_row = y + (int64)row * y_columns;"
        if needs_row:
            head += "\n        const real n_row = (real)columns;"
        printer = CudaPrinter(first="threadIdx.x", step="blockDim.x", reduce="row_reduce")
        lines = printer.row(outputs, "length", " " * 8)
        stores = ["z[k] = slope * share;", "loss += element * share;"]
        if self._is_bfloat16:
            stores.append("E[(int64)row * ld + k] = to_operand(slope * share);")
        lines[-1:] = [*(" " * 12 + store for store in stores), lines[-1]]
        count = step_count(self._problem)
        return fill(_OUTPUT_LOSS, TARGET=head, FORMULA="\n".join(lines), COUNT=count)

    def _update(self) -> list[str]:
        """Print penalties, clipping and the optimizer's step over the flat parameter vector."""
        problem = self._problem
        outputs = update_outputs(self._xp, problem, "i", "is_weight")
        nodes = walk([expression for _, expression in outputs])
        known = [node for node in nodes if node.operation in ("max", "sum")]
        parts = [_BIASES]
        for number, node in enumerate(known):
            self.reductions.append(f"reduce_{number}")
            value = [("const real element", node.operands[0])]
            numbers, formula = self._elementwise(value, known[:number])
            part = fill(
                _REDUCE,
                NUMBER=number,
                OPERATION="Max" if node.operation == "max" else "Sum",
                START="(real)-INFINITY" if node.operation == "max" else "(real)0",
                SCALE=_penalty_scale(problem),
                NUMBERS=numbers,
                FORMULA=formula,
            )
            parts.append(part)
        names = problem.optimizer.state_names
        numbers, formula = self._elementwise(outputs, known)
        if self._is_bfloat16:
            formula += "\n        operands[i] = to_operand(p[i]);"
        is_penalized = problem.objective.is_penalized
        part = fill(
            _UPDATE,
            STATES="".join(f" real* s{i}," for i in range(len(names))),
            COEFFICIENTS=step_scalars(problem, outputs, " " * 4),
            SCALE=_penalty_scale(problem),
            NUMBERS=numbers,
            FORMULA=formula,
            PENALTY=fill(_PENALTY, COUNT=step_count(problem)) if is_penalized else "",
        )
        return [*parts, part]

    def _elementwise(self, outputs: Outputs, known: Sequence[Symbol]) -> tuple[str, str]:
        """Print the numbers and known reductions that outputs use, and outputs for one element."""
        numbers: dict[str, float] = {}
        printer = CudaPrinter(numbers)
        for number, node in enumerate(known):
            printer.known(node, f"r{number}")
        lines = printer.statements(outputs, " " * 8)
        first = len(self.hyperparameters)
        self.hyperparameters += numbers.values()
        heads = [f"    const real {name} = hyper[{first + i}];" for i, name in enumerate(numbers)]
        heads += [f"    const real r{number} = scalars[{number}];" for number in range(len(known))]
        if any(depends_on(expression, "is_weight") for _, expression in outputs):
            lines.insert(0, "        const bool is_weight = !is_bias(i, biases, n_layers);")
        return "\n".join(heads), "\n".join(lines)


def activated(xp: Recorder, activation: Activation, Z: Symbol) -> Symbol:
    """Return g(Z) of one unit."""
    what = f"the activation {activation.name!r}"
    A: Symbol = recorded(what, lambda: element(activation.function(xp, Z)))
    return _of_one_unit(activation, A)


def derivative_of(xp: Recorder, activation: Activation, Z: Symbol, A: Symbol) -> Symbol:
    """Return g'(Z) of one unit, where A is g(Z)."""
    what = f"the derivative of {activation.name!r}"
    slope: Symbol = recorded(what, lambda: element(activation.derivative(xp, Z, A)))
    return _of_one_unit(activation, slope)


def _of_one_unit(activation: Activation, value: Symbol) -> Symbol:
    if is_rowwise(value):
        raise UnrecordedError(f"the activation {activation.name!r}: a unit depends on others")
    return value


def loss_outputs(xp: Recorder, problem: Problem, *, labels: bool) -> tuple[Outputs, bool]:
    """Return loss and gradient of output ``k`` of a row, and whether they use ``n_row``.

    The code calls the row's logits ``z``, and its targets ``y_row`` or ``label``.
    """
    objective = problem.objective
    elements = recorded(
        "the loss",
        lambda: loss_elements(xp, objective, xp.symbol("z[k]"), "y_row[k]", labels=labels),
    )
    names = ("const real element", "const real slope")
    outputs: Outputs = list(zip(names, elements, strict=True))
    return outputs, any(depends_on(value, "n_row") for _, value in outputs)


def update_outputs(xp: Recorder, problem: Problem, index: str, is_weight: str) -> Outputs:
    """Return the update of an element of the parameters ``p``, and of the penalty.

    The update adds penalties to the gradient ``g`` and then clips it; ``is_weight`` is the code
    that distinguishes weights from biases.
    """
    objective = problem.objective
    p, gradient = xp.symbol(f"p[{index}]"), xp.symbol(f"g[{index}]")
    penalty: Outputs = []
    if objective.is_penalized:
        value, slope = penalty_elements(xp, p, objective.l1, objective.l2)
        condition = xp.symbol(is_weight, kind="bool")
        if objective.penalty_per_sample:
            scale = xp.symbol("penalty_scale", extent="number")
            value, slope = value * scale, slope * scale
        penalty = [("penalty +=", xp.where(condition, value, 0.0))]
        gradient = gradient + xp.where(condition, slope, 0.0)
    if problem.clip_value is not None:
        gradient = clip_by_value(xp, gradient, problem.clip_value)
    if problem.clip_norm is not None:
        gradient = clip_by_global_norm(xp, gradient, problem.clip_norm)
    plain = recorded(
        "the optimizer", lambda: update_elements(xp, problem, p, xp.symbol("g"), index)
    )
    if any(is_rowwise(value) for _, value in plain):
        raise UnrecordedError("the optimizer: it reduces over all parameters")
    if not recorded("the optimizer", lambda: keeps_zero(problem.optimizer)):
        raise UnrecordedError("the optimizer: it changes parameters of 0 with a gradient of 0")
    return [*update_elements(xp, problem, p, gradient, index), *penalty]


def step_scalars(problem: Problem, outputs: Outputs, indent: str) -> str:
    """Return definitions of the step's coefficients that outputs use."""
    count = len(problem.optimizer.coefficients(1.0, 1))
    lines = [
        f"{indent}const real c{i} = coefficients[step * {count} + {i}];"
        for i in range(count)
        if any(depends_on(expression, f"c{i}") for _, expression in outputs)
    ]
    if problem.objective.is_penalized:
        lines.append(f"{indent}real penalty = 0;")
    return "\n".join(lines)


def _penalty_scale(problem: Problem) -> str:
    """Return the definition of the factor of penalties, unless it is 1."""
    if not (problem.objective.is_penalized and problem.objective.penalty_per_sample):
        return ""
    return (
        "    const double weights = is_weighted ? *batch_weight : (double)rows;\n"
        "    const real penalty_scale = (real)(1.0 / (weights > 0 ? weights : 1.0));"
    )


def step_count(problem: Problem) -> str:
    """Return the code of a step's weight in its epoch's loss, from ``rows`` and ``total``."""
    return "(total > 0 ? (double)rows : 0.0)" if problem.loss_by_rows else "total"


def fill(template: str, **parts: object) -> str:
    """Return a template with its marks, such as ``@NAME@``, replaced."""
    template = template.replace("KERNEL ", _KERNEL)
    for name, part in parts.items():
        template = template.replace(f"@{name}@", str(part))
    return template

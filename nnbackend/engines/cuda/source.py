"""The text of the kernels in CUDA C, with marks such as ``@FORMULA@`` for the generated parts."""

from __future__ import annotations

__all__ = [
    "ACTIVATE",
    "BIASES",
    "DRAWS_PER_THREAD",
    "KERNELS",
    "OUTPUT_LOSS",
    "PENALTY",
    "PULL_BACK",
    "RANDOM",
    "REDUCE",
    "THREADS",
    "UNIFORM",
    "UPDATE",
    "fill",
    "prelude",
]

# The threads of a block, in every kernel of ``kernels.py``.
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

KERNELS = r"""
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
RANDOM = r"""
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

ACTIVATE = r"""
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

PULL_BACK = r"""
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

OUTPUT_LOSS = r"""
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

BIASES = r"""
// Whether element i of the flat vector is a bias; they are few and short segments.
__device__ bool is_bias(int64 i, const int64* biases, int n_layers) {
    for (int layer = 0; layer < n_layers; ++layer)
        if (i >= biases[2 * layer] && i < biases[2 * layer + 1]) return true;
    return false;
}
"""

REDUCE = r"""
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
UPDATE = r"""
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

PENALTY = """\
    double sum = (double)penalty;
    const double total = is_weighted ? *batch_weight : (double)rows;
    if (grid_reduce<Sum>(sum, partial, arrived, 0.0) && threadIdx.x == 0)
        sums[LOSS_SUM] += sum * @COUNT@;"""

# NumPy turns 64 random bits into two float32 numbers (low half first) or one float64 number.
UNIFORM = {
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


def fill(template: str, **parts: object) -> str:
    """Return a template with its marks, such as ``@NAME@``, replaced."""
    template = template.replace("KERNEL ", _KERNEL)
    for name, part in parts.items():
        template = template.replace(f"@{name}@", str(part))
    return template

"""The tools that check CUDA C kernels without a GPU: what they run, and what they find."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import compile_cuda
from nvrtc import _library, compile_ptx_or_cubin

pytestmark = pytest.mark.slow

ELEMENTWISE = """
typedef float real;
struct Scale {
    real factor;
    __host__ __device__ __forceinline__ real operator()(real x) const { return factor * x; }
};
template <typename F>
__device__ __forceinline__ void apply(real* __restrict__ y, const real* __restrict__ x, int n, F f)
{
    const int stride = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) y[i] = f(x[i]);
}
extern "C" __global__ void __launch_bounds__(128) scale(
    real* y, const real* __restrict__ x, int n, real factor)
{
    apply(y, x, n, Scale{factor});
}
extern "C" __global__ __launch_bounds__(2 * (32 + 32), 2) void shift(
    real* y, const real* x, int n, real offset, bool square)
{
    apply(y, x, n, [=](real v) { return square ? v * v + offset : v + offset; });
}
"""

SUM = """
template <typename T, int SIZE>
__device__ __noinline__ T block_sum(T value)
{
    __shared__ T partial[SIZE];
    partial[threadIdx.x] = value;
    __syncthreads();
#pragma unroll
    for (int half = SIZE / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    return partial[0];
}
__device__ unsigned blocks_done;

// The last block to finish adds up what all have left, in one order.
extern "C" __global__ void sum(double* total, volatile double* partial, const float* x, int n)
{
    double own = 0.0;
    for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += 64 * gridDim.x) own += double(x[i]);
    own = block_sum<double, 64>(own);
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = own;
        __threadfence();
        last = atomicAdd(&blocks_done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    own = block_sum<double, 64>(threadIdx.x < gridDim.x ? partial[threadIdx.x] : 0.0);
    if (threadIdx.x == 0) {
        *total = own;
        blocks_done = 0;
    }
}
"""

# Each block reverses its row, through dynamic shared memory.
REVERSE = """
extern __shared__ __align__(16) unsigned char dynamic_shared[];
extern "C" __global__ void reverse(double* x)
{
    double* row = reinterpret_cast<double*>(dynamic_shared);
    const int n = blockDim.x, i = threadIdx.x;
    row[i] = x[blockIdx.x * n + i];
    __syncthreads();
    x[blockIdx.x * n + i] = row[n - 1 - i];
}
"""

POSITIONS = """
extern "C" __global__ void positions(unsigned* out)
{
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
    out[i] = 10000 * blockIdx.x + 1000 * blockIdx.y + 100 * blockIdx.z
        + 16 * threadIdx.x + 4 * threadIdx.y + threadIdx.z;
}
"""

FUNCTIONS = """
#ifndef INFINITY
#define INFINITY __uint_as_float(0x7f800000u)
#endif
#ifndef NAN
#define NAN __uint_as_float(0x7fffffffu)
#endif
template <typename T>
__device__ void functions(T* y, T x)
{
    T values[] = {exp(x), log(x), tanh(x), sqrt(x), fabs(-x), expm1(x), log1p(x), fma(x, x, x),
                  min(x, T(0.5)), max(x, T(0.5)), max(T(NAN), x), T(isfinite(x / T(0))),
                  T(isnan(x)), min(x, T(INFINITY))};
    static_assert(sizeof(exp(x)) == sizeof(T) && sizeof(log(x)) == sizeof(T), "");
    static_assert(sizeof(tanh(x)) == sizeof(T) && sizeof(sqrt(x)) == sizeof(T), "");
    static_assert(sizeof(fabs(x)) == sizeof(T) && sizeof(expm1(x)) == sizeof(T), "");
    static_assert(sizeof(log1p(x)) == sizeof(T) && sizeof(fma(x, x, x)) == sizeof(T), "");
    static_assert(sizeof(min(x, x)) == sizeof(T) && sizeof(max(x, x)) == sizeof(T), "");
    for (int i = 0; i < 14; ++i) y[i] = values[i];
}
extern "C" __global__ void functions32(float* y, float x) { functions(y, x); }
extern "C" __global__ void functions64(double* y, double x) { functions(y, x); }

extern "C" __global__ void bits(
    unsigned long long* high, unsigned* words, const float* x, long long signed_factor,
    unsigned short half_word)
{
    high[0] = __umul64hi(0xffffffffffffffffull, (unsigned long long)signed_factor);
    words[0] = __umulhi(0xffffffffu, half_word);
    words[1] = __float_as_uint(__ldg(x));
    words[2] = __float_as_uint(__uint_as_float(0x40490fdbu));
    words[2] += __float_as_int(__int_as_float(-1 & 0x0000ffff));
    words[3] = fmaf(x[0], x[0], 1.0f) > 1.0f;
}
"""

ATOMICS = """
extern "C" __global__ void atomics(
    unsigned* counts, int* numbers, float* total, int* order)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    order[atomicAdd(&counts[0], 1)] = i;
    atomicMax(&counts[1], i);
    atomicOr(&counts[2], 1u << (i % 32));
    atomicExch(&counts[3], 7u);
    atomicAdd(&numbers[0], -1);
    atomicMax(&numbers[1], -i);
    atomicAdd(total, 0.5f);
}
"""

# Between the two barriers lies a third, which only the threads below ``n`` reach.
DIVERGENT = """
extern "C" __global__ void divergent(float* x, int n, bool leave)
{
    __syncthreads();
    if (threadIdx.x < n) {
        __syncthreads();
        x[threadIdx.x] = 1.0f;
    } else if (leave) {
        return;
    }
    __syncthreads();
}
"""

BEYOND = """
extern __shared__ unsigned char dynamic_shared[];
extern "C" __global__ void increment(float* x, int first) { x[first + (int)threadIdx.x] += 1.0f; }
extern "C" __global__ void increment64(double* x, int first) { x[first] += 1.0; }
extern "C" __global__ void fill_shared(int n)
{
    for (int i = threadIdx.x; i < n; i += blockDim.x) dynamic_shared[i] = 1;
}
"""

UNWRITTEN = """
extern __shared__ unsigned char dynamic_shared[];
template <typename T>
__device__ __forceinline__ T unwritten(int i)
{
    __shared__ T first[3];
    if (blockIdx.x == 0) first[0] = first[1] = first[2] = 1;
    return first[i];
}
extern "C" __global__ void read_shared(float* x, double* y, int i)
{
    __shared__ int never[2];
    __shared__ float second[2][2];
    if (blockIdx.x == 0) second[0][0] = second[1][1] = 2.0f;
    x[3 * blockIdx.x] = unwritten<float>(i);
    x[3 * blockIdx.x + 1] = second[i][i];
    x[3 * blockIdx.x + 2] = reinterpret_cast<float*>(dynamic_shared)[i];
    y[blockIdx.x] = never[i] == -1 ? unwritten<double>(i) : 0.0;
}
"""

# Without a barrier before it, what the neighbour wrote is there in one order and not in another.
RACE = """
extern "C" __global__ void race(float* x)
{
    __shared__ float value[64];
    value[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = value[threadIdx.x / 2];
}
"""

SOURCES = {
    "elementwise": ELEMENTWISE,
    "sum": SUM,
    "reverse": REVERSE,
    "positions": POSITIONS,
    "functions": FUNCTIONS,
    "atomics": ATOMICS,
    "divergent": DIVERGENT,
    "beyond": BEYOND,
    "unwritten": UNWRITTEN,
    "race": RACE,
}
ORDERS = ["forward", "reversed", 0, 1]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_compiles_for_gpus(source, architecture):
    compiled = compile_ptx_or_cubin(source, architecture)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert set(compiled.kernels) == set(compile_cuda(source).kernels)
    for resources in compiled.kernels.values():
        assert 0 < resources.registers <= 255
        assert resources.spill_stores == resources.spill_loads == 0


def test_resources_are_reported():
    source = """
    extern "C" __global__ void __launch_bounds__(1024) crowded(
        float* y, const float* __restrict__ x, int n)
    {
        float sums[12][12] = {};
        for (int k = 0; k < n; ++k)
            for (int i = 0; i < 12; ++i)
                for (int j = 0; j < 12; ++j) sums[i][j] += x[k * 24 + i] * x[k * 24 + 12 + j];
        for (int i = 0; i < 12; ++i)
            for (int j = 0; j < 12; ++j) y[(i * 12 + j) * 1024 + threadIdx.x] = sums[i][j];
    }
    extern "C" __global__ void indexed(float* x, int n)
    {
        float values[50];
        for (int i = 0; i < n; ++i) values[i] = x[i];
        x[0] = values[n / 2];
    }
    extern "C" __global__ void shared(float* x)
    {
        __shared__ float values[100];
        values[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = values[99 - threadIdx.x];
    }
    """
    kernels = compile_ptx_or_cubin(source, "sm_90").kernels
    assert kernels["crowded"].registers == 65536 // 1024
    assert kernels["crowded"].spill_stores > 0
    assert kernels["crowded"].spill_loads > 0
    assert kernels["indexed"].stack == 50 * 4
    assert (kernels["indexed"].static_shared, kernels["shared"].static_shared) == (0, 400)
    assert kernels["shared"].stack == 0


def test_nvrtc_errors_are_reported():
    with pytest.raises(RuntimeError, match=r'source.cu\(1\): error: identifier "y" is undefined'):
        compile_ptx_or_cubin('extern "C" __global__ void k(float* x) { *x = y; }')
    with pytest.raises(RuntimeError, match="invalid value for --gpu-architecture"):
        compile_ptx_or_cubin(RACE, "sm_1")
    negated = compile_ptx_or_cubin(
        'extern "C" __global__ void NAME(float* x) { *x = -*x; }', options=("-DNAME=negate",)
    )
    assert list(negated.kernels) == ["negate"]


@pytest.mark.parametrize("order", ORDERS)
def test_elementwise(order):
    module = compile_cuda(ELEMENTWISE)
    x = np.random.default_rng(0).normal(size=1000).astype("float32")
    y = np.zeros_like(x)
    module.launch("scale", (3,), (100,), [y, x, 1000, 0.1], order=order)
    np.testing.assert_array_equal(y, x * np.float32(0.1))
    module.launch("shift", (2, 1, 1), (128, 1, 1), [y, x, np.int64(1000), 2, True], order=order)
    np.testing.assert_array_equal(y, x * x + 2)
    module.launch("shift", (1,), (32,), [y, y, 500, np.float64(0.5), False], order=order)
    np.testing.assert_array_equal(y[:500], x[:500] * x[:500] + 2 + np.float32(0.5))
    np.testing.assert_array_equal(y[500:], x[500:] * x[500:] + 2)


@pytest.mark.parametrize("guard", [True, False])
def test_pointers_into_arrays(guard):
    module = compile_cuda(ELEMENTWISE)
    flat = np.arange(10, dtype="float32")
    arguments = [(flat, 6), (flat, 2), 4, 10.0]
    module.launch("scale", (1,), (4,), arguments, guard=guard)
    np.testing.assert_array_equal(flat, [0, 1, 2, 3, 4, 5, 20, 30, 40, 50])
    fixed = flat[:5]
    fixed.flags.writeable = False
    module.launch("scale", (1,), (4,), [flat[5:], fixed, 5, 1.0], guard=guard)
    np.testing.assert_array_equal(flat, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_blocks", [1, 7, 64])
def test_the_last_block_finishes_a_sum(n_blocks, order):
    module = compile_cuda(SUM)
    x = np.random.default_rng(0).normal(size=10_000).astype("float32")
    for values in (x, x[:13]):  # the second launch finds the counter as the first one did
        total = np.full(1, np.nan)
        module.launch(
            "sum", (n_blocks,), (64,), [total, np.full(n_blocks, np.nan), values, len(values)],
            order=order,
        )  # fmt: skip
        # 10,000 terms in a tree of float64: 1e-12 is far from both rounding and a lost term.
        np.testing.assert_allclose(total, [values.sum(dtype="float64")], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_dynamic_shared_memory(order):
    x = np.random.default_rng(0).normal(size=(5, 33))
    expected = x[:, ::-1].copy()
    compile_cuda(REVERSE).launch("reverse", (5,), (33,), [x], 33 * 8, order)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_positions_in_three_dimensions(order):
    out = np.zeros((4, 3, 2, 3, 4, 2), "uint32")  # slowest first: blocks z, y, x, threads z, y, x
    compile_cuda(POSITIONS).launch("positions", (2, 3, 4), (2, 4, 3), [out], order=order)
    z, y, x, k, j, i = np.indices(out.shape)
    np.testing.assert_array_equal(out, 10000 * x + 1000 * y + 100 * z + 16 * i + 4 * j + k)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions(dtype):
    x = np.dtype(dtype).type(0.7)
    y = np.zeros(14, dtype)
    compile_cuda(FUNCTIONS).launch(f"functions{8 * x.itemsize}", (1,), (1,), [y, x])
    exact = np.float64(x)
    functions = (np.exp, np.log, np.tanh, np.sqrt, np.abs, np.expm1, np.log1p)
    expected = [function(exact) for function in functions]
    expected += [exact * exact + exact, 0.5, exact, exact, 0, 0, exact]
    # The C library and NumPy are each within 2 units in the last place.
    np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps)
    if dtype == "float32":
        np.testing.assert_array_equal(y[[8, 9, 10]], [np.float32(0.5), x, x])


def test_bits():
    high, words = np.zeros(1, "uint64"), np.zeros(4, "uint32")
    x = np.array([2.0**-13], "float32")
    compile_cuda(FUNCTIONS).launch("bits", (1,), (1,), [high, words, x, -1, 65535])
    assert high[0] == 2**64 - 2
    np.testing.assert_array_equal(words, [65534, x.view("uint32")[0], 0x40490FDB + 0xFFFF, 0])
    x[0] = 2.0**-11
    compile_cuda(FUNCTIONS).launch("bits", (1,), (1,), [high, words, x, -1, 65535])
    assert words[3] == 1


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order):
    counts, numbers, total = np.zeros(4, "uint32"), np.full(2, -50, "int32"), np.zeros(1, "float32")
    places = np.zeros(40, "int32")
    arguments = [counts, numbers, total, places]
    compile_cuda(ATOMICS).launch("atomics", (8,), (5,), arguments, order=order)
    np.testing.assert_array_equal(counts, [40, 39, 2**32 - 1, 7])
    np.testing.assert_array_equal(numbers, [-90, 0])
    np.testing.assert_array_equal(total, [20.0])
    blocks, threads = places.reshape(8, 5) // 5, places.reshape(8, 5) % 5
    assert (blocks == blocks[:, :1]).all()
    assert (threads == threads[0]).all()
    for given, n in ((blocks[:, 0], 8), (threads[0], 5)):
        ordered = {"forward": range(n), "reversed": range(n)[::-1]}
        if order in ordered:
            np.testing.assert_array_equal(given, ordered[order])
        else:
            np.testing.assert_array_equal(np.sort(given), range(n))
            assert given.tolist() not in (list(range(n)), list(range(n))[::-1])


@pytest.mark.parametrize("order", ORDERS)
def test_a_divergent_barrier_is_an_error(order):
    module = compile_cuda(DIVERGENT)
    x = np.zeros(4, "float32")
    for n in (0, 4):
        module.launch("divergent", (2,), (4,), [x, n, False], order=order)
        np.testing.assert_array_equal(x, [float(n == 4)] * 4)
    where = r"divergent: not all threads of block \(\d, 0, 0\) reach the barrier in line 6"
    with pytest.raises(
        RuntimeError, match=rf"{where}.* \(0, 0, 0\) .* \(2, 0, 0\) waits in line 11"
    ):
        module.launch("divergent", (2,), (4,), [x, 2, False], order=order)
    with pytest.raises(RuntimeError, match=rf"{where}.* \(0, 0, 0\) .* \(3, 0, 0\) returns"):
        module.launch("divergent", (2,), (4,), [x, 3, True], order=order)
    module.launch("divergent", (2,), (4,), [x, 4, True], order=order)  # nothing is left behind


def test_writing_out_of_bounds_is_an_error():
    module = compile_cuda(BEYOND)
    x = np.zeros(6, "float32")
    module.launch("increment", (2,), (6,), [x, 0])
    np.testing.assert_array_equal(x, 2.0)
    for first, element in ((-1, -1), (1, 6), (500, 500), (-500, -500)):
        match = f"writes to element {element} of argument 0, which has 6"
        with pytest.raises(RuntimeError, match=f"increment {match}"):
            module.launch("increment", (1,), (6,), [x, first])
        with pytest.raises(RuntimeError, match=f"increment64 {match}"):
            module.launch("increment64", (1,), (1,), [np.zeros(6), element])
    np.testing.assert_array_equal(x, 2.0)
    module.launch("fill_shared", (2,), (32,), [100], shared_bytes=100)
    with pytest.raises(RuntimeError, match=r"writes to byte 99 of 99 bytes of dynamic shared"):
        module.launch("fill_shared", (2,), (32,), [100], shared_bytes=99)


@pytest.mark.parametrize("i", [0, 1])
def test_shared_memory_starts_unwritten_in_every_block(i):
    x, y = np.zeros((3, 3), "float32"), np.zeros(3)
    compile_cuda(UNWRITTEN).launch("read_shared", (3,), (1,), [x, y, i], shared_bytes=8)
    np.testing.assert_array_equal(x, [[1, 2, np.nan], [np.nan] * 3, [np.nan] * 3])
    np.testing.assert_array_equal(y, [1, np.nan, np.nan])


def test_a_missing_barrier_shows_in_another_order():
    results = []
    for order in ("forward", "reversed"):
        results.append(np.arange(64, dtype="float32"))
        compile_cuda(RACE).launch("race", (1,), (64,), [results[-1]], order=order)
    np.testing.assert_array_equal(results[0], np.arange(64) // 2)
    assert np.isnan(results[1][1:]).all()


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("*x = *x * 0.5;", r"source.cu:1:.*double"),
        ("*x = \n exp(*x) + 1.0;", r"source.cu:2:.*double"),
        ("*x = y;", "source.cu:1:.*y"),
        (
            "float much[9999]; for (float& y : much) y = *x; *x = much[int(*x)];",
            "frame size",
        ),
    ],
)
def test_what_does_not_compile(body, match):
    with pytest.raises(RuntimeError, match=match):
        compile_cuda(f'extern "C" __global__ void k(float* x) {{ {body} }}')


def test_sources_that_are_not_understood():
    with pytest.raises(ValueError, match="no kernel"):
        compile_cuda('// extern "C" __global__ void k() {}\n__global__ void k2() {}')
    with pytest.raises(ValueError, match="dynamic shared memory is to be declared as"):
        compile_cuda('extern __shared__ float tile[];\nextern "C" __global__ void k() {}')
    with pytest.raises(RuntimeError, match="parameters are numbers and pointers to numbers"):
        compile_cuda('struct S { int i; };\nextern "C" __global__ void k(S* s) {}')


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"name": "no"}, ValueError, "no kernel 'no': the source has scale, shift"),
        ({"grid": (0,)}, ValueError, "grid is up to three numbers"),
        ({"grid": (1, 65536)}, ValueError, "grid is up to three numbers"),
        ({"block": (1, 1, 65)}, ValueError, "block is up to three numbers"),
        ({"block": (129,)}, ValueError, "scale takes at most 128 threads, got 129"),
        ({"name": "shift", "block": (129,)}, ValueError, "shift takes at most 128 threads"),
        ({"shared_bytes": 227 * 1024 + 1}, ValueError, "shared_bytes is 0 to 232448"),
        ({"arguments": []}, ValueError, "scale takes 4 arguments, got 0"),
        (
            {0: np.zeros(8)},
            TypeError,
            "argument 0 of scale is to be an array of float32, got float64",
        ),
        ({0: 3}, TypeError, "argument 0 of scale is to be an array of float32, got int"),
        (
            {1: np.zeros((8, 2), "float32")[:, 0]},
            ValueError,
            "argument 1 of scale is not contiguous",
        ),
        ({0: np.broadcast_to(np.float32(0), (1,))}, ValueError, "argument 0 .* read-only"),
        (
            {1: (np.zeros(8, "float32"), 9)},
            ValueError,
            "argument 1 .* 8 elements, got the offset 9",
        ),
        ({2: 1.0}, TypeError, "argument 2 of scale is to be a number of int32, got 1.0"),
        ({2: 2**31}, OverflowError, "out of bounds for int32"),
        ({2: np.int64(2**31)}, OverflowError, "out of bounds for int32"),
        ({3: np.zeros(1)}, TypeError, "argument 3 of scale is to be a number of float32"),
    ],
)
def test_bad_launches(change, error, match):
    good = {"name": "scale", "grid": (1,), "block": (1,), "shared_bytes": 0}
    arguments = [np.zeros(8, "float32"), np.zeros(8, "float32"), 8, 1.0]
    arguments = [change.get(i, argument) for i, argument in enumerate(arguments)]
    if "name" in change and change["name"] == "shift":
        arguments.append(False)
    named = {key: value for key, value in change.items() if isinstance(key, str)}
    with pytest.raises(error, match=match):
        compile_cuda(ELEMENTWISE).launch(**{**good, "arguments": arguments, **named})


def test_arrays_that_overlap_in_part_are_refused():
    flat = np.zeros(9, "float32")
    with pytest.raises(ValueError, match="argument 1 of scale overlaps argument 0 in part"):
        compile_cuda(ELEMENTWISE).launch("scale", (1,), (1,), [flat[:8], flat[1:], 8, 1.0])


def test_missing_tools_skip_unless_required(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("nvrtc._find", lambda: None)
    missing = (lambda: compile_cuda.__wrapped__(RACE), _library.__wrapped__)
    for required, outcome in (("0", pytest.skip.Exception), ("1", pytest.fail.Exception)):
        monkeypatch.setenv("NNBACKEND_REQUIRE_ORACLES", required)
        for use in missing:
            with pytest.raises(outcome, match="is not installed"):
                use()

"""The generated kernels, one by one: on a GPU, and compiled as C++; and their machine code."""

import numpy as np
import pytest
from cuda_executor import HostExecutor, from_bfloat16
from devices import CUDA_MARKS, to_host
from factories import N_OUTPUTS, PROBLEMS
from hypothesis import given
from hypothesis import strategies as st
from nvrtc import compile_ptx_or_cubin

import nnbackend as nb
from nnbackend.bench.workload import WORKLOADS
from nnbackend.device import get_device
from nnbackend.engines.base import Problem
from nnbackend.engines.cuda.engine import _generator_words
from nnbackend.engines.cuda.kernels import CudaKernels
from nnbackend.engines.cuda.plan import Buffer, Kernel, Matrix, Vector
from nnbackend.engines.cuda.planner import _column_grid, _element_grid
from nnbackend.engines.cuda.runtime import CudaExecutor, signatures
from nnbackend.engines.cuda.tiny import TinyPlanner

pytestmark = pytest.mark.slow


def problem(hidden, output, options, sizes=(6, 7, 5), batch_size=16):
    options = dict(options)
    one_hot = options.pop("one_hot", False)
    net = nb.Network(
        [*sizes[: len(hidden) + 1], N_OUTPUTS[output]],
        hidden=hidden,
        output=output,
        dropout=options.pop("dropout", 0.0),
    )
    objective = net.objective(
        options.pop("loss", None), options.pop("l1", 0.0), options.pop("l2", 0.0)
    )
    optimizer = options.pop("optimizer")
    return Problem(objective, optimizer, batch_size, **options), output == "softmax" and not one_hot


DROPOUT = problem(*PROBLEMS[7])[0]


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=CUDA_MARKS)])
def make(request):
    """Return a function that makes an executor with the kernels of a problem with dropout."""

    def make(dtype, precision):
        if request.param == "gpu":
            executor = CudaExecutor(get_device("cuda"), precision)
        else:
            executor = HostExecutor(None, precision)
        executor.load(CudaKernels(DROPOUT, dtype, precision, labels=False).source)
        return executor

    return make


def run(executor, kernel, **arrays):
    """Run one kernel on arrays by name, and return them as they are then."""
    executor.allocate({name: Buffer(x.size, x.dtype.name) for name, x in arrays.items()})
    with executor.ordered():
        for name, x in arrays.items():
            executor.upload(name, x.reshape(-1))
        executor.run([kernel])
    return {name: to_host(executor.buffers[name]) for name in arrays}


def vector(name, x):
    return Vector(name, x.size, 0, x.dtype.name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_masks_are_made_of_the_numbers_that_numpy_draws(make, dtype):
    rng = np.random.default_rng(7)
    executor = make(dtype, dtype)
    words = _generator_words(rng)
    drawn = 0
    # Odd numbers: in float32 a mask may begin with the second half of 64 random bits.
    for rows, columns, ld in ((7, 5, 8), (301, 33, 36), (2, 3, 4)):
        uniform = rng.random((rows, columns), dtype=dtype)
        rate = 0.3
        mask = np.full((rows, ld), -1, dtype)
        counters = np.asarray([0, 0, drawn - 10])
        kernel = Kernel(
            "draw_mask",
            (-(-rows * columns // (256 * 32)), 1),
            (256, 1),
            (
                Matrix("mask", rows, columns, ld, 0, dtype), rows, columns, ld, rate,
                vector("words", words), vector("counters", counters), 10,
            ),
        )  # fmt: skip
        found = run(executor, kernel, mask=mask, words=words, counters=counters)["mask"]
        found = found.reshape(rows, ld)
        expected = (uniform >= np.asarray(rate, dtype)) / (1 - rate)
        np.testing.assert_allclose(found[:, :columns], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[:, columns:], -1)
        drawn += rows * columns


@given(rows=st.integers(1, 700), columns=st.integers(1, 90), seed=st.integers(0, 9))
def test_column_sums_of_any_shape(make, rows, columns, seed):
    executor = make("float64", "float64")
    ld = columns + seed % 3
    Z = np.random.default_rng(seed).standard_normal((rows, ld))
    grid, block = _column_grid(rows, columns)
    sums, arrived = np.zeros(columns), np.zeros(grid[0], np.uint32)
    partial = np.full(grid[1] * columns, np.nan)
    kernel = Kernel(
        "column_sums",
        grid,
        block,
        (
            Matrix("Z", rows, columns, ld, 0, "float64"), rows, columns, ld,
            vector("sums", sums), vector("partial", partial), vector("arrived", arrived),
        ),
    )  # fmt: skip
    found = run(executor, kernel, Z=Z, sums=sums, partial=partial, arrived=arrived)
    # A sum of some hundred numbers of size 1, in another order.
    np.testing.assert_allclose(found["sums"], Z[:, :columns].sum(axis=0), rtol=1e-12, atol=1e-12)
    assert not found["arrived"].any()


def test_operands_are_the_nearest_bfloat16(make, torch):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    # Halfway between two: to the even one; and the last ones before infinity.
    bits[:3] = 0x3F808000, 0x3F818000, 0x7F7FFFFF
    X = bits.view(np.float32)
    executor = make("float32", "bfloat16")
    grid, block = _element_grid(100, 200)
    kernel = Kernel(
        "convert",
        grid,
        block,
        (Matrix("X", 100, 200, 200), 100, 200, 200, 200, Vector("out", X.size, 0, "bfloat16")),
    )
    found = run(executor, kernel, X=X, out=np.zeros(X.size, np.uint16))["out"]
    expected = torch.tensor(X).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(from_bfloat16(found), expected)


# What an epoch's end finds: its loss, a parameter, whether an epoch before was bad.
@pytest.mark.parametrize("loss", [1.5, np.nan, np.inf])
@pytest.mark.parametrize("parameter", [2.0, np.nan, -np.inf])
@pytest.mark.parametrize("was_bad", [0, 1])
def test_the_end_of_an_epoch_keeps_good_parameters_alone(make, loss, parameter, was_bad):
    executor = make("float32", "float32")
    parameters = np.ones(700, np.float32)
    parameters[433] = parameter
    n = parameters.size
    arrays = {
        "parameters": parameters,
        "finite": np.zeros(n, np.float32),
        "sums": np.asarray([loss * 4.0, 4.0]),
        "losses": np.zeros(5),
        "status": np.asarray([2, was_bad, 0, 3], np.uint32),
        "arrived": np.zeros(1, np.uint32),
    }
    places = {name: vector(name, x) for name, x in arrays.items()}
    size = (3, 1), (256, 1)
    found = run(
        executor,
        Kernel(
            "find_nonfinite", *size, (places["parameters"], n, places["status"])
        ),
        **arrays,
    )  # fmt: skip
    arguments = (places["parameters"], n, *(places[name] for name in list(arrays)[1:]))
    found = run(executor, Kernel("finish_epoch", *size, arguments), **found)
    is_good = np.isfinite(loss) and np.isfinite(parameter) and not was_bad
    np.testing.assert_array_equal(found["finite"], parameters if is_good else 0)
    np.testing.assert_array_equal(found["losses"], [0, 0, 0, loss, 0])
    assert found["status"].tolist() == [2 + (not was_bad), int(not is_good), 0, 4]
    assert found["sums"].tolist() == [0, 0]


def sources():
    """Return sources of all kinds: name, text, and most registers of a thread."""
    found = []
    for index, (hidden, output, options) in enumerate(PROBLEMS):
        dtype, precision = [
            ("float32", "float32"),
            ("float64", "float64"),
            ("float32", "bfloat16"),
        ][index % 3]
        case, labels = problem(hidden, output, options)
        name = "-".join([*hidden, output, precision])
        kernels = CudaKernels(case, dtype, precision, labels=labels)
        # 256 threads of 64 registers: four blocks on a multiprocessor; in float64 two.
        found.append(pytest.param(kernels.source, 64 if dtype == "float32" else 96, id=name))
    for name in ("planar", "small"):
        workload = WORKLOADS[name]
        case = Problem(workload.network().objective(), workload.optimizer, workload.batch_size)
        tiny = TinyPlanner(
            case, dtype="float32", n_samples=workload.n_samples, labels=False, weighted=False
        )
        # 512 threads, one block.
        found.append(pytest.param(tiny.source, 128, id=name))
    return found


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(("source", "most_registers"), sources())
def test_kernels_compile_and_keep_to_their_registers(source, most_registers, architecture):
    compiled = compile_ptx_or_cubin(source, architecture)
    assert set(compiled.kernels) == set(signatures(source))
    for name, resources in compiled.kernels.items():
        assert resources.registers <= most_registers, (name, resources)
        # ptxas may keep a few numbers that are used after a loop in memory meanwhile.
        assert resources.spill_stores <= 32, (name, resources)
        assert resources.static_shared <= 16 * 1024, (name, resources)


def test_signatures_say_how_numbers_are_passed():
    source = CudaKernels(DROPOUT, "float32", "float32", labels=False).source
    assert signatures(source)["draw_mask"] == [
        "real*", "int", "int", "int", "float", "const uint64*", "const int64*", "int64",
    ]  # fmt: skip

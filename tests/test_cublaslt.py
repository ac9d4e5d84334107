"""The layer over cuBLASLt: against its headers, the library itself, and its emulation in NumPy."""

import ctypes
import gc
import importlib
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from backends import require
from cublaslt_emulation import Emulation
from devices import needs_cuda

from nnbackend.core.activations import ACTIVATIONS
from nnbackend.engines.cuda import cublaslt
from nnbackend.engines.cuda.cublaslt import (
    CublasLt,
    CublasLtError,
    Descriptors,
    Prepared,
    layout,
    load_library,
)
from nnbackend.engines.cuda.plan import Epilogue, Matrix, Product, Vector
from nnbackend.errors import InputError

BITS = {"float32": 32, "float64": 64, "bfloat16": 16, "bit": 1}
PRECISIONS = ["float32", "tf32", "bfloat16", "float64"]
FORWARD, BACK, WEIGHTS, BOTH = TRANSPOSES = [
    (False, False), (False, True), (True, False), (True, True),
]  # fmt: skip
# What a training step asks for: A W forward, dZ W^T back, A^T dZ for the weights.
PURPOSES = [
    (Epilogue.NONE, FORWARD),
    (Epilogue.NONE, BACK),
    (Epilogue.NONE, WEIGHTS),
    (Epilogue.BIAS, FORWARD),
    (Epilogue.RELU_BIAS, FORWARD),
    (Epilogue.RELU_AUX_BIAS, FORWARD),
    (Epilogue.GELU_AUX_BIAS, FORWARD),
    (Epilogue.DRELU_BGRAD, BACK),
    (Epilogue.DGELU_BGRAD, BACK),
    (Epilogue.BGRAD_B, WEIGHTS),
]
BIT_AUX = (Epilogue.RELU_AUX_BIAS, Epilogue.DRELU_BGRAD)
GELU = (Epilogue.GELU_AUX_BIAS, Epilogue.DGELU_BGRAD)
FORWARD_AUX = (Epilogue.RELU_AUX_BIAS, Epilogue.GELU_AUX_BIAS)
BIASED = (Epilogue.BIAS, Epilogue.RELU_BIAS, *FORWARD_AUX)


# Products, their data in host memory, and what they mean ------------------------------------------


def make_product(
    epilogue, precision, transposes, *, rows=7, k=5, columns=3, pad=0, offset=0, aux_pad=False
):
    """Return a product whose matrices have padded rows and start within their buffers."""
    operands = "bfloat16" if precision == "bfloat16" else "float32"
    result = "float32"
    if precision == "float64":
        operands = result = "float64"
    shape_A = (k, rows) if transposes[0] else (rows, k)
    shape_B = (columns, k) if transposes[1] else (k, columns)
    aux = None
    if epilogue in (*BIT_AUX, *GELU):
        dtype, multiple = ("bit", 128) if epilogue in BIT_AUX else (result, 8)
        ld = (-(-columns // multiple) + aux_pad) * multiple
        aux = Matrix("aux", rows, columns, ld, 128 * offset, dtype)
    return Product(
        Matrix("A", *shape_A, shape_A[1] + pad, offset, operands),
        Matrix("B", *shape_B, shape_B[1] + 2 * pad, 2 * offset, operands),
        Matrix("out", rows, columns, columns + 3 * pad, 3 * offset, result),
        *transposes,
        precision,
        epilogue,
        None if epilogue is Epilogue.NONE else Vector("vector", columns, offset, result),
        aux,
    )


def parts(product):
    """Return the product's matrices and its vector, as a matrix of one row, by name."""
    found = {"A": product.A, "B": product.B, "out": product.out}
    if (v := product.vector) is not None:
        found["vector"] = Matrix(v.buffer, 1, v.size, v.size, v.offset, v.dtype)
    if product.aux is not None:
        found["aux"] = product.aux
    return found


def get(memory, matrix):
    """Return the elements of a row-major matrix in float64, bits as booleans."""
    data = memory[matrix.buffer]
    if matrix.dtype == "bit":
        stored = np.unpackbits(data, bitorder="little").astype(bool)
    elif matrix.dtype == "bfloat16":
        stored = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        stored = data.view(matrix.dtype).astype(np.float64)
    return stored[_places(matrix)]


def put(memory, matrix, values):
    """Store elements of a row-major matrix."""
    data = memory[matrix.buffer]
    places = _places(matrix)
    if matrix.dtype == "bit":
        stored = np.unpackbits(data, bitorder="little")
        stored[places] = values
        data[:] = np.packbits(stored, bitorder="little")
    elif matrix.dtype == "bfloat16":
        bits = np.asarray(values, np.float32).view(np.uint32)
        assert not np.any(bits & 0xFFFF)
        data.view(np.uint16)[places] = bits >> 16
    else:
        data.view(matrix.dtype)[places] = values


def _places(matrix):
    i, j = np.indices((matrix.rows, matrix.columns))
    return matrix.offset + i * matrix.ld + j


def make_memory(product, seed=0):
    """Return buffers that hold the inputs; the rest, and all outputs, are NaN or odd bits.

    The numbers are small multiples of 1/8, so that sums are exact in whatever order and precision,
    and no pre-activation is 0.
    """
    rng = np.random.default_rng(seed)
    memory = {}
    for matrix in parts(product).values():
        n_bits = (matrix.offset + matrix.rows * matrix.ld) * BITS[matrix.dtype]
        poison = 0xAA if matrix.dtype == "bit" else 0xFF
        memory[matrix.buffer] = np.full(-(-n_bits // 64) * 8 + 64, poison, np.uint8)
    put(memory, product.A, rng.integers(-3, 4, (product.A.rows, product.A.columns)) / 4)
    put(memory, product.B, rng.integers(-3, 4, (product.B.rows, product.B.columns)) / 2)
    if product.epilogue in BIASED:
        vector = parts(product)["vector"]
        put(memory, vector, rng.integers(-8, 8, (1, vector.columns)) / 8 + 1 / 16)
    if product.epilogue is Epilogue.DRELU_BGRAD:
        put(memory, product.aux, rng.random((product.out.rows, product.out.columns)) < 0.5)
    if product.epilogue is Epilogue.DGELU_BGRAD:
        put(memory, product.aux, rng.integers(-32, 32, (product.out.rows, product.out.columns)) / 8)
    return memory


def factors(product, memory):
    """Return op(A) and op(B)."""
    A, B = get(memory, product.A), get(memory, product.B)
    return A.T if product.transpose_A else A, B.T if product.transpose_B else B


def meaning(product, memory):
    """Return what a product writes, by the name of the part: the text of ``plan.Epilogue``."""
    A, B = factors(product, memory)
    T = A @ B
    epilogue = product.epilogue
    if epilogue in BIASED:
        T = T + get(memory, parts(product)["vector"])
    if epilogue is Epilogue.RELU_BIAS:
        return {"out": np.maximum(T, 0)}
    if epilogue is Epilogue.RELU_AUX_BIAS:
        return {"out": np.maximum(T, 0), "aux": T > 0}
    if epilogue is Epilogue.GELU_AUX_BIAS:
        return {"out": ACTIVATIONS["gelu"].function(np, T), "aux": T}
    if epilogue is Epilogue.BGRAD_B:
        return {"out": T, "vector": B.sum(axis=0, keepdims=True)}
    if epilogue in (Epilogue.DRELU_BGRAD, Epilogue.DGELU_BGRAD):
        aux = get(memory, product.aux)
        if epilogue is Epilogue.DGELU_BGRAD:
            aux = ACTIVATIONS["gelu"].derivative(np, aux, None)
        return {"out": T * aux, "vector": (T * aux).sum(axis=0, keepdims=True)}
    return {"out": T}


def assert_done(product, before, after, gelu_error=0.0):
    """Assert that a product wrote what it means, and nothing else.

    ``gelu_error`` is the relative error of a tanh; all else has to be exact.
    """
    expected = meaning(product, before)
    rebuilt = {name: data.copy() for name, data in before.items()}
    for name, values in expected.items():
        matrix = parts(product)[name]
        actual = get(after, matrix)
        if product.epilogue in GELU and name != "aux":
            z = np.abs(get(after, product.aux))
            scale = z
            if product.epilogue is Epilogue.DGELU_BGRAD:
                A, B = factors(product, before)
                scale = (1 + 2 * z) * (np.abs(A) @ np.abs(B))
            if name == "vector":
                scale = scale.sum(axis=0, keepdims=True)
            rounding = 16 * np.finfo(product.out.dtype).eps
            assert np.all(np.abs(actual - values) <= (gelu_error + rounding) * (scale + 1)), name
        else:
            np.testing.assert_array_equal(actual, values, err_msg=name)
        put(rebuilt, matrix, actual)
        if matrix.dtype == "bit":  # the rest of a row of bits is the epilogue's to write
            row = replace(matrix, columns=matrix.ld)
            put(rebuilt, row, get(after, row))
    for name, data in rebuilt.items():
        np.testing.assert_array_equal(after[name], data, err_msg=f"beyond {name}")


@pytest.fixture
def emulate(monkeypatch):
    def start(**options):
        emulation = Emulation(**options)
        monkeypatch.setattr(cublaslt, "load_library", lambda: emulation)
        return emulation

    return start


def copied(memory):
    return {name: data.copy() for name, data in memory.items()}


def addresses(memory):
    return {name: data.ctypes.data for name, data in memory.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("epilogue", "transposes"),
    [
        (epilogue, transposes)
        for epilogue in Epilogue
        for transposes in TRANSPOSES
        if epilogue is not Epilogue.BGRAD_B or not transposes[1]
    ],
)
def test_a_product_in_columns_is_what_it_means_in_rows(emulate, epilogue, transposes, precision):
    emulate()
    for seed, sizes in enumerate(
        (
            {},
            {"pad": 2, "offset": 3, "aux_pad": True},
            {"rows": 1, "pad": 1},
            {"columns": 1, "k": 1, "offset": 1},
            {"rows": 4, "k": 3, "columns": 131, "pad": 1, "offset": 1},
        )
    ):
        product = make_product(epilogue, precision, transposes, **sizes)
        before = make_memory(product, seed)
        after = copied(before)
        CublasLt(0, 0).prepare(product, addresses(after)).run(0)
        assert_done(product, before, after)


def test_a_layout_says_how_large_the_product_is():
    product = make_product(Epilogue.BGRAD_B, "float64", WEIGHTS, rows=7, k=5, columns=3, offset=2)
    shape = layout(product)
    assert (shape.m, shape.n, shape.k) == (3, 7, 5)
    assert (shape.A.place.buffer, shape.A.place.offset) == ("B", 4 * 8)
    assert (shape.A.rows, shape.A.columns, shape.transa) == (3, 5, cublaslt.CUBLAS_OP_N)
    assert (shape.B.rows, shape.B.columns, shape.transb) == (7, 5, cublaslt.CUBLAS_OP_T)
    assert shape.aux is None
    assert shape.aux_ld == 0


RELU = make_product(Epilogue.RELU_AUX_BIAS, "float32", FORWARD)
DGELU = make_product(Epilogue.DGELU_BGRAD, "float64", BACK)


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (replace(RELU, precision="half"), "precision: unknown name 'half'"),
        (replace(RELU, precision="bfloat16"), "A: expected bfloat16 .*, got float32"),
        (replace(RELU, precision="float64"), "A: expected float64 .*, got float32"),
        (replace(DGELU, out=replace(DGELU.out, dtype="float32")), "out: expected float64"),
        (replace(RELU, B=replace(RELU.B, ld=2)), "B: expected ld >= 3, got 2"),
        (replace(RELU, transpose_A=True), r"out: .* \(5, 7\) times \(5, 3\).*, got \(7, 3\)"),
        (replace(RELU, out=replace(RELU.out, rows=6)), r"out: .*, got \(6, 3\)"),
        (replace(RELU, out=replace(RELU.out, columns=2)), r"out: .*, got \(7, 2\)"),
        (
            replace(RELU, A=replace(RELU.A, columns=0), B=replace(RELU.B, rows=0)),
            "out: .* none of them empty",
        ),
        (replace(RELU, vector=None), "vector: .* with RELU_AUX_BIAS, got None"),
        (replace(RELU, vector=Vector("vector", 2)), r"vector: expected \(3, 'float32'\) with"),
        (replace(DGELU, vector=Vector("vector", 3)), r"vector: expected \(3, 'float64'\) with"),
        (replace(RELU, epilogue=Epilogue.NONE), "vector: expected None with NONE"),
        (replace(RELU, epilogue=Epilogue.RELU_BIAS), "aux: expected None with RELU_BIAS"),
        (replace(RELU, aux=None), r"aux: expected \(7, 3, 'bit'\) with .*, got None"),
        (replace(RELU, aux=replace(RELU.aux, dtype="float32")), "aux: expected .*'bit'"),
        (replace(RELU, aux=replace(RELU.aux, ld=64)), "aux: expected an ld .* of 128, got 64"),
        (replace(RELU, aux=replace(RELU.aux, ld=0)), "aux: expected an ld >= 3"),
        (replace(RELU, aux=replace(RELU.aux, offset=4)), "aux: expected an offset in whole bytes"),
        (replace(DGELU, aux=replace(DGELU.aux, ld=12)), "aux: expected an ld .* of 8, got 12"),
        (make_product(Epilogue.BGRAD_B, "float32", BOTH), "transpose_B: expected False with"),
    ],
)
def test_a_product_that_does_not_fit_is_refused(product, message):
    with pytest.raises(InputError, match=message):
        layout(product)


def test_a_prepared_product_runs_the_chosen_algorithm(emulate):
    emulation = emulate(states=(0, 15, 0))
    product = make_product(Epilogue.NONE, "float32", FORWARD, offset=1)
    memory = make_memory(product)
    lt = CublasLt(512, 4096)
    prepared = lt.prepare(product, addresses(memory))
    assert prepared.algorithms == 2
    prepared.run(7)
    prepared.choose(1)
    prepared.run(8)
    assert emulation.calls == [(0, 512, 4096, 7), (2, 512, 4096, 8)]
    with pytest.raises(IndexError):
        prepared.choose(2)
    in_use = len(emulation.objects)
    del prepared
    gc.collect()
    assert len(emulation.objects) == 1 < in_use
    del lt
    gc.collect()
    assert not emulation.objects


def test_the_search_knows_workspace_and_alignments_and_keeps_to_one_order_of_sums(emulate):
    emulation = emulate()
    product = make_product(Epilogue.NONE, "float32", FORWARD)
    at = {"A": 0x1004, "B": 0x2010, "out": 0x3000}
    CublasLt(0, 4096).prepare(product, at)
    preference = dict(emulation.preference)
    assert preference.pop("arguments") == ()
    # Of cuBLAS's A, which is B here, of its B, C and D; 1 would stand for reductions in place.
    assert preference == {1: 4096, 3: 2 | 4, 5: 16, 6: 4, 7: 256, 8: 256}


@pytest.mark.parametrize("options", [{"status": 15}, {"states": ()}, {"states": (15, 7)}])
def test_a_product_that_the_library_does_not_offer_is_none(emulate, options):
    emulate(**options)
    product = make_product(Epilogue.NONE, "float32", FORWARD)
    assert CublasLt(0, 0).prepare(product, addresses(make_memory(product))) is None


def test_a_failing_search_says_so(emulate):
    emulate(status=14)
    product = make_product(Epilogue.NONE, "float32", FORWARD)
    with pytest.raises(CublasLtError, match="cublasLtMatmulAlgoGetHeuristic failed: STATUS_14"):
        CublasLt(0, 0).prepare(product, addresses(make_memory(product)))


def test_an_unaligned_workspace_is_refused():
    with pytest.raises(InputError, match="workspace_pointer: expected a multiple of 256, got 384"):
        CublasLt(384, 4096)


@pytest.mark.parametrize("error", [ModuleNotFoundError("cuda"), RuntimeError("not found")])
def test_without_the_library_one_sentence_says_what_to_install(monkeypatch, error):
    def fail(name):
        assert name == "cuda.pathfinder"
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(CublasLtError, match=r"was not found.*install nnbackend\[cuda13\]"):
        load_library.__wrapped__()


# The headers --------------------------------------------------------------------------------------


def _miss(reason):
    if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
        pytest.fail(f"NNBACKEND_REQUIRE_ORACLES=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def headers():
    """Return the text of the headers without comments."""
    pathfinder = require("cuda.pathfinder")
    text = ""
    for package, name in (
        ("cudart", "library_types.h"),
        ("cublas", "cublas_api.h"),
        ("cublas", "cublasLt.h"),
    ):
        folder = pathfinder.find_nvidia_header_directory(package)
        if folder is None or not (path := Path(folder, name)).exists():
            _miss(f"{name} of the CUDA toolkit is not installed")
        text += path.read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


def test_every_constant_is_the_headers(headers):
    def value(name):
        (expression,) = set(re.findall(rf"\b{name} *= *([^,}}]+)", headers))
        terms = re.findall(r"\w+", expression)
        return sum(int(term, 0) if term[0].isdigit() else value(term) for term in terms)

    constants = {name: own for name, own in vars(cublaslt).items() if name.startswith("CU")}
    assert len(constants) > 30
    assert constants == {name: value(name) for name in constants}


C_TYPES = {
    "int": ctypes.c_int,
    "float": ctypes.c_float,
    "size_t": ctypes.c_size_t,
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
}


def _c_type(name, headers):
    """Return ctypes' name for an integer, an enumeration or a structure of the headers."""
    if name in C_TYPES:
        return C_TYPES[name]
    if re.search(rf"typedef enum (\w+\s*)?{{[^}}]*}} {name};|typedef enum {name}\b", headers):
        return ctypes.c_int
    body = re.search(rf"typedef struct {{([^}}]*)}} {name};", headers).group(1)
    fields = []
    for kind, field, count in re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body):
        each = _c_type(kind, headers)
        fields.append((field, each * int(count) if count else each))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (cublaslt._Algorithm, "cublasLtMatmulAlgo_t"),
        (cublaslt._HeuristicResult, "cublasLtMatmulHeuristicResult_t"),
    ],
)
def test_every_structure_is_the_headers(headers, own, name):
    theirs = _c_type(name, headers)
    assert [field for field, _ in own._fields_] == [field for field, _ in theirs._fields_]
    for field, _ in own._fields_:
        mine, their = getattr(own, field), getattr(theirs, field)
        assert (mine.offset, mine.size) == (their.offset, their.size)
    assert ctypes.sizeof(own) == ctypes.sizeof(theirs)


def test_every_function_is_declared_as_in_the_headers(headers):
    pointers = set(re.findall(r"typedef [^;{}]*\*\s*(\w+);", headers)) | {"cudaStream_t"}
    for name, own in cublaslt._FUNCTIONS.items():
        prototype = re.search(rf"(\S+) CUBLASWINAPI {name}\(([^)]*)\)", headers)
        result, arguments = prototype.groups()
        assert result == ("char*" if name.endswith("Name") else "cublasStatus_t")
        declared = []
        for argument in arguments.split(","):
            kind = re.sub(r"\bconst\b", "", argument).split()[0]
            is_pointer = "*" in argument or "[" in argument or kind in pointers
            declared.append("pointer" if is_pointer else _c_type(kind, headers))
        kinds = [
            "pointer" if each is ctypes.c_void_p or hasattr(each, "contents") else each
            for each in own
        ]
        assert kinds == declared, name


# The library itself, which describes products without a GPU ---------------------------------------


@pytest.fixture(scope="module")
def library():
    require("cuda.pathfinder")
    try:
        return load_library()
    except CublasLtError as error:
        _miss(str(error))


AT = {"A": 0x10000, "B": 0x20000, "out": 0x30000, "vector": 0x40000, "aux": 0x50000}


def _read(library, kind, handle, attribute, c_type):
    value = c_type()
    function = getattr(library, f"cublasLt{kind}GetAttribute")
    function.argtypes = (*cublaslt._SET_ATTRIBUTE, ctypes.c_void_p)
    written = ctypes.c_size_t()
    status = function(
        handle, attribute, ctypes.byref(value), ctypes.sizeof(value), ctypes.byref(written)
    )
    assert (status, written.value) == (0, ctypes.sizeof(value))
    return value.value


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("epilogue", "transposes"), PURPOSES)
def test_the_library_takes_every_attribute(library, epilogue, transposes, precision):
    product = make_product(epilogue, precision, transposes, pad=1, offset=3)
    shape = layout(product)
    made = Descriptors(library, shape, AT, 1 << 20)
    expected = [
        ("MatmulDesc", made.operation, 0, ctypes.c_int32, shape.compute_type),
        ("MatmulDesc", made.operation, 1, ctypes.c_int32, shape.scale_type),
        ("MatmulDesc", made.operation, 2, ctypes.c_int32, 0),  # alpha and beta on the host
        ("MatmulDesc", made.operation, 3, ctypes.c_int32, int(transposes[1])),
        ("MatmulDesc", made.operation, 4, ctypes.c_int32, int(transposes[0])),
        ("MatmulDesc", made.operation, 7, ctypes.c_uint32, shape.epilogue),
        ("MatmulPreference", made.preference, 1, ctypes.c_uint64, 1 << 20),
        ("MatmulPreference", made.preference, 3, ctypes.c_uint32, 6),
    ]
    if shape.bias:
        bias = AT["vector"] + shape.bias.offset
        expected.append(("MatmulDesc", made.operation, 8, ctypes.c_void_p, bias))
    if shape.aux:
        aux = AT["aux"] + shape.aux.offset
        expected.append(("MatmulDesc", made.operation, 11, ctypes.c_void_p, aux))
        expected.append(("MatmulDesc", made.operation, 12, ctypes.c_int64, shape.aux_ld))
    for handle, operand in ((made.A, shape.A), (made.B, shape.B), (made.D, shape.D)):
        expected += [
            ("MatrixLayout", handle, 0, ctypes.c_uint32, operand.data_type),
            ("MatrixLayout", handle, 1, ctypes.c_int32, 0),  # column-major
            ("MatrixLayout", handle, 2, ctypes.c_uint64, operand.rows),
            ("MatrixLayout", handle, 3, ctypes.c_uint64, operand.columns),
            ("MatrixLayout", handle, 4, ctypes.c_int64, operand.ld),
        ]
    for kind, handle, attribute, c_type, value in expected:
        assert _read(library, kind, handle, attribute, c_type) == value, (kind, attribute)
    for attribute, address in zip((5, 6, 7, 8), (*made.addresses, made.addresses[2]), strict=True):
        alignment = _read(library, "MatmulPreference", made.preference, attribute, ctypes.c_uint32)
        assert address % alignment == 0
        assert address % (2 * alignment) or alignment == 256


@pytest.fixture
def log(library):
    """Return what the library writes down of the calls that it gets."""
    entries = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
    keep = callback(lambda _level, name, text: entries.append((name.decode(), text.decode())))
    library.cublasLtLoggerSetCallback.argtypes = (callback,)
    assert library.cublasLtLoggerOpenFile(os.devnull.encode()) == 0
    assert library.cublasLtLoggerSetCallback(keep) == 0
    assert library.cublasLtLoggerSetLevel(5) == 0
    yield entries
    assert library.cublasLtLoggerSetLevel(0) == 0
    assert library.cublasLtLoggerSetCallback(callback()) == 0


COMPUTE_NAMES = {
    "float32": "COMPUTE_32F",
    "tf32": "COMPUTE_32F_FAST_TF32",
    "bfloat16": "COMPUTE_32F",
    "float64": "COMPUTE_64F",
}
TYPE_NAMES = {"float32": "R_32F", "float64": "R_64F", "bfloat16": "R_16BF"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("epilogue", "transposes"), PURPOSES)
def test_the_library_reads_a_product_as_meant(library, log, epilogue, transposes, precision):
    product = make_product(epilogue, precision, transposes, pad=1, offset=2)
    made = Descriptors(library, layout(product), AT, 1 << 20)
    # Without a handle the search fails, but not before it has written down what it was asked.
    status = library.cublasLtMatmulAlgoGetHeuristic(
        None, made.operation, made.A, made.B, made.D, made.D, made.preference, 1,
        (cublaslt._HeuristicResult * 1)(), ctypes.c_int(),
    )  # fmt: skip
    assert status == 1
    assert {name for name, text in log if "unknown" in text.lower()} <= {
        "cublasLtMatmulAlgoGetHeuristic"  # it has no name for two schemes of reduction at once
    }
    (text,) = (text for name, text in log if name == "cublasLtMatmulAlgoGetHeuristic")
    groups = {
        name: dict(each.split("=") for each in body.split())
        for name, body in re.findall(r"(\w+)=\[(.*?)\]", text)
    }
    for name, matrix in (("A", product.B), ("B", product.A), ("C", product.out)):
        assert groups[f"{name}desc"] == {
            "type": TYPE_NAMES[matrix.dtype],
            "rows": str(matrix.columns),
            "cols": str(matrix.rows),
            "ld": str(matrix.ld),
        }
    assert groups["Ddesc"] == groups["Cdesc"]
    operation = groups["computeDesc"]
    assert operation["computeType"] == COMPUTE_NAMES[precision]
    assert operation["scaleType"] == TYPE_NAMES[product.out.dtype]
    assert (operation.get("transa"), operation.get("transb")) == tuple(
        "OP_T" if each else None for each in (product.transpose_B, product.transpose_A)
    )
    theirs = {"none": None, "bgrad_b": "EPILOGUE_BGRADA"}
    assert operation.get("epilogue") == theirs.get(
        epilogue.value, f"EPILOGUE_{epilogue.value.upper()}"
    )
    size = BITS[product.out.dtype] // 8
    if product.vector:
        assert int(operation["biasPointer"], 0) == AT["vector"] + 2 * size
    if product.aux:
        assert int(operation["epilogueAuxLd"]) == product.aux.ld
        offset = 256 * BITS[product.aux.dtype] // 8
        assert int(operation["epilogueAuxPointer"], 0) == AT["aux"] + offset
    assert groups["preference"]["maxWorkspaceSizeinBytes"] == str(1 << 20)


def test_the_library_reads_the_arguments_of_a_launch_as_meant(library, log):
    shape = layout(make_product(Epilogue.NONE, "float32", FORWARD, offset=1))
    made = Descriptors(library, shape, AT, 1 << 20)
    algorithms = [cublaslt._Algorithm(), cublaslt._Algorithm()]
    no_handle = SimpleNamespace(library=library, handle=None, workspace=(0x60000, 1 << 20))
    prepared = Prepared(no_handle, made, ctypes.c_float, algorithms)
    prepared.choose(1)
    with pytest.raises(CublasLtError, match="cublasLtMatmul failed: CUBLAS_STATUS_NOT_INITIALIZED"):
        prepared.run(0x70000)
    (text,) = (text for name, text in log if name == "cublasLtMatmul")
    assert {name: int(value, 0) for name, value in re.findall(r"(\w+)=(\w+)", text)} == {
        "A": AT["B"] + 8,
        "B": AT["A"] + 4,
        "C": AT["out"] + 12,
        "D": AT["out"] + 12,
        "Adesc": made.A._as_parameter_.value,
        "Bdesc": made.B._as_parameter_.value,
        "Cdesc": made.D._as_parameter_.value,
        "Ddesc": made.D._as_parameter_.value,
        "computeDesc": made.operation._as_parameter_.value,
        "algo": ctypes.addressof(algorithms[1]),
        "workSpace": 0x60000,
        "workSpaceSizeInBytes": 1 << 20,
        "stream": 0x70000,
    }


def test_an_attribute_of_the_wrong_size_is_refused_by_name(library):
    shape = layout(make_product(Epilogue.NONE, "float32", FORWARD))
    made = Descriptors(library, shape, AT, 1 << 20)
    message = "cublasLtMatmulDescSetAttribute failed: CUBLAS_STATUS_INVALID_VALUE"
    with pytest.raises(CublasLtError, match=message):
        made.operation.set(cublaslt.CUBLASLT_MATMUL_DESC_TRANSA, ctypes.c_int64(1))


def test_the_library_is_called_with_checked_types(library):
    for name in cublaslt._FUNCTIONS:
        with pytest.raises((ctypes.ArgumentError, TypeError)):
            getattr(library, name)(1.5)


# On a GPU -----------------------------------------------------------------------------------------

# tanh in hardware has 11 bits, and the library's GELU uses it in every precision.
GELU_ERROR = 2.0**-10


@pytest.fixture
def lt():
    import cupy

    workspace = cupy.empty(32 << 20, cupy.uint8)
    yield CublasLt(workspace.data.ptr, workspace.nbytes)
    cupy.cuda.Device().synchronize()


def placed(memory):
    """Return the buffers on the GPU, and where they are."""
    import cupy

    on_gpu = {name: cupy.asarray(data) for name, data in memory.items()}
    return on_gpu, {name: data.data.ptr for name, data in on_gpu.items()}


def fetched(on_gpu):
    return {name: data.get() for name, data in on_gpu.items()}


def prepared_or_skip(lt, product, pointers):
    prepared = lt.prepare(product, pointers)
    if prepared is None:
        assert product.epilogue is not Epilogue.NONE
        pytest.skip("this GPU's cuBLASLt does not offer the product")
    return prepared


SIZES = {
    "even": {"rows": 64, "k": 96, "columns": 128},
    "odd": {"rows": 37, "k": 29, "columns": 43},
    "unaligned": {"rows": 37, "k": 29, "columns": 43, "pad": 2, "offset": 3, "aux_pad": True},
    "padded": {"rows": 64, "k": 96, "columns": 128, "pad": 8, "offset": 16, "aux_pad": True},
    "one column": {"rows": 50, "k": 20, "columns": 1},
    "one row": {"rows": 1, "k": 20, "columns": 30},
    "one term": {"rows": 20, "k": 1, "columns": 30},
    "wide": {"rows": 256, "k": 784, "columns": 1000},
}


@needs_cuda
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("epilogue", "transposes"), PURPOSES)
def test_every_algorithm_does_what_the_product_means(lt, epilogue, transposes, precision, sizes):
    import cupy

    product = make_product(epilogue, precision, transposes, **sizes)
    before = make_memory(product)
    on_gpu, pointers = placed(before)
    prepared = prepared_or_skip(lt, product, pointers)
    for index in range(prepared.algorithms):
        prepared.choose(index)
        for name, data in before.items():
            on_gpu[name].set(data)
        prepared.run(cupy.cuda.get_current_stream().ptr)
        assert_done(product, before, fetched(on_gpu), GELU_ERROR)


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("epilogue", "transposes"), PURPOSES)
def test_what_a_training_step_asks_for(lt, record_property, epilogue, transposes, precision):
    # An epilogue that is not offered costs a kernel; the product itself has to be there.
    product = make_product(epilogue, precision, transposes, rows=128, k=256, columns=512)
    _on_gpu, pointers = placed(make_memory(product))
    is_offered = lt.prepare(product, pointers) is not None
    answer = f"{epilogue.value} in {precision}: {'yes' if is_offered else 'no'}"
    record_property("cuBLASLt offers of 128 x 256 x 512", answer)
    assert is_offered or epilogue is not Epilogue.NONE


@needs_cuda
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("transposes", TRANSPOSES)
def test_each_precision_is_as_exact_as_its_name_says(lt, transposes, precision):
    import cupy

    # With few terms a float32 sum is far more exact than products of rounded operands would be.
    product = make_product(Epilogue.NONE, precision, transposes, rows=64, k=8, columns=64)
    memory = make_memory(product)
    rng = np.random.default_rng(0)
    for matrix in (product.A, product.B):
        values = rng.standard_normal((matrix.rows, matrix.columns))
        if matrix.dtype == "bfloat16":
            bits = values.astype(np.float32).view(np.uint32)
            values = (bits & np.uint32(0xFFFF0000)).view(np.float32)
        put(memory, matrix, values)
    on_gpu, pointers = placed(memory)
    lt.prepare(product, pointers).run(cupy.cuda.get_current_stream().ptr)
    A, B = factors(product, memory)
    bound = 16 * np.finfo(product.out.dtype).eps + (2.0**-9 if precision == "tf32" else 0.0)
    error = np.abs(get(fetched(on_gpu), product.out) - A @ B)
    assert np.all(error <= bound * (np.abs(A) @ np.abs(B)))


@needs_cuda
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("epilogue", "transposes"), PURPOSES)
def test_a_captured_product_runs_on_new_data(lt, epilogue, transposes, precision):
    import cupy

    product = make_product(epilogue, precision, transposes, rows=64, k=96, columns=128)
    first, second = make_memory(product, 1), make_memory(product, 2)
    on_gpu, pointers = placed(first)
    prepared = prepared_or_skip(lt, product, pointers)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    prepared.run(stream.ptr)
    stream.synchronize()
    for name, data in first.items():
        on_gpu[name].set(data)
    cupy.cuda.Device().synchronize()
    stream.begin_capture()
    prepared.run(stream.ptr)
    graph = stream.end_capture()
    for name, data in fetched(on_gpu).items():  # a capture runs nothing
        np.testing.assert_array_equal(data, first[name])
    del prepared
    gc.collect()
    for memory in (first, second, first):
        for name, data in memory.items():
            on_gpu[name].set(data)
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        assert_done(product, memory, fetched(on_gpu), GELU_ERROR)


@needs_cuda
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("epilogue", "transposes"),
    [
        (Epilogue.NONE, WEIGHTS),
        (Epilogue.BGRAD_B, WEIGHTS),
        (Epilogue.DRELU_BGRAD, BACK),
        (Epilogue.DGELU_BGRAD, BACK),
    ],
)
def test_every_algorithm_gives_the_same_bits_again(lt, epilogue, transposes, precision):
    import cupy

    # A long sum for few results is what an algorithm splits over blocks; where the sums of the
    # columns are the long ones, there are many rows.
    long, short = 20_000, 48
    rows, k = (short, long) if transposes == WEIGHTS else (long, short)
    product = make_product(epilogue, precision, transposes, rows=rows, k=k, columns=64)
    memory = make_memory(product)
    if precision != "bfloat16":
        rng = np.random.default_rng(0)
        for matrix in (product.A, product.B):
            put(memory, matrix, rng.standard_normal((matrix.rows, matrix.columns)))
    else:  # small multiples of 1/8 would be summed exactly
        scales = 2.0 ** -np.random.default_rng(0).integers(0, 20, (product.A.rows, 1))
        put(memory, product.A, get(memory, product.A) * scales)
    on_gpu, pointers = placed(memory)
    prepared = prepared_or_skip(lt, product, pointers)
    for index in range(prepared.algorithms):
        prepared.choose(index)
        results = []
        for _repeat in range(10):
            for name, data in memory.items():
                on_gpu[name].set(data)
            prepared.run(cupy.cuda.get_current_stream().ptr)
            results.append(fetched(on_gpu))
        for result in results[1:]:
            for name, data in result.items():
                np.testing.assert_array_equal(data, results[0][name])


@needs_cuda
@pytest.mark.parametrize("precision", PRECISIONS)
def test_relu_and_its_bits_at_special_values(lt, record_property, precision):
    import cupy

    values = np.tile([np.inf, -np.inf, 1.0, -1.0, 1e-30, 0.0, -0.0, np.nan], 4)
    product = make_product(Epilogue.RELU_AUX_BIAS, precision, FORWARD, rows=32, k=32, columns=32)
    memory = make_memory(product)
    put(memory, product.A, np.zeros((32, 32)))
    put(memory, parts(product)["vector"], values[None])
    on_gpu, pointers = placed(memory)
    prepared_or_skip(lt, product, pointers).run(cupy.cuda.get_current_stream().ptr)
    after = fetched(on_gpu)
    for part, expected in (("out", np.maximum(values, 0)), ("aux", values > 0)):
        found = get(after, parts(product)[part])
        np.testing.assert_array_equal(found, np.tile(found[0, :8], (32, 4)))
        np.testing.assert_array_equal(found[0, :5], expected[:5].astype(product.out.dtype))
        # The library documents neither what it makes of NaN nor the bit of a zero, which is known
        # to have been set; where they are not the core's, the engine does without the epilogue.
        answer = dict(zip(("0", "-0", "NaN"), map(float, found[0, 5:8]), strict=True))
        record_property(f"cuBLASLt's ReLU, {part}", f"{answer} in {precision}")

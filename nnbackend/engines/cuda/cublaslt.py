"""Run products on a GPU through cuBLASLt, with bias, activation and bias gradient in one kernel.

This is a thin layer of ``ctypes`` over the library that comes with CuPy. CuPy's own wrappers offer
few of these epilogues, and none within the capture of a CUDA graph.

Plans are row-major, cuBLAS is column-major. A row-major matrix read by columns is its transpose,
and out^T = op(B)^T op(A)^T. So cuBLAS's A is the plan's B and the reverse, each with the
transposition of the plan, and the plan's rows are cuBLAS's columns. ``layout`` translates a product
accordingly, and needs no library.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Mapping
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    sizeof,
)
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

from nnbackend.checks import lookup
from nnbackend.engines.cuda.plan import Epilogue, Matrix, Product, Vector
from nnbackend.errors import InputError, NNBackendError

__all__ = [
    "CublasLt",
    "CublasLtError",
    "Descriptors",
    "Layout",
    "Operand",
    "Place",
    "Prepared",
    "layout",
    "load_library",
]

# Constants of cublas_api.h, library_types.h and cublasLt.h, with which the tests compare them.
CUBLAS_STATUS_SUCCESS = 0
CUBLAS_STATUS_NOT_SUPPORTED = 15
CUBLAS_OP_N = 0
CUBLAS_OP_T = 1
CUBLAS_COMPUTE_32F = 68
CUBLAS_COMPUTE_32F_FAST_TF32 = 77
CUBLAS_COMPUTE_64F = 70
CUDA_R_32F = 0
CUDA_R_64F = 1
CUDA_R_16BF = 14
CUBLASLT_MATMUL_DESC_TRANSA = 3
CUBLASLT_MATMUL_DESC_TRANSB = 4
CUBLASLT_MATMUL_DESC_EPILOGUE = 7
CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8
CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11
CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12
CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2
CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4
CUBLASLT_EPILOGUE_DEFAULT = 1
CUBLASLT_EPILOGUE_BIAS = 4
CUBLASLT_EPILOGUE_RELU_BIAS = 6
CUBLASLT_EPILOGUE_RELU_AUX_BIAS = 134
CUBLASLT_EPILOGUE_DRELU_BGRAD = 152
CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164
CUBLASLT_EPILOGUE_DGELU_BGRAD = 208
CUBLASLT_EPILOGUE_BGRADA = 256

# If a sum is split over blocks, collect its parts in the workspace, where a separate kernel adds
# them, always in the same order. This excludes the scheme INPLACE, in which blocks take turns to
# add to the output in an undocumented order.
_REDUCTION_SCHEMES = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE

# The alignment that the library assumes by default, and requires of a workspace.
_ALIGNMENT = 256
_MAX_ALGORITHMS = 8


class _Algorithm(ctypes.Structure):
    _fields_: ClassVar = [("data", c_uint64 * 8)]


class _HeuristicResult(ctypes.Structure):
    _fields_: ClassVar = [
        ("algo", _Algorithm),
        ("workspaceSize", c_size_t),
        ("state", c_int),
        ("wavesCount", c_float),
        ("reserved", c_int * 4),
    ]


_SET_ATTRIBUTE = (c_void_p, c_int, c_void_p, c_size_t)

# The argument types of each function. All return a status, except cublasLtGetStatusName.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtGetStatusName": (c_int,),
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtDestroy": (c_void_p,),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatmulDescSetAttribute": _SET_ATTRIBUTE,
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": _SET_ATTRIBUTE,
    "cublasLtMatmulAlgoGetHeuristic": (
        *(c_void_p,) * 7, c_int, POINTER(_HeuristicResult), POINTER(c_int),
    ),
    "cublasLtMatmul": (
        *(c_void_p,) * 12, POINTER(_Algorithm), c_void_p, c_size_t, c_void_p,
    ),
}  # fmt: skip


class CublasLtError(NNBackendError, RuntimeError):
    """cuBLASLt is not installed, or one of its functions failed; the message names the status."""


@cache
def load_library() -> ctypes.CDLL:
    """Return cuBLASLt from CuPy's packages, with functions that check their arguments' types.

    Raises
    ------
    CublasLtError
        If it is not installed.
    """
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        library = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, RuntimeError, OSError) as error:
        raise CublasLtError(
            "cuBLASLt was not found; it comes with CuPy 14 and its extra 'ctk': install "
            f"nnbackend[cuda13] or nnbackend[cuda12] ({type(error).__name__})"
        ) from error
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int
    library.cublasLtGetStatusName.restype = c_char_p
    return library


def _check(library: ctypes.CDLL, name: str, status: int) -> None:
    if status != CUBLAS_STATUS_SUCCESS:
        raise CublasLtError(f"{name} failed: {library.cublasLtGetStatusName(status).decode()}")


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    _check(library, name, getattr(library, name)(*arguments))


@dataclass(frozen=True)
class Place:
    """The place where data begin: a number of bytes from the start of a buffer."""

    buffer: str
    offset: int

    def address(self, pointers: Mapping[str, int]) -> int:
        """Return the address of this place, given the addresses of all buffers."""
        return pointers[self.buffer] + self.offset


@dataclass(frozen=True)
class Operand:
    """A column-major matrix: element (i, j) is the ``i + j * ld``-th from its place."""

    place: Place
    data_type: int
    rows: int
    columns: int
    ld: int


@dataclass(frozen=True)
class Layout:
    """A product in cuBLAS's terms: D = epilogue(op(A) op(B)), all column-major.

    Attributes
    ----------
    m, n, k : int
        D is m x n, and k products are summed for each of its elements.
    A, B, D : Operand
        The matrices in memory; A is the plan's B, and B is the plan's A.
    transa, transb : int
        The operation op, ``CUBLAS_OP_N`` or ``CUBLAS_OP_T``.
    compute_type, scale_type, epilogue : int
        Codes of the library. alpha and beta have the scale type.
    bias : Place or None
        m elements of D's type, which the epilogue reads, or writes as sums over the columns.
    aux : Place or None
        Further data that the epilogue reads or writes: m x n elements of D's type, or bits, the
        first of which is the lowest of its byte.
    aux_ld : int
        Elements, or bits, from one column of ``aux`` to the next; 0 without ``aux``.
    """

    m: int
    n: int
    k: int
    A: Operand
    B: Operand
    D: Operand
    transa: int
    transb: int
    compute_type: int
    scale_type: int
    epilogue: int
    bias: Place | None
    aux: Place | None
    aux_ld: int


class _Precision(NamedTuple):
    operands: str
    result: str
    compute_type: int


class _Form(NamedTuple):
    """An epilogue's code and its operands; ``aux_multiple`` is 0 if it has no ``aux``."""

    code: int
    has_vector: bool = True
    aux_multiple: int = 0


# The ld of an aux has to be a multiple of one of these.
_BITS = 128
_ELEMENTS = 8
_TYPES = {"float32": CUDA_R_32F, "float64": CUDA_R_64F, "bfloat16": CUDA_R_16BF}
_TYPE_BITS = {"float32": 32, "float64": 64, "bfloat16": 16, "bit": 1}

_PRECISIONS = {
    "float32": _Precision("float32", "float32", CUBLAS_COMPUTE_32F),
    "tf32": _Precision("float32", "float32", CUBLAS_COMPUTE_32F_FAST_TF32),
    "bfloat16": _Precision("bfloat16", "float32", CUBLAS_COMPUTE_32F),
    "float64": _Precision("float64", "float64", CUBLAS_COMPUTE_64F),
}

_FORMS = {
    Epilogue.NONE: _Form(CUBLASLT_EPILOGUE_DEFAULT, has_vector=False),
    Epilogue.BIAS: _Form(CUBLASLT_EPILOGUE_BIAS),
    Epilogue.RELU_BIAS: _Form(CUBLASLT_EPILOGUE_RELU_BIAS),
    Epilogue.RELU_AUX_BIAS: _Form(CUBLASLT_EPILOGUE_RELU_AUX_BIAS, aux_multiple=_BITS),
    Epilogue.GELU_AUX_BIAS: _Form(CUBLASLT_EPILOGUE_GELU_AUX_BIAS, aux_multiple=_ELEMENTS),
    Epilogue.DRELU_BGRAD: _Form(CUBLASLT_EPILOGUE_DRELU_BGRAD, aux_multiple=_BITS),
    Epilogue.DGELU_BGRAD: _Form(CUBLASLT_EPILOGUE_DGELU_BGRAD, aux_multiple=_ELEMENTS),
    Epilogue.BGRAD_B: _Form(CUBLASLT_EPILOGUE_BGRADA),
}


def layout(product: Product) -> Layout:
    """Return a product in cuBLAS's terms.

    Raises
    ------
    InputError
        If its parts do not fit each other, the precision, the epilogue or the library's rules.
    """
    A, B, out, vector, aux = product.A, product.B, product.out, product.vector, product.aux
    precision = lookup("precision", product.precision, _PRECISIONS)
    form = _FORMS[product.epilogue]
    rows, k = (A.columns, A.rows) if product.transpose_A else (A.rows, A.columns)
    k_of_B, columns = (B.columns, B.rows) if product.transpose_B else (B.rows, B.columns)
    for name, matrix, dtype in (
        ("A", A, precision.operands),
        ("B", B, precision.operands),
        ("out", out, precision.result),
    ):
        if matrix.dtype != dtype:
            raise InputError(
                f"expected {dtype} with precision {product.precision!r}, got {matrix.dtype}",
                argument=name,
            )
        if matrix.ld < matrix.columns:
            raise InputError(f"expected ld >= {matrix.columns}, got {matrix.ld}", argument=name)
    if min(rows, k, columns) < 1 or (k, rows, columns) != (k_of_B, out.rows, out.columns):
        raise InputError(
            f"expected the shape of ({rows}, {k}) times ({k_of_B}, {columns}), none of them "
            f"empty, got ({out.rows}, {out.columns})",
            argument="out",
        )
    name = product.epilogue.name
    if product.epilogue is Epilogue.BGRAD_B and product.transpose_B:
        raise InputError(f"expected False with {name}, got True", argument="transpose_B")
    wanted = (columns, precision.result) if form.has_vector else None
    if (vector and (vector.size, vector.dtype)) != wanted:
        raise InputError(f"expected {wanted} with {name}, got {vector}", argument="vector")
    aux_dtype = "bit" if form.aux_multiple == _BITS else precision.result
    wanted_aux = (rows, columns, aux_dtype) if form.aux_multiple else None
    if (aux and (aux.rows, aux.columns, aux.dtype)) != wanted_aux:
        raise InputError(f"expected {wanted_aux} with {name}, got {aux}", argument="aux")
    if aux and (aux.ld < columns or aux.ld % form.aux_multiple):
        raise InputError(
            f"expected an ld >= {columns} that is a multiple of {form.aux_multiple}, got {aux.ld}",
            argument="aux",
        )
    if aux and aux.offset * _TYPE_BITS[aux.dtype] % 8:
        raise InputError(
            f"expected an offset in whole bytes, got {aux.offset} bits", argument="aux"
        )
    return Layout(
        m=columns,
        n=rows,
        k=k,
        A=_operand(B),
        B=_operand(A),
        D=_operand(out),
        transa=CUBLAS_OP_T if product.transpose_B else CUBLAS_OP_N,
        transb=CUBLAS_OP_T if product.transpose_A else CUBLAS_OP_N,
        compute_type=precision.compute_type,
        scale_type=_TYPES[precision.result],
        epilogue=form.code,
        bias=_place(vector) if vector else None,
        aux=_place(aux) if aux else None,
        aux_ld=aux.ld if aux else 0,
    )


def _place(data: Matrix | Vector) -> Place:
    return Place(data.buffer, data.offset * _TYPE_BITS[data.dtype] // 8)


def _operand(matrix: Matrix) -> Operand:
    return Operand(_place(matrix), _TYPES[matrix.dtype], matrix.columns, matrix.rows, matrix.ld)


class _Object:
    """An object of the library, which is destroyed with the last reference to it."""

    def __init__(self, library: ctypes.CDLL, kind: str, *arguments: int) -> None:
        self._library = library
        self._kind = kind
        self._as_parameter_ = c_void_p()  # ctypes passes this in place of the object
        _call(library, f"cublasLt{kind}Create", byref(self._as_parameter_), *arguments)
        destroy = getattr(library, f"cublasLt{kind}Destroy")
        # Do not destroy at exit: the process frees everything, and the driver may be gone by then.
        weakref.finalize(self, destroy, self._as_parameter_).atexit = False

    def set(self, attribute: int, value: Any) -> None:
        """Set an attribute to a ctypes value, which needs the same size as the attribute."""
        name = f"cublasLt{self._kind}SetAttribute"
        _call(self._library, name, self, attribute, byref(value), sizeof(value))


class Descriptors:
    """The library's descriptors of a product and of the acceptable algorithms.

    Making them needs no GPU.

    Attributes
    ----------
    operation, A, B, D, preference
        The library's objects.
    addresses : tuple of int
        The addresses of A, B and D.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        shape: Layout,
        pointers: Mapping[str, int],
        workspace_bytes: int,
    ) -> None:
        operands = (shape.A, shape.B, shape.D)
        self.addresses = tuple(operand.place.address(pointers) for operand in operands)
        self.A, self.B, self.D = (
            _Object(library, "MatrixLayout", each.data_type, each.rows, each.columns, each.ld)
            for each in operands
        )
        self.operation = _Object(library, "MatmulDesc", shape.compute_type, shape.scale_type)
        self.operation.set(CUBLASLT_MATMUL_DESC_TRANSA, c_int(shape.transa))
        self.operation.set(CUBLASLT_MATMUL_DESC_TRANSB, c_int(shape.transb))
        self.operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE, c_uint32(shape.epilogue))
        if shape.bias:
            bias = c_void_p(shape.bias.address(pointers))
            self.operation.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)
        if shape.aux:
            aux = c_void_p(shape.aux.address(pointers))
            self.operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux)
            self.operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, c_int64(shape.aux_ld))
        self.preference = _Object(library, "MatmulPreference")
        self.preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, c_uint64(workspace_bytes))
        self.preference.set(
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, c_uint32(_REDUCTION_SCHEMES)
        )
        A, B, D = self.addresses
        for attribute, address in (
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, A),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, B),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, D),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, D),
        ):
            self.preference.set(attribute, c_uint32(min(_ALIGNMENT, address & -address)))


class CublasLt:
    """A handle of cuBLASLt on the current device, and its workspace.

    Since all products share the workspace, use the handle and its products in one thread and on one
    stream at a time, with the same device current.

    Parameters
    ----------
    workspace_pointer : int
        The workspace's address, a multiple of 256. The caller keeps the memory.
    workspace_bytes : int
        The workspace's size. NVIDIA recommends 32 MiB from Hopper on, 4 MiB before.

    Raises
    ------
    CublasLtError
        If the library is not installed, or finds no device.
    """

    def __init__(self, workspace_pointer: int, workspace_bytes: int) -> None:
        if workspace_pointer % _ALIGNMENT:
            raise InputError(
                f"expected a multiple of {_ALIGNMENT}, got {workspace_pointer}",
                argument="workspace_pointer",
            )
        self.library = load_library()
        self.handle = _Object(self.library, "")
        self.workspace = (workspace_pointer, workspace_bytes)

    def prepare(self, product: Product, pointers: Mapping[str, int]) -> Prepared | None:
        """Return a product that is ready to run; None if cuBLASLt has no algorithm for it.

        This calls the library's heuristic, which fails during a capture.

        Parameters
        ----------
        product : Product
            The product to compute.
        pointers : mapping of str to int
            The start addresses of its buffers.

        Raises
        ------
        InputError
            If the product is invalid; see ``layout``.
        CublasLtError
            If the library fails.
        """
        shape = layout(product)
        each = Descriptors(self.library, shape, pointers, self.workspace[1])
        results = (_HeuristicResult * _MAX_ALGORITHMS)()
        count = c_int()
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle, each.operation, each.A, each.B, each.D, each.D, each.preference,
            _MAX_ALGORITHMS, results, byref(count),
        )  # fmt: skip
        if status == CUBLAS_STATUS_NOT_SUPPORTED:
            return None
        _check(self.library, "cublasLtMatmulAlgoGetHeuristic", status)
        found = results[: count.value]
        algorithms = [result.algo for result in found if result.state == CUBLAS_STATUS_SUCCESS]
        scalar = c_double if shape.scale_type == CUDA_R_64F else c_float
        return Prepared(self, each, scalar, algorithms) if algorithms else None


class Prepared:
    """A product that can run any number of times, also within the capture of a CUDA graph.

    Its buffers and the workspace must not move. A captured graph needs neither this object nor its
    ``CublasLt``. Run the product once before capturing it, since the first run loads the kernel.

    Attributes
    ----------
    algorithms : int
        The number of algorithms that the library proposes, with the one it expects to be fastest
        first. They may differ in the last bits of the result, so choosing one by its time makes
        results depend on the measurement.
    """

    def __init__(
        self,
        lt: CublasLt,
        descriptors: Descriptors,
        scalar: type[c_float | c_double],
        algorithms: list[_Algorithm],
    ) -> None:
        self.algorithms = len(algorithms)
        self._lt = lt
        self._descriptors = descriptors
        self._alpha = scalar(1.0)
        self._beta = scalar(0.0)
        self._candidates = algorithms
        self.choose(0)

    def choose(self, index: int) -> None:
        """Make ``run`` use the algorithm of an index, which is 0 by default."""
        each = self._descriptors
        A, B, D = each.addresses
        self._arguments = (
            self._lt.handle, each.operation, byref(self._alpha), A, each.A, B, each.B,
            byref(self._beta), D, each.D, D, each.D, byref(self._candidates[index]),
            *self._lt.workspace,
        )  # fmt: skip

    def run(self, stream: int) -> None:
        """Launch the product on the stream at an address."""
        _call(self._lt.library, "cublasLtMatmul", *self._arguments, stream)

"""What is recorded of a formula means what the formula means on NumPy; the rest is refused."""

import numpy as np
import pytest
from cuda_emulation import compile_cuda
from hypothesis import event, given, settings
from hypothesis import strategies as st
from nvrtc import compile_ptx_or_cubin

from nnbackend.device import get_device
from nnbackend.engines.cuda.printer import CudaPrinter
from nnbackend.engines.cuda.source import prelude
from nnbackend.engines.tracing.expression import Recorder, description, walk
from nnbackend.engines.tracing.formulas import element

# What the operations of expressions mean on arrays.
MEANING = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "neg": np.negative,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "==": np.equal, "!=": np.not_equal, "where": np.where,
    "maximum": np.maximum, "minimum": np.minimum,
    "abs": np.abs, "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sqrt": np.sqrt, "tanh": np.tanh,
    "max": lambda x: np.max(x, axis=-1, keepdims=True),
    "sum": lambda x: np.sum(x, axis=-1, keepdims=True),
}  # fmt: skip

XP = get_device("cpu").xp
ROWS, COLUMNS = 3, 8


def computed(value, dtype, **arrays):
    """Return what an expression means on NumPy arrays."""
    inputs = {"n_row": np.asarray(COLUMNS, dtype)[()], "k": np.arange(COLUMNS), **arrays}
    results = {}
    for node in walk([value]):
        if node.operation == "input":
            results[node.key] = inputs[node.operands[0]]
        elif node.operation == "constant":
            results[node.key] = np.asarray(node.operands[0], dtype)[()]
        else:
            operands = [results[entry.key] for entry in node.operands]
            results[node.key] = MEANING[node.operation](*operands)
    return np.broadcast_to(results[value.key], (ROWS, COLUMNS))


def recorded(formula, dtype):
    """Return the expression of a formula of an element, or None if it is refused."""
    xp = Recorder(dtype)
    try:
        return element(formula(xp, xp.symbol("Z"), xp.symbol("A")))
    except Exception:  # noqa: BLE001 - as the engines do
        return None


def examples(dtype):
    rng = np.random.default_rng(0)
    Z, A = (rng.normal(0.0, 3.0, (ROWS, COLUMNS)).astype(dtype) for _ in range(2))
    Z[0] = [0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan, 0.1]
    A[0, :4] = [1.0, 0.0, np.nan, 2.0]
    return Z, A


# Formulas as nested tuples: a name, and what it is applied to.
NUMBERS = [
    *(0, 1, 2, -3, 0.5, 0.1, -0.0, 1e-30, 1e300, 2**24 + 1, 2**60 + 1, True, False),
    *(float("nan"), float("inf"), float("-inf"), 1j),
    *(np.float32(0.3), np.float64(0.3), np.int64(2), np.bool_(True)),
]
BINARY = {
    "+": lambda _xp, a, b: a + b,
    "-": lambda _xp, a, b: a - b,
    "*": lambda _xp, a, b: a * b,
    "/": lambda _xp, a, b: a / b,
    "//": lambda _xp, a, b: a // b,
    "%": lambda _xp, a, b: a % b,
    "<": lambda _xp, a, b: a < b,
    ">=": lambda _xp, a, b: a >= b,
    "==": lambda _xp, a, b: a == b,
    "!=": lambda _xp, a, b: a != b,
    "&": lambda _xp, a, b: a & b,
    # The sign of a zero that is equal to another is not NumPy's to promise.
    "maximum": lambda xp, a, b: xp.maximum(a, b) + 0.0,
    "minimum": lambda xp, a, b: xp.minimum(a, b) + 0.0,
    "where": lambda xp, a, b: xp.where(a > 0, a, b),
    "choose": lambda xp, a, b: xp.where(a != b, b, 0.5),
}
UNARY = {
    "-": lambda _xp, x: -x,
    "~": lambda _xp, x: ~x,
    "square": lambda _xp, x: x**2,
    "square2": lambda _xp, x: x**2.0,
    "cube": lambda _xp, x: x**3,
    "root": lambda _xp, x: x**0.5,
    "strong square": lambda _xp, x: x ** np.float64(2),
    "positive": lambda xp, x: xp.astype(x > 0, x.dtype),
    "integer": lambda xp, x: xp.astype(xp.astype(x, xp.int64), x.dtype),
    "integers": lambda xp, x: xp.astype(x, xp.int64),
    "float32": lambda xp, x: xp.astype(x, xp.float32),
    "float64": lambda xp, x: xp.astype(x, xp.float64),
    "if float64": lambda xp, x: x + 1 if x.dtype == xp.float64 else x - 1,
    "if float32": lambda xp, x: x * (2 if xp.float32 == x.dtype else 3),
    "if floating": lambda xp, x: x + 1 if xp.isdtype(x.dtype, "real floating") else x - 1,
    "if kinds": lambda xp, x: x + 1 if xp.isdtype(x.dtype, ("bool", xp.float32)) else x - 1,
    "if named": lambda _xp, x: x + 1 if str(x.dtype) == "float32" else x - 1,
    "dimensions": lambda _xp, x: x * x.ndim,
    "length": lambda _xp, x: x * len(x.shape),
    "rows": lambda _xp, x: x / x.shape[0],
    "columns": lambda _xp, x: x / x.shape[-1],
    "hidden": lambda _xp, x: x * getattr(x, "size", 1),
    "known": lambda xp, x: xp.clip(x, 0, 1) if hasattr(xp, "clip") else x,
    "ones": lambda xp, x: xp.ones_like(x) + x,
    "zeros": lambda xp, x: xp.zeros_like(x) - x,
    "softmax": lambda xp, x: xp.exp(x - xp.max(x, axis=-1, keepdims=True)),
    "sum": lambda xp, x: x / xp.sum(x, axis=-1, keepdims=True),
    "sum twice": lambda xp, x: (
        x / xp.sum(xp.sum(x, axis=-1, keepdims=True), axis=-1, keepdims=True)
    ),
    "axis": lambda xp, x: xp.expand_dims(x, axis=0) * x,
    "range": lambda xp, x: x * xp.arange(COLUMNS, dtype=x.dtype),
    "numpy": lambda _xp, x: np.exp(x),
    "number": lambda xp, x: x * xp.sqrt(2.0),
    "mask": lambda _xp, x: (x > 0) * x,
    "masks": lambda _xp, x: x * ((x > 0) + (x < 1)),
    "counted": lambda _xp, x: (x > 0) * 2.0 * x,
    **{
        name: lambda xp, x, name=name: getattr(xp, name)(x)
        for name in (
            *("exp", "expm1", "log", "log1p", "tanh", "sqrt", "abs", "sign"),
            *("floor", "ceil", "round", "square", "isnan"),
        )
    },
}
# What can be recorded is drawn more often than the rest.
PLAIN = [
    *("+", "-", "*", "/", "<", ">=", "==", "maximum", "minimum", "where", "choose", "square"),
    *("positive", "ones", "zeros", "mask", "columns", "if float64", "if float32", "if floating"),
    *("exp", "expm1", "log", "log1p", "tanh", "sqrt", "abs", "sign", "softmax"),
]
LEAVES = st.sampled_from([*["Z", "A"] * 40, *(("number", number) for number in NUMBERS)])


def applied(part):
    """Return a strategy of operations on what ``part`` draws."""
    names = {2: sorted(BINARY), 1: sorted(UNARY)}
    operations = [
        st.tuples(st.sampled_from([*[name for name in known if name in PLAIN] * 8, *known]), *parts)
        for known, parts in ((names[2], (part, part)), (names[1], (part,)))
    ]
    return st.one_of(*operations)


TREES = st.recursive(LEAVES, applied, max_leaves=5)


def formula_of(tree):
    """Return a tree as a function of a namespace and two arrays."""

    def formula(xp, Z, A):
        def value(tree):
            if tree in ("Z", "A"):
                return Z if tree == "Z" else A
            if tree[0] == "number":
                return tree[1]
            operands = [value(entry) for entry in tree[1:]]
            return (BINARY if len(operands) == 2 else UNARY)[tree[0]](xp, *operands)

        return value(tree)

    return formula


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=250)
@given(TREES)
def test_what_is_recorded_computes_what_numpy_does(dtype, tree):
    formula = formula_of(tree)
    found = recorded(formula, dtype)
    event("refused" if found is None else "recorded")
    if found is None:
        return
    Z, A = examples(dtype)
    with np.errstate(all="ignore"):
        expected = formula(XP, Z, A)
        result = computed(found, dtype, Z=Z, A=A)
    # Not of another dtype or shape, either, which the engines' buffers would cast.
    assert (expected.dtype, expected.shape) == (Z.dtype, Z.shape)
    # The same operations in the same dtype; a row's length is a number there and an array here.
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def places(xp, Z):
    return xp.arange(Z.shape[-1], dtype=xp.int64, device=None)


RECORDED = {
    "relu by a mask": lambda _xp, Z, _A: Z * (Z > 0),
    "dtype": lambda xp, Z, _A: Z + (1e-7 if Z.dtype == xp.float32 else 1e-15),
    "floating": lambda xp, Z, _A: Z * 2 if xp.isdtype(Z.dtype, "real floating") else Z,
    "nan": lambda xp, Z, _A: xp.where(Z > 1e30, xp.nan, Z),
    "infinite": lambda xp, Z, _A: xp.where(Z < -1e30, float("-inf"), xp.minimum(Z, xp.inf)),
    "truth": lambda xp, Z, A: xp.where((Z > 0) == (A > 0), Z, -0.0),
    "sign": lambda xp, Z, _A: xp.sign(Z),
    "softmax": lambda xp, Z, _A: xp.exp(Z) / xp.sum(xp.exp(Z), axis=-1, keepdims=True),
    "share": lambda _xp, Z, _A: Z * (1 - 1 / Z.shape[-1]),
    "column": lambda _xp, Z, A: A * Z[..., 0:1] - Z[..., 5:6],
    "place of an output": lambda xp, Z, A: xp.where(places(xp, Z) == 2, Z, A),
    "places up to": lambda xp, Z, A: xp.where(places(xp, Z) >= 1, Z, -A),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("formula", RECORDED.values(), ids=RECORDED)
def test_these_are_recorded(formula, dtype):
    Z, A = examples(dtype)
    with np.errstate(all="ignore"):
        expected = formula(XP, Z, A)
        result = computed(recorded(formula, dtype), dtype, Z=Z, A=A)
    np.testing.assert_allclose(result, expected, rtol=2 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))


def augmented(_xp, Z, _A):
    Z *= 2
    return Z


REFUSED = {
    "steps": lambda xp, Z, _A: xp.astype(xp.astype(Z, xp.int64), Z.dtype),
    "count": lambda _xp, Z, _A: Z * ((Z > 0) + (Z < 1)),
    "float64": lambda _xp, Z, _A: Z * np.float64(0.1),
    "function of a number": lambda xp, Z, _A: Z * xp.sqrt(2.0),
    "overflow": lambda _xp, Z, _A: Z + 1e39,
    "augmented assignment": augmented,
    "dimensions": lambda _xp, Z, _A: Z * len(Z.shape),
    "no attribute": lambda _xp, Z, _A: Z * getattr(Z, "ndim", 1),
    "no function": lambda xp, Z, _A: Z if hasattr(xp, "clip") else -Z,
    "name of a dtype": lambda _xp, Z, _A: Z if f"{Z.dtype}" == "float32" else -Z,
    "batch": lambda _xp, Z, _A: Z / Z.shape[0],
    "sum of a column": lambda xp, Z, _A: (
        Z + xp.sum(xp.max(Z, axis=-1, keepdims=True), axis=-1, keepdims=True)
    ),
    "a column": lambda xp, Z, _A: xp.max(Z, axis=-1, keepdims=True),
    "a number": lambda _xp, _Z, _A: 1.0,
    "truth": lambda _xp, Z, _A: Z > 0,
    "axis": lambda xp, Z, _A: xp.expand_dims(Z, axis=0),
    "a column without its axis": lambda _xp, Z, A: A * Z[..., 0],
    "two columns": lambda _xp, Z, A: A * Z[..., 0:2],
    "the last column": lambda _xp, Z, A: A * Z[..., -1:],
    "a column by a step": lambda _xp, Z, A: A * Z[..., 0:1:1],
    "the first row": lambda _xp, Z, A: A * Z[0:1],
    "a column of a column": lambda xp, Z, A: A * xp.max(Z, axis=-1, keepdims=True)[..., 0:1],
    "half of a place": lambda xp, Z, A: xp.where(places(xp, Z) == 0.5, Z, A),
    "other range": lambda xp, Z, _A: xp.where(xp.arange(3, dtype=xp.int64, device=None) == 1, Z, 0),
}


@pytest.mark.parametrize("formula", REFUSED.values(), ids=REFUSED)
def test_what_would_mean_something_else_is_refused(formula):
    assert recorded(formula, "float32") is None


def test_a_formula_of_many_shared_parts_is_recorded_at_once():
    def formula(_xp, Z, _A):
        for _ in range(300):
            Z = 0.5 * (Z + Z * Z)
        return Z

    value = recorded(formula, "float64")
    assert description([value]) == description([recorded(formula, "float64")])
    Z, A = examples("float64")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(computed(value, "float64", Z=Z, A=A), formula(XP, Z, A))


def test_equal_expressions_of_two_recorders_have_equal_descriptions():
    def slope(value):
        return description([recorded(lambda xp, Z, _A: xp.maximum(Z, value * Z), "float32")])

    assert slope(0.1) == slope(0.1)
    assert len({slope(0.1), slope(0.2), slope(0.0), slope(-0.0), slope(float("nan"))}) == 5


def test_equal_sub_expressions_are_computed_once_and_reductions_become_loops():
    xp = Recorder("float32")
    z = xp.symbol("z[k]")
    outputs = [("a[k]", xp.exp(z) / xp.sum(xp.exp(z), axis=-1, keepdims=True))]
    assert CudaPrinter(step="4", reduce="row_reduce").row(outputs, "n", "") == [
        "real t1 = (real)0.0;",
        "for (int k = 0; k < n; k += 4) {",
        "    const real t2 = exp(z[k]);",
        "    t1 += t2;",
        "}",
        "t1 = row_reduce<Sum>(t1);",
        "for (int k = 0; k < n; k += 4) {",
        "    const real t3 = exp(z[k]);",
        "    const real t4 = t3 / t1;",
        "    a[k] = t4;",
        "}",
    ]
    assert CudaPrinter().statements([("b", z + z * z), ("c", z * z)], "") == [
        "const real t1 = z[k] * z[k];",
        "const real t2 = z[k] + t1;",
        "b = t2;",
        "c = t1;",
    ]


def cuda_source(formulas, dtype):
    """Return a kernel that computes formulas of two vectors, one after the other."""
    lines = []
    for number, formula in enumerate(formulas):
        target = f"out[{number} * n + k]"
        lines += ["    {"]
        lines += CudaPrinter().statements([(target, recorded(formula, dtype))], " " * 8)
        lines += ["    }"]
    body = "\n".join(lines)
    return (
        f"{prelude(dtype, dtype, labels=False)}\n"
        'extern "C" __global__ void formulas(const real* X, const real* Y, real* out, int n) {\n'
        "    const int k = threadIdx.x;\n    const real Z = X[k], A = Y[k];\n"
        f"{body}\n}}\n"
    )


ELEMENTWISE = [
    formula for name, formula in RECORDED.items() if name not in ("softmax", "share", "column")
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_code_means_the_same(dtype):
    Z, A = (x.reshape(-1) for x in examples(dtype))
    out = np.empty((len(ELEMENTWISE), Z.size), dtype)
    module = compile_cuda(cuda_source(ELEMENTWISE, dtype))
    module.launch("formulas", (1,), (Z.size,), [Z, A, out, Z.size])
    for formula, result in zip(ELEMENTWISE, out, strict=True):
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(result, formula(XP, Z, A))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_code_compiles_for_gpus(dtype):
    assert compile_ptx_or_cubin(cuda_source(ELEMENTWISE, dtype)).kernels

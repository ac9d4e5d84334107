"""Programs of recorded formulas: interpreted and compiled, they compute what the formulas do."""

import ctypes
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnbackend.core.propagation import output_elements
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.device import Device
from nnbackend.engines.native import interface
from nnbackend.engines.native.formulas import record
from nnbackend.engines.native.library import libraries
from nnbackend.engines.native.printing import kernels, problems, programs
from nnbackend.engines.native.program import Program
from nnbackend.engines.tracing.expression import Recorder
from nnbackend.estimators import formulas as of_estimators

XP = Device("cpu").xp
DTYPES = ["float32", "float64"]
VARIANTS = list(libraries()) or ["none"]
# Some roundings of numbers of the order of 10, and of the elementary functions.
TOLERANCE = {"float32": 1e-5, "float64": 2e-14}


def run(variant, program, arrays, numbers=(), *, compiled):
    """Run a program on arrays (units, rows), or (rows,) for columns; return them as they are then.

    Rows behind the last whole vector of a block are padding.
    """
    dtype = next(iter(arrays.values())).dtype
    own = interface.functions(libraries()[variant], dtype.name)
    spec, kept = interface.program_spec(program, own, dtype)
    if compiled:
        assert spec.kernel
    else:
        spec.kernel = None
    values = np.asarray(numbers, dtype)
    kept[1][: len(values) * own.lanes] = np.repeat(values, own.lanes)
    rows = max(array.shape[-1] for array in arrays.values())
    units = max(array.size // rows for array in arrays.values())
    padded = rows if program.is_flat else -(-rows // own.lanes) * own.lanes
    copies = {}
    for name in program.arrays:
        array = arrays.get(name, np.full(next(iter(arrays.values())).shape, 7.0, dtype))
        copies[name] = np.zeros((*array.shape[:-1], padded), dtype)
        copies[name][..., :rows] = array
    pointers = (ctypes.c_void_p * len(copies))(*(a.ctypes.data for a in copies.values()))
    n_scratch = program.n_registers * max(units * padded, 4096)
    # What lies behind the scratch memory stays as it is.
    scratch = np.full(n_scratch + 64, 7.0, dtype)
    library = libraries()[variant]
    size = ctypes.c_ssize_t
    if program.is_flat:
        function = library[f"nnbackend_run_flat_{dtype}"]
        sizes = [size(units * padded)]
    else:
        function = library[f"nnbackend_run_block_{dtype}"]
        sizes = [size(units), size(padded)]
    function.restype = None
    function(ctypes.byref(spec), pointers, *sizes, ctypes.c_void_p(scratch.ctypes.data))
    assert (scratch[n_scratch:] == 7.0).all()
    return {name: array[..., :rows] for name, array in copies.items()}


def blocks(problem, dtype, rng):
    """Yield each program of a problem with arrays, numbers, and what the formula makes of them.

    The formula is computed in float64, on the same numbers.
    """
    objective, optimizer = problem.objective, problem.optimizer
    n = 1061  # More than a block of the interpreter, and no multiple of a vector

    def draw(*shape):
        return (3.0 * rng.standard_normal(shape)).astype(dtype)

    def wide(**arrays):
        return {name: array.astype(np.float64) for name, array in arrays.items()}

    flat = record(problem, dtype, labels=False)
    for (activation, drops), (activate, pull_back) in flat.hidden.items():
        z, m = draw(n), draw(n)
        Z, M = z.astype(np.float64), m.astype(np.float64)
        A = activation.function(XP, Z)
        expected = {"z" if flat.in_place[activation, drops] else "a": A}
        if drops:
            expected["h"] = A * M
        yield activate, {"z": z, "m": m}, (), expected
        d, a = draw(n), A.astype(dtype)
        D = d.astype(np.float64) * (M if drops else 1.0)
        derivative = activation.derivative(XP, Z, a.astype(np.float64))
        yield pull_back, {"d": d, "z": z, "a": a, "m": m}, (), {"d": D * derivative}
    if flat.penalize is not None:
        w, g, scale = draw(n), draw(n), 0.125
        value, gradient = penalty_elements(XP, w.astype(np.float64), objective.l1, objective.l2)
        expected = {"g": g.astype(np.float64) + gradient * scale, "value": value * scale}
        yield flat.penalize, {"w": w, "g": g}, [scale], expected
    # The variance of one gradient is zero, of which rounding makes anything.
    has_variance = not getattr(optimizer, "centered", False) or optimizer.decay > 0.0
    if flat.update is not None and has_variance:
        p, g, *state = (draw(n) for _ in range(2 + len(optimizer.state_names)))
        state = [np.abs(array) for array in state]
        if getattr(optimizer, "centered", False):
            # Mean squares above the squares of means, or their difference is all rounding.
            state[0] += 200
        numbers = np.asarray(optimizer.coefficients(0.125, 3), dtype)
        new, new_state = optimizer.update(
            XP, p.astype(np.float64), g.astype(np.float64),
            tuple(array.astype(np.float64) for array in state), tuple(map(float, numbers)),
        )  # fmt: skip
        names = [f"s{i}[k]" for i in range(len(state))]
        yield (
            flat.update,
            {"p[k]": p, "g[k]": g, **dict(zip(names, state, strict=True))},
            numbers,
            {"p[k]": new, **dict(zip(names, new_state, strict=True))},
        )
    for labels in {False, objective.loss.kind == "classes"}:
        for units, rows in ((1, 40), (3, 16), (10, 128)):
            yield from loss_blocks(problem, dtype, rng, labels, units, rows)


def loss_blocks(problem, dtype, rng, labels, units, rows):
    objective = problem.objective
    program = record(problem, dtype, labels=labels).loss
    if program is None:
        return
    z = rng.standard_normal((units, rows)).astype(dtype)
    if labels:
        label = rng.integers(units, size=rows)
        y, target = label.astype(dtype), label
    else:
        y = rng.random((units, rows)).astype(dtype)
        if objective.loss.kind in ("binary", "counts"):
            y = np.round(y)
        target = y.T.astype(np.float64)
    share = rng.random(rows).astype(dtype)
    L, dZ = output_elements(
        XP, objective.structure.output, objective.loss, z.T.astype(np.float64), target
    )
    expected = {"loss": np.sum(L.T * share, axis=0), "z": dZ.T * share}
    yield program, {"z": z, "label": y, "share": share, "loss": 0 * share}, [units], expected


@cache
def cases(dtype):
    """Return one block for each distinct program, and for each size of losses."""
    rng = np.random.default_rng(0)
    found = {}
    with np.errstate(all="ignore"):
        for problem in problems([of_estimators]):
            for program, arrays, numbers, expected in blocks(problem, dtype, rng):
                if program is not None:
                    shapes = tuple(array.shape for array in arrays.values())
                    found.setdefault((program.key, shapes), (program, arrays, numbers, expected))
    return list(found.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_programs_of_built_in_formulas_compute_the_formulas(variant, dtype):
    for program, arrays, numbers, expected in cases(dtype):
        for compiled in (False, True):
            found = run(variant, program, arrays, numbers, compiled=compiled)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    found[name], value, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype],
                    err_msg=f"{name} of {program.instructions}, compiled: {compiled}",
                )  # fmt: skip

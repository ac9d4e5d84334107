"""Programs of recorded formulas: interpreted and compiled, they compute what the formulas do."""

import ctypes
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.core import losses
from nnbackend.core.activations import OUTPUTS
from nnbackend.core.objective import Objective
from nnbackend.core.optimizers import Adam
from nnbackend.core.propagation import output_elements
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.core.structure import Structure
from nnbackend.device import Device
from nnbackend.engines.base import Problem
from nnbackend.engines.native import interface
from nnbackend.engines.native.formulas import record
from nnbackend.engines.native.library import libraries
from nnbackend.engines.native.printing import problems
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
        # A mean square is far above the square of the mean: their difference has all digits.
        state = [np.abs(array) + 99.0 * (k == 0) for k, array in enumerate(state)]
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
        output = objective.structure.output
        sizes = (output.n_outputs,) * 3 if output.is_distribution else (1, 3, 10)
        for units, rows in zip(sizes, (40, 16, 128), strict=True):
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
        n_targets = objective.structure.output.n_targets(units)
        y = rng.random((n_targets, rows)).astype(dtype)
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_of_clipping_compute_the_clipped_gradient(variant, dtype):
    for problem in [entry for entry in problems() if entry.clip_value or entry.clip_norm]:
        start = np.random.default_rng(0).standard_normal(1061).astype(dtype)
        expected = start.astype(np.float64)
        for clip, bound in (
            (clip_by_value, problem.clip_value),
            (clip_by_global_norm, problem.clip_norm),
        ):
            expected = expected if bound is None else clip(XP, expected, bound)
        for compiled in (False, True):
            g, numbers = start, [7.0] * len(record(problem, dtype, labels=False).clips)
            for k, (program, reduction) in enumerate(record(problem, dtype, labels=False).clips):
                found = run(variant, program, {"g": g}, numbers, compiled=compiled)
                g = found["g"]
                if reduction != "nothing":
                    numbers[k] = getattr(np, reduction)(found["value"].astype(np.float64))
            np.testing.assert_allclose(g, expected, rtol=TOLERANCE[dtype])


def test_smoothed_labels_train_as_on_the_reference():
    X, y = np.random.default_rng(0).standard_normal((50, 3)), np.arange(50) % 3
    losses_of = []
    for engine in ("cpu", "reference"):
        net = nb.Network([3, 4, 3], hidden="tanh", output="softmax", dtype="float64", seed=0)
        loss = losses.SoftmaxCrossEntropy(label_smoothing=0.2)
        history = nb.train(net, X, y, loss=loss, engine=engine, epochs=3, batch_size=16, seed=0)
        losses_of.append(history.loss)
    # Of the products' sums in another order.
    np.testing.assert_allclose(*losses_of, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_built_in_formula_has_a_program(dtype):
    assert [r for entry in problems() for r in record(entry, dtype, labels=False).unrecorded] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_formulas_do_not_depend_on_the_values_of_parameters(variant):
    own = interface.functions(libraries()[variant], "float64")
    structure = Structure((1, 3), (), OUTPUTS["identity"], ())
    for adam in (Adam(beta1=0.5, beta2=0.5), Adam(beta1=0.0, epsilon=1.0), Adam(weight_decay=1.0)):
        for l1, l2, delta in ((1.0, 2.0, 1.0), (0.1, 0.1, 0.1), (0.0, 1.0, 0.5)):
            objective = Objective(structure, losses.Huber(delta), l1, l2)
            formulas = record(Problem(objective, adam, 1, delta, l2), "float64", labels=False)
            clips = [entry.program for entry in formulas.clips]
            for program in (formulas.loss, formulas.update, formulas.penalize, *clips):
                assert own.kernel(program.key), program.instructions


# Numbers on which all of these are exact, so that rounding does not depend on their order.
BINARY = [
    lambda xp, x, y: xp.maximum(xp.minimum(x * y, 8.0 * xp.ones_like(x * y)), -8.0 + 0.0 * (x * y)),
    lambda xp, x, y: xp.maximum(x, y),
    lambda xp, x, y: xp.minimum(x, y),
    lambda _, x, y: x + y,
    lambda _, x, y: x - y,
    lambda _, x, y: y - x * y,
    lambda _, x, y: x * y - y,
    lambda xp, x, y: xp.where(x > y, x, 2.0 * y),
    lambda xp, x, y: xp.astype(x <= y, x.dtype) - xp.astype(x != y, x.dtype),
    lambda xp, x, y: xp.abs(-x) + 1.0 * y,
]
BOUNDED = [lambda xp, x: xp.maximum(xp.minimum(x, 9.0 * xp.ones_like(x)), xp.zeros_like(x) - 9.0)]
REDUCTIONS = [
    lambda xp, x: x - xp.max(x, axis=-1, keepdims=True),
    lambda xp, x: xp.sum(x, axis=-1, keepdims=True) - x,
]
# Each step combines two earlier values; names of outputs are those of inputs.
STEPS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), max_size=40)


def values_of(xp, steps, inputs, *, reduces):
    """Return all values of a random formula, bounded so that they stay exact."""
    values = [*inputs, 2.0 * xp.ones_like(inputs[0])]
    for which, first, second in steps:
        x, y = values[first % len(values)], values[second % len(values)]
        value = BINARY[which % len(BINARY)](xp, x, y)
        if reduces and which >= 80:
            value = REDUCTIONS[which % len(REDUCTIONS)](xp, value + inputs[0])
        values.append(BOUNDED[0](xp, value))
    return values


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    steps=STEPS, outputs=st.lists(st.integers(0, 99), min_size=3, max_size=3),
    is_flat=st.booleans(), shape=st.tuples(st.integers(1, 4), st.integers(1, 150)),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
)  # fmt: skip
def test_programs_of_any_formula_compute_it(variant, steps, outputs, is_flat, shape, dtype, seed):
    names = ["p", "q", "r"]
    if is_flat:
        shape = (1, shape[1])
    arrays = {
        name: np.random.default_rng(seed + k).integers(-4, 5, shape).astype(dtype)
        for k, name in enumerate(names)
    }
    expected = values_of(XP, steps, [array.T for array in arrays.values()], reduces=not is_flat)
    xp = Recorder(dtype)
    recorded = values_of(xp, steps, list(map(xp.symbol, names)), reduces=not is_flat)
    chosen = [number % len(recorded) for number in outputs]
    program = Program(
        [(name, recorded[number]) for name, number in zip(names, chosen, strict=True)],
        dict.fromkeys(names, "row"), is_flat=is_flat,
    )  # fmt: skip
    if is_flat:
        arrays = {name: array[0] for name, array in arrays.items()}
    found = run(variant, program, arrays, compiled=False)
    for name, number in zip(names, chosen, strict=True):
        np.testing.assert_array_equal(np.atleast_2d(found[name]), expected[number].T)


def edges(dtype):
    """Return pairs of numbers of all magnitudes, and of special ones."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    special = [0.0, info.smallest_subnormal, info.tiny, 1.0, 3.0, info.max / 4, info.max, np.inf]
    special = np.asarray([*special, np.nan], dtype)
    special = np.concatenate([special, -special])
    first, second = (np.repeat(special, 18), np.tile(special, 18))
    exponents = rng.uniform(info.minexp - info.nmant, info.maxexp, (2, 20_000))
    anywhere = (2.0**exponents).astype(dtype)
    near = rng.uniform(0.5, 2.0, (2, 20_000)).astype(dtype)
    return (np.concatenate(parts) for parts in zip((first, second), anywhere, near, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_quotients_and_roots_of_programs_are_within_two_units(variant, dtype):
    x, y = edges(dtype)
    xp = Recorder(dtype)
    for value, of_numpy in (
        (xp.symbol("x") / xp.symbol("y"), lambda: x / y),
        (xp.sqrt(xp.symbol("x")), lambda: np.sqrt(x)),
    ):
        program = Program([("z", value)], dict.fromkeys("xyz", "row"))
        found = run(variant, program, {"x": x, "y": y}, compiled=False)["z"]
        with np.errstate(all="ignore"):
            expected = of_numpy()
            is_finite = np.isfinite(expected)
            np.testing.assert_array_equal(found[~is_finite], expected[~is_finite])
            unit = np.spacing(np.abs(expected[is_finite]))
            assert (np.abs(found[is_finite] - expected[is_finite]) <= 2 * unit).all()
            np.testing.assert_array_equal(
                np.signbit(found[is_finite]), np.signbit(expected[is_finite])
            )


def test_programs_refuse_what_the_library_could_not_run():
    xp = Recorder("float32")
    x = xp.symbol("x")
    with pytest.raises(NotImplementedError, match="input 'y'"):
        Program([("x", x + xp.symbol("y"))], {"x": "row"})
    with pytest.raises(NotImplementedError, match="reduction"):
        Program([("x", x - xp.max(x, axis=-1, keepdims=True))], {"x": "row"})


@pytest.mark.parametrize(
    "array",
    [np.zeros(4, np.float64), np.zeros(5, np.float32), np.zeros(8, np.float32)[::2]],
    ids=["dtype", "shape", "strides"],
)
def test_addresses_are_only_of_arrays_that_fit(array):
    with pytest.raises(ValueError, match="C-contiguous"):
        interface.address(array, np.float32, (4,))
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    interface.address(frozen, np.float32, (4,))
    with pytest.raises(ValueError, match="read-only"):
        interface.address(frozen, np.float32, (4,), writes=True)

"""The objective in the C library has the core's value and gradient, whatever its shapes."""

import numpy as np
import pytest
from test_native import TOLERANCE, VARIANTS, targets

import nnbackend as nb
from nnbackend.core.activations import ACTIVATIONS, is_built_in
from nnbackend.data.examples import Data
from nnbackend.device import get_device
from nnbackend.engines.base import Problem, Start
from nnbackend.engines.native import engine as engine_module
from nnbackend.engines.native.engine import NativeEngine
from nnbackend.engines.native.objective import NativeObjective

# One evaluation: sums of up to some thousand terms in another order.
ROUNDING = {"float64": 1e-12, "float32": 2e-5}
BUILT_IN = [name for name, activation in ACTIVATIONS.items() if is_built_in(activation)]


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """Each variant of the library that this machine runs."""
    monkeypatch.setenv("NNBACKEND_VARIANT", request.param)
    return request.param


@pytest.fixture
def threads(monkeypatch):
    """A function that sets how many threads each engine starts."""
    return lambda count: monkeypatch.setattr(engine_module, "threads_worth", lambda *_: count)


def drawn(
    sizes,
    *,
    n=37,
    hidden="tanh",
    output="identity",
    loss=None,
    dropout=0.0,
    l1=0.0,
    l2=0.0,
    penalty_per_sample=True,
    dtype="float64",
    as_rows=False,
    weighted=True,
):
    """Return an objective, parameters and data, some rows of which have no weight."""
    rng = np.random.default_rng(5)
    net = nb.Network(
        sizes, hidden=hidden, output=output, dropout=dropout, dtype=dtype, seed=1, device="cpu"
    )
    objective = net.objective(loss, l1, l2, penalty_per_sample=penalty_per_sample)
    X = rng.standard_normal((n, sizes[0]))
    y = targets(output, n, sizes[-1], as_rows=as_rows, rng=rng)
    weight = None
    if weighted:
        weight = rng.random(n) * rng.integers(0, 3, n)
        weight[0] = 1.5
    parameters = net.parameters + 0.1 * rng.standard_normal(net.n_parameters).astype(dtype)
    return objective, parameters, net.preparation.examples(X, y, objective.loss, weight)


def evaluated(objective, parameters, data):
    return NativeObjective(objective, get_device("cpu"), parameters, data)


def assert_equals_the_core(sizes, *, dtype="float64", **options):
    objective, parameters, data = drawn(sizes, dtype=dtype, **options)
    value, gradient = objective.value_and_gradient(np, parameters, *data.arrays)
    found, found_gradient = evaluated(objective, parameters, data)(parameters)
    tolerance = ROUNDING[dtype]
    assert isinstance(found, float)
    assert found_gradient.dtype == dtype
    assert found == pytest.approx(float(value), rel=tolerance, abs=tolerance)
    atol = tolerance * max(np.abs(gradient).max(), 1e-3)
    np.testing.assert_allclose(found_gradient, gradient, rtol=tolerance, atol=atol)


FORMULAS = {
    **{f"activation {name}": {"hidden": name} for name in BUILT_IN},
    "sigmoid": {"output": "sigmoid"},
    "sigmoid, one output": {"output": "sigmoid", "n_outputs": 1},
    "exp": {"output": "exp"},
    "softmax, labels": {"output": "softmax"},
    "softmax, rows": {"output": "softmax", "as_rows": True},
    "softmax, smoothed labels": {
        "output": "softmax", "loss": nb.losses.SoftmaxCrossEntropy(label_smoothing=0.2)
    },
    "absolute error": {"loss": "absolute_error"},
    "huber": {"loss": nb.losses.Huber(0.3)},
    "l1": {"l1": 0.1, "penalty_per_sample": False},
    "l2": {"l2": 0.1, "penalty_per_sample": False},
    "l1 and l2 per sample": {"l1": 0.1, "l2": 0.5},
    "no hidden layer": {"sizes": [5, 3], "l2": 0.1},
    "dropout, which an objective has none of": {"dropout": 0.5},
}  # fmt: skip


# Few units and many rows are kept features-major: 45 rows are one tile, and 530 are two.
@pytest.mark.parametrize("n", [9, 45, 530])
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.usefixtures("variant")
def test_every_formula(name, n):
    options = {"sizes": [5, 7, 6, 3], **FORMULAS[name]}
    sizes = options.pop("sizes")
    sizes = [*sizes[:-1], options.pop("n_outputs", sizes[-1])]
    for weighted in (False, True):
        assert_equals_the_core(sizes, n=n, weighted=weighted, **options)


SHAPES = {
    "one row": ([20, 100, 3], {"n": 1}),
    "one of each": ([1, 1], {"n": 1}),
    "blocks of rows": ([40, 300, 30, 3], {"n": 1100}),
    "packed weights and rows": ([20, 700, 400, 3], {"n": 330}),
    "packed rows": ([9, 130, 131, 90], {"n": 330, "output": "softmax"}),
    "wide input": ([9001, 3, 2], {"n": 20}),
    "many classes": ([6, 20, 300], {"n": 400, "output": "softmax"}),
    "many classes, rows": ([6, 20, 300], {"n": 400, "output": "softmax", "as_rows": True}),
    "three tiles": ([4, 16, 16, 3], {"n": 1300, "output": "softmax"}),
    "one unit": ([1, 400, 1, 400, 1], {"n": 90}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("variant")
def test_shapes_and_numbers_of_threads(name, dtype, threads):
    sizes, options = SHAPES[name]
    options = {"hidden": "relu", "l2": 0.5, "dtype": dtype, **options}
    results = []
    # Among them more than processors, and more than there is work for.
    for count in (1, 2, 3, 5, 70):
        threads(count)
        objective, parameters, data = drawn(sizes, **options)
        value, gradient = evaluated(objective, parameters, data)(parameters)
        results.append((value, gradient.tobytes()))
    assert all(result == results[0] for result in results)
    assert_equals_the_core(sizes, **options)


@pytest.mark.parametrize("sizes", [(4, 6, 3), (40, 90, 3)], ids=["narrow", "wide"])
@pytest.mark.usefixtures("variant")
def test_each_call_has_its_parameters_and_rounds_them(sizes, threads):
    threads(2)
    objective, first, data = drawn(sizes, n=70, l2=0.1, dtype="float32")
    evaluate = evaluated(objective, first, data)
    second = np.random.default_rng(0).standard_normal(len(first))
    results = []
    for parameters in (first, second, first, second.astype(np.float32)):
        value, gradient = evaluate(parameters)
        results.append((value, gradient.tobytes()))
    assert results[0] == results[2] != results[1] == results[3]
    # What is not finite is said, not refused: a line search goes back.
    value, gradient = evaluate(np.full(len(first), np.inf))
    assert not np.isfinite(value)
    assert not np.isfinite(gradient).all()
    value, gradient = evaluate(first)
    assert (value, gradient.tobytes()) == results[0]


@pytest.mark.usefixtures("variant")
def test_values_of_float32_can_be_compared():
    # The shares of rows are rounded alike at all points; a sum in float32 would add some 5e-8.
    objective, start, data = drawn([3, 20, 1], n=5000, dtype="float32", weighted=False)
    evaluate = evaluated(objective, start, data)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        parameters = (start + 1e-3 * rng.standard_normal(len(start))).astype(np.float32)
        doubles = (x.astype(np.float64) for x in (parameters, data.X, data.y))
        errors.append(evaluate(parameters)[0] / float(objective.value(np, *doubles)) - 1)
    assert np.std(errors) < 1.5e-8
    assert np.abs(errors).max() < 2**-23


@pytest.mark.usefixtures("variant")
def test_own_formulas_that_are_not_recorded():
    def branching(xp, Z):
        return Z if float(xp.max(Z)) > 0 else 0.1 * Z

    activation = nb.Activation("branching", branching, lambda xp, Z, _A: xp.ones_like(Z))

    class Branching(nb.losses.SquaredError):
        def elements(self, xp, Z, Y):
            assert float(xp.max(Z)) < 1e9, "so large a logit"
            return super().elements(xp, Z, Y)

    sizes = [5, 20, 3]
    assert_equals_the_core(sizes, hidden=activation, l2=0.1)
    assert_equals_the_core(sizes, loss=Branching(), l2=0.1)
    objective, parameters, data = drawn(sizes, loss=Branching())
    evaluate = evaluated(objective, parameters, data)
    expected = evaluate(parameters)[0]
    with pytest.raises(AssertionError, match="so large a logit"):
        evaluate(1e12 * parameters)
    assert evaluate(parameters)[0] == expected


@pytest.mark.parametrize("sizes", [(4, 6, 3), (40, 90, 3)], ids=["narrow", "wide"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.usefixtures("variant")
def test_a_training_goes_on_as_if_nobody_had_asked_for_a_gradient(sizes, count, threads):
    threads(count)
    results = []
    for asks in (False, True):
        objective, parameters, data = drawn(sizes, n=64, dropout=0.3, l2=0.1)
        problem = Problem(objective, nb.Adam(0.01), 64, clip_norm=0.1)
        generator = np.random.default_rng(3)
        engine = NativeEngine(Start(problem, get_device("cpu"), parameters, data, generator))
        losses = []
        for _ in range(3):
            losses += engine.run(data, None, [[0.01]])[0].tolist()
            if asks:
                value, _ = engine.value_and_gradient(data)
                expected = objective.value(np, engine.parameters, *data.arrays)
                assert value == pytest.approx(float(expected), rel=1e-12)
        results.append((losses, engine.parameters.tobytes()))
    assert results[0] == results[1]


def test_rows_are_one_batch():
    objective, parameters, data = drawn([3, 4, 2], n=20, weighted=False)
    problem = Problem(objective, nb.SGD(0.01), 19)
    start = Start(problem, get_device("cpu"), parameters, data, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected 1 to 19 rows, got 20"):
        NativeEngine(start).value_and_gradient(data)
    with pytest.raises(ValueError, match="got 0"):
        NativeEngine(start).value_and_gradient(Data(data.X[:0], data.y[:0]))

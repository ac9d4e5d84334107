"""The native engine takes the reference engine's steps, whatever the problem and its shapes."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.core.activations import ACTIVATIONS, is_built_in
from nnbackend.engines.native.library import libraries

VARIANTS = list(libraries()) or ["none"]

# Sums are taken in another order: some roundings a step, over a few well-conditioned steps.
TOLERANCE = {
    "float64": {"rtol": 1e-10, "atol": 1e-12},
    "float32": {"rtol": 1e-4, "atol": 2e-5},
}


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """Each variant of the library that this machine runs."""
    monkeypatch.setenv("NNBACKEND_VARIANT", request.param)
    return request.param


def on_every_variant(work):
    """Call a function for each variant, where one drawn example is for all."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIANTS:
            patch.setenv("NNBACKEND_VARIANT", name)
            work()


def targets(output, n, n_outputs, *, as_rows, rng):
    """Draw targets that suit an output."""
    if output == "identity":
        return rng.standard_normal((n, n_outputs))
    if output == "exp":
        return rng.poisson(2.0, (n, n_outputs))
    if output == "sigmoid":
        return rng.integers(0, 2, n if n_outputs == 1 else (n, n_outputs))
    labels = rng.integers(0, n_outputs, n)
    return np.eye(n_outputs)[labels] if as_rows else labels


def outcome(
    engine,
    sizes,
    *,
    hidden="tanh",
    output="identity",
    dropout=0.0,
    dtype="float64",
    n=37,
    weighted=False,
    as_rows=False,
    **options,
):
    """Train on drawn data; return parameters, losses and the optimizer's state."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, sizes[0]))
    y = targets(output, n, sizes[-1], as_rows=as_rows, rng=rng)
    weight = rng.random(n) + 0.1 if weighted else None
    some = slice(n // 2 + 1)
    net = nb.Network(
        sizes, hidden=hidden, output=output, dropout=dropout, dtype=dtype, seed=1, device="cpu"
    )
    options = {"epochs": 3, "batch_size": 16, "optimizer": nb.SGD(0.05), "seed": 7, **options}
    history = nb.train(
        net, X, y, sample_weight=weight, engine=engine,
        validation_data=(X[some], y[some], weight if weight is None else weight[some]), **options,
    )  # fmt: skip
    assert net.parameters.dtype == dtype
    return {
        "parameters": net.parameters,
        "losses": history.loss,
        "validation losses": history.validation_loss,
        **{f"state {i}": a for i, a in enumerate(history.optimizer_state.arrays)},
    }


def assert_equals_the_reference(sizes, *, dtype="float64", check=None, **options):
    expected = outcome("reference", sizes, dtype=dtype, **options)
    found = outcome("native", sizes, dtype=dtype, **options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(
            found[name], value, **(check or TOLERANCE[dtype]), err_msg=f"{name} of {sizes}"
        )


# --- Formulas ---

SCHEDULES = nb.schedules
# Other tests register some of their own.
BUILT_IN = [name for name, activation in ACTIVATIONS.items() if is_built_in(activation)]
FORMULAS = {
    # Both programs of a layer: with dropout, and without.
    **{f"activation {name}": {"hidden": name} for name in BUILT_IN},
    **{
        f"activation {name}, dropout": {"hidden": name, "dropout": [0.0, 0.4]}
        for name in BUILT_IN
    },
    "sigmoid": {"output": "sigmoid"},
    "sigmoid, one output": {"output": "sigmoid", "n_outputs": 1},
    "exp": {"output": "exp"},
    "softmax, labels": {"output": "softmax"},
    "softmax, rows": {"output": "softmax", "as_rows": True},
    "softmax, smoothed labels": {
        "output": "softmax", "loss": nb.losses.SoftmaxCrossEntropy(label_smoothing=0.2)
    },
    "softmax, smoothed rows": {
        "output": "softmax", "as_rows": True,
        "loss": nb.losses.SoftmaxCrossEntropy(label_smoothing=0.2),
    },
    "identity, absolute error": {"loss": "absolute_error"},
    "identity, huber": {"loss": nb.losses.Huber(0.3)},
    **{
        f"{output}, {loss}": {"output": output, "loss": loss, "as_rows": True}
        for output in ("sigmoid", "softmax", "exp")
        for loss in ("squared_error", "absolute_error", "huber")
    },
    "momentum": {"optimizer": nb.SGD(0.05, momentum=0.9)},
    "dampening": {"optimizer": nb.SGD(0.05, momentum=0.9, dampening=0.3, weight_decay=0.01)},
    "nesterov": {"optimizer": nb.SGD(0.05, momentum=0.8, nesterov=True)},
    "rmsprop": {"optimizer": nb.RMSprop(1e-3)},
    "rmsprop, centered": {
        "optimizer": nb.RMSprop(1e-3, centered=True, momentum=0.5, weight_decay=0.01)
    },
    "adagrad": {"optimizer": nb.Adagrad(0.05)},
    "adagrad, accumulator": {
        "optimizer": nb.Adagrad(0.05, decay=0.1, initial_accumulator=0.1, weight_decay=0.01)
    },
    "adam": {"optimizer": nb.Adam(0.01)},
    "adam, decay": {"optimizer": nb.Adam(0.01, beta1=0.8, beta2=0.99, weight_decay=0.1)},
    "adamw": {"optimizer": nb.AdamW(0.01, weight_decay=0.1)},
    "schedule": {"optimizer": nb.Adam(SCHEDULES.Cosine(0.02)), "epochs": 5},
    "plateau": {"optimizer": nb.SGD(SCHEDULES.ReduceOnPlateau(0.1, patience=1)), "epochs": 6},
    "l1": {"l1": 0.01},
    "l2": {"l2": 0.1},
    "l1 and l2 per sample": {"l1": 0.1, "l2": 0.5, "penalty_per_sample": True},
    "clip_value": {"clip_value": 0.02},
    "clip_norm": {"clip_norm": 0.05},
    "clip_norm that is not reached": {"clip_norm": 1e3},
    "clip_value and clip_norm": {"clip_value": 0.02, "clip_norm": 0.05},
    "loss_by_rows": {"loss_by_rows": True, "l2": 0.1},
    "dropout": {"dropout": [0.5, 0.2], "hidden": ["tanh", "silu"]},
    "dropout, in order": {"dropout": 0.3, "shuffle": False},
    "everything": {
        "hidden": ["gelu", "elu"], "output": "softmax", "dropout": 0.3, "l1": 0.01, "l2": 0.1,
        "penalty_per_sample": True, "clip_value": 0.1, "clip_norm": 0.1, "loss_by_rows": True,
        "optimizer": nb.Adam(0.01, weight_decay=0.01),
    },
    "full batch": {"batch_size": None, "optimizer": nb.Adam(0.01)},
    "in order": {"shuffle": False},
    "no hidden layer": {"sizes": [5, 3]},
    "no hidden layer, one output": {"sizes": [5, 1], "output": "sigmoid"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.usefixtures("variant")
def test_every_formula_and_option(name):
    options = dict(FORMULAS[name])
    n_outputs = options.pop("n_outputs", 3)
    sizes = options.pop("sizes", [5, 7, 6, n_outputs])
    for weighted in (False, True):
        assert_equals_the_reference(sizes, weighted=weighted, **options)


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_and_option_with_one_unit_per_row(name):
    # Without dropout, few units and many rows are kept features-major: of one tile, and of two.
    options = {**FORMULAS[name], "dropout": 0.0}
    n_outputs = options.pop("n_outputs", 3)
    sizes = options.pop("sizes", [5, 7, 6, n_outputs])
    if not isinstance(options.get("hidden", ""), str):
        options["hidden"] = options["hidden"][0]
    for batch_size, n in ((35, 90), (None, 530)):
        options |= {"n": n, "batch_size": batch_size, "weighted": True}
        assert_equals_the_reference(sizes, **options)


@pytest.mark.parametrize("name", ["adam", "everything", "softmax, labels", "exp", "l1", "huber"])
@pytest.mark.usefixtures("variant")
def test_float32_stays_close(name):
    options = dict(FORMULAS[name if name in FORMULAS else "identity, huber"])
    if options.get("optimizer") is not None:
        # Where a gradient is next to 0, Adam's first steps depend on its sign alone.
        options["optimizer"] = nb.Adam(0.01, epsilon=0.1)
    assert_equals_the_reference([5, 7, 6, 3], dtype="float32", weighted=True, **options)


# --- Shapes ---

ROUND = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100]


@st.composite
def problems(draw):
    size = st.sampled_from(ROUND) | st.integers(1, 70)
    sizes = [draw(size), *draw(st.lists(size, max_size=3)), draw(size)]
    return sizes, {
        "n": draw(st.sampled_from([1, 2, 15, 16, 17, 33, 64, 100]) | st.integers(1, 150)),
        "batch_size": draw(st.none() | st.sampled_from(ROUND) | st.integers(1, 160)),
        "output": draw(st.sampled_from(["identity", "softmax", "sigmoid"])),
        "as_rows": draw(st.booleans()),
        "weighted": draw(st.booleans()),
        "shuffle": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.3])) if len(sizes) > 2 else 0.0,
        "l2": draw(st.sampled_from([0.0, 0.1])),
        "clip_norm": draw(st.sampled_from([None, 0.5])),
        "dtype": draw(st.sampled_from(["float64", "float64", "float32"])),
    }


@given(problem=problems())
@example(problem=([1, 1], {"n": 1}))
@example(problem=([1, 1, 1], {"n": 100, "batch_size": 33}))
@example(problem=([16, 16, 16, 16], {"n": 97, "batch_size": 48, "output": "softmax"}))
@example(problem=([17, 16, 16], {"n": 97, "batch_size": 96, "output": "softmax"}))
def test_any_shape(problem):
    sizes, options = problem
    if options.get("output") == "softmax" and sizes[-1] == 1:
        sizes = [*sizes[:-1], 2]
    options = {"optimizer": nb.SGD(0.02, momentum=0.5), "epochs": 2, **options}
    on_every_variant(lambda: assert_equals_the_reference(sizes, **options))


LARGE = {
    # 1000 rows of up to 300 units are 3 blocks.
    "blocks of rows": ([40, 300, 30, 3], {"n": 1100, "batch_size": 1000}),
    "several layers": ([130, 129, 128, 127, 10], {"n": 150, "batch_size": 65}),
    "few units below many": ([1000, 9, 1000, 1], {"n": 50, "batch_size": 33}),
    # More than 2^18 elements of the weights, and sums over more than 256 rows.
    "packed weights and rows": ([20, 700, 400, 3], {"n": 330, "batch_size": 290, "epochs": 1}),
    "packed weights": ([600, 500, 2], {"n": 60, "batch_size": 33, "epochs": 1}),
    "packed rows": ([9, 130, 131, 90], {"n": 330, "batch_size": 300, "epochs": 1}),
    "wider than the cache": ([20, 400, 2], {"n": 700, "batch_size": 650}),
    "wide input": ([9001, 3, 2], {"n": 40, "batch_size": 20}),
    "wide output": ([3, 2, 4099], {"n": 40, "batch_size": 20}),
    "many classes": ([6, 20, 300], {"n": 400, "batch_size": 100, "output": "softmax"}),
    "many classes, rows": (
        [6, 20, 300], {"n": 400, "batch_size": None, "output": "softmax", "as_rows": True}
    ),
    "many outputs": ([6, 20, 257], {"n": 400, "batch_size": 100, "output": "sigmoid"}),
    "three tiles": ([2, 3, 1], {"n": 1300, "batch_size": None}),
    "tiles of a batch": ([4, 16, 16, 3], {"n": 1300, "batch_size": 600, "output": "softmax"}),
    "tiles, one row left": ([4, 5, 3], {"n": 1026, "batch_size": 513}),
    "batches of one row": ([40, 70, 3], {"n": 9, "batch_size": 1}),
    "a batch larger than the data": ([40, 70, 3], {"n": 9, "batch_size": 10**9}),
    "a narrow batch larger than the data": ([4, 7, 3], {"n": 9, "batch_size": 10**9}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.usefixtures("variant")
def test_large_shapes(name, dtype):
    sizes, options = LARGE[name]
    options = {"optimizer": nb.SGD(0.01, momentum=0.5), "epochs": 2, "l2": 0.01, **options}
    assert_equals_the_reference(sizes, dtype=dtype, weighted=True, **options)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_hundred_layers(dtype):
    sizes = [4, *[12] * 100, 2]
    assert_equals_the_reference(sizes, dtype=dtype, hidden="tanh", n=40, epochs=1)


# --- Dropout ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["reference", "native"])
def test_masks_are_numpys_stream(engine, dtype):
    # Units of value 1, whose sum over the batch is what passes: the loss tells the masks.
    n, width, rate, epochs, batch = 21, 7, 0.375, 3, 8
    net = nb.Network([1, width, width], hidden="identity", output="identity", dropout=rate,
                     dtype=dtype, seed=1)  # fmt: skip
    net.set_parameters([np.zeros((1, width)), np.eye(width)], [np.ones(width), np.zeros(width)])
    seen = []

    class Told(nb.losses.SquaredError):
        """Tells the outputs, which are the masks; it branches on data, so it is not recorded."""

        def elements(self, xp, Z, Y):
            assert float(xp.max(Z)) >= 0
            seen.append(np.array(Z))
            return super().elements(xp, Z, Y)

    history = nb.train(
        net, np.zeros((n, 1)), np.zeros((n, width)), loss=Told(), optimizer=nb.SGD(1e-300),
        epochs=epochs, batch_size=batch, engine=engine, seed=3,
    )  # fmt: skip
    assert history.n_epochs == epochs
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(2)[1])
    sizes = [batch, batch, n % batch] * epochs
    masks = [
        (rng.random((size, width), dtype) >= rate).astype(dtype) / np.dtype(dtype).type(1 - rate)
        for size in sizes
    ]
    seen = [rows for rows in seen if np.ptp(rows) > 0]
    assert [rows.shape for rows in seen] == [mask.shape for mask in masks]
    for rows, mask in zip(seen, masks, strict=True):
        # Steps of 1e-300 in float64, and of 0 in float32.
        np.testing.assert_allclose(rows, mask, rtol=0, atol=1e-290)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_go_on_over_epochs_calls_and_checkpoints(dtype, tmp_path):
    draw = partial(
        outcome, "native", [3, 33, 9, 1], dropout=[0.2, 0.6], dtype=dtype, optimizer=nb.Adam(0.01)
    )
    whole = draw(epochs=4)
    # Callbacks look after each epoch; a checkpoint is gone on from.
    watched = draw(epochs=4, callbacks=lambda _: None)
    draw(epochs=2, checkpoint=tmp_path)
    resumed = draw(epochs=4, checkpoint=tmp_path, resume=True)
    for other in (watched, resumed):
        for name, value in whole.items():
            np.testing.assert_array_equal(other[name], value)
    expected = outcome(
        "reference", [3, 33, 9, 1], dropout=[0.2, 0.6], dtype=dtype, optimizer=nb.Adam(0.01),
        epochs=4,
    )  # fmt: skip
    np.testing.assert_allclose(whole["losses"], expected["losses"], rtol=1e-4)


# --- A user's own formulas ---


def many_values(xp, Z):
    """More values at once than a program has registers."""
    values = [xp.exp(-(k + 1.0) * Z * Z) for k in range(300)]
    total, squares = values[0], values[0] * values[0]
    for value in values[1:]:
        total = total + value
    # Each value once more, after all of them.
    for value in values[1:]:
        squares = xp.maximum(squares, value * total)
    return squares / 300.0


MANY_VALUES = nb.Activation("many_values", many_values, lambda xp, Z, _A: xp.ones_like(Z))


class ManyMoments(nb.SGD):
    """An optimizer with more arrays of state than any of the package's."""

    n_moments = 12

    @property
    def state_names(self):
        return tuple(f"m{i}" for i in range(self.n_moments))

    def init(self, xp, parameters):
        return tuple(xp.zeros_like(parameters) for _ in range(self.n_moments))

    def update(self, xp, parameters, gradient, state, coefficients):
        del xp
        state = tuple(0.5 * m + gradient / (i + 1.0) for i, m in enumerate(state))
        return parameters - coefficients[0] * sum(state[1:], state[0]), state


class Precise(nb.SGD):
    """Keeps a sum of gradients in float64, whatever the parameters are."""

    @property
    def state_names(self):
        return ("total",)

    def init(self, xp, parameters):
        return (xp.zeros(parameters.shape, dtype=xp.float64),)

    def update(self, xp, parameters, gradient, state, coefficients):
        total = state[0] + xp.astype(gradient, xp.float64)
        step = xp.astype(coefficients[0] * total, parameters.dtype)
        return parameters - step, (total,)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": MANY_VALUES},
        {"optimizer": ManyMoments(0.01)},
        {"optimizer": Precise(0.01)},
        {"optimizer": Precise(0.01), "clip_norm": 0.1, "l2": 0.1, "dropout": 0.3},
    ],
    ids=["registers", "state arrays", "state's dtype", "state's dtype, and more"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_formulas_beyond_what_a_program_holds(options, dtype):
    assert_equals_the_reference([5, 7, 3], dtype=dtype, **options)


# --- Data in parts ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
def test_buffers_of_a_source_and_batches_without_weight(output, dtype):
    rng = np.random.default_rng(0)
    n_outputs = {"softmax": 3, "sigmoid": 1, "identity": 2}[output]
    X = rng.standard_normal((203, 4))
    y = targets(output, 203, n_outputs, as_rows=False, rng=rng)
    gaps = np.where(np.arange(203) % 40 < 24, 0.0, rng.random(203))
    source = nb.sources.Arrays(X, y, gaps + 0.1, buffer_bytes=3000)
    cases = [
        {"X": source, "y": None},
        {"X": X, "y": y, "sample_weight": gaps, "batch_size": 8, "shuffle": False},
        {"X": X, "y": y, "sample_weight": gaps, "batch_size": 8, "loss_by_rows": True},
    ]
    for case in cases:
        results = []
        for engine in ("reference", "native"):
            net = nb.Network([4, 9, 7, n_outputs], output=output, dropout=0.2, dtype=dtype, seed=1)
            options = {"batch_size": 32, "epochs": 3, "seed": 3, "engine": engine, **case}
            history = nb.train(net, options.pop("X"), options.pop("y"), **options)
            results.append((net.parameters, history.loss))
        for expected, found in zip(*results, strict=True):
            np.testing.assert_allclose(found, expected, **TOLERANCE[dtype])

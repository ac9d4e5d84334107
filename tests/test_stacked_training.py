"""Networks that the reference engine trains as one stack end with what each has alone."""

import math
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import strict_gpu
from backends import load
from cupy_on_host import namespace
from devices import to_host
from hypothesis import given
from hypothesis import strategies as st
from own_formulas import SWAPPED, Cautious, Lopsided

import nnbackend as nb
from nnbackend.data.examples import Data, Resident
from nnbackend.device import get_device
from nnbackend.engines import stack, steps
from nnbackend.engines.base import EngineState, Evaluation, Problem, Start, Steps
from nnbackend.engines.driving import alone, together
from nnbackend.engines.reference import ReferenceEngine
from nnbackend.engines.stack import Stacks
from nnbackend.training.errors import DivergenceError
from nnbackend.training.loop import Loop
from nnbackend.training.options import TrainingOptions
from nnbackend.training.signals import Interruption

K, N, BATCH = 5, 41, 8  # the last batch has one row
SIZES = [4, 6, 5, 3]
PRODUCTS = 3 + 2 * 3 - 1  # of a step: forward, and backward without the gradient of X
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 4))
TARGETS = {
    "sigmoid": RNG.integers(0, 2, (N, 3)).astype(float),
    "softmax": RNG.integers(0, 3, N),
    "identity": RNG.standard_normal((N, 3)),
    "exp": RNG.poisson(2.0, (N, 3)).astype(float),
}
WEIGHT = RNG.random(N) + 0.1

# Each with all of its options; those that need not be equal differ from network to network.
OPTIMIZERS = {
    "sgd": lambda k: nb.SGD(0.1, weight_decay=0.01 * k),
    "sgd_momentum": lambda k: nb.SGD(0.1, 0.5 + 0.05 * k, 0.1 * k, weight_decay=0.01),
    "sgd_nesterov": lambda k: nb.SGD(0.1, 0.5 + 0.05 * k, nesterov=True),
    "rmsprop": lambda k: nb.RMSprop(0.1, 0.9 + 0.01 * k, 1e-8 * (k + 1)),
    "rmsprop_centered": lambda k: nb.RMSprop(
        0.1, 0.9 + 0.01 * k, momentum=0.5 + 0.1 * k, centered=True, weight_decay=0.01 * k
    ),
    "adagrad": lambda k: nb.Adagrad(0.1, 0.01 * k, 0.1 * k + 0.1, 1e-8 * (k + 1), 0.1 * k),
    "adam": lambda k: nb.Adam(0.1, 0.9 - 0.1 * k, 0.99 - 0.01 * k, 1e-8 * (k + 1), 0.01 * k),
    "adamw": lambda k: nb.AdamW(0.1, 0.9 - 0.1 * k, weight_decay=0.1 * k),
}


class Place:
    """The host's memory as a device, which counts products of arrays and what the host reads."""

    kind = "cpu"

    def __init__(self, xp=np, place=np.asarray, to_numpy=np.asarray):
        self.xp, self.place, self._to_numpy = self, place, to_numpy
        self._namespace = xp
        self.products = self.reads = 0

    def __getattr__(self, name):
        return getattr(self._namespace, name)

    def matmul(self, A, B):
        self.products += 1
        return self._namespace.matmul(A, B)

    def activate(self):
        return nullcontext()

    def to_numpy(self, x):
        self.reads += 1
        return self._to_numpy(x)

    def data(self, *arrays):
        return Data(*(None if x is None else self.place(x) for x in arrays))


class Training:
    """A training that a test drives: an engine, and the orders and rates of each epoch."""

    def __init__(self, k, place, data, optimizer=None, *, output="sigmoid", hidden="tanh",
                 dtype="float64", dropout=0.0, loss=None, l1=0.0, l2=0.0, per_sample=False,
                 epochs=2, n_rows=N, in_order=False, validation=None, batch=BATCH, rate=0.05,
                 cuts=1, **clips):  # fmt: skip
        net = nb.Network(SIZES, hidden=hidden, output=output, dtype=dtype, seed=k, dropout=dropout)
        objective = net.objective(loss, l1, l2, penalty_per_sample=per_sample)
        problem = Problem(objective, optimizer or nb.SGD(0.1), batch, **clips)
        parameters = place.place(np.asarray(net.parameters))
        self._data, self._validation, self._cuts = data, validation, cuts
        self._batch = batch
        self.engine = ReferenceEngine(
            Start(problem, place, parameters, data, np.random.default_rng(k))
        )
        rng = np.random.default_rng(100 + k)
        n_steps = math.ceil(n_rows / batch)
        # They take some rows twice, and others not at all.
        orders = [
            None if in_order else rng.integers(0, data.n_samples, n_rows) for _ in range(epochs)
        ]
        rates = [rate * (1 + k) / (1 + step) for step in range(n_steps)]
        self.epochs = [(order, rates) for order in orders]

    def __call__(self):
        losses = []
        for order, rates in self.epochs:
            ends = [len(rates) * cut // self._cuts for cut in range(self._cuts + 1)]
            for first, last in pairwise(ends):
                rows = slice(first * self._batch, last * self._batch)
                orders = None if order is None else [order[rows]]
                _, (found, is_finite) = yield Steps(
                    self.engine, self._data, orders, [rates[first:last]], last == ends[-1]
                )
            losses.append(float(found[0]))
            if not bool(is_finite):
                self.engine.restore_finite()
                break
            if self._validation is not None:
                _, loss = yield Evaluation(self.engine, self._validation)
                losses.append(float(loss))
        return losses

    def outcome(self, losses):
        state = self.engine.state
        arrays = state.parameters, state.finite, *state.optimizer.arrays
        exact = state.optimizer.step, state.totals, state.dropout
        return [np.asarray(losses), *map(np.asarray, arrays)], exact


def assert_as_alone(make, place, *, stacks, n=K, rtol=1e-12):
    """Train ``make(k)`` alone and all together, and compare; count the stacks by the products."""
    singles = []
    for k in range(n):
        training = make(k)
        place.products = 0
        singles.append(training.outcome(alone(training())))
    products, place.products, place.reads = place.products, 0, 0
    trainings = [make(k) for k in range(n)]
    for ended in together((training() for training in trainings), n):
        assert ended.error is None
        found, exact = trainings[ended.number].outcome(ended.value)
        expected, said = singles[ended.number]
        assert exact == said
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)
    assert place.products == stacks * products > 0
    # The networks differ, so that one result for all would not pass.
    assert len({found[1].tobytes() for found, _ in singles}) == n


def strict_place():
    backend = load("strict", "float64")
    return Place(backend.xp, backend.array, backend.host)


on_each_namespace = pytest.mark.parametrize("place", [Place, strict_place], ids=["numpy", "strict"])


@on_each_namespace
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_with_all_that_may_differ(place, name):
    place = place()
    data = place.data(X, TARGETS["softmax"], WEIGHT)
    validation = place.data(X[:9], np.eye(3)[TARGETS["softmax"][:9]], WEIGHT[:9])

    def make(k):
        return Training(
            k, place, data, OPTIMIZERS[name](k), output="softmax", validation=validation,
            dropout=[0.1 + 0.1 * k, 0.0], l1=0.01 * (k % 2), l2=0.01 * k, per_sample=True,
            clip_value=0.1 + 0.01 * k, clip_norm=0.2 + 0.1 * k, loss_by_rows=name == "adam",
        )  # fmt: skip

    assert_as_alone(make, place, stacks=1)


DATA = {
    "rows of the same": {},
    "the same": {"in_order": True},
    "own": {"own": True, "in_order": True},
    "rows of own": {"own": True},
    "one batch": {"batch": N},
    "one batch of the same": {"batch": N, "in_order": True},
    "parts": {"cuts": 3},
}


CASES = [(output, weighted, Place) for output in TARGETS for weighted in (False, True)]


@pytest.mark.parametrize(("output", "weighted", "place"), [*CASES, ("softmax", True, strict_place)])
@pytest.mark.parametrize("options", DATA.values(), ids=DATA)
def test_data(options, output, weighted, place):
    options, place = dict(options), place()
    weight = WEIGHT if weighted else None
    own = [place.data(X, TARGETS[output], weight)] * K
    if options.pop("own", False):
        weights = [None if weight is None else weight[::-1] + k for k in range(K)]
        own = [place.data(X + k, TARGETS[output], weights[k]) for k in range(K)]
    loss = {"identity": "huber", "sigmoid": "squared_error"}.get(output)

    def make(k):
        return Training(
            k, place, own[k], nb.Adam(), output=output, loss=loss, l2=0.1, rate=0.01, **options
        )

    assert_as_alone(make, place, stacks=1)


def test_numbers_are_rounded_once():
    # 1 - beta2 of float32 numbers would have an error of 1e-5.
    place = Place()
    data = place.data(X.astype("float32"), TARGETS["sigmoid"].astype("float32"))

    def make(k):
        optimizer = nb.Adam(beta2=0.999 - 1e-4 * k)
        return Training(k, place, data, optimizer, dtype="float32", epochs=1, n_rows=BATCH)

    assert_as_alone(make, place, stacks=1, rtol=3e-7)


@pytest.mark.parametrize(
    "formulas",
    [{"hidden": SWAPPED}, {"loss": Lopsided(), "output": "identity"}, {"optimizer": Cautious(0.1)}],
    ids=["activation", "loss", "optimizer"],
)
def test_formulas_of_a_user_see_their_own_network_alone(formulas):
    place = Place()
    data = place.data(X, TARGETS[formulas.get("output", "sigmoid")])
    assert_as_alone(lambda k: Training(k, place, data, **formulas), place, stacks=K)


def test_what_has_to_be_equal_makes_stacks_of_its_own():
    place = Place()
    data = place.data(X, TARGETS["sigmoid"])
    unlike = [
        {},
        {"hidden": "relu"},
        {"loss": "squared_error"},
        {"optimizer": nb.Adam()},
        {"optimizer": nb.SGD(momentum=0.5)},
        {"clip_norm": 0.1},
        {"dropout": 0.1},
        {"per_sample": True, "l2": 0.1},
    ]

    def make(k):
        return Training(k, place, data, **unlike[k % len(unlike)])

    assert_as_alone(make, place, stacks=len(unlike), n=2 * len(unlike))


def test_a_stack_is_as_large_as_memory_allows(monkeypatch):
    place = Place()
    data = place.data(X, TARGETS["sigmoid"])
    validation = place.data(X[:7], TARGETS["sigmoid"][:7])

    def make(k):
        return Training(k, place, data, validation=validation)

    n_parameters = make(0).engine.parameters.size
    # A step has fewer activations.
    assert n_parameters > BATCH * max(SIZES)
    for elements, stacks in ((2 * n_parameters, 3), (3 * n_parameters, 2), (1, K)):
        monkeypatch.setattr(stack, "_CPU_ELEMENTS", elements)
        assert_as_alone(make, place, stacks=stacks)


def test_validation_data_goes_in_blocks(monkeypatch):
    place, n = Place(), 600
    data = place.data(X, TARGETS["sigmoid"], WEIGHT)
    large = place.data(*(np.tile(x, (15, 1))[:n] for x in (X, TARGETS["sigmoid"])), np.arange(n))
    whole = [float(Training(k, place, data).engine.data_loss(large)) for k in range(K)]
    monkeypatch.setattr(steps, "DEVICE_ELEMENTS", 1)
    tasks = [Evaluation(Training(k, place, data).engine, large) for k in range(K)]
    place.products = 0
    done = Stacks().do(tasks)
    # Three blocks of 256 rows, three layers.
    assert place.products == 9
    np.testing.assert_allclose([entry.value for entry in done], whole, rtol=1e-12)


def test_a_wrong_order_ends_its_own_training():
    place = Place()
    data = place.data(X, TARGETS["sigmoid"])

    def make(k):
        training = Training(k, place, data, dropout=0.2)
        if k == 2:
            training.epochs[1][0][3] = N
        return training

    trainings = [make(k) for k in range(K)]
    for ended in together((training() for training in trainings), K):
        if ended.number == 2:
            assert isinstance(ended.error, IndexError)
            continue
        single = make(ended.number)
        (losses, parameters, *_), exact = single.outcome(alone(single()))
        found, same = trainings[ended.number].outcome(ended.value)
        np.testing.assert_allclose(found[0], losses, rtol=1e-12)
        np.testing.assert_allclose(found[1], parameters, rtol=1e-12, atol=1e-12)
        assert exact == same


@pytest.mark.parametrize("weighted", [False, True])
def test_states_of_checkpoints_within_an_epoch(weighted):
    place = Place()
    data = place.data(X, TARGETS["sigmoid"], WEIGHT if weighted else None)

    def make(k):
        training = Training(k, place, data, nb.Adam(), cuts=2)
        engine = training.engine
        engine.run(data, [np.arange(k + 1)], [[0.1]], ends=False)
        state = engine.state
        # Floats, as a file has them, for some of the networks.
        if k < 2:
            engine.set_state(EngineState(*state[:3], state.totals))
        return training

    for k in range(K):
        make(k)
    trainings = [make(k) for k in range(K)]
    for ended in together((training() for training in trainings), K):
        single = make(ended.number)
        expected, exact = single.outcome(alone(single()))
        found, same = trainings[ended.number].outcome(ended.value)
        assert exact == same
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_device_is_read_once_an_epoch_for_all(monkeypatch):
    xp = namespace(monkeypatch)
    place = Place(xp, xp.asarray)
    data = place.data(X, TARGETS["sigmoid"], WEIGHT)

    def make(k):
        return Training(
            k, place, data, OPTIMIZERS["adam"](k), dropout=0.1 * (k + 1), l1=0.1 * k, l2=0.1,
            validation=data, clip_norm=1.0 + k, clip_value=0.1 + k,
        )  # fmt: skip

    # Arrays of this namespace refuse every other way to read them.
    trainings = [make(k) for k in range(K)]
    assert all(ended.error is None for ended in together((one() for one in trainings), K))
    # The losses of both epochs, and those of the validation data after each.
    assert place.reads == 4


def test_what_leaves_an_engine_is_no_part_of_the_stack():
    place = Place()
    data = place.data(X, TARGETS["sigmoid"])
    trainings = [Training(k, place, data, nb.Adam()) for k in range(K)]
    list(together((training() for training in trainings), K))
    for training in trainings:
        engine = training.engine
        state = engine.state
        kept = (engine.snapshot(), state.parameters, state.finite, *engine.optimizer_state.arrays)
        assert all(array.base is None for array in kept)


def loop(k, data, *, validation=None, device="cpu", rate=0.1, **options):
    """Return the loop of a training, and its network."""
    net = nb.Network(SIZES, hidden="tanh", dtype="float64", seed=k, device=device, dropout=0.1)
    options = TrainingOptions(optimizer=nb.Adam(rate), batch_size=BATCH, **options)
    problem = Problem(net.objective(l2=1e-3 * k), options.optimizer, BATCH)
    dropout, shuffle = (np.random.default_rng([k, part]) for part in range(2))
    start = Start(problem, get_device(device), net.parameters, data, dropout)
    examples = Resident(data, BATCH, shuffle=True)
    return net, Loop(
        net, ReferenceEngine(start), problem, examples, validation, options, shuffle, Interruption()
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_loops_stop_early_and_diverge_one_by_one(monkeypatch, device):
    if device == "cuda":
        strict_gpu.install(monkeypatch)
    place = get_device(device).place
    noise = (np.random.default_rng(1).random((N, 3)) < 0.5).astype(float)
    data = Data(place(X), place(noise), place(WEIGHT))
    validation = Data(place(X[:20]), place(TARGETS["sigmoid"][:20]))

    def make(k):
        rate = 1e200 if k == 3 else 0.05 + 0.02 * k
        rule = nb.EarlyStopping(patience=1 + k % 4, restore_best=k % 2 == 0)
        return loop(
            k, data, validation=validation, device=device, rate=rate, epochs=30,
            early_stopping=rule,
        )  # fmt: skip

    made = [make(k) for k in range(2 * K)]
    said = {}
    for ended in together((one.run() for _, one in made), len(made)):
        net, own = make(ended.number)
        said[ended.number] = made[ended.number][1].history
        if ended.number == 3:
            with pytest.raises(DivergenceError) as alone_:
                alone(own.run())
            assert str(ended.error) == str(alone_.value)
        else:
            history = alone(own.run())
            assert ended.value.stopped == history.stopped
            assert ended.value.best_epoch == history.best_epoch
            np.testing.assert_allclose(ended.value.loss, history.loss, rtol=1e-10)
            np.testing.assert_allclose(
                ended.value.validation_loss, history.validation_loss, rtol=1e-10
            )
        np.testing.assert_allclose(
            to_host(made[ended.number][0].parameters), to_host(net.parameters),
            rtol=1e-10, atol=1e-10,
        )  # fmt: skip
    assert said[3].stopped == "diverged"
    assert len({history.n_epochs for history in said.values()}) > 3


numbers = st.sampled_from([0.0, 0.01, 0.1])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "optimizer": st.builds(
                    lambda kind, k: OPTIMIZERS[kind](k),
                    st.sampled_from(["sgd", "sgd_momentum", "adam", "adamw"]),
                    st.integers(0, 4),
                ),
                "l1": numbers,
                "l2": numbers,
                "dropout": st.sampled_from([0.0, 0.3, [0.2, 0.0], [0.1, 0.4]]),
                "clip_norm": st.sampled_from([None, 0.1, 1.0]),
                "clip_value": st.sampled_from([None, 0.01]),
                "per_sample": st.booleans(),
                "epochs": st.integers(1, 3),
                "n_rows": st.sampled_from([7, 16, 19]),
                "in_order": st.booleans(),
                "batch": st.sampled_from([7, 8]),
            }
        ),
        min_size=2,
        max_size=6,
    )
)
def test_any_networks_train_side_by_side(settings):
    place = Place()
    data = place.data(X, TARGETS["sigmoid"], WEIGHT)

    def make(k):
        own = dict(settings[k])
        if own["in_order"]:
            own["n_rows"] = N
        return Training(k, place, data, **own)

    trainings = [make(k) for k in range(len(settings))]
    for ended in together((training() for training in trainings), 4):
        single = make(ended.number)
        expected, exact = single.outcome(alone(single()))
        found, same = trainings[ended.number].outcome(ended.value)
        assert exact == same
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("error", "sizes"), [(RuntimeError, [K]), (MemoryError, [K, 1, 2])])
def test_a_stack_that_fails_by_itself_is_told_and_not_tried_again(
    monkeypatch, caplog, error, sizes
):
    place = Place()
    data = place.data(X, TARGETS["sigmoid"])
    tried = []

    def run(tasks):
        tried.append(len(tasks))
        if len(tasks) == K:
            raise error("too large")
        return [task.do() for task in tasks]

    monkeypatch.setattr(stack, "_run", run)
    trainings = [Training(k, place, data, nb.Adam()) for k in range(K)]
    with caplog.at_level("WARNING", logger="nnbackend"):
        list(together((training() for training in trainings), K))
    assert sorted(set(tried)) == sorted(set(sizes) - {1})
    assert tried.count(K) == 1
    assert len(caplog.records) == 1
    assert f"a stack of {K} networks failed ({error.__name__}: too large)" in caplog.text

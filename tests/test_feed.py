"""Batches that the caller brings, and trainings that go on: nothing is lost on the way."""

from functools import partial

import factories
import numpy as np
import pytest
from devices import on_each_device, on_each_engine, to_host

import nnbackend as nb

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 4))
Y = (X[:, 0] > 0).astype(int)
OPTIONS = {"optimizer": nb.Adam(0.01), "epochs": 4}


network = partial(factories.network, (4, 6, 1))


def batches(size=16):
    return [(X[start : start + size], Y[start : start + size]) for start in range(0, 70, size)]


@on_each_device
def test_a_list_of_batches_trains_as_its_arrays_do(device):
    expected, net = network(device=device), network(device=device)
    said = nb.train(expected, X, Y, batch_size=16, shuffle=False, engine="reference", **OPTIONS)
    history = nb.train(net, batches(), validation_data=(X, Y), **OPTIONS)
    np.testing.assert_array_equal(to_host(net.parameters), to_host(expected.parameters))
    assert history.loss == said.loss
    assert history.n_samples == 70
    assert len(history.validation_loss) == 4


def test_a_torch_data_loader_trains(torch):
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    expected, net = network(), network()
    nb.train(expected, batches(), **OPTIONS)
    nb.train(net, loader, **OPTIONS)
    np.testing.assert_array_equal(net.parameters, expected.parameters)


def test_a_data_loader_of_unknown_length_is_refused(torch):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(batches())

    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    with pytest.raises(nb.InputError, match=r"X: expected batches that have a length.*DataLoader"):
        nb.train(network(), loader, **OPTIONS)


def test_weights_come_with_the_batches():
    weight = RNG.random(70)
    weighted = [
        (X[rows], Y[rows], weight[rows])
        for rows in (slice(start, start + 16) for start in range(0, 70, 16))
    ]
    expected, net = network(), network()
    nb.train(expected, X, Y, sample_weight=weight, batch_size=16, shuffle=False, **OPTIONS)
    nb.train(net, weighted, **OPTIONS)
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-12)


class Miscounted(list):
    """Says that it has one batch more than it has."""

    def __len__(self):
        return super().__len__() + 1


class Undercounted(list):
    """Says that it has one batch less than it has."""

    def __len__(self):
        return super().__len__() - 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (X, "y: expected an array, got None; pass it, or for X an iterable of batches"),
        (3, "y: expected an array, got None"),
        ((batch for batch in batches()), "X: expected batches that have a length .*got generator"),
        ([], "X: expected at least one batch, got none"),
        ([X[:16]], r"X\[0\]: expected a batch \(X, y\) or .*got ndarray"),
        ([*batches()[:1], (X[:3, :2], Y[:3])], r"X\[1\]\[0\]: expected 4 features"),
        ([batches()[0][:1]], r"X\[0\]: expected a batch .*got tuple of 1; if X is data, pass y"),
        (Miscounted(batches()), "X: expected 6 batches in every epoch, as its length says, got 5"),
        (Undercounted(batches()), "X: expected 4 batches in every epoch, .*got more"),
    ],
)
def test_what_is_no_iterable_of_batches_is_refused(given, message):
    with pytest.raises(nb.InputError, match=message):
        nb.train(network(), given, **OPTIONS)


def test_weights_beside_batches_are_refused():
    with pytest.raises(nb.InputError, match="sample_weight: expected None without y"):
        nb.train(network(), batches(), sample_weight=np.ones(70), **OPTIONS)


def test_other_engines_take_arrays():
    with pytest.raises(
        nb.InputError, match=r"engine: expected 'auto' or 'reference'.*got 'native'"
    ):
        nb.train(network(), batches(), engine="native", **OPTIONS)


# A training that goes on --------------------------------------------------------------------------

OPTIMIZERS = [nb.SGD(0.1, momentum=0.9, dampening=0.5), nb.RMSprop(0.01, centered=True),
              nb.Adagrad(0.1, decay=0.1), nb.Adam(0.01), nb.AdamW(0.01)]  # fmt: skip


@on_each_engine
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_two_trainings_with_the_optimizers_state_are_one(optimizer, engine):
    options = {"optimizer": optimizer, "batch_size": 16, "shuffle": False, "engine": engine}
    whole, halves = network(), network()
    nb.train(whole, X, Y, epochs=6, **options)
    history = nb.train(halves, X, Y, epochs=2, **options)
    assert history.optimizer_state.step == 10
    nb.train(halves, X, Y, epochs=4, optimizer_state=history.optimizer_state, **options)
    np.testing.assert_array_equal(halves.parameters, whole.parameters)


@on_each_engine
def test_orders_may_be_drawn_by_the_caller(engine):
    orders = [RNG.permutation(70) for _ in range(4)]
    remaining = iter(orders)
    options = {"batch_size": 16, "engine": engine}
    net, expected = network(), network()
    nb.train(net, X, Y, shuffle=lambda: next(remaining), **options, **OPTIONS)
    state = None
    for order in orders:
        history = nb.train(
            expected, X[order], Y[order], shuffle=False, optimizer=nb.Adam(0.01), epochs=1,
            optimizer_state=state, **options,
        )  # fmt: skip
        state = history.optimizer_state
    np.testing.assert_array_equal(net.parameters, expected.parameters)
    with pytest.raises(nb.InputError, match="shuffle: expected the callable to return the numbers"):
        nb.train(net, X, Y, shuffle=lambda: [0, 0], **OPTIONS)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("no state", "optimizer_state: expected the optimizer_state of a History, got str"),
        (nb.train(network(), X, Y, optimizer="sgd", epochs=1).optimizer_state,
         r"optimizer_state: expected 2 arrays .*adam has for this network, got shapes \[\]"),
    ],
)  # fmt: skip
def test_a_state_of_something_else_is_refused(state, message):
    with pytest.raises(nb.InputError, match=message):
        nb.train(network(), X, Y, optimizer_state=state, **OPTIONS)


@on_each_engine
def test_penalties_per_sample_are_divided_by_a_batchs_weight(engine):
    weight = RNG.random(70)
    per_sample, per_batch = network(), network()
    options = {"batch_size": None, "engine": engine, "sample_weight": weight, **OPTIONS}
    said = nb.train(per_sample, X, Y, l2=3.0, l1=1.0, penalty_per_sample=True, **options)
    total = weight.sum()
    history = nb.train(per_batch, X, Y, l2=3.0 / total, l1=1.0 / total, **options)
    np.testing.assert_allclose(per_sample.parameters, per_batch.parameters, rtol=1e-12)
    np.testing.assert_allclose(said.loss, history.loss, rtol=1e-12)

"""A row of weight 0 is as if it were not there, and so is a batch of such rows."""

from functools import partial

import factories
import numpy as np
import pytest
import strict_gpu
from devices import on_each_engine
from hypothesis import given, settings
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.device import get_device
from nnbackend.sources import Arrays, Rows, Source

N_BATCHES, SIZE = 6, 5
N = N_BATCHES * SIZE - 2
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 3))
Y = (X[:, 0] > 0).astype(int)
CUTS = [slice(start, start + SIZE) for start in range(0, N, SIZE)]
OPTIMIZERS = [nb.SGD(0.1, momentum=0.9), nb.Adam(0.05), nb.AdamW(0.05, weight_decay=0.1)]
OPTIONS = {"epochs": 2, "batch_size": SIZE, "shuffle": False, "l1": 0.01, "l2": 0.1}


class Blocks(Source):
    """A source whose parts are few batches each."""

    n_samples, n_features, block_rows = N, 3, SIZE

    def __init__(self, weight):
        super().__init__(buffer_bytes=2**12)
        self.weight = weight

    def read(self, start, stop):
        return Rows(X[start:stop], Y[start:stop], self.weight[start:stop])


def arrays(net, weight, engine="reference", **options):
    return nb.train(net, X, Y, sample_weight=weight, engine=engine, **options)


FORMS = {
    "arrays": arrays,
    "arrays, engine='native'": lambda *a, **k: arrays(*a, engine="native", **k),
    "batches": lambda net, weight, **k: nb.train(
        net, [(X[rows], Y[rows], weight[rows]) for rows in CUTS], **k
    ),
    "a source": lambda net, weight, **k: nb.train(net, Blocks(weight), engine="reference", **k),
    "a source, engine='native'": lambda net, weight, **k: nb.train(
        net, Blocks(weight), engine="native", **k
    ),
}


network = partial(factories.network, (3, 4, 1))


@pytest.mark.parametrize("form", FORMS)
@given(
    empty=st.sets(st.integers(0, N_BATCHES - 1), min_size=1, max_size=N_BATCHES - 1),
    optimizer=st.sampled_from(OPTIMIZERS),
    per_sample=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=8)
def test_a_batch_without_weight_is_a_batch_that_is_left_out(
    form, empty, optimizer, per_sample, seed
):
    # Some rows of the others have no weight either.
    weight = np.random.default_rng(seed).integers(0, 3, N).astype("float64")
    weight[::SIZE] = 1.5
    for number in empty:
        weight[CUTS[number]] = 0
    options = {**OPTIONS, "optimizer": optimizer, "penalty_per_sample": per_sample}
    net, expected = network(), network()
    history = FORMS[form](net, weight, **options)
    left = [rows for number, rows in enumerate(CUTS) if number not in empty]
    said = nb.train(expected, [(X[rows], Y[rows], weight[rows]) for rows in left], **options)
    # Rows in other buffers: BLAS may sum in another order, over 10 steps.
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(history.loss, said.loss, rtol=1e-11)
    assert history.optimizer_state.step == said.optimizer_state.step == 2 * len(left)


@on_each_engine
def test_shuffled_batches_without_weight_are_left_out_too(engine):
    weight = np.where(np.arange(N) < 4, 1.0, 0.0)
    net = network()
    history = arrays(net, weight, engine, **{**OPTIONS, "epochs": 3, "shuffle": True})
    orders = np.random.default_rng(np.random.SeedSequence(0).spawn(2)[0])
    expected, state, n_steps = network(), None, 0
    for _ in range(3):
        order = orders.permutation(N)
        for rows in (order[cut] for cut in CUTS):
            if weight[rows].any():
                n_steps += 1
                state = nb.train(
                    expected, X[rows], Y[rows], sample_weight=weight[rows], l1=0.01, l2=0.1,
                    epochs=1, batch_size=None, optimizer_state=state,
                ).optimizer_state  # fmt: skip
    assert history.optimizer_state.step == n_steps < 3 * N_BATCHES
    np.testing.assert_allclose(net.parameters, expected.parameters, rtol=1e-11, atol=1e-13)


def test_on_a_gpu_they_are_left_out_as_on_the_cpu(monkeypatch):
    weight = np.ones(N)
    weight[CUTS[1]] = weight[CUTS[4]] = 0
    expected = network()
    arrays(expected, weight, "reference", **OPTIONS)
    strict_gpu.install(monkeypatch)
    net = network(device="cuda")
    arrays(net, weight, **OPTIONS)
    np.testing.assert_array_equal(get_device("cuda").to_numpy(net.parameters), expected.parameters)


@pytest.mark.parametrize("stop", range(1, N_BATCHES))
def test_training_goes_on_after_a_batch_that_was_left_out(stop, tmp_path):
    weight = np.ones(N)
    weight[CUTS[1]] = weight[CUTS[2]] = weight[CUTS[5]] = 0
    whole, net = network(), network()
    arrays(whole, weight, **OPTIONS)
    kept = {"checkpoint": tmp_path, "checkpoint_every": stop / N_BATCHES, "checkpoints_kept": 99}
    arrays(network(), weight, **{**OPTIONS, "epochs": 1}, **kept)
    newest = sorted(tmp_path.glob("*.safetensors"))
    assert len(newest) > 1
    newest[-1].unlink()
    arrays(net, weight, **OPTIONS, **kept, resume=True)
    np.testing.assert_array_equal(net.parameters, whole.parameters)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_weights_of_zero_is_refused_and_changes_nothing(form):
    net = network()
    before = net.parameters.copy()
    with pytest.raises(nb.InputError, match=r"^(sample_weight|X): expected weights >= 0 that are "):
        FORMS[form](net, np.zeros(N), **OPTIONS)
    np.testing.assert_array_equal(net.parameters, before)


@pytest.mark.parametrize("form", ["batches", "a source"])
def test_a_batch_without_weight_is_checked_as_others_are(form):
    weight = np.ones(N)
    weight[CUTS[2]] = [0, 0, -1, 0, 0]
    with pytest.raises(nb.InputError, match=r"weights >= 0, got a smallest of -1"):
        FORMS[form](network(), weight, **OPTIONS)


def test_validation_rows_without_weight_count_for_nothing():
    weight = np.where(np.arange(N) % 4 == 0, 1.0, 0.0)
    histories = [
        nb.train(network(), X, Y, validation_data=data, epochs=2, engine="reference")
        for data in ((X, Y, weight), (X[::4], Y[::4]))
    ]
    assert histories[0].validation_loss == pytest.approx(histories[1].validation_loss, rel=1e-13)


@pytest.mark.parametrize("make", [nb.MLPClassifier, nb.MLPRegressor])
def test_partial_fit_leaves_blocks_without_weight_out(make):
    weight = np.ones(1850)
    weight[400:900] = 0
    features = np.random.default_rng(0).standard_normal((1850, 3))
    labels = (features[:, 0] > 0).astype(int)
    options = {"hidden_layer_sizes": (4,), "random_state": 0, "batch_size": 50}
    more = {"classes": [0, 1]} if make is nb.MLPClassifier else {}
    source = Arrays(features, labels, weight, buffer_bytes=2**15)
    model, expected = make(**options), make(**options)
    blocks = list(source.blocks(24 * 3 + 16 * (len(more) + 1) + 64, 50))
    weights = [rows.sample_weight.any() for _, rows in blocks]
    assert not all(weights)
    model.partial_fit(source, **more)
    for _, rows in blocks:
        if rows.sample_weight.any():
            expected.partial_fit(*rows, **more)
    assert model.loss_curve_ == expected.loss_curve_
    for got, x in zip(model.coefs_, expected.coefs_, strict=True):
        np.testing.assert_array_equal(got, x)
    with pytest.raises(nb.InputError, match="sample_weight: expected weights >= 0 that are not"):
        model.partial_fit(Arrays(features, labels, 0 * weight, buffer_bytes=2**15), **more)


def test_the_cuda_engine_says_that_it_cannot_leave_batches_out(monkeypatch):
    strict_gpu.install(monkeypatch)
    weight = np.ones(N)
    weight[: SIZE - 3] = 0
    with pytest.raises(nb.InputError, match=r"sample_weight: .* engine='cuda', got 3 .* 0; leave"):
        arrays(network(device="cuda"), np.append(weight[:-1], 0), "cuda", **OPTIONS)

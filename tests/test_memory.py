"""Where a training's data is kept, and what is said where there is no room."""

from dataclasses import replace

import numpy as np
import pytest
import strict_gpu

import nnbackend as nb
from nnbackend.data import placement as memory
from nnbackend.device import Device, get_device

X = np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


class NoRoomError(Exception):
    """What the stand-in for a GPU raises."""


class Gpu:
    """A device with as much memory as a test wants; its arrays are NumPy's."""

    kind, name = "cuda", "cuda:0"

    def __init__(self, n_bytes):
        self.n_bytes = n_bytes

    def __getattr__(self, name):
        return getattr(Device("cpu", 1), name)

    def free_bytes(self):
        return self.n_bytes

    def total_bytes(self):
        return 2**30

    def out_of_memory_errors(self):
        return (NoRoomError,)


@pytest.fixture
def memory_of():
    """Return a function that makes the memory of a network on a GPU of so many bytes."""

    def make(n_bytes, *, batch_size=100, standardizes=False):
        net = nb.Network([8, 4, 1])
        if standardizes:
            net.standardize(X)
        preparation = replace(net.preparation, device=Gpu(n_bytes))
        return memory.Memory(preparation, net.objective(), nb.Adam(), batch_size), net

    return make


@pytest.mark.parametrize("standardizes", [False, True])
def test_features_stay_on_the_host_where_the_device_has_no_room(monkeypatch, standardizes):
    expected = nb.Network([8, 4, 1])
    if standardizes:
        expected.standardize(X)
    strict_gpu.install(monkeypatch, free_bytes=X.nbytes)
    net = expected.to("cuda")
    place = memory.Memory(net.preparation, net.objective(), nb.Adam(), 100)
    data = place.prepare(X, Y, net.objective().loss)
    assert data.streams
    assert type(data.X) is np.ndarray
    np.testing.assert_array_equal(data.X, expected.preparation.features(X))
    assert data.X.dtype == np.float32


def test_standardizing_on_the_host_goes_by_blocks(monkeypatch):
    monkeypatch.setattr("nnbackend.data.preparation._ROWS_PER_BLOCK", 999)
    net = nb.Network([8, 4, 1]).standardize(X)
    expected = net.preparation.features(X)
    net._device = Device("cpu", 1)  # another than the home
    found = net.preparation.features(X, home=Device("cpu"))
    np.testing.assert_array_equal(found, expected)


def test_what_is_needed_is_the_data_its_copies_the_parameters_and_a_batch(memory_of, monkeypatch):
    parameters = 6 * (8 * 4 + 4 + 4 + 1) * 4
    batch = 3 * 100 * (8 + 4 + 1) * 4
    homes = []
    for standardizes, copies in ((False, 1.25), (True, 5.25)):
        needed = int(X.nbytes * copies) + parameters + batch
        for n_bytes in (needed, needed - 1):
            place, _ = memory_of(n_bytes, standardizes=standardizes)
            monkeypatch.setattr(
                memory.Preparation, "examples", lambda *_, home: homes.append(home.kind)
            )
            place.prepare(X, Y, None)
    assert homes == ["cuda", "cpu", "cuda", "cpu"]


def test_out_of_memory_says_what_was_needed_and_what_there_is(memory_of):
    place, net = memory_of(0)
    place.prepare(X, Y, net.objective().loss)
    with (
        pytest.raises(
            nb.DeviceMemoryError,
            match=r"device 'cuda:0': out of memory: .* \(data 0.00 GiB, parameters .* and 0.00 GiB "
            r"of 1.00 GiB are free; lower batch_size \(now 100\)",
        ) as caught,
        place.explained(),
    ):
        raise NoRoomError
    assert isinstance(caught.value, nb.DeviceError)
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(ZeroDivisionError), place.explained():
        raise ZeroDivisionError


def test_on_the_cpu_nothing_is_streamed_and_there_is_no_peak():
    net = nb.Network([8, 4, 1])
    place = memory.Memory(net.preparation, net.objective(), nb.Adam(), None)
    assert not place.prepare(X, Y, net.objective().loss).streams
    assert nb.train(net, X, Y, epochs=1).peak_device_bytes is None
    assert Device("cpu").free_bytes() > 0
    assert Device("cpu").total_bytes() > 0


# On a stand-in for a GPU that refuses NumPy's arrays


def trained(device, weight=None, **options):
    net = nb.Network([8, 4, 1], seed=0, device=device, dtype="float64").standardize(X)
    options = {"engine": "reference", "epochs": 2, "batch_size": 500, **options}
    history = nb.train(net, X, Y, sample_weight=weight, validation_data=(X, Y, weight), **options)
    return net, history


@pytest.mark.parametrize("free_bytes", [0, 2**30], ids=["streams", "fits"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_on_a_gpu_training_gives_the_numbers_of_the_cpu(monkeypatch, free_bytes, shuffle):
    weight = np.random.default_rng(1).uniform(0.5, 2, len(X))
    expected, said = trained("cpu", weight, shuffle=shuffle)
    strict_gpu.install(monkeypatch, free_bytes)
    net, history = trained("cuda", weight, shuffle=shuffle)
    assert type(net.parameters) is strict_gpu.Array
    # The same operations in the same order, but for the blocks of the validation loss.
    np.testing.assert_array_equal(get_device("cuda").to_numpy(net.parameters), expected.parameters)
    assert history.loss == said.loss
    assert history.validation_loss == pytest.approx(said.validation_loss, rel=1e-13)


@pytest.mark.parametrize("free_bytes", [0, 2**30], ids=["streams", "fits"])
@pytest.mark.parametrize("batch_size", [128, None])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_rates_are_tried_on_a_gpu_as_on_the_cpu(monkeypatch, free_bytes, batch_size, weighted):
    weight = np.random.default_rng(1).integers(0, 3, len(X)) if weighted else None
    net = nb.Network([8, 4, 1], seed=0, dtype="float64").standardize(X)
    options = {"batch_size": batch_size, "steps": 5, "sample_weight": weight}
    expected = nb.find_learning_rate(net, X, Y, **options)
    strict_gpu.install(monkeypatch, free_bytes)
    found = nb.find_learning_rate(net.to("cuda"), X, Y, **options)
    assert found.rates == expected.rates
    assert found.losses == pytest.approx(expected.losses, rel=1e-13)


def test_a_gpu_without_room_for_a_batch_says_so_when_rates_are_tried(monkeypatch):
    strict_gpu.install(monkeypatch, free_bytes=0)
    net = nb.Network([8, 4, 1], device="cuda")
    place_one = Device.place

    def place(device, x, *arguments, **options):
        if getattr(x, "shape", ()) == (len(X), 8) and device.kind == "cuda":
            raise strict_gpu.OutOfMemoryError
        return place_one(device, x, *arguments, **options)

    monkeypatch.setattr(Device, "place", place)
    with pytest.raises(nb.DeviceMemoryError, match=r"lower batch_size \(now all rows\)"):
        nb.find_learning_rate(net, X, Y, batch_size=None)

"""Where a training's data is kept, and what is said where there is no room."""

import numpy as np
import pytest

import nnbackend as nb
from nnbackend import memory
from nnbackend.device import Device

X = np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


class NoRoomError(Exception):
    """What the stand-in for a GPU raises."""


class Gpu:
    """A device with as much memory as a test wants."""

    kind, name = "cuda", "cuda:0"

    def __init__(self, n_bytes):
        self.n_bytes = n_bytes

    def free_bytes(self):
        return self.n_bytes

    def total_bytes(self):
        return 2**30

    def out_of_memory_errors(self):
        return (NoRoomError,)


@pytest.fixture
def memory_of(monkeypatch):
    """Return a function that makes the memory of a network on a GPU of so many bytes."""

    def make(n_bytes, *, batch_size=100, standardizes=False):
        monkeypatch.setattr(memory, "get_device", lambda _name: Gpu(n_bytes))
        net = nb.Network([8, 4, 1])
        if standardizes:
            net.standardize(X)
        return memory.Memory(net, net.objective(), nb.Adam(), batch_size), net

    return make


@pytest.mark.parametrize("standardizes", [False, True])
def test_features_stay_on_the_host_where_the_device_has_no_room(memory_of, standardizes):
    place, net = memory_of(X.nbytes, standardizes=standardizes)
    data = place.prepare(X, Y, net.objective().loss)
    assert data.streams
    assert type(data.X) is np.ndarray
    np.testing.assert_array_equal(data.X, net.prepare_features(X))
    assert data.X.dtype == np.float32


def test_standardizing_on_the_host_goes_by_blocks(monkeypatch):
    monkeypatch.setattr("nnbackend.network._ROWS_PER_BLOCK", 999)
    net = nb.Network([8, 4, 1]).standardize(X)
    expected = net.prepare_features(X)
    net._device = Device("cpu", 1)  # another than the home
    found = net.prepare_features(X, home=Device("cpu"))
    np.testing.assert_array_equal(found, expected)


def test_what_is_needed_is_the_data_its_copies_the_parameters_and_a_batch(memory_of, monkeypatch):
    parameters = 6 * (8 * 4 + 4 + 4 + 1) * 4
    batch = 3 * 100 * (8 + 4 + 1) * 4
    homes = []
    for standardizes, copies in ((False, 1.25), (True, 5.25)):
        needed = int(X.nbytes * copies) + parameters + batch
        for n_bytes in (needed, needed - 1):
            place, net = memory_of(n_bytes, standardizes=standardizes)
            monkeypatch.setattr(net, "prepare", lambda *_, home: homes.append(home.kind) or (1, 2))
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
    place = memory.Memory(net, net.objective(), nb.Adam(), None)
    assert not place.prepare(X, Y, net.objective().loss).streams
    assert nb.train(net, X, Y, epochs=1).peak_device_bytes is None
    assert Device("cpu").free_bytes() > 0
    assert Device("cpu").total_bytes() > 0

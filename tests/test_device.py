"""Devices by name, on machines with and without CuPy, drivers and GPUs (simulated ones)."""

import contextlib
import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest
from devices import needs_cuda, on_each_device

import nnbackend as nb
from nnbackend.device import Device, device_of, get_device, require_same_device
from nnbackend.errors import DeviceError, InputError


class CUDARuntimeError(RuntimeError):
    """What CuPy raises without a driver."""


class FakeArray:
    """As much of a CuPy array as the check of devices looks at."""

    def __init__(self, index):
        self.device = types.SimpleNamespace(id=index)
        self.dtype = np.dtype("float32")
        self.shape = (6, 2)
        self.ndim = 2


def fake_cupy(get_device_count):
    """Return a module that looks like CuPy on a machine with so many GPUs."""
    module = types.ModuleType("cupy")
    module.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    module.ndarray = FakeArray
    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=get_device_count,
        getDeviceProperties=lambda index: {
            "name": f"GPU number {index}".encode(),
            "totalGlobalMem": (index + 1) * 2**30,
        },
    )
    module.cuda = types.SimpleNamespace(runtime=runtime)
    return module


def no_driver():
    message = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
    raise CUDARuntimeError(message)


class BrokenCupyFinder:
    """Finds a CuPy whose import fails, as it does without the CUDA libraries."""

    reason = "libnvrtc.so.12: cannot open shared object file"

    def find_spec(self, name, _path=None, _target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "cupy" else None

    def create_module(self, _spec):
        return None

    def exec_module(self, _module):
        raise ImportError(self.reason)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes this process see one of the machines of the tests."""

    def become(kind):
        if kind == "CuPy is broken":
            monkeypatch.delitem(sys.modules, "cupy", raising=False)
            monkeypatch.setattr(sys, "meta_path", [BrokenCupyFinder(), *sys.meta_path])
            return
        modules = {
            "no CuPy": None,
            "no driver": fake_cupy(no_driver),
            "no GPU": fake_cupy(lambda: 0),
            "one GPU": fake_cupy(lambda: 1),
            "two GPUs": fake_cupy(lambda: 2),
        }
        monkeypatch.setitem(sys.modules, "cupy", modules[kind])

    return become


WITHOUT_CUDA = ["no CuPy", "CuPy is broken", "no driver", "no GPU"]


@pytest.mark.parametrize(
    ("kind", "name", "missing"),
    [
        ("no CuPy", "cuda", "CuPy is not installed"),
        ("no CuPy", "cuda:1", "CuPy is not installed"),
        ("CuPy is broken", "cuda", BrokenCupyFinder.reason),
        ("no driver", "cuda", "driver version is insufficient"),
        ("no GPU", "cuda", "no NVIDIA GPU"),
        ("no GPU", "cuda:0", "no NVIDIA GPU"),
        ("one GPU", "cuda:1", "this machine has 1 GPU (cuda:0)"),
        ("two GPUs", "cuda:5", "this machine has 2 GPUs (cuda:0 to cuda:1)"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_is_missing(kind, name, missing, machine):
    machine(kind)
    calls = [
        lambda: get_device(name),
        lambda: nb.Network([2, 1], device=name),
        lambda: nb.Network([2, 1]).to(name),
    ]
    for call in calls:
        with pytest.raises(DeviceError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith("device 'cuda")
        assert missing in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", ["no CuPy", "CuPy is broken", "no driver"])
def test_the_message_has_the_line_that_installs_cupy(kind, machine):
    machine(kind)
    with pytest.raises(DeviceError, match=r"pip install 'cupy-cuda13x\[ctk\]'"):
        get_device("cuda")


def test_an_installed_cupy_is_not_called_missing(machine):
    machine("CuPy is broken")
    with pytest.raises(DeviceError) as caught:
        get_device("cuda")
    assert "not installed" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "device"),
    [
        ("no CuPy", "cpu", "cpu"),
        *((kind, "auto", "cpu") for kind in WITHOUT_CUDA),
        ("one GPU", "auto", "cuda:0"),
        ("two GPUs", "auto", "cuda:0"),
        ("one GPU", "cuda", "cuda:0"),
        ("two GPUs", "cuda:0", "cuda:0"),
        ("two GPUs", "cuda:1", "cuda:1"),
        ("two GPUs", "cpu", "cpu"),
    ],
)
def test_a_name_stands_for_this_device(kind, name, device, machine):
    machine(kind)
    found = get_device(name)
    assert found.name == str(found) == device
    assert get_device(found) is found


@pytest.mark.parametrize(
    "name",
    [
        "gpu",
        "CPU",
        "Cuda",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda 0",
        "cuda:0 ",
        "",
        None,
        0,
        True,
        ["cpu"],
    ],
    ids=repr,
)
def test_what_is_no_device_name_is_refused_with_the_names_there_are(name):
    for call in (get_device, lambda name: nb.Network([2, 1], device=name)):
        with pytest.raises(InputError) as caught:
            call(name)
        assert str(caught.value) == (
            f"device: expected 'cpu', 'cuda', 'cuda:N' or 'auto', got {name!r}"
        )


def test_auto_on_a_machine_without_cuda_makes_an_ordinary_network(machine):
    machine("no CuPy")
    net = nb.Network([2, 1], device="auto")
    assert net.device == "cpu"
    assert net.to("auto") is net


@pytest.mark.parametrize("kind", WITHOUT_CUDA)
def test_devices_without_cuda_are_the_cpu_alone(kind, machine):
    machine(kind)
    (cpu,) = nb.devices()
    assert cpu.name == "cpu"
    assert cpu.description.strip()
    # Any machine that runs these tests has more than 64 MiB and less than 1 PiB.
    assert 2**26 < cpu.memory_bytes < 2**50


def test_devices_lists_every_gpu_by_the_name_that_device_takes(machine):
    machine("two GPUs")
    found = [entry.to_dict() for entry in nb.devices()]
    assert [entry["name"] for entry in found] == ["cpu", "cuda:0", "cuda:1"]
    assert found[2] == {
        "name": "cuda:1",
        "description": "GPU number 1",
        "memory_bytes": 2 * 2**30,
    }
    assert json.loads(json.dumps(found)) == found
    for entry in found:
        assert get_device(entry["name"]).name == entry["name"]


def test_arrays_know_their_device(machine):
    machine("two GPUs")
    for x in (np.zeros(3), np.float32(1), np.ma.masked_array([1.0])):
        assert device_of(x) == Device("cpu")
    assert device_of(FakeArray(0)) == Device("cuda", 0)
    assert device_of(FakeArray(1)) == Device("cuda", 1)
    for x in ([1.0], 1.0, None, "cpu"):
        assert device_of(x) is None


def test_a_cupy_array_is_not_looked_for_where_cupy_was_never_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert device_of(FakeArray(0)) is None
    assert "cupy" not in sys.modules


def places_of(arrays):
    return {name: device_of(x) for name, x in arrays.items()}


HOST, FIRST, SECOND, LIST = np.zeros((6, 2)), FakeArray(0), FakeArray(1), [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "places"),
    [
        ({"X": HOST, "y": FIRST}, ["X on cpu", "y on cuda:0"]),
        ({"X": FIRST, "y": SECOND}, ["X on cuda:0", "y on cuda:1"]),
        ({"X": FIRST, "y": LIST, "sample_weight": HOST}, ["X on cuda:0", "sample_weight on cpu"]),
    ],
)
def test_arrays_on_two_devices_are_refused_with_the_place_of_each(arrays, places, machine):
    machine("two GPUs")
    net = nb.Network([2, 1])
    y = arrays.get("y")
    calls = [
        lambda: require_same_device(**places_of(arrays)),
        lambda: nb.train(net, arrays["X"], y, sample_weight=arrays.get("sample_weight")),
        lambda: net.loss_and_gradients(arrays["X"], y, sample_weight=arrays.get("sample_weight")),
    ]
    for call in calls:
        with pytest.raises(InputError, match="move them to one device") as caught:
            call()
        for place in places:
            assert place in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"X": LIST},
        {"X": HOST, "y": LIST, "z": None},
        {"X": FIRST, "y": FakeArray(0), "z": LIST},
    ],
    ids=["none", "list", "host and list", "one GPU and list"],
)
def test_lists_go_with_arrays_of_any_one_device(arrays, machine):
    machine("two GPUs")
    assert require_same_device(**places_of(arrays)) is None


def test_a_gpu_array_for_a_network_on_the_cpu_is_refused_with_what_to_do(machine):
    machine("two GPUs")
    net = nb.Network([2, 1])
    calls = {
        "X": [lambda: net.forward(SECOND), lambda: net.predict(SECOND)],
        "y": [lambda: nb.train(net, HOST.tolist(), FakeTargets())],
    }
    for name, functions in calls.items():
        for function in functions:
            with pytest.raises(InputError, match=rf"{name}: .*cpu.*cuda:1.*\.to\('cuda:1'\)"):
                function()


class FakeTargets(FakeArray):
    """Targets on the second GPU."""

    def __init__(self):
        super().__init__(1)
        self.shape = (6, 1)


def test_a_network_from_a_gpu_is_restored_on_the_cpu_of_a_machine_without_one(machine):
    machine("no driver")
    net = nb.Network([2, 3, 1])
    restored = nb.Network.__new__(nb.Network)
    restored.__setstate__({**net.__getstate__(), "device": Device("cuda", 1)})
    assert restored.device == "cpu"
    np.testing.assert_array_equal(restored.parameters, net.parameters)


@needs_cuda
def test_a_network_from_a_gpu_that_is_not_here_is_restored_on_the_cpu():
    net = nb.Network([2, 3, 1], device="cuda")
    restored = nb.Network.__new__(nb.Network)
    restored.__setstate__({**net.__getstate__(), "device": Device("cuda", 999)})
    assert restored.device == "cpu"


@on_each_device
def test_placing_and_reading_back_keeps_the_values(device):
    place = get_device(device)
    x = np.arange(6.0).reshape(2, 3)
    placed = place.place(x, np.float32)
    assert device_of(placed) == place
    assert placed.dtype == np.float32
    back = place.to_numpy(placed)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, x)


def test_placing_on_the_cpu_copies_when_asked_and_only_then():
    x = np.zeros(3)
    cpu = get_device("cpu")
    assert cpu.place(x) is x
    assert not np.shares_memory(cpu.place(x, copy=True), x)


@on_each_device
def test_new_arrays_are_made_on_the_active_device(device):
    place = get_device(device)
    with place.activate():
        assert device_of(place.xp.zeros(3)) == place
    place.synchronize()


@needs_cuda
def test_the_gpu_is_described():
    gpu = nb.devices()[1]
    assert gpu.name == "cuda:0"
    assert gpu.description.strip()
    assert gpu.memory_bytes > 2**28


@needs_cuda
def test_arrays_of_the_host_and_of_a_gpu_are_not_mixed():
    import cupy

    net = nb.Network([2, 1], device="cuda")
    X, y = np.zeros((4, 2)), np.asarray([0, 1, 0, 1])
    for pair in ((X, cupy.asarray(y)), (cupy.asarray(X), y)):
        with pytest.raises(InputError, match=r"X on .*, y on .*one device"):
            nb.train(net, *pair)
    with pytest.raises(InputError, match=r"X: .*cpu.*cuda:0.*\.to\('cuda:0'\)"):
        nb.Network([2, 1]).forward(cupy.asarray(X))


def test_the_cpu_needs_no_context():
    assert isinstance(get_device("cpu").activate(), contextlib.nullcontext)

"""Arrays of every library go in, and arrays of the same library come out, in the same memory."""

import importlib
import subprocess
import sys
import warnings
from types import ModuleType, SimpleNamespace

import array_api_compat
import numpy as np
import pytest
from backends import require
from devices import needs_cuda, on_each_engine
from refusals import FEATURE_CALLS, GOOD_TARGETS, OUTPUTS, check_network_refuses, network

import nnbackend as nb
from nnbackend.data.door import to_array
from nnbackend.device import Device, device_of, get_device, in_library_of, is_native
from nnbackend.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2)).astype("f4")
Y = np.arange(6) % 2
WEIGHT = np.asarray([1, 2, 1, 0, 3, 1])


class Foreign:
    """An array of a library that has nothing but DLPack and a namespace."""

    def __init__(self, x, kind=1, index=0):
        self.x, self.kind, self.index = x, kind, index
        self.dtype, self.shape, self.ndim = x.dtype, x.shape, x.ndim

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.kind, self.index)

    def __array_namespace__(self, api_version=None):
        namespace = ModuleType("foreign")
        namespace.from_dlpack = lambda x: Foreign(np.from_dlpack(x))
        return namespace


def readonly(x):
    x = np.array(x)
    x.flags.writeable = False
    return x


# name: (a module, what makes an array of it and NumPy's, what makes NumPy's of that array)
LIBRARIES = {
    "torch": ("torch", lambda torch, x: torch.tensor(x), np.asarray),
    "JAX": ("jax.numpy", lambda jnp, x: jnp.asarray(x), np.asarray),
    "array-api-strict": ("array_api_strict", lambda xp, x: xp.asarray(x.copy()), np.asarray),
    "DLPack alone": ("numpy", lambda _, x: Foreign(x.copy()), lambda x: x.x),
    "read-only NumPy": ("numpy", lambda _, x: readonly(x), lambda x: x),
}


def load(name):
    module, make, read = LIBRARIES[name]
    xp = require(module)
    return SimpleNamespace(name=name, xp=xp, make=lambda x: make(xp, x), read=read)


@pytest.fixture(params=LIBRARIES)
def library(request):
    return load(request.param)


def check_same(library, result, expected):
    """Check that a result is of the library, and bit for bit what NumPy's input gives."""
    like = library.make(np.zeros(1))
    assert type(result) is type(like)
    assert device_of(result) == Device("cpu")
    if array_api_compat.is_torch_array(like) or array_api_compat.is_jax_array(like):
        assert result.device == like.device
    found = library.read(result)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_results_are_of_the_library_that_was_given(library, kind, dtype):
    net, given = network(kind, dtype=dtype).standardize(X), library.make(X)
    check_same(library, net.forward(given), net.forward(X))
    check_same(library, net.predict(given), net.predict(X))
    if net.output in ("sigmoid", "softmax"):
        check_same(library, net.predict_proba(given), net.predict_proba(X))
    y = np.asarray(GOOD_TARGETS[kind])
    loss, gradients = net.loss_and_gradients(
        given, library.make(y), sample_weight=library.make(WEIGHT)
    )
    expected, expected_gradients = net.loss_and_gradients(X, y, sample_weight=WEIGHT)
    check_same(library, loss, expected)
    for results, arrays in zip(gradients, expected_gradients, strict=True):
        for result, array in zip(results, arrays, strict=True):
            check_same(library, result, array)


@on_each_engine
def test_training_takes_arrays_of_every_library_and_leaves_them_as_they_are(library, engine):
    nets, losses = [], []
    for make in (np.array, library.make):
        net = network("binary")
        arrays = [make(x) for x in (X, Y, WEIGHT)]
        history = nb.train(
            net,
            *arrays[:2],
            sample_weight=arrays[2],
            validation_data=tuple(arrays),
            epochs=3,
            batch_size=4,
            engine=engine,
        )
        nets.append(net)
        losses.append((history.loss, history.validation_loss))
        read = library.read if make is library.make else np.asarray
        for array, original in zip(arrays, (X, Y, WEIGHT), strict=True):
            np.testing.assert_array_equal(read(array), original)
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(nets[0].parameters, nets[1].parameters)


def test_a_network_takes_parameters_and_statistics_from_arrays_of_every_library(library):
    net, expected = network("identity"), network("identity", seed=1)
    for given in (expected.weights, expected.biases):
        given[0][...] = 0.5
    net.set_parameters(*(list(map(library.make, x)) for x in (expected.weights, expected.biases)))
    np.testing.assert_array_equal(net.parameters, expected.parameters)
    assert not np.shares_memory(net.parameters, expected.parameters)
    net.standardize(library.make(X), library.make(X[:, :1]))
    expected.standardize(X, X[:, :1])
    for name in ("standardization", "target_standardization"):
        for found, wanted in zip(getattr(net, name), getattr(expected, name), strict=True):
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, wanted)
    assert nb.check_gradients(net.astype("float64"), library.make(X), library.make(X[:, 0]))


def test_nothing_is_copied_on_the_way_in(library):
    given = library.make(X)
    read = to_array("X", given)
    assert type(read) is np.ndarray
    assert np.shares_memory(read, library.read(given))
    net = network("binary")
    assert np.shares_memory(net.preparation.features(given), library.read(given))
    assert not np.shares_memory(
        net.astype("float64").preparation.features(given), library.read(given)
    )


@pytest.mark.parametrize("name", ["torch", "array-api-strict", "DLPack alone"])
def test_nothing_is_copied_on_the_way_out(name):
    library, result = load(name), np.arange(6.0)
    assert np.shares_memory(library.read(in_library_of(library.make(X), result)), result)


@pytest.mark.parametrize("given", [X, np.float32(1), X.tolist(), 1.0, None], ids=type)
def test_for_what_is_of_no_other_library_the_result_stays_as_it_is(given):
    result = np.zeros(2)
    assert in_library_of(given, result) is result


def test_the_arrays_of_a_call_may_be_of_several_libraries_and_results_follow_x(library):
    net = network("binary")
    loss, gradients = net.loss_and_gradients(library.make(X), Y.tolist(), sample_weight=WEIGHT)
    expected, _ = net.loss_and_gradients(X, Y, sample_weight=WEIGHT)
    check_same(library, loss, expected)
    loss, gradients = net.loss_and_gradients(X, library.make(Y), sample_weight=library.make(WEIGHT))
    assert type(gradients.weights[0]) is np.ndarray
    np.testing.assert_array_equal(loss, expected)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "float16", "float32", "float64"],
)
def test_every_dtype_of_real_numbers_is_taken(library, dtype):
    if (library.name, dtype) == ("array-api-strict", "float16"):
        pytest.skip("the standard has no float16")
    x = np.asarray([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    net = network("identity").standardize(library.make(x))
    check_same(library, net.forward(library.make(x)), net.forward(x))


@pytest.mark.parametrize(
    "view",
    [
        lambda torch: torch.arange(12.0).reshape(2, 6).T,
        lambda torch: torch.arange(48.0).reshape(12, 4)[::2, 1::2],
        lambda torch: torch.tensor([[1.0, 2.0]]).expand(6, 2),
        lambda torch: torch.arange(13.0)[1:].reshape(6, 2),
        lambda torch: torch.nn.Parameter(torch.ones(6, 2), requires_grad=False),
        lambda torch: torch.ones(6, 2, requires_grad=True).detach(),
    ],
    ids=["transposed", "strided", "expanded", "with an offset", "parameter", "detached"],
)
def test_a_tensor_of_any_layout_is_read_in_place(view):
    x = view(require("torch"))
    net = network("binary")
    array = to_array("X", x)
    assert array.__array_interface__["data"][0] == x.data_ptr()
    assert array.strides == tuple(4 * stride for stride in x.stride())
    np.testing.assert_array_equal(net.forward(x), net.forward(np.array(array)))
    nb.train(net, x, Y, epochs=1, engine="native")


def test_the_result_of_a_tensor_is_an_ordinary_tensor():
    torch = require("torch")
    net, x = network("binary"), torch.tensor(X)
    result = net.forward(x)
    assert result.device == torch.device("cpu")
    assert not result.requires_grad
    result.mul_(0)  # its memory is its own
    np.testing.assert_array_equal(net.forward(x), net.forward(X))


def test_results_of_JAX_without_64_bits_are_in_32():  # noqa: N802
    jax = require("jax")
    jax.config.update("jax_enable_x64", False)
    try:
        labels = network("binary", dtype="float64").predict(jax.numpy.asarray(X))
    finally:
        jax.config.update("jax_enable_x64", True)
    assert labels.dtype == "int32"


# What is refused


def quantized(torch, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the only way to make one is deprecated
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def nested(torch, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a prototype
        return torch.nested.nested_tensor(list(x))


def csr(_torch, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a beta state
        return x.to_sparse_csr()


def deleted(_jax, x):
    x = x + 0
    x.delete()
    return x


def strict_on(device):
    return lambda xp, x: xp.asarray(np.asarray(x), device=xp.Device(device))


REFUSED = {
    "torch bfloat16": (
        "torch",
        lambda _, x: x.bfloat16(),
        ["expected real numbers, got dtype torch.bfloat16; convert it to float32"],
    ),
    "torch float8": (
        "torch",
        lambda torch, x: x.to(torch.float8_e4m3fn),
        ["expected real numbers, got dtype torch.float8_e4m3fn"],
    ),
    "torch complex": (
        "torch",
        lambda _, x: x + 0j,
        ["expected real numbers, got dtype torch.complex64"],
    ),
    "torch quantized": (
        "torch",
        quantized,
        ["expected real numbers, got dtype torch.qint8"],
    ),
    "torch sparse": (
        "torch",
        lambda _, x: x.to_sparse(),
        ["a dense array, got the sparse torch.Tensor; convert it with .to_dense()"],
    ),
    "torch sparse CSR": ("torch", csr, ["a dense array, got the sparse torch.Tensor"]),
    "torch meta": (
        "torch",
        lambda _, x: x.to("meta"),
        ["in the host's memory or on one CUDA GPU, got torch.Tensor on meta"],
    ),
    "torch leaf with a gradient": (
        "torch",
        lambda _, x: x.requires_grad_(),
        ["torch.Tensor that requires grad, and none flows back", "pass .detach()"],
    ),
    "torch result with a gradient": (
        "torch",
        lambda _, x: x.requires_grad_() * 2,
        ["torch.Tensor that requires grad", "pass .detach()"],
    ),
    "torch negated view": (
        "torch",
        lambda _, x: (x + 1j * x).conj().imag,
        ["a negated view, torch.Tensor; pass .resolve_neg()"],
    ),
    "torch nested": ("torch", nested, ["can be read where it is, got torch", "sizes"]),
    "torch 0-d": ("torch", lambda _, x: x[0, 0], ["expected a 2-D array", "got shape ()"]),
    "torch empty": ("torch", lambda _, x: x[:0], ["at least one example, got shape (0, 2)"]),
    "torch NaN": ("torch", lambda _, x: x * float("nan"), ["got nan at [0, 0] (12 such"]),
    "JAX bfloat16": (
        "JAX",
        lambda _, x: x.astype("bfloat16"),
        ["expected real numbers, got dtype bfloat16"],
    ),
    "JAX int4": (
        "JAX",
        lambda _, x: x.astype("int4"),
        ["expected real numbers, got dtype int4"],
    ),
    "JAX key": ("JAX", lambda _jnp, _x: require("jax").random.key(0), ["got jax", "PRNGKeyArray"]),
    "JAX deleted": ("JAX", deleted, ["got jax", "deleted"]),
    "JAX 0-d": ("JAX", lambda _, x: x[0, 0], ["expected a 2-D array", "got shape ()"]),
    "JAX NaN": ("JAX", lambda jnp, x: x * jnp.nan, ["got nan at [0, 0] (12 such"]),
    "strict device1": (
        "array-api-strict",
        strict_on("device1"),
        ["can be read where it is, got array_api_strict.Array", "'device1'"],
    ),
    "strict no_float64": (
        "array-api-strict",
        strict_on("no_float64"),
        ["got array_api_strict.Array"],
    ),
    "Metal": (
        "DLPack alone",
        lambda _xp, _x: Foreign(X, kind=8),
        ["in the host's memory or on one CUDA GPU"],
    ),
    "a GPU": (
        "DLPack alone",
        lambda _xp, _x: Foreign(X, kind=2, index=1),
        ["expected an array on cpu, the network's device, got one on cuda:1", ".to('cuda:1')"],
    ),
}


@pytest.mark.parametrize("call", ["forward", "standardize"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_in_place_is_refused_in_a_sentence(kind, call):
    name, change, said = REFUSED[kind]
    library, net = load(name), network("binary")
    x = change(library.xp, library.make(X))
    check_network_refuses(net, lambda: FEATURE_CALLS[call][1](net, x), "X: ", *said)


def test_parameters_with_a_gradient_are_refused_by_the_layer():
    torch = require("torch")
    net = network("binary")
    weights, biases = ([torch.tensor(x) for x in given] for given in (net.weights, net.biases))
    biases[1].requires_grad_()
    check_network_refuses(net, lambda: net.set_parameters(weights, biases), "biases[1]: ", "grad")


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
def test_a_traced_array_is_refused_with_where_to_call(transform):
    jax = require("jax")
    traced = getattr(jax, transform)(lambda x: network("binary").forward(x).sum())
    with pytest.raises(InputError, match=r"^X: .* got jax.*Tracer.* inside jax\.jit, grad"):
        traced(jax.numpy.asarray(X))


def test_a_JAX_array_on_several_devices_is_refused():  # noqa: N802
    require("jax")
    code = (
        "import jax, numpy as np, nnbackend as nb\n"
        "from jax.sharding import Mesh, NamedSharding, PartitionSpec\n"
        "mesh = Mesh(np.array(jax.devices()), ('rows',))\n"
        "x = jax.device_put(np.ones((4, 2)), NamedSharding(mesh, PartitionSpec('rows')))\n"
        "try: nb.Network([2, 1]).forward(x)\n"
        "except nb.InputError as error: print(error)\n"
    )
    said = run_python(code, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert "X: expected an array in the host's memory or on one CUDA GPU, got jax" in said
    assert "NamedSharding" in said


def run_python(code, **environment):
    import os

    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    ).stdout


@pytest.mark.parametrize(
    ("module", "array"),
    [("torch", "torch.ones(4, 2)"), ("jax", "jax.numpy.ones((4, 2))")],
)
def test_no_library_is_imported_but_the_callers(module, array):
    require(module)
    loaded = run_python(
        f"import sys, {module}, nnbackend as nb\n"
        f"nb.Network([2, 1]).predict({array})\n"
        "print(*sys.modules)"
    ).split()
    others = {"torch", "jax", "cupy", "array_api_strict"} - {module}
    assert not others & set(loaded)


# GPUs


def gpu_library(calls):
    """Return a CuPy that reads arrays of the host, and notes what it is asked for."""

    class Context:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            calls.append(f"on {self.index}")

        def __exit__(self, *_):
            calls.append("off")

    class Stream:
        def synchronize(self):
            calls.append("synchronize")

    class Array:
        def __init__(self, x):
            self.x, self.dtype, self.shape = x, x.dtype, x.shape
            self.device = SimpleNamespace(id=1)

    cupy = ModuleType("cupy")
    cupy.ndarray = Array
    cupy.from_dlpack = lambda given: calls.append("read") or Array(given.x)
    cupy.cuda = SimpleNamespace(Device=Context, get_current_stream=Stream)
    return cupy


def test_an_array_on_a_gpu_is_read_there_and_results_are_handed_over_when_they_are_there(
    monkeypatch,
):
    calls = []
    monkeypatch.setitem(sys.modules, "cupy", gpu_library(calls))
    device, given = Device("cuda", 1), Foreign(X, kind=2, index=1)
    assert device_of(given) == device
    read = to_array("X", given, device)
    assert is_native(read)
    assert device_of(read) == device
    assert calls == ["on 1", "read", "off"]
    calls.clear()
    result = in_library_of(given, X)
    assert type(result) is Foreign
    assert calls == ["on 1", "synchronize", "off"]
    with pytest.raises(InputError, match=r"X: .* on cuda:0, the network's device, .* on cuda:1;"):
        to_array("X", given, Device("cuda", 0))


@pytest.mark.parametrize(
    ("kind", "device"), [(1, "cpu"), (3, "cpu"), (2, "cuda:1"), (13, "cuda:1")]
)
def test_arrays_of_every_library_know_their_device(kind, device):
    assert device_of(Foreign(X, kind, 1)).name == device


def test_a_gpu_array_for_a_network_on_the_cpu_is_refused_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    gpu, net = Foreign(X, kind=2, index=0), network("two identities")
    check_network_refuses(
        net,
        lambda: nb.train(net, gpu, gpu),
        "X: expected an array on cpu, the network's device, got one on cuda:0",
        "move the network with .to('cuda:0') or the array",
    )
    check_network_refuses(
        net, lambda: nb.train(net, X.tolist(), gpu), "y: expected an array on cpu", "cuda:0"
    )
    check_network_refuses(
        net, lambda: nb.train(net, X, gpu), "X, y: expected arrays on one device", "y on cuda:0"
    )


def cuda_torch():
    torch = require("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    return torch


@needs_cuda
@pytest.mark.parametrize("kind", OUTPUTS)
def test_cuda_tensors_go_in_and_come_out(kind):
    torch = cuda_torch()
    net = network(kind, device="cuda", dtype="float64").standardize(torch.tensor(X).cuda())
    host = net.to("cpu")
    x = torch.tensor(X).cuda()
    y = torch.tensor(np.asarray(GOOD_TARGETS[kind])).cuda()
    calls = [lambda net, x: net.forward(x), lambda net, x: net.predict(x)]
    if net.output in ("sigmoid", "softmax"):
        calls.append(lambda net, x: net.predict_proba(x))
    for call in calls:
        result, expected = call(net, x), call(host, X)
        assert result.device == x.device
        np.testing.assert_allclose(result.cpu(), expected, rtol=1e-9, atol=1e-12)
    loss, gradients = net.loss_and_gradients(x, y)
    expected, expected_gradients = host.loss_and_gradients(X, GOOD_TARGETS[kind])
    assert loss.device == gradients.biases[0].device == x.device
    assert loss.shape == ()
    np.testing.assert_allclose(loss.cpu(), expected, rtol=1e-9)
    for results, arrays in zip(gradients, expected_gradients, strict=True):
        for result, array in zip(results, arrays, strict=True):
            np.testing.assert_allclose(result.cpu(), array, rtol=1e-7, atol=1e-10)
    assert nb.train(net, x, y, epochs=2, validation_data=(x, y)).n_epochs == 2
    np.testing.assert_array_equal(x.cpu(), X)


@needs_cuda
def test_a_cuda_tensor_is_read_and_written_in_place():
    torch = cuda_torch()
    import cupy

    x = torch.tensor(X).cuda()
    for view in (x, x.T, x[::2], x > 0, x.to(torch.int64), x.half(), x[:0]):
        read = to_array("X", view, Device("cuda"))
        assert isinstance(read, cupy.ndarray)
        assert view.numel() == 0 or read.data.ptr == view.data_ptr()
        np.testing.assert_array_equal(cupy.asnumpy(read), view.cpu())
    result = cupy.arange(6.0)
    assert in_library_of(x, result).data_ptr() == result.data.ptr


@needs_cuda
def test_host_tensors_are_placed_on_the_gpu_and_results_come_back():
    torch = cuda_torch()
    net = network("binary", device="cuda")
    for x in (torch.tensor(X), torch.tensor(X).pin_memory()):
        result = net.forward(x)
        assert result.device == torch.device("cpu")
        np.testing.assert_allclose(result, net.forward(X), rtol=1e-6)
        assert nb.train(net, x, torch.tensor(Y), epochs=1).n_epochs == 1


@needs_cuda
def test_cuda_tensors_are_refused_by_a_network_on_the_cpu_and_not_mixed_with_the_hosts():
    torch = cuda_torch()
    x = torch.tensor(X).cuda()
    with pytest.raises(InputError, match=r"X: .* on cpu, the network's device, got .*cuda:0"):
        network("binary").forward(x)
    net = network("binary", device="cuda")
    with pytest.raises(InputError, match=r"X on cuda:0, y on cpu"):
        net.loss_and_gradients(x, Y)
    loss, _ = net.loss_and_gradients(x, Y.tolist())
    assert loss.is_cuda
    for bad in (x.clone().requires_grad_(), x.bfloat16(), x.to_sparse(), (x + 1j * x).conj().imag):
        with pytest.raises(InputError, match=r"^X: "):
            net.forward(bad)


@needs_cuda
def test_cuda_tensors_of_a_stream_of_their_own_give_the_same():
    torch = cuda_torch()
    net = nb.Network([512, 512, 4], output="identity", device="cuda")
    expected = net.forward(np.ones((4096, 512)))
    with torch.cuda.stream(torch.cuda.Stream()):
        x = torch.zeros(4096, 512, device="cuda")
        torch.cuda._sleep(10**7)
        x += 1  # has not happened yet when the network is called
        result = net.forward(x)
        x.zero_()  # must not happen before the network has read it
        np.testing.assert_allclose(result.cpu(), expected, rtol=1e-4, atol=1e-5)
        torch.cuda._sleep(10**7)
        x += 2
        net.standardize(x)
        x.zero_()
        np.testing.assert_array_equal(get_device("cuda").to_numpy(net.standardization.mean), 2)


@needs_cuda
def test_a_cuda_tensor_and_a_cupy_array_go_together():
    torch = cuda_torch()
    import cupy

    net = network("binary", device="cuda")
    loss, gradients = net.loss_and_gradients(cupy.asarray(X), torch.tensor(Y).cuda())
    assert isinstance(loss, cupy.ndarray)
    assert isinstance(gradients.weights[0], cupy.ndarray)


# Data frames


@pytest.fixture(params=["pandas", "polars"])
def frames(request):
    pytest.importorskip(request.param, reason="the data frame of another library")
    return importlib.import_module(request.param)


def test_the_columns_of_a_data_frame_are_read_by_name(frames):
    net = network("binary")
    frame = frames.DataFrame({"width": X[:, 0], "height": X[:, 1]})
    nb.train(net, frame, frames.Series(Y), sample_weight=frames.Series(WEIGHT), epochs=1)
    assert net.feature_names == ("width", "height")
    turned = frames.DataFrame({"height": X[:, 1], "width": X[:, 0], "more": Y})
    for given in (frame, turned):
        result = net.forward(given)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, net.forward(X))
    loss, gradients = net.loss_and_gradients(frame, frames.DataFrame({"label": Y}))
    assert type(loss) is type(gradients.weights[0]) is np.ndarray
    with pytest.raises(InputError, match=r"^X: .* feature_names, the column 'width' is missing"):
        net.predict(frames.DataFrame({"height": X[:, 1], "depth": X[:, 0]}))


def test_numbers_of_several_dtypes_in_a_data_frame_are_taken(frames):
    frame = frames.DataFrame({"a": X[:, 0], "b": Y})
    np.testing.assert_array_equal(
        network("binary").forward(frame), network("binary").forward(np.stack([X[:, 0], Y], 1))
    )


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1.0, None], "got nan at [1, 1]"),
        (["a", "b"], "expected real numbers, got text in column 'b' ('a' in row 0)"),
    ],
)
def test_what_is_no_number_in_a_data_frame_is_refused(frames, column, said):
    frame, net = frames.DataFrame({"a": [1.0, 2.0], "b": column}), network("binary")
    check_network_refuses(net, lambda: net.forward(frame), "X: ", said)


def test_a_lazy_frame_is_refused():
    polars = pytest.importorskip("polars", reason="the data frame of another library")
    net = network("binary")
    lazy = polars.DataFrame(X).lazy()
    check_network_refuses(net, lambda: nb.train(net, lazy, Y), "X: expected real numbers")
    net.feature_names = ("a", "b")
    check_network_refuses(net, lambda: net.forward(lazy), "X: expected real numbers")


def test_an_arrow_array_is_read_in_place_and_its_results_are_numpys():
    arrow = pytest.importorskip("pyarrow", reason="the array of another library")
    weight = arrow.array(WEIGHT.astype("f4"))
    assert np.shares_memory(to_array("w", weight), np.asarray(weight))
    loss, _ = network("binary").loss_and_gradients(X, arrow.array(Y), sample_weight=weight)
    assert type(loss) is np.ndarray
    with pytest.raises(InputError, match=r"y: .* got nan at \[5\]"):
        network("identity").loss_and_gradients(X, arrow.array([*X[:5, 0], None]))
    assert in_library_of(weight, X) is X

"""The array libraries that the tests of ``core`` run on, how results are compared, and oracles."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
import pytest
import scipy

from nnbackend.core.activations import ACTIVATIONS, OUTPUTS
from nnbackend.core.structure import Structure

# name: (module, name of the array_api_strict device, read-only inputs)
LIBRARIES = {
    "numpy": ("numpy", None, False),
    "readonly": ("numpy", None, True),
    "strict": ("array_api_strict", "CPU_DEVICE", False),
    "strict_device1": ("array_api_strict", "device1", False),
    "strict_no_float64": ("array_api_strict", "no_float64", False),
    "torch": ("torch", None, False),
    "jax": ("jax.numpy", None, False),
    "cupy": ("cupy", None, False),
}
PARAMETERS = [
    pytest.param(
        (name, dtype),
        id=f"{name}-{dtype}",
        marks=[pytest.mark.cuda] if name == "cupy" else [],
    )
    for name in LIBRARIES
    for dtype in ("float32", "float64")
    if (name, dtype) != ("strict_no_float64", "float64")
]
# JAX compiles every operation for each shape and dtype, which takes seconds for a whole network:
# its operations are tested in both dtypes, their composition in float64.
WHOLE_NETWORKS = [param for param in PARAMETERS if param.id != "jax-float32"]

# A result of a few operations is within a few units in the last place of its largest intermediate:
# sums here have up to 100 terms (sqrt(100) = 10 units at random), and libraries' float32 exp and
# tanh differ by up to 4 units.
ROUNDING_UNITS = 32


def require(name):
    """Return a module; without it skip, or fail where NNBACKEND_REQUIRE_ORACLES=1 asks for it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1" and error.name != "cupy":
            pytest.fail(f"NNBACKEND_REQUIRE_ORACLES=1, but {error.name} is not installed")
        # A whole module of tests may need it.
        pytest.skip(f"{error.name} is not installed", allow_module_level=True)


def require_dispatched(name):
    """Return a library whose arrays scikit-learn dispatches on; else skip as ``require`` does."""
    module = require(name)
    if tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 14):
        pytest.skip("scikit-learn dispatches on arrays with SciPy 1.14 and later")
    return module


def _map(function, tree):
    """Apply ``function`` to the NumPy arrays in nested lists, tuples and dicts."""
    if isinstance(tree, np.ndarray):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_map(function, value) for value in tree)
    return tree


def _leaves(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return (
        [leaf for value in tree for leaf in _leaves(value)]
        if type(tree) in (list, tuple)
        else [tree]
    )


@dataclass(frozen=True)
class Backend:
    """An array library on a device, computing in one dtype."""

    name: str
    dtype: str
    device: Any
    readonly: bool

    @property
    def xp(self):
        return array_api_compat.array_namespace(self.array(np.zeros(1)))

    @property
    def eps(self):
        return float(np.finfo(self.dtype).eps)

    def cast(self, x):
        """Return a copy on the host, floats in this backend's dtype."""
        return x.astype(self.dtype) if x.dtype.kind == "f" else x.copy()

    def exact(self, x):
        """Return in float64 what this backend sees of the values: what oracles are to be given."""
        return _map(lambda a: a.astype("float64") if a.dtype.kind == "f" else a, _map(self.cast, x))

    def array(self, x):
        host = self.cast(np.asarray(x))
        if self.name in ("numpy", "readonly"):
            host.flags.writeable = not self.readonly
            return host
        module = importlib.import_module(LIBRARIES[self.name][0])
        return module.asarray(host, **({} if self.device is None else {"device": self.device}))

    def host(self, x):
        """Return an array of this backend as NumPy's."""
        if self.name == "cupy":
            return x.get()
        if self.device is not None:
            strict = importlib.import_module("array_api_strict")
            x = array_api_compat.to_device(x, strict.Device("CPU_DEVICE"))
        return np.asarray(x)

    def call(self, function, *arguments, **options):
        """Return ``function(xp, ...)`` of NumPy arrays placed here, none of which it may change."""
        placed = _map(self.array, (arguments, options))
        result = function(self.xp, *placed[0], **placed[1])
        for given, after in zip(_leaves((arguments, options)), _leaves(placed), strict=True):
            if isinstance(given, np.ndarray):
                np.testing.assert_array_equal(
                    self.host(after), self.cast(given), err_msg="an input was changed"
                )
        return result


def load(name, dtype):
    """Return the backend, or skip for a stated reason."""
    module_name, device, readonly = LIBRARIES[name]
    module = require(module_name)
    if name == "torch":
        module.set_num_threads(1)  # arrays are small, and a sum's order is then always the same
    if name == "cupy":
        try:
            n_devices = module.cuda.runtime.getDeviceCount()
        except module.cuda.runtime.CUDARuntimeError as error:
            pytest.skip(f"cupy finds no NVIDIA GPU: {error}")
        if n_devices == 0:
            pytest.skip("cupy finds no NVIDIA GPU")
    if device is not None:
        # What core may use: the 2024.12 standard without extensions and data-dependent shapes.
        module.set_array_api_strict_flags(
            api_version="2024.12",
            boolean_indexing=False,
            data_dependent_shapes=False,
            enabled_extensions=(),
        )
        device = module.Device(device)
    return Backend(name, dtype, device, readonly)


def assert_close(backend, actual, expected, *, units=ROUNDING_UNITS, scale=1.0, relative=False):
    """Assert namespace, shape, dtype and device of a result, then its values.

    Values may differ by ``units`` roundings at the size of the largest intermediate, which is the
    largest expected value or ``scale``; with ``relative``, by that many of each value's own size.
    """
    expected = np.asarray(expected)
    assert array_api_compat.is_array_api_obj(actual), type(actual)
    assert array_api_compat.array_namespace(actual) is backend.xp
    assert tuple(actual.shape) == expected.shape
    assert actual.dtype == backend.array(np.zeros(1, expected.dtype)).dtype
    assert array_api_compat.device(actual) == array_api_compat.device(backend.array(np.zeros(1)))
    size = max(scale, float(np.max(np.abs(expected), initial=0.0)))
    rtol, atol = (units * backend.eps, 0.0) if relative else (0.0, units * backend.eps * size)
    np.testing.assert_allclose(backend.host(actual), expected, rtol=rtol, atol=atol)


TORCH_ACTIVATIONS = {
    "identity": lambda _torch, z: 1.0 * z,
    "sigmoid": lambda torch, z: torch.sigmoid(z),
    "logistic": lambda torch, z: torch.sigmoid(z),
    "tanh": lambda torch, z: torch.tanh(z),
    "relu": lambda torch, z: torch.nn.functional.relu(z),
    "leaky_relu": lambda torch, z: torch.nn.functional.leaky_relu(z, 0.01),
    "elu": lambda torch, z: torch.nn.functional.elu(z),
    # torch's softplus is linear above its threshold; 700 is beyond where that shows in float64.
    "softplus": lambda torch, z: torch.nn.functional.softplus(z, threshold=700.0),
    "silu": lambda torch, z: torch.nn.functional.silu(z),
    "gelu": lambda torch, z: torch.nn.functional.gelu(z, approximate="tanh"),
}
TORCH_OUTPUTS = {
    "identity": lambda _torch, z: 1.0 * z,
    "sigmoid": lambda torch, z: torch.sigmoid(z),
    "logistic": lambda torch, z: torch.sigmoid(z),
    "softmax": lambda torch, z: torch.softmax(z, -1),
    "exp": lambda torch, z: torch.exp(z),
}


def tensors(torch, tree, *, requires_grad=False):
    """Return NumPy arrays as torch's, in their own dtype."""
    return _map(
        lambda x: torch.tensor(x.copy(), requires_grad=requires_grad and x.dtype.kind == "f"), tree
    )


def torch_logits(torch, hidden, weights, biases, X, masks=None):
    """Return the logits of a network written with torch's own layers and activations."""
    A = X
    for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
        Z = torch.nn.functional.linear(A, W.T, b)
        if layer == len(hidden):
            return Z
        A = TORCH_ACTIVATIONS[hidden[layer]](torch, Z)
        if masks is not None and masks[layer] is not None:
            A = A * masks[layer]
    raise AssertionError("there is one more layer than hidden activations")


def network(sizes, hidden, output, seed=0, stack=(), dropout=None):
    """Return a structure, and random weights and biases that no initializer would give."""
    rng = np.random.default_rng(seed)
    structure = Structure(
        tuple(sizes),
        tuple(ACTIVATIONS[name] for name in hidden),
        OUTPUTS[output],
        dropout or (0.0,) * len(hidden),
    )
    shapes = structure.weight_shapes
    weights = [rng.normal(0.0, shape[0] ** -0.5, (*stack, *shape)) for shape in shapes]
    biases = [rng.normal(0.0, 0.3, (*stack, shape[1])) for shape in shapes]
    return structure, weights, biases

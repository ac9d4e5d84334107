"""Bad input at every door: good input to alter, and what a refusal has to be."""

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.errors import InputError, NNBackendError

N = 6


def data():
    return np.random.default_rng(0).normal(size=(N, 2)), np.arange(N) % 2


def put(array, index, value):
    """Return a float64 copy with one element replaced."""
    array = np.array(array, dtype=np.float64)
    array[index] = value
    return array


X, Y = data()

OUTPUTS = {
    "binary": {"layer_sizes": [2, 3, 1], "output": "sigmoid"},
    "multilabel": {"layer_sizes": [2, 3, 2], "output": "sigmoid"},
    "softmax": {"layer_sizes": [2, 3, 3], "output": "softmax"},
    "identity": {"layer_sizes": [2, 3, 1], "output": "identity"},
    "two identities": {"layer_sizes": [2, 3, 2], "output": "identity"},
    "exp": {"layer_sizes": [2, 3, 1], "output": "exp"},
    "gaussian": {"layer_sizes": [2, 3, 2], "output": "gaussian"},
    "quantile": {"layer_sizes": [2, 3, 3], "output": "quantile"},
}
GOOD_TARGETS = {
    "binary": Y,
    "multilabel": np.stack([Y, 1 - Y], axis=1),
    "softmax": np.arange(N) % 3,
    "identity": X[:, 0],
    "two identities": X,
    "exp": np.arange(N),
    "gaussian": X[:, 0],
    "quantile": X[:, 0],
}


def network(kind="binary", **options):
    return nb.Network(**{**OUTPUTS[kind], **options})


def label(arguments):
    """Return an id for the arguments of a call that is the same in every run."""
    shown = {
        name: repr(value)
        if isinstance(value, int | float | str | list | None)
        else type(value).__name__
        for name, value in arguments.items()
    }
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def cases(table):
    """Return parameter sets of (arguments, said) with the arguments as ids."""
    return [pytest.param(arguments, said, id=label(arguments)) for arguments, said in table]


def check_refusal(call, *said, error=InputError):
    """Check the type of the error, and that its message is one sentence which says all of this."""
    with pytest.raises(NNBackendError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert isinstance(caught.value, ValueError)
    assert "\n" not in message
    assert message.startswith(said[0]), message
    for text in said[1:]:
        assert text in message, message


def check_network_refuses(net, call, *said):
    """Check the refusal, and that it left the network as it was."""
    parameters, standardization = net.parameters.copy(), net.standardization
    check_refusal(call, *said)
    np.testing.assert_array_equal(net.parameters, parameters)
    assert net.standardization is standardization


FEATURE_CALLS = {
    "train": ("X", lambda net, x: nb.train(net, x, Y, epochs=1)),
    "validation_data": (
        "validation_data[0]",
        lambda net, x: nb.train(net, X, Y, epochs=1, validation_data=(x, Y)),
    ),
    "forward": ("X", lambda net, x: net.forward(x)),
    "predict": ("X", lambda net, x: net.predict(x)),
    "predict_proba": ("X", lambda net, x: net.predict_proba(x)),
    "loss_and_gradients": ("X", lambda net, x: net.loss_and_gradients(x, Y)),
    "check_gradients": ("X", lambda net, x: nb.check_gradients(net, x, Y)),
    "standardize": ("X", lambda net, x: net.standardize(x)),
}

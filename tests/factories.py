"""Networks, data and problems that several test modules train on."""

import numpy as np

import nnbackend as nb

__all__ = ["N_OUTPUTS", "PROBLEMS", "WEIGHT", "N", "X", "Y", "network", "trained"]


def network(sizes=(3, 6, 1), **options):
    """Return a small smooth network; what a test wants otherwise, a keyword says."""
    return nb.Network(sizes, **{"hidden": "tanh", "dtype": "float64", "seed": 1, **options})


RNG = np.random.default_rng(0)
N = 53  # with batches of 16 the last one is short
X = RNG.standard_normal((N, 6))
Y = {
    "sigmoid": RNG.integers(0, 2, N),
    "softmax": RNG.integers(0, 3, N),
    "identity": RNG.standard_normal((N, 3)),
    "exp": RNG.poisson(2.0, (N, 3)),
    "gaussian": RNG.standard_normal(N),
    "quantile": RNG.standard_normal(N),
}
WEIGHT = RNG.random(N)
N_OUTPUTS = {"sigmoid": 1, "softmax": 3, "identity": 3, "exp": 3, "gaussian": 2, "quantile": 3}
C = nb.schedules.Cosine

# Activations of the hidden layers, output, and options: each of them once.
PROBLEMS = [
    (["relu", "tanh"], "sigmoid", {"optimizer": nb.SGD(0.1)}),
    (["gelu", "silu"], "softmax", {"optimizer": nb.Adam(0.01, weight_decay=0.01), "l2": 0.01}),
    (
        ["elu", "softplus"],
        "identity",
        {"optimizer": nb.SGD(0.05, momentum=0.9, nesterov=True), "loss": "huber", "l1": 0.01},
    ),
    (
        ["leaky_relu", "sigmoid"],
        "exp",
        {"optimizer": nb.RMSprop(1e-3, momentum=0.5, centered=True), "clip_norm": 0.1},
    ),
    (
        ["identity", "relu"],
        "softmax",
        {
            "optimizer": nb.AdamW(C(0.01)),
            "loss": nb.losses.SoftmaxCrossEntropy(label_smoothing=0.1),
            "clip_value": 0.01,
        },
    ),
    ([], "identity", {"optimizer": nb.Adagrad(0.1, decay=0.01), "loss": "absolute_error"}),
    (["tanh"], "softmax", {"optimizer": nb.SGD(0.1), "loss": "squared_error", "one_hot": True}),
    (["relu"], "sigmoid", {"optimizer": nb.Adam(0.01), "dropout": 0.3}),
    (["tanh"], "gaussian", {"optimizer": nb.Adam(0.01)}),
    (["tanh", "relu"], "quantile", {"optimizer": nb.SGD(0.1)}),
]


def trained(engine, hidden, output, options, *, dtype, weighted, batch_size, shuffle, device="cpu"):
    """Train on a problem, and return the network and its history."""
    options = dict(options)
    y = Y[output]
    if options.pop("one_hot", False):
        y = np.eye(3)[y]
    net = nb.Network(
        [6, *[7, 5][: len(hidden)], N_OUTPUTS[output]],
        hidden=hidden,
        output=output,
        dropout=options.pop("dropout", 0.0),
        dtype=dtype,
        device=device,
        seed=1,
    )
    weight = WEIGHT if weighted else None
    history = nb.train(
        net,
        X,
        y,
        epochs=5,
        batch_size=batch_size,
        shuffle=shuffle,
        sample_weight=weight,
        validation_data=(X[:20], y[:20], weight if weight is None else weight[:20]),
        engine=engine,
        **options,
    )
    return net, history

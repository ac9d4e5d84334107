"""The score of early stopping is scikit-learn's accuracy or R^2, without its checks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, r2_score

from nnbackend.estimators.scores import _accuracy, _r2


def weights(kind, rng, n):
    if kind is None:
        return None
    weight = rng.random(n) + 0.1
    if kind == "zeros":
        weight[: n // 2] = 0.0
    return weight


@given(
    seed=st.integers(0, 2**16),
    n=st.integers(2, 30),
    kind=st.sampled_from([None, "weighted", "zeros"]),
    form=st.sampled_from(["int", "text", "bool", "object", "list", "multilabel"]),
)
def test_accuracy_is_scikit_learns(seed, n, kind, form):
    rng = np.random.default_rng(seed)
    y, predicted = rng.integers(0, 2 if form in ("bool", "multilabel") else 3, (2, n, 2))
    if form != "multilabel":
        y, predicted = y[:, 0], predicted[:, 0]
    if form == "text":
        y, predicted = (np.array(["no", "perhaps", "yes"])[entry] for entry in (y, predicted))
    elif form == "bool":
        y, predicted = y.astype(bool), predicted.astype(bool)
    elif form == "object":
        y, predicted = (np.array(["a", "b", "c"], object)[entry] for entry in (y, predicted))
    elif form == "list":
        y = y.tolist()
    weight = weights(kind, rng, n)
    wanted = accuracy_score(y, predicted, sample_weight=weight)
    assert _accuracy(y, predicted, weight) == wanted


@pytest.mark.filterwarnings("ignore:R.2 score is not well-defined")
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(2, 30),
    kind=st.sampled_from([None, "weighted", "zeros"]),
    shape=st.sampled_from([(), (1,), (3,)]),
    dtype=st.sampled_from(["float32", "float64"]),
    special=st.sampled_from(["", "constant", "exact", "whole numbers"]),
)
def test_r2_is_scikit_learns(seed, n, kind, shape, dtype, special):
    rng = np.random.default_rng(seed)
    y = (3.0 + rng.standard_normal((n, *shape))).astype(dtype)
    if special == "constant":
        y[:] = 1.5
    predicted = y.copy() if special == "exact" else (y + rng.standard_normal(y.shape)).astype(dtype)
    if special == "whole numbers":
        y = y.astype(int)
    weight = weights(kind, rng, n)
    wanted = r2_score(y, predicted, sample_weight=weight)
    assert _r2(y, predicted, weight) == pytest.approx(wanted, rel=1e-6 if dtype == "float32" else 0)

"""Data that comes along, and what becomes of a target column."""

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.data.datasets import DATASETS, encode_target, load_dataset, planar


@pytest.mark.parametrize(
    ("name", "shape", "n_classes"),
    [
        ("breast_cancer", (569, 30), 2),
        ("digits", (1797, 64), 10),
        ("diabetes", (442, 10), None),
        ("planar", (400, 2), 2),
    ],
)
def test_each_dataset_has_its_published_shape(name, shape, n_classes):
    dataset = load_dataset(name)
    assert dataset.X.shape == shape
    assert dataset.X.dtype == np.float64
    assert dataset.y.shape == shape[:1]
    assert len(dataset.feature_names) == shape[1]
    if n_classes is None:
        assert dataset.class_names is None
        assert dataset.y.dtype == np.float64
    else:
        assert len(dataset.class_names) == n_classes
        assert np.array_equal(np.unique(dataset.y), np.arange(n_classes))
    assert name in DATASETS


def test_an_unknown_dataset_is_answered_with_the_nearest_name():
    with pytest.raises(nb.InputError, match=r"--dataset.*'digit'.*did you mean 'digits'"):
        load_dataset("digit")


def test_planar_points_lie_on_petals_of_radius_four_and_repeat():
    first, again, other = planar(seed=1), planar(seed=1), planar(seed=2)
    assert np.array_equal(first.X, again.X)
    assert not np.array_equal(first.X, other.X)
    # 4 sin(4 theta) plus noise of standard deviation 0.2: five deviations are never exceeded here.
    assert 4.0 < np.linalg.norm(first.X, axis=1).max() < 5.0
    assert first.y.sum() == 200


def test_a_linear_model_cannot_separate_planar():
    from sklearn.linear_model import LogisticRegression

    flower = planar()
    assert LogisticRegression().fit(flower.X, flower.y).score(flower.X, flower.y) < 0.6


@pytest.mark.parametrize(
    ("values", "task", "codes", "names"),
    [
        (["b", "a", "b"], "auto", [1, 0, 1], ("a", "b")),
        ([True, False], "auto", [1, 0], ("False", "True")),
        ([3, 7, 3], "auto", [0, 1, 0], ("3", "7")),
        ([1.0, 2.0], "classification", [0, 1], ("1", "2")),
        ([0.5, 1.5], "auto", [0.5, 1.5], None),
        ([1.0, 2.0], "auto", [0, 1], ("1", "2")),
        ([1.0, 2.0], "regression", [1.0, 2.0], None),
        ([1, 2], "regression", [1.0, 2.0], None),
        (list(range(50)), "auto", [float(i) for i in range(50)], None),
    ],
)
def test_targets_become_class_indices_or_numbers(values, task, codes, names):
    y, class_names = encode_target("t", np.asarray(values), task)
    assert y.tolist() == codes
    assert y.dtype == (np.float64 if names is None else np.int64)
    assert class_names == names


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (["a", "b"], "regression", "'t' holds text"),
        (["a", "a"], "auto", "at least two classes.*got only 'a'"),
        ([1.0, np.nan], "auto", "'t' holds nan in row 1"),
        (np.arange(3000), "classification", "3000 distinct values"),
        (np.asarray([1j]), "auto", "complex128"),
    ],
)
def test_a_target_that_cannot_be_learnt_is_refused(values, task, message):
    with pytest.raises(nb.InputError, match=message):
        encode_target("t", np.asarray(values), task)

"""Data that comes along."""

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.data.datasets import DATASETS, load_dataset, planar


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

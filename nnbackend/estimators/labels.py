"""Class labels: which there are, as numbers, and what they weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.preprocessing import LabelBinarizer, label_binarize
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import type_of_target, unique_labels

from nnbackend.checks import real
from nnbackend.device import get_device
from nnbackend.errors import InputError

__all__ = [
    "classes",
    "classes_of_first_call",
    "decoded",
    "indicators",
    "require_known",
    "weights",
]

_Array = np.ndarray[Any, Any]


def classes_of_first_call(known: _Array | None, classes: Any) -> _Array:
    """Return the classes of an estimator whose ``partial_fit`` is given ``classes``, or None."""
    if classes is None:
        if known is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return known
    given: _Array = unique_labels(classes)
    if known is not None and not np.array_equal(known, given):
        raise ValueError(
            f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {known!r}"
        )
    return given if known is None else known


def require_known(y: Any, known: _Array, *, all_of_them: bool) -> None:
    """Raise a ValueError where labels are not of the classes of the calls before."""
    found = unique_labels(y)
    if all_of_them:
        if set(found) != set(known):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {known}, `y` has {found}"
            )
    elif len(np.setdiff1d(found, known, assume_unique=True)):
        raise ValueError(
            f"`y` has classes not in `self.classes_`. `self.classes_` has {known}. 'y' has {found}."
        )


def _are_plain(y: Any) -> bool:
    """Whether labels are whole numbers or texts, one for each row, about which is no question."""
    return isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "biuUS"


def classes(y: Any) -> _Array:
    """Return the classes among labels, sorted.

    Raises
    ------
    ValueError
        If ``y`` is not made of labels.
    """
    # scikit-learn looks at them several times, which takes longer than training on a few rows.
    found: _Array = np.unique(y) if _are_plain(y) else LabelBinarizer().fit(y).classes_
    return found


def indicators(y: Any, classes: _Array) -> _Array:
    """Return labels as rows of bools: one column for two classes, else one for each.

    Several labels at once are such rows already.
    """
    if _are_plain(y) and _are_plain(classes):
        columns: _Array = y[:, None] == (classes if len(classes) > 2 else classes[1:2])
        return columns if columns.shape[1] else np.zeros((len(y), 1), bool)
    if type_of_target(y).startswith("multilabel"):
        classes = np.arange(np.shape(y)[1])
    binarized: _Array = label_binarize(y, classes=classes)
    return binarized.astype(bool)


def decoded(A: Any, classes: _Array | None, place: str) -> Any:
    """Return the labels that outputs stand for.

    Parameters
    ----------
    A : array (n_samples, n_outputs)
        One column for two classes, or for one; else one for each class, or for each of several
        labels at once.
    classes : array (n_classes,)
        The class labels; None for several labels at once.
    place : str
        The GPU that A is on; "" for the host.
    """
    device = get_device(place or "cpu")
    xp = device.xp
    if classes is None:
        return xp.astype(A > 0.5, xp.int64)
    if A.shape[1] > 1:
        index = xp.argmax(A, axis=1)
    else:
        index = xp.astype(A > 0.5, xp.int64)[:, 0]
        # With a single class there is no second one to be.
        index = index if len(classes) > 1 else 0 * index
    if place and classes.dtype.kind in "biuf":
        return xp.take(xp.asarray(classes), index)
    return classes[device.to_numpy(index)]


def weights(
    class_weight: Any, classes: _Array | None, indicators: _Array, sample_weight: _Array | None
) -> _Array:
    """Return the weights of samples, those of their classes included.

    Parameters
    ----------
    class_weight : dict, list of dict or "balanced"
        The parameter of the estimator.
    classes : array (n_classes,) or None
        None for several labels at once, each of which has weights of its own.
    indicators : array (n_samples, n_outputs)
        The labels, as rows of bools.
    sample_weight : array (n_samples,) or None
        Weights that the caller gave.
    """
    _check_class_weight(class_weight, is_multilabel=classes is None)
    if classes is None:
        # The product over the labels.
        own = compute_sample_weight(class_weight, indicators.astype(int))
    else:
        is_single = indicators.shape[1] == 1
        index = indicators[:, 0].astype(int) if is_single else indicators.argmax(axis=1)
        table = compute_class_weight(
            class_weight, classes=classes, y=classes[index], sample_weight=sample_weight
        )
        # A class of no weight has no frequency either.
        own = np.where(np.isfinite(table), table, 0.0)[index]
    product: _Array = own if sample_weight is None else own * sample_weight
    return product


def _check_class_weight(given: Any, *, is_multilabel: bool) -> None:
    tables = given if isinstance(given, list) else [given]
    if isinstance(given, str) and given == "balanced":
        return
    if not all(isinstance(table, dict) for table in tables) or (
        isinstance(given, list) != is_multilabel
    ):
        form = "a list of dicts {0: weight, 1: weight}" if is_multilabel else "a dict"
        raise InputError(
            f"expected {form}, 'balanced' or None, got {given!r}", argument="class_weight"
        )
    for table in tables:
        for name, weight in table.items():
            real(f"class_weight[{name!r}]", weight, minimum=0.0)

"""How a network takes data: checked, in its dtype, standardized, and on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.core.activations import Output
from nnbackend.core.losses import Loss, loss_function
from nnbackend.core.standardization import Moments, Standardization
from nnbackend.core.types import Array
from nnbackend.data.examples import Data
from nnbackend.data.sources import Source, as_source
from nnbackend.data.validation import (
    DTYPES,
    check_features,
    check_sample_weight,
    check_targets,
    place,
)
from nnbackend.device import Device, require_same_device
from nnbackend.errors import InputError

__all__ = ["Preparation", "column_names"]

# Rows that are standardized at once where all of them would be too many.
_ROWS_PER_BLOCK = 2**16


@dataclass(frozen=True)
class Preparation:
    """What turns a caller's data into what a step takes, the same for every door.

    Attributes
    ----------
    n_features, n_outputs : int
        Columns of X, and of y.
    output : Output
        The output activation: says what targets are without a loss.
    dtype : {"float32", "float64"}
        Of what is computed with.
    device : Device
        Where it is computed.
    standardization, target_standardization : Standardization or None
        Applied to features and targets.
    feature_names : tuple of str or None
        The columns of X: a data frame is read by these.
    """

    n_features: int
    n_outputs: int
    output: Output
    dtype: str
    device: Device
    standardization: Standardization | None = None
    target_standardization: Standardization | None = None
    feature_names: tuple[str, ...] | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(DTYPES[self.dtype]).itemsize

    def features(self, X: Any, name: str = "X", home: Device | None = None) -> Array:
        """Return features (n_samples, n_features) on a device, by default the network's.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            One example per row.
        name : str, default "X"
            What the caller calls it.
        home : Device, optional
            Where the features are kept, if not on the network's device.

        Raises
        ------
        InputError
            If they are not finite real numbers of that shape, or on another device.
        """
        home = home or self.device
        dtype = DTYPES[self.dtype]
        with self.device.activate():
            X = self._in_order(X, name)
            if self.standardization is None:
                return check_features(name, X, self.n_features, home, dtype)
            X = check_features(name, X, self.n_features, home)
            if home == self.device:
                return place(name, self.standardization.apply(X), home, dtype, X)
            # Features that a device does not hold are large: a block at a time, in float64.
            on_host = Standardization(*map(self.device.to_numpy, self.standardization))
            result = np.empty(X.shape, dtype)
            for start in range(0, len(X), _ROWS_PER_BLOCK):
                rows = X[start : start + _ROWS_PER_BLOCK]
                stop = start + len(rows)
                result[start:stop] = place(name, on_host.apply(rows), home, dtype, rows)
            return result

    def examples(
        self,
        X: Any,
        y: Any,
        loss: Loss,
        sample_weight: Any = None,
        names: tuple[str, str, str] = ("X", "y", "sample_weight"),
        *,
        home: Device | None = None,
        is_whole: bool = True,
    ) -> Data:
        """Return examples in the form that the core takes.

        Parameters
        ----------
        X, y, sample_weight : array-likes
            As for ``train``.
        loss : Loss
            Decides which targets are allowed.
        names : tuple of str
            What the caller calls them.
        home : Device, optional
            Keep the features there instead of on the network's device.
        is_whole : bool, default True
            Whether these are all of the data, whose weights are not all 0.

        Raises
        ------
        InputError
            If anything about them is not as said.
        """
        require_same_device(**dict(zip(names, (X, y, sample_weight), strict=True)))
        with self.device.activate():
            features = self.features(X, names[0], home)
            n_samples, dtype = features.shape[0], DTYPES[self.dtype]
            target = self.target_standardization
            y = check_targets(
                names[1],
                y,
                n_samples=n_samples,
                n_outputs=self.n_outputs,
                loss=loss,
                device=self.device,
                dtype=dtype if target is None else np.float64,
            )
            if target is not None:
                y = place(names[1], target.apply(y), self.device, dtype, y)
            weight = check_sample_weight(
                names[2], sample_weight, n_samples, self.device, dtype, is_whole=is_whole
            )
        streams = home is not None and home != self.device
        return Data(features, y, weight, streams)

    def moments(self, X: Any, y: Any = None) -> list[Standardization]:
        """Return the standardization of features and, unless y is None, of targets.

        ``X`` and ``y`` are as for ``Network.standardize``.
        """
        xp = self.device.xp
        moments: list[Moments] = []
        with self.device.activate():
            for columns in self._columns(X, y):
                block = [Moments.of(xp, x) for x in columns]
                if moments:
                    block = [a.merge(xp, b) for a, b in zip(moments, block, strict=True)]
                moments = block
            return [Standardization.of(xp, columns) for columns in moments]

    def _columns(self, X: Any, y: Any) -> Iterator[list[Array]]:
        """Yield checked features and, unless y is None, targets: of a source block by block."""
        source = as_source(X, None if isinstance(X, Source) and y is X else y)
        blocks: Iterable[tuple[slice | None, Any]]
        if source is None:
            blocks = [(None, (self._in_order(X, "X"), y))]
        else:
            source.require_names(self.feature_names)
            # Of each number its value in float64, its magnitude, and parts of sums of squares.
            n_numbers = self.n_features + (0 if y is None else self.n_outputs)
            blocks = source.blocks(40 * n_numbers)
        for where, rows in blocks:
            index = "" if where is None else f"[{where.start}:{where.stop}]"
            columns = [check_features(f"X{index}", rows[0], self.n_features, self.device)]
            if y is not None:
                target = check_targets(
                    f"y{index}",
                    rows[1],
                    n_samples=columns[0].shape[0],
                    n_outputs=self.n_outputs,
                    loss=loss_function(None, self.output),
                    device=self.device,
                    dtype=np.float64,
                )
                columns.append(target)
            yield columns

    def _in_order(self, X: Any, name: str) -> Any:
        """Return a data frame with its columns in the order of ``feature_names``."""
        given = column_names(X)
        if given is None or self.feature_names is None or given == tuple(self.feature_names):
            return X
        missing = [column for column in self.feature_names if column not in given]
        if missing:
            raise InputError(
                f"{name}: expected a data frame with the network's feature_names, the column "
                f"{missing[0]!r} is missing; pass an array to go by position"
            )
        return X[list(self.feature_names)]


def column_names(X: Any) -> tuple[str, ...] | None:
    """Return the names of a data frame's (pandas, polars) or source's columns, if it has any."""
    if isinstance(X, Source):
        return X.feature_names
    # In this order: a polars LazyFrame, which is no array, warns when it is asked for its columns.
    if not hasattr(X, "__array__") or not hasattr(X, "columns"):
        return None
    names = tuple(X.columns)
    # Names that are not distinct tell no columns apart: those go by position.
    is_named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return names if is_named else None

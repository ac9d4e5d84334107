"""How a network takes data: checked, encoded, standardized, in its dtype and on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnbackend.core.activations import Output
from nnbackend.core.losses import Loss, loss_function
from nnbackend.core.standardization import Moments, Standardization
from nnbackend.core.types import Array
from nnbackend.data.door import look
from nnbackend.data.encoded import Encoded
from nnbackend.data.encoding import TableEncoding
from nnbackend.data.examples import Data
from nnbackend.data.given import Given, Native
from nnbackend.data.source import Source
from nnbackend.data.validation import (
    DTYPES,
    check_features,
    check_sample_weight,
    check_targets,
    place,
)
from nnbackend.device import Device, require_same_device

__all__ = ["Preparation"]


class _Encoded(Native):
    """The inputs of a network that an encoding made of a table."""

    __slots__ = ("columns",)

    def __init__(self, given: Given, encoding: TableEncoding, dtype: Any) -> None:
        table = encoding.table(given)
        x = encoding.apply(table, dtype)
        if dtype != np.float64 and not np.isfinite(x).all():
            x = encoding.apply(table)  # the message shows the number that is too large
        super().__init__(given.name, x, Device("cpu"))
        self.columns = encoding.output_names


# Rows that are standardized at once where all of them would be too many.
_ROWS_PER_BLOCK = 2**16


@dataclass(frozen=True)
class Preparation:
    """Turn a caller's data into what a step takes, for every function that takes data.

    Attributes
    ----------
    n_features, n_targets : int
        Columns of X, and of y.
    output : Output
        The output activation: says what targets are without a loss.
    dtype : {"float32", "float64"}
        The dtype of the computation.
    device : Device
        The device of the computation.
    standardization, target_standardization : Standardization or None
        Applied to features and targets.
    feature_names : tuple of str or None
        The columns of X: a data frame is read by these.
    encoding : TableEncoding or None
        Makes the features of X, which is a table then, before they are standardized.
    """

    n_features: int
    n_targets: int
    output: Output
    dtype: str
    device: Device
    standardization: Standardization | None = None
    target_standardization: Standardization | None = None
    feature_names: tuple[str, ...] | None = None
    encoding: TableEncoding | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(DTYPES[self.dtype]).itemsize

    def knowing(self, feature_names: tuple[str, ...] | None) -> Preparation:
        """Return this with names of the columns of X, unless it has them or they do not fit."""
        is_known = self.feature_names is not None or self.encoding is not None
        if is_known or len(feature_names or ()) != self.n_features:
            return self
        return replace(self, feature_names=feature_names)

    def features(self, X: Any, name: str = "X", home: Device | None = None) -> Array:
        """Return features (n_samples, n_features) on a device, by default the network's.

        Parameters
        ----------
        X : array-like (n_samples, n_features) or Given
            One example per row. Of a data frame the columns ``feature_names``, whatever others it
            has; all of them, by position, where there are no names. With an encoding, a table.
        name : str, default "X"
            The name of the argument, for messages.
        home : Device, optional
            The device that keeps the features; by default the network's.

        Raises
        ------
        InputError
            If they are not finite real numbers of that shape, or on another device; or not a table
            as the encoding takes it.
        """
        home = home or self.device
        dtype = DTYPES[self.dtype]
        with self.device.activate():
            own = dtype if self.standardization is None else np.float64
            given, names = self.numbers(look(name, X), own)
            name, labels = given.name, given.labels(names)
            if self.standardization is None:
                return check_features(given, self.n_features, home, dtype, names)
            X = check_features(given, self.n_features, home, names=names)
            if home == self.device:
                return place(name, self.standardization.apply(X), home, dtype, X, labels)
            # Features that a device does not hold are large: a block at a time, in float64.
            on_host = Standardization(*map(self.device.to_numpy, self.standardization))
            result = np.empty(X.shape, dtype)
            for start in range(0, len(X), _ROWS_PER_BLOCK):
                rows = X[start : start + _ROWS_PER_BLOCK]
                stop = start + len(rows)
                result[start:stop] = place(name, on_host.apply(rows), home, dtype, rows, labels)
            return result

    def numbers(self, given: Given, dtype: Any) -> tuple[Given, tuple[str, ...] | None]:
        """Return what holds the features as numbers, and the names by which it is read.

        An encoding's are in ``dtype``.
        """
        if self.encoding is None:
            return given, self.feature_names
        return _Encoded(given, self.encoding, dtype), None

    def reading(self, source: Source, dtype: Any = None) -> tuple[Source, Preparation]:
        """Return a source whose features are numbers, and the preparation that takes them.

        An encoding's are in ``dtype``, by default what the preparation needs.

        Raises
        ------
        InputError
            If its columns are not those of the network.
        """
        if self.encoding is None:
            source.require_names(self.feature_names)
            return source, self
        if dtype is None:
            dtype = self.dtype if self.standardization is None else np.float64
        taking = replace(self, encoding=None, feature_names=None)
        return Encoded(source, self.encoding, dtype), taking

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
        X, y, sample_weight : array-likes or Given
            As for ``train``.
        loss : Loss
            Decides which targets are allowed.
        names : tuple of str
            The names of the arguments, for messages.
        home : Device, optional
            Keep the features there instead of on the network's device.
        is_whole : bool, default True
            Whether these are all of the data, whose weights are not all 0.

        Raises
        ------
        InputError
            If a shape, a dtype or a value is not as described.
        """
        given_X, given_y = look(names[0], X), look(names[1], y)
        given_weight = None if sample_weight is None else look(names[2], sample_weight)
        require_same_device(
            **{given.name: given.device for given in (given_X, given_y, given_weight) if given}
        )
        with self.device.activate():
            features = self.features(given_X, home=home)
            n_samples, dtype = features.shape[0], DTYPES[self.dtype]
            target = self.target_standardization
            y = check_targets(
                given_y,
                n_samples=n_samples,
                n_targets=self.n_targets,
                loss=loss,
                device=self.device,
                dtype=dtype if target is None else np.float64,
            )
            if target is not None:
                labels = given_y.labels(None)
                y = place(names[1], target.apply(y), self.device, dtype, y, labels)
            weight = check_sample_weight(
                given_weight, n_samples, self.device, dtype, is_whole=is_whole
            )
        streams = home is not None and home != self.device
        return Data(features, y, weight, streams)

    def moments(self, X: Given | Source, y: Any = None) -> list[Standardization]:
        """Return the standardization of features and, unless y is None, of targets.

        ``y`` is as for ``Network.standardize``; of a source, whose own targets are taken, anything
        but None.
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

    def _columns(self, X: Given | Source, y: Any) -> Iterator[list[Array]]:
        """Yield checked features and, unless y is None, targets: of a source block by block."""
        blocks: Iterable[tuple[slice | None, Any]]
        taking = self
        if isinstance(X, Given):
            blocks = [(None, (X, y))]
        else:
            X, taking = self.reading(X, np.float64)
            # Of each number its value in float64, its magnitude, and parts of sums of squares.
            n_numbers = self.n_features + (0 if y is None else self.n_targets)
            blocks = X.blocks(40 * n_numbers)
        for where, rows in blocks:
            index = "" if where is None else f"[{where.start}:{where.stop}]"
            given, names = taking.numbers(look(f"X{index}", rows[0]), np.float64)
            columns = [check_features(given, self.n_features, self.device, names=names)]
            if y is not None:
                target = check_targets(
                    look(f"y{index}", rows[1]),
                    n_samples=columns[0].shape[0],
                    n_targets=self.n_targets,
                    loss=loss_function(None, self.output),
                    device=self.device,
                    dtype=np.float64,
                )
                columns.append(target)
            yield columns

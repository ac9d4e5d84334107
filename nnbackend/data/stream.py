"""A source as training sees it: parts that fit into memory, the next one read in a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.core.types import Array
from nnbackend.data.door import look
from nnbackend.data.examples import Data, Part, empty_steps, is_zero_weight
from nnbackend.data.preparation import Preparation
from nnbackend.data.reading import Reading
from nnbackend.data.source import Rows, Source, digest
from nnbackend.data.validation import check_sample_weight, no_weight_error, place
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.core.losses import Loss

__all__ = ["Stream"]


# Blocks of a buffer, at least, where they may be that small: what is shuffled among each other.
_BLOCKS_PER_BUFFER = 32


_Block = tuple[int, int]


def _nothing() -> None:
    """Do nothing."""


class Stream:
    """The epochs of a training on a source.

    An epoch has every row once. It is read in blocks of rows, as many of which as fit make a part.
    Shuffled, the blocks come in a random order, and so do the rows of each part; what fits into one
    part is shuffled as arrays in memory are.

    Parameters
    ----------
    preparation : Preparation
        The preparation of the network that the rows are for.
    source : Source
        The examples, with targets. Its ``buffer_bytes`` bound what a part takes: its rows as they
        are read, their prepared copies (on the network's device), the order, and one block's
        copies in float64 while it is prepared. Two parts are held at most, one in use and the next
        being read: twice that many bytes. A part has at least one batch, however large that is.
    loss : Loss
        Decides which targets are allowed.
    batch_size : int
        Examples per step; the last step of an epoch takes what is left.
    shuffle : bool
        Whether the order of an epoch is random.

    Attributes
    ----------
    n_samples : int
        Examples in an epoch.

    Raises
    ------
    InputError
        If the source has no targets, or does not fit the network.
    """

    def __init__(
        self, preparation: Preparation, source: Source, loss: Loss, batch_size: int, shuffle: bool
    ) -> None:
        source, preparation = preparation.reading(source)
        row = source.checked(0, 1)
        if row.y is None:
            raise InputError(
                "expected targets to train on, got a source that has none", argument="y"
            )
        # A wrong shape or dtype is found before the training begins. The row may have no weight.
        weight = None if row.sample_weight is None else np.ones(1)
        names = ("X[0:1]", "y[0:1]", "")
        self._form = preparation.examples(row.X, row.y, loss, weight, names)
        self._preparation, self._source, self._loss = preparation, source, loss
        self._batch_size, self._shuffle = batch_size, shuffle
        self.n_samples = source.n_samples
        n_inputs, n_targets = preparation.n_features, preparation.n_targets
        # Features, targets (labels have 8 bytes), weight, and the row's place in the order.
        prepared = preparation.itemsize * (n_inputs + n_targets + 1) + 2 * 8
        per_row = row.nbytes + prepared
        # A block as it is decoded, and what standardizing and checking it takes.
        passing = 2 * row.nbytes + 26 * (n_inputs + n_targets)
        most = source.buffer_bytes // (per_row + passing)
        wanted = max(source.block_rows, source.buffer_bytes // per_row // _BLOCKS_PER_BUFFER)
        self._block = max(1, min(-(-wanted // batch_size), most // batch_size)) * batch_size
        room = source.buffer_bytes - self._block * passing
        self._blocks_per_part = max(1, room // per_row // self._block)

    def __len__(self) -> int:
        return math.ceil(self.n_samples / self._batch_size)

    def form(self) -> Data:
        """Return one prepared row, as all of them are."""
        return self._form

    def digest(self, to_numpy: Callable[[Any], Any]) -> str:
        """Return the fingerprint of the source, and the blocks that decide the order."""
        del to_numpy
        return f"{digest(self._source)} in {self._blocks_per_part} blocks of {self._block} rows"

    def parts(
        self,
        rng: np.random.Generator | None,
        first_step: int = 0,
        while_waiting: Callable[[], None] | None = None,
    ) -> Generator[Part, None, None]:
        """Return the parts of an epoch.

        Parameters
        ----------
        rng : numpy.random.Generator or None
            Draws the order, all of it now, whatever ``first_step`` is; None where nothing is
            shuffled.
        first_step : int, default 0
            The epoch goes on from this step: earlier parts are not read, and the steps done are
            cut off the first.
        while_waiting : callable, optional
            Called again and again while a part is not there yet; what it raises ends the epoch.

        Returns
        -------
        generator of Part
            Rows that are in memory together, and their order. Close it where it is not used up:
            no further block is read then, and one that is being read is not waited for.

        Raises
        ------
        InputError
            If a block is not as the first row, or, at the end, no row of an epoch has weight.
        """
        size, n_samples = self._block, self.n_samples
        n_full, n_blocks = n_samples // size, -(-n_samples // size)
        n_parts = -(-n_blocks // self._blocks_per_part)
        blocks = np.arange(n_blocks)
        orders: list[Any] = [None] * n_parts
        if self._shuffle and rng is not None and len(self) > 1:
            if n_parts == 1:
                orders = [rng.permutation(n_samples)]
            else:
                # A short block is last, where the epoch's short batch has to be.
                blocks[:n_full] = rng.permutation(n_full)
                orders = list(rng.integers(2**63, size=n_parts))
        return self._parts(blocks, orders, first_step, while_waiting or _nothing)

    def _parts(
        self,
        blocks: np.ndarray[Any, Any],
        orders: list[Any],
        first_step: int,
        while_waiting: Callable[[], None],
    ) -> Generator[Part, None, None]:
        if first_step >= len(self):
            return
        size, count = self._block, self._blocks_per_part
        first, n_done = divmod(first_step, size * count // self._batch_size)
        parts = [
            [(int(i) * size, min((int(i) + 1) * size, self.n_samples)) for i in blocks[at:][:count]]
            for at in range(first * count, len(blocks), count)
        ]
        has_weight = first_step > 0
        reading = Reading(self._source, parts[0])
        try:
            reading.start()
            for number, part in enumerate(parts):
                data = self._prepared(part, reading.result(while_waiting))
                # Not before: two parts as they are read would be in memory together.
                if number + 1 < len(parts):
                    reading = Reading(self._source, parts[number + 1])
                    reading.start()
                made = self._part(data, orders[first + number], n_done)
                has_weight = has_weight or made.empty is None or not made.empty.all()
                n_done = 0
                yield made
        finally:
            reading.end()
        if not has_weight:
            raise no_weight_error("sample_weight", "an epoch of nothing but 0")

    def _prepared(self, part: list[_Block], blocks: list[Rows]) -> Data:
        """Return the rows of a part on the device; an error names those of the source."""
        device = self._preparation.device
        n_rows = sum(stop - start for start, stop in part)
        columns: list[Array] = []
        at = 0
        with device.activate():
            for (start, stop), rows in zip(part, blocks, strict=True):
                names = (
                    f"X[{start}:{stop}]",
                    f"y[{start}:{stop}]",
                    f"sample_weight[{start}:{stop}]",
                )
                data = self._preparation.examples(rows.X, rows.y, self._loss, names=names)
                block = [data.X, data.y]
                if rows.sample_weight is not None:
                    block.append(place(names[2], rows.sample_weight, device, data.X.dtype))
                if not columns:
                    columns = [
                        device.xp.empty((n_rows, *x.shape[1:]), dtype=x.dtype) for x in block
                    ]
                for column, x in zip(columns, block, strict=True):
                    column[at : at + len(x)] = x
                at += stop - start
            X, y, weight = (*columns, None)[:3]
            # Of all of them together, any of which may make up a batch.
            given = None if weight is None else look("sample_weight", weight)
            weight = check_sample_weight(given, n_rows, device, X.dtype, is_whole=False)
        return Data(X, y, weight)

    def _part(self, data: Data, order: Any, n_done: int) -> Part:
        """Return the steps of a part that are left; an order is one, or the seed of one."""
        if isinstance(order, np.integer):
            order = np.random.default_rng(order).permutation(data.n_samples)
        n_steps = math.ceil(data.n_samples / self._batch_size)
        is_zero = is_zero_weight(data, self._batch_size)
        empty = empty_steps(is_zero, order, self._batch_size)
        return Part(data, order, n_steps, empty).steps(n_done, n_steps, self._batch_size)

"""Settings that suit tables, chosen by nested cross-validation on 28 public ones.

``benchmarks/tabular_defaults.py`` chose them, on rows that no score in
``benchmarks/results/tables-*`` is of. The command's defaults and ``nb.tabular`` are these.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnbackend.core.optimizers import AdamW
from nnbackend.core.schedules import Cosine

__all__ = ["Tabular"]

# Weights that the loss does not hold are divided by e^2 over a training. As decay works per step,
# a fixed weight_decay would hold back a table of many rows, which needs it least, the most.
_DECAY = 2.0

# Steps of rows through the network that are worth their time.
_MOST_VISITS = 10**7


@dataclass(frozen=True)
class Tabular:
    """The settings for a number of rows to learn from.

    Attributes
    ----------
    n_rows : int
        The number of rows.
    """

    n_rows: int

    hidden: tuple[int, ...] = (256, 128)
    activation: str = "silu"
    dropout: float = 0.15
    batch_size: int = 128
    learning_rate: float = 3e-3

    @property
    def epochs(self) -> int:
        """100, or fewer, but 10, of more than 100 000 rows."""
        return max(10, min(100, _MOST_VISITS // self.n_rows))

    def optimizer(
        self,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
    ) -> AdamW:
        """Return the optimizer, whose decay is spread over the steps of the training.

        Parameters
        ----------
        epochs, batch_size, learning_rate : optional
            Those of the training, where they are not these.
        """
        n_steps = (epochs or self.epochs) * -(-self.n_rows // (batch_size or self.batch_size))
        rate = learning_rate or self.learning_rate
        # A cosine's mean is half of its learning rate.
        return AdamW(Cosine(rate), beta2=0.95, weight_decay=_DECAY / (0.5 * rate * n_steps))

"""Settings that suit tables, chosen by nested cross-validation on 28 public ones.

``benchmarks/tabular_defaults.py`` chose them, on rows that no score in
``benchmarks/results/tables-*`` is of. The command's defaults and ``nb.tabular`` are these.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnbackend.core.optimizers import AdamW
from nnbackend.core.schedules import Cosine

__all__ = ["Tabular"]

# Decay alone would divide a weight by e over a training. As it works per step, a fixed
# weight_decay would hold back a table of many rows, which needs it least, the most.
_DECAY = 1.0

# Fewer steps leave a network short of what it can learn; more visits of rows are not worth their
# time.
_FEWEST_STEPS = 1000
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
    learning_rate: float = 1e-3

    @property
    def batch_size(self) -> int:
        """32; 128 for more than 20 000 rows."""
        return 32 if self.n_rows <= 20_000 else 128

    @property
    def epochs(self) -> int:
        """100; more for fewer than 300 rows, fewer, but 10, for more than 100 000."""
        steps_per_epoch = -(-self.n_rows // self.batch_size)
        epochs = max(100, -(-_FEWEST_STEPS // steps_per_epoch))
        return max(10, min(epochs, _MOST_VISITS // self.n_rows))

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

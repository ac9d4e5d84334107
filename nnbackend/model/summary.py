"""Summarize a network as a table of its layers: as text, for rich, and as HTML for notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from nnbackend.core.structure import Structure
from nnbackend.data.preparation import Preparation

__all__ = ["LayerSummary", "Summary"]

_HEADINGS = ("layer", "shape", "activation", "dropout", "parameters")
_N_TEXTS = 3  # the first columns are text; the others are numbers
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a network.

    Attributes
    ----------
    name : str
        ``"hidden 1"``, ``"hidden 2"``, ..., ``"output"``.
    shape : tuple (n_in, n_out)
        The shape of its weights.
    activation : str
        The name of its activation.
    dropout : float
        The rate at which training drops its units.
    n_parameters : int
        Its weights and biases.
    """

    name: str
    shape: tuple[int, int]
    activation: str
    dropout: float
    n_parameters: int


@dataclass(frozen=True)
class Summary:
    """The result of ``Network.summary``, whose ``repr`` and ``str`` are a table.

    rich prints it as a rich table, and a notebook shows it as HTML.

    Attributes
    ----------
    layers : tuple of LayerSummary
        From the first hidden layer to the output.
    n_parameters : int
        All weights and biases.
    n_bytes : int
        The memory of the parameters.
    dtype, device : str
        The dtype and the device of the network.
    standardized : tuple of str
        What the network standardizes: nothing, ``"features"``, or also ``"targets"``.
    n_columns : int or None
        How many columns a table has that the network takes; None without an encoder.
    """

    layers: tuple[LayerSummary, ...]
    n_parameters: int
    n_bytes: int
    dtype: str
    device: str
    standardized: tuple[str, ...]
    n_columns: int | None = None

    @classmethod
    def of(cls, structure: Structure, preparation: Preparation) -> Summary:
        """Return the summary of a network: what it computes, and what it asks of its data."""
        names = [*(f"hidden {i}" for i in range(1, len(structure.hidden) + 1)), "output"]
        activations = [*(entry.name for entry in structure.hidden), structure.output.name]
        rates = (*structure.dropout, 0.0)
        layers = tuple(
            LayerSummary(name, shape, activation, rate, (shape[0] + 1) * shape[1])
            for name, shape, activation, rate in zip(
                names, structure.weight_shapes, activations, rates, strict=True
            )
        )
        encoding = preparation.encoding
        columns = {
            "features": preparation.standardization,
            "targets": preparation.target_standardization,
        }
        return cls(
            layers,
            structure.n_parameters,
            structure.n_parameters * preparation.itemsize,
            preparation.dtype,
            preparation.device.name,
            tuple(name for name, found in columns.items() if found is not None),
            None if encoding is None else len(encoding.feature_names),
        )

    @property
    def _rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table, with the line of totals last."""
        rows = [
            (
                layer.name,
                f"{layer.shape[0]} -> {layer.shape[1]}",
                layer.activation,
                f"{layer.dropout:g}" if layer.dropout else "",
                f"{layer.n_parameters:,}",
            )
            for layer in self.layers
        ]
        return [*rows, ("total", "", "", "", f"{self.n_parameters:,}")]

    @property
    def _caption(self) -> str:
        standardized = " and ".join(self.standardized) or "nothing"
        caption = f"{self.dtype} on {self.device}, {_size(self.n_bytes)}"
        if self.n_columns is not None:
            ending = "" if self.n_columns == 1 else "s"
            caption += f"; takes tables of {self.n_columns} column{ending}"
        return f"{caption}; standardizes {standardized}"

    def __repr__(self) -> str:
        lines = [_HEADINGS, *self._rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if i < _N_TEXTS else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        rule = "-" * len(aligned[0])
        return "\n".join([aligned[0], rule, *aligned[1:-1], rule, aligned[-1], self._caption])

    def __rich__(self) -> Any:
        """Return a rich table; rich calls this method."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for i, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="left" if i < _N_TEXTS else "right")
        *layers, total = self._rows
        for row in layers:
            # Use Text, so that brackets in a name are not read as markup.
            table.add_row(*map(Text, row))
        table.add_section()
        table.add_row(*map(Text, total), style="bold")
        return Group(table, Text(self._caption))

    def _repr_html_(self) -> str:
        """Return an HTML table for notebooks."""

        def line(cells: tuple[str, ...], tag: str) -> str:
            aligned = (
                f'<{tag} style="text-align:{"left" if i < _N_TEXTS else "right"}">'
                f"{escape(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            )
            return f"<tr>{''.join(aligned)}</tr>"

        *layers, total = self._rows
        return (
            f"<table><caption>{escape(self._caption)}</caption>"
            f"<thead>{line(_HEADINGS, 'th')}</thead>"
            f"<tbody>{''.join(line(row, 'td') for row in layers)}</tbody>"
            f"<tfoot>{line(total, 'th')}</tfoot></table>"
        )


def _size(n_bytes: float) -> str:
    """Return a number of bytes in the largest unit that is not larger than it."""
    unit = 0
    while n_bytes >= 1024 and unit < len(_UNITS) - 1:
        n_bytes, unit = n_bytes / 1024, unit + 1
    return f"{n_bytes:.4g} {_UNITS[unit]}"

"""The epoch as one Numba function: its source, generated from the core's recorded formulas.

For each kind of network (number of layers, activations, loss, optimizer, options) one module is
written; sizes are its arguments. Products are ``numpy.dot`` into buffers, everything element-wise
is one loop per layer, and the parameters are updated in one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnbackend.core.activations import Activation
from nnbackend.core.losses import SoftmaxCrossEntropy
from nnbackend.core.propagation import output_elements
from nnbackend.core.regularization import clip_by_global_norm, clip_by_value, penalty_elements
from nnbackend.engines.expression import RECORDER, Printer, Symbol, symbol

if TYPE_CHECKING:
    from nnbackend.engines import Problem

__all__ = ["buffer_names", "epoch_source", "is_label_target", "keeps_pre_activation"]


def keeps_pre_activation(activation: Activation) -> bool:
    """Whether g' is written in terms of Z, so that Z must outlive g(Z)."""
    derivative = activation.derivative(RECORDER, symbol("Z"), symbol("A"))
    return _mentions(derivative, "Z")


def _mentions(node: object, name: str) -> bool:
    if not isinstance(node, Symbol):
        return False
    if node.operation == "input":
        return bool(node.operands[0] == name)
    return any(_mentions(entry, name) for entry in node.operands)


def epoch_source(problem: Problem, dtype: str, *, weighted: bool, labels: bool) -> str:
    """Return the source of a module with the functions ``run`` and ``evaluate``.

    ``run(parameters, gradient, state, X, y, sample_weight, order, shuffled, sizes, batch_size,
    first, coefficients, buffers)`` takes one step per row of ``coefficients``, the first over the
    rows of batch number ``first``. ``evaluate(parameters, X, y, sample_weight, sizes, batch_size,
    buffers)`` goes through all rows with the loss alone. Both return a sum of losses times weights,
    and the sum of those weights.

    Parameters
    ----------
    problem : Problem
        What is to be trained, and how.
    dtype : {"float32", "float64"}
        Of all arrays.
    weighted : bool
        Whether there are sample weights.
    labels : bool
        Whether ``y`` is a vector of integer labels.

    Raises
    ------
    NotImplementedError
        If a formula cannot be recorded, such as that of a user's activation that branches on data.
    """
    constants: dict[str, float] = {}
    program = _Program(problem, constants, weighted=weighted, labels=labels)
    body = [*program.run(), "", "", *program.evaluate()]
    head = [
        "import math",
        "import numpy as np",
        "from numba import njit",
        f"F = np.{dtype}",
    ]
    for name, value in constants.items():
        literal = f'float("{value!r}")' if "inf" in repr(value) else repr(value)
        head.append(f"{name} = F({literal})")
    return "\n".join([*head, "", *body, ""])


class _Program:
    """Prints the two functions, line by line."""

    def __init__(
        self, problem: Problem, constants: dict[str, float], *, weighted: bool, labels: bool
    ) -> None:
        self.problem = problem
        self.structure = problem.objective.structure
        self.n_layers = len(self.structure.weight_shapes)
        self.constants = constants
        self.weighted = weighted
        self.labels = labels

    def printer(self) -> Printer:
        """Return a printer for one row; its reductions are not another's."""
        return Printer(self.constants)

    def evaluate(self) -> list[str]:
        """Print the loss of all rows, a batch at a time, without penalties and dropout."""
        return [
            '@njit(nogil=True, cache=True, error_model="numpy")',
            "def evaluate(parameters, X, y, sample_weight, sizes, batch_size, buffers):",
            *self.views(("W", "b")),
            "    loss = 0.0",
            "    weight_sum = 0.0",
            "    for start in range(0, X.shape[0], batch_size):",
            "        stop = min(start + batch_size, X.shape[0])",
            "        n = stop - start",
            "        A0 = X[start:stop]",
            *self.forward(dropout=False),
            *self.loss(gradient=False),
            "    return loss, weight_sum",
        ]

    def run(self) -> list[str]:
        """Print the training steps."""
        step = [
            *self.batch(),
            *self.forward(),
            *self.loss(),
            *self.backward(),
            *self.penalty(),
            *self.clipping(),
            *self.update(),
            "        loss_sum += loss * np.float64(batch_weight)",
            "        weight_sum += np.float64(batch_weight)",
        ]
        return [
            '@njit(nogil=True, cache=True, error_model="numpy")',
            "def run(parameters, gradient, state, X, y, sample_weight, order, shuffled, sizes,",
            "        batch_size, first, coefficients, buffers):",
            *self.views(("W", "b", "gW", "gb")),
            *(f"    S{i} = state[{i}]" for i in range(len(self.problem.optimizer.state_names))),
            "    loss_sum = 0.0",
            "    weight_sum = 0.0",
            "    for step in range(coefficients.shape[0]):",
            *step,
            "    return loss_sum, weight_sum",
        ]

    def views(self, letters: tuple[str, ...]) -> list[str]:
        """Print per-layer views of the flat vectors, and the buffers by name."""
        lines = ["    P = parameters.shape[0]", "    at = 0"]
        for layer in range(1, self.n_layers + 1):
            lines += [
                f"    n_in, n_out = sizes[{layer - 1}], sizes[{layer}]",
                "    end = at + n_in * n_out",
            ]
            for letter in letters:
                vector = "gradient" if letter.startswith("g") else "parameters"
                part = "[at:end].reshape(n_in, n_out)" if "W" in letter else "[end:end + n_out]"
                lines.append(f"    {letter}{layer} = {vector}{part}")
            lines.append("    at = end + n_out")
        lines += [
            f"    {name} = buffers[{i}]" for i, (name, _) in enumerate(buffer_names(self.problem))
        ]
        return lines

    def batch(self) -> list[str]:
        """Print which rows a step takes, and the weight of the batch."""
        lines = [
            "        start = (first + step) * batch_size",
            "        stop = min(start + batch_size, X.shape[0])",
            "        n = stop - start",
            "        if shuffled:",
            "            for i in range(n):",
            "                X0[i, :] = X[order[start + i], :]",
            "            A0 = X0[:n]",
            "        else:",
            "            A0 = X[start:stop]",
        ]
        if self.weighted:
            lines += [
                "        batch_weight = F(0.0)",
                "        for i in range(n):",
                "            r = order[start + i] if shuffled else start + i",
                "            batch_weight += sample_weight[r]",
                "        scale = F(1.0) / batch_weight if batch_weight > F(0.0) else F(1.0)",
            ]
        else:
            lines += ["        batch_weight = F(n)", "        scale = F(1.0) / F(n)"]
        return lines

    def forward(self, *, dropout: bool = True) -> list[str]:
        """Print forward propagation, up to the products of the output layer."""
        lines = []
        for layer in range(1, self.n_layers + 1):
            below = self.input_name(layer) if dropout else f"A{layer - 1}"
            lines.append(f"        np.dot({below}[:n], W{layer}, Z{layer}[:n])")
            if layer == self.n_layers:
                break
            activation = self.structure.hidden[layer - 1]
            Z = symbol(f"Z{layer}[i, k]") + symbol(f"b{layer}[k]")
            A = activation.function(RECORDER, Z)
            target = f"A{layer}[i, k]"
            outputs = [(target, A)]
            if keeps_pre_activation(activation):
                outputs.insert(0, (f"Z{layer}[i, k]", Z))
            if dropout and self.structure.dropout[layer - 1]:
                outputs.append((f"H{layer}[i, k]", A * symbol(f"M{layer}[i, k]")))
            lines.append("        for i in range(n):")
            lines += self.printer().row(outputs, f"A{layer}.shape[1]", " " * 12)
        return lines

    def input_name(self, layer: int) -> str:
        """Return what a layer takes in: the batch, or the units below, dropped or not."""
        if layer == 1:
            return "A0"
        return f"{'H' if self.structure.dropout[layer - 2] else 'A'}{layer - 1}"

    def loss(self, *, gradient: bool = True) -> list[str]:
        """Print the loss of a batch: with its gradient a mean, else a sum over weighted rows."""
        layer, objective = self.n_layers, self.problem.objective
        Z = symbol(f"Z{layer}[i, k]")
        y = symbol("label", varies=False, dtype="integral") if self.labels else symbol("y[r, k]")
        element, derivative = output_elements(RECORDER, self.structure.output, objective.loss, Z, y)
        share = symbol("share", varies=False)
        lines = [f"        n_row = F(sizes[{layer}])", f"        n_outputs = sizes[{layer}]"]
        if gradient:
            lines += [
                "        loss = 0.0",
                f"        gb{layer}[:] = F(0.0)",
                "        for i in range(n):",
                "            r = order[start + i] if shuffled else start + i",
                f"            share = {'scale * sample_weight[r]' if self.weighted else 'scale'}",
            ]
        else:
            lines += [
                "        for i in range(n):",
                "            r = start + i",
                f"            share = {'sample_weight[r]' if self.weighted else 'F(1.0)'}",
                "            weight_sum += share",
            ]
        if self.labels:
            lines.append("            label = y[r]")
        lines += [
            "            for k in range(n_outputs):",
            f"                Z{layer}[i, k] += b{layer}[k]",
        ]
        outputs = [("loss +=", element * share)]
        add = ""
        if gradient:
            outputs.append((f"Z{layer}[i, k]", derivative * share))
            add = f"gb{layer}[k] += Z{layer}[i, k]"
        lines += self.printer().row(outputs, "n_outputs", " " * 12, add)
        return lines

    def backward(self) -> list[str]:
        """Print backward propagation into the gradient."""
        lines = []
        for layer in range(self.n_layers, 0, -1):
            dZ = f"Z{layer}" if layer == self.n_layers else f"D{layer}"
            lines.append(f"        np.dot({self.input_name(layer)}[:n].T, {dZ}[:n], gW{layer})")
            if layer == 1:
                break
            below = layer - 1
            activation = self.structure.hidden[below - 1]
            dA = symbol(f"D{below}[i, k]")
            if self.structure.dropout[below - 1]:
                dA = dA * symbol(f"M{below}[i, k]")
            Z, A = symbol(f"Z{below}[i, k]"), symbol(f"A{below}[i, k]")
            outputs = [(f"D{below}[i, k]", dA * activation.derivative(RECORDER, Z, A))]
            lines += [
                f"        np.dot({dZ}[:n], W{layer}.T, D{below}[:n])",
                f"        gb{below}[:] = F(0.0)",
                "        for i in range(n):",
            ]
            add = f"gb{below}[k] += D{below}[i, k]"
            lines += self.printer().row(outputs, f"D{below}.shape[1]", " " * 12, add)
        return lines

    def penalty(self) -> list[str]:
        """Print the penalties, added to loss and gradient."""
        objective = self.problem.objective
        if not objective.is_penalized:
            return []
        lines = []
        for layer in range(1, self.n_layers + 1):
            value, gradient = penalty_elements(
                RECORDER, symbol(f"W{layer}[i, k]"), objective.l1, objective.l2
            )
            outputs = [("loss +=", value), (f"gW{layer}[i, k] +=", gradient)]
            lines.append(f"        for i in range(W{layer}.shape[0]):")
            lines += self.printer().row(outputs, f"W{layer}.shape[1]", " " * 12)
        return lines

    def clipping(self) -> list[str]:
        """Print the clipping of the gradient."""
        lines = []
        for clip, bound in (
            (clip_by_value, self.problem.clip_value),
            (clip_by_global_norm, self.problem.clip_norm),
        ):
            if bound is not None:
                clipped = clip(RECORDER, symbol("gradient[k]"), bound)
                lines += self.printer().row([("gradient[k]", clipped)], "P", " " * 8)
        return lines

    def update(self) -> list[str]:
        """Print the optimizer's step."""
        optimizer = self.problem.optimizer
        names = [f"S{i}[k]" for i in range(len(optimizer.state_names))]
        count = len(optimizer.coefficients(1.0, 1))
        coefficients: Any = tuple(symbol(f"c{i}", varies=False) for i in range(count))
        parameters, state = optimizer.update(
            RECORDER,
            symbol("parameters[k]"),
            symbol("gradient[k]"),
            tuple(map(symbol, names)),
            coefficients,
        )
        outputs = [("parameters[k]", parameters), *zip(names, state, strict=True)]
        return [
            *(f"        c{i} = coefficients[step, {i}]" for i in range(count)),
            *self.printer().row(outputs, "P", " " * 8),
        ]


def buffer_names(problem: Problem) -> list[tuple[str, int]]:
    """Return the buffers of a step in their order: a name, and the layer whose width it has.

    ``A`` stands for ``Z`` under another name where g(Z) may replace Z.
    """
    structure = problem.objective.structure
    n_layers = len(structure.weight_shapes)
    names = [("X0", 0)]
    for layer in range(1, n_layers):
        names += [(f"Z{layer}", layer), (f"A{layer}", layer), (f"D{layer}", layer)]
        if structure.dropout[layer - 1]:
            names += [(f"H{layer}", layer), (f"M{layer}", layer)]
    names.append((f"Z{n_layers}", n_layers))
    return names


def is_label_target(problem: Problem, n_dimensions: int) -> bool:
    """Whether the targets are integer labels rather than rows."""
    return isinstance(problem.objective.loss, SoftmaxCrossEntropy) and n_dimensions == 1

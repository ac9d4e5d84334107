"""Train many small networks at once: ``python benchmarks/many.py``.

K networks 30-64-32-1 (ReLU, sigmoid output, float32, batches of 32, Adam), each with initial
weights and orders of the rows of its own, learn the same 1024 rows: by ``nb.train_many``, by
``nb.train`` in a loop, and by the programs that JAX and torch have for this. All draw the same
orders, take the same steps, and read each network's mean loss once per epoch; the losses of the
last epoch must agree with those of ``nb.train_many`` in that epoch, or the exit code is 1.

Each contestant has a process of its own, with the threads that it takes by default unless its title
says otherwise. Contestants take turns, and each round begins with another one. A turn repeats the
training until ``--seconds`` are over. Ours are timed as a user calls them, with checks, conversion
of the data and histories; of the others only the loop over epochs is, not compilation, nor copies
of initial weights. Of the ways in which JAX or torch can write that loop, the one that is fastest
for a K is taken.

The medians, in microseconds per network and step, go to the standard output as a table in Markdown;
in brackets, the contestant's time divided by that of ``nb.train_many``. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import nnbackend as nb
from nnbackend.bench.environment import environment
from nnbackend.bench.process import contestant_environment
from nnbackend.bench.workload import WORKLOADS
from nnbackend.cli.terminal import to_json
from nnbackend.io.files import write_atomically

WORKLOAD = replace(WORKLOADS["small"], n_batches=32)
COUNTS = (1, 8, 64, 512)
ROUNDS, SECONDS = 5, 0.25
# Epochs of a training: fewer where there are so many networks that a turn would last too long.
MOST_EPOCHS, LEAST_EPOCHS, NETWORKS_BY_EPOCHS = 20, 4, 1280
# A contestant that would take longer for a training has fewer epochs.
LONGEST_SECONDS = 2.0
# Losses of the same steps differ by rounding, which the steps amplify.
TOLERANCE = 0.01
# One look at the ways of a peer may err by this factor.
DOUBT = 2.0
# Wait before a turn, since other processes' threads spin for some milliseconds after theirs.
PAUSE_SECONDS = 0.05


class Contestant(ABC):
    """One way to train K networks."""

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("numpy",)

    def load(self) -> None:
        """Import what is needed."""
        for package in self.packages:
            importlib.import_module(package)

    def prepare(self, k: int) -> str:
        """Build everything for K networks; return how they are going to be trained."""
        self.k = k
        self.X, self.y = WORKLOAD.data()
        sizes, hidden, output = WORKLOAD.layer_sizes, WORKLOAD.hidden, WORKLOAD.output
        self.initial = [
            nb.Network(sizes, hidden=hidden, output=output, seed=seed) for seed in range(k)
        ]
        return self.build()

    @abstractmethod
    def build(self) -> str:
        """Build what lasts for all trainings of these networks."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the initial weights."""

    @abstractmethod
    def train(self, epochs: int) -> Any:
        """Train all networks, and return their mean losses (epochs, K)."""

    def timed(self, epochs: int) -> tuple[float, Any]:
        """Train once; return seconds and losses."""
        self.reset()
        start = time.perf_counter()
        losses = self.train(epochs)
        return time.perf_counter() - start, losses


class TrainMany(Contestant):
    """``nb.train_many`` with its defaults."""

    title = "nb.train_many"
    engine: ClassVar[str] = "auto"

    def build(self) -> str:
        """Collect the options of a call."""
        self.options: dict[str, Any] = {
            "optimizer": WORKLOAD.optimizer,
            "batch_size": WORKLOAD.batch_size,
            "engine": self.engine,
        }
        return f"engine={self.engine!r}"

    def reset(self) -> None:
        """Make the networks anew."""
        self.nets = [net.copy() for net in self.initial]

    def train(self, epochs: int) -> Any:
        """Call it once."""
        seeds = list(range(self.k))
        found = nb.train_many(self.nets, self.X, self.y, seed=seeds, epochs=epochs, **self.options)
        return np.array([history.loss for history in found]).T


class OneByOne(TrainMany):
    """``nb.train`` in a loop."""

    title = "nb.train, one by one"

    def train(self, epochs: int) -> Any:
        """Call it for each network."""
        X, y = self.X, self.y
        found = [
            nb.train(net, X, y, seed=seed, epochs=epochs, **self.options)
            for seed, net in enumerate(self.nets)
        ]
        return np.array([history.loss for history in found]).T


class Reference(TrainMany):
    """``nb.train_many`` on leading stack axes of NumPy arrays."""

    title = 'nb.train_many, engine="reference"'
    engine = "reference"


class OnOneThread(Contestant):
    """A contestant of ours under a limit of one thread."""

    def timed(self, epochs: int) -> tuple[float, Any]:
        """Train once under the limit."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return super().timed(epochs)


class TrainManyOnOneThread(OnOneThread, TrainMany):
    """``nb.train_many`` on one thread."""

    title = "nb.train_many, one thread"


class OneByOneOnOneThread(OnOneThread, OneByOne):
    """``nb.train`` in a loop, on one thread."""

    title = "nb.train, one by one, one thread"


class Stack(Contestant):
    """A peer, which trains arrays with a leading axis of networks."""

    def build(self) -> str:
        """Stack weights and biases of each layer; find the fastest way."""
        weights = zip(*(net.weights for net in self.initial), strict=True)
        biases = zip(*(net.biases for net in self.initial), strict=True)
        self.stacked = [(np.stack(W), np.stack(b)) for W, b in zip(weights, biases, strict=True)]
        self.place()
        ways, found = self.ways(), {}
        for name, epoch in ways.items():
            self.epoch = epoch
            # The first one compiles.
            self.timed(1)
            found[name] = self.timed(1)[0]
        # A second look at those that may be the fastest.
        for name in [name for name in ways if found[name] < DOUBT * min(found.values())]:
            self.epoch = ways[name]
            found[name] = min(found[name], *(self.timed(1)[0] for _ in range(2)))
        fastest = min(found, key=lambda name: found[name])
        self.epoch = ways[fastest]
        return fastest

    @abstractmethod
    def place(self) -> None:
        """Copy the data to where the library wants it."""

    @abstractmethod
    def ways(self) -> dict[str, Callable[[Any], Any]]:
        """Return functions of an epoch's orders (K, n_samples) that return the losses (K,)."""

    def reset(self) -> None:
        """Restart the orders, which ``nb.train`` draws in the same way from the seeds."""
        self.generators = [
            np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
            for seed in range(self.k)
        ]

    def train(self, epochs: int) -> Any:
        """Loop over epochs."""
        losses = []
        for _ in range(epochs):
            orders = np.stack([rng.permutation(WORKLOAD.n_samples) for rng in self.generators])
            losses.append(self.epoch(orders))
        return np.array(losses)


class JAX(Stack):
    """One compiled ``lax.scan`` over the steps of an epoch, which reuses its state's memory."""

    title = "JAX vmap+scan"
    packages = ("jax",)

    def load(self) -> None:
        """Choose the CPU."""
        super().load()
        self.jax, self.jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
        self.jax.config.update("jax_platforms", "cpu")

    def place(self) -> None:
        """Copy the data."""
        self.arrays = self.jnp.asarray(self.X), self.jnp.asarray(self.y[:, None], np.float32)

    def reset(self) -> None:
        """Copy the initial parameters, since a donated array cannot be used again."""
        super().reset()
        jax, jnp = self.jax, self.jnp
        copied = jax.tree.map(lambda x: jnp.array(x, copy=True), self.stacked)
        zeros = [jax.tree.map(jnp.zeros_like, copied) for _ in range(2)]
        self.state = jax.block_until_ready((copied, *zeros, jnp.zeros((), jnp.float32)))

    def ways(self) -> dict[str, Callable[[Any], Any]]:
        """Return scans of vmapped steps, and a map over networks of scans."""
        jax, jnp, optimizer = self.jax, self.jnp, WORKLOAD.optimizer
        rate, beta1, beta2 = WORKLOAD.learning_rate, optimizer.beta1, optimizer.beta2

        def loss(parameters, X, y):
            *hidden, (W, b) = parameters
            for V, c in hidden:
                X = jax.nn.relu(X @ V + c)
            Z = X @ W + b
            return jnp.mean(jax.nn.softplus(Z) - Z * y)

        def adam(state, gradient):
            parameters, mean, square, t = state
            t = t + 1
            tree = jax.tree.map
            mean = tree(lambda m, g: beta1 * m + (1 - beta1) * g, mean, gradient)
            square = tree(lambda s, g: beta2 * s + (1 - beta2) * g * g, square, gradient)
            length, root = rate / (1 - beta1**t), jnp.sqrt(1 - beta2**t)
            moved = tree(
                lambda p, m, s: p - length * m / (jnp.sqrt(s) / root + optimizer.epsilon),
                parameters,
                mean,
                square,
            )
            return moved, mean, square, t

        alone = jax.value_and_grad(loss)

        def step(function, state, X, y):
            losses, gradient = function(state[0], X, y)
            return adam(state, gradient), losses

        def gather_by_step(state, X, y, orders):
            state, losses = jax.lax.scan(
                lambda state, rows: step(jax.vmap(alone), state, X[rows], y[rows]), state, orders
            )
            return state, losses.mean(0)

        def gather_by_epoch(state, X, y, orders):
            state, losses = jax.lax.scan(
                lambda state, batch: step(jax.vmap(alone), state, *batch),
                state,
                (X[orders], y[orders]),
            )
            return state, losses.mean(0)

        def map_of_scans(state, X, y, orders):
            *arrays, t = state

            def one(entry):
                own, own_orders = entry
                (*own, _), losses = jax.lax.scan(
                    lambda state, rows: step(alone, state, X[rows], y[rows]), (*own, t), own_orders
                )
                return own, losses.mean()

            arrays, losses = jax.lax.map(one, (arrays, jnp.swapaxes(orders, 0, 1)))
            return (*arrays, t + len(orders)), losses

        def epoch(compiled, orders):
            batches = orders.astype(np.int32).reshape(self.k, WORKLOAD.n_batches, -1)
            self.state, losses = compiled(
                self.state, *self.arrays, jnp.asarray(batches.swapaxes(0, 1))
            )
            return np.asarray(losses)

        programs = {
            "scan of vmap, rows gathered by step": gather_by_step,
            "scan of vmap, rows gathered by epoch": gather_by_epoch,
            "map of scan": map_of_scans,
        }
        return {
            name: functools.partial(epoch, jax.jit(program, donate_argnums=0))
            for name, program in programs.items()
        }


class Torch(Stack):
    """Modules stacked by ``torch.func``, one ``torch.optim.Adam`` over the stacked tensors."""

    title = "torch.func, stacked modules"
    packages = ("torch",)

    def load(self) -> None:
        """Import torch."""
        super().load()
        self.torch = importlib.import_module("torch")

    def place(self) -> None:
        """Copy the data, and stack modules."""
        torch, nn = self.torch, self.torch.nn
        self.arrays = torch.as_tensor(self.X), torch.as_tensor(self.y[:, None].astype(np.float32))

        def module(number: int) -> Any:
            layers: list[Any] = []
            for (n_in, n_out), (W, b) in zip(
                pairwise(WORKLOAD.layer_sizes), self.stacked, strict=True
            ):
                linear = nn.Linear(n_in, n_out)
                with torch.no_grad():
                    linear.weight.copy_(torch.as_tensor(W[number].T.copy()))
                    linear.bias.copy_(torch.as_tensor(b[number]))
                layers += [linear, nn.ReLU()]
            return nn.Sequential(*layers[:-1])

        modules = [module(number) for number in range(self.k)]
        self.base = copy.deepcopy(modules[0]).to("meta")
        stacked, _ = torch.func.stack_module_state(modules)
        self.first = {name: x.detach() for name, x in stacked.items()}

    def reset(self) -> None:
        """Copy the initial parameters; the optimizer is made by the first step."""
        super().reset()
        self.parameters = {name: x.clone().requires_grad_() for name, x in self.first.items()}
        self.optimizer = None

    def ways(self) -> dict[str, Callable[[Any], Any]]:
        """Return vmapped gradients and gradients of the vmapped losses, with either optimizer."""
        torch = self.torch

        def loss(parameters, X, y):
            Z = torch.func.functional_call(self.base, parameters, (X,))
            return torch.nn.functional.binary_cross_entropy_with_logits(Z, y)

        vmapped_gradient = torch.func.vmap(torch.func.grad_and_value(loss))
        vmapped_loss = torch.func.vmap(loss)

        def vmap_of_grad(X, y):
            detached = {name: x.detach() for name, x in self.parameters.items()}
            gradient, losses = vmapped_gradient(detached, X, y)
            for name, x in self.parameters.items():
                x.grad = gradient[name]
            return losses

        def grad_of_vmap(X, y):
            self.optimizer.zero_grad(set_to_none=True)
            losses = vmapped_loss(self.parameters, X, y)
            losses.sum().backward()
            return losses.detach()

        def epoch(gradient, how, orders):
            X, y = self.arrays
            if self.optimizer is None:
                adam = WORKLOAD.optimizer
                self.optimizer = torch.optim.Adam(
                    list(self.parameters.values()),
                    WORKLOAD.learning_rate,
                    (adam.beta1, adam.beta2),
                    adam.epsilon,
                    **{how: True},
                )
            total = torch.zeros(self.k)
            for rows in torch.as_tensor(orders).split(WORKLOAD.batch_size, dim=1):
                total += gradient(X[rows], y[rows])
                self.optimizer.step()
            return (total / WORKLOAD.n_batches).numpy()

        return {
            f"{name}, {how} Adam": functools.partial(epoch, gradient, how)
            for name, gradient in (("vmap of grad", vmap_of_grad), ("grad of vmap", grad_of_vmap))
            for how in ("fused", "foreach")
        }


CONTESTANTS: dict[str, type[Contestant]] = {
    "train_many": TrainMany,
    "one_by_one": OneByOne,
    "train_many-one_thread": TrainManyOnOneThread,
    "one_by_one-one_thread": OneByOneOnOneThread,
    "reference": Reference,
    "jax": JAX,
    "torch": Torch,
}
OWN = "train_many"


def serve(name: str) -> None:
    """Answer lines of JSON on the standard input, each with one: K to prepare, or a turn."""
    # Keep messages that a library prints apart from the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    contestant = CONTESTANTS[name]()

    def load() -> dict[str, Any]:
        try:
            contestant.load()
        except ModuleNotFoundError as error:
            return {"reason": f"not measured: needs {error.name}"}
        return {"versions": {package: version(package) for package in contestant.packages}}

    def turn(epochs: int, seconds: float, *, warm_up: bool) -> dict[str, Any]:
        if warm_up:
            # Bring code and data back into the caches.
            contestant.timed(1)
        spent: list[float] = []
        losses: Any = None
        while not spent or sum(spent) < seconds:
            once, losses = contestant.timed(epochs)
            spent.append(once)
        return {"seconds": statistics.fmean(spent), "losses": losses.tolist()}

    commands: dict[str, Callable[..., Any]] = {
        "load": load,
        "prepare": lambda k: {"way": contestant.prepare(k)},
        "turn": turn,
    }
    for line in sys.stdin:
        options = json.loads(line)
        answers.write(f"{json.dumps(commands[options.pop('command')](**options))}\n")
        answers.flush()


class Process:
    """The process of a contestant."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=contestant_environment(),
        )

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        """Send a command, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps({'command': command, **options})}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"many.py: the process of {self._process.args[-1]!r} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Entry:
    """A contestant's figures for K networks: seconds of a training by turn, losses (epochs, K)."""

    way: str
    epochs: int
    seconds: list[float] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)

    def figures(self, k: int, own: Entry | None) -> dict[str, Any]:
        """Return what was measured, and what it comes down to; beside ours, if there are any."""
        scale = 1e6 / (k * self.epochs * WORKLOAD.n_batches)
        found: dict[str, Any] = {
            "epochs": self.epochs,
            "microseconds": scale * statistics.median(self.seconds),
            "range": [scale * min(self.seconds), scale * max(self.seconds)],
            "way": self.way,
            "seconds": self.seconds,
            "mean_losses": [statistics.fmean(losses) for losses in self.losses],
        }
        if own is not None:
            pairs = list(zip(self.losses, own.losses, strict=False))
            mine, ours = map(np.asarray, pairs[-1])
            own_microseconds = own.figures(k, None)["microseconds"]
            found["ratio"] = found["microseconds"] / own_microseconds
            found["largest_difference"] = float(abs(mine - ours).max())
            found["agrees"] = bool(np.allclose(mine, ours, rtol=TOLERANCE))
        return found


def epochs_of(k: int) -> int:
    """Return the epochs of a training of K networks."""
    return max(LEAST_EPOCHS, min(MOST_EPOCHS, NETWORKS_BY_EPOCHS // k))


def measure(
    processes: dict[str, Process], k: int, epochs: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Let contestants take turns; return their figures by name."""
    entries = {}
    for name, process in processes.items():
        way = process.ask("prepare", k=k)["way"]
        once = process.ask("turn", epochs=1, seconds=0.0, warm_up=True)["seconds"]
        entries[name] = Entry(way, max(1, min(epochs, int(LONGEST_SECONDS / once))))
    names = list(processes)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(PAUSE_SECONDS)
            entry = entries[name]
            # A long training has no need to be warmed up.
            warm_up = entry.epochs == epochs
            answer = processes[name].ask(
                "turn", epochs=entry.epochs, seconds=seconds, warm_up=warm_up
            )
            entry.seconds.append(answer["seconds"])
            entry.losses = answer["losses"]
    own = entries.get(OWN)
    return {name: entry.figures(k, own) for name, entry in entries.items()}


def table(record: dict[str, Any]) -> str:
    """Return the medians as a Markdown table, aligned."""
    results = record["results"]
    rows = [["microseconds per network and step", *(f"K = {k}" for k in results)]]
    for name in record["contestants"]:
        found = [result["contestants"][name] for result in results.values()]
        cells = []
        for each in found:
            ratio = f" ({each['ratio']:.2f})" if name != OWN and "ratio" in each else ""
            doubt = "" if each.get("agrees", True) else " **other losses**"
            cells.append(f"{each['microseconds']:.2f}{ratio}{doubt}")
        rows.append([CONTESTANTS[name].title, *cells])
    first, *rest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {title.ljust(first)} | "
        + " | ".join(cell.rjust(width) for cell, width in zip(cells, rest, strict=True))
        + " |"
        for title, *cells in rows
    ]
    rule = f"|{'-' * (first + 2)}|{''.join('-' * (width + 1) + ':|' for width in rest)}"
    return "\n".join([lines[0], rule, *lines[1:]])


def notes(record: dict[str, Any]) -> str:
    """Return what the table needs to be understood, and repeated."""
    settings, results = record["settings"], record["results"]
    epochs = ", ".join(f"{result['epochs']} (K = {k})" for k, result in results.items())
    text = (
        f"In brackets: time divided by that of {CONTESTANTS[OWN].title}. {record['date']}, medians "
        f"of {settings['rounds']} rounds; epochs of a training: {epochs}, fewer for contestants "
        f"that would take more than {LONGEST_SECONDS:g} s.\n"
    )
    lines = [text]
    for name in record["contestants"]:
        if issubclass(CONTESTANTS[name], Stack):
            ways = "; ".join(
                f"{result['contestants'][name]['way']} (K = {k})" for k, result in results.items()
            )
            versions = ", ".join(" ".join(pair) for pair in record["contestants"][name].items())
            lines.append(f"- {CONTESTANTS[name].title} ({versions}): {ways}")
    lines += [f"- {CONTESTANTS[name].title}: {why}" for name, why in record["missing"].items()]
    for name, value in record["environment"].items():
        entries = [", ".join(e.values()) for e in value] if isinstance(value, list) else [value]
        lines.append(f"- {name}: {'; '.join(map(str, entries))}")
    return "\n".join(lines)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "counts", nargs="*", type=int, metavar="K", help=f"networks: {', '.join(map(str, COUNTS))}"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="what a turn lasts, at least: %(default)s"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="of a training; fewer for many K")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME", default=list(CONTESTANTS),
        help=f"of {', '.join(CONTESTANTS)}",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all as JSON")
    parser.add_argument("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, values in (
        ("K", options.counts),
        ("--rounds", [options.rounds]),
        ("--epochs", [1 if options.epochs is None else options.epochs]),
    ):
        if wrong := [value for value in values if value < 1]:
            parser.error(f"{name}: expected at least 1, got {wrong[0]}")
    if (path := options.output) is not None and (path.is_dir() or not path.parent.is_dir()):
        parser.error(f"--output: expected a file in a folder that exists, got {path}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return 0 if all have the same losses."""
    options = options_of(arguments)
    if options.serve is not None:
        serve(options.serve)
        return 0
    record: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "workload": WORKLOAD.to_dict(),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "environment": environment(),
        "contestants": {},
        "missing": {},
        "results": {},
    }
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in dict.fromkeys(options.contestants):
            process = Process(name)
            stack.callback(process.close)
            answer = process.ask("load")
            if "reason" in answer:
                record["missing"][name] = answer["reason"]
            else:
                record["contestants"][name] = answer["versions"]
                processes[name] = process
        for k in dict.fromkeys(options.counts or COUNTS):
            epochs = options.epochs or epochs_of(k)
            found = measure(processes, k, epochs, options.rounds, options.seconds)
            record["results"][str(k)] = {"epochs": epochs, "contestants": found}
            # A run that is ended early has shown this much.
            medians = ", ".join(
                f"{name} {each['microseconds']:.2f}" for name, each in found.items()
            )
            print(f"K = {k}: {medians}", file=sys.stderr, flush=True)
    print(table(record), "", notes(record), sep="\n")
    if options.output is not None:
        write_atomically(options.output, to_json(record, indent=1).encode())
    found = [
        each for result in record["results"].values() for each in result["contestants"].values()
    ]
    return 0 if all(each.get("agrees", True) for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())

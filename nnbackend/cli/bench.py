"""``nnbackend bench``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nnbackend.checks import lookup
from nnbackend.cli.parser import add_json
from nnbackend.cli.terminal import show, to_json
from nnbackend.core.activations import ACTIVATIONS
from nnbackend.errors import InputError

if TYPE_CHECKING:
    from nnbackend.bench.report import Result as BenchmarkResult
    from nnbackend.bench.workload import Workload

__all__ = ["add"]


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bench",
        help="measure training throughput on every device, against every installed peer",
        description="Time training steps, each contestant in a process of its own, in turns. "
        "Workloads: planar, small, images, mnist, higgs, wide; digits, trained to an accuracy; and "
        "startup, what a first training costs in a fresh process. With none named, all of them.",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD")
    own = parser.add_argument_group("a workload of your own")
    own.add_argument("--layers", metavar="64-256-1", help="units of each layer, input to output")
    own.add_argument("--batch", type=int, metavar="N", help="examples per step (default 128)")
    own.add_argument("--hidden", metavar="NAME", help=", ".join(ACTIVATIONS))
    own.add_argument("--output", metavar="NAME", help="sigmoid or softmax")
    own.add_argument("--optimizer", metavar="NAME", help="adam (default), sgd or momentum")
    drawn = parser.add_argument_group("workloads that nothing was tuned for")
    drawn.add_argument("--random", type=int, metavar="N", help="draw N workloads")
    drawn.add_argument("--seed", type=int, metavar="S", help="of the draw (default 0)")
    parser.add_argument(
        "--contestants",
        metavar="A,B",
        help="nnbackend, nnbackend-ENGINE, textbook, sklearn, torch, torch-graph, torch-compiled, "
        "jax, jax-scan",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:N (default: all)")
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="of products on GPUs: float32 (default), tf32, bfloat16",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each (default 7)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="least duration of a turn (default 0.5)"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.2 s")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/bench-DATE-TIME")
    add_json(parser)
    parser.set_defaults(run=_bench, names={})


def _bench(options: argparse.Namespace) -> None:
    from nnbackend.bench.picture import draw
    from nnbackend.bench.race import run_benchmark
    from nnbackend.bench.text import markdown, print_result, print_summary
    from nnbackend.cli.run_folder import RunFolder
    from nnbackend.figures import drawn

    workloads, startup = _chosen(options)
    quick = {"rounds": 3, "seconds": 0.2} if options.quick else {}
    given = {name: getattr(options, name) for name in ("precision", "rounds", "seconds")}
    names = None if options.contestants is None else options.contestants.split(",")
    folder = RunFolder.made(options.out, "bench")
    try:
        with _status(shown=not options.json) as say:

            def show_result(result: BenchmarkResult) -> None:
                if not options.json:
                    say("")
                    print_result(result)

            report = run_benchmark(
                workloads,
                contestants=names,
                device_names=None if options.device is None else [options.device],
                # Start each library once, since the start is not what they are drawn for.
                keep_processes=options.random is not None,
                startup=startup,
                on_progress=say,
                on_result=show_result,
                **{**quick, **{name: value for name, value in given.items() if value is not None}},
            )
        files = {"benchmark.json": to_json(report.to_dict(), indent=1).encode()}
        files["benchmark.md"] = markdown(report).encode()
        for name, content in files.items():
            folder.write(name, content)
        if any(result.timed for result in report.results):
            pictures = drawn("benchmark.png", lambda: draw(report)) or {}
            for name, content in pictures.items():
                files[f"benchmark.{name}"] = content
                folder.write(f"benchmark.{name}", content)
    finally:
        # This keeps what was written.
        folder.abandon()
    if options.json:
        facts = {"run": str(folder.path), "files": list(files), **report.to_dict()}
        sys.stdout.write(to_json(facts))
    else:
        print_summary(report)
        show(f"run folder  {folder.path}: {', '.join(files)}")


def _chosen(options: argparse.Namespace) -> tuple[list[Workload], bool]:
    """Return the workloads, and whether to measure the start-up."""
    from nnbackend.bench.startup import STARTUP
    from nnbackend.bench.workload import DIGITS, WORKLOADS, random_workloads

    known = {**WORKLOADS, DIGITS.name: DIGITS}
    names = dict.fromkeys(options.workloads)
    for name in names:
        lookup("WORKLOAD", name, {**known, STARTUP: None})
    chosen = [known[name] for name in names if name != STARTUP]
    if options.random is not None:
        chosen += random_workloads(options.random, 0 if options.seed is None else options.seed)
    elif options.seed is not None:
        raise InputError("expected --random along with it, got none", argument="--seed")
    chosen += _own_workload(options)
    if not (names or chosen):
        return list(known.values()), True
    return chosen, STARTUP in names


def _own_workload(options: argparse.Namespace) -> list[Workload]:
    from nnbackend.bench.workload import custom_workload

    own = {name: getattr(options, name) for name in ("hidden", "output", "optimizer")}
    own = {name: value for name, value in own.items() if value is not None}
    if options.layers is None:
        for name in ("batch", *own):
            if getattr(options, name) is not None:
                raise InputError("expected --layers along with it, got none", argument=f"--{name}")
        return []
    parts = options.layers.split("-")
    if not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise InputError(
            f"expected units by layer such as 64-256-1, got {options.layers!r}", argument="--layers"
        )
    batch_size = 128 if options.batch is None else options.batch
    return [custom_workload([int(part) for part in parts], batch_size, **own)]


@contextlib.contextmanager
def _status(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line on a terminal, in place of the line before."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _: None
        return

    def say(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    try:
        yield say
    finally:
        say("")

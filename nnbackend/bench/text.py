"""Write a benchmark as text: sentences, a table for the terminal, and a Markdown table."""

from __future__ import annotations

from nnbackend.bench.contestants import CONTESTANTS, LIMIT
from nnbackend.bench.report import Entry, Report, Result, verdicts
from nnbackend.errors import MissingDependencyError

__all__ = ["duration", "markdown", "print_result"]


def markdown(report: Report) -> str:
    """Return the medians as a Markdown table with a row per contestant, a column per workload.

    The numbers in brackets are multiples of this package's fastest time on the same device.
    """
    results = report.results
    lines = [
        f"| | {' | '.join(result.workload.name for result in results)} |",
        f"|---|{'---:|' * len(results)}",
    ]
    rows = dict.fromkeys(
        (entry.contestant, entry.device) for result in results for entry in result.entries
    )
    several = len({device for _, device in rows}) > 1
    for contestant, device in sorted(rows, key=lambda row: list(CONTESTANTS).index(row[0])):
        title = CONTESTANTS[contestant].title + (f" ({device})" if several else "")
        cells = [_markdown_cell(result, contestant, device) for result in results]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _markdown_cell(result: Result, contestant: str, device: str) -> str:
    on_device = [e for e in result.entries if e.device == device and e.status == "ok"]
    entry = next((e for e in on_device if e.contestant == contestant), None)
    if entry is None:
        return ""
    cell = duration(entry.median)
    own = [e.median for e in on_device if e.is_own]
    if own and entry.median != min(own):
        cell += f" ({entry.median / min(own):.2f})"
    timed = [e for e in result.timed if e.device == device]
    return f"**{cell}**" if timed and entry is timed[0] else cell


def print_result(result: Result) -> None:
    """Print a result as a table, with its verdicts below."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingDependencyError(
            "the table needs rich; install it with: pip install rich"
        ) from error
    workload, is_steps = result.workload, result.workload.accuracy is None
    has_devices = len({entry.device for entry in result.entries}) > 1
    columns = _STEP_COLUMNS if is_steps else _ACCURACY_COLUMNS
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("contestant", no_wrap=True)
    if has_devices:
        table.add_column("device", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    fastest = result.timed[0] if result.timed else None
    for entry in result.entries:
        cells = _cells(result, entry) if entry.status == "ok" else [entry.status]
        place = [entry.device] if has_devices else []
        style = "bold" if entry.is_own else "dim" if entry.contestant == LIMIT else ""
        name = Text(entry.title, style="green" if entry is fastest else "")
        table.add_row(name, *place, *cells, style=style)
    # A pipe has no width; terminals get the table in full.
    console = Console(highlight=False)
    width = console.measure(table).maximum
    if console.width < width or not console.is_terminal:
        console = Console(highlight=False, width=max(width, console.width))
    heading = Text(workload.name, style="bold")
    precision = "" if result.precision == "float32" else f", {result.precision}"
    heading.append(f"  {workload}{precision}", style="not bold")
    if workload.represents:
        heading.append(f"  ({workload.represents})", style="not bold dim")
    console.print(heading, soft_wrap=True)
    console.print(table)
    for sentence in [*_failures(result), *verdicts(result), *_doubts(result)]:
        console.print(sentence, soft_wrap=True, markup=False)
    console.print()


_STEP_COLUMNS = (
    "time per\nstep",
    "\nspread",
    "steps\nper s",
    "samples\nper s",
    "GFLOP\nper s",
    "of the\nlimit",
    "start-\nup",
    "first\nstep",
)

_ACCURACY_COLUMNS = (
    "time to\naccuracy",
    "\nspread",
    "\nepochs",
    "held-out\naccuracy",
    "start-\nup",
    "first\ntime",
)


def _cells(result: Result, entry: Entry) -> list[str]:
    figures = result.figures(entry)
    low, high = entry.quartiles
    cells = [duration(entry.median), f"\u00b1{50 * (high - low) / entry.median:.0f}%"]
    if result.workload.accuracy is None:
        fraction = figures.get("fraction_of_limit")
        cells += [
            _rate(figures["steps_per_second"]),
            _rate(figures["samples_per_second"]),
            _three_digits(figures["gflops"]),
            "" if fraction is None else f"{100 * fraction:.{0 if fraction >= 0.01 else 1}f}%",
        ]
    else:
        cells += [str(entry.epochs), f"{entry.accuracy:.3f}"]
    if entry.contestant == LIMIT or entry.startup_seconds is None or entry.first_seconds is None:
        return cells
    return [*cells, duration(entry.startup_seconds), duration(entry.first_seconds)]


def _failures(result: Result) -> list[str]:
    return [
        f"{entry.title} on {entry.device}: {entry.status}: {entry.reason}"
        for entry in result.entries
        if entry.status != "ok"
    ]


def _doubts(result: Result) -> list[str]:
    """Return a warning if rounds differ so much that something else must have run."""
    wide = [e for e in result.timed if e.quartiles[1] - e.quartiles[0] > 0.4 * e.median]
    if not wide:
        return []
    names = ", ".join(entry.title for entry in wide)
    return [f"Doubtful, since the rounds differ by more than a fifth either way: {names}."]


def duration(seconds: float) -> str:
    """Return seconds with three digits and a unit.

    Examples
    --------
    >>> duration(0.000012345), duration(0.2), duration(61.0)
    ('12.3 \u00b5s', '200 ms', '61.0 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(1e6 * seconds)} \u00b5s"


def _rate(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"

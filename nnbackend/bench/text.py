"""Write a benchmark as text: sentences, a table for the terminal, and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from nnbackend.bench.contestants import CONTESTANTS, LIMIT, OWN
from nnbackend.bench.report import Entry, Report, Result, verdicts
from nnbackend.errors import MissingDependencyError

__all__ = ["duration", "markdown", "markdown_table", "print_result", "print_summary"]


def markdown(report: Report) -> str:
    """Return the report as Markdown: how it was measured, the tables, the summaries."""
    parts = [f"{conditions(report)}\n"]
    if report.startups:
        header, *rows = _startup_rows(report)
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    if report.results:
        parts.append(markdown_table(report.results))
    parts += [f"{sentence}\n" for sentence in _summaries(report)]
    return "\n".join(parts)


def conditions(report: Report) -> str:
    """Return a sentence that says how the report was measured, and with how many threads."""
    settings, cores = report.settings, report.environment["cores"]
    processors = "; ".join(device["processor"] for device in report.environment["devices"])
    return (
        f"{report.date[:10]}, {processors}, {settings['precision']}, medians of "
        f"{settings['rounds']} rounds of {settings['seconds_per_round']:g} s. Every contestant may "
        f"use the same {cores} {'core' if cores == 1 else 'cores'}, and runs as it comes: limits "
        "of threads in the environment are left out."
    )


def markdown_table(results: Sequence[Result]) -> str:
    """Return the medians as a Markdown table with a row per contestant, a column per workload.

    The numbers in brackets are multiples of this package's time on the same device: its default's.
    """
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
    for device in dict.fromkeys(device for _, device in rows):
        on = f" ({device})" if several else ""
        for name, ratios in (("best peer", _best_peer), (CONTESTANTS[LIMIT].title, _limit)):
            cells = [ratios(result, device) for result in results]
            lines.append(f"| {name} / nnbackend{on} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _best_peer(result: Result, device: str) -> str:
    found = (each for each in result.comparisons() if each.device == device)
    return "".join(_ratio(each.best_peer_ratio) for each in found)


def _limit(result: Result, device: str) -> str:
    found = (each for each in result.comparisons() if each.device == device)
    return "".join(_ratio(each.limit_ratio) for each in found)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _startup_rows(report: Report) -> list[list[str]]:
    """Return a table of what fresh processes cost, with its header."""
    rows = [["in a fresh process", "import", "first", "second", "first - second"]]
    for startup in report.startups:
        if startup.reason:
            rows.append([startup.title, startup.reason, "", "", ""])
            continue
        parts = startup.import_seconds, startup.first_seconds, startup.second_seconds
        medians = [duration(statistics.median(seconds)) for seconds in parts]
        rows.append([startup.title, *medians, f"{1e3 * startup.extra_seconds:.1f} ms"])
    return rows


def _summaries(report: Report) -> list[str]:
    """Return the worst and the median ratio over the workloads, for each device."""
    return [
        f"The best peer's time divided by nnbackend's on {each.device}, over {each.n_workloads} "
        f"workloads: median {_ratio(each.median)}, worst {_ratio(each.worst.best_peer_ratio)} "
        f"({each.worst.workload}: {CONTESTANTS[each.worst.best_peer or ''].title})."
        for each in report.summaries()
    ]


def print_summary(report: Report) -> None:
    """Print what holds for the whole report: start-up, conditions, summaries."""
    if report.startups:
        rows = _startup_rows(report)
        width = max(len(row[0]) for row in rows)
        for title, *cells in rows:
            print(title.ljust(width), *(cell.rjust(14) for cell in cells))
        print()
    for sentence in [*_summaries(report), conditions(report)]:
        print(sentence)


def _markdown_cell(result: Result, contestant: str, device: str) -> str:
    on_device = [e for e in result.entries if e.device == device and e.status == "ok"]
    entry = next((e for e in on_device if e.contestant == contestant), None)
    if entry is None:
        return ""
    cell = duration(entry.median)
    own = result.own().get(device)
    if own is not None and entry is not own:
        cell += f" ({entry.median / own.median:.2f})"
    timed = [e for e in result.timed if e.device == device]
    return f"**{cell}**" if timed and entry is timed[0] else cell


def print_result(result: Result) -> None:
    """Print a result as a table, the default first, with its verdicts below."""
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
    # A stable sort: the others stay in the order of their times.
    for entry in sorted(result.entries, key=lambda entry: entry.contestant != OWN[0]):
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
    if str(workload) != workload.name:
        heading.append(f"  {workload}", style="not bold")
    heading.append(precision, style="not bold")
    if workload.represents:
        heading.append(f"  ({workload.represents})", style="not bold dim")
    console.print(heading, soft_wrap=True)
    console.print(table)
    sentences = [*_failures(result), *_comparisons(result), *verdicts(result), *_doubts(result)]
    for sentence in sentences:
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


def _comparisons(result: Result) -> list[str]:
    """Return the times of the best peer and of the products alone, divided by this package's."""
    found, sentences = result.comparisons(), []
    for each in found:
        parts = []
        if each.best_peer is not None:
            title = CONTESTANTS[each.best_peer].title
            parts.append(f"{title}, the best peer, {_ratio(each.best_peer_ratio)}")
        if each.limit_ratio is not None:
            parts.append(f"products alone {_ratio(each.limit_ratio)}")
        on = f" on {each.device}" if len(found) > 1 else ""
        if parts:
            mine = CONTESTANTS[each.contestant].title
            sentences.append(f"Time divided by that of {mine}{on}: {'; '.join(parts)}.")
    return sentences


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

"""What a benchmark found: figures, the sentences they come down to, and the table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nnbackend.errors import MissingDependencyError
from nnbackend.peers import CONTESTANTS, LIMIT, OWN

if TYPE_CHECKING:
    from nnbackend.benchmark import Workload

__all__ = ["Entry", "Report", "Result", "markdown", "print_result", "verdicts"]


@dataclass
class Entry:
    """One contestant's figures on one workload.

    Attributes
    ----------
    contestant, device : str
        A key of ``CONTESTANTS``; the device's name.
    status : str
        ``"ok"``, ``"missing"`` (not installed), ``"unsupported"``, ``"failed"`` or ``"timeout"``.
    reason : str
        Why it is not ``"ok"``.
    seconds : list of float
        One per round: per step, or until the accuracy was reached.
    startup_seconds : float or None
        From the start of the process until the library is imported and the device awake.
    first_seconds : float or None
        Building the network and taking the first step, or reaching the accuracy for the first time:
        with everything that is compiled at first use.
    epochs, accuracy : int or None, float or None
        What it took to reach the accuracy, and what was reached.
    versions, threads
        What did the work.
    """

    contestant: str
    device: str
    status: str = "ok"
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    startup_seconds: float | None = None
    first_seconds: float | None = None
    epochs: int | None = None
    accuracy: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    threads: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The contestant's name for readers."""
        return CONTESTANTS[self.contestant].title

    @property
    def is_own(self) -> bool:
        """Whether it is this package."""
        return self.contestant in OWN

    @property
    def median(self) -> float:
        """The median of ``seconds``."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of ``seconds``."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass
class Result:
    """All contestants' figures on one workload.

    Attributes
    ----------
    workload : Workload
        What was trained.
    entries : list of Entry
        The fastest first; then those without figures.
    precision : str
        How all of them computed products.
    """

    workload: Workload
    entries: list[Entry]
    precision: str = "float32"

    @property
    def timed(self) -> list[Entry]:
        """The entries with figures, the limit aside, the fastest first."""
        return [e for e in self.entries if e.status == "ok" and e.contestant != LIMIT]

    def limit(self, device: str) -> float | None:
        """Return the seconds of a step's products alone on a device."""
        for entry in self.entries:
            if entry.contestant == LIMIT and entry.device == device and entry.status == "ok":
                return entry.median
        return None

    def figures(self, entry: Entry) -> dict[str, float]:
        """Return an entry's figures: seconds, rates, and the fraction of the limit."""
        if entry.status != "ok":
            return {}
        low, high = entry.quartiles
        figures = {"median_seconds": entry.median, "q1_seconds": low, "q3_seconds": high}
        if self.workload.accuracy is not None:
            return figures
        limit, median = self.limit(entry.device), entry.median
        figures |= {
            "steps_per_second": 1.0 / median,
            "samples_per_second": self.workload.batch_size / median,
            "gflops": self.workload.flops_per_step / median / 1e9,
        }
        if limit is not None:
            figures["fraction_of_limit"] = limit / median
        return figures

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        is_steps = self.workload.accuracy is None
        return {
            "workload": self.workload.to_dict(),
            "precision": self.precision,
            "measures": f"seconds {'per step' if is_steps else 'to accuracy'}",
            "flops_per_step": self.workload.flops_per_step,
            "verdicts": verdicts(self),
            "entries": [{**asdict(entry), **self.figures(entry)} for entry in self.entries],
        }


@dataclass
class Report:
    """What a benchmark gave.

    Attributes
    ----------
    results : list of Result
        One per workload.
    settings : dict
        Precision, rounds, seconds per round, and whether processes were kept.
    environment : dict
        Versions and hardware.
    date : str
        When it began, in ISO form.
    """

    results: list[Result]
    settings: dict[str, Any]
    environment: dict[str, Any]
    date: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "format": 1,
            "date": self.date,
            "settings": self.settings,
            "environment": self.environment,
            "results": [result.to_dict() for result in self.results],
        }


def verdicts(result: Result) -> list[str]:
    """Return in sentences who is faster than this package, and who is not; on every device.

    Two medians are told apart where the middle halves of the rounds do not overlap.
    """
    sentences = []
    places = dict.fromkeys(entry.device for entry in result.entries)
    own: dict[str, Entry] = {}
    for name in reversed(OWN):
        own |= {entry.device: entry for entry in result.timed if entry.contestant == name}
    for device in places:
        mine = own.get(device)
        if mine is None:
            continue
        others = [e for e in result.timed if e is not mine and e.device == device]
        on = f" on {device}" if len(places) > 1 else ""
        sentences += _against(mine, others, on)
    if len(own) > 1:
        first, *rest = sorted(own.values(), key=lambda entry: entry.median)
        sentences += [
            f"nnbackend is {entry.median / first.median:.1f} times as fast on {first.device} as on "
            f"{entry.device}."
            for entry in rest
        ]
    return sentences


def _against(mine: Entry, others: list[Entry], on: str) -> list[str]:
    def ratio(entry: Entry) -> str:
        return f"{entry.title} ({mine.median / entry.median:.2g}x)"

    if not others:
        return []
    faster = [e for e in others if e.quartiles[1] < mine.quartiles[0]]
    slower = [e for e in others if e.quartiles[0] > mine.quartiles[1]]
    level = [e.title for e in others if e not in faster and e not in slower]
    sentences = []
    if faster:
        sentences.append(f"Faster than nnbackend{on}: {', '.join(map(ratio, faster))}.")
    if level:
        sentences.append(
            f"Not told apart from nnbackend{on}, since the rounds overlap: {', '.join(level)}."
        )
    if slower and not faster and not level:
        times = slower[0].median / mine.median
        sentences.append(
            f"nnbackend is the fastest{on}: {times:.1f} times as fast as the next, "
            f"{slower[0].title}."
        )
    return sentences


def markdown(report: Report) -> str:
    """Return the medians as a Markdown table: a row for each contestant, a column per workload.

    In brackets, how many times as long as the fastest of this package on the same device.
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
    """Print a result as a table, with what it comes down to below."""
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
    # A pipe has no width; whatever has, gets the table whole.
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
    """Return a warning where the rounds differ so much that something else must have run."""
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

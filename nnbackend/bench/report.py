"""The data of a benchmark: an entry per contestant, a result per workload, and the report."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nnbackend.bench.contestants import CONTESTANTS, LIMIT, OWN

if TYPE_CHECKING:
    from nnbackend.bench.workload import Workload

__all__ = ["Entry", "Report", "Result", "verdicts"]


@dataclass
class Entry:
    """The measurements of one contestant on one workload.

    Attributes
    ----------
    contestant, device : str
        A key of ``CONTESTANTS``, and the device's name.
    status : str
        ``"ok"``, ``"missing"`` (not installed), ``"unsupported"``, ``"failed"`` or ``"timeout"``.
    reason : str
        Why the status is not ``"ok"``.
    seconds : list of float
        For each round, the seconds per step, or until the accuracy was reached.
    startup_seconds : float or None
        From the start of the process until the library is imported and the device awake.
    first_seconds : float or None
        The seconds to build the network and take the first step, or to reach the accuracy for the
        first time, including all compilation at first use.
    epochs, accuracy : int or None, float or None
        The epochs until the accuracy was reached, and the accuracy at that time.
    versions, threads
        The packages that did the work, and their thread pools.
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
        """Whether the contestant is this package."""
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
    """The entries of all contestants on one workload.

    Attributes
    ----------
    workload : Workload
        The workload that was trained.
    entries : list of Entry
        The entries, with the fastest first and those without measurements last.
    precision : str
        The precision in which all of them computed products.
    """

    workload: Workload
    entries: list[Entry]
    precision: str = "float32"

    @property
    def timed(self) -> list[Entry]:
        """The entries with measurements except the limit, with the fastest first."""
        return [e for e in self.entries if e.status == "ok" and e.contestant != LIMIT]

    def limit(self, device: str) -> float | None:
        """Return the seconds of a step's matrix products on a device."""
        for entry in self.entries:
            if entry.contestant == LIMIT and entry.device == device and entry.status == "ok":
                return entry.median
        return None

    def figures(self, entry: Entry) -> dict[str, float]:
        """Return the seconds and rates of an entry, and its fraction of the limit."""
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
        """Return everything as a dictionary of JSON values."""
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
    """The results of a benchmark.

    Attributes
    ----------
    results : list of Result
        One per workload.
    settings : dict
        Precision, rounds, seconds per round, and whether processes were kept.
    environment : dict
        Versions and hardware.
    date : str
        The time of the beginning, in ISO form.
    """

    results: list[Result]
    settings: dict[str, Any]
    environment: dict[str, Any]
    date: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary of JSON values."""
        return {
            "format": 1,
            "date": self.date,
            "settings": self.settings,
            "environment": self.environment,
            "results": [result.to_dict() for result in self.results],
        }


def verdicts(result: Result) -> list[str]:
    """Return sentences that say which contestants are faster than this package, by device.

    Two medians count as different if the middle halves of their rounds do not overlap.
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

"""The data of a benchmark: an entry per contestant, a result per workload, and the report."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nnbackend.bench.contestants import CONTESTANTS, LIMIT, OWN

if TYPE_CHECKING:
    from nnbackend.bench.startup import Startup
    from nnbackend.bench.workload import Workload

__all__ = ["Comparison", "Entry", "Report", "Result", "Summary", "verdicts"]


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


@dataclass(frozen=True)
class Comparison:
    """The ratios of other times to this package's, on one workload and device.

    Attributes
    ----------
    workload, device : str
        The names of the workload and the device.
    contestant : str
        The contestant of this package: the default, unless it did not take part.
    best_peer : str or None
        The fastest other contestant; None if there is none.
    best_peer_ratio : float or None
        Its median, divided by this package's: above 1, this package is faster.
    limit_ratio : float or None
        The median of the products alone, divided by this package's.
    """

    workload: str
    device: str
    contestant: str
    best_peer: str | None
    best_peer_ratio: float | None
    limit_ratio: float | None


@dataclass(frozen=True)
class Summary:
    """The best peers' times on one device, divided by this package's, over all workloads.

    Attributes
    ----------
    device : str
        The device's name.
    n_workloads : int
        The number of workloads with a peer.
    median : float
        The median ratio.
    worst : Comparison
        The comparison with the least ratio.
    """

    device: str
    n_workloads: int
    median: float
    worst: Comparison


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

    def own(self) -> dict[str, Entry]:
        """Return this package's entry on each device: the default, unless it has no time."""
        found: dict[str, Entry] = {}
        for name in reversed(OWN):
            found |= {entry.device: entry for entry in self.timed if entry.contestant == name}
        return found

    def comparisons(self) -> list[Comparison]:
        """Compare this package with the others on each device."""
        found = []
        for device, mine in self.own().items():
            peers = [e for e in self.timed if e.device == device and not e.is_own]
            best = min(peers, key=lambda entry: entry.median, default=None)
            limit = self.limit(device)
            found.append(
                Comparison(
                    self.workload.name,
                    device,
                    mine.contestant,
                    None if best is None else best.contestant,
                    None if best is None else best.median / mine.median,
                    None if limit is None else limit / mine.median,
                )
            )
        return found

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
            "comparisons": [asdict(comparison) for comparison in self.comparisons()],
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
    startups : list of Startup
        What fresh processes cost, if that was measured.
    """

    results: list[Result]
    settings: dict[str, Any]
    environment: dict[str, Any]
    date: str
    startups: list[Startup] = field(default_factory=list)

    def summaries(self) -> list[Summary]:
        """Return the worst and the median ratio over the workloads, for each device."""
        found: dict[str, list[tuple[float, Comparison]]] = {}
        for result in self.results:
            for comparison in result.comparisons():
                if (ratio := comparison.best_peer_ratio) is not None:
                    found.setdefault(comparison.device, []).append((ratio, comparison))
        return [
            Summary(
                device,
                len(pairs),
                statistics.median(ratio for ratio, _ in pairs),
                min(pairs, key=lambda pair: pair[0])[1],
            )
            for device, pairs in found.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary of JSON values."""
        return {
            "format": 1,
            "date": self.date,
            "settings": self.settings,
            "environment": self.environment,
            "startups": [startup.to_dict() for startup in self.startups],
            "results": [result.to_dict() for result in self.results],
            "summaries": [asdict(summary) for summary in self.summaries()],
        }


def verdicts(result: Result) -> list[str]:
    """Return sentences that say which contestants are faster than this package, by device.

    Two medians count as different if the middle halves of their rounds do not overlap.
    """
    sentences = []
    places = dict.fromkeys(entry.device for entry in result.entries)
    own = result.own()
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

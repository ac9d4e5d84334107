"""Draw a benchmark: one panel per workload, with the fastest contestant on top."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from nnbackend.bench.contestants import LIMIT
from nnbackend.bench.report import Entry, Report, Result
from nnbackend.bench.text import duration
from nnbackend.figures import NEUTRAL, new_figure, render

__all__ = ["draw"]

# From Okabe and Ito's palette, which people with any colour vision can tell apart, also in grey.
OWN_COLOUR, PEER_COLOUR, LIMIT_COLOUR = "#0072b2", "#b8b8b8", "#d55e00"


def draw(report: Report, formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Return a picture of every contestant's time on every workload, in each format.

    Parameters
    ----------
    report : Report
        A report with the time of at least one contestant.
    formats : sequence of {"png", "svg"}
        The formats to render.

    Returns
    -------
    dict of str to bytes
    """
    panels = [result for result in report.results if result.timed]
    startups = _startups(report)
    n_panels = len(panels) + bool(startups)
    n_columns = min(2, n_panels)
    n_rows = -(-n_panels // n_columns)
    tallest = max([len(startups), *(len(result.entries) for result in panels)])
    figure = new_figure(6.4 * n_columns, n_rows * (1.25 + 0.27 * tallest) + 0.6)
    axes = [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n_panels)]
    for ax, result in zip(axes, panels, strict=False):
        _draw_result(ax, result)
    if startups:
        _draw_startups(axes[-1], startups)
    devices = "; ".join(device["processor"] for device in report.environment["devices"])
    figure.suptitle(
        "Shorter is faster. Blue: nnbackend; grey: the others; orange line and 1.0x: the matrix "
        "products alone (in a race to an accuracy: the fastest)\n"
        f"{devices}, {report.environment['cores']} cores, {report.settings['precision']}, "
        f"{report.date[:10]}",
        fontsize=9,
        color=NEUTRAL,
    )
    return {name: render(figure, name) for name in formats}


def _draw_result(ax: Any, result: Result) -> None:
    timed, has_devices = result.timed, len({e.device for e in result.entries}) > 1
    absent = [e for e in result.entries if e.status != "ok" and e.contestant != LIMIT]
    limits = {e.device: e.median for e in result.entries if e.contestant == LIMIT and e.seconds}
    low = min(entry.quartiles[0] for entry in timed)
    low, high = min([low, *limits.values()]), max(entry.quartiles[1] for entry in timed)
    start = low / (high / low) ** 0.05 / 1.1
    for row, entry in enumerate(timed):
        colour = OWN_COLOUR if entry.is_own else PEER_COLOUR
        # On the logarithmic axis, a bar shows the factor between the limit and the contestant.
        base = limits.get(entry.device, timed[0].median)
        ax.barh(row, entry.median - base, left=base, height=0.5, color=colour)
        ax.plot(entry.quartiles, (row, row), color="black", linewidth=1.2, solid_capstyle="butt")
        ax.plot(entry.median, row, "o", color=colour, markersize=8, markeredgecolor="white")
        factor = entry.median / base
        ax.text(
            max(base, entry.median, entry.quartiles[1]) * (high / start) ** 0.02 * 1.02,
            row,
            f"{duration(entry.median)}  {factor:.{1 if factor < 9.95 else 0}f}x",
            va="center",
            fontsize=8,
            fontweight="bold" if entry.is_own else "normal",
        )
    for row, entry in enumerate(absent, start=len(timed)):
        ax.text(start, row, f" {entry.status}", va="center", fontsize=8, color=NEUTRAL)
    for limit in limits.values():
        ax.axvline(limit, color=LIMIT_COLOUR, linewidth=1.6, linestyle=(0, (4, 2)))
    ax.set_xscale("log")
    # Leave room for the text to the right of the longest bar.
    ax.set_xlim(start, high * (high / start) ** 0.3 * 1.3)
    workload = result.workload
    what = "time per step" if workload.accuracy is None else f"time to {workload.accuracy:.0%}"
    is_named = workload.name != str(workload)
    _entitle(ax, f"{workload.name}: {what}" if is_named else what, str(workload))
    _finish(ax, [*timed, *absent], has_devices)
    ax.xaxis.set_major_formatter(lambda value, _: _tick(value))
    # An axis of less than two decades needs labels between the powers of ten.
    is_wide = high / start > 30
    ax.xaxis.set_minor_formatter(
        lambda value, _: "" if is_wide or f"{value:e}"[0] not in "25" else _tick(value)
    )


def _startups(report: Report) -> list[tuple[Entry, float, float]]:
    """Return each contestant's start-up and first step as medians over the workloads."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for result in report.results:
        if result.workload.accuracy is None and not report.settings["keep_processes"]:
            for entry in result.timed:
                found.setdefault((entry.contestant, entry.device), []).append(entry)
    rows = [
        (
            entries[0],
            statistics.median(e.startup_seconds or 0.0 for e in entries),
            statistics.median(e.first_seconds or 0.0 for e in entries),
        )
        for entries in found.values()
    ]
    return sorted(rows, key=lambda row: row[1] + row[2])


def _draw_startups(ax: Any, rows: list[tuple[Entry, float, float]]) -> None:
    longest = max(startup + first for _, startup, first in rows)
    has_devices = len({entry.device for entry, _, _ in rows}) > 1
    for position, (entry, startup, first) in enumerate(rows):
        colour = OWN_COLOUR if entry.is_own else PEER_COLOUR
        ax.barh(position, startup, height=0.66, color=colour)
        ax.barh(
            position,
            first,
            left=startup,
            height=0.66,
            facecolor="white",
            edgecolor=colour,
            hatch="////",
            linewidth=0.8,
        )
        ax.text(
            startup + first + 0.01 * longest,
            position,
            f"{duration(startup)} + {duration(first)}",
            va="center",
            fontsize=8,
            fontweight="bold" if entry.is_own else "normal",
        )
    ax.set_xlim(0, 1.45 * longest)
    _entitle(
        ax,
        "before the second step",
        "start-up (filled) and first step with what it compiles (hatched), medians, in seconds",
    )
    _finish(ax, [entry for entry, _, _ in rows], has_devices)


def _entitle(ax: Any, title: str, subtitle: str) -> None:
    ax.set_title(f"{title}\n", fontsize=11, fontweight="bold", loc="left", pad=2)
    ax.text(0, 1.02, subtitle, transform=ax.transAxes, fontsize=8, color=NEUTRAL)


def _finish(ax: Any, entries: Sequence[Entry], has_devices: bool) -> None:
    names = [f"{e.title} [{e.device}]" if has_devices else e.title for e in entries]
    ax.set_yticks(range(len(names)), names, fontsize=9)
    for label, entry in zip(ax.get_yticklabels(), entries, strict=True):
        label.set_fontweight("bold" if entry.is_own else "normal")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", which="both", labelsize=8, labelcolor=NEUTRAL)
    ax.grid(visible=True, axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _tick(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("\u00b5s", 1e-6), ("ns", 1e-9)):
        if value >= 0.999 * size:
            return f"{value / size:g} {unit}"
    return ""

"""What the findings of ``ci/gpu`` come down to: ratios, crossings, and the record of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LIMIT = "limit"
# These have to be complete for a run to have passed.
REQUIRED = ("tests", "agreement")


def problems(sections: dict[str, dict[str, Any]]) -> list[str]:
    """Return in sentences why a run has not passed; none if it has."""
    found = []
    for name, section in sections.items():
        is_required = name in REQUIRED and section["status"] != "passed"
        if is_required or section["status"] in ("failed", "crashed"):
            found.append(f"{name}: {section['status']}: {section['reason']}")
    return found


def crossing(rungs: Sequence[dict[str, Any]]) -> float | None:
    """Return the size from which on the GPU's step is the shorter one.

    Between two sizes the logarithm of the ratio is a straight line over the logarithm of the size.

    Parameters
    ----------
    rungs : sequence of dict
        By growing ``size``; ``cpu`` and ``gpu`` hold the seconds of a ``step``.

    Returns
    -------
    float or None
        The first size if the GPU wins at all sizes, None if not at the last.
    """
    points = [
        (math.log(rung["size"]), math.log(rung["cpu"]["step"] / rung["gpu"]["step"]))
        for rung in rungs
    ]
    if not points or points[-1][1] <= 0:
        return None
    wins = [gain > 0 for _, gain in points]
    if all(wins):
        return float(rungs[0]["size"])
    first = len(wins) - wins[::-1].index(False)
    (x0, y0), (x1, y1) = points[first - 1 : first + 1]
    return math.exp(x0 + (x1 - x0) * -y0 / (y1 - y0))


def ratios(passes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return this package's steps against others on the same device in the same precision.

    Parameters
    ----------
    passes : iterable of dict
        Each has ``device``, ``precision``, and ``results``: dictionaries of ``Result``.

    Returns
    -------
    list of dict
        For each own contestant the microseconds of a step, and that time divided by those of the
        best peer, of torch, and of the products alone; None where there is none.
    """
    groups: dict[tuple[str, str, str], dict[str, float]] = {}
    for each in passes:
        for result in each["results"]:
            key = (result["workload"]["name"], each["device"], each["precision"])
            medians = groups.setdefault(key, {})
            for entry in result["entries"]:
                if entry["status"] == "ok":
                    medians.setdefault(entry["contestant"], entry["median_seconds"])
    rows = []
    for (workload, device, precision), medians in groups.items():
        own = {name: median for name, median in medians.items() if name.startswith("nnbackend")}
        peers = {name: median for name, median in medians.items() if name not in (*own, LIMIT)}
        best = min(peers, key=lambda name: peers[name], default=None)
        rows += [
            {
                "workload": workload,
                "device": device,
                "precision": precision,
                "contestant": name,
                "microseconds": 1e6 * median,
                "best_peer": best,
                "to_best_peer": None if best is None else median / peers[best],
                "to_torch": median / peers["torch"] if "torch" in peers else None,
                "to_limit": median / medians[LIMIT] if LIMIT in medians else None,
            }
            for name, median in own.items()
        ]
    return rows


def write(record: dict[str, Any], folder: Path, stem: str) -> str:
    """Write the record as JSON and as Markdown, and return the Markdown."""
    (folder / f"{stem}.json").write_text(f"{json.dumps(record, indent=1)}\n")
    text = markdown(record)
    (folder / f"{stem}.md").write_text(text)
    return text


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a page for readers."""
    state = {True: ", with changes", False: "", None: ", changes unknown"}[record["dirty"]]
    taken = f"{record['seconds']:.0f} s of {record['budget']:.0f} s"
    lines = [
        f"# {record['gpu']}, {record['date'][:10]}",
        "",
        f"`ci/gpu` at commit {record['commit']}{state}; {taken}.",
        "",
        "| section | result | seconds | of |",
        "|---|---|---:|---:|",
    ]
    sections = record["sections"]
    for name, section in sections.items():
        reason = f": {section['reason']}" if section["reason"] else ""
        result = _cell(f"{section['status']}{reason}")
        lines.append(f"| {name} | {result} | {section['seconds']:.0f} | {section['limit']:.0f} |")
    left_out = [
        f"- {name}: {what}" for name, section in sections.items() for what in section["left_out"]
    ]
    if left_out:
        lines += ["", "Left out, since time was short:", "", *left_out]
    passes = [each for section in sections.values() for each in section.get("passes", ())]
    bodies = {name: _BODIES[name](section) for name, section in sections.items()}
    for name, body in {**bodies, "ratios": _ratios(passes)}.items():
        if body:
            lines += ["", f"## {name}", "", *body]
    return "\n".join([*lines, ""])


def _hardware(section: dict[str, Any]) -> list[str]:
    lines = []
    for name, fact in section.items():
        if name in ("versions", "nvidia-smi") and isinstance(fact, dict):
            lines.append(f"- {name}: {', '.join(f'{key} {value}' for key, value in fact.items())}")
        elif isinstance(fact, str | int) and name not in ("status", "reason"):
            lines.append(f"- {name}: {fact}")
    return lines


def _tests(section: dict[str, Any]) -> list[str]:
    if "collected" not in section:
        return []
    failed, skipped = len(section["failures"]), section["skipped"]
    counts = f"{section['passed']} passed, {failed} failed, {skipped} skipped"
    lines = [f"{counts}, of {section['collected']}."]
    if "running" in section:
        lines += ["", f"The process ended in `{section['running']}`."]
    lines += [
        "",
        *(f"- failed: `{each['test']}`: {each['message']}" for each in section["failures"]),
        *(f"- skipped: {count}: {reason}" for reason, count in section["reasons"].items()),
    ]
    return lines


def _agreement(section: dict[str, Any]) -> list[str]:
    if not section.get("comparisons"):
        return []
    bounds = section["bounds"]
    lines = [
        "The largest relative difference from NumPy in 100 steps from the same seed:",
        f"of parameters in float64 (bound {bounds['parameters']:g}),",
        f"of losses in float32 (bound {bounds['losses']:g}).",
        "",
        "| network | optimizer | engine | parameters | losses | |",
        "|---|---|---|---:|---:|---|",
    ]
    for row in section["comparisons"]:
        figures = [f"{row[name]:.1e}" if name in row else "" for name in ("parameters", "losses")]
        verdict = "passed" if row["passed"] else _cell(f"failed {row.get('reason', '')}".strip())
        case = (row["network"], row["optimizer"], row["engine"])
        lines.append(f"| {' | '.join((*case, *figures, verdict))} |")
    return lines


def _crossover(section: dict[str, Any]) -> list[str]:
    lines = []
    for ladder in section.get("ladders", ()):
        rungs = ladder["rungs"]
        if not rungs:
            continue
        cpu, gpu = ladder["engines"]
        where = ladder.get("crossing")
        verdict = f"at none up to {rungs[-1]['size']}"
        if where is not None:
            is_first = where == rungs[0]["size"]
            verdict = f"at every size from {where:.0f}" if is_first else f"from about {where:.0f}"
        engines = f"engine {cpu} on the CPU, {gpu} on the GPU"
        lines += [
            f"By {ladder['ladder']}, {engines}: the GPU is faster {verdict}.",
            "",
            "| size | CPU, µs per step | GPU, µs per step | CPU / GPU | GPU, ms per training |",
            "|---:|---:|---:|---:|---:|",
            *(
                f"| {rung['size']} | {1e6 * rung['cpu']['step']:.1f} "
                f"| {1e6 * rung['gpu']['step']:.1f} "
                f"| {rung['cpu']['step'] / rung['gpu']['step']:.2f} "
                f"| {1e3 * rung['gpu']['fixed']:.1f} |"
                for rung in rungs
            ),
            "",
        ]
    return lines[:-1]


def _sanitizer(section: dict[str, Any]) -> list[str]:
    return [
        f"- {tool}: {result['status']}: {result['summary']}"
        for tool, result in section.get("tools", {}).items()
    ]


def _benchmark(section: dict[str, Any]) -> list[str]:
    lines = []
    for each in section.get("passes", ()):
        if each["results"]:
            title = f"Time per step in {each['precision']} on {each['device']}; in brackets, how "
            lines += [f"{title}many times as long as this package's default.", "", each["table"]]
    return lines


def _ratios(passes: Iterable[dict[str, Any]]) -> list[str]:
    rows = ratios(passes)
    if not rows:
        return []
    lines = [
        "This package's time per step, and its ratio to others' on the same device in the same",
        "precision.",
        "",
        "| workload | device | precision | contestant | µs | best peer | torch | limit |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        peer = "" if row["best_peer"] is None else f"{row['to_best_peer']:.3g} ({row['best_peer']})"
        others = [
            "" if row[name] is None else f"{row[name]:.3g}" for name in ("to_torch", "to_limit")
        ]
        names = (row["workload"], row["device"], row["precision"], row["contestant"])
        microseconds = f"{row['microseconds']:.1f}"
        lines.append(f"| {' | '.join((*names, microseconds, peer, *others))} |")
    return lines


_BODIES = {
    "hardware": _hardware,
    "tests": _tests,
    "agreement": _agreement,
    "crossover": _crossover,
    "sanitizer": _sanitizer,
    "benchmark": _benchmark,
    "benchmark-tf32": _benchmark,
    "benchmark-cpu": _benchmark,
    "benchmark-compiled": _benchmark,
}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

"""The picture of how training scales: measured on top, predicted below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scaling_model import CASES, EFFICIENCY, MACHINES, Line
from scaling_report import KINDS, WHOSE, points, processors

from nnbackend.figures import NEUTRAL, new_figure, render

# Of Okabe and Ito's palette, told apart by any eye.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def draw(record: dict[str, Any], formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Return the picture in each format: what was measured on top, what is predicted below."""
    found, assumed = record["analysis"], record["assumptions"]
    figure = new_figure(12.8, 3.6 * (1 + len(MACHINES)) + 0.6)
    axes = figure.subplots(1 + len(MACHINES), len(KINDS), squeeze=False)
    draw_reducing(axes[0][0], record)
    draw_comparison(axes[0][1], found["comparison"])
    for panels, (name, most) in zip(axes[1:], MACHINES.items(), strict=True):
        for ax, kind in zip(panels, KINDS, strict=True):
            draw_prediction(
                ax,
                [p for p in found["predictions"] if (p["machine"], p["scaling"]) == (name, kind)],
            )
            entitle(ax, f"predicted: {assumed[most]:g} {name}, {kind} scaling")
    figure.suptitle(
        "Data-parallel training. Top row: measured; below: predicted by a cost model from "
        "assumptions, nothing has run there\n"
        f"{processors(record)}, {record['environment']['cores']} cores, {record['date'][:10]}",
        fontsize=9,
        color=NEUTRAL,
    )
    return {name: render(figure, name) for name in formats}


def draw_reducing(ax: Any, record: dict[str, Any]) -> None:
    """Draw the all-reduce's seconds over its bytes, with the lines that were fitted."""
    cores = record["environment"]["cores"]
    for (p, kinds), marker in zip(record["measured"]["all_reduce"].items(), "os", strict=True):
        for kind, colour in zip(WHOSE, COLOURS, strict=False):
            x, seconds = zip(*points(kinds[kind]), strict=True)
            turns = ", taking turns" if int(p) > cores else ""
            label = f"{p} processes{turns}, {WHOSE[kind]}"
            face = colour if int(p) <= cores else "white"
            ax.plot(x, seconds, marker, color=colour, markerfacecolor=face, label=label)
            if p == "2":
                line = Line.fit(points(kinds[kind]))
                dense = np.geomspace(x[0], x[-1], 100)
                ax.plot(dense, [line(n) for n in dense], color=colour, linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    entitle(ax, "measured: seconds of an all-reduce over its bytes; lines: fitted")
    finish(ax)


def draw_comparison(ax: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the speed-ups of two cores over one, with what the model has for two processes."""
    names = [f"{row['network']}\n{row['batch']:,}" for row in rows]
    for shift, (label, kind, figure) in zip(
        (-0.3, -0.1, 0.1, 0.3),
        (
            ("2 processes, strong", "strong", "speedup"),
            ("2 threads, strong", "strong", "threads_speedup"),
            ("2 processes, weak", "weak", "speedup"),
            ("2 threads, weak", "weak", "threads_speedup"),
        ),
        strict=True,
    ):
        x = [i + shift for i in range(len(rows))]
        colour = COLOURS[KINDS.index(kind)]
        is_ours = figure == "speedup"
        heights = [row[kind][figure] for row in rows]
        look = {"color": colour} if is_ours else {"facecolor": "white", "edgecolor": colour}
        ax.bar(x, heights, 0.18, label=label, **look)
        if is_ours:
            model = [
                h * (1 / (1 + row[kind]["error"])) for h, row in zip(heights, rows, strict=True)
            ]
            ax.plot(
                x, model, "_", color="black", markersize=12, label=None if shift > 0 else "model"
            )
    ax.axhline(2, color=NEUTRAL, linewidth=1, linestyle=(0, (4, 2)))
    ax.set_xticks(range(len(names)), names)
    # Room for the legend above the bars.
    ax.set_ylim(0, 3)
    entitle(ax, "measured: speed-up of two cores over one; dashed: perfect")
    finish(ax)


def draw_prediction(ax: Any, predictions: list[dict[str, Any]]) -> None:
    """Draw each network's efficiency over the processes."""
    for (name, batch), colour in zip(CASES, COLOURS, strict=True):
        chosen = [p for p in predictions if (p["network"], p["batch"]) == (name, batch)]
        ax.plot(
            [p["processes"] for p in chosen],
            [p["efficiency"] for p in chosen],
            "o-",
            color=colour,
            markersize=4,
            label=f"{name}, {batch:,}",
        )
    ax.axhline(EFFICIENCY, color=NEUTRAL, linewidth=1, linestyle=(0, (4, 2)))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("efficiency", fontsize=8, color=NEUTRAL)
    finish(ax)


def entitle(ax: Any, title: str) -> None:
    """Set a panel's title."""
    ax.set_title(title, fontsize=10, fontweight="bold", loc="left")


def finish(ax: Any) -> None:
    """Give a panel the looks of all."""
    ax.tick_params(axis="both", which="both", labelsize=8, labelcolor=NEUTRAL)
    ax.grid(visible=True, alpha=0.25)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=7)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)

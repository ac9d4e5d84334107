"""The scaling plan: its formulas against algorithms carried out and numbers by hand, its report."""

import doctest
import importlib
import json
import math
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from backends import require

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("scaling_model", "scaling_report", "scaling_picture", "scaling")


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def model(modules):
    return modules["scaling_model"]


class Messages:
    """Processes that exchange in rounds, and what the busiest sends, and adds, in elements."""

    def __init__(self, p, n):
        self.vectors = np.random.default_rng(p).integers(0, 9, (p, n)).astype(float)
        self.rounds = self.sent = self.added = 0

    def exchange(self, moves, *, is_sum):
        """Carry out moves (from, to, slice) at once."""
        contents = [self.vectors[source, part].copy() for source, _, part in moves]
        for (_, target, part), content in zip(moves, contents, strict=True):
            if is_sum:
                self.vectors[target, part] += content
            else:
                self.vectors[target, part] = content
        longest = max(map(len, contents))
        self.rounds += 1
        self.sent += longest
        self.added += longest if is_sum else 0


def carry_out(name, p, n):
    """Run an all-reduce as the textbook has it; p is a power of two, and n a multiple of p."""
    messages = Messages(p, n)
    expected = messages.vectors.sum(0)
    size = n // p
    if name == "recursive doubling":
        for k in range(p.bit_length() - 1):
            messages.exchange([(i, i ^ 2**k, slice(None)) for i in range(p)], is_sum=True)
    elif name == "ring":
        for is_sum, shift in ((True, 0), (False, 1)):
            for k in range(p - 1):
                moves = []
                for i in range(p):
                    start = (i + shift - k) % p * size
                    moves.append((i, (i + 1) % p, slice(start, start + size)))
                messages.exchange(moves, is_sum=is_sum)
    else:
        halves = [p >> k for k in range(1, p.bit_length())]
        for width, is_sum in [(w, True) for w in halves] + [(w, False) for w in halves[::-1]]:
            moves = []
            for i in range(p):
                # Summing, the partner's blocks are sent; gathering, those that are complete here.
                owner = i ^ width if is_sum else i
                start = owner // width * width * size
                moves.append((i, i ^ width, slice(start, start + width * size)))
            messages.exchange(moves, is_sum=is_sum)
    assert np.array_equal(messages.vectors, np.tile(expected, (p, 1)))
    return messages


@pytest.mark.parametrize("p", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["recursive doubling", "Rabenseifner", "ring"])
def test_a_cost_is_that_of_the_algorithm_carried_out(model, name, p):
    n = 48 * p
    done = carry_out(name, p, n)
    fabric = model.Fabric((name,), alpha=3e-6, beta=5e-9, gamma=7e-10)
    expected = done.rounds * 3e-6 + 4 * (done.sent * 5e-9 + done.added * 7e-10)
    assert model.ALGORITHMS[name](p, 4 * n, fabric) == pytest.approx(expected, rel=1e-12)
    assert model.reduce_seconds(p, 4 * n, fabric) == pytest.approx(expected, rel=1e-12)


def test_the_cheapest_algorithm_is_taken_and_numbers_by_hand_come_out(model):
    fabric = model.Fabric(model.MPI_ALGORITHMS, 1e-6, 1e-9, 1e-10, start=1e-3, packing=2e-9)
    # 3 (1 us + 1.1 ms), and 6 us + 7/8 of 2.1 ms.
    assert model.recursive_doubling(8, 1e6, fabric) == pytest.approx(3.303e-3)
    assert model.rabenseifner(8, 1e6, fabric) == pytest.approx(1.8435e-3)
    assert model.ring(8, 1e6, fabric) == pytest.approx(1.8515e-3)
    assert model.reduce_seconds(8, 1e6, fabric) == pytest.approx(1e-3 + 2e-3 + 1.8435e-3)
    assert model.reduce_seconds(8, 4, fabric) == pytest.approx(1e-3 + 3e-6, rel=1e-4)
    assert model.reduce_seconds(1, 1e6, fabric) == 0
    # Six processes take as many steps as eight.
    assert model.recursive_doubling(6, 1e6, fabric) == pytest.approx(3.303e-3)


def test_beta_of_a_ring_is_what_nccl_calls_bus_bandwidth(model):
    fabric = model.Fabric(("ring",), 0.0, 1 / 370e9)
    algorithm_bandwidth = 1e8 / model.reduce_seconds(8, 1e8, fabric)
    assert algorithm_bandwidth * 2 * 7 / 8 == pytest.approx(370e9)


def test_rows_below_which_the_efficiency_is_too_low_by_hand(model):
    # A millisecond and 10 us a row; a millisecond to add.
    training = model.Model(model.Line(1e-3, 1e-5), 0.0, model.Fabric(("ring",), 0, 0, start=1e-3))
    assert training.least_rows(4, 0.8, is_weak=True) == pytest.approx(300)
    assert training.figures(4, 300, is_weak=True)["efficiency"] == pytest.approx(4 / 5)
    assert training.least_rows(4, 0.8, is_weak=False) == pytest.approx(675)
    strong = training.figures(4, 2700, is_weak=False)
    assert strong["step_seconds"] == pytest.approx(8.75e-3)
    assert strong["speedup"] == pytest.approx(28 / 8.75)
    assert strong["efficiency"] == pytest.approx(0.8)
    assert strong["reduce_share"] == pytest.approx(1 / 8.75)
    # The largest part counts: 3 of 9 rows among 4.
    assert training.step(4, 9) == pytest.approx(1e-3 + 3e-5 + 1e-3)


def test_one_process_is_the_measure_and_more_are_never_better_than_perfect(model):
    assumed = {name: entry.value for name, entry in model.ASSUMPTIONS.items()}
    nodes = {"wide": model.Line(1e-2, 2e-4)}
    fabric = model.Fabric(model.MPI_ALGORITHMS, 1e-6, 1e-9, start=1e-5, packing=1e-9)
    found = model.machines(assumed, nodes, fabric)
    assert list(found) == list(model.MACHINES)
    for make in found.values():
        for name, batch in model.CASES:
            training = make(model.NETWORKS[name])
            for is_weak in (False, True):
                alone = training.figures(1, batch, is_weak=is_weak)
                assert alone["step_seconds"] == training.compute(batch)
                assert (alone["speedup"], alone["efficiency"], alone["reduce_share"]) == (1, 1, 0)
                assert training.least_rows(1, 0.8, is_weak=is_weak) == 0
                counts = [2**k for k in range(7)]
                figures = [training.figures(p, batch, is_weak=is_weak) for p in counts]
                efficiencies = [f["efficiency"] for f in figures]
                assert efficiencies == sorted(efficiencies, reverse=True)
                larger = training.figures(8, 2 * batch, is_weak=is_weak)
                assert larger["efficiency"] > figures[3]["efficiency"]
    hdr, ndr = (
        found[f"nodes, InfiniBand {kind}"](model.NETWORKS["wide"]) for kind in ("HDR", "NDR")
    )
    assert ndr.step(64, 8192) < hdr.step(64, 8192)


def test_a_gpu_and_a_node_by_hand(model):
    assumed = {name: entry.value for name, entry in model.ASSUMPTIONS.items()}
    mnist, large = model.NETWORKS["mnist"], model.NETWORKS["large"]
    for workload in (mnist, model.NETWORKS["higgs"]):
        assert model.n_bytes(workload) == 4 * workload.network().n_parameters
    nodes = {"mnist": model.Line(0.0, 1e-5), "wide": model.Line(1e-2, 2e-4)}
    found = model.machines(assumed, nodes, model.Fabric((), 0, 0, start=1e-5, packing=2e-9))
    gpu, node, _ = (make(mnist) for make in found.values())
    # 10 launches, 669,706 parameters; products of 784 x 512 twice, and of the others three times.
    assert gpu.compute.fixed == pytest.approx(30e-6 + 669_706 * 28 / 3.35e12)
    assert gpu.compute.slope == pytest.approx(2 * 1_604_608 / 33.45e12)
    assert gpu.fabric[1:3] == pytest.approx((1.9e-6, 1 / 370e9))
    assert node.compute == pytest.approx((0, 1e-5 / 32))
    assert node.fabric[1:] == pytest.approx((1.2e-6, 1 / 24e9, 1.5e-10, 1e-5, 2e-9))
    # Not measured: scaled from wide, 1024-2048-2048-10.
    line = model.node_line(large, nodes)
    wide = [(1024, 2048), (2048, 2048), (2048, 10)]
    layers = [(4096, 8192), (8192, 8192), (8192, 1000)]
    parameters = [sum((a + 1) * b for a, b in sizes) for sizes in (layers, wide)]
    products = [3 * sum(a * b for a, b in s) - s[0][0] * s[0][1] for s in (layers, wide)]
    assert line.fixed == pytest.approx(1e-2 * parameters[0] / parameters[1])
    assert line.slope == pytest.approx(2e-4 * products[0] / products[1])


def test_a_fitted_line_has_the_least_relative_errors_and_nothing_negative(model):
    exact = [(x, 2e-6 + 3e-10 * x) for x in (4, 4**6, 4**13)]
    assert model.Line.fit(exact) == pytest.approx((2e-6, 3e-10))
    assert model.Line.fit(exact).worst(exact) == pytest.approx(0, abs=1e-12)
    assert model.Line.fit([(1, 1.0), (2, 3.0), (4, 9.0)]).fixed == 0
    assert doctest.testmod(model) == (0, 1)
    # Without the bound, NumPy's.
    noisy = np.array([(1, 2.1), (2, 2.8), (4, 5.3), (8, 8.9)])
    slope, fixed = np.polyfit(*noisy.T, 1, w=1 / noisy[:, 1])
    assert model.Line.fit(noisy) == pytest.approx((fixed, slope))


def measured_by_a_model(modules):
    """Return what would be measured if the model were right, in two rounds."""
    model, report, program = (modules[n] for n in ("scaling_model", "scaling_report", "scaling"))
    fabric = model.Fabric(model.MPI_ALGORITHMS, 5e-6, 4e-10, start=2e-5, packing=6e-10)
    reduced = {
        kind: {
            str(n): [5e-6 + 4e-10 * n + (2e-5 + 6e-10 * n) * (kind == "team")] * 2
            for n in program.SIZES
        }
        for kind in report.WHOSE
    }
    steps = {}
    for name, batches in program.BATCHES.items():
        n = model.n_bytes(model.NETWORKS[name])
        one, threads = model.Line(1e-9 * n, 3e-13 * n), model.Line(1e-9 * n, 2e-13 * n)
        two = model.Model(one, n, fabric)
        ranks = {b * k for other, b in model.CASES if other == name for k in (1, 2)}
        steps[name] = {
            report.TITLES[report.ONE]: {str(b): [one(b)] * 2 for b in batches},
            report.TITLES[report.THREADS]: {str(b): [threads(b)] * 2 for b in batches},
            report.TITLES[report.RANKS]: {str(b): [two.step(2, b)] * 2 for b in sorted(ranks)},
        }
    return {"steps": steps, "all_reduce": {"2": reduced, "4": reduced}}


def test_the_report_comes_from_stored_figures(modules, tmp_path, capsys, monkeypatch):
    program = modules["scaling"]
    # Rendering the other format as well takes another second.
    monkeypatch.setattr(program, "draw", partial(program.draw, formats=("svg",)))
    stored = {
        "format": 1,
        "date": "2000-01-01T00:00:00+00:00",
        "settings": {"engine": "cpu", "rounds": 2, "seconds": 0.5},
        "environment": {"cores": 2, "devices": [{"processor": "a processor"}]},
        "measured": measured_by_a_model(modules),
    }
    path = tmp_path / "stored.json"
    path.write_text(json.dumps(stored))
    arguments = ["--measured", str(path), "--out", str(tmp_path / "out"), "--nodes", "48"]
    assert program.main(arguments) == 0
    out = tmp_path / "out"
    record = json.loads((out / "scaling.json").read_text())
    fit = record["analysis"]["fits"]["all_reduce"]
    constants = [value for name, value in fit.items() if name != "worst_error"]
    assert constants == pytest.approx([5e-6, 4e-10, 2e-5, 6e-10], rel=1e-6)
    rows = record["analysis"]["comparison"]
    assert [(r["network"], r["batch"]) for r in rows] == list(modules["scaling_model"].CASES[:-1])
    for row in rows:
        for kind in ("strong", "weak"):
            assert row[kind]["error"] == pytest.approx(0, abs=1e-6)
            assert row[kind]["speedup_range"] == pytest.approx([row[kind]["speedup"]] * 2)
        assert row["weak"]["threads_speedup"] > row["strong"]["threads_speedup"] > 1
    predictions = record["analysis"]["predictions"]
    assert {p["processes"] for p in predictions} == {1, 2, 4, 8, 16, 32, 48}
    assert len(predictions) == 5 * 2 * (4 + 7 + 7)
    assert all(math.isfinite(v) for p in predictions for v in p.values() if isinstance(v, float))
    text = (out / "scaling.md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| `--nodes` | 48 | nodes | given |" in text
    assert "### 48 nodes, InfiniBand NDR" in text
    assert "Predicted, not measured" in text
    assert b"<svg" in (out / "scaling.svg").read_bytes()[:1000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out: expected a folder"),
        (["--out", "x", "--rounds", "0"], "expected a whole number of at least 1, got 0"),
        (["--out", "x", "--gpu-peak", "inf"], "expected a number above 0, got inf"),
    ],
)
def test_options_that_make_no_sense_are_refused(modules, capsys, arguments, message):
    with pytest.raises(SystemExit):
        modules["scaling"].main(arguments)
    assert message in capsys.readouterr().err


def test_processes_measure_steps_and_the_all_reduce(modules):
    require("mpi4py")
    if not Path(sys.executable).with_name("mpiexec").exists() and shutil.which("mpiexec") is None:
        if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
            pytest.fail("NNBACKEND_REQUIRE_ORACLES=1, but there is no mpiexec")
        pytest.skip("there is no mpiexec")
    program, ranks = modules["scaling"], modules["scaling_report"].RANKS
    job = {"network": "mnist", "batches": [2048], "engine": "reference", "seconds": 1e-3}
    steps = program.launch(ranks, {"what": "steps", **job})
    assert list(steps) == ["2048"]
    assert steps["2048"] > 0
    from mpi4py import MPI

    job = {"sizes": [4, 4096], "seconds": 1e-3}
    found = program.all_reduce_seconds(job, MPI.COMM_SELF)
    sizes = {kind: list(by_size) for kind, by_size in found.items()}
    assert sizes == {"mpi": ["4", "4096"], "team": ["4", "4096"]}
    assert all(seconds > 0 for by_size in found.values() for seconds in by_size.values())

"""The benchmark: one mathematics for all contestants, and a report that hides nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb
from nnbackend import benchmark, benchmark_report, cli, peers
from nnbackend.benchmark import DIGITS, WORKLOADS, Workload, custom_workload, run_benchmark
from nnbackend.benchmark_process import ContestantError, ContestantProcess
from nnbackend.benchmark_report import Entry, Result, verdicts
from nnbackend.contestants import NotInstalledError, UnsupportedError

TINY = Workload("tiny", (3, 5, 4, 1), "tanh", "sigmoid", 8, nb.SGD(0.1), 4)
LEARNERS = [name for name in peers.CONTESTANTS if name not in (*peers.OWN, peers.LIMIT)]


def contestant(name, workload):
    """Return a contestant that is ready to train from the network's initial parameters."""
    entry = peers.CONTESTANTS[name](workload, "cpu")
    try:
        entry.load()
    except NotInstalledError as error:
        if os.environ.get("NNBACKEND_REQUIRE_ORACLES") == "1":
            raise
        pytest.skip(str(error))
    net = workload.network()
    entry.prepare(
        *workload.data(), ([W.copy() for W in net.weights], [b.copy() for b in net.biases])
    )
    entry.reset()
    return entry


# torch.compile takes seconds; what it compiles is Torch's loss, which is tested.
@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "torch-compiled"])
@pytest.mark.parametrize(
    ("output", "optimizer", "n_batches"),
    [
        ("sigmoid", nb.SGD(0.5), 1),
        ("sigmoid", nb.Adam(0.01), 4),
        ("softmax", nb.Adam(0.01), 1),
        ("softmax", nb.SGD(0.5), 4),
        ("multilabel", nb.Adam(0.01), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_peer_takes_the_steps_that_we_take(name, output, optimizer, n_batches):
    if name == "sklearn" and n_batches > 1:
        pytest.skip("scikit-learn draws its own order of the batches")
    sizes = (6, 7, 5, 1 if output == "sigmoid" else 3)
    kind = "softmax" if output == "softmax" else "sigmoid"
    workload = Workload("w", sizes, "tanh", kind, 16, optimizer, n_batches)
    entry = contestant(name, workload)
    epochs = entry.epochs_per_call
    loss = entry.run(epochs)

    net = workload.network()
    X, y = workload.data()
    history = nb.train(net, X, y, optimizer=optimizer, epochs=epochs, batch_size=16)
    # float32 rounding, added up over the steps. scikit-learn adds Adam's epsilon before the bias
    # correction: its first step is shorter by the share 3e-7 / |g|, a tenth for the least |g| here.
    is_other_adam = name == "sklearn" and isinstance(optimizer, nb.Adam)
    atol = 0.1 * optimizer.learning_rate if is_other_adam else 2e-5
    assert loss == pytest.approx(history.loss[-1], rel=1e-4)
    for got, expected in zip(entry.parameters(), (net.weights, net.biases), strict=True):
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    "name", ["nnbackend", "nnbackend-reference", "textbook", "torch", "jax", "jax-scan", "sklearn"]
)
def test_every_round_starts_from_the_same_parameters(name):
    entry = contestant(name, TINY)
    first = entry.run(entry.epochs_per_call)
    entry.run(entry.epochs_per_call)
    entry.reset()
    again = entry.run(entry.epochs_per_call)
    if name != "sklearn":  # which goes on with its own random state
        assert again == first
    assert again == pytest.approx(first, rel=0.05)


def test_the_limit_computes_the_products_of_a_step():
    entry = contestant("limit", TINY)
    entry.run(1)
    flops = [2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in entry._products]
    assert len(flops) == 3 * 3 - 1
    assert sum(flops) == TINY.flops_per_step
    for a, b, out in entry._products:
        np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


def test_what_a_peer_lacks_is_unsupported():
    gelu = custom_workload([3, 4, 1], 8, hidden="gelu")
    for name in ("textbook", "sklearn"):
        with pytest.raises(UnsupportedError, match="has no 'gelu' activation"):
            contestant(name, gelu)
    with pytest.raises(UnsupportedError, match="not a softmax of two"):
        contestant("sklearn", custom_workload([3, 4, 2], 8))


@pytest.mark.parametrize("workload", [*WORKLOADS.values(), DIGITS])
def test_a_workload_survives_its_description(workload):
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload


def test_random_labels_come_in_every_class():
    X, y = custom_workload([3, 4, 5], 8).data()
    assert (X.dtype, X.shape[1], len(X) % 8) == (np.float32, 3, 0)
    assert np.array_equal(np.unique(y), np.arange(5))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            code = cli.main(["bench", *arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


OWN_WORKLOAD = ("--layers", "3-5-1", "--batch", "8", "--rounds", "2", "--seconds", "0.001")


def test_the_command_prints_a_table_and_writes_json_and_pictures(run):
    code, out, err = run(*OWN_WORKLOAD, "--contestants", "nnbackend,textbook", "--out", "r")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "3-5-1  3-5-1, relu/sigmoid, batch 8, adam  (your own)"
    rows = {line[: line.index("  ")] for line in lines[3:6]}
    assert rows == {"nnbackend", "NumPy textbook", "products alone"}
    assert all("µs" in line and "%" in line for line in lines[3:6])
    assert lines[-1] == (
        "run folder  r: benchmark.json, benchmark.md, benchmark.png, benchmark.svg"
    )

    report = json.loads(Path("r/benchmark.json").read_text())
    settings = report["settings"]
    assert (settings["rounds"], settings["seconds_per_round"]) == (2, 0.001)
    environment = report["environment"]
    assert {"numpy", "Python", "platform", "BLAS", "cores", "devices"} <= environment.keys()
    (result,) = report["results"]
    assert result["measures"] == "seconds per step"
    assert result["workload"]["layer_sizes"] == [3, 5, 1]
    assert result["flops_per_step"] == 2 * 8 * (2 * 15 + 3 * 5)
    entries = {entry["contestant"]: entry for entry in result["entries"]}
    assert entries.keys() == {"nnbackend", "textbook", "limit"}
    for entry in entries.values():
        assert (entry["status"], len(entry["seconds"])) == ("ok", 2)
        median = entry["median_seconds"]
        assert entry["q1_seconds"] <= median <= entry["q3_seconds"]
        assert entry["samples_per_second"] == pytest.approx(8 / median)
        assert entry["steps_per_second"] == pytest.approx(1 / median)
        assert entry["gflops"] == pytest.approx(result["flops_per_step"] / median / 1e9)
        limit = entries["limit"]["median_seconds"]
        assert entry["fraction_of_limit"] == pytest.approx(limit / median)
        assert entry["first_seconds"] >= median
        assert entry["startup_seconds"] > 0
        assert entry["versions"]
        assert any(pool["api"] == "blas" for pool in entry["threads"])
    assert Path("r/benchmark.md").read_text().startswith("| | 3-5-1 |\n|---|---:|\n| nnbackend | ")
    assert Path("r/benchmark.png").read_bytes().startswith(b"\x89PNG")
    picture = Path("r/benchmark.svg").read_text()
    assert "</svg>" in picture


def test_json_is_one_object_and_the_folder_has_a_default(run):
    arguments = (*OWN_WORKLOAD, "--contestants", "nnbackend", "--quick", "--json")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["settings"]["rounds"] == 2, "what is given goes before --quick"
    assert re.fullmatch(r"runs/bench-\d{8}-\d{6}", report["run"])
    assert sorted(os.listdir(report["run"])) == sorted(report["files"])
    assert "nnbackend is the fastest" not in out


def test_digits_are_trained_to_an_accuracy(run):
    arguments = ("digits", "--rounds", "1", "--contestants", "nnbackend,textbook")
    code, out, err = run(*arguments, "--json", "--out", "r")
    assert (code, err) == (0, "")
    (result,) = json.loads(out)["results"]
    assert result["measures"] == "seconds to accuracy"
    assert {entry["contestant"] for entry in result["entries"]} == {"nnbackend", "textbook"}
    # The same numbers up to rounding: as many epochs, give or take one near the threshold.
    epochs = [entry["epochs"] for entry in result["entries"]]
    assert max(epochs) - min(epochs) <= 1
    for entry in result["entries"]:
        assert entry["accuracy"] >= result["workload"]["accuracy"]
        assert entry["first_seconds"] >= 0 < entry["median_seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "WORKLOAD: unknown name 'smal'; did you mean 'small'?"),
        (["--batch", "8"], "--batch: expected --layers along with it, got none"),
        (["--layers", "3-x-1"], "--layers: expected units by layer such as 64-256-1, got '3-x-1'"),
        (["--layers", "3"], "layers: expected at least two sizes"),
        (["--layers", "3-0-1"], "layers: expected an integer >= 1, got 0"),
        (["--layers", "3-1", "--batch", "0"], "batch: expected an integer >= 1, got 0"),
        (["--layers", "3-1", "--hidden", "rleu"], "hidden: unknown name 'rleu'; did you mean"),
        (["--layers", "3-1", "--output", "exp"], "output: unknown name 'exp'"),
        (["--layers", "3-1", "--output", "softmax"], "output: expected 'sigmoid' for a single"),
        (["--layers", "3-1", "--optimizer", "adagrad"], "optimizer: unknown name 'adagrad'"),
        (["small", "--contestants", "torhc"], "contestants: unknown name 'torhc'; did you mean"),
        (["small", "--rounds", "0"], "rounds: expected an integer >= 1, got 0"),
        (["small", "--seconds", "-1"], "seconds: expected a finite number > 0, got -1.0"),
        (["small", "--device", "gpu"], "device: expected 'cpu', 'cuda', 'cuda:N' or 'auto'"),
    ],
)
def test_bad_arguments_end_with_one_sentence(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"nnbackend bench: {message}")
    assert err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == [], "no empty folder is left behind"


@pytest.fixture
def broken_peers(tmp_path, monkeypatch):
    """Make torch, JAX and scikit-learn fail in a contestant's process, each in its own way."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Breaker(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "        if name == 'jax':\n"
        "            import os; print('jax broke', file=sys.stderr, flush=True); os._exit(3)\n"
        "        if name == 'sklearn':\n"
        "            import time; time.sleep(60)\n"
        "sys.meta_path.insert(0, Breaker())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(benchmark, "PATIENCE_SECONDS", 3.0)


@pytest.mark.usefixtures("broken_peers")
def test_who_is_missing_crashes_or_hangs_is_reported_and_stops_nobody(capsys):
    names = ["torch", "jax", "sklearn", "nnbackend"]
    report = run_benchmark([TINY], contestants=names, rounds=1, seconds=0.001)
    (result,) = report.results
    entries = {entry.contestant: entry for entry in result.entries}
    found = {name: (entries[name].status, entries[name].reason) for name in names}
    assert found == {
        "torch": ("missing", "not installed; install it with: pip install torch"),
        "jax": ("failed", "its process ended (exit code 3): jax broke"),
        "sklearn": ("timeout", "no answer to 'load' within 3 s"),
        "nnbackend": ("ok", ""),
    }
    benchmark_report.print_result(result)
    out = capsys.readouterr().out
    assert "torch on cpu: missing: not installed; install it with: pip install torch\n" in out
    assert "scikit-learn on cpu: timeout: no answer to 'load' within 3 s\n" in out
    from nnbackend.benchmark_picture import draw

    assert draw(report)["png"].startswith(b"\x89PNG")


def test_a_process_that_is_killed_says_so_and_leaves_nothing_behind():
    job = {"contestant": "textbook", "device": "cpu", "workload": TINY.to_dict(), "data": None}
    process = ContestantProcess(**job)
    assert process.ask("load", 60)["versions"]["numpy"] == np.__version__
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(ContestantError, match=r"its process ended \(killed by SIGKILL\)"):
        process.ask("prepare", 60)
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def test_what_a_library_prints_does_not_reach_the_answers():
    code = (
        "import sys; from nnbackend import benchmark_worker as worker\n"
        "load = worker.Worker.load\n"
        "worker.Worker.load = lambda self: (print('noise'), load(self))[1]\n"
        "sys.exit(worker.main())"
    )
    job = {"contestant": "textbook", "device": "cpu", "workload": TINY.to_dict(), "data": None}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        input='{"command": "load"}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "versions" in json.loads(done.stdout)
    assert done.stderr == "noise\n"


def result_of(**medians):
    """Return a result with two rounds, 1 % apart, for each contestant."""
    entries = [Entry(name, "cpu", seconds=[m, 1.01 * m]) for name, m in medians.items()]
    return Result(TINY, sorted(entries, key=lambda entry: entry.median))


def test_the_verdict_says_who_is_faster():
    assert verdicts(result_of(nnbackend=2.0, torch=1.0, textbook=4.0)) == [
        "Faster than nnbackend: torch (2x)."
    ]
    assert verdicts(result_of(**{"nnbackend": 2.0, "nnbackend-reference": 1.0})) == [
        "Faster than nnbackend: nnbackend reference (2x)."
    ]
    assert verdicts(result_of(nnbackend=1.0, torch=2.0, limit=0.5)) == [
        "nnbackend is the fastest: 2.0 times as fast as the next, torch."
    ]
    assert verdicts(result_of(nnbackend=1.0, torch=1.001)) == [
        "Not told apart from nnbackend, since the rounds overlap: torch."
    ]
    assert verdicts(result_of(torch=1.0)) == []


def test_the_verdict_compares_devices():
    result = result_of(nnbackend=1.0)
    result.entries.append(Entry("nnbackend", "cuda:0", seconds=[3.0, 3.0]))
    assert verdicts(result) == ["nnbackend is 3.0 times as fast on cpu as on cuda:0."]


def test_rounds_that_differ_are_called_doubtful(capsys):
    result = result_of(nnbackend=1e-3, torch=2e-3)
    result.entries[0].seconds = [1e-3, 2e-3, 3e-3]
    for entry in result.entries:
        entry.startup_seconds = entry.first_seconds = 1.0
    benchmark_report.print_result(result)
    assert "Doubtful, since the rounds differ" in capsys.readouterr().out


def test_interrupting_the_command_ends_its_processes(tmp_path):
    command = [sys.executable, "-m", "nnbackend", "bench", *OWN_WORKLOAD[:4], "--seconds", "60"]
    process = subprocess.Popen(
        [*command, "--contestants", "nnbackend"], cwd=tmp_path, text=True, stderr=subprocess.PIPE
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("needs Linux's /proc to see the processes")
    deadline = time.monotonic() + 30
    while not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.02)
    (child,) = children.read_text().split()
    time.sleep(0.5)  # into the middle of the first call, which is to last a minute
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert not Path(f"/proc/{child}").exists()
    assert list(tmp_path.iterdir()) == []

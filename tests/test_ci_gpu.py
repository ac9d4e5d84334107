"""The command for machines with a GPU: what it does without one, and what it makes of figures."""

import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nnbackend.bench.own
import nnbackend.bench.workload
import nnbackend.device
from nnbackend.bench.workload import Workload
from nnbackend.core.optimizers import SGD
from nnbackend.device import DeviceInfo

ROOT = Path(__file__).resolve().parent.parent


def _load():
    loader = importlib.machinery.SourceFileLoader("ci_gpu", str(ROOT / "ci" / "gpu"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("ci_gpu", loader))
    loader.exec_module(module)
    return module


ci_gpu = _load()
import gpu_record  # noqa: E402 - found where ci/gpu finds it
import gpu_sections  # noqa: E402

TINY = Workload("tiny", (3, 5, 1), "tanh", "sigmoid", 8, SGD(0.1), 4)


def test_without_a_gpu_it_ends_with_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "gpu"), "--output", str(tmp_path)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match("ci/gpu: (device 'cuda': CuPy|cupy: not installed)", done.stderr)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(ci_gpu, "NEEDED", {"numpy": "numpy", "no_such": "no-such-package"})
    assert ci_gpu.main([]) == 1
    sentence = "ci/gpu: no_such: not installed; install with: pip install no-such-package\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "test"], "expected some of hardware,tests,agreement,"),
        (["--add-to", "nowhere.json"], "expected a record that ci/gpu wrote, got nowhere.json"),
        (["--budget", "long"], "invalid float value: 'long'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        ci_gpu.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# Stands in for gpu_sections.py: each section ends as its name would not let one expect.
STAND_IN = """
import json, os, signal, sys, time
name, path, seconds = sys.argv[1:]
found = {"status": "unfinished", "reason": "", "left_out": [], "figure": float(seconds)}
with open(path, "w") as file:
    json.dump(found, file)
print("a line of", name, flush=True)
if name == "agreement":
    sys.exit("broken in the middle")
if name == "crossover":
    time.sleep(60)
if name == "sanitizer":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(60)
found["status"] = "passed"
if name == "benchmark":
    found |= {"status": "failed", "reason": "slow", "left_out": ["wide"]}
with open(path, "w") as file:
    json.dump(found, file)
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A GPU that is not there, and sections that do nothing."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "gpu_sections.py").write_text(STAND_IN)
    monkeypatch.setattr(ci_gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_sections, "ROOT", tmp_path)
    gpu = DeviceInfo("cuda:0", "NVIDIA H100 80GB HBM3", 80 << 30)
    monkeypatch.setattr(nnbackend.device, "get_device", lambda name: name)
    monkeypatch.setattr(nnbackend.device, "devices", lambda: [None, gpu])
    monkeypatch.setattr(ci_gpu, "NEEDED", {})
    return tmp_path


def read_record(folder):
    (path,) = folder.glob("nvidia-h100-80gb-hbm3-*.json")
    return json.loads(path.read_text()), path


@pytest.mark.slow
def test_a_section_that_crashes_or_hangs_keeps_what_it_found(stand_ins, monkeypatch, capfd):
    monkeypatch.setattr(ci_gpu, "RESERVE_SECONDS", 0.0)
    monkeypatch.setattr(ci_gpu, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(ci_gpu, "SHARES", dict.fromkeys(ci_gpu.SHARES, 1))
    folder = stand_ins / "out"
    start = time.monotonic()
    names = "benchmark,crossover,agreement,tests"
    code = ci_gpu.main(
        ["--output", str(folder), "--budget", "6", "--commit", "abc", "--sections", names]
    )
    assert time.monotonic() - start < 8
    assert code == 1
    record, path = read_record(folder)
    assert (record["commit"], record["dirty"], record["budget"]) == ("abc", None, 6.0)
    sections = record["sections"]
    assert list(sections) == ["tests", "agreement", "crossover", "benchmark"]
    found = {name: (s["status"], s["reason"]) for name, s in sections.items()}
    assert found["tests"] == ("passed", "")
    assert found["agreement"] == ("crashed", "exit code 1: broken in the middle")
    assert found["crossover"][0] == "timed out"
    assert found["crossover"][1].startswith("it was ended after ")
    assert found["benchmark"] == ("failed", "slow")
    for section in sections.values():
        assert section["figure"] == pytest.approx(section["limit"] - 0.1)
        assert 0 < section["seconds"] < section["limit"] + 1
    text = path.with_suffix(".md").read_text()
    assert "| agreement | crashed: exit code 1: broken in the middle |" in text
    assert "- benchmark: wide" in text
    log = path.with_suffix(".log").read_text()
    assert log.startswith("== tests\na line of tests\n== agreement\na line of agreement\n")
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".log", ".md"]
    out, err = capfd.readouterr()
    assert "a line of tests" in out
    assert err.splitlines() == [
        "ci/gpu: agreement: crashed: exit code 1: broken in the middle",
        "ci/gpu: benchmark: failed: slow",
    ]


@pytest.mark.slow
def test_sections_can_be_added_to_a_record_of_the_same_commit(stand_ins, capsys):
    first, second = stand_ins / "first", stand_ins / "second"
    options = ["--budget", "30", "--commit", "abc"]
    assert ci_gpu.main([*options, "--output", str(first), "--sections", "tests"]) == 0
    _, path = read_record(first)
    options = ["--add-to", str(path), "--output", str(second), "--sections", "hardware"]
    assert ci_gpu.main([*options, "--commit", "abc"]) == 0
    assert list(read_record(second)[0]["sections"]) == ["tests", "hardware"]
    capsys.readouterr()
    assert ci_gpu.main([*options, "--commit", "abd"]) == 1
    sentence = "ci/gpu: --add-to: expected a record of abd, got one of abc\n"
    assert capsys.readouterr().err == sentence


def test_what_does_not_fit_is_said(stand_ins):
    assert ci_gpu.main(["--output", str(stand_ins / "out"), "--budget", "13"]) == 1
    record, path = read_record(stand_ins / "out")
    for section in record["sections"].values():
        found = (section["status"], section["reason"], section["left_out"])
        assert found == ("skipped", "no time was left", ["all of it"])
    assert "| tests | skipped: no time was left | 0 | 0 |" in path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_a_command_that_ignores_an_interrupt_is_ended(stand_ins, monkeypatch):
    monkeypatch.setattr(gpu_sections, "ENDING_SECONDS", 1.0)
    with (stand_ins / "log").open("w") as output:
        start = time.monotonic()
        script = [sys.executable, "ci/gpu_sections.py", "sanitizer", "findings", "1"]
        assert gpu_sections.run_limited(script, 0.5, output) is None
        assert 1 < time.monotonic() - start < 4
        assert gpu_sections.run_limited([*script[:2], "tests", "f", "1"], 30, output) == 0
    assert (stand_ins / "log").read_text() == "a line of sanitizer\na line of tests\n"


def entry(contestant, microseconds, status="ok"):
    figures = {"median_seconds": 1e-6 * microseconds} if status == "ok" else {}
    return {"contestant": contestant, "status": status, "reason": "", **figures}


def of_pass(device, precision, *entries):
    result = {"workload": {"name": "small"}, "entries": list(entries)}
    return {"device": device, "precision": precision, "results": [result], "table": "| t |\n"}


PASSES = [
    of_pass(
        "cuda:0",
        "float32",
        entry("nnbackend-cuda", 20.0),
        entry("nnbackend-reference", 400.0),
        entry("torch", 100.0),
        entry("jax-scan", 25.0),
        entry("jax", 0.0, status="failed"),
        entry("limit", 10.0),
    ),
    of_pass("cuda:0", "tf32", entry("nnbackend-cuda", 5.0)),
    of_pass("cpu", "float32", entry("nnbackend-native", 40.0), entry("jax-scan", 10.0)),
    of_pass("cuda:0", "float32", entry("torch-compiled", 16.0), entry("limit", 11.0)),
]


def test_ratios_are_to_the_same_device_and_precision_over_all_passes():
    rows = gpu_record.ratios(PASSES)
    keys = ("device", "precision", "contestant", "best_peer")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("cuda:0", "float32", "nnbackend-cuda", "torch-compiled"),
        ("cuda:0", "float32", "nnbackend-reference", "torch-compiled"),
        ("cuda:0", "tf32", "nnbackend-cuda", None),
        ("cpu", "float32", "nnbackend-native", "jax-scan"),
    ]
    assert [row["microseconds"] for row in rows] == pytest.approx([20.0, 400.0, 5.0, 40.0])
    first, second, alone, cpu = rows
    assert first["to_best_peer"] == pytest.approx(1.25)
    assert (first["to_torch"], first["to_limit"]) == pytest.approx((0.2, 2.0))
    assert second["to_torch"] == pytest.approx(4.0)
    assert (alone["to_best_peer"], alone["to_torch"], alone["to_limit"]) == (None, None, None)
    assert (cpu["to_best_peer"], cpu["to_torch"]) == (pytest.approx(4.0), None)


def rungs(*triples):
    return [
        {"size": size, "cpu": {"step": cpu, "fixed": 0.0}, "gpu": {"step": gpu, "fixed": 1e-3}}
        for size, cpu, gpu in triples
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], None),
        ([(16, 1.0, 2.0), (64, 1.0, 1.0)], None),
        ([(16, 2.0, 1.0), (64, 3.0, 1.0)], 16.0),
        # As far below 1 as above it: in the middle, on logarithmic scales.
        ([(16, 1.0, 2.0), (64, 2.0, 1.0), (256, 4.0, 1.0)], 32.0),
        ([(16, 1.0, 8.0), (64, 2.0, 1.0)], 16.0 * 4.0**0.75),
        # It wins, loses and wins: the last change counts.
        ([(16, 2.0, 1.0), (64, 1.0, 2.0), (256, 2.0, 1.0)], 128.0),
        ([(16, 1.0, 2.0), (64, 1.0, 1.0), (256, 2.0, 1.0)], 64.0),
    ],
)
def test_the_crossing_lies_where_the_ratio_is_one(steps, expected):
    assert gpu_record.crossing(rungs(*steps)) == (expected and pytest.approx(expected))


def test_what_makes_a_run_fail():
    ok = {"status": "passed", "reason": ""}
    bad = {"status": "timed out", "reason": "late"}
    assert gpu_record.problems({"tests": ok, "benchmark": bad, "sanitizer": bad}) == []
    assert gpu_record.problems({"tests": bad, "benchmark": ok}) == ["tests: timed out: late"]
    assert gpu_record.problems({"agreement": {**bad, "status": "skipped"}}) == [
        "agreement: skipped: late"
    ]
    assert gpu_record.problems({"crossover": {**bad, "status": "crashed"}}) == [
        "crossover: crashed: late"
    ]


def test_the_record_has_every_figure(tmp_path):
    ends = {"status": "passed", "reason": "", "left_out": [], "seconds": 1.0, "limit": 2.0}
    ladder = {"ladder": "width, at batch 128", "engines": ["cpu", "cuda"], "crossing": 32.0}
    never = {"ladder": "batch size", "engines": ["reference", "reference"], "crossing": None}
    comparison = {"network": "small", "optimizer": "adam", "engine": "cuda"}
    failure = {"test": "tests/test_x.py::test_y", "message": "assert 1 == 2"}
    sections = {
        "hardware": {**ends, "name": "H100", "versions": {"numpy": "2.5"}, "nvidia-smi": "no"},
        "tests": {
            **ends,
            "collected": 8,
            "passed": 5,
            "skipped": 2,
            "failures": [failure],
            "reasons": {"no second GPU": 2},
        },
        "agreement": {
            **ends,
            "bounds": {"parameters": 1e-8, "losses": 1e-4},
            "comparisons": [
                {**comparison, "parameters": 1.25e-12, "losses": 2e-6, "passed": True},
                {**comparison, "passed": False, "reason": "ValueError: a | b"},
            ],
        },
        "crossover": {
            **ends,
            "left_out": ["width 4096"],
            "ladders": [
                {**ladder, "rungs": rungs((16, 1e-5, 2e-5), (64, 4e-5, 2e-5))},
                {**never, "rungs": rungs((16, 1e-5, 2e-5))},
                {**never, "rungs": []},
            ],
        },
        "sanitizer": {**ends, "tools": {"memcheck": {"status": "passed", "summary": "0 errors"}}},
        "benchmark": {**ends, "passes": PASSES[:1]},
        "benchmark-tf32": {**ends, "passes": PASSES[1:2]},
        "benchmark-compiled": {**ends, "passes": PASSES[2:]},
    }
    record = {
        "gpu": "NVIDIA H100",
        "date": "2026-11-24T10:00:00+00:00",
        "commit": "abc",
        "dirty": True,
        "seconds": 100.0,
        "budget": 480.0,
        "sections": sections,
    }
    text = gpu_record.write(record, tmp_path, "h100")
    assert json.loads((tmp_path / "h100.json").read_text()) == record
    assert (tmp_path / "h100.md").read_text() == text
    best = "1.25 (torch-compiled)"
    where = "engine cpu on the CPU, cuda on the GPU: the GPU is faster from about 32."
    nowhere = "engine reference on the CPU, reference on the GPU: the GPU is faster at none up to"
    for line in (
        f"By width, at batch 128, {where}",
        f"By batch size, {nowhere} 16.",
        "# NVIDIA H100, 2026-11-24",
        "`ci/gpu` at commit abc, with changes; 100 s of 480 s.",
        "| crossover | passed | 1 | 2 |",
        "- crossover: width 4096",
        "- versions: numpy 2.5",
        "5 passed, 1 failed, 2 skipped, of 8.",
        "- failed: `tests/test_x.py::test_y`: assert 1 == 2",
        "- skipped: 2: no second GPU",
        "| small | adam | cuda | 1.2e-12 | 2.0e-06 | passed |",
        "| small | adam | cuda |  |  | failed ValueError: a \\| b |",
        "| 64 | 40.0 | 20.0 | 2.00 | 1.0 |",
        "- memcheck: passed: 0 errors",
        "| t |",
        f"| small | cuda:0 | float32 | nnbackend-cuda | 20.0 | {best} | 0.2 | 2 |",
        "| small | cuda:0 | tf32 | nnbackend-cuda | 5.0 |  |  |  |",
    ):
        assert line in text.splitlines()


@pytest.fixture
def section(tmp_path):
    return gpu_sections.Section(tmp_path / "findings", 60.0)


def saved(section):
    return json.loads(section.path.read_text())


TESTS = """
import pytest
pytestmark = pytest.mark.cuda

@pytest.mark.parametrize("i", range(3))
def test_good(i): pass

def test_bad(): assert 1 == 2

@pytest.mark.skip(reason="no second GPU")
def test_skipped(): pass

@pytest.mark.xfail(reason="known")
def test_xfail(): assert False
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "seconds", "expected"),
    [
        (TESTS, 60, ("failed", "1 tests failed", 6, 3, 2)),
        (TESTS, 0, ("failed", "time was out before the last test", 6, 1, 0)),
        (TESTS.replace("1 == 2", "True"), 60, ("passed", "", 6, 4, 2)),
        ("def test_cpu(): pass", 60, ("failed", "pytest ended with exit code 5, 0", 0, 0, 0)),
        ("import no_such_module", 60, ("failed", "1 tests failed", 0, 0, 0)),
    ],
)
def test_the_tests_are_counted(tmp_path, code, seconds, expected):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  cuda: needs a GPU\n")
    run = (
        "import sys, pathlib, gpu_sections as g; g.ROOT = pathlib.Path(sys.argv[1]); "
        "section = g.Section(g.ROOT / 'findings', float(sys.argv[2])); g.tests(section)"
    )
    paths = os.pathsep.join([str(ROOT / "ci"), str(ROOT)])
    subprocess.run(
        [sys.executable, "-c", run, str(tmp_path), str(seconds)],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    found = json.loads((tmp_path / "findings").read_text())
    status, reason, *counts = expected
    assert found["status"] == status
    assert found["reason"].startswith(reason)
    assert [found[name] for name in ("collected", "passed", "skipped")] == counts
    assert "running" not in found
    if code == TESTS and seconds:
        (failure,) = found["failures"]
        assert failure["test"].endswith("test_x.py::test_bad")
        assert "assert 1 == 2" in failure["message"]
        assert found["reasons"] == {"Skipped: no second GPU": 1, "known": 1}
    assert found["left_out"] == ([] if seconds else ["5 of 6 tests"])


@pytest.fixture
def engines(monkeypatch):
    """Let the CPU stand in for the GPU, with the engines of a list."""
    names = ["reference"]
    monkeypatch.setattr(
        nnbackend.bench.own, "own_contestants", lambda *_: {name: name for name in names}
    )
    return names


@pytest.mark.usefixtures("engines")
def test_the_cpu_agrees_with_itself(section, monkeypatch):
    monkeypatch.setattr(gpu_sections, "NETWORKS", {"small": gpu_sections.NETWORKS["small"]})
    gpu_sections.agreement(section, "cpu")
    found = saved(section)
    assert found["status"] == "passed"
    cases = [(row["optimizer"], row["engine"]) for row in found["comparisons"]]
    assert cases == [("sgd", "reference"), ("adam", "reference")]
    for row in found["comparisons"]:
        assert (row["parameters"], row["losses"], row["passed"]) == (0.0, 0.0, True)
    n_rows, batch_size = (gpu_sections.NETWORKS["small"][i] for i in (4, 3))
    assert n_rows % batch_size > 0, "the last batch is a short one"
    assert gpu_sections.EPOCHS_OF_FIVE_STEPS * -(-n_rows // batch_size) == 100


def test_disagreement_and_errors_fail(section, engines, monkeypatch):
    engines[:] = ["close", "far", "broken"]

    def trained(_, engine, *__):
        if engine == "broken":
            raise ValueError("no such engine")
        off = {"reference": 0.0, "close": 1e-9, "far": 1e-3}[engine]
        return [1.0, 0.5 + off], [np.array([1.0, 2.0 + off]), np.array([[4.0]])]

    monkeypatch.setattr(gpu_sections, "_trained", trained)
    gpu_sections.agreement(section, "cpu")
    found = saved(section)
    rows = {row["engine"]: row for row in found["comparisons"]}
    assert (found["status"], len(found["comparisons"])) == ("failed", 12)
    assert found["reason"] == "8 of 12 comparisons are out of bounds"
    assert {name: row["passed"] for name, row in rows.items()} == {
        "close": True,
        "far": False,
        "broken": False,
    }
    assert rows["far"]["parameters"] == pytest.approx(5e-4)
    assert rows["far"]["losses"] == pytest.approx(2e-3)
    assert rows["broken"]["reason"] == "ValueError: no such engine"


def test_the_ladders_give_a_crossing(section, engines, monkeypatch):
    engines[:] = ["cuda", "reference"]

    def step_seconds(device, engine, sizes, batch_size):
        speed = 2.0 if engine == "cuda" else 1.0
        work = 1e-9 * sizes[0] * batch_size
        return {"step": work / speed if device == "cpu" else 1e-5, "fixed": 1e-3}

    monkeypatch.setattr(nnbackend.device, "get_device", lambda name: name)
    monkeypatch.setattr(gpu_sections, "_step_seconds", step_seconds)
    gpu_sections.crossover(section, "cuda:0")
    found = saved(section)
    assert found["status"] == "passed"
    crossings = [(ladder["engines"], ladder["crossing"]) for ladder in found["ladders"]]
    reference, fastest = ["reference", "reference"], ["cuda", "cuda"]
    assert crossings == [
        (reference, pytest.approx(1e4 / 128)),
        (fastest, pytest.approx(2e4 / 128)),
        (reference, pytest.approx(1e4 / 256)),
        (fastest, pytest.approx(2e4 / 256)),
    ]
    assert [rung["size"] for rung in found["ladders"][0]["rungs"]][::8] == [16, 4096]


@pytest.fixture
def kernel_tests(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_cuda_kernels.py").touch()
    monkeypatch.setattr(gpu_sections, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def install_sanitizer(folder, code):
    program = folder / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)


def test_the_sanitizer_finds_nothing_or_something(section, kernel_tests):
    summary = "echo '========= ERROR SUMMARY: 0 errors'; echo $*"
    install_sanitizer(kernel_tests, summary)
    gpu_sections.sanitizer(section)
    found = saved(section)
    assert found["status"] == "passed"
    result = {"status": "passed", "exit_code": 0, "summary": "ERROR SUMMARY: 0 errors"}
    assert found["tools"] == {"memcheck": result, "racecheck": result}
    install_sanitizer(kernel_tests, f"{summary}; case $* in *racecheck*) exit 99;; esac")
    gpu_sections.sanitizer(section)
    found = saved(section)
    assert (found["status"], found["reason"]) == ("failed", "see racecheck")
    assert found["tools"]["racecheck"]["exit_code"] == 99


def test_without_the_sanitizer_or_its_tests_that_is_said(section, kernel_tests, monkeypatch):
    monkeypatch.setattr(gpu_sections.shutil, "which", lambda *_, **__: None)
    gpu_sections.sanitizer(section)
    assert saved(section)["status"] == "skipped"
    assert saved(section)["reason"].startswith("compute-sanitizer is neither on the PATH nor in ")
    (kernel_tests / "tests" / "test_cuda_kernels.py").unlink()
    monkeypatch.setattr(gpu_sections.shutil, "which", lambda *_, **__: "compute-sanitizer")
    gpu_sections.sanitizer(section)
    assert saved(section)["reason"] == "tests/test_cuda_kernels.py is not there"


@pytest.mark.slow
@pytest.mark.usefixtures("engines")
def test_the_benchmark_keeps_every_result(section, monkeypatch):
    monkeypatch.setattr(nnbackend.bench.workload, "WORKLOADS", {"tiny": TINY})
    monkeypatch.setattr(gpu_sections, "SECONDS_PER_ROUND", 0.001)
    passes = [("cpu", "float32", ("textbook",))]
    gpu_sections.benchmark(section, passes)
    found = saved(section)
    assert (found["status"], found["reason"], found["left_out"]) == ("passed", "", [])
    (this,) = found["passes"]
    (result,) = this["results"]
    contestants = {each["contestant"]: each["status"] for each in result["entries"]}
    assert contestants == dict.fromkeys(["nnbackend-reference", "textbook", "limit"], "ok")
    assert this["settings"]["keep_processes"] is True
    assert this["table"].startswith("| | tiny |")
    (row,) = gpu_record.ratios(found["passes"])
    assert (row["contestant"], row["best_peer"]) == ("nnbackend-reference", "textbook")
    section.deadline = time.monotonic()
    gpu_sections.benchmark(section, [*passes, ("cpu", "float32", gpu_sections.COMPILED)])
    assert saved(section)["left_out"] == [
        "tiny in float32 on cpu: nnbackend-reference, textbook",
        "tiny in float32 on cpu: torch-compiled",
    ]


@pytest.mark.slow
def test_an_own_contestant_that_fails_makes_the_benchmark_fail(section, monkeypatch):
    monkeypatch.setattr(nnbackend.bench.workload, "WORKLOADS", {"tiny": TINY})
    monkeypatch.setattr(gpu_sections, "SECONDS_PER_ROUND", 0.001)
    monkeypatch.setattr(gpu_sections, "PATIENCE_SECONDS", 20.0)
    folders = [str(section.path.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    (section.path.parent / "sitecustomize.py").write_text(
        "import nnbackend.engines.reference as r\n"
        "def fail(*_, **__): raise ArithmeticError('out of memory')\n"
        "r.ReferenceEngine.run = fail\n"
    )
    gpu_sections.benchmark(section, [("cpu", "float32", ())])
    sentence = "nnbackend-reference on tiny: ArithmeticError: out of memory"
    assert (saved(section)["status"], saved(section)["reason"]) == ("failed", sentence)

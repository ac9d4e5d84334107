"""What ``ci/gpu`` does, a section at a time, each in a process of its own.

``python ci/gpu_sections.py NAME FILE SECONDS`` runs a section and writes what it finds to a JSON
file, again after every figure: a crash or a time limit loses nothing that was found before. A
section looks at the clock and says what it left out (``left_out``).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
GPU = "cuda:0"
KERNEL_TESTS = "tests/test_cuda_kernels.py"
PARITY_TESTS = "tests/test_cuda_engine.py::test_every_program_equals_the_reference"
# The kernels one by one, and in a whole training of each kind: with a gather, penalties and
# clipping, labels, and short last batches.
SANITIZED_TESTS = (
    KERNEL_TESTS,
    f"{PARITY_TESTS}[gpu-relu-tanh-sigmoid-fused]",
    f"{PARITY_TESTS}[gpu-leaky_relu-sigmoid-exp-plain]",
    f"{PARITY_TESTS}[gpu-identity-relu-softmax-tiny]",
)
# For a command that is over its time: to end what it has started in turn.
ENDING_SECONDS = 5.0


class Section:
    """A section's findings, and its time.

    Parameters
    ----------
    path : Path
        Where the findings are written.
    seconds : float
        How long the section may take.

    Attributes
    ----------
    data : dict
        The findings. ``status`` is ``"passed"``, ``"failed"``, ``"skipped"``, or ``"unfinished"``
        as long as the section runs; ``reason`` says why it is not ``"passed"``.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.deadline = time.monotonic() + seconds
        self.data: dict[str, Any] = {"status": "unfinished", "reason": "", "left_out": []}

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()

    def save(self) -> None:
        """Write the findings down."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.data, indent=1))
        draft.replace(self.path)

    def end(self, status: str, reason: str = "") -> None:
        """Set the status, with the reason, and write everything down."""
        self.data |= {"status": status, "reason": reason}
        self.save()


def run_limited(
    command: Sequence[str], seconds: float, output: IO[str], **environment: str
) -> int | None:
    """Run a command in the repository's root, and end it and all it started after some seconds.

    Returns
    -------
    int or None
        The exit code; None if time was out.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # An interrupt first: Python then ends what it has started in turn.
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(ENDING_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def hardware(section: Section) -> None:
    """Write down the GPU, its driver and clocks, and the versions of everything that computes."""
    import cupy

    from nnbackend.bench.environment import environment

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    section.data |= {
        "name": properties["name"].decode(),
        "compute capability": f"{properties['major']}.{properties['minor']}",
        "memory": f"{properties['totalGlobalMem'] / 2**30:.1f} GiB",
        "multiprocessors": properties["multiProcessorCount"],
        "L2 cache": f"{properties['l2CacheSize'] / 2**20:.0f} MiB",
        "shared memory per block": f"{properties['sharedMemPerBlockOptin'] / 2**10:.0f} KiB",
        "CUDA of the driver": _cuda_version(runtime.driverGetVersion()),
        "CUDA runtime": _cuda_version(runtime.runtimeGetVersion()),
        "nvidia-smi": _nvidia_smi(),
        "Python": platform.python_version(),
        "versions": _versions(),
        "environment": environment(),
    }
    for name, fact in section.data.items():
        if name not in ("status", "reason", "left_out", "environment"):
            print(f"{name}: {fact}")
    section.end("passed")


PACKAGES = (
    "numpy", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton", "jax", "jaxlib",
    "array-api-compat", "scipy", "scikit-learn", "nvidia-cublas", "nvidia-cublas-cu12",
    "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "pytest", "hypothesis",
)  # fmt: skip
SMI_FIELDS = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _nvidia_smi() -> dict[str, str] | str:
    """Return what nvidia-smi says of the driver and the clocks; it changes none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not installed"
    query = [f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run([program, *query], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"failed: {' '.join((done.stdout + done.stderr).split())[:200]}"
    return dict(zip(SMI_FIELDS, map(str.strip, done.stdout.split(",")), strict=True))


def tests(section: Section) -> None:
    """Run the tests that need a GPU."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        section.end("failed", f"the tests need {names}; install it with: pip install {names}")
        return
    import pytest

    # Plugins that happen to be installed are not part of the tests, and may warn or fail.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-p", "no:cacheprovider", "-q", "--tb=short", "-m", "cuda"]
    counter = TestCounter(section)
    code = int(pytest.main([*options, str(ROOT / "tests")], plugins=[counter]))
    data = section.data
    data.pop("running", None)
    n_left = data["collected"] - counter.n_run
    if counter.is_stopped and n_left:
        data["left_out"].append(f"{n_left} of {data['collected']} tests")
    if data["failures"]:
        section.end("failed", f"{len(data['failures'])} tests failed")
    elif counter.is_stopped and n_left:
        section.end("failed", "time was out before the last test")
    elif code != 0 or data["passed"] == 0:
        section.end("failed", f"pytest ended with exit code {code}, {data['passed']} tests passed")
    else:
        section.end("passed")


class TestCounter:
    """A plugin of pytest that counts, and stops when time is out."""

    __test__ = False

    def __init__(self, section: Section) -> None:
        self.section = section
        self.n_run = 0
        self.is_stopped = False
        section.data |= {"collected": 0, "passed": 0, "skipped": 0, "failures": [], "reasons": {}}
        # What tests found out of the libraries: name, answer, and how many tests had it.
        self.answers: dict[str, dict[str, int]] = section.data.setdefault("answers", {})

    def pytest_collection_finish(self, session: Any) -> None:
        """Count the tests that were chosen."""
        self.session = session
        self.section.data["collected"] = len(session.items)

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file that could not be imported."""
        if report.failed:
            self._note_failure(report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note which test runs, in case that it ends the process."""
        self.section.data["running"] = nodeid
        self.section.save()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test, and note why it failed or was skipped, and what it found out."""
        data = self.section.data
        for name, answer in report.user_properties if report.when == "teardown" else ():
            counts = self.answers.setdefault(name, {})
            counts[answer] = counts.get(answer, 0) + 1
        if report.failed:
            self._note_failure(report)
        elif report.skipped:
            data["skipped"] += 1
            is_pair = isinstance(report.longrepr, tuple)
            reason = report.longrepr[2] if is_pair else getattr(report, "wasxfail", "")
            data["reasons"][reason] = data["reasons"].get(reason, 0) + 1
        elif report.when == "call":
            data["passed"] += 1

    def pytest_runtest_logfinish(self) -> None:
        """Stop when time is out."""
        self.n_run += 1
        if self.section.left <= 0:
            self.is_stopped = True
            self.session.shouldstop = "time is out"

    def _note_failure(self, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = str(report.longrepr) if crash is None else crash.message
        self.section.data["failures"].append(
            {"test": report.nodeid, "message": " ".join(text.split())[:400]}
        )


# name: layer sizes, hidden activation, output, batch size, rows. The last batch is a short one.
NETWORKS: dict[str, tuple[tuple[int, ...], str, str, int, int]] = {
    "small": ((30, 16, 8, 1), "tanh", "sigmoid", 32, 4 * 32 + 20),
    "medium": ((784, 256, 128, 10), "relu", "softmax", 128, 4 * 128 + 50),
}
EPOCHS_OF_FIVE_STEPS = 20
PARAMETERS_BOUND, LOSSES_BOUND = 1e-8, 1e-4


def agreement(section: Section, device: str = GPU) -> None:
    """Train from the same seed on the CPU and on the GPU, and compare."""
    import nnbackend as nb
    from nnbackend.bench.own import own_contestants
    from nnbackend.device import get_device

    section.data |= {
        "bounds": {"parameters": PARAMETERS_BOUND, "losses": LOSSES_BOUND},
        "comparisons": [],
    }
    rows = section.data["comparisons"]
    engines = own_contestants(get_device(device)).values()
    for network in NETWORKS:
        for optimizer in (nb.SGD(0.1), nb.Adam(1e-3)):
            expected = {
                dtype: _trained("cpu", "reference", dtype, network, optimizer)
                for dtype in ("float64", "float32")
            }
            for engine in engines:
                case = {"network": network, "optimizer": optimizer.name, "engine": engine}
                if section.left <= 0:
                    section.data["left_out"].append(", ".join(case.values()))
                    continue
                rows.append({**case, **_compare(expected, device, engine, network, optimizer)})
                print(rows[-1])
                section.save()
    bad = [row for row in rows if not row["passed"]]
    if bad:
        section.end("failed", f"{len(bad)} of {len(rows)} comparisons are out of bounds")
    elif section.data["left_out"]:
        section.end("failed", "time was out before the last comparison")
    else:
        section.end("passed")


def _compare(
    expected: dict[str, Any], device: str, engine: str, network: str, optimizer: Any
) -> dict[str, Any]:
    """Return how far the parameters in float64 and the losses in float32 are from the CPU's."""
    try:
        got = {dtype: _trained(device, engine, dtype, network, optimizer) for dtype in expected}
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding
        return {"passed": False, "reason": f"{type(error).__name__}: {error}"[:400]}
    parameters = max(
        abs(a - b).max() / abs(b).max()
        for a, b in zip(got["float64"][1], expected["float64"][1], strict=True)
    )
    losses = max(
        abs(a - b) / abs(b) for a, b in zip(got["float32"][0], expected["float32"][0], strict=True)
    )
    return {
        "parameters": float(parameters),
        "losses": float(losses),
        "passed": bool(parameters <= PARAMETERS_BOUND and losses <= LOSSES_BOUND),
    }


def _trained(
    device: str, engine: str, dtype: str, network: str, optimizer: Any
) -> tuple[list[float], list[Any]]:
    """Return the losses, and the parameters after 100 steps as NumPy arrays."""
    import numpy as np

    import nnbackend as nb
    from nnbackend.device import get_device

    sizes, hidden, output, batch_size, n_rows = NETWORKS[network]
    net = nb.Network(sizes, hidden=hidden, output=output, dtype=dtype, device=device, seed=0)
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n_rows, sizes[0])).astype(dtype)
    y = rng.integers(0, max(2, sizes[-1]), n_rows)
    history = nb.train(
        net,
        X,
        y,
        optimizer=optimizer,
        epochs=EPOCHS_OF_FIVE_STEPS,
        batch_size=batch_size,
        seed=0,
        engine=engine,
    )
    to_numpy = get_device(device).to_numpy
    return history.loss, [to_numpy(x) for x in (*net.weights, *net.biases)]


# name: sizes, and the layer sizes and the batch size that belong to one of them.
LADDERS: dict[str, tuple[tuple[int, ...], Callable[[int], tuple[tuple[int, ...], int]]]] = {
    "width, at batch 128": (
        tuple(2**i for i in range(4, 13)),
        lambda width: ((width, width, width, 10), 128),
    ),
    "batch size, at width 256": (
        tuple(2**i for i in range(3, 14, 2)),
        lambda batch_size: ((256, 256, 256, 10), batch_size),
    ),
}
BATCHES_PER_EPOCH = 4


def crossover(section: Section, device: str = GPU) -> None:
    """Find the size from which on a training step is shorter on the GPU than on the CPU."""
    from gpu_record import crossing

    engines = {"cpu": _fastest_engine("cpu"), device: _fastest_engine(device)}
    pairs = [dict.fromkeys(engines, "reference")]
    if engines not in pairs:
        pairs.append(engines)
    section.data["ladders"] = []
    for name, (sizes, shape) in LADDERS.items():
        for pair in pairs:
            ladder: dict[str, Any] = {"ladder": name, "engines": list(pair.values()), "rungs": []}
            section.data["ladders"].append(ladder)
            for size in sizes:
                if section.left < 3 * sum(rung["seconds"] for rung in ladder["rungs"][-1:]):
                    section.data["left_out"].append(
                        f"{name}: {size} on {' and '.join(pair.values())}"
                    )
                    continue
                start = time.monotonic()
                cpu, gpu = (
                    _step_seconds(place, engine, *shape(size)) for place, engine in pair.items()
                )
                rung = {"size": size, "cpu": cpu, "gpu": gpu, "seconds": time.monotonic() - start}
                ladder["rungs"].append(rung)
                print(name, *pair.values(), rung)
                ladder["crossing"] = crossing(ladder["rungs"])
                section.save()
    section.end("passed")


def _fastest_engine(device: str) -> str:
    from nnbackend.bench.own import own_contestants
    from nnbackend.device import get_device

    engines = list(own_contestants(get_device(device)).values())
    return "cuda" if "cuda" in engines else engines[0]


def _step_seconds(
    device: str, engine: str, sizes: tuple[int, ...], batch_size: int
) -> dict[str, float]:
    """Return the seconds of a training step, and what a training costs besides its steps."""
    import numpy as np

    import nnbackend as nb
    from nnbackend.device import get_device

    place = get_device(device)
    net = nb.Network(sizes, output="softmax", device=device)
    rng = np.random.default_rng(0)
    n_rows = BATCHES_PER_EPOCH * batch_size
    X = place.place(rng.standard_normal((n_rows, sizes[0]), dtype=np.float32))
    y = place.place(rng.integers(0, sizes[-1], n_rows))

    def seconds(epochs: int) -> float:
        start = time.perf_counter()
        nb.train(net, X, y, epochs=epochs, batch_size=batch_size, engine=engine)
        place.synchronize()
        return time.perf_counter() - start

    def pair(epochs: int) -> tuple[float, float]:
        """Return the seconds of an epoch, and of what is done once per training."""
        short, long = seconds(epochs), seconds(4 * epochs)
        epoch = (long - short) / (3 * epochs)
        return epoch, short - epochs * epoch

    seconds(1)
    epochs, pairs = 1, [pair(1)]
    # Three of the four parts are to last a tenth of a second.
    while pairs[0][0] * 3 * epochs < 0.1:
        epochs = math.ceil(epochs * min(10.0, 0.12 / max(pairs[0][0] * 3 * epochs, 1e-9)))
        pairs = [pair(epochs)]
    if pairs[0][0] * epochs < 0.2:
        pairs += [pair(epochs), pair(epochs)]
    epoch, fixed = map(statistics.median, zip(*pairs, strict=True))
    return {"step": epoch / BATCHES_PER_EPOCH, "fixed": fixed}


def sanitizer(section: Section) -> None:
    """Run the tests of the kernels, and a few trainings, under compute-sanitizer."""
    folder = "/usr/local/cuda/bin"
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=folder)
    if program is None:
        section.end("skipped", f"compute-sanitizer is neither on the PATH nor in {folder}")
        return
    if not (ROOT / KERNEL_TESTS).exists():
        section.end("skipped", f"{KERNEL_TESTS} is not there")
        return
    # Without the pool every array is an allocation, whose ends memcheck knows.
    code = (
        "import sys, cupy, pytest; cupy.cuda.set_allocator(None); "
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', '-q', '-m', 'cuda', *sys.argv[1:]]))"
    )
    tools = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
    section.data["tools"] = {}
    for index, (tool, options) in enumerate(tools.items()):
        log = section.path.with_name(f"{tool}.log")
        command = [program, "--tool", tool, "--error-exitcode", "99", *options]
        with log.open("w") as output:
            exit_code = run_limited(
                [*command, sys.executable, "-c", code, *SANITIZED_TESTS],
                section.left / (len(tools) - index) - ENDING_SECONDS - 1.0,
                output,
                PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
            )
        lines = log.read_text(errors="replace").splitlines()
        log.unlink()
        print(*lines, sep="\n")
        section.data["tools"][tool] = _sanitizer_result(exit_code, lines)
        section.save()
    section.data["left_out"] = [
        tool for tool, result in section.data["tools"].items() if result["status"] == "timed out"
    ]
    bad = [tool for tool, result in section.data["tools"].items() if result["status"] == "failed"]
    section.end("failed" if bad else "passed", f"see {' and '.join(bad)}" if bad else "")


def _sanitizer_result(exit_code: int | None, lines: Sequence[str]) -> dict[str, Any]:
    summaries = [line.strip("= ") for line in lines if "SUMMARY" in line]
    status = {None: "timed out", 0: "passed"}.get(exit_code, "failed")
    summary = summaries[-1] if summaries else " ".join(lines[-3:])[-300:]
    return {"status": status, "exit_code": exit_code, "summary": summary}


QUICK_PEERS = ("torch", "torch-graph", "jax", "jax-scan")
COMPILED = ("torch-compiled",)
# section: device, precision, and who runs besides this package's engines. What torch compiles on a
# GPU takes it up to minutes for each network, so that it runs by itself.
BENCHMARKS: dict[str, tuple[tuple[str, str, Sequence[str]], ...]] = {
    "benchmark": ((GPU, "float32", QUICK_PEERS),),
    "benchmark-tf32": ((GPU, "tf32", QUICK_PEERS),),
    "benchmark-cpu": (("cpu", "float32", ("torch", "jax-scan")),),
    "benchmark-compiled": ((GPU, "float32", COMPILED), (GPU, "tf32", COMPILED)),
}
# What a training costs once is part of a turn: the longer, the less it shows.
ROUNDS, SECONDS_PER_ROUND, PATIENCE_SECONDS = 3, 0.5, 120.0


def benchmark(section: Section, passes: Sequence[tuple[str, str, Sequence[str]]]) -> None:
    """Time training steps against the peers that are installed."""
    from nnbackend.bench.own import own_contestants, own_name
    from nnbackend.device import get_device

    section.data["passes"] = []
    for device, precision, peers in passes:
        engines = own_contestants(get_device(device), precision).values()
        if not engines:
            section.data["left_out"].append(f"{precision} on {device}: no engine has it")
            continue
        own = [] if peers == COMPILED else map(own_name, engines)
        _run_pass(section, device, precision, [*own, *peers])
    failed = [
        f"{entry['contestant']} on {result['workload']['name']}: {entry['reason']}"
        for each in section.data["passes"]
        for result in each["results"]
        for entry in result["entries"]
        if entry["contestant"].startswith("nnbackend") and entry["status"] == "failed"
    ]
    section.end("failed" if failed else "passed", "; ".join(failed)[:400])


def _run_pass(section: Section, device: str, precision: str, names: Sequence[str]) -> None:
    """Run contestants on all workloads, or on as many as there is time for."""
    from nnbackend.bench.race import run_benchmark
    from nnbackend.bench.report import Result
    from nnbackend.bench.text import markdown_table, print_result
    from nnbackend.bench.workload import WORKLOADS, Workload

    found: dict[str, Any] = {"device": device, "precision": precision, "results": []}
    section.data["passes"].append(found)
    results: list[Result] = []

    def workloads() -> Iterator[Workload]:
        last, skipped = 10.0, []
        for workload in WORKLOADS.values():
            if section.left < 1.2 * last:
                skipped.append(workload.name)
                continue
            start = time.monotonic()
            yield workload
            # About half of the first one is start-up.
            last = (time.monotonic() - start) / (1 if results[1:] else 2)
        if skipped:
            section.data["left_out"].append(
                f"{', '.join(skipped)} in {precision} on {device}: {', '.join(names)}"
            )

    def keep(result: Result) -> None:
        print_result(result)
        results.append(result)
        found["results"].append(result.to_dict())
        found["table"] = markdown_table(results)
        section.save()

    report = run_benchmark(
        workloads(),
        contestants=names,
        device_names=[device],
        precision=precision,
        rounds=ROUNDS,
        seconds=SECONDS_PER_ROUND,
        keep_processes=True,
        patience=PATIENCE_SECONDS,
        on_result=keep,
    )
    found["settings"] = report.settings


SECTIONS: dict[str, Callable[[Section], None]] = {
    "hardware": hardware,
    "tests": tests,
    "agreement": agreement,
    "crossover": crossover,
    "sanitizer": sanitizer,
    **{name: partial(benchmark, passes=passes) for name, passes in BENCHMARKS.items()},
}


def main() -> int:
    """Run the section that the command line names."""
    name, path, seconds = sys.argv[1:]
    section = Section(Path(path), float(seconds))
    section.save()
    SECTIONS[name](section)
    return 0 if section.data["status"] != "failed" else 1


if __name__ == "__main__":
    sys.exit(main())

"""Measure what the first training in a fresh process costs: the import, the first, the second.

Each process has an empty home folder, so that it finds nothing that an earlier one has kept.
"""

from __future__ import annotations

import json
import site
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nnbackend.bench.process import contestant_environment

__all__ = ["PROGRAMS", "STARTUP", "Startup", "measure_startup"]

STARTUP = "startup"
ROUNDS = 3
PATIENCE_SECONDS = 300.0

# title: what a user imports, and what a user calls twice.
_FIT = "MLPClassifier((16,), max_iter=20, random_state=0).fit(X, y)"
PROGRAMS = {
    "nnbackend.train": (
        "from nnbackend import Network, train",
        "train(Network((10, 16, 1)), X, y, epochs=20)",
    ),
    "nnbackend.MLPClassifier": ("from nnbackend import MLPClassifier", _FIT),
    "scikit-learn's MLPClassifier": ("from sklearn.neural_network import MLPClassifier", _FIT),
}

_PROGRAM = """
import json, time
start = time.perf_counter()
{imports}
seconds = [time.perf_counter() - start]
import warnings
import numpy as np
warnings.simplefilter("ignore")  # 20 epochs are too few
X = np.sin(np.arange(1000.0)).reshape(100, 10)
y = (X.sum(axis=1) > 0).astype(int)
for _ in range(2):
    start = time.perf_counter()
    {call}
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds))
"""


@dataclass
class Startup:
    """The seconds of one program in fresh processes.

    Attributes
    ----------
    title, imports, call : str
        The program: what it imports, and what it calls twice.
    import_seconds, first_seconds, second_seconds : list of float
        For each round, the seconds of the import, of the first and of the second call.
    reason : str
        Why there are no seconds.
    """

    title: str
    imports: str
    call: str
    import_seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    second_seconds: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def extra_seconds(self) -> float:
        """The median over the rounds of what the first call takes more than the second."""
        pairs = zip(self.first_seconds, self.second_seconds, strict=True)
        return statistics.median(first - second for first, second in pairs)

    def run(self) -> None:
        """Run the program once in a fresh process, and add its seconds."""
        code = _PROGRAM.format(imports=self.imports, call=self.call)
        with tempfile.TemporaryDirectory(prefix="nnbackend-bench-") as home:
            try:
                done = subprocess.run(  # noqa: S603 - our own interpreter
                    [sys.executable, "-c", code],
                    env=_without_caches(contestant_environment(), home),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=PATIENCE_SECONDS,
                )
            except subprocess.TimeoutExpired:
                self.reason = f"no end within {PATIENCE_SECONDS:.0f} s"
                return
        if done.returncode:
            self.reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return
        lists = self.import_seconds, self.first_seconds, self.second_seconds
        for seconds, found in zip(lists, json.loads(done.stdout), strict=True):
            seconds.append(found)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary of JSON values."""
        return {**asdict(self), **({} if self.reason else {"extra_seconds": self.extra_seconds})}


def measure_startup(on_progress: Callable[[str], object] = lambda _: None) -> list[Startup]:
    """Run each of ``PROGRAMS`` in fresh processes, in turns."""
    found = [Startup(title, *program) for title, program in PROGRAMS.items()]
    for turn in range(ROUNDS):
        on_progress(f"{STARTUP}: round {turn + 1} of {ROUNDS}")
        for startup in found:
            if not startup.reason:
                startup.run()
    return found


def _without_caches(environ: Mapping[str, str], home: str) -> dict[str, str]:
    folders = dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME"), home)
    # Packages that were installed for the user lie in the real home folder.
    return {**environ, **folders, "PYTHONUSERBASE": site.getuserbase()}

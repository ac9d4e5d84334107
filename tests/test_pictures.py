"""Pictures: any name is drawn in any style, and one that cannot be costs nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import nnbackend as nb
from nnbackend.bench import picture as benchmark_picture
from nnbackend.training import curves

PNG = b"\x89PNG"


def table(path, *names):
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'xy'[int(a > b)]}" for a, b in rng.normal(size=(60, 2))]
    Path(path).write_text("\n".join([",".join([*names, "kind"]), *rows]))
    return ["train", path, "--target", "kind", "--epochs", "2", "--out", "r", "--json"]


def pictures(out):
    """Return the names of the pictures that a run gives, after a look at them."""
    names = [name for name in json.loads(out)["files"] if name.endswith(".png")]
    for name in names:
        assert Path("r", name).read_bytes().startswith(PNG)
    return names


BOTH = ["curves.png", "decision_boundary.png"]


@pytest.mark.parametrize(
    ("path", "column"),
    [
        ("$\\foo$.csv", "$a_$"),
        ("$.csv", "a$b^$"),
        (os.fsdecode(b"caf\xe9.csv"), "a"),
        ("\x07\n\t.csv", "a\tb"),
    ],
    ids=["formula", "dollar", "no UTF-8", "control"],
)
def test_a_name_is_shown_as_it_stands(path, column, run, caplog):
    code, out, err = run(*table(path, column, "b"))
    assert (code, err, caplog.text) == (0, "", "")
    assert pictures(out) == BOTH


@pytest.mark.slow
@pytest.mark.parametrize("given", ["$\\foo$", "$x^2$ and $y$", "a_b"])
def test_the_text_of_a_picture_is_the_title_and_numbers_stay_powers(given, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    rates, losses = np.geomspace(1e-6, 1, 20).tolist(), np.linspace(2, 1, 20).tolist()
    text = curves.rate_curve(rates, losses, losses, 0.1, given, "svg").decode()
    text = re.sub("<!--.*?-->", "", text, flags=re.DOTALL)
    assert f">{given}<" in text
    assert "mathdefault" not in text
    assert "10^" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "style",
    [
        {"text.usetex": True},
        {"text.usetex": True, "axes.formatter.use_mathtext": True},
        {"text.parse_math": False, "font.family": ["serif"]},
        {"path.sketch": (1, 100, 2), "savefig.bbox": "tight", "savefig.format": "pdf"},
    ],
    ids=", ".join,
)
def test_a_style_that_is_set_for_all_figures_is_neither_a_hindrance_nor_changed(
    style, run, caplog, monkeypatch
):
    for name, value in style.items():
        monkeypatch.setitem(mpl.rcParams, name, value)
    before = dict(mpl.rcParams)
    code, out, err = run(*table("data.csv", "a", "b"))
    assert (code, err, caplog.text) == (0, "", "")
    assert pictures(out) == BOTH
    found = nb.RateFinder([1e-40, 1e-20, 1.0], [3.0, 2.0, 1.0], nb.Adam(), None)
    found.plot("rates.svg")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_backend_that_is_not_installed_is_none_of_its_business(backend, tmp_path):
    code = (
        "import os, sys; from nnbackend import figures; figure = figures.new_figure(); "
        "figure.add_subplot().plot([1, 2]); sys.stdout.buffer.write(figures.render(figure)); "
        "assert os.environ['MPLBACKEND'] == sys.argv[1]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, backend],
        env={**os.environ, "MPLBACKEND": backend},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(PNG)


def test_a_backend_that_is_installed_is_left_to_those_who_draw_windows():
    code = (
        "from nnbackend import figures; figures.new_figure(); "
        "import matplotlib; print(matplotlib.get_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MPLBACKEND": "pdf"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.lower() == "pdf\n"


def fails(*_arguments, **_options):
    raise RuntimeError("no font\nat all")


def test_a_picture_that_fails_costs_a_line_and_nothing_else(run, caplog, monkeypatch):
    arguments = table("data.csv", "a", "b")
    monkeypatch.setattr(curves, "loss_curves", fails)
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert caplog.messages == ["nnbackend: curves.png was not drawn (RuntimeError: no font at all)"]
    assert pictures(out) == ["decision_boundary.png"]
    assert not Path("r/curves.png").exists()
    net = nb.load("r/model.safetensors")
    assert net.feature_names == ("a", "b")
    assert len(json.loads(Path("r/history.json").read_text())["history"]["loss"]) == 2
    assert run("train", "--resume", "r", "--epochs", "3", "--json")[0] == 0
    assert len(json.loads(Path("r/history.json").read_text())["history"]["loss"]) == 3


def test_what_was_learnt_is_on_disk_before_anything_is_drawn(run, monkeypatch):
    class Killed(BaseException):
        """The process is gone while it draws."""

    found = []

    def killed(*_arguments, **_options):
        found.extend(sorted(os.listdir("r")))
        raise Killed

    monkeypatch.setattr(curves, "loss_curves", killed)
    with pytest.raises(Killed):
        run(*table("data.csv", "a", "b"))
    assert {"model.safetensors", "history.json", "held_out.csv"} <= set(found)


def test_a_benchmark_without_its_picture_is_a_benchmark(run, caplog, monkeypatch):
    monkeypatch.setattr(benchmark_picture, "draw", fails)
    own = ["--layers", "3-5-1", "--batch", "8", "--rounds", "1", "--seconds", "0.001"]
    code, out, err = run("bench", *own, "--contestants", "textbook", "--out", "r")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "run folder  r: benchmark.json, benchmark.md"
    assert sorted(os.listdir("r")) == ["benchmark.json", "benchmark.md"]
    assert "benchmark.png was not drawn (RuntimeError: no font at all)" in caplog.text

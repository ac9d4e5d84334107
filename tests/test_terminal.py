"""What the command shows, and where: terminals, files, pipes; full, closed, and of few letters."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nnbackend as nb
from nnbackend.cli import command as cli
from nnbackend.cli.terminal import csv_text, printable, to_json

HOSTILE = ("\x1b[31mred\x07", 'да, "нет"\r\n\u202e')
CYRILLIC = ("да", "нет")


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    """Make models and data in an empty folder."""
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", np.asarray([[-1.0], [1.0], [2.0]]))
    for name, classes in (("m", CYRILLIC), ("hostile", HOSTILE)):
        net = nb.Network([1, 1])
        net.set_parameters([[[1.0]]], [[0.0]])
        net.class_names = classes
        nb.save(net, name)
    Path("data.csv").write_text("x,y\n-1,да\n1,нет\n", encoding="utf-8")


def command(*arguments, encoding="ascii", **options):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "nnbackend", *arguments],
        check=False,
        stderr=options.pop("stderr", subprocess.PIPE),
        env={**os.environ, "PYTHONIOENCODING": encoding},
        **options,
    )


def in_encoding(monkeypatch, encoding, *arguments):
    """Run the command with streams of an encoding; return exit code and bytes of both."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    code = cli.main(arguments)
    return code, *(stream.buffer.getvalue() for stream in streams)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_messages_are_shown_whatever_the_encoding(encoding, monkeypatch):
    def shown(text):
        return text.encode(encoding, "backslashreplace")

    code, out, err = in_encoding(monkeypatch, encoding, "info", "m")
    assert (code, err) == (0, b"")
    assert shown(", ".join(CYRILLIC)) in out
    code, out, err = in_encoding(monkeypatch, encoding, "predict", "нет", "X.npy")
    assert (code, out) == (2, b"")
    assert shown("'нет'") in err
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
@pytest.mark.parametrize("model", ["m", "hostile"])
def test_csv_in_a_pipe_is_what_out_writes(model, encoding, monkeypatch):
    code, out, err = in_encoding(
        monkeypatch, encoding, "predict", model, "X.npy", "--probabilities"
    )
    assert (code, err) == (0, b"")
    with monkeypatch.context() as patch:
        arguments = ["predict", model, "X.npy", "--probabilities", "--out", "p.csv"]
        assert in_encoding(patch, encoding, *arguments)[0] == 0
    assert out == Path("p.csv").read_bytes()
    names = nb.load(model).class_names
    rows = list(csv.reader(io.StringIO(out.decode(), newline="")))
    assert rows[0] == ["prediction", *(f"probability_{name}" for name in names)]
    assert [row[0] for row in rows[1:]] == [names[0], names[1], names[1]]


def test_json_keeps_names_in_any_encoding(monkeypatch):
    code, out, _ = in_encoding(monkeypatch, "ascii", "predict", "hostile", "X.npy", "--json")
    assert code == 0
    assert json.loads(out)["prediction"] == [HOSTILE[0], HOSTILE[1], HOSTILE[1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_names_and_values_come_back_from_csv(names):
    text = csv_text([(name, [name, 0.1]) for name in names])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [names, names, ["0.1"] * len(names)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_what_is_shown_has_nothing_that_a_terminal_obeys(text):
    shown = printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


def on_terminal(*arguments):
    """Return exit code and what a terminal gets to see on stdout and stderr together."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "nnbackend", *arguments], stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                part = os.read(leader, 2**16)
            except OSError:
                break
            if not part:
                break
            seen += part
    os.close(leader)
    return process.returncode, seen.decode()


def test_a_terminal_gets_no_control_characters_from_names():
    code, seen = on_terminal("predict", "hostile", "X.npy", "--probabilities")
    assert code == 0
    assert seen.replace("\r\n", "\n").replace("\n", "").isprintable()
    assert len(seen.splitlines()) == 4
    assert r"\x1b[31mred\x07" in seen


def test_messages_escape_what_files_and_arguments_are_called():
    name = "\x1b[31mx.csv"
    Path(name).write_text("a,b\n1,2\n")
    done = command("train", name, "--target", "c", encoding="utf-8", stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert rb"no column 'c' in \x1b[31mx.csv" in done.stderr
    done = command("info", "--\x1b[31m", encoding="utf-8", stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr


COMMANDS = [
    ["--help"],
    ["train", "--help"],
    ["train", "--dataset", "planar", "--epochs", "1", "--out", "run"],
    ["predict", "m", "X.npy"],
    ["predict", "m", "X.npy", "--json"],
    ["evaluate", "m", "data.csv", "--target", "y"],
    ["info", "m"],
    ["info", "m", "--json"],
]


def to_where(kind):
    """Return a file to write to that fails."""
    if kind == "full":
        return open("/dev/full", "wb")
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "wb")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", ["full", "closed pipe"])
def test_what_cannot_be_written_is_one_sentence_or_quiet(kind, arguments, monkeypatch):
    with to_where(kind) as raw:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "utf-8"))
        error = io.StringIO()
        monkeypatch.setattr(sys, "stderr", error)
        code = cli.main(arguments)
        if kind == "full":
            assert code == 2
            assert "cannot write to standard output (No space left on device)" in error.getvalue()
            assert error.getvalue().count("\n") == 1
        else:
            # As of a tool that SIGPIPE has ended.
            assert (code, error.getvalue()) == (141, "")
        # Nothing is left for Python to write once more at its end.
        sys.stdout.flush()
    assert not Path("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "closed pipe"])
def test_the_end_of_the_process_adds_nothing(kind):
    with to_where(kind) as file:
        done = command("info", "m", stdout=file)
    assert done.returncode == {"full": 2, "closed pipe": 141}[kind]
    assert done.stderr.count(b"\n") == (kind == "full")


@pytest.mark.parametrize("kind", ["full", "closed pipe"])
def test_errors_that_cannot_be_told_are_told_by_the_exit_code(kind):
    with to_where(kind) as file:
        done = command("info", "missing", stdout=subprocess.PIPE, stderr=file)
        assert (done.returncode, done.stdout) == (2, b"")
        done = command("info", "m", "--json", stdout=subprocess.PIPE, stderr=file)
        assert done.returncode == 0
        assert json.loads(done.stdout)["classes"] == list(CYRILLIC)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_training_needs_no_open_stream(closed):
    line = f'"{sys.executable}" -m nnbackend train --dataset diabetes --epochs 1 --out run {closed}'
    done = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert nb.load("run/model.safetensors").n_parameters == 385
    assert json.loads(Path("run/history.json").read_text())["history"]["loss"]


@pytest.mark.parametrize("arguments", [["info", "missing"], ["info", "m"], ["nonsense"]])
def test_exit_codes_are_the_same_with_closed_streams(arguments, monkeypatch):
    codes = []
    for streams in ((io.StringIO(), io.StringIO()), (None, None)):
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, stream)
        try:
            codes.append(cli.main(arguments))
        except SystemExit as stop:
            codes.append(stop.code)
    assert codes[0] == codes[1]


# JSON


def strict(text):
    """Parse JSON, of which NaN and Infinity are no part."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


NUMBERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.text("abc", max_size=3), values)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=st.dictionaries(st.text("xyz", min_size=1, max_size=3), NUMBERS))
def test_json_is_json_and_names_each_number_that_it_cannot_hold(facts):
    found = strict(to_json(facts))
    lost = [name for name, value in leaves(facts, "") if is_lost(value)]
    assert found.pop("not_finite", []) == lost
    for (name, value), (other, back) in zip(leaves(facts, ""), leaves(found, ""), strict=True):
        assert name == other
        assert back is None if is_lost(value) else back == value


def is_lost(value):
    return isinstance(value, float) and not np.isfinite(value)


def leaves(value, name):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from leaves(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from leaves(entry, f"{name}[{index}]")
    else:
        yield name, value

"""The command: runs that are broken off, and taken up again with ``train --resume RUN``."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

import nnbackend as nb
from nnbackend import cli, plots
from nnbackend.checkpoints import CheckpointFolder, Keeper, checkpoint_files

EPOCHS = 8
ARGUMENTS = ["--epochs", EPOCHS, "--patience", 3, "--dropout", 0.2, "--hidden", 8]
TRAIN = ["train", *ARGUMENTS, "--checkpoint-every", 0.5]
ADVICE = "what was learnt is kept: go on with: nnbackend train --resume r\n"


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Leave out what takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "loss_curves", lambda *_, **__: b"")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what a run that was left alone gives."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main([*map(str, TRAIN), "--out", str(folder), "--json"]) == 0
    return outcome(folder)


@pytest.fixture
def broken(run, monkeypatch):
    """Begin a run that a signal breaks off; return its folder."""

    def begin(number=signal.SIGTERM, writes=5, arguments=TRAIN):
        write, count = Keeper.write, []

        def signalled(*given):
            write(*given)
            count.append(1)
            if len(count) == writes:
                signal.raise_signal(number)

        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "write", signalled)
            code, out, err = run(*arguments, "--out", "r", "--json")
        assert code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        return Path("r"), out, err

    return begin


def outcome(folder):
    """Return all of a run that does not depend on the clock."""
    folder = Path(folder)
    history = json.loads((folder / "history.json").read_text())
    del history["history"]["epoch_seconds"], history["samples_per_second"]
    return (folder / "model.safetensors").read_bytes(), history


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_killed_is_gone_on_with_to_the_same_model(number, run, whole):
    command = [sys.executable, "-m", "nnbackend", *map(str, TRAIN), "--out", "r"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        deadline = monotonic() + 60
        while len(checkpoint_files("r/checkpoints")) < 2 and monotonic() < deadline:
            sleep(0.001)
        process.send_signal(number)
        errors = process.stderr.read().decode()
        code = process.wait(60)
    if number == signal.SIGTERM:
        assert code == 143
        assert errors == ADVICE
    else:
        assert (code, errors) == (-signal.SIGKILL, "")
    assert not Path("r/model.safetensors").exists()
    code, out, err = run("train", "--resume", "r", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["run"] == "r"
    assert outcome("r") == whole


@pytest.mark.parametrize("writes", [1, 6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_a_signal_has_ended_is_gone_on_with_to_the_same_model(
    number, writes, broken, run, whole
):
    folder, out, err = broken(number, writes)
    # What was learnt until Ctrl-C is a model at once; SIGTERM has no time for that.
    assert (folder / "model.safetensors").exists() == (number == signal.SIGINT)
    if number == signal.SIGTERM:
        assert (out, err) == ("", ADVICE)
    code, _, err = run("train", "--resume", "r")
    assert (code, err) == (0, "")
    assert outcome("r") == whole


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(broken, run, whole):
    folder, _, _ = broken()
    shutil.rmtree(folder / "checkpoints")
    assert run("train", "--resume", "r")[0] == 0
    assert outcome("r") == whole


def test_going_on_with_a_complete_run_changes_nothing(run, whole):
    run(*TRAIN, "--out", "r")
    code, out, err = run("train", "--resume", "r/", "--json")
    assert (code, err) == (0, "")
    assert outcome("r") == whole
    assert json.loads(out)["history"]["loss"] == whole[1]["history"]["loss"]


def test_more_epochs_extend_a_run_and_are_remembered(run, broken):
    short = ["--dataset", "diabetes", "--patience", 0, "--checkpoint-every", 0.5]
    run("train", *short, "--epochs", 6, "--out", "u")
    run("train", *short, "--epochs", 2, "--out", "s")
    assert run("train", "--resume", "s", "--epochs", 6)[0] == 0
    assert outcome("s") == outcome("u")
    # Broken off once more while it goes on.
    broken(arguments=["train", *short, "--epochs", 3])
    code, out, _ = run("train", "--resume", "r", "--epochs", 6, "--json")
    assert code == 0
    assert len(json.loads(out)["history"]["loss"]) == 6
    assert "--epochs=6" in json.loads(Path("r/command.json").read_text())["arguments"]
    assert outcome("r") == outcome("u")


@pytest.mark.parametrize(
    ("others", "option"),
    [
        (["--hidden", "4"], "--hidden"),
        (["--seed", "1"], "--seed"),
        (["--learning-rate", "0.1"], "--learning-rate"),
        (["--out", "elsewhere"], "--out"),
        (["--dataset", "digits"], "--dataset"),
        (["--drop", "a"], "--drop"),
    ],
)
def test_other_options_are_refused_along_with_it(others, option, broken, run):
    broken()
    before = contents(".")
    code, out, err = run("train", "--resume", "r", *others)
    assert (code, out) == (2, "")
    assert err.startswith(f"nnbackend train: {option}: expected nothing but DATA (where it is now)")
    assert err.count("\n") == 1
    assert contents(".") == before


def test_a_file_is_found_from_anywhere_and_has_to_be_the_same(broken, run, monkeypatch):
    rows = ["a,b,class", *(f"{k % 7},{k % 5},{'xy'[k % 2]}" for k in range(60))]
    Path("data.csv").write_text("\n".join(rows))
    train = ["train", "data.csv", "--target", "class", *TRAIN[1:]]
    run(*train, "--out", "u")
    broken(arguments=train)
    shutil.copytree("r", "changed")
    folder = Path("r").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("train", "--resume", folder)[0] == 0
    monkeypatch.chdir("..")
    assert outcome("r") == outcome("u")
    Path("moved.csv").write_text(Path("data.csv").read_text())
    assert run("train", "--resume", "r", "moved.csv")[0] == 0
    Path("data.csv").write_text("\n".join([*rows[:-1], "9,9,x"]))
    before = contents("changed")
    code, _, err = run("train", "--resume", "changed")
    assert code == 2
    assert "expected to go on with the same standardization" in err
    assert contents("changed") == before
    Path("data.csv").unlink()
    code, _, err = run("train", "--resume", "changed")
    assert code == 2
    assert err.count("\n") == 1
    assert contents("changed") == before


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "model"])
def test_what_is_no_run_is_refused_and_nothing_is_made(kind, run):
    if kind == "empty":
        Path("r").mkdir()
    elif kind == "file":
        Path("r").touch()
    elif kind == "model":
        nb.save(nb.Network([2, 1]), "r")
    before = sorted(Path().rglob("*"))
    code, out, err = run("train", "--resume", "r")
    assert (code, out) == (2, "")
    assert err.startswith("nnbackend train: --resume: expected the folder of a run, got 'r'")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def arguments(*given):
    return json.dumps({"arguments": given}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"arguments": ' + b"[" * 100_000,
        b'{"arguments": 3}',
        b'{"arguments": "text"}',
        b'{"arguments": {"a": 1}}',
        b'{"arguments": [NaN, {}]}',
        arguments("--nonsense"),
        arguments("--help"),
        arguments("--version"),
        arguments("--epochs", "9" * 5000),
        arguments("--epochs", "1e3"),
        arguments("--dataset", "../../secret"),
        arguments("--hidden", "-1"),
        arguments("--", "no-such-file.csv"),
        arguments("--target=y", "--", "a\0b.csv"),
        arguments("--target=y", "--", "\ud800.csv"),
        arguments("--target=y", "--", "/dev/null"),
        arguments("a", "b", "c"),
    ],
    ids=lambda content: content[:40].decode("latin1"),
)
def test_a_hostile_command_is_refused_in_a_sentence(content, run):
    Path("r").mkdir()
    Path("r/command.json").write_bytes(content)
    code, out, err = run("train", "--resume", "r")
    assert (code, out) == (2, "")
    assert err.startswith("nnbackend train: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert contents("r") == {Path("r/command.json"): content}


def test_a_command_does_not_choose_where_things_are_written(broken, run, whole):
    broken()
    facts = json.loads(Path("r/command.json").read_text())
    facts["arguments"] += ["--out=elsewhere", "--resume=elsewhere", "--checkpoint-every=1e9"]
    Path("r/command.json").write_text(json.dumps(facts))
    assert run("train", "--resume", "r")[0] == 0
    assert outcome("r") == whole
    assert not Path("elsewhere").exists()


def test_a_run_that_is_being_trained_is_not_gone_on_with(broken, run):
    broken()
    folder = CheckpointFolder("r/checkpoints")
    try:
        code, _, err = run("train", "--resume", "r")
    finally:
        folder.close()
    assert code == 2
    assert "no other training is using" in err


def test_damaged_checkpoints_are_passed_over(broken, run, whole, caplog):
    broken()
    files = checkpoint_files("r/checkpoints")
    Path(files[0]).write_bytes(Path(files[0]).read_bytes()[:-100])
    assert run("train", "--resume", "r")[0] == 0
    assert "passing over a damaged checkpoint" in caplog.text
    assert outcome("r") == whole
    for path in checkpoint_files("r/checkpoints"):
        Path(path).write_bytes(b"")
    before = contents("r/checkpoints")
    code, _, err = run("train", "--resume", "r")
    assert code == 2
    assert "that are damaged" in err
    assert contents("r/checkpoints") == before


def test_an_unfinished_run_predicts_with_its_newest_checkpoint(broken, run, whole):
    broken()
    (newest, *_) = checkpoint_files("r/checkpoints")
    run(*TRAIN, "--out", "u")
    data = "u/held_out.csv"
    for command in (
        ["predict", data, "--probabilities"],
        ["evaluate", data, "--target", "target"],
        ["info", "--json"],
        ["export", "model.onnx", "--json"],
    ):
        if command[0] == "export":
            pytest.importorskip("onnx")
        name, *rest = command
        expected = run(name, newest, *rest)
        assert expected[0] == 0
        assert run(name, "r", *rest) == expected
        assert run(name, "r/checkpoints", *rest) == expected
    assert run("predict", "u", data) == run("predict", "u/model.safetensors", data)
    run("train", "--resume", "r")
    # Finished, its model counts, not the newest checkpoint.
    assert Path("r/model.safetensors").read_bytes() == whole[0]
    assert run("predict", "r", data) == run("predict", "u", data)


@pytest.mark.parametrize(
    "given",
    [
        ["--hidden", "x"],
        ["--epochs", "0"],
        ["--dropout", "2"],
        ["--loss", "nope"],
        ["--engine", "nope"],
        ["--checkpoint-every", "soon"],
        ["--checkpoint-every", "0"],
        ["--checkpoint-every=-1min"],
        ["--checkpoint-every", "1e400"],
        ["--checkpoint-every", "5 parsecs"],
        ["--patience", "-1"],
        ["no-such-file.csv"],
        ["--resume", ""],
        ["--resume", "no-such-run", "--epochs", "0"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("out", [[], ["--out", "r"]], ids=["", "out"])
def test_bad_input_leaves_no_folder_behind(given, out, run):
    if "--resume" in given:
        out = []
    code, _, err = run("train", *given, *out)
    assert code == 2
    assert err.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_within_its_first_epoch_is_gone_on_with(number, broken, run, whole):
    arguments = ["train", *ARGUMENTS, "--checkpoint-every", 0.01]
    folder, _, _ = broken(number, writes=1, arguments=arguments)
    assert not (folder / "model.safetensors").exists()
    (newest, *_) = checkpoint_files(folder / "checkpoints")
    assert newest.endswith("checkpoint-000000000002.safetensors")
    assert run("train", "--resume", "r")[0] == 0
    assert outcome("r") == whole

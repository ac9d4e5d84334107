"""The command: runs that are broken off, and taken up again with ``train --resume RUN``."""

import contextlib
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
from nnbackend.cli import command as cli
from nnbackend.cli.run_folder import RunFolder
from nnbackend.training import curves
from nnbackend.training.checkpoint import read_training
from nnbackend.training.checkpoint_folder import CheckpointFolder, Keeper, checkpoint_files

EPOCHS = 8
ARGUMENTS = ["--epochs", EPOCHS, "--patience", 3, "--dropout", 0.2, "--hidden", 8]
TRAIN = ["train", *ARGUMENTS, "--checkpoint-every", 0.5]
ADVICE = "what was learnt is kept: go on with: nnbackend train --resume r\n"


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Leave out what takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "loss_curves", lambda *_, **__: b"")
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


@pytest.mark.slow
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


@pytest.mark.parametrize("engine", ["native", "cpu"])
def test_a_run_with_either_name_of_the_engine_is_gone_on_with(engine, broken, run, whole):
    folder, *_ = broken(arguments=[*TRAIN, "--engine", engine])
    assert f'"engine": "{engine}"' in (folder / "command.json").read_text()
    assert run("train", "--resume", "r")[0] == 0
    model, history = outcome("r")
    # The default is the same engine.
    assert (model, history["history"]) == (whole[0], whole[1]["history"])


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
    assert json.loads(Path("r/command.json").read_text())["options"]["epochs"] == 6
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
    assert "expected to go on with the same data" in err
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


def options(*given):
    return json.dumps({"options": given[0] if given else None}).encode()


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
        options(),
        options([1]),
        options({"nonsense": 1}),
        options({"out": "elsewhere"}),
        options({"checkpoint": "elsewhere"}),
        options({"callbacks": "print"}),
        options({"epochs": "3"}),
        options({"epochs": 1e3}),
        options({"epochs": True}),
        options({"hidden": "8"}),
        options({"hidden": [8.0]}),
        options({"hidden": [-1]}),
        options({"hidden": [10**30]}),
        options({"patience": []}),
        options({"patience": -1}),
        options({"seed": None}),
        options({"seed": -1}),
        options({"loss": 3}),
        options({"optimizer": None}),
        options({"optimizer": {"class": "SGD"}}),
        options({"learning_rate": "1"}),
        options({"schedule": 1}),
        options({"early_stopping": 3}),
        options({"device": None}),
        options({"dtype": 3.0}),
        options({"batch_size": "full"}),
        options({"validation": float("nan")}),
        options({"held_out": None}),
        options({"task": "regression"}),
        options({"dataset": "../../secret"}),
        options({"data": 3}),
        options({"data": "no-such-file.csv", "target": "y"}),
        options({"data": "/dev/null", "target": "y", "task": "clustering"}),
        options({"data": "a\0b.csv", "target": "y", "drop": "a"}),
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
    elsewhere = ["--out=elsewhere", "--resume=elsewhere", "--checkpoint-every=1e9"]
    stored = arguments(*map(str, ARGUMENTS), *elsewhere)  # as version 0.1.0 wrote them
    Path("r/command.json").write_bytes(stored)
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


@pytest.mark.slow
def test_a_finished_run_that_goes_on_and_is_killed_predicts_with_its_newest_checkpoint(run):
    arguments = [*TRAIN[:-1], 1, "--patience", 0]
    run(*arguments, "--out", "r")
    data = "r/held_out.csv"
    (last, *_) = checkpoint_files("r/checkpoints")
    before = run("predict", "r", data, "--probabilities")
    assert before == run("predict", "r/model.safetensors", data, "--probabilities")
    command = [sys.executable, "-m", "nnbackend", "train", "--resume", "r", "--epochs", "1000000"]
    command += ["--checkpoint-every", "50"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        deadline = monotonic() + 60
        while checkpoint_files("r/checkpoints")[0] == last and monotonic() < deadline:
            sleep(0.001)
        process.terminate()
        assert process.stderr.read().decode() == ADVICE
        assert process.wait(60) == 143
    (newest, *_) = checkpoint_files("r/checkpoints")
    assert newest > last
    expected = run("predict", newest, data, "--probabilities")
    assert expected != before
    assert run("predict", "r", data, "--probabilities") == expected
    target = ["--target", "target", "--json"]
    assert run("evaluate", "r", data, *target) == run("evaluate", newest, data, *target)


@pytest.fixture
def ended(run, monkeypatch):
    """Return what goes on with a run and is ended by SIGTERM at the n-th checkpoint."""

    def go_on(writes, *given):
        write, count = Keeper.write, []

        def signalled(*parts):
            count.append(1)
            if len(count) > writes:
                raise SystemExit(143)
            write(*parts)

        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "write", signalled)
            assert run("train", "--resume", "r", "--checkpoint-every", 1, *given)[0] == 143

    return go_on


def test_which_model_a_run_stands_for_follows_its_training(run, ended):
    # With early stopping the model has the parameters of an epoch before the last checkpoint's.
    train = ["train", "--dataset", "diabetes", "--hidden", 32, "--learning-rate", 0.05]
    run(*train, "--epochs", 8, "--patience", 50, "--checkpoint-every", 1, "--out", "r")
    model = "r/model.safetensors"
    (last, *_) = checkpoint_files("r/checkpoints")
    assert (nb.load(last).parameters != nb.load(model).parameters).any()
    first = Path(model).read_bytes()

    def stands_for():
        out = run("predict", "r", "r/held_out.csv")
        files = [model, *checkpoint_files("r/checkpoints")]
        return [file for file in files if run("predict", file, "r/held_out.csv") == out]

    assert stands_for() == [model]
    # Nothing is lost or older if it is killed before it has written anything.
    ended(0, "--epochs", 40)
    assert stands_for() == [model]
    assert Path(model).read_bytes() == first
    ended(1, "--epochs", 40)
    (newest, *_) = checkpoint_files("r/checkpoints")
    assert newest > last
    assert stands_for() == [newest]
    # Finished, its model counts again; the time of the files' last change does not.
    assert run("train", "--resume", "r", "--epochs", 12)[0] == 0
    os.utime(model, (0, 0))
    assert stands_for() == [model]


def test_a_run_of_an_earlier_version_is_told_by_its_epochs(run, ended):
    run("train", "--dataset", "diabetes", "--epochs", 3, "--checkpoint-every", 1, "--out", "r")
    facts = json.loads(Path("r/command.json").read_text())
    del facts["outcome"]
    Path("r/command.json").write_text(json.dumps(facts))
    given = ["r/held_out.csv", "--json"]
    assert run("predict", "r", *given) == run("predict", "r/model.safetensors", *given)
    ended(1, "--epochs", 40)
    (newest, *_) = checkpoint_files("r/checkpoints")
    assert run("predict", "r", *given) == run("predict", newest, *given)


# Runs that meet in a folder

# Waits at a place until it may go on: until a file is there.
WAITING = """
import sys, time
from pathlib import Path
import {module} as module
from nnbackend import cli

place = module.{place}

def waiting(*given, **options):
    Path("waiting").touch()
    while not Path("go").exists():
        time.sleep(0.001)
    return place(*given, **options)

module.{place} = waiting
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def started():
    """Return what starts a process, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(*command):
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def wait_for(is_so):
    deadline = monotonic() + 60
    while not is_so():
        assert monotonic() < deadline
        sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "place"),
    [("nnbackend.io.locks", "_locked"), ("nnbackend.cli.run_folder", "write_atomically")],
)
def test_of_two_runs_with_one_folder_the_refused_one_leaves_the_other_whole(
    module, place, started, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    train = ["train", *ARGUMENTS, "--engine", "reference", "--checkpoint-every", 1, "--out", "r"]
    first = started("-c", WAITING.format(module=module, place=place), *train)
    wait_for(Path("waiting").exists)
    second = started("-m", "nnbackend", *train, "--epochs", 1_000_000, "--patience", 0)
    # The second one is refused at once, or has the folder to itself by now.
    wait_for(lambda: second.poll() is not None or checkpoint_files("r/checkpoints"))
    Path("go").touch()
    errors = first.communicate(timeout=60)[1]
    has_won = first.returncode == 0
    if has_won:
        errors = second.communicate(timeout=60)[1]
        assert second.returncode == 2
    else:
        assert first.returncode == 2
        second.terminate()
        assert second.communicate(timeout=60)[1] == ADVICE
    epochs = read_training(checkpoint_files("r/checkpoints")[0])[1]["n_epochs"]
    assert run("train", "--resume", "r", "--epochs", epochs + 1)[0] == 0
    assert errors == (
        "nnbackend train: --out: expected a folder that no other run is using, got 'r'; choose "
        "another\n"
    )
    assert not list(Path("r").rglob(".*"))


@pytest.mark.parametrize("step", [12, 11 * EPOCHS], ids=["in between", "the last"])
def test_a_run_whose_folder_is_anothers_by_now_writes_nothing_there(step, run, monkeypatch):
    write, others = CheckpointFolder.write, []

    def meanwhile(folder, steps_done, content):
        write(folder, steps_done, content)
        if steps_done == step:
            shutil.rmtree("r")
            others.append(RunFolder.made("r", "other"))
            others[0].write_command({"epochs": 1})
            others.append(CheckpointFolder(others[0].checkpoints))
            others.append(contents("r"))

    monkeypatch.setattr(CheckpointFolder, "write", meanwhile)
    code, out, err = run(*TRAIN, "--patience", 0, "--out", "r", "--json")
    assert (code, out) == (2, "")
    assert err == (
        "nnbackend train: the run folder 'r' was deleted, or is another run's by now: nothing more "
        "is written there; begin anew\n"
    )
    folder, checkpoints, before = others
    assert contents("r") == before
    # It is still the other's.
    assert run(*TRAIN, "--out", "r")[0] == 2
    checkpoints.close()
    folder.close()


def test_a_run_without_a_folder_ends_at_its_next_checkpoint(run, monkeypatch):
    write, count = CheckpointFolder.write, []

    def meanwhile(*given):
        write(*given)
        count.append(1)
        if len(count) == 2:
            shutil.rmtree("r")

    monkeypatch.setattr(CheckpointFolder, "write", meanwhile)
    code, out, err = run(*TRAIN, "--out", "r", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("nnbackend train: the run folder 'r' was deleted")
    assert len(count) == 2
    assert os.listdir() == []


def test_a_benchmark_does_not_share_its_folder(run):
    folder = RunFolder.made("r", "other")
    own = ["--layers", "3-5-1", "--batch", "8", "--rounds", "1", "--seconds", "0.001"]
    code, _, err = run("bench", *own, "--contestants", "textbook", "--out", "r")
    assert code == 2
    assert "--out: expected a folder that no other run is using" in err
    assert os.listdir("r") == [".lock"]
    folder.close()


def test_what_a_killed_run_left_half_written_goes_with_the_next_that_goes_on(broken, run):
    broken()
    for folder in ("r", "r/checkpoints"):
        Path(folder, ".0123456789abcdef.tmp").write_bytes(b"half")
        Path(folder, ".lock").touch()
    assert run("train", "--resume", "r")[0] == 0
    assert not list(Path("r").rglob(".*"))
    # Nor do they make a folder that was to be used one that holds files.
    Path("s").mkdir()
    Path("s/.0123456789abcdef.tmp").touch()
    Path("s/.lock").touch()
    assert run(*TRAIN, "--out", "s")[0] == 0

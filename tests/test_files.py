"""What is written over: links, modes and owners stay, pipes and devices get the content."""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

import nnbackend as nb
from nnbackend.errors import InputError

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def open_folder():
    """Return a folder that every user can enter and write, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextlib.contextmanager
def unprivileged():
    """Be a user to whom modes apply."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def save(path):
    """Save a network; return the content that a new file gets."""
    net = nb.Network([2, 3, 1])
    nb.save(net, path)
    with tempfile.NamedTemporaryFile() as file:
        nb.save(net, file.name)
        return Path(file.name).read_bytes()


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o664, 0o755])
def test_the_mode_of_what_is_replaced_stays(permissions, tmp_path):
    path = tmp_path / "model"
    path.touch()
    path.chmod(permissions)
    content = save(path)
    assert mode(path) == permissions
    assert path.read_bytes() == content


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_open_gives(umask, tmp_path):
    before = os.umask(umask)
    try:
        (tmp_path / "expected").open("x").close()
        save(tmp_path / "model")
    finally:
        os.umask(before)
    assert mode(tmp_path / "model") == mode(tmp_path / "expected")


def test_a_private_file_is_private_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.touch(0o600)
    seen = []
    fsync = os.fsync

    def look(descriptor):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    created = []
    open_file = os.open

    def opened(name, flags, *arguments, **options):
        descriptor = open_file(name, flags, *arguments, **options)
        if flags & os.O_CREAT:
            created.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "fsync", look)
    monkeypatch.setattr(os, "open", opened)
    nb.save(nb.Network([2, 1]), path)
    assert (created, seen[0]) == ([0o600], 0o600)


@as_root
def test_the_owner_of_what_is_replaced_stays(tmp_path):
    path = tmp_path / "model"
    path.touch()
    os.chown(path, 1234, 4321)
    save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


@as_root
def test_a_group_that_cannot_be_kept_leaves_its_rights_to_no_other(open_folder):
    path = open_folder / "model"
    path.touch()
    path.chmod(0o666)
    os.chown(path, 1234, 4321)
    path.chmod(0o662)
    with unprivileged():
        nb.save(nb.Network([2, 1]), path)
    assert path.stat().st_uid == NOBODY
    assert mode(path) == 0o622


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("is_there", [True, False], ids=["", "dangling"])
def test_a_link_is_followed_and_stays(steps, is_there, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "model"
    if is_there:
        target.touch()
        target.chmod(0o640)
    monkeypatch.chdir(tmp_path)
    links = ["first", "second"][:steps]
    for link, its_target in zip(links, [*links[1:], "elsewhere/model"], strict=True):
        os.symlink(its_target, link)
    content = save("first")
    assert all(os.path.islink(link) for link in links)
    assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert not is_there or mode(target) == 0o640


@pytest.mark.parametrize("kind", ["loop", "link into no folder", "name of a folder"])
def test_a_path_that_leads_nowhere_is_refused_in_a_sentence(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "first"
    if kind == "loop":
        os.symlink("second", "first")
        os.symlink("first", "second")
    elif kind == "link into no folder":
        os.symlink("nowhere/model", "first")
    else:
        path = "first/"
    before = sorted(os.listdir())
    with pytest.raises(InputError) as caught:
        save(path)
    assert str(caught.value).startswith("path: ")
    assert repr(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir()) == before


def test_the_other_names_of_a_file_keep_the_old_content(tmp_path):
    (tmp_path / "model").write_bytes(b"old")
    os.link(tmp_path / "model", tmp_path / "backup")
    content = save(tmp_path / "model")
    assert (tmp_path / "backup").read_bytes() == b"old"
    assert (tmp_path / "model").read_bytes() == content


@pytest.fixture
def device(tmp_path):
    """Return what makes devices of a test's own: those of /dev are not to be risked."""
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")

    def make(name, number):
        path = tmp_path / name
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, number))
            path.open("wb").close()
        except PermissionError:
            pytest.skip("devices cannot be made here")
        return path

    return make


def test_a_device_is_written_to(device, tmp_path):
    null = device("null", 3)
    save(null)
    (tmp_path / "link").symlink_to("null")
    save(tmp_path / "link")
    assert stat.S_ISCHR(null.stat().st_mode)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "null"]


def test_a_device_that_is_full_is_told(device):
    full = device("full", 7)
    with pytest.raises(InputError, match=r"path: cannot write .*No space left"):
        save(full)
    assert stat.S_ISCHR(full.stat().st_mode)


@pytest.mark.parametrize("is_early", [True, False], ids=["reader waits", "reader comes late"])
def test_a_pipe_is_written_to_whenever_its_reader_comes(is_early, tmp_path, caplog):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    # More than a pipe holds.
    net = nb.Network([300, 300, 1])
    nb.save(net, tmp_path / "file")
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    writer = threading.Thread(target=nb.save, args=(net, path))
    first, second = (reader, writer) if is_early else (writer, reader)
    first.start()
    if not is_early:
        while not caplog.records:
            writer.join(0.01)
            assert writer.is_alive()
    second.start()
    for thread in (first, second):
        thread.join(60)
    assert got == [(tmp_path / "file").read_bytes()]
    assert stat.S_ISFIFO(path.stat().st_mode)
    if not is_early:
        assert "waiting for a program to read from the pipe" in caplog.text


def test_a_pipe_whose_reader_goes_is_told(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    threading.Timer(0.2, os.close, [reader]).start()
    with pytest.raises(InputError, match=r"path: cannot write .*Broken pipe"):
        nb.save(nb.Network([300, 300, 1]), path)


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], check=True, **options)


SAVE_TO_STDOUT = "import nnbackend as nb; nb.save(nb.Network([2, 3, 1]), 'stdout')"


@pytest.mark.parametrize("flags", ["wb", "ab"], ids=[">", ">>"])
def test_standard_output_gets_the_content_after_what_it_got_before(flags, tmp_path):
    content = save(tmp_path / "model")
    # As /dev/stdout is.
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    path = tmp_path / "out"
    path.write_bytes(b"log\n")
    with path.open(flags) as out:
        out.write(b"before\n")
        out.flush()
        python(f"{SAVE_TO_STDOUT}; print('after')", stdout=out, cwd=tmp_path)
    start = b"log\n" if flags == "ab" else b""
    assert path.read_bytes() == start + b"before\n" + content + b"after\n"
    assert python(SAVE_TO_STDOUT, stdout=subprocess.PIPE, cwd=tmp_path).stdout == content


def test_a_read_only_file_is_refused(open_folder):
    path = open_folder / "model"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with unprivileged(), pytest.raises(InputError, match=r"path: cannot write .*Permission"):
        nb.save(nb.Network([2, 1]), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in open_folder.iterdir()] == ["model"]


def test_a_file_that_its_folder_keeps_is_refused_rather_than_written_in_part(open_folder):
    path = open_folder / "model"
    path.write_bytes(b"old")
    path.chmod(0o666)
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(InputError) as caught:
        nb.save(nb.Network([2, 1]), path)
    open_folder.chmod(0o777)
    assert "its folder does not let it be replaced" in str(caught.value)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["link", "pipe", "private file"])
def test_predictions_go_where_the_path_leads(kind, run):
    nb.save(nb.Network([2, 3, 1]), "model")
    np.save("X.npy", np.random.default_rng(0).normal(size=(5, 2)))
    run("predict", "model", "X.npy", "--out", "expected.csv")
    out, got = Path("out.csv"), []
    reader = threading.Thread(target=lambda: got.append(out.read_text()))
    if kind == "link":
        out.symlink_to("target.csv")
    elif kind == "pipe":
        os.mkfifo(out)
        reader.start()
    else:
        out.touch(0o600)
    assert run("predict", "model", "X.npy", "--out", out) == (0, "", "")
    if kind != "pipe":
        reader.start()
    reader.join(60)
    assert got == [Path("expected.csv").read_text()]
    assert kind != "link" or out.is_symlink()
    assert kind != "private file" or mode(out) == 0o600


def test_an_onnx_file_goes_through_devices_and_not_through_links_to_others(device, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("ndonnx")
    net = nb.Network([2, 1])
    null = device("null", 3)
    nb.export_onnx(net, null)
    assert stat.S_ISCHR(null.stat().st_mode)
    (tmp_path / "notes.txt").write_text("kept")
    (tmp_path / "link.onnx").symlink_to("notes.txt")
    with pytest.raises(InputError, match="which exists"):
        nb.export_onnx(net, tmp_path / "link.onnx")
    assert (tmp_path / "notes.txt").read_text() == "kept"

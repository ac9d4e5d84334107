"""The native library: built by pip on any machine, chosen for the processor, refused if damaged."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nnbackend
from nnbackend.engines.native import compiling, library
from nnbackend.errors import InputError

ROOT = Path(nnbackend.__file__).parent.parent
NATIVE = Path(compiling.FOLDER)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder with the libraries of these sources."""
    if library._choose(None).library is not None:
        return NATIVE
    folder = tmp_path_factory.mktemp("compiled")
    compiling.compile_libraries(str(folder))
    return folder


@pytest.fixture
def folder(compiled, tmp_path, monkeypatch):
    """A copy of the libraries, in which the loader looks."""
    copy = tmp_path / "libraries"
    copy.mkdir()
    for path in [*compiled.glob("libnnbackend-*"), compiled / compiling.MANIFEST]:
        shutil.copy(path, copy)
    monkeypatch.setenv("NNBACKEND_LIBRARY_FOLDER", str(copy))
    monkeypatch.delenv("NNBACKEND_VARIANT", raising=False)
    return copy


def fresh_process(code, **environment):
    """Return what a new Python prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],  # -P: not from the current folder
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- Which one is loaded ---


def flags_of_the_processor():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        pytest.skip("the system does not list the processor's features")
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    if found is None:
        pytest.skip("not an x86-64 processor")
    return set(found[1].split())


@pytest.mark.usefixtures("folder")
def test_the_fastest_variant_that_the_kernel_says_the_processor_has_is_loaded():
    flags = flags_of_the_processor()
    expected = ["x86-64-v2"]
    if {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"} <= flags:
        expected.append("x86-64-v3")
        if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags:
            expected.append("x86-64-v4")
    installed = list(library._installed(os.environ["NNBACKEND_LIBRARY_FOLDER"]))
    expected = [name for name in expected if name in installed]
    assert list(library.libraries()) == expected
    assert library.variant() == expected[-1]
    assert library.library() is library.libraries()[expected[-1]]
    assert library.why_missing() == ""


@pytest.mark.usefixtures("folder")
def test_the_environment_chooses_a_variant(monkeypatch):
    for name, loaded in library.libraries().items():
        monkeypatch.setenv("NNBACKEND_VARIANT", name)
        assert (library.variant(), library.library()) == (name, loaded)
        assert f"libnnbackend-{name}." in loaded._name
    monkeypatch.setenv("NNBACKEND_VARIANT", "none")
    assert (library.variant(), library.library()) == (None, None)
    assert library.why_missing() == "NNBACKEND_VARIANT is 'none'; unset it to use the library"
    assert library.libraries()


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(folder, monkeypatch):
    manifest = folder / compiling.MANIFEST
    kept, *others = library.libraries()
    for wanted in ["x86-64-v9", "fastest", *others]:
        manifest.write_text(
            "".join(
                line
                for line in manifest.read_text().splitlines(keepends=True)
                if line.split()[0] not in others
            )
        )
        monkeypatch.setenv("NNBACKEND_VARIANT", wanted)
        with pytest.raises(
            InputError,
            match=rf"^NNBACKEND_VARIANT: expected a variant .* \({kept} or none\), got '{wanted}'",
        ):
            library.library()


def test_a_processor_without_a_variant_does_not_get_it(folder, monkeypatch):
    # The kernel of a processor that lacks AVX-512, or hides it from a guest.
    names = list(library.libraries())
    if names == ["generic"]:
        pytest.skip("there is one variant only")

    class OfLevel2:
        def nnbackend_level(self):
            return 2

    first = next(iter(library._installed(str(folder)).values()))[0]
    monkeypatch.setitem(library._LOADED, os.path.join(folder, first), OfLevel2())
    monkeypatch.setattr(library, "_CHOICES", {})
    assert library.variant() == "x86-64-v2"
    monkeypatch.setenv("NNBACKEND_VARIANT", "x86-64-v4")
    with pytest.raises(InputError, match=r"\(x86-64-v2 or none\), got 'x86-64-v4'"):
        library.library()


# --- Damage ---


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_to_its_header(path):
    path.write_bytes(path.read_bytes()[:64])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def text(path):
    path.write_text("import os; os.abort()")


def folder_of_its_name(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [truncated, cut_to_its_header, emptied, flipped, text, folder_of_its_name, Path.unlink],
)
def test_a_damaged_library_is_not_loaded_and_the_reason_says_how_to_mend_it(folder, damage):
    for path in folder.glob("libnnbackend-*"):
        damage(path)
    assert library.library() is None
    assert library.variant() is None
    assert library.libraries() == {}
    assert re.match(
        r"the native library cannot be loaded from libnnbackend-\S+ \(.+\); unset "
        r"NNBACKEND_LIBRARY_FOLDER$",
        library.why_missing(),
    )
    assert "\n" not in library.why_missing()


def test_a_damaged_variant_is_not_replaced_by_a_slower_one(folder):
    # It would give other bits for the same seed, and nobody would hear why.
    fastest = list(library.libraries())[-1]
    (path,) = folder.glob(f"libnnbackend-{fastest}.*")
    library._LOADED.pop(str(path))
    flipped(path)
    assert library.library() is None
    assert path.name in library.why_missing()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is of version unknown of nnbackend, and this is "),
        (b"\xff\xfe\x00", r"cannot be loaded from libraries.txt \(.*codec"),
        (b"nonsense\n", r"cannot be loaded from libraries.txt \("),
        (b"version 0.0.1\n", "is of version 0.0.1 of nnbackend, and this is "),
        (b"failed cc: no space left\n", r"could not be compiled .* \(cc: no space left\); install"),
    ],
)
def test_a_manifest_that_is_damaged_or_of_another_version_is_refused(folder, content, reason):
    (folder / compiling.MANIFEST).write_bytes(content)
    assert library.library() is None
    assert re.search(reason, library.why_missing())


def test_a_manifest_that_lost_its_libraries_is_refused(folder):
    manifest = folder / compiling.MANIFEST
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:3]))
    assert library.library() is None
    assert "it names no libraries" in library.why_missing()


def test_a_library_that_is_older_than_its_sources_is_refused(folder):
    manifest = folder / compiling.MANIFEST
    manifest.write_text(re.sub("sources .*", "sources 0123abcd", manifest.read_text()))
    assert library.library() is None
    assert library.why_missing().startswith("the native library is older than its sources; ")


def test_a_library_that_was_never_compiled_says_what_compiles_it(folder, monkeypatch):
    for path in folder.iterdir():
        path.unlink()
    assert library.library() is None
    monkeypatch.delenv("NNBACKEND_LIBRARY_FOLDER")
    monkeypatch.setattr(library, "FOLDER", str(folder))
    monkeypatch.setattr(library, "_CHOICES", {})
    assert library.why_missing() == (
        "the native library has not been compiled; run: pip install --no-deps --editable "
        + shlex.quote(str(ROOT))
    )


@pytest.mark.usefixtures("folder")
def test_info_says_which_variant_is_loaded_or_why_none(run, monkeypatch):
    assert json.loads(run("info", "--json")[1])["native library"] == library.variant()
    monkeypatch.setenv("NNBACKEND_VARIANT", "none")
    assert json.loads(run("info", "--json")[1])["native library"] == library.why_missing()
    monkeypatch.setenv("NNBACKEND_VARIANT", "fastest")
    code, out, err = run("info")
    assert (code, out) == (2, "")
    assert err.startswith("nnbackend info: NNBACKEND_VARIANT: expected a variant that is installed")


# --- Processes and threads ---


@pytest.mark.usefixtures("folder")
def test_importing_loads_no_library_and_training_no_compiler():
    code = (
        "import sys\n"
        "started, written = [], []\n"
        "def look(event, arguments):\n"
        "    if event in ('subprocess.Popen', 'os.posix_spawn', 'os.exec', 'os.system'):\n"
        "        started.append(arguments)\n"
        "    if event == 'open' and arguments[2] & 3 and arguments[0] != '/dev/null':\n"
        "        written.append(arguments[0])\n"
        "sys.addaudithook(look)\n"
        "import nnbackend as nb\n"
        "maps = lambda: open('/proc/self/maps').read()\n"
        "assert 'libnnbackend' not in maps()\n"
        "from nnbackend.engines.native import library\n"
        "assert 'libnnbackend' not in maps()\n"
        "net = nb.Network([2, 3, 1], device='cpu')\n"
        "nb.train(net, [[0.0, 1.0], [1.0, 0.0]], [0, 1], epochs=1)\n"
        "net.predict([[0.0, 1.0]])\n"
        "assert 'llvm' not in maps().lower()\n"
        "assert library.library() is not None\n"
        "assert 'libnnbackend' in maps()\n"
        "print(started, written)\n"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("the system does not list what a process has loaded")
    assert fresh_process(code, PYTHONDONTWRITEBYTECODE="1") == "[] []\n"


@pytest.mark.usefixtures("folder")
def test_threads_that_load_at_once_get_one_library():
    code = (
        "import sys, threading\n"
        "from nnbackend.engines.native import library\n"
        "sys.setswitchinterval(1e-6)\n"
        "found, barrier = [], threading.Barrier(16)\n"
        "def load():\n"
        "    barrier.wait()\n"
        "    found.append(library.library())\n"
        "threads = [threading.Thread(target=load) for _ in range(16)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(len(set(map(id, found))), None in found)\n"
    )
    assert fresh_process(code) == "1 False\n"


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_process_that_is_forked_while_a_thread_loads_can_load_too():
    code = (
        "import os, threading, time\n"
        "from nnbackend.engines.native import library\n"
        "def load():\n"
        "    while not done:\n"
        "        library._CHOICES.clear(); library._LOADED.clear()\n"
        "        library.library()\n"
        "done = False\n"
        "thread = threading.Thread(target=load)\n"
        "thread.start()\n"
        "codes = []\n"
        "for _ in range(30):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if library.library() is not None else 3)\n"
        "    codes.append(os.waitpid(child, 0)[1])\n"
        "done = True\n"
        "thread.join()\n"
        "print(codes)\n"
    )
    # Python warns of forking beside threads, which is what this is about.
    assert json.loads(fresh_process(code, PYTHONWARNINGS="ignore")) == [0] * 30


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_loading_takes_a_few_milliseconds():
    code = (
        "import time\n"
        "from nnbackend.engines.native import library\n"
        "start = time.perf_counter()\n"
        "library.library()\n"
        "print(time.perf_counter() - start)\n"
    )
    # The first fit may take 30 ms more than the second; a third of that for finding and checking.
    # The best of five, since other processes only add to it.
    assert min(float(fresh_process(code)) for _ in range(5)) < 0.01


# --- Building ---


def test_a_compiler_that_is_old_leaves_the_fastest_variants_out(tmp_path, monkeypatch):
    path = shutil.which("cc")
    if path is None or "x86-64-v4" not in compiling.features():
        pytest.skip("there is no compiler for x86-64")
    # Reached only by its name in CC, as a user's own would be.
    old = tmp_path / "old-cc"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *avx512*) echo "error: no AVX-512" >&2; exit 1; esac\n'
        f'exec {shlex.quote(path)} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", f"{old} -m64")
    found = compiling.find_compiler()
    assert found == ((str(old), "-m64"), ("x86-64-v2", "x86-64-v3"), False)


def test_formulas_are_printed_from_this_source_tree_whatever_is_installed(tmp_path, monkeypatch):
    # An editable installation of before, which pip hides from a build, or another version.
    other = tmp_path / "installed" / "nnbackend"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('not this one')\n")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    compiling.print_formulas(str(tmp_path))
    assert "nnbackend_kernel" in (tmp_path / "kernels.h").read_text()


def test_a_compiler_that_fails_is_passed_over(tmp_path, monkeypatch):
    if shutil.which("cc") is None:
        pytest.skip("there is no other compiler")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert compiling.find_compiler().command == ("cc",)


def pip(*arguments, python=sys.executable, **environment):
    """Run pip in this environment but for what is given; return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC")}
    done = subprocess.run(
        [str(python), "-m", "pip", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def source(tmp_path):
    """A copy of what the package is built from."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed here")
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__", "libnnbackend-*", compiling.MANIFEST)
    shutil.copytree(ROOT / "nnbackend", copy / "nnbackend", ignore=ignored)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("with_compiler", [True, False])
def test_pip_builds_a_small_wheel_with_and_without_a_compiler(source, tmp_path, with_compiler):
    if with_compiler and shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    files = {path: path.stat().st_mtime for path in source.rglob("*") if path.is_file()}
    environment = {} if with_compiler else {"PATH": str(tmp_path / "nowhere")}
    pip("wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", source, **environment)
    assert files == {path: path.stat().st_mtime for path in source.rglob("*") if path.is_file()}

    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.stat().st_size < 1_500_000
    if sys.platform == "linux":
        platform = "linux" if with_compiler or not compiling._is_glibc() else "manylinux2014"
        assert re.fullmatch(rf"nnbackend-\S+-py3-none-{platform}_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    native = tmp_path / "installed" / "nnbackend" / "engines" / "native"
    names = {path.name for path in native.iterdir() if path.suffix != ".py"}
    assert names == {compiling.MANIFEST, *map(compiling._file_name, compiling.features())}
    manifest = (native / compiling.MANIFEST).read_text()
    compiler = re.search("^compiler (.*)$", manifest, re.MULTILINE)[1]
    assert compiler.startswith("Zig") != with_compiler
    for path in native.glob("libnnbackend-*.so") if not with_compiler else ():
        versions = re.findall(rb"GLIBC_2\.(\d+)", path.read_bytes())
        assert max(map(int, versions), default=0) <= 17
    code = (
        "from nnbackend.engines.native import library\n"
        "print(*library.libraries(), library.why_missing(), library.__file__)\n"
    )
    shown = fresh_process(code, PYTHONPATH=str(tmp_path / "installed")).split()
    *runnable, file = shown
    assert file == str(native / "library.py")
    assert runnable
    assert runnable == list(compiling.features())[: len(runnable)]


@pytest.mark.slow
def test_a_failed_compilation_installs_the_package_and_its_advice_mends_it(source, tmp_path):
    broken = source / "nnbackend" / "engines" / "native" / "source" / "float32.c"
    intact = broken.read_text()
    broken.write_text('#error "out of order"\n')
    # Python's packages come from this environment: pip installs nnbackend alone.
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    printed = pip("install", "--verbose", "--no-deps", source, python=python)
    (warning,) = re.findall("nnbackend is installed without.*", printed)
    assert 'error: #error "out of order"' in warning

    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    paths = os.pathsep.join([site, *(path for path in sys.path if path.endswith("-packages"))])
    code = (
        "from nnbackend.engines.native import library\n"
        "print(library.variant(), library.why_missing())\n"
    )
    shown = fresh_process(code, PYTHONPATH=paths)
    assert shown.startswith("None the native library could not be compiled when nnbackend was ")
    assert 'error: #error "out of order"' in shown
    command = shlex.split(re.search("run: pip (.*)$", shown)[1])
    assert command[-1] == str(source)

    broken.write_text(intact)
    pip(*command, python=python)
    assert fresh_process(code, PYTHONPATH=paths).split()[0] in compiling.features()

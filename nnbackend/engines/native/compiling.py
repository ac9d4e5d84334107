"""Compile the native library: one shared library for each variant of the processor.

The build hook, the continuous integration and the tests use this module. It takes nothing but the
standard library and can be imported by its path, without the package. Run as a program, it compiles
into its own folder, which is what a source tree that is not installed needs::

    python nnbackend/engines/native/compiling.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = [
    "FLAGS",
    "FOLDER",
    "MANIFEST",
    "ROOT",
    "SOURCE",
    "CompilationError",
    "Compiler",
    "compile_libraries",
    "features",
    "find_compiler",
    "platform_tag",
    "print_formulas",
    "sources_digest",
    "version",
    "write_failure",
    "zig_target",
]

# "linux", "darwin" or "win32"; a plain name, since type checkers know sys.platform's value.
_SYSTEM: str = sys.platform

FOLDER = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(FOLDER, "source")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(FOLDER)))

# Names the libraries of a folder, with their digests; or says why there are none.
MANIFEST = "libraries.txt"

# Without -ffast-math: NaN, infinities, subnormals and signed zeros keep their meaning.
FLAGS = [
    "-O3", "-std=gnu11", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-pthread", "-Wall", "-Wextra",
]  # fmt: skip

# The levels of x86-64, spelled out for compilers that do not know them by name (GCC before 11).
_V2 = ["-mcx16", "-msahf", "-mpopcnt", "-msse3", "-mssse3", "-msse4.1", "-msse4.2"]
_V3 = [*_V2, "-mavx", "-mavx2", "-mbmi", "-mbmi2", "-mf16c", "-mfma", "-mlzcnt", "-mmovbe"]
_V4 = [*_V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
# The variants of a processor, the slowest first; each runs wherever a later one does.
_FEATURES: dict[str, dict[str, list[str]]] = {
    "x86_64": {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4},
    "other": {"generic": []},
}

# Modules above the engines whose formulas are compiled, too.
_MODULES = ["nnbackend.estimators.formulas"]

# Files outside SOURCE from which the library comes, too.
_FORMULAS = [
    "core/activations.py", "core/distributions.py", "core/elementwise.py", "core/losses.py",
    "core/optimizers.py", "core/propagation.py", "core/regularization.py",
    "engines/native/compiling.py", "engines/native/formulas.py", "engines/native/printing.py",
    "engines/native/program.py", "engines/tracing/expression.py", "engines/tracing/formulas.py",
    "estimators/formulas.py",
]  # fmt: skip

# What the sources ask of a compiler, in short: GCC from 9, Clang from 9, Zig.
_TRIAL = """
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
typedef float V __attribute__((vector_size(32), may_alias));
typedef int32_t I __attribute__((vector_size(32), may_alias));
V trial(V x, I y);
V trial(V x, I y) { return ((V)((x > 1) & y) + __builtin_convertvector(y, V)) * sqrtf(x[0]); }
"""


class CompilationError(Exception):
    """The library could not be compiled; the text is one line that says why."""


class Compiler(NamedTuple):
    """A C compiler, and the variants for which it works.

    Attributes
    ----------
    command : tuple of str
        What to run.
    variants : tuple of str
        The variants that it can compile, the slowest first.
    zig : bool
        Whether it is Zig, which takes the name of its target.
    """

    command: tuple[str, ...]
    variants: tuple[str, ...]
    zig: bool = False

    @property
    def name(self) -> str:
        """Its own name and version."""
        import subprocess

        command = [*self.command[:-1], "version"] if self.zig else [*self.command, "--version"]
        done = subprocess.run(  # noqa: S603 - the user's own compiler
            command, capture_output=True, text=True, check=False
        )
        return f"{'Zig ' if self.zig else ''}{(done.stdout.splitlines() or ['unknown'])[0]}"


def features() -> dict[str, list[str]]:
    """Return the compiler's options for each variant of this processor, the slowest first.

    There is none for a Python of 32 bits.
    """
    if sys.maxsize < 2**32:
        return {}
    return _FEATURES.get(_processor(), _FEATURES["other"])


def version() -> str:
    """Return the package's version, without importing the package."""
    with open(os.path.join(ROOT, "nnbackend", "_version.py"), encoding="utf-8") as file:
        return file.read().partition('__version__ = "')[2].partition('"')[0]


def sources_digest() -> str | None:
    """Return a digest of everything that the library comes from; None where there are no sources.

    An installed package has the libraries without their sources.
    """
    import hashlib

    if not os.path.isdir(SOURCE):
        return None
    paths = [os.path.join(SOURCE, name) for name in sorted(os.listdir(SOURCE))]
    paths += [os.path.join(ROOT, "nnbackend", *name.split("/")) for name in _FORMULAS]
    digest = hashlib.sha256()
    for path in filter(os.path.isfile, paths):
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def find_compiler() -> Compiler | None:
    """Return the first compiler that works: $CC, cc, gcc, clang, or the package ziglang.

    Which works is found by trying. None if there is none, or no variant for this processor.
    """
    import importlib.util
    import shlex
    import shutil

    wanted = tuple(features())
    if not wanted:
        return None
    for text in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        command = tuple(shlex.split(text))
        if not command or shutil.which(command[0]) is None:
            continue
        # Each variant asks for all that the slower ones do.
        for count in range(len(wanted), 0, -1):
            compiler = Compiler(command, wanted[:count])
            if _works(compiler):
                return compiler
    if zig_target() is not None and importlib.util.find_spec("ziglang") is not None:
        return Compiler((sys.executable, "-m", "ziglang", "cc"), wanted, zig=True)
    return None


def zig_target() -> str | None:
    """Return Zig's name for this platform, with an old C library; None if it has none here."""
    processor = _processor()
    if processor not in ("x86_64", "aarch64") or sys.maxsize < 2**32:
        return None
    if _SYSTEM == "linux":
        return f"{processor}-linux-{'gnu.2.17' if _is_glibc() else 'musl'}"
    if _SYSTEM == "darwin":
        return f"{processor}-macos.{_MACOS[processor]}"
    return f"{processor}-windows-gnu" if _SYSTEM == "win32" else None


def platform_tag(compiler: Compiler) -> str:
    """Return the tag of the platforms on which that compiler's libraries run, as in wheels."""
    import sysconfig

    processor = _processor()
    if _SYSTEM == "darwin" and processor in _MACOS:
        named = "arm64" if processor == "aarch64" else processor
        return f"macosx_{_MACOS[processor].replace('.', '_')}_{named}"
    if compiler.zig and _SYSTEM == "linux" and _is_glibc():
        return f"manylinux2014_{processor}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_libraries(
    folder: str,
    *,
    compiler: Compiler | None = None,
    only: Iterable[str] | None = None,
    flags: Sequence[str] = (),
) -> list[str]:
    """Compile the library of each variant into a folder, and write the manifest there.

    Files are replaced in one step each, so processes that use the old ones are not disturbed.

    Parameters
    ----------
    folder : str
        Where to put the libraries.
    compiler : Compiler, optional
        The compiler; the default is the first that works.
    only : iterable of str, optional
        The variants to compile; the default is all that the compiler can.
    flags : sequence of str
        More options for compiling and linking, such as ``-fsanitize=address``.

    Returns
    -------
    list of str
        The paths of all files that were written.

    Raises
    ------
    CompilationError
        If there is no compiler, or if it fails.
    """
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    compiler = compiler or find_compiler()
    if compiler is None:
        raise CompilationError(
            "no working C compiler was found ($CC, cc, gcc, clang, or the package ziglang)"
            if features()
            else "this Python has 32 bits"
        )
    chosen = [name for name in compiler.variants if only is None or name in set(only)]
    sources = sorted(name for name in os.listdir(SOURCE) if name.endswith(".c"))
    # Before anything is compiled: a change in the meantime shall not pass for compiled.
    digest = sources_digest()
    with (
        tempfile.TemporaryDirectory(prefix="nnbackend-") as build,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        print_formulas(build)

        def object_of(job: tuple[str, str]) -> str:
            name, source = job
            path = os.path.join(build, f"{name}-{source}.o")
            options = [*_options(compiler, name), *FLAGS, *flags, "-I", SOURCE, "-I", build]
            _call(compiler, [*options, "-c", os.path.join(SOURCE, source), "-o", path], build)
            return path

        def library_of(name: str) -> str:
            path = os.path.join(build, _file_name(name))
            objects = [os.path.join(build, f"{name}-{source}.o") for source in sources]
            before, after = _linking(compiler, flags)
            # For the slowest: what Zig links it compiles first, and so it does that only once.
            options = [*_options(compiler, compiler.variants[0]), *flags, *before]
            _call(compiler, [*options, *objects, *after, "-o", path], build)
            return path

        list(pool.map(object_of, [(name, source) for name in chosen for source in sources]))
        built = list(pool.map(library_of, chosen))
        return _install(folder, compiler, digest, dict(zip(chosen, built, strict=True)))


def print_formulas(folder: str) -> None:
    """Write the package's formulas as C into a folder, where the compiler looks for headers.

    In a process of its own, since that imports the package from this source tree.
    """
    import subprocess

    # Not by PYTHONPATH: where the package is installed as editable, pip takes the paths of that
    # installation out of sys.path, and this source tree with them.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nnbackend.engines.native.printing import main\n"
        "main(*sys.argv[2:])"
    )
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-B", "-c", program, ROOT, folder, *_MODULES],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CompilationError(
            "printing the formulas as C failed: "
            + " ".join((done.stderr.strip().splitlines() or ["no message"])[-1].split())
        )


def write_failure(folder: str, reason: str) -> str:
    """Write a manifest that says why there are no libraries; return its path."""
    return _write_manifest(folder, [("failed", " ".join(reason.split()))])


_MACOS = {"aarch64": "11.0", "x86_64": "10.13"}


def _processor() -> str:
    import platform
    import sysconfig

    # Of Python, not of the machine, which may run another processor's programs.
    name = sysconfig.get_platform().rpartition("-")[2]
    name = (platform.machine() if name == "universal2" else name).lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _is_glibc() -> bool:
    import platform

    return platform.libc_ver()[0] == "glibc"


def _options(compiler: Compiler, name: str) -> list[str]:
    """Return the options that name the processor."""
    if compiler.zig:
        target = zig_target()
        assert target is not None  # noqa: S101 - or find_compiler had not returned it
        level = [f"-mcpu={name.replace('-', '_')}"] if name != "generic" else []
        return ["-target", target, *level]
    options = list(features()[name])
    if _SYSTEM == "darwin":
        processor = _processor()
        options += ["-arch", "arm64" if processor == "aarch64" else processor]
        options += [f"-mmacosx-version-min={_MACOS[processor]}"]
    return options if _SYSTEM == "win32" else [*options, "-fPIC"]


def _linking(compiler: Compiler, flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options for linking before the objects, and the libraries after them."""
    if _SYSTEM == "win32":
        # Without the compiler's own libraries, which other machines lack.
        return ["-shared", "-static", "-pthread"], ["-lm"]
    if _SYSTEM != "linux" or flags:
        # Sanitizers find their own functions when the program starts, and report names.
        return ["-shared", "-pthread"], ["-lm"]
    # Zig would compile its own run-time library for 10 s, of which nothing is used.
    runtime = ["-nostdlib"] if compiler.zig else []
    libraries = ["-lc", "-lm", "-lpthread"] if compiler.zig else ["-lm"]
    return ["-shared", "-pthread", "-s", "-Wl,-z,defs", *runtime], libraries


def _file_name(name: str) -> str:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(_SYSTEM, ".so")
    return f"libnnbackend-{name}{suffix}"


def _works(compiler: Compiler) -> bool:
    """Whether a compiler makes a library of the fastest of its variants."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="nnbackend-") as build:
        source, library = os.path.join(build, "trial.c"), os.path.join(build, "trial.so")
        with open(source, "w", encoding="utf-8") as file:
            file.write(_TRIAL)
        before, after = _linking(compiler, [])
        options = [*_options(compiler, compiler.variants[-1]), *FLAGS, *before]
        try:
            _call(compiler, [*options, source, *after, "-o", library], build)
        except CompilationError:
            return False
        return os.path.isfile(library)


def _call(compiler: Compiler, arguments: list[str], build: str) -> None:
    """Run the compiler; raise an error with its first complaint if it fails."""
    import subprocess

    # Zig keeps caches: here they vanish with the build, and it needs no home folder.
    caches = {f"ZIG_{kind}_CACHE_DIR": os.path.join(build, "zig") for kind in ("GLOBAL", "LOCAL")}
    try:
        done = subprocess.run(  # noqa: S603 - the user's own compiler
            [*compiler.command, *arguments],
            env={**os.environ, **caches} if compiler.zig else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=600,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CompilationError(f"{compiler.command[0]}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        line = next((line for line in lines if "error" in line), lines[-1])
        raise CompilationError(f"{' '.join(compiler.command)}: {line.strip()}")


def _install(
    folder: str, compiler: Compiler, digest: str | None, built: dict[str, str]
) -> list[str]:
    """Move the libraries into a folder, and write the manifest last."""
    import hashlib

    os.makedirs(folder, exist_ok=True)
    lines = [
        ("version", version()),
        ("sources", str(digest)),
        ("compiler", compiler.name),
    ]
    paths = []
    for name, path in built.items():
        with open(path, "rb") as file:
            content = file.read()
        paths.append(_replace(folder, os.path.basename(path), content))
        lines.append((name, f"{os.path.basename(path)} {hashlib.sha256(content).hexdigest()}"))
    return [*paths, _write_manifest(folder, lines)]


def _write_manifest(folder: str, lines: list[tuple[str, str]]) -> str:
    text = "".join(f"{key} {value}\n" for key, value in lines)
    return _replace(folder, MANIFEST, text.encode())


def _replace(folder: str, name: str, content: bytes) -> str:
    path = os.path.join(folder, name)
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(content)
    os.replace(beside, path)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Compile into this folder, or into another; return the exit code."""
    import argparse

    parser = argparse.ArgumentParser(description="Compile nnbackend's native library.")
    parser.add_argument("--folder", default=FOLDER, help="where the libraries go")
    parser.add_argument("--variant", action="append", help="only this one; may be given again")
    parser.add_argument("flags", nargs="*", help="after --: more options for the compiler")
    options = parser.parse_args(arguments)
    try:
        paths = compile_libraries(options.folder, only=options.variant, flags=options.flags)
    except CompilationError as error:
        print(f"nnbackend: {error}", file=sys.stderr)
        return 1
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

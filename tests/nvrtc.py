"""CUDA C compiled to machine code without a GPU, by NVIDIA's NVRTC, and the resources it takes.

NVRTC comes with the package ``nvidia-cuda-nvrtc``, and with the CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from cuda_emulation import absent

# What CuPy 14 adds to the engine's option (cupy/cuda/compiler.py), but for paths of headers, of
# which the source has none; and a report of the resources.
OPTIONS = (
    "-std=c++17",
    "-ftz=true",
    "--device-as-default-execution-space",
    "--ptxas-options=-v",
)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread; bytes of a thread's spills and stack, and shared.

    Spills and stack include those of functions that are not inlined. Dynamic shared memory is not
    counted.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int


@dataclass(frozen=True)
class Compiled:
    """Machine code, the compiler's log, and the resources of each kernel by name."""

    cubin: bytes
    log: str
    kernels: dict[str, Resources]


@functools.cache
def compile_ptx_or_cubin(source, architecture="sm_90", options=()):
    """Return a source compiled for a real architecture; skip where NVRTC is not installed.

    Raises
    ------
    RuntimeError
        If it does not compile.
    """
    nvrtc = _library()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, 0, 0))
    try:
        flags = [option.encode() for option in (*OPTIONS, f"-arch={architecture}", *options)]
        status = nvrtc.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*flags)
        )
        log = _output("ProgramLog", program).rstrip(b"\0").decode()
        if status != 0:
            raise RuntimeError(f"the source does not compile for {architecture}:\n{log}")
        return Compiled(_output("CUBIN", program), log, _resources(log))
    finally:
        _check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))


def _resources(log):
    sections = re.split(r"Compiling entry function '(\w+)'", log)[1:]
    units = (
        "registers",
        "bytes spill stores",
        "bytes spill loads",
        "bytes stack frame",
        "bytes smem",
    )
    return {
        name: Resources(*(sum(map(int, re.findall(rf"(\d+) {unit}", text))) for unit in units))
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def _output(what, program):
    """Return what ``nvrtcGet<what>`` gives."""
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    output = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, output))
    return output.raw


def _check(status):
    if status != 0:
        raise RuntimeError(f"NVRTC: {_library().nvrtcGetErrorString(status).decode()}")


@functools.cache
def _library():
    path = _find()
    if path is None:
        absent("NVRTC (the package nvidia-cuda-nvrtc)")
    library = ctypes.CDLL(path)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _find():
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ModuleNotFoundError:
        spec = importlib.util.find_spec("nvidia")
        folders = spec.submodule_search_locations if spec else []
        paths = [path for folder in folders for path in Path(folder).rglob("libnvrtc.so.*")]
        return str(max(paths)) if paths else ctypes.util.find_library("nvrtc")
    try:
        return load_nvidia_dynamic_lib("nvrtc").abs_path
    except DynamicLibNotFoundError:
        return None

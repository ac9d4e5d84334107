"""Reading NPY and NPZ files of plain arrays: no claim is believed before it is compared.

``numpy.load`` reserves what a header claims, and evaluates the header as a Python literal.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from typing import IO, Any

import numpy as np

from nnbackend.errors import InputError

__all__ = ["read_npy", "read_npz"]


_MAGIC = b"\x93NUMPY"


# Bytes of the header's length by version; the third is for names of fields, which no matrix has.
_LENGTH_BYTES = {1: 2, 2: 4}


_HEADER_BYTES = 2**16


# Of a shape whose sizes are 64-bit numbers.
_DIMENSIONS, _DIGITS = 32, 18


_PLAIN = re.compile(r"[<>=|]?(?:\?|[biufcSU][0-9]{1,9}|[mM]8(?:\[[0-9]*[a-zA-Z]+\])?)")


# What deflate can make of one byte at most.
_DEFLATE_RATIO = 1032


_Array = np.ndarray[Any, Any]


def read_npy(file: IO[bytes]) -> _Array:
    """Return the array in an open NPY file.

    Raises
    ------
    InputError
        If it is damaged or truncated, or holds anything but numbers, booleans, text and dates.
    """
    return _array(file, os.fstat(file.fileno()).st_size)


def read_npz(file: IO[bytes]) -> dict[str, _Array]:
    """Return the arrays in an open NPZ file by name.

    Raises
    ------
    InputError
        If it is damaged or truncated, or holds anything but such arrays.
    Exception
        Of no common type, from the zip and deflate readers.
    """
    arrays: dict[str, _Array] = {}
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if claimed > _DEFLATE_RATIO * size:
            raise InputError(
                f"expected members that {size} bytes can hold, got a claim of {claimed} "
                f"bytes in {file.name!r}; is it whole?",
                argument="DATA",
            )
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                raise InputError(
                    f"expected arrays of distinct names ending in .npy, got the member "
                    f"{member.filename!r} in {file.name!r}",
                    argument="DATA",
                )
            # Others, which NumPy does not write, expand without a bound.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"expected members stored or deflated, got the compression method "
                    f"{member.compress_type} in {file.name!r}; write it with "
                    "numpy.savez_compressed",
                    argument="DATA",
                )
            with archive.open(member) as stream:
                arrays[name] = _array(stream, member.file_size, file.name)
                # At its end the reader compares the checksum.
                if stream.read(1):
                    raise _damaged(file.name, f"there is something behind {name!r}")
    return arrays


def _array(file: IO[bytes], size: int, path: str | None = None) -> _Array:
    """Return the array in a stream of ``size`` bytes."""
    path = path or file.name
    start = file.read(8)
    n_bytes = _LENGTH_BYTES.get(start[6]) if len(start) == 8 else None
    if start[:6] != _MAGIC or n_bytes is None:
        raise _damaged(path, "it does not begin as an array of plain numbers does")
    length = int.from_bytes(file.read(n_bytes), "little")
    if length > min(_HEADER_BYTES, size):
        raise _damaged(path, f"its header claims {length} bytes")
    header = file.read(length).decode("latin-1")
    dtype, shape, is_fortran = _claims(path, header)
    left = size - 8 - n_bytes - length
    count = math.prod(shape)
    if count * dtype.itemsize > left:
        raise _damaged(
            path, f"an array {shape} of {dtype} takes {count * dtype.itemsize} bytes, not {left}"
        )
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise _damaged(path, f"it ends after {len(content)} bytes of an array {shape} of {dtype}")
    values = np.frombuffer(content, dtype) if count else np.empty(0, dtype)
    return _valid(path, values).reshape(shape, order="F" if is_fortran else "C")


def _claims(path: str, header: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Return the dtype, shape and order that a header, a Python dictionary, speaks of."""
    descr = re.search(r"""['"]descr['"]\s*:\s*(?:['"]([^'"]*)['"]|\[)""", header)
    order = re.search(r"""['"]fortran_order['"]\s*:\s*(True|False)""", header)
    # Python 2 wrote L behind long numbers.
    sizes = re.search(r"""['"]shape['"]\s*:\s*\(([0-9,L\s]*)\)""", header)
    if not (descr and order and sizes):
        raise _damaged(path, f"its header is {header[:80].strip()!r}")
    try:
        dtype = np.dtype(descr[1]) if _PLAIN.fullmatch(descr[1] or "") else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.itemsize == 0:
        name = "of objects or fields" if descr[1] is None else repr(descr[1][:80])
        raise InputError(
            f"cannot read {path!r}: expected numbers, booleans or text, got dtype {name}; "
            "save it as one of these",
            argument="DATA",
        )
    numbers = re.findall("[0-9]+", sizes[1])
    if len(numbers) > _DIMENSIONS or any(len(number) > _DIGITS for number in numbers):
        raise _damaged(path, f"its shape is {sizes[0][:80]!r}")
    shape = tuple(map(int, numbers))
    return dtype, shape, order[1] == "True"


def _valid(path: str, values: _Array) -> _Array:
    """Return values that any bytes may have made, as ones that NumPy and Python can handle."""
    kind = values.dtype.kind
    if kind == "b":
        return np.not_equal(values.view(np.uint8), 0)
    if kind == "U":
        points = values.view(f"{values.dtype.byteorder}u4")
        if bool(((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any()):
            raise _damaged(path, "its text is not Unicode")
    if kind == "f" and values.dtype.itemsize > 8:
        # Extended precision has patterns that are no numbers; what is too large becomes infinite.
        with np.errstate(all="ignore"):
            return values.astype(np.float64)
    return values


def _damaged(path: str, problem: str) -> InputError:
    return InputError(
        f"cannot read {path!r}: {problem}; is it whole, and named as it should?", argument="DATA"
    )

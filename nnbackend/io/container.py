"""Files of named arrays and a JSON description, with a checksum of both.

The format is safetensors; the description is an entry of its metadata. Reading executes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnbackend.errors import MissingDependencyError, ModelFileError, UnusableModelError
from nnbackend.io.files import checked_path

__all__ = ["DTYPE_CODES", "Claim", "Contents", "digest", "encode", "read_file", "shortened"]


# What safetensors calls the dtypes that arrays are stored in.
DTYPE_CODES = {"float32": "F32", "float64": "F64"}

# The entry of the metadata that holds the description, and the format of what it says.
_KEY = "nnbackend"
_FORMAT = 2

# As in safetensors, which refuses longer ones.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Claim:
    """The shape and dtype that an array in a file must have.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : {"float32", "float64"}
        Its dtype.
    is_finite : bool, default True
        Whether all its values must be finite.
    is_positive : bool, default False
        Whether all its values must be above 0.
    """

    shape: tuple[int, ...]
    dtype: str
    is_finite: bool = True
    is_positive: bool = False


def encode(description: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """Return the content of a file.

    Parameters
    ----------
    description : mapping
        Entries that JSON can hold; ``format`` and ``sha256`` are added.
    arrays : mapping of str to array
        Contiguous NumPy arrays of float32 or float64.
    """
    facts = {"format": _FORMAT, **description}
    facts["sha256"] = digest(facts, arrays)
    metadata = {_KEY: json.dumps(facts, allow_nan=False)}
    content: bytes = _safetensors().numpy.save(dict(arrays), metadata)
    return content


def digest(description: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a description, without its own ``sha256``, and of arrays by name."""
    import hashlib

    facts = {key: value for key, value in description.items() if key != "sha256"}
    result = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        result.update(name.encode())
        result.update(arrays[name].tobytes())
    return result.hexdigest()


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file, or, if it cannot be one of nnbackend's, only its header.

    ``Contents`` refuses the header alone as it refuses the whole file, so a huge file of another
    format is not read.

    Raises
    ------
    ModelFileError
        If the file is missing or cannot be read.
    """
    path = checked_path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if length > min(size - 8, _LONGEST_HEADER):
                return head
            head += file.read(length)
            rest = size - len(head)
            header = _header(head)
            if _KEY not in _metadata(header) or _claimed_bytes(header) != rest:
                return head
            file.seek(0)
            return file.read(size)
    except OSError as error:
        raise ModelFileError(
            f"expected a readable model file, got {path!r} ({error.strerror or error})",
            argument="path",
        ) from error


def _header(content: bytes) -> Any:
    """Return the JSON at the beginning of a file; None where it is none."""
    end = 8 + int.from_bytes(content[:8], "little")
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content[8:end])
    return None


def _metadata(header: Any) -> dict[str, Any]:
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _claimed_bytes(header: dict[str, Any]) -> Any:
    """Return how many bytes the arrays of a header take; None where it does not say so."""
    with contextlib.suppress(TypeError, KeyError, IndexError):
        entries = (entry for name, entry in header.items() if name != "__metadata__")
        return max((entry["data_offsets"][1] for entry in entries), default=0)
    return None


class Contents:
    """The description and the arrays in the content of a file, checked when they are read.

    Parameters
    ----------
    content : bytes
        The result of ``encode``, or anything else.
    source : str
        The name of the content in errors, such as its path.

    Attributes
    ----------
    description : dict
        The description that ``encode`` stored.

    Raises
    ------
    ModelFileError
        If the content is not whole, or not written by nnbackend.
    """

    description: dict[str, Any]

    def __init__(self, content: bytes, source: str) -> None:
        self.source = source
        self._arrays: dict[str, Any] = {}
        header = _header(content)
        metadata = _metadata(header)
        if isinstance(header, dict):
            self.require(_KEY in metadata, "it was not written by nnbackend")
        safetensors = _safetensors()
        try:
            self._arrays = dict(safetensors.deserialize(content))
        except safetensors.SafetensorError as error:
            raise ModelFileError(
                f"{source!r} is not a whole safetensors file "
                f"({shortened(str(error), 200)}); was it truncated, or is it of another format?",
                argument="path",
            ) from error
        description: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            description = json.loads(metadata[_KEY])
        self.require(isinstance(description, dict), "its description is not a JSON object")
        self.description = description
        self._check_format()

    def _check_format(self) -> None:
        version = self.description.get("format")
        reads = (
            f"its format is {shortened(repr(version))}, and this version of nnbackend reads "
            f"{_FORMAT}"
        )
        # A newer format may have another checksum: do not take it for damage.
        if type(version) is int and version > _FORMAT:
            versions = self.description.get("versions")
            writer = versions.get("nnbackend") if isinstance(versions, dict) else None
            raise UnusableModelError(
                f"cannot read {self.source!r} yet: {reads}; update nnbackend, which was "
                f"{shortened(repr(writer))} where it was written",
                argument="path",
            )
        self.require(version == _FORMAT, reads)

    @property
    def names(self) -> set[str]:
        """The names of the arrays."""
        return set(self._arrays)

    def require(self, holds: bool, problem: str) -> None:
        """Raise an error that names the problem unless the condition holds."""
        if not holds:
            kind = UnusableModelError if self.is_whole() else ModelFileError
            raise kind(f"path: {self.source!r} is not a valid model: {problem}")

    def is_whole(self) -> bool:
        """Whether the checksum is right."""
        description = getattr(self, "description", None)
        if description is None:
            return False
        raw = {name: np.frombuffer(entry["data"], np.uint8) for name, entry in self._arrays.items()}
        with contextlib.suppress(RecursionError, UnicodeEncodeError):
            return bool(description.get("sha256") == digest(description, raw))
        return False

    def require_whole(self) -> None:
        """Raise an error if the checksum is wrong.

        Call it last, so that more specific errors come first.
        """
        if not self.is_whole():
            raise ModelFileError(
                f"{self.source!r} is not a valid model: its content was altered: it does not "
                "have the checksum that it was saved with",
                argument="path",
            )

    def require_names(self, expected: Iterable[str]) -> None:
        """Raise an error unless the arrays are those that are expected."""
        different = sorted(self.names ^ set(expected))
        self.require(
            not different,
            "its arrays differ from those of its structure in "
            f"{shortened(repr(different[:4]), 200)}",
        )

    def array(self, name: str, claim: Claim) -> Any:
        """Return one array; raise an error if it is not as claimed."""
        entry = self._arrays[name]
        code = DTYPE_CODES[claim.dtype]
        shape = tuple(entry["shape"])
        self.require(
            (shape, entry["dtype"]) == (claim.shape, code),
            f"{name} is {entry['dtype']} {shape}, not {code} {claim.shape}",
        )
        stored = np.dtype(claim.dtype).newbyteorder("<")
        values = np.frombuffer(entry["data"], stored).reshape(shape)
        self.require(
            not claim.is_finite or bool(np.isfinite(values).all()), f"{name} holds NaN or infinity"
        )
        self.require(not claim.is_positive or bool((values > 0).all()), f"{name} is not positive")
        return values.astype(claim.dtype, copy=False)


def shortened(text: str, most: int = 80) -> str:
    """Return text from a file as one line that is not long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise MissingDependencyError(
            "saving and loading models needs safetensors; install it with: pip install safetensors"
        ) from error
    return safetensors

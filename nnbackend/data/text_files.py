"""Files of text with a value between separators - CSV, TSV and what passes for them - as columns.

How a file is written is found in its beginning: encoding, separator and quotes. Nothing is guessed
of a value here: every column is text, with gaps.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nnbackend.errors import InputError

__all__ = ["LINE_BYTES", "Dialect", "read_text", "require_distinct"]


# What is read at once, and so the longest line: 900 000 numbers of 18 characters.
LINE_BYTES = 2**24

# The beginning in which separator and quotes are looked for, and its rows.
_SAMPLE_BYTES = 2**18
_SAMPLE_ROWS = 200

_SEPARATORS = {"\t": "tab", ";": "semicolon", "|": "vertical bar", ",": "comma"}

_LINE_END = re.compile(rb"[\r\n]")

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """How a file of text is written.

    Attributes
    ----------
    encoding : str
        A name of Python's.
    separator : str
        What stands between two values.
    quote : str
        What stands around a value that has separators in it.
    escape : str or None
        What stands before a quote within quotes, where it is not another quote.
    is_quoted : bool
        Whether quotes were seen.
    """

    encoding: str
    separator: str
    quote: str = '"'
    escape: str | None = None
    is_quoted: bool = False

    def lines(self) -> tuple[str, ...]:
        """Return what a user may want to know of it."""
        facts = [f"separator {_SEPARATORS[self.separator]}"]
        if self.is_quoted:
            escape = "" if self.escape is None else f", {self.escape} before a quote inside"
            facts.append(f"quotes {self.quote}{escape}")
        return (*facts, f"encoding {self.encoding.removesuffix('-sig')}")


def read_text(path: str, suffix: str, gaps: Sequence[str]) -> tuple[Any, Dialect]:
    """Return a file's columns as text, null where there is a gap, and how it is written.

    Parameters
    ----------
    path : str
        The file.
    suffix : str
        What it ends in; ``.gz`` is decompressed, and a tab separates a ``.tsv`` in doubt.
    gaps : sequence of str
        What stands for a gap where it is not quoted.

    Returns
    -------
    table : pyarrow.Table
        Of strings.
    dialect : Dialect

    Raises
    ------
    InputError
        If it is empty, no text, or no table: a row has another number of values than the header.
    Exception
        Of no common type, from the readers of Arrow and gzip.
    """
    beginning = _beginning(path, suffix)
    dialect = _dialect(path, suffix, beginning)
    names = _header(path, dialect, beginning)
    try:
        return _parsed(path, suffix, dialect, names, gaps), dialect
    except InputError:
        raise
    except ValueError as error:  # Arrow's own, and UnicodeDecodeError
        if dialect.encoding == "utf-8" and _undecodable(path, suffix, "utf-8") is not None:
            dialect = Dialect("cp1252", *_signs(suffix, beginning.decode("cp1252", "replace")))
            names = _header(path, dialect, beginning)
        place = _undecodable(path, suffix, dialect.encoding)
        if place is not None:
            raise InputError(
                f"expected text in UTF-8 or another encoding that is known, got the byte "
                f"{place[1]:#04x} at position {place[0]} of {path!r}; convert the file, for "
                "example with: iconv -f ENCODING -t utf-8 OLD.csv > NEW.csv",
                argument="DATA",
            ) from error
        try:
            return _parsed(path, suffix, dialect, names, gaps), dialect
        except InputError:
            raise
        except ValueError as cause:
            if _has_long_line(path, suffix):
                raise _long_line(path) from cause
            raise _ragged(path, suffix, dialect, len(names)) or cause from cause


def require_distinct(names: Sequence[str]) -> None:
    """Raise an InputError if two columns have one name."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    twice = list({name: None for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    shown = ", ".join(map(repr, twice[:8]))
    more = f" and {len(twice) - 8} more" if len(twice) > 8 else ""
    raise InputError(
        f"expected distinct column names, got {shown}{more} twice; rename one", argument="DATA"
    )


def _opened(path: str, suffix: str) -> Any:
    import pyarrow as pa

    file = pa.OSFile(os.fsencode(path))
    return pa.CompressedInputStream(file, "gzip") if suffix.endswith(".gz") else file


def _beginning(path: str, suffix: str) -> bytes:
    """Return a file's first bytes: the first line, whole, and more of the next."""
    content = b""
    with _opened(path, suffix) as stream:
        while len(content) < LINE_BYTES and (more := stream.read(2**16)):
            # Line ends before the header are no row.
            content = (content + more).lstrip(b"\r\n")
            if len(content) >= _SAMPLE_BYTES and _LINE_END.search(content):
                break
    if not content.strip():
        raise InputError(f"expected a table, got the empty file {path!r}", argument="DATA")
    if len(content) >= LINE_BYTES and not _LINE_END.search(content):
        raise _long_line(path)
    return content


def _long_line(path: str) -> InputError:
    return InputError(
        f"expected lines of less than {LINE_BYTES} bytes, got a longer one in {path!r}",
        argument="DATA",
    )


def _header_alone(path: str) -> InputError:
    return InputError(
        f"expected at least one row, got none in {path!r}, which has a header alone",
        argument="DATA",
    )


def _dialect(path: str, suffix: str, beginning: bytes) -> Dialect:
    encoding = next((name for mark, name in _MARKS if beginning.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in beginning:
        raise InputError(
            f"expected a table of text, got other bytes in {path!r}; is it named as it should?",
            argument="DATA",
        )
    return Dialect(encoding, *_signs(suffix, beginning.decode(encoding, "replace")))


def _signs(suffix: str, text: str) -> tuple[str, str, str | None, bool]:
    """Return separator, quote, escape, and whether there are quotes, of a file's beginning."""
    first_end = len(text.splitlines()[0]) if len(text) > _SAMPLE_BYTES else 0
    is_cut = len(text) >= _SAMPLE_BYTES
    text = text[: max(_SAMPLE_BYTES, first_end + 1)]
    best: tuple[tuple[float, int], tuple[str, str, str | None, bool]] | None = None
    preferred = "\t" if suffix.startswith(".tsv") else ","
    for separator in _SEPARATORS:
        edge = re.escape(separator)
        is_single = '"' not in text and bool(
            re.search(rf"(?:^|[{edge}\r\n])'[^'\r\n]*'(?:$|[{edge}\r\n])", text)
        )
        quote = "'" if is_single else '"'
        is_quoted = is_single or bool(re.search(rf'(?:^|[{edge}\r\n])"', text))
        is_escaped = f"{quote}{quote}" not in re.sub(rf"(?<![^{edge}\r\n]){quote}{quote}", "", text)
        escape = None
        if is_escaped and re.search(rf"\\{quote}(?![{edge}\r\n]|$)", text):
            escape = "\\"
        rows = _rows(io.StringIO(text, newline=""), separator, quote, escape)
        counts = [len(row) for row, _ in islice(rows, _SAMPLE_ROWS) if row]
        if is_cut and 1 < len(counts) < _SAMPLE_ROWS:
            counts.pop()
        if not counts or counts[0] < 2:
            continue
        share = sum(count == counts[0] for count in counts) / len(counts)
        found = (separator, quote, escape, is_quoted)
        if best is None or (share, counts[0]) > best[0]:
            best = ((share, counts[0]), found)
    if best is not None:
        return best[1]
    return (preferred, '"', None, bool(re.search(r'(?:^|[\r\n])"', text)))


def _rows(
    stream: Any, separator: str, quote: str, escape: str | None
) -> Iterator[tuple[list[str], int]]:
    """Yield the rows of a stream of text, each with the number of its last line."""
    reader = csv.reader(
        stream,
        delimiter=separator,
        quotechar=quote,
        escapechar=escape,
        doublequote=escape is None,
    )
    try:
        for row in reader:
            yield row, reader.line_num
    except csv.Error:  # a value of more than 131 072 characters
        return


def _header(path: str, dialect: Dialect, beginning: bytes) -> list[str]:
    """Return the columns' names."""
    text = beginning.decode(dialect.encoding, "replace")
    line = next(iter(io.StringIO(text, newline=None)), "")
    signs = (dialect.separator, dialect.quote, dialect.escape)
    if line.count(dialect.quote) % 2:  # a name with a line end in it
        line = text[:_SAMPLE_BYTES]
    names, _ = next(_rows(io.StringIO(line, newline=""), *signs), ([], 0))
    # Before Arrow makes columns, of some kilobytes each: compressed commas cost next to nothing.
    require_distinct(names)
    if names and all(map(_is_fraction, names)):
        shown = ", ".join(map(repr, names[:3]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"expected a header line with the columns' names in {path!r}, got the numbers "
            f"{shown}{more}; add one",
            argument="DATA",
        )
    if not _LINE_END.search(beginning):
        raise _header_alone(path)
    return names


def _is_fraction(name: str) -> bool:
    """Whether a column's name is a decimal fraction, as in a file that begins with data."""
    try:
        return not float(name.replace(",", ".")).is_integer()
    except (ValueError, OverflowError):
        return False


def _parsed(
    path: str, suffix: str, dialect: Dialect, names: Sequence[str], gaps: Sequence[str]
) -> Any:
    import pyarrow as pa
    import pyarrow.csv

    with _opened(path, suffix) as stream:
        table = pyarrow.csv.read_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                block_size=LINE_BYTES,
                # Arrow leaves out the mark of UTF-8 by itself.
                encoding=dialect.encoding.removesuffix("-sig"),
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=dialect.separator,
                quote_char=dialect.quote,
                double_quote=dialect.escape is None,
                escape_char=dialect.escape or False,
                newlines_in_values=True,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=list(gaps),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    for kind in table.schema.types:
        if kind != pa.string():  # a name that two readers read in two ways
            raise InputError(
                f"expected a header line with the columns' names in {path!r}, got "
                f"{table.column_names[0][:60]!r}; correct it",
                argument="DATA",
            )
    if table.num_rows == 0:
        raise _header_alone(path)
    return table


def _undecodable(path: str, suffix: str, encoding: str) -> tuple[int, int] | None:
    """Return the position of the first byte that is not in an encoding, and the byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with _opened(path, suffix) as stream:
        while True:
            block = stream.read(2**20)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return position - kept + error.start, error.object[error.start]
            if not block:
                return None
            position += len(block)


def _has_long_line(path: str, suffix: str) -> bool:
    """Whether a line is longer than what is read at once."""
    length = 0
    with _opened(path, suffix) as stream:
        while block := stream.read(2**20):
            parts = _LINE_END.split(block)
            if length + len(parts[0]) >= LINE_BYTES:
                return True
            length = len(parts[-1]) + (length if len(parts) == 1 else 0)
    return False


def _ragged(path: str, suffix: str, dialect: Dialect, n_columns: int) -> InputError | None:
    """Return the error of the first row that has another number of values than the header."""
    with _opened(path, suffix) as stream:
        text = io.TextIOWrapper(stream, encoding=dialect.encoding, errors="replace", newline="")
        last = 0
        for row, line in _rows(text, dialect.separator, dialect.quote, dialect.escape):
            if row and len(row) != n_columns:
                return InputError(
                    f"expected {_count(n_columns)} in each row, as many as the header has, got "
                    f"{_count(len(row))} in line {last + 1} of {path!r}; correct the line, or "
                    "quote values that have the separator in them",
                    argument="DATA",
                )
            last = line
    return None


def _count(n_values: int) -> str:
    return f"{n_values} value{'' if n_values == 1 else 's'}"

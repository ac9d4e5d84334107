"""Which of Arrow's types columns of a file may have."""

from __future__ import annotations

from typing import Any

__all__ = ["is_plain", "is_text"]


def is_plain(kind: Any) -> bool:
    """Whether a type of Arrow is one of numbers, booleans, text or dates."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return is_plain(kind.value_type)
    checks = (pt.is_null, pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_decimal, pt.is_date,
              pt.is_timestamp, pt.is_duration, pt.is_time)  # fmt: skip
    return is_text(kind) or any(check(kind) for check in checks)


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is one of text, which may be held as a dictionary."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))

"""Methods and functions of scikit-learn, changed in place and put back."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nnbackend.accel.records import FAILED, LEFT, TAKEN, Records
from nnbackend.estimators.meeting import clock

__all__ = ["Declined", "Patches", "Takeover"]


class Declined(Exception):  # noqa: N818 - no error: a call goes to scikit-learn
    """A call is not taken over, for the reason that the text says."""


@dataclass(frozen=True)
class Takeover:
    """A method or function of scikit-learn, and what runs in its place.

    Attributes
    ----------
    module : str
        A public module, such as "sklearn.neural_network".
    name : str
        A public name in it: "MLPClassifier.fit", or that of a function.
    run : callable
        Called with the arguments of a call; returns what the call does. It leaves the call to
        scikit-learn by raising ``Declined``, or a ValueError or TypeError, and has changed nothing
        by then.
    is_around : bool, default False
        Whether ``run`` calls scikit-learn's own, which it is given as the first argument. Its
        errors are then the call's own, and only ``Declined`` leaves the call to scikit-learn.
    """

    module: str
    name: str
    run: Callable[..., Any]
    is_around: bool = False


class Patches:
    """Calls that are taken over while they are installed; with records of them.

    A method is replaced in its class, so that whoever holds the class, or an instance or a subclass
    of it, has the new method. A function is replaced in every module that holds it under any name.
    Replacements that are still held elsewhere afterwards call scikit-learn's own.

    What ours refuses goes to scikit-learn, whose word on it is final: either it raises its own
    error, or it does what ours cannot, which the records count with ours' reason.

    Parameters
    ----------
    takeovers : iterable of Takeover
        What to take over.
    """

    def __init__(self, takeovers: Iterable[Takeover]) -> None:
        self._takeovers = tuple(takeovers)
        self._lock = threading.RLock()
        self._undo: list[Callable[[], None]] = []
        self._is_installed = False
        self.records = Records()

    def install(self) -> None:
        """Replace all; nothing if that is done. Records begin anew."""
        with self._lock:
            if self._is_installed:
                return
            self.records = Records()
            for takeover in self._takeovers:
                module = import_module(takeover.module)
                owner, _, name = takeover.name.rpartition(".")
                if owner:
                    self._undo.append(self._replace_method(getattr(module, owner), name, takeover))
                else:
                    self._undo.append(self._replace_function(getattr(module, name), takeover))
            self._is_installed = True

    def uninstall(self) -> None:
        """Put everything back; nothing if that is done."""
        with self._lock:
            self._is_installed = False
            while self._undo:
                self._undo.pop()()

    def _replace_method(self, owner: type, name: str, takeover: Takeover) -> Callable[[], None]:
        original = inspect.getattr_static(owner, name)
        is_own = name in vars(owner)

        def bound(instance: Any, *args: Any, **kwargs: Any) -> Any:
            return original.__get__(instance, type(instance))(*args, **kwargs)

        function = self._wrapper(getattr(owner, name), bound, takeover)
        # Where the class has it, and not the base that defines it for others as well.
        function.__qualname__, function.__module__ = (
            f"{owner.__qualname__}.{name}",
            owner.__module__,
        )
        method = function if inspect.isfunction(original) else _Conditional(original, function)
        setattr(owner, name, method)

        def undo() -> None:
            if vars(owner).get(name) is not method:
                return  # someone else has replaced it since
            if is_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

        return undo

    def _replace_function(self, original: Any, takeover: Takeover) -> Callable[[], None]:
        wrapper = self._wrapper(original, original, takeover)
        _replace_in_modules(original, wrapper)
        return lambda: _replace_in_modules(wrapper, original)

    def _wrapper(self, documented: Any, original: Callable[..., Any], takeover: Takeover) -> Any:
        """Return what is called in the place of the original, and looks like it."""

        @functools.wraps(documented)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._is_installed:
                return original(*args, **kwargs)
            return self._call(original, takeover, args, kwargs)

        return wrapper

    def _call(
        self, original: Callable[..., Any], takeover: Takeover, args: Any, kwargs: Any
    ) -> Any:
        add, name, start = self.records.add, takeover.name, clock()
        refusals = (Declined,) if takeover.is_around else (Declined, ValueError, TypeError)
        try:
            result = takeover.run(*((original,) if takeover.is_around else ()), *args, **kwargs)
        except refusals as refusal:
            reason = str(refusal)
        except BaseException as error:
            text = (
                f"{type(error).__name__}: {error}" if takeover.is_around else type(error).__name__
            )
            add(FAILED, name, clock() - start, text)
            raise
        else:
            add(TAKEN, name, clock() - start)
            return result
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            add(FAILED, name, clock() - start, text)
            raise
        add(LEFT, name, clock() - start, reason)
        return result


class _Conditional:
    """A method that an instance has only if scikit-learn's own descriptor gives it one."""

    def __init__(self, original: Any, function: Any) -> None:
        self._original, self._function = original, function

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is not None:
            self._original.__get__(instance, owner)
        return self._function.__get__(instance, owner)


def _replace_in_modules(old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name in [name for name, value in list(names.items()) if value is old]:
            setattr(module, name, new)

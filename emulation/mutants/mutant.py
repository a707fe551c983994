"""How a mutant is declared, and how it replaces a part of the model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Original = Callable[..., Any]
"""What a replaced function was; methods take their ``self`` first."""


class StaleMutant(Exception):
    """A mutant replaces something that the model does not have (any more)."""


@dataclass(frozen=True)
class Mutant:
    """One broken board.

    ``function`` stands in place of the ``attribute`` of a class or module and is called with what
    was there and its arguments; without ``owner`` it is called with :class:`Patches` and replaces
    what it likes. Its name is the mutant's, its docstring says what an engineer would see.
    ``first`` are words in the names of test files that should notice, which are run first.
    """

    function: Callable[..., Any]
    first: tuple[str, ...]
    owner: object = None
    attribute: str = ""

    @property
    def name(self) -> str:
        """What it is called in ``mutant=NAME``."""
        return self.function.__name__

    @property
    def broken(self) -> str:
        """What is broken, without a full stop."""
        return self.function.__doc__ or ""

    def install(self, patches: Patches) -> None:
        """Break the model. Raises StaleMutant."""
        if self.owner is None:
            self.function(patches)
        else:
            patches.wrap(self.owner, self.attribute, self.function)


class Patches:
    """Replacements of attributes of classes and modules, which can be taken back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    @contextmanager
    def applied(self, install: Callable[[Patches], None]) -> Iterator[None]:
        """Install inside the block."""
        try:
            install(self)
            yield
        finally:
            while self._undo:
                self._undo.pop()()

    def replace(self, owner: object, name: str, value: object) -> None:
        """Give the attribute ``name``, defined by ``owner`` itself, another value."""
        before = self._defined(owner, name)
        if value == before:
            raise StaleMutant(f"{_shown(owner)}.{name} is {value!r} already")
        self._set(owner, name, value, before)

    def wrap(self, owner: object, name: str, replacement: Callable[..., Any]) -> None:
        """Call ``replacement(original, ...)`` instead of a function, method or static method."""
        before = self._defined(owner, name)
        original = before.__func__ if isinstance(before, staticmethod) else before
        if not inspect.isfunction(original):
            raise StaleMutant(f"{_shown(owner)}.{name} is no function")

        @functools.wraps(original)
        def mutated(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        value = staticmethod(mutated) if isinstance(before, staticmethod) else mutated
        self._set(owner, name, value, before)

    @staticmethod
    def _defined(owner: object, name: str) -> Any:
        try:
            return vars(owner)[name]
        except KeyError:
            raise StaleMutant(f"{_shown(owner)} has no {name}") from None

    def _set(self, owner: object, name: str, value: object, before: object) -> None:
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))


def _shown(owner: object) -> str:
    return str(getattr(owner, "__qualname__", None) or getattr(owner, "__name__", owner))

"""Only our own variables are written, unless a test declares others and the owner consents."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from posixpath import normpath

from harness.capabilities import EFIVARS_PATH
from harness.consents import Consent
from harness.errors import UndeclaredWrite
from harness.instruments.efivars import VariableName, is_named, is_ours, name_of_file
from harness.probe import steps as do
from harness.probe.steps import Step

ANY = "*"
"""Every foreign variable: for tools whose purpose that is."""

_WRITING_FLAGS = frozenset({"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"})


class ForeignWrites:
    """Which variables outside our vendor GUID may be written just now; none, unless
    :meth:`allowing` says so. It looks at the probe's steps, before they are taken; what a shell
    command writes is found afterwards by the listing (harness.board.standing)."""

    def __init__(self, consent: Callable[[Consent], None], *, board: str) -> None:
        self._consent = consent
        self._board = board
        self._allowed: tuple[str, ...] = ()

    def allow(self, *patterns: str) -> None:
        """Names, or patterns such as ``Boot*``, that may be written from now on."""
        self._allowed = (*self._allowed, *patterns)

    @contextlib.contextmanager
    def allowing(self, *patterns: str) -> Iterator[None]:
        """:meth:`allow` for a while."""
        before = self._allowed
        self.allow(*patterns)
        try:
            yield
        finally:
            self._allowed = before

    def check(self, steps: Sequence[Step]) -> None:
        """Return if the steps write nothing foreign that was not allowed. Raises
        :class:`UndeclaredWrite`, and :class:`harness.errors.ConsentMissing` where the owner does
        not consent to ``foreign_variables``."""
        foreign = {name for step in steps for name in _written(step) if not is_ours(name)}
        undeclared = sorted(name for name in foreign if not is_named(name, self._allowed))
        if undeclared:
            raise UndeclaredWrite(
                f"{', '.join(map(str, undeclared))}: not a variable of this suite's own",
                remedy=f"mark the test with foreign({undeclared[0].name!r}), or use our vendor "
                "GUID; reading needs neither",
                board=self._board,
            )
        if foreign:
            self._consent(Consent.FOREIGN_VARIABLES)


def _written(step: Step) -> Iterator[VariableName]:
    """The variables that a step may create, change or remove."""
    for path in _paths(step):
        directory, _, file_name = normpath(path).rpartition("/")
        name = name_of_file(file_name) if directory == EFIVARS_PATH else None
        if name is not None:
            yield name


def _paths(step: Step) -> tuple[str, ...]:
    match step:
        case do.Open(_, path, flags):
            return (path,) if _WRITING_FLAGS & set(flags.split("|")) else ()
        case do.Rename(source, target) | do.Link(source, target):
            return (source, target)
        case do.Unlink(path) | do.Truncate(path) | do.Mknod(path):
            return (path,)
        case do.SystemCall("lsetxattr" | "lremovexattr", (bytes() as raw, *_)):
            return (raw.rstrip(b"\0").decode("utf-8", "surrogateescape"),)
        case do.Mkdir(path) | do.Rmdir(path) | do.Symlink(_, path):
            return (path,)
        case _:
            return ()

"""Every error the harness raises: what happened, where, whose fault it is, and what to do next.

One root, :class:`HilError`; the branches answer the question a lab engineer asks first:
*who fixes this?*  Library errors never leave the harness bare: the layer that meets one
raises the matching class ``from`` it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from enum import StrEnum
from typing import ClassVar

from harness.foreign import escaped, escaped_lines


class Fault(StrEnum):
    """Who can put an error right."""

    FIRMWARE = "firmware"
    KERNEL = "kernel"
    CABLE = "cable"
    LAB = "lab"
    HOST = "host"
    CONFIGURATION = "configuration"
    TEST = "test"


class HilError(Exception):
    """Root of all errors of this project.

    ``what`` is one sentence without a full stop, and :func:`~harness.foreign.escaped`: it may
    repeat what a board said. ``remedy`` says what to do next.
    ``board`` and ``link`` name the place (``link`` is e.g. ``ssh root@10.0.0.7:22``);
    ``command`` is the command that was running, if any.
    """

    fault: ClassVar[Fault] = Fault.HOST

    def __init__(
        self,
        what: str,
        *,
        remedy: str,
        board: str | None = None,
        link: str | None = None,
        command: str | None = None,
    ) -> None:
        self.what: str = escaped(what)
        self.remedy = remedy
        self.board = board
        self.link = link
        self.command = command
        super().__init__(self.what)

    def located(self, *, board: str | None = None, link: str | None = None) -> HilError:
        """Fill in the board or link where a lower layer did not know it; returns self."""
        self.board = self.board or board
        self.link = self.link or link
        return self

    def __str__(self) -> str:
        where = [f"board {self.board}"] if self.board else []
        where += [f"link {self.link}"] if self.link else []
        where += [f"command {self.command!r}"] if self.command else []
        place = f" ({escaped(', '.join(where))})" if where else ""
        stop = "" if not place and self.what.endswith(("?", "!", ".")) else "."
        return f"{self.what}{place}{stop} Fault: {self.fault}. Next: {escaped_lines(self.remedy)}"


class ConfigurationError(HilError):
    """A board file, option or environment value is wrong; mend it where the message points."""

    fault = Fault.CONFIGURATION


class ConsentMissing(ConfigurationError):
    """An operation needs a consent that the board file does not give."""


class HostError(HilError):
    """This machine lacks something: a device node, a permission, a package, a kernel feature."""

    fault = Fault.HOST


class HostExhausted(HostError):
    """This machine has no descriptors, processes, memory or disk left (:func:`of_host`)."""


class LabError(HilError):
    """The bench is at fault: power, wiring, network, or the board is not the expected one."""

    fault = Fault.LAB


class WrongBoard(LabError):
    """The board that answers is not the one the board file describes; the run must end."""


class BoardWedged(LabError):
    """Every recovery step failed; the remaining tests end as lab errors."""


class PowerError(LabError):
    """The power driver could not bring the board into the asked state."""


class LinkError(LabError):
    """A link (SSH, serial) failed."""


class LinkRefused(LinkError):
    """The other end answered and said no: refused connection, wrong key, failed login."""


class LinkLost(LinkError):
    """The link broke before a command was sent; the command certainly did not run."""


class LinkTimeout(LinkError):
    """No answer within the timeout; the lane was thrown away."""


class OutcomeUnknown(LinkError):
    """The command was sent and its result could not be fetched: it may or may not have run.

    It is never run a second time by the harness.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            what,
            remedy="the command may or may not have run and is not repeated: bring the board back"
            " and look at the state it should have changed",
        )


class SerialDamage(LinkError):
    """Bytes on a serial line were lost or changed beyond repair."""

    fault = Fault.CABLE


class TargetError(HilError):
    """The board's software did something it must not: a crash line in its kernel log, a refused
    service command."""

    fault = Fault.KERNEL


class CommandFailed(TargetError):
    """A command on the board ended with a status other than zero where zero was required."""

    def __init__(
        self,
        what: str,
        *,
        remedy: str,
        status: int,
        stdout: bytes,
        stderr: bytes,
        **where: str | None,
    ) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        super().__init__(what, remedy=remedy, **where)


class FirmwareError(HilError):
    """The firmware broke a promise that does not depend on the test."""

    fault = Fault.FIRMWARE


class OutputWithoutEnd(HilError):
    """The board sent more than the harness takes of one command or file; the rest is lost."""

    fault = Fault.TEST

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(
            f"{what} sent more than the {limit >> 20} MiB that are taken",
            remedy="does it print without end? Otherwise have the board cut it (`| head -c`),"
            " or write it to a file there",
        )


class UndeclaredWrite(HilError):
    """A test was about to write what its markers do not declare; nothing was written."""

    fault = Fault.TEST


class MissingCapability(HilError):
    """The board cannot do what a step needs; tests turn this into a skip that says why."""

    fault = Fault.TEST


_OF_HOSTS = {
    errno.EMFILE: "this process has too many open files (`ulimit -n`)",
    errno.ENFILE: "this machine has too many open files",
    errno.EAGAIN: "no process or thread can be started (`ulimit -u`, pids.max of a container)",
    errno.ENOMEM: "there is no memory left",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become larger (`ulimit -f`)",
    errno.EROFS: "the file system is read-only",
}
_NO_THREAD = "can't start new thread"


def of_target(error: OSError) -> OSError:
    """Mark an error as the board's answer to a system call: it says nothing about this machine."""
    vars(error)["of_target"] = True
    return error


def of_host(error: BaseException) -> HostExhausted | None:
    """What this machine has run out of, where that is behind ``error`` (its chain of causes):
    whatever broke with it, the board is not to blame. None for everything else, and for what the
    board itself answered."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HostExhausted):
            return seen
        if (why := _lacking(seen)) is not None:
            where = getattr(seen, "filename", None)
            return HostExhausted(
                f"this host cannot go on: {why}" + (f" ({where})" if where else ""),
                remedy="give it more, and repeat; the board is not to blame",
            )
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _lacking(error: BaseException) -> str | None:
    if isinstance(error, BlockingIOError) and not _is_fork(error):
        return None
    if isinstance(error, OSError):
        return None if "of_target" in vars(error) else _OF_HOSTS.get(error.errno or 0)
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return _OF_HOSTS[errno.EAGAIN]
    return _OF_HOSTS[errno.ENOMEM] if isinstance(error, MemoryError) else None


def _is_fork(error: BaseException) -> bool:
    """EAGAIN is also the word of locks and sockets that would have to be waited for."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is not None and step.tb_frame.f_globals.get("__name__") == "subprocess"


@contextlib.contextmanager
def of_board(name: str) -> Iterator[None]:
    """Errors of lower layers learn which board it was."""
    try:
        yield
    except HilError as error:
        raise error.located(board=name) from error.__cause__

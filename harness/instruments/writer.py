"""Writers that live on the board by themselves: one that may hang, and one that writes on and on
until the power is cut."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from harness.consents import Consent
from harness.shell import Shell

_SCRATCH = "/tmp/hil-writer"
# The system call may be in a child; a fatal signal must reach that one. Not every kernel has
# CONFIG_PROC_CHILDREN, so the children are found by the parent that each process names.
_KILL = (
    "all=\"$(sed -n 's/^\\([0-9]*\\) (.*) . {pid} .*/\\1/p' /proc/[0-9]*/stat 2>/dev/null) "
    '{pid}"; '
    "kill -9 $all 2>/dev/null; "
    "i=0; for p in $all; do while test -d /proc/$p; "
    "do i=$((i + 1)); test $i -lt {polls} || exit 1; sleep 0.02; done; done"
)


@dataclass(frozen=True)
class Writer:
    """A process on the board that writes one variable with one write(2) and leaves its status in
    a file."""

    shell: Shell
    pid: int

    @classmethod
    def start(cls, shell: Shell, path: str, content: bytes) -> Self:
        """Start it in the background; ``content`` begins with the four attribute bytes."""
        shell.write_file(f"{_SCRATCH}.data", content)
        pid = shell.run_isolated(
            f"rm -f {_SCRATCH}.status; "
            f"(dd if={_SCRATCH}.data of={shlex.quote(path)} bs={len(content)} conv=notrunc "
            f"2>/dev/null; echo $? > {_SCRATCH}.status) </dev/null >/dev/null 2>&1 & echo $!"
        ).check()
        return cls(shell, int(pid.text))

    def ended(self, within: float) -> bool:
        """Whether it ended within so many seconds."""
        return _exists(self.shell, f"{_SCRATCH}.status", within)

    def status(self) -> int:
        """Its exit status; 0 when the variable was written."""
        return int(self.shell.run(f"cat {_SCRATCH}.status").check().text)

    def kill(self, *, within: float = 2.0) -> bool:
        """SIGKILL to it and to its child; whether both are gone after so many seconds."""
        within = max(within, self.shell.least_timeout)
        killing = _KILL.format(pid=self.pid, polls=int(within * 50))
        return self.shell.run_isolated(killing, timeout=within + 10).ok


@dataclass(frozen=True)
class WriterLoop:
    """A process on the board that writes ``contents`` one after the other through one descriptor,
    each with one write(2), and counts in a file what is done."""

    shell: Shell
    pid: int

    @classmethod
    def start(
        cls,
        shell: Shell,
        path: str,
        contents: Sequence[bytes],
        *,
        consent: Callable[[Consent], None],
    ) -> Self:
        """Start it in the background; each content begins with the four attribute bytes, and all
        are equally long."""
        consent(Consent.WRITE_RPMB)
        shell.write_file(f"{_SCRATCH}.data", b"".join(contents))
        writes = "; ".join(
            f"dd if={_SCRATCH}.data bs={len(content)} skip={number - 1} count=1 >&3 2>/dev/null "
            f"|| exit; echo {number} >{_SCRATCH}.done"
            for number, content in enumerate(contents, 1)
        )
        pid = shell.run_isolated(
            f"echo 0 >{_SCRATCH}.done; (exec 3<>{shlex.quote(path)}; {writes}) "
            "</dev/null >/dev/null 2>&1 & echo $!"
        ).check()
        return cls(shell, int(pid.text))

    def done(self) -> int:
        """How many contents were written and answered for."""
        return int(self.shell.run(f"cat {_SCRATCH}.done").check().text)

    def wait_until(self, done: int, *, timeout: float = 15.0) -> int:
        """Wait on the board until ``done`` contents are written or the writer has ended; returns
        how many are."""
        waiting = (
            f"i=0; while read -r n <{_SCRATCH}.done; test $n -lt {done} && "
            f"test -d /proc/{self.pid} && test $i -lt {int(timeout * 100)}; "
            "do i=$((i + 1)); sleep 0.01; done"
        )
        self.shell.run(waiting, timeout=timeout + 10)
        return self.done()


def _exists(shell: Shell, path: str, within: float) -> bool:
    waiting = (
        f"i=0; while test $i -lt {int(within * 20)} && ! test -s {path}; "
        f"do i=$((i + 1)); sleep 0.05; done; test -s {path}"
    )
    return shell.run_isolated(waiting, timeout=within + 10).ok

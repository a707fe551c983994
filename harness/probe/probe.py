"""Raw system calls on the target, taken by a process that stays between batches.

The process is an uploaded static program where there is one for the target's processor
(:mod:`harness.probe.static_steps`), else python3 where the target has it, which takes longer to
start (:mod:`harness.probe.target`), else the target's shell (:mod:`harness.probe.shell_steps`).
Which one works is found out by trying.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Any

from harness.errors import HostError, LinkError, OutputWithoutEnd, TargetError
from harness.links import posix
from harness.probe import steps as do
from harness.probe.helper.program import Machine, machine_of
from harness.probe.shell_steps import SERVER, Translator
from harness.probe.static_steps import BatchTooLarge, StaticCodec
from harness.probe.steps import Outcome, Step
from harness.shell import Shell

BACKENDS = ("static", "python3", "sh")
_INLINE = 8192  # bytes of a batch inside the command line
_LONGEST_ANSWER = 16 << 20  # bytes; JSON takes many times that in memory
_GONE = 88  # exit status that says the process on the target has ended


class Probe:
    """Raw system calls on the board behind ``shell``.

    Descriptors opened by one :meth:`steps` call stay open for the next. ``backend`` forces
    ``"python3"``, ``"static"`` or ``"sh"``; None takes the first that works on the target. After
    a link error or a reboot the process is started afresh and old descriptors are ``EBADF``.
    ``guard`` sees every batch before it is taken, and may raise.
    """

    def __init__(
        self,
        shell: Shell,
        *,
        backend: str | None = None,
        guard: Callable[[Sequence[Step]], None] | None = None,
    ) -> None:
        self.shell = shell
        self._wanted = backend
        self._guard = guard
        self._process: _Process | None = None
        self._open: set[str] = set()

    @property
    def backend(self) -> str | None:
        """The back-end in use, or the one asked for before the first step."""
        return self._process.backend if self._process else self._wanted

    def steps(self, steps: Sequence[Step], *, timeout: float = 10.0) -> list[Outcome]:
        """Take the steps in order and return one outcome each; an error does not stop the rest.

        Raises the shell's ``LinkError`` classes, ``HostError`` if no back-end works on the
        target, ``TargetError`` if the process on the target dies.
        """
        if not steps:
            return []
        if self._guard is not None:
            self._guard(steps)
        if self._process is None:
            self._process = self._start(timeout)
        try:
            outcomes = self._process.take(steps, timeout)
        except (_Gone, BatchTooLarge) as error:
            lost = bool(self._open)
            self.close()
            if lost or (self._wanted and isinstance(error, BatchTooLarge)):
                raise
            # No step was taken and no descriptor is lost: another process does as well.
            others = BACKENDS[1:] if isinstance(error, BatchTooLarge) else BACKENDS
            self._process = self._start(timeout, others)
            outcomes = self._process.take(steps, timeout)
        except (LinkError, TargetError, OutputWithoutEnd):
            self.close()
            raise
        for step in steps:
            if isinstance(step, do.Open):
                self._open.add(step.fd)
            elif isinstance(step, do.Close):
                self._open.discard(step.fd)
        return outcomes

    def close(self) -> None:
        """End the process on the target and all its descriptors; never raises."""
        process, self._process = self._process, None
        self._open.clear()
        if process is not None:
            with contextlib.suppress(Exception):
                process.end()

    def _start(self, timeout: float, backends: Sequence[str] = BACKENDS) -> _Process:
        refusals = []
        for backend in (self._wanted,) if self._wanted else backends:
            try:
                return _Process(self.shell, backend, timeout)
            except HostError as error:
                refusals.append(error.what)
        raise HostError(
            f"no probe runs on the target: {'; '.join(refusals)}",
            remedy="the board needs python3, or sh with mkfifo, cat, od and tr, and a writable"
            " /run, /dev/shm or /tmp",
        )

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Gone(TargetError):
    """The process had ended before it was sent anything."""


class _Process:
    """The process on the target, two fifos and their directory."""

    def __init__(self, shell: Shell, backend: str, timeout: float) -> None:
        self.backend = backend
        self._shell = shell
        self._codec = self._make_codec(timeout)
        name = f"hil-probe-{secrets.token_hex(4)}"
        made = shell.run(
            f"for d in /run /dev/shm /tmp; do mkdir -m 700 $d/{name} 2>/dev/null || continue; "
            f"P=$d/{name}; mkfifo -m 600 $P/request $P/answer || exit; echo $P; exit; done; exit 1",
            timeout=timeout,
        )
        if not made.ok:
            raise HostError(
                f"no directory with fifos on the target ({made.error_text})",
                remedy="make /run or /tmp writable and provide mkfifo",
            )
        self._directory = made.text
        try:
            self._pid = self._launch(timeout)
        except BaseException:
            self._remove()
            raise

    def _make_codec(self, timeout: float) -> _PythonCodec | StaticCodec | _ShellCodec:
        match self.backend:
            case "python3":
                return _PythonCodec()
            case "static":
                return StaticCodec(self._machine(timeout))
            case _:
                return _ShellCodec()

    def _machine(self, timeout: float) -> Machine:
        """The processor by the shell that runs there: what uname says may be another one's."""
        header = self._shell.run("head -c 20 /proc/self/exe", timeout=timeout).stdout
        machine = machine_of(header)
        if machine is None:
            raise HostError("no static program for this processor", remedy="install python3")
        return machine

    def _launch(self, timeout: float) -> int:
        directory = quote(self._directory)
        if self.backend == "python3":
            script = Path(__file__).with_name("target.py").read_bytes()
            self._shell.write_file(f"{self._directory}/target.py", script, timeout=timeout)
            program = f"python3 {directory}/target.py {directory}"
            trial = self._shell.run("python3 -c 'import json, os, struct, signal'", timeout=timeout)
        elif isinstance(self._codec, StaticCodec):
            file = f"{self._directory}/helper"
            self._shell.write_file(file, self._codec.machine.program, mode=0o700, timeout=timeout)
            # Where there is no fifo called request it ends at once.
            trial = self._shell.run(f"cd / && exec {quote(file)}", timeout=timeout)
            program = f"sh -c 'umask 0; cd {directory} && exec ./helper'"
        else:
            program = f"sh -c {quote(SERVER)} hil {directory}"
            trial = self._shell.run("echo a | od -An -v -tx1 | tr -d ' '", timeout=timeout)
        if not trial.ok:
            raise HostError(
                f"{self.backend} does not run there ({trial.error_text})", remedy="install it"
            )
        started = self._shell.run(
            f"$(command -v setsid) {program} </dev/null >/dev/null 2>&1 & echo $!", timeout=timeout
        )
        return int(started.text)

    def take(self, steps: Sequence[Step], timeout: float) -> list[Outcome]:
        known, batch = self._codec.encode(steps)
        if batch:
            asked = [step for step, outcome in zip(steps, known, strict=True) if outcome is None]
            fresh = iter(self._decoded(asked, self._exchange(batch, timeout)))
            return [outcome or next(fresh) for outcome in known]
        return [outcome for outcome in known if outcome]

    def _decoded(self, steps: Sequence[Step], answer: bytes) -> list[Outcome]:
        try:
            return self._codec.decode(steps, answer)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise TargetError(
                f"the probe on the target answers what it never says: {answer[:80]!r}",
                remedy="does something else write to its fifo, or is its memory damaged?",
            ) from error

    def _exchange(self, batch: str | bytes, timeout: float) -> bytes:
        directory = quote(self._directory)
        # a killed process may still be a zombie; writing to its fifo would wait for ever. A shell
        # whose background job ends meanwhile takes an interrupted open for a failure.
        begin = (
            f"for i in 1 2 3; do s=; read -r s 2>/dev/null </proc/{self._pid}/stat && break; done;"
            f" case $s in ''|*') Z '*) exit {_GONE};; esac;"
            f" until {{ command exec 9>{directory}/request; }} 2>/dev/null;"
            f" do i=x$i; test ${{#i}} -lt 5 || exit {_GONE}; done"
        )
        end = f"exec 9>&-; exec cat {directory}/answer"
        if len(batch) <= _INLINE:
            words = f"%s {quote(batch)}" if isinstance(batch, str) else f"'{_printf(batch)}'"
            result = self._shell.run(f"{begin}; printf {words} >&9; {end}", timeout=timeout)
        else:
            result = self._shell.run(
                f"{begin}; cat >&9; {end}",
                timeout=timeout,
                stdin=batch.encode() if isinstance(batch, str) else batch,
            )
        if not result.ok or not result.stdout:
            gone = _Gone if result.status == _GONE else TargetError
            raise gone(
                f"the probe on the target has ended (status {result.status} {result.error_text})",
                remedy="was it killed, or did the board reboot? Descriptors are lost; take the"
                " steps again from their open",
            )
        if len(result.stdout) > _LONGEST_ANSWER:
            raise OutputWithoutEnd("the probe on the target", _LONGEST_ANSWER)
        return result.stdout

    def end(self) -> None:
        # not a clean end by request: the process may hang in a system call
        self._shell.run(f"kill -KILL {self._pid}; rm -rf {quote(self._directory)}", timeout=2.0)

    def _remove(self) -> None:
        with contextlib.suppress(Exception):
            self._shell.run(f"rm -rf {quote(self._directory)}", timeout=2.0)


def _printf(data: bytes) -> str:
    """``data`` as a format of printf, most of it zeros: short where no digit follows."""
    return re.sub(r"\\000(?![0-7])", r"\\0", posix.octal(data))


class _PythonCodec:
    def encode(self, steps: Sequence[Step]) -> tuple[list[Outcome | None], str]:
        return [None] * len(steps), json.dumps([_plain(step) for step in steps])

    def decode(self, steps: Sequence[Step], answer: bytes) -> list[Outcome]:
        return [
            Outcome(
                step,
                value=found.get("value"),
                data=bytes.fromhex(found.get("data", "")),
                errno=found.get("errno"),
                unsupported=found.get("unsupported"),
                names=tuple(bytes.fromhex(name) for name in found.get("names", ())),
                fields=tuple((name, number) for name, number in found.get("fields", ())),
            )
            for step, found in zip(steps, json.loads(answer), strict=True)
        ]


def _plain(step: Step) -> dict[str, Any]:
    values: dict[str, Any] = {
        field.name: _json_value(getattr(step, field.name)) for field in dataclasses.fields(step)
    }
    return {"kind": type(step).__name__.lower(), **values}


def _json_value(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_json_value(one) for one in value]
    return value


class _ShellCodec:
    """Descriptors are known only after an open has succeeded, so a batch is translated as if
    all its opens will."""

    def __init__(self) -> None:
        self._translator = Translator()

    def encode(self, steps: Sequence[Step]) -> tuple[list[Outcome | None], str]:
        known: list[Outcome | None] = []
        lines = []
        for step in steps:
            made = self._translator.script(step)
            known.append(made if isinstance(made, Outcome) else None)
            if isinstance(made, str):
                lines.append(made)
        return known, "\n".join(lines)

    def decode(self, steps: Sequence[Step], answer: bytes) -> list[Outcome]:
        return [
            self._translator.outcome(step, line)
            for step, line in zip(steps, answer.decode("ascii").splitlines(), strict=True)
        ]

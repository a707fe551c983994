"""``systemctl`` of the emulated board: arguments in, text and exit status out.

Texts and exit codes are those of systemd 252 to 257 (systemctl(1)).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from emulation.userland.system.command_line import CommandLine, Ended, Reply
from emulation.userland.system.journal import Journal
from emulation.userland.system.units import StartLimitHit, Unit

_STARTING: Final = ("start", "restart", "try-restart")
_ALONE: Final = ("poweroff", "halt", "reboot", "is-system-running")
"""Verbs without operands."""


class PowerSwitch(Protocol):
    """Ends the system from inside."""

    def request(self, action: str, *, force: bool) -> None:
        """``action``: reboot, poweroff or halt; returns at once."""


class UnitTable:
    """The loaded units, by name, alias or name without suffix."""

    def __init__(self) -> None:
        self._units: list[Unit] = []

    def load(self, *units: Unit) -> None:
        """Make units known."""
        self._units += units

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    def find(self, name: str) -> Unit | None:
        full = full_name(name)
        for unit in self._units:
            if full == unit.file.name or full in unit.file.aliases:
                return unit
        return None


def full_name(name: str) -> str:
    """A service where the name has no suffix."""
    return name if "." in name else f"{name}.service"


@dataclass(frozen=True)
class Options:
    """Command line split into the verb, its operands and the switches that mean something."""

    words: tuple[str, ...]
    properties: tuple[str, ...] = ()
    value: bool = False
    quiet: bool = False
    force: bool = False
    signal: str = "TERM"
    states: frozenset[str] = frozenset()
    type: str = ""


_COMMAND_LINE: Final = CommandLine(
    "systemctl",
    "-p --property= -P= -s --signal= -n --lines= -t --type= --state= -o --output= --job-mode= "
    "--kill-who= --kill-whom= --value -q --quiet -f --force -a --all -l --full --failed --system "
    "--no-pager --no-legend --plain --no-block --wait --no-wall --no-ask-password --message= "
    "--check-inhibitors= -i -T --show-transaction",
    "systemctl [OPTIONS...] COMMAND ...",
    "",
    "Query or send control commands to the system manager.",
)


def _parse(arguments: Sequence[str]) -> Options:
    """Raises :class:`Ended`."""
    words = _COMMAND_LINE.read(arguments)
    shown = [value for name, value in words.options if name in ("property", "P")]
    states = [value for name, value in words.options if name == "state"]
    return Options(
        words.operands,
        tuple(name for value in shown for name in value.split(",")),
        value=words.has("value", "P"),
        quiet=words.has("quiet"),
        force=words.has("force"),
        signal=words.last("signal") or "TERM",
        states=frozenset(
            state
            for value in (*states, *(["failed"] if words.has("failed") else []))
            for state in value.split(",")
        ),
        type=words.last("type") or "",
    )


class Systemctl:
    """The command's verbs, over a table of units."""

    def __init__(self, units: UnitTable, journal: Journal, power: PowerSwitch) -> None:
        self._units = units
        self._journal = journal
        self._power = power
        self._verbs: dict[str, Callable[[int, Options], Awaitable[Reply]]] = {
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "try-restart": self._restart,
            "kill": self._kill,
            "reset-failed": self._reset_failed,
            "status": self._status,
            "show": self._show,
            "cat": self._cat,
            "is-active": self._is_active,
            "is-failed": self._is_failed,
            "is-enabled": self._is_enabled,
            "is-system-running": self._is_system_running,
            "list-units": self._list_units,
            "reboot": self._end_system,
            "poweroff": self._end_system,
            "halt": self._end_system,
        }

    async def run(
        self, uid: int, arguments: Sequence[str], drop_ins: Mapping[str, str] | None = None
    ) -> Reply:
        """One invocation, by user ``uid`` of the board; ``drop_ins``: see :meth:`_reload`."""
        try:
            options = _parse(arguments)
        except Ended as ended:
            return ended.reply
        verb = options.words[0] if options.words else "list-units"
        if verb == "daemon-reload":
            return self._reload(uid, drop_ins or {})
        action = self._verbs.get(verb)
        if action is None:
            return Reply().fail(1, f"Unknown command verb '{verb}'.")
        if verb in _ALONE and len(options.words) > 1:
            return Reply().fail(1, "Too many arguments.")
        return await action(uid, options)

    def _found(
        self, names: Sequence[str], reply: Reply, status: int, missing: str
    ) -> Iterator[Unit]:
        """The units of these names; ``reply`` fails for each that there is not."""
        for name in map(full_name, names):
            unit = self._units.find(name)
            if unit is None:
                reply.fail(status, missing.format(name))
            else:
                yield unit

    # ------------------------------------------------------------ changing

    async def _each(
        self,
        uid: int,
        options: Options,
        action: Callable[[Unit], Awaitable[None]],
        *,
        missing: str,
    ) -> Reply:
        verb, *names = options.words
        reply = Reply()
        if not names:
            return reply.fail(1, "Too few arguments.")
        for name in map(full_name, names):
            unit = self._units.find(name)
            if uid != 0:
                reply.fail(
                    1,
                    f"Failed to {verb} {name}: Interactive authentication required.",
                    f"See system logs and 'systemctl status {name}' for details.",
                )
            elif unit is None:
                reply.fail(5, f"Failed to {verb} {name}: Unit {name} {missing}.")
            else:
                try:
                    await action(unit)
                except StartLimitHit:
                    reply.fail(1, *_too_often(name))
                else:
                    if verb in _STARTING and unit.active == "failed":
                        reply.fail(1, *_start_failed(name))
        return reply

    async def _start(self, uid: int, options: Options) -> Reply:
        return await self._each(uid, options, lambda unit: unit.start(), missing="not found")

    async def _stop(self, uid: int, options: Options) -> Reply:
        return await self._each(uid, options, lambda unit: unit.stop(), missing="not loaded")

    async def _restart(self, uid: int, options: Options) -> Reply:
        only_running = options.words[0] == "try-restart"

        async def restart(unit: Unit) -> None:
            if unit.active == "active" or not only_running:
                await unit.stop()
                await unit.start()

        return await self._each(uid, options, restart, missing="not found")

    async def _kill(self, uid: int, options: Options) -> Reply:
        number = _signal_number(options.signal)
        if number is None:
            return Reply().fail(1, f"Failed to parse signal string {options.signal}.")
        reply = Reply()
        for name in map(full_name, options.words[1:]):
            unit = self._units.find(name)
            if unit is None:
                reply.fail(1, f"Failed to kill unit {name}: Unit {name} not loaded.")
                continue
            try:
                unit.kill(number)
            except OSError:
                reply.fail(1, f"Failed to kill unit {name}: No main process to kill")
        return reply

    async def _reset_failed(self, uid: int, options: Options) -> Reply:
        reply = Reply()
        names = options.words[1:] or [unit.file.name for unit in self._units]
        missing = "Failed to reset failed state of unit {0}: Unit {0} not loaded."
        for unit in self._found(names, reply, 1, missing):
            unit.reset_failed()
        return reply

    def _reload(self, uid: int, files: Mapping[str, str]) -> Reply:
        """``daemon-reload``: the units have those drop-ins of ``files`` (path: content) that are
        theirs. Of two of one name the one in /etc counts (systemd.unit(5))."""
        if uid != 0:
            text = "Failed to reload daemon: Interactive authentication required."
            return Reply().fail(1, text)
        for unit in self._units:
            own: dict[str, str] = {}
            for path in sorted(files, reverse=True):
                folder, _, name = path.rpartition("/")
                if folder.endswith(f"/{unit.file.name}.d"):
                    own[name] = path
            drop_ins = tuple((own[name], files[own[name]]) for name in sorted(own))
            unit.file = replace(unit.file, drop_ins=drop_ins)
        return Reply()

    async def _end_system(self, uid: int, options: Options) -> Reply:
        verb = options.words[0]
        if uid != 0:
            return Reply().fail(
                1,
                f"Call to {verb.capitalize()} failed: Interactive authentication required.",
            )
        self._power.request(verb, force=options.force)
        return Reply()

    # ------------------------------------------------------------- looking

    async def _is_active(self, uid: int, options: Options) -> Reply:
        units = [self._units.find(name) for name in options.words[1:]]
        states = [unit.active if unit else "inactive" for unit in units]
        status = 0 if "active" in states else 3 if any(units) else 4
        return Reply(out=[] if options.quiet else states, status=status)

    async def _is_failed(self, uid: int, options: Options) -> Reply:
        units = [self._units.find(name) for name in options.words[1:]]
        states = [unit.active if unit else "inactive" for unit in units]
        return Reply(out=[] if options.quiet else states, status=0 if "failed" in states else 1)

    async def _is_enabled(self, uid: int, options: Options) -> Reply:
        reply = Reply()
        missing = "Failed to get unit file state for {0}: No such file or directory"
        for unit in self._found(options.words[1:], reply, 1, missing):
            reply.out.append(unit.file.file_state)
            reply.status = max(reply.status, 0 if unit.file.enabled else 1)
        return reply

    async def _is_system_running(self, uid: int, options: Options) -> Reply:
        degraded = any(unit.active == "failed" for unit in self._units)
        return Reply(out=["degraded" if degraded else "running"], status=int(degraded))

    async def _list_units(self, uid: int, options: Options) -> Reply:
        rows = [("UNIT", "LOAD", "ACTIVE", "SUB", "DESCRIPTION")]
        rows += [
            (unit.file.name, "loaded", unit.active, unit.sub, unit.file.description)
            for unit in self._units
            if (unit.active in options.states if options.states else unit.active != "inactive")
            and unit.file.name.endswith(options.type)
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  " + " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return Reply(
            out=[*(line.rstrip() for line in lines), "", f"{len(rows) - 1} loaded units listed."]
        )

    async def _status(self, uid: int, options: Options) -> Reply:
        reply = Reply()
        for unit in self._found(options.words[1:], reply, 4, "Unit {0} could not be found."):
            if reply.out:
                reply.out.append("")
            reply.out += self._status_of(unit)
            reply.status = max(reply.status, 0 if unit.active == "active" else 3)
        return reply

    def _status_of(self, unit: Unit) -> list[str]:
        mark = {"active": "●", "failed": "\u00d7"}.get(unit.active, "○")
        state = f"{unit.active} ({unit.sub})"
        if unit.active == "failed":
            state = f"failed (Result: {unit.result})"
        file = unit.file
        lines = [
            f"{mark} {file.title}",
            f"     Loaded: loaded ({file.path}; {file.file_state}; preset: enabled)",
            f"     Active: {state} since {_stamp(unit.changed)}; {_ago(unit.changed)} ago",
        ]
        if unit.invocation:
            lines.append(f" Invocation: {unit.invocation}")
        if unit.last_exit is not None:
            ended = unit.last_exit
            how = ended.describe_status()
            lines.append(f"    Process: {ended.pid} ExecStart={unit.command} ({how})")
            lines.append(f"   Main PID: {ended.pid} ({how})")
        elif unit.main_pid:
            process = unit.command.rpartition("/")[2]
            lines.append(f"   Main PID: {unit.main_pid} ({process})")
            lines.append(f"     CGroup: /system.slice/{file.name}")
            lines.append(f"             └─{unit.main_pid} {unit.command}")
        recent = self._journal.entries(unit=file.name)[-10:]
        return [*lines, "", *(entry.render(self._journal.hostname) for entry in recent)]

    async def _cat(self, uid: int, options: Options) -> Reply:
        """The unit's file and its drop-ins, each after a comment with its path."""
        reply = Reply()
        for unit in self._found(options.words[1:], reply, 1, "No files found for {0}."):
            for path, content in ((unit.file.path, unit.file.text), *unit.file.drop_ins):
                reply.out += ([""] if reply.out else []) + [f"# {path}", *content.splitlines()]
        return reply

    async def _show(self, uid: int, options: Options) -> Reply:
        names = [full_name(name) for name in options.words[1:]]
        blocks = []
        for name in names:
            table = _properties(self._units.find(name), name)
            wanted = options.properties or tuple(table)
            blocks.append(
                [
                    table[key] if options.value else f"{key}={table[key]}"
                    for key in wanted
                    if key in table
                ]
            )
        out: list[str] = []
        for block in blocks:
            out += ([""] if out else []) + block
        return Reply(out=out)


def _properties(unit: Unit | None, name: str) -> dict[str, str]:
    """The properties that ``systemctl show`` prints for a unit, known or not."""
    if unit is None:
        return {
            "Id": name,
            "Description": name,
            "LoadState": "not-found",
            "ActiveState": "inactive",
            "SubState": "dead",
            "MainPID": "0",
            "UnitFileState": "",
        }
    ended = unit.last_exit
    stops = " ; ".join(
        f"{{ path={command.argv[0]} ; argv[]={' '.join(command.argv)} ;"
        f" ignore_errors={'yes' if command.ignore_errors else 'no'} }}"
        for command in unit.file.stop_commands
    )
    return {
        "Type": "simple",
        **({"ExecStop": stops} if stops else {}),
        "MainPID": str(unit.main_pid),
        "Result": unit.result,
        "ExecMainPID": str(unit.main_pid or (ended.pid if ended else 0)),
        "ExecMainCode": "0" if ended is None else "2" if ended.signal else "1",
        "ExecMainStatus": "0" if ended is None else str(ended.signal or ended.code),
        "Id": unit.file.name,
        "Names": " ".join((unit.file.name, *unit.file.aliases)),
        "Description": unit.file.description,
        "LoadState": "loaded",
        "ActiveState": unit.active,
        "SubState": unit.sub,
        "FragmentPath": unit.file.path,
        "DropInPaths": " ".join(path for path, _ in unit.file.drop_ins),
        "UnitFileState": unit.file.file_state,
        "ActiveEnterTimestamp": _stamp(unit.activated) if unit.activated else "",
        "InvocationID": unit.invocation,
    }


def _start_failed(name: str) -> tuple[str, ...]:
    return (
        f"Job for {name} failed because the control process exited with error code.",
        f'See "systemctl status {name}" and "journalctl -xeu {name}" for details.',
    )


def _too_often(name: str) -> tuple[str, ...]:
    return (
        f"Job for {name} failed because start of the service was attempted too often.",
        f'See "systemctl status {name}" and "journalctl -xeu {name}" for details.',
        f'To force a start use "systemctl reset-failed {name}"',
        f'followed by "systemctl start {name}" again.',
    )


def _signal_number(text: str) -> int | None:
    if text.isdecimal():
        return int(text)
    name = f"SIG{text.upper().removeprefix('SIG')}"
    return signal.Signals[name].value if name in signal.Signals.__members__ else None


def _stamp(when: float) -> str:
    return time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(when))


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    if seconds < 1:
        return f"{int(seconds * 1000)}ms"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}min"
    return f"{minutes}min {seconds}s" if minutes else f"{seconds}s"

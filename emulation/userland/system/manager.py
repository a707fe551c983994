"""The board's service manager: the supervisor's half of PID 1.

Programs of the board (``systemctl``, ``modprobe``, ``reboot`` …) are one small client that sends
its arguments over a unix socket; what they mean happens here, in the supervisor's event loop,
so that a unit's state is in one place and dies with the power.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulation.linux.kernel import Task
from emulation.machine import Machine
from emulation.userland.system import udev
from emulation.userland.system.command_line import CommandLine, Ended, Reply, Words
from emulation.userland.system.journalctl import Journalctl
from emulation.userland.system.systemctl import PowerSwitch, Systemctl

SOCKET_IN_BOARD: Final = "/run/systemd/private"
"""Where systemd's own private socket is."""

MAX_REQUEST: Final = 1 << 20
MAX_CLIENTS: Final = 64
REQUEST_SECONDS: Final = 10.0

COMMANDS: Final = (
    "systemctl", "journalctl", "modprobe", "rmmod", "udevadm",
    "reboot", "poweroff", "halt", "shutdown", "systemd-detect-virt",
)  # fmt: skip
"""Names under which the client program is installed."""

_ENDS: Final = ("reboot", "poweroff", "halt")
_MODPROBE: Final = CommandLine(
    "modprobe",
    "-q --quiet -r --remove -n --dry-run --show -a --all -b --use-blacklist -f --force -v "
    "--verbose -s --syslog -i --ignore-install -S --set-version= -d --dirname= -C --config=",
    "Usage: modprobe [options] [-i] [-b] modulename",
    version=("kmod version 34",),
)
_RMMOD: Final = CommandLine(
    "rmmod",
    "-f --force -s --syslog -v --verbose",
    "Usage: rmmod [options] modulename ...",
    version=("kmod version 34",),
)
_SHUTDOWN: Final = CommandLine(
    "shutdown",
    "--no-wall -H --halt -P --poweroff -r --reboot -h -k -c -a -f -F -t=",
    "shutdown [OPTIONS...] [TIME] [WALL...]",
    "",
    "Shut down the system.",
)
_DETECT_VIRT: Final = CommandLine(
    "systemd-detect-virt",
    "-c --container -v --vm -r --chroot --private-users -q --quiet",
    "systemd-detect-virt [OPTIONS...]",
    "",
    "Detect execution in a virtualized environment.",
)
_UDEVADM: Final = CommandLine(
    "udevadm",
    "-q --query= -n --name= -p --path= -x --export -t --timeout= -R --reload -w --wait= "
    "-E --exit-if-exists= -c --action= -s --subsystem-match= -v --verbose --settle",
    "udevadm [--help] [--version] [--debug] COMMAND [COMMAND OPTIONS]",
    version=("257",),
)


def _ending(program: str) -> CommandLine:
    return CommandLine(
        program,
        "--no-wall -f --force -p --poweroff --reboot --halt -w --wtmp-only -d --no-wtmp -n "
        "--no-sync -i -h",
        f"{program} [OPTIONS...]",
    )


Command = Callable[[int, Sequence[str]], Awaitable[Reply]]


@dataclass(frozen=True)
class _Request:
    command: str
    arguments: tuple[str, ...]
    drop_ins: dict[str, str] | None


def _request(line: bytes) -> _Request:
    """Of one line; raises ValueError (and RecursionError) where it is not what a client sends."""
    read = json.loads(line)
    if not isinstance(read, dict):
        raise ValueError("no object")
    command, arguments, drop_ins = (read.get(key) for key in ("command", "arguments", "drop_ins"))
    known = isinstance(arguments, list) and isinstance(drop_ins, dict | None)
    words = (command, *(arguments or ()), *(drop_ins or {}).values())
    if not known or not all(isinstance(word, str) for word in words):
        raise ValueError("wrong types")
    return _Request(str(command), tuple(arguments or ()), drop_ins)


class Manager:
    """Answers the control socket. One per power-on."""

    def __init__(
        self,
        systemctl: Systemctl,
        journalctl: Journalctl,
        power: PowerSwitch,
        machine: Machine,
        board_uid: Callable[[int], int],
    ) -> None:
        """``board_uid``: the board's number for a user id of the host."""
        self._board_uid = board_uid
        self._open = 0
        self._systemctl = systemctl
        self._power = power
        self._machine = machine
        self._server: asyncio.Server | None = None
        self._delayed: asyncio.TimerHandle | None = None
        self._commands: dict[str, Command] = {
            "journalctl": journalctl.run,
            "modprobe": self._modprobe,
            "rmmod": self._rmmod,
            "reboot": self._end("reboot"),
            "poweroff": self._end("poweroff"),
            "halt": self._end("halt"),
            "shutdown": self._shutdown,
            "udevadm": self._udevadm,
            "systemd-detect-virt": self._detect_virt,
        }

    async def listen(self, path: Path) -> None:
        """Serve on a unix socket at ``path`` (host side); every user of the board may connect.

        Who asks is what the kernel says of the connection (SO_PEERCRED, unix(7))."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        # A path through /proc keeps long state directories below the 108 bytes of sun_path.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        path.chmod(0o666)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=MAX_REQUEST
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._delayed is not None:
            self._delayed.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CLIENTS:
                await self._answer(reader, writer)
        except (ConnectionError, TimeoutError):
            pass
        except Exception as error:  # a mistake in one answer ends that conversation only
            print(f"emulation: service manager: refused a request: {error!r:.200}", file=sys.stderr)
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = _request(await reader.readline())
        except (ValueError, RecursionError):
            return  # refused: no client of ours sends that
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = self._board_uid(struct.unpack("iII", peer)[1])
        try:
            if request.command == "systemctl":
                reply = await self._systemctl.run(uid, request.arguments, request.drop_ins)
            elif request.command in self._commands:
                reply = await self._commands[request.command](uid, request.arguments)
            else:
                return
        except Ended as ended:
            reply = ended.reply
        answer = {
            "out": "".join(f"{line}\n" for line in reply.out),
            "err": "".join(f"{line}\n" for line in reply.err),
            "status": reply.status,
        }
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()

    # ------------------------------------------------------------- modules

    async def _modprobe(self, uid: int, arguments: Sequence[str]) -> Reply:
        words = _MODPROBE.read(arguments)
        names = words.operands
        quiet = words.has("quiet")
        if not names:
            return Reply().fail(1, "modprobe: ERROR: missing parameters. See -h.")
        if words.has("remove"):
            return await self._remove(uid, names, missing="modprobe: FATAL: Module {} not found.")
        reply = Reply()
        try:
            if words.has("dry-run", "show"):
                self._machine.running.modules.find(names[0])
            else:
                self._require_root(uid)
                await asyncio.to_thread(self._machine.running.modules.modprobe, names[0])
        except FileNotFoundError:
            where = f"/lib/modules/{self._machine.release}"
            text = f"modprobe: FATAL: Module {names[0]} not found in directory {where}"
            reply.fail(1, *([] if quiet else [text]))
        except OSError as error:
            reply.fail(1, f"modprobe: ERROR: could not insert '{names[0]}': {error.strerror}")
        return reply

    async def _rmmod(self, uid: int, arguments: Sequence[str]) -> Reply:
        names = _RMMOD.read(arguments).operands
        if not names:
            return Reply().fail(1, "rmmod: ERROR: missing module name.")
        missing = "rmmod: ERROR: Module {} is not currently loaded"
        return await self._remove(uid, names, missing=missing)

    async def _remove(self, uid: int, names: Sequence[str], *, missing: str) -> Reply:
        reply = Reply()
        for name in names:
            try:
                self._require_root(uid)
                await asyncio.to_thread(self._machine.running.modules.rmmod, name)
            except FileNotFoundError:
                reply.fail(1, missing.format(name))
            except OSError as error:
                reply.fail(1, f"rmmod: ERROR: could not remove '{name}': {error.strerror}")
        return reply

    @staticmethod
    def _require_root(uid: int) -> None:
        if uid != 0:
            raise PermissionError(1, "Operation not permitted")

    # --------------------------------------------------------------- power

    def _end(self, action: str) -> Command:
        line = _ending(action)

        async def end(uid: int, arguments: Sequence[str]) -> Reply:
            words = line.read(arguments)
            if len(words.operands) > (action == "reboot"):
                return Reply().fail(1, "Too many arguments.")
            if words.has("wtmp-only"):
                return Reply()  # a note in /var/log/wtmp, no more
            if uid != 0:
                text = f"Call to {action.capitalize()} failed: Interactive authentication required."
                return Reply().fail(1, text)
            final = next((name for name, _ in reversed(words.options) if name in _ENDS), action)
            force = words.has("force")
            self._power.request(final, force=force)
            return Reply()

        return end

    async def _shutdown(self, uid: int, arguments: Sequence[str]) -> Reply:
        words = _SHUTDOWN.read(arguments)
        if words.has("k"):
            return Reply()  # warns, and ends nothing
        if uid != 0:
            text = "Failed to set wall message, ignoring: Interactive authentication required."
            return Reply().fail(1, text)
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        if words.has("c"):
            return Reply()
        action = next((name for name, _ in reversed(words.options) if name in _ENDS), "poweroff")
        when = words.operands[0] if words.operands else "+1"
        minutes = 0 if when == "now" else when.removeprefix("+")
        if not str(minutes).isdecimal():
            return Reply().fail(1, f"Failed to parse time specification: {when}")
        delay = 60.0 * int(minutes)
        if delay == 0:
            self._power.request(action, force=False)
            return Reply()
        loop = asyncio.get_running_loop()
        self._delayed = loop.call_later(delay, lambda: self._power.request(action, force=False))
        return Reply(
            err=[f"{action.capitalize()} scheduled in {minutes} min, use 'shutdown -c' to cancel."]
        )

    async def _detect_virt(self, uid: int, arguments: Sequence[str]) -> Reply:
        """The recorded board is QEMU's, which DMI tells (boot log)."""
        words = _DETECT_VIRT.read(arguments)
        inside = not words.has("container", "chroot", "private-users")
        shown = [] if words.has("quiet", "chroot", "private-users") else ["qemu"]
        return Reply(out=shown if inside or not shown else ["none"], status=int(not inside))

    # ---------------------------------------------------------------- udev

    async def _udevadm(self, uid: int, arguments: Sequence[str]) -> Reply:
        words = _UDEVADM.read(arguments)
        verb = words.operands[0] if words.operands else ""
        if verb in ("settle", "trigger", "control"):
            return Reply()
        if verb == "info":
            return await self._device_info(words)
        return Reply().fail(1, f"Unknown command verb {verb}.")

    async def _device_info(self, words: Words) -> Reply:
        path = words.last("path", "name") or next(iter(words.operands[1:]), None)
        if path is None:
            return Reply().fail(1, "A device name or path is required")
        task = Task.kernel("udevadm")
        try:
            lines = await asyncio.to_thread(udev.describe, self._machine.running.sysfs, path, task)
        except udev.NoDevice as missing:
            return Reply().fail(1, str(missing))
        return Reply(out=[*lines, ""])

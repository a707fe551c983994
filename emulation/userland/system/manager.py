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
from emulation.userland.system.journalctl import Journalctl
from emulation.userland.system.systemctl import PowerSwitch, Reply, Systemctl

SOCKET_IN_BOARD: Final = "/run/systemd/private"
"""Where systemd's own private socket is."""

MAX_REQUEST: Final = 1 << 20
MAX_CLIENTS: Final = 64
REQUEST_SECONDS: Final = 10.0

COMMANDS: Final = (
    "systemctl", "journalctl", "modprobe", "rmmod", "udevadm",
    "reboot", "poweroff", "halt", "shutdown",
)  # fmt: skip
"""Names under which the client program is installed."""

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
            "systemctl": systemctl.run,
            "journalctl": journalctl.run,
            "modprobe": self._modprobe,
            "rmmod": self._rmmod,
            "reboot": self._end("reboot"),
            "poweroff": self._end("poweroff"),
            "halt": self._end("halt"),
            "shutdown": self._shutdown,
            "udevadm": self._udevadm,
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
        if request.drop_ins is not None:
            reply = self._systemctl.reload(uid, request.drop_ins)
        elif request.command in self._commands:
            reply = await self._commands[request.command](uid, request.arguments)
        else:
            return
        answer = {
            "out": "".join(f"{line}\n" for line in reply.out),
            "err": "".join(f"{line}\n" for line in reply.err),
            "status": reply.status,
        }
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()

    # ------------------------------------------------------------- modules

    async def _modprobe(self, uid: int, arguments: Sequence[str]) -> Reply:
        names = [word for word in arguments if not word.startswith("-")]
        flags = {word for word in arguments if word.startswith("-")}
        quiet = bool(flags & {"-q", "--quiet"})
        if not names:
            return Reply().fail(1, "modprobe: ERROR: missing parameters. See -h.")
        if flags & {"-r", "--remove"}:
            return await self._remove(uid, names, missing="modprobe: FATAL: Module {} not found.")
        reply = Reply()
        try:
            if flags & {"-n", "--dry-run"}:
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
        names = [word for word in arguments if not word.startswith("-")]
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
        async def end(uid: int, arguments: Sequence[str]) -> Reply:
            if uid != 0:
                text = f"Call to {action.capitalize()} failed: Interactive authentication required."
                return Reply().fail(1, text)
            chosen = {"-p": "poweroff", "--poweroff": "poweroff", "--reboot": "reboot"}
            final = next((chosen[word] for word in arguments if word in chosen), action)
            force = any(word in ("-f", "-ff", "--force") for word in arguments)
            self._power.request(final, force=force)
            return Reply()

        return end

    async def _shutdown(self, uid: int, arguments: Sequence[str]) -> Reply:
        if uid != 0:
            text = "Failed to set wall message, ignoring: Interactive authentication required."
            return Reply().fail(1, text)
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        if "-c" in arguments:
            return Reply()
        action = "reboot" if {"-r", "--reboot"} & set(arguments) else "poweroff"
        words = [word for word in arguments if not word.startswith("-")]
        when = words[0] if words else "+1"
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

    # ---------------------------------------------------------------- udev

    async def _udevadm(self, uid: int, arguments: Sequence[str]) -> Reply:
        verb = arguments[0] if arguments else ""
        if verb in ("settle", "trigger", "control", "--version"):
            return Reply(out=["257"] if verb == "--version" else [])
        if verb == "info":
            return await self._device_info(arguments[1:])
        return Reply().fail(1, f"Unknown command verb {verb}.")

    async def _device_info(self, arguments: Sequence[str]) -> Reply:
        path = next((word for word in arguments if word.startswith("/")), None)
        for word in arguments:
            if word.startswith("--path="):
                path = word.removeprefix("--path=")
        if path is None:
            return Reply().fail(1, "A device name or path is required")
        task = Task.kernel("udevadm")
        try:
            lines = await asyncio.to_thread(udev.describe, self._machine.running.sysfs, path, task)
        except udev.NoDevice as missing:
            return Reply().fail(1, str(missing))
        return Reply(out=[*lines, ""])

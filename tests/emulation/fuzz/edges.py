"""The edges where the harness takes what others wrote: people, other users of the host, a board.

A refusal in the harness's own words is an outcome; anything else that is raised is a finding.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import io
import json
import os
import pty
import re
import shutil
import socket
import tempfile
import time
import tty
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import asyncssh
import paramiko
from paramiko.sftp import CMD_ATTRS, CMD_DATA, CMD_HANDLE, CMD_NAME, CMD_STATUS, CMD_VERSION

from emulation.userland.jail import wire
from emulation.userland.system.journal import Journal
from emulation.userland.system.journalctl import Journalctl
from emulation.userland.system.manager import Manager
from emulation.userland.system.systemctl import Systemctl, UnitTable
from emulation.userland.system.units import SwitchUnit, UnitFile
from harness import resources
from harness.boardfile import loading
from harness.errors import HilError
from harness.instruments.console_log import readable
from harness.lab import boot_logs
from harness.lab.holder import lock
from harness.lab.lease import LeaseDesk
from harness.links import hostkeys, sftp
from harness.links.address import SerialAddress
from harness.links.capture import Capture
from harness.links.channel import LaneBroken, LaneLate
from harness.links.console import Console
from harness.links.lane import Lane, Stored, parse_fetched
from harness.safekeeping import snapshot
from tests.emulation.fuzz.engine import Target
from tests.emulation.fuzz.pieces import joined, parts

_LANE_SECONDS: Final = 0.02
"""What such a board says is there at once."""
_SECONDS: Final = 1.0
"""How long any single input may take."""


@functools.cache
def folder() -> Path:
    """One for this process, in memory where there is some."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="hil-fuzz-", dir=memory))
    import atexit

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """What goes on inside takes no more than a second of this process."""
    began = time.process_time()
    yield
    assert time.process_time() - began < _SECONDS


def refused(error: HilError) -> Hashable:
    """One paragraph in the harness's own words."""
    told = str(error)
    assert "\n\n" not in told
    assert len(told) < 10_000
    told = told.replace(str(folder()), "")
    return type(error).__name__, "".join(c for c in told if c.isalpha())[:80]


class BoardFiles:
    """A board file: TOML, or what came of it."""

    name = "board_files"

    def samples(self) -> list[bytes]:
        hostile = (
            b"x = 1e999", b"x = nan", b"x = 2026-01-02", b'x = "\\u0000"', b"[a.b.c]", b"[[a]]",
            b"x = " + b"[" * 40, b"x = " + b"{a=" * 40, b"x = 0x" + b"f" * 40, b"'''", b'"""',
            b'kernel_log_allowed = ["(", "a{9999}"]', b"[limits]\nx_ms = -1", b"name = '\xff'",
            b'[labgrid]\ncoordinator = "h"\nplace = "p"', b"a.b.c.d = 1", b'key = "~x/y"',
        )  # fmt: skip
        return [
            *(path.read_bytes() for path in sorted(resources.boards().glob("*.toml"))),
            *hostile,
        ]

    def run(self, data: bytes) -> Hashable:
        path = folder() / "board.toml"
        path.write_bytes(data)
        with quick():
            try:
                return loading.load(path).power.driver
            except HilError as error:
                told = str(error).replace(str(path), "FILE")
                lines = list(map(int, re.findall(r"FILE:(\d+): ", told)))
                assert lines or "larger than" in told, told
                assert all(1 <= line <= data.count(b"\n") + 1 for line in lines), told
                return refused(error)


class KnownHosts:
    """A known_hosts file, plain and hashed."""

    name = "known_hosts"

    def samples(self) -> list[bytes]:
        key = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"
        starts = (b"board ", b"a,[board]:22 ", b"@revoked board ", b"@cert-authority * ",
                  b"|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ")  # fmt: skip
        lines = [start + key + b" me\n" for start in starts]
        return [*lines, b"".join(lines), b"# comment\n\nboard\n", key]

    def run(self, data: bytes) -> Hashable:
        path = folder() / "known_hosts"
        path.write_bytes(data)
        known = asyncssh.import_known_hosts("")
        with quick():
            damaged = hostkeys.load(known, path, needed=True)
        assert all(1 <= line <= data.count(b"\n") + 1 for line in damaged)
        return len(known.match("board", "", None)[0]), len(damaged)


class LeaseFolders:
    """What another user may put into the folder of leases: names, kinds and locked contents."""

    name = "lease_folders"
    THING: Final = "serial /dev/ttyUSB0"

    def samples(self) -> list[bytes]:
        place = folder() / "sample-leases"
        desk = LeaseDesk(place)
        with desk.acquire([self.THING], board="desk", purpose="fuzz", timeout=0.0):
            found = [
                (str(path.relative_to(place)).encode(), path.read_bytes())
                for path in sorted(place.rglob("*"))
                if path.is_file()
            ]
        shutil.rmtree(place)
        whole = b"".join(joined(name, b"\0" + text) for name, text in found)
        odd = [joined(name, bytes([kind]) + text) for name, text in found for kind in range(1, 6)]
        words = (b"{}", b"[]", b"null", b"1e999", b"[" * 2000, b'{"pid": -1}', b"\xff")
        return [
            *(whole, *odd),
            *(joined(name, b"\0" + text) for name, _ in found for text in words),
        ]

    def run(self, data: bytes) -> Hashable:
        place = folder() / "leases"
        place.mkdir()
        held: list[int] = []
        pieces = list(parts(data))[:16]
        try:
            for name, content in zip(pieces[::2], pieces[1::2], strict=False):
                # A name that a folder cannot have is nobody's.
                with contextlib.suppress(OSError, ValueError):
                    _put(place, name, content, held)
            desk = LeaseDesk(place)
            with quick(), contextlib.redirect_stderr(io.StringIO()):  # who is passed over
                try:
                    every, ours = desk.all(), desk.status([self.THING])
                except HilError as error:
                    return refused(error)
                for one in (*every.holders, *every.queue):
                    assert str(one).isprintable(), "foreign text reaches a terminal"
            return len(every.holders), len(every.queue), len(ours.holders), len(ours.queue)
        finally:
            for descriptor in held:
                os.close(descriptor)
            shutil.rmtree(place)


def _put(place: Path, name: bytes, content: bytes, held: list[int]) -> None:
    inside = [part for part in name.split(b"/") if part not in (b"", b".", b"..")][:3]
    path = Path(os.fsdecode(b"/".join([os.fsencode(place), *inside])))
    path.parent.mkdir(parents=True, exist_ok=True)
    match content[0] % 6 if content else 0:
        case 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to(path.name)
        case 5:
            path.touch(mode=0)
        case _:
            held.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
            os.write(held[-1], content[1:])
            lock(held[-1])


class SnapshotFiles:
    """The snapshot of a run that was killed."""

    name = "snapshots"

    def samples(self) -> list[bytes]:
        whole = (
            b'{"version": 1, "board": "desk", "cid": "00", "boot_id": "b", "taken": "now",'
            b' "declared": ["Boot*"], "foreign_consent": true, "variables": [%s]}'
        )
        guid = b"8be4df61-93ca-11d2-aa0d-00e098032b8c"
        one = b'{"name": "%s", "guid": "' + guid + b'", "immutable": false, %s}'
        values = [
            one % (b"BootOrder", b'"attributes": 7, "data": "0001"'),
            one % (b"X", b'"attributes": -1, "data": ""'),
            one % (b"X", b'"attributes": 1e999, "data": ""'),
            one % (b"\\ud800", b'"problem": "EIO"'),
            one % (b"Y", b'"problem": null'),
        ]
        odd = (b"[]", b"1", b"null", b'"', b"[" * 2000, b'{"version": 1}', b'{"a":' * 2000)
        return [*(whole % value for value in values), whole % b", ".join(values), *odd]

    def run(self, data: bytes) -> Hashable:
        (folder() / "snapshot.json").write_bytes(data)
        with quick():
            try:
                kept = snapshot.pending(folder())
            except HilError as error:
                return refused(error)
            assert kept is not None
            return kept.room() > 0, len(kept.variables), kept.foreign_consent


class ConsoleBytes:
    """What a board says on its console: watched, kept in files a boot, and shown again."""

    name = "console"

    def samples(self) -> list[bytes]:
        return [
            joined(b"U-Boot SPL 2024.01\r\n", b"Hit any key", b"=> "),
            joined(b"[    0.000000] Linux version 6.6\r\n", b"board login: ", b"Password: "),
            joined(b"\x1b[31mred\x1b[0m # ", b"\x1b]0;title\x07$ ", b"\x1b[", b"1;2;3;4m"),
            joined(b"\x1efr~me\x1f\x06", b"\x1e", b"\x1f" * 40, b"\0" * 400, b"\xff\xfe\xfd" * 40),
            joined(b"Kernel panic - not syncing\n", b"\r" * 200, b"x" * 5000),
        ]

    @functools.cached_property
    def _console(self) -> Console:
        self._master, device = pty.openpty()
        tty.setraw(device)
        return Console(SerialAddress(os.ttyname(device)))

    def run(self, data: bytes) -> Hashable:
        console, kept = self._console, folder() / "boots"
        kept.mkdir()
        capture, mark, seen = Capture(kept), console.mark(), []
        try:
            with quick():
                for piece in list(parts(data))[:24]:
                    capture.write(piece)
                    console._received(piece)
                    seen.append(console.stage)
                capture.close()
                text = console.text_since(mark)
                lines = len(list(readable(text)))
                boots = boot_logs.boots(kept)
                ends = [(boot.ended, boot.started != "", len(boot.bad()) > 0) for boot in boots]
            return frozenset(seen), tuple(ends), lines, console.tail() == ""
        finally:
            shutil.rmtree(kept)


class _Channel(paramiko.Channel):
    """The near end of a channel whose far end, whenever it is told something, says the next two
    pieces of an input, one a stream; then it ends."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__(1)
        self._pieces = pieces
        self._token = b""

    def _tell(self, said: bytes) -> None:
        if not self._token:
            self._token = said.strip()
        for buffer in (self.in_buffer, self.in_stderr_buffer):
            piece = next(self._pieces, None)
            if piece is None:
                self.eof_received = True
                self._end()
                return
            buffer.feed(piece.replace(b"TOKEN", self._token))

    def _end(self) -> None:
        for buffer in (self.in_buffer, self.in_stderr_buffer):
            buffer.close()

    def sendall(self, s: Any) -> None:
        self._tell(s)

    def send(self, s: Any) -> int:
        self._tell(s)
        return len(s)

    def recv(self, nbytes: int) -> bytes:
        return bytes(self.in_buffer.read(nbytes, self.timeout))

    def recv_stderr(self, nbytes: int) -> bytes:
        return bytes(self.in_stderr_buffer.read(nbytes, self.timeout))

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout

    def exec_command(self, command: Any) -> None:
        pass

    def invoke_subsystem(self, subsystem: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._end()


class _Transport:
    """Of which a lane needs no more than channels."""

    def __init__(self, data: bytes) -> None:
        self._pieces = iter(list(parts(data))[:24])

    def open_session(self, window: int | None = None, *, timeout: float) -> _Channel:
        return _Channel(self._pieces)

    def is_active(self) -> bool:
        return True


class LaneFrames:
    """The shell lane against a board that says what it likes, and what it kept of a result."""

    name = "lane"

    def samples(self) -> list[bytes]:
        ready = b"TOKEN 12 boot-id /run/hil-1\n"
        return [
            joined(ready, b"", b"out\nTOKEN:1:0\n", b"", b"TOKEN:2:3:e\n", b"oops\nTOKEN:2:end\n"),
            joined(b"motd\n" + ready, b"", b"TOKEN:1:99999999999999999999\n", b""),
            joined(b"TOKEN x y z\n"),
            joined(b"TOKEN \xff\n"),
            joined(b"TOKEN " + b"9" * 5000 + b" b d\n"),
            joined(b"over 1\nx\nt:2:0\n", b"err", b"over 1"),
            joined(b"running 3\nt:1:0\nx\nt:2:3\n", b"over " + b"9" * 5000, b"\xff 1\n"),
        ]

    def run(self, data: bytes) -> Hashable:
        seen: list[Hashable] = []
        transport: Any = _Transport(data)
        with quick():
            try:
                lane = Lane.open(transport, "sh", time.monotonic() + _LANE_SECONDS)
                for _ in range(3):
                    output = lane.run("true", time.monotonic() + _LANE_SECONDS)
                    seen.append((output.status, bool(output.stdout), bool(output.stderr)))
            except (LaneBroken, LaneLate) as error:
                seen.append(type(error).__name__)
            except HilError as error:
                seen.append(refused(error))
            stored = Stored("t", 1, "b", "/run/x")
            for piece in list(parts(data))[:4]:
                fetched = parse_fetched(stored, 2, piece, b"")
                seen.append((fetched.state, fetched.status))
        return tuple(seen)


class SftpFrames:
    """The lane for bytes against such a board."""

    name = "sftp"

    def samples(self) -> list[bytes]:
        def packet(kind: int, *fields: bytes) -> bytes:
            body = bytes([kind]) + b"".join(fields)
            return len(body).to_bytes(4, "big") + body

        def number(value: int) -> bytes:
            return value.to_bytes(4, "big")

        def text(value: bytes) -> bytes:
            return number(len(value)) + value

        version = packet(CMD_VERSION, number(3))
        handle = packet(CMD_HANDLE, number(1), text(b"h"))
        data = packet(CMD_DATA, number(2), text(b"content"))
        end = packet(CMD_STATUS, number(3), number(1), text(b"EOF"), text(b""))
        attributes = packet(CMD_ATTRS, number(2), number(1), number(0) + number(7))
        name = packet(CMD_NAME, number(2), number(1), text(b"a"), text(b"b"), number(0))
        good = packet(CMD_STATUS, number(4), number(0), text(b""), text(b""))
        pieces = [version, handle, attributes, data, end, good]
        return [
            joined(*(part for piece in pieces for part in (piece, b""))),
            joined(version + handle + attributes + data + end + good),
            joined(b"Welcome!\r\n" + version),
            joined(version + handle + name),
            joined(version + packet(CMD_STATUS, number(1), number(3), b"\xff")),
            joined(b"\xff\xff\xff\xff" + version),
            joined(version + b"\0\0\0\0"),
            joined(version + packet(CMD_HANDLE)),
            joined(version + packet(CMD_HANDLE, number(1), b"\xff\xff\xff\xff")),
        ]

    def run(self, data: bytes) -> Hashable:
        transport: Any = _Transport(data)
        deadline = time.monotonic() + _LANE_SECONDS
        with quick():
            try:
                client = sftp.SftpLane().open(transport, deadline)
                if client is None:
                    return "no SFTP"
                return len(sftp.read(client, "/x", deadline))
            except (LaneBroken, LaneLate, OSError) as error:
                return type(error).__name__, repr(error.__cause__)[:60]


class _Bench:
    """What the manager switches: nothing, and no module is known."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def request(self, action: str, *, force: bool) -> None:
        self.asked.append(action)

    def find_module(self, name: str) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    release, modprobe, rmmod = "6.6", find_module, find_module


class ManagerRequests:
    """Requests of programs of the board to its service manager."""

    name = "manager"

    def samples(self) -> list[bytes]:
        lines = [
            *("systemctl start tee-supplicant", "systemctl show -p MainPID --value x"),
            *("systemctl --no-pager list-units", "systemctl kill -s 9 x.service"),
            *("journalctl -u x -n 3 -o cat", "journalctl -r -b", "modprobe -r x", "modprobe x"),
            *("rmmod x", "udevadm settle", "udevadm info /dev/x", "shutdown -h +1", "shutdown -c"),
            *("shutdown now", "reboot -f", "poweroff", "halt -p"),
        ]
        requests = []
        for line in lines:
            command, *arguments = line.split()
            one = {"command": command, "uid": 0, "arguments": arguments}
            requests.append(json.dumps(one).encode() + b"\n")
        odd = (
            *(b"[]\n", b"{}\n", b"null\n", b"[" * 3000 + b"\n", b"\xff\n", b"\0", b"1e999\n"),
            b'{"command": "systemctl", "uid": 0, "drop_ins": {"x": "[Unit]"}}\n',
            b'{"command": [], "uid": "x", "arguments": 3}\n',
        )
        return [*requests, *odd]

    def run(self, data: bytes) -> Hashable:
        with quick():
            return asyncio.run(self._ask(data))

    @staticmethod
    async def _ask(data: bytes) -> Hashable:
        journal, units, bench = Journal("board"), UnitTable(), _Bench()

        async def on() -> None:
            pass

        file = UnitFile("x.service", "X", "/etc/systemd/system/x.service")
        units.load(SwitchUnit(file, journal, on=on, off=lambda: None))
        machine: Any = bench
        more: dict[str, Any] = {"board_uid": lambda uid: 0}
        known = inspect.signature(Manager).parameters
        manager = Manager(
            Systemctl(units, journal, bench),
            Journalctl(units, journal),
            bench,
            machine,
            **{key: more[key] for key in more if key in known},
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                theirs.send(data)
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                await manager._serve(*await asyncio.open_connection(sock=ours))
            manager.close()
            answer = b""
            with contextlib.suppress(BlockingIOError):
                answer = theirs.recv(1 << 20)
        assert said.getvalue().count("\n") <= 1, "more than one line"
        status = answer and json.loads(answer)["status"]
        return status, tuple(bench.asked), said.getvalue()[:80], answer[:30]


class Pid1Packets:
    """Packets on the socket between the supervisor and the board's PID 1."""

    name = "pid1"

    def samples(self) -> list[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        messages = [("ready", 12), ("pid", 3, [[0, 1001, 1]], []), ("exit", 7, 256), ("fuse", 1)]
        with ours, theirs:
            for message in messages:
                wire.send(ours, message)
            packets = [theirs.recv(1 << 16) for _ in messages]
        odd = (b"", b"[]", b"[1]", b"{}", b"null", b"[" * 3000, b"\xff", b'["x", 1e999]')
        return [*(joined(packet) for packet in (*packets, *odd)), joined(*packets)]

    def run(self, data: bytes) -> Hashable:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        seen: list[Hashable] = []
        with ours, theirs, quick():
            for piece in list(parts(data))[:8]:
                theirs.send(piece)
                try:
                    received = wire.receive(ours)
                except wire.Malformed as error:
                    seen.append(str(error)[:20])
                    continue
                if received is None:
                    break
                message, descriptors = received
                assert isinstance(message[0], str)
                assert not descriptors
                seen.append((message[0], len(message)))
        return tuple(seen)


TARGETS: Final[tuple[Target, ...]] = (
    *(BoardFiles(), KnownHosts(), SnapshotFiles(), ConsoleBytes()),
    *(LeaseFolders(), ManagerRequests(), Pid1Packets(), LaneFrames(), SftpFrames()),
)

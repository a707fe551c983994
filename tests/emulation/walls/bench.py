"""A host with something to be had, and a board on it whose root tries."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import secrets
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emulation.options import BoardOptions
from emulation.userland.jail.syscalls import host_architecture
from tests.emulation.walls.attempts import Attempt
from tests.emulation.walls.breaches import Breach
from tests.pace import HANGS

if TYPE_CHECKING:
    from tests.emulation.conftest import EmulatedBoard

_ROOT = Path(__file__).parents[3]
_START = (
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); "
    "from tests.emulation.walls.bench import supervise; sys.exit(supervise(sys.argv[1:]))"
)
_MORE_NUMBERS = {"ptrace": (101, 117), "pidfd_open": (434, 434)}
_LIBC = ctypes.CDLL(None, use_errno=True)
_IPC_RMID = 0

_PRELUDE = r"""
import ctypes, errno, json, os, shutil, socket, struct, sys
host = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(host["numbers"][name]), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return result
def mount(source, target, kind, flags):
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*texts, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mount")
def through(*what):
    print("through:", *what, flush=True)
try:
    exec(sys.stdin.read())
except (OSError, MemoryError, ValueError) as error:
    print("held:", type(error).__name__, error, flush=True)
else:
    print("done", flush=True)
"""


def supervise(arguments: Sequence[str]) -> int:
    """In the supervisor's process: lend it a key, take walls down, run the board."""
    config = json.loads(arguments[0])
    numbers = host_architecture().numbers
    _LIBC.syscall(numbers["keyctl"], 1, None)
    token = config["token"].encode()
    _LIBC.syscall(numbers["add_key"], b"user", b"walls", token, len(token), -3)
    exec(config["here"], {"__name__": "breach"})

    from emulation.__main__ import main
    from emulation.userland.jail import zygote
    from emulation.userland.jail.plan import Bind
    from emulation.userland.system import rootfs

    start = "from emulation.userland.jail.zygote_process"
    zygote._ZYGOTE = zygote._ZYGOTE.replace(  # type: ignore[misc]
        start, f"exec({config['there']!r}, {{'__name__': 'breach'}}); {start}"
    )
    build = rootfs.build
    shown = Bind(Path(config["shared"]), "/mnt/host")

    def with_folder(options: BoardOptions, state: Path) -> rootfs.RootFs:
        files = build(options, state)
        return replace(files, binds=(*files.binds, shown))

    rootfs.build = with_folder
    return main(arguments[1:])


class Host:
    """Things of the host in a temporary folder of mode 0755, and one board.

    ``stderr``: what the supervisor said; ``complaint``: why the board did not start again."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.token = secrets.token_hex(8)
        self.stderr = ""
        self.complaint = ""
        self.victim = subprocess.Popen(["sleep", "600"])
        for name, mode in (("victim", 0o700), ("shared", 0o777)):
            self.folder(name).mkdir()
            self.folder(name).chmod(mode)
        (base / "secret").write_text(f"1 1 0:1 / /{self.token} rw - x x rw\n")
        self._tcp = socket.create_server(("127.0.0.1", 0), backlog=50)
        self._abstract = socket.socket(socket.AF_UNIX)
        self._abstract.bind(f"\0walls-{self.token}")
        self._abstract.listen(50)
        self._shm_key = secrets.randbits(30) | 1
        _LIBC.shmat.restype = ctypes.c_void_p
        self._shm = _LIBC.shmget(self._shm_key, 4096, 0o1666)
        memory = _LIBC.shmat(self._shm, None, 0)
        ctypes.memmove(memory, self.token.encode(), len(self.token))

    def folder(self, name: str) -> Path:
        return self._base / name

    def made(self) -> bool:
        """Whether something was written where the board may only read; it is removed."""
        path = self.folder("shared") / "made"
        there = path.exists()
        path.unlink(missing_ok=True)
        return there

    def as_nobody(self) -> str:
        """What another user of the host can do with what the board left in /var."""
        path = self.folder("state") / "rootfs" / "var" / "true"
        try:
            mode = subprocess.run([path], user=65534, group=65534, extra_groups=[], check=False)
        except PermissionError:
            return ""
        return f"another user of the host ran it (exit status {mode.returncode})"

    def _facts(self) -> str:
        column = ("x86_64", "aarch64").index(platform.machine())
        numbers = host_architecture().numbers | {
            name: pair[column] for name, pair in _MORE_NUMBERS.items()
        }
        return json.dumps(
            {
                "numbers": numbers,
                "victim": self.victim.pid,
                "victim_folder": str(self.folder("victim")),
                "secret": str(self._base / "secret"),
                "token": self.token,
                "port": self._tcp.getsockname()[1],
                "abstract": f"\0walls-{self.token}",
                "shm": self._shm_key,
            }
        )

    def start(self, attempt: Attempt, breach: Breach) -> EmulatedBoard:
        """A board with those walls down."""
        from tests.emulation.conftest import EmulatedBoard

        config = {
            "token": self.token,
            "here": breach.here,
            "there": breach.there,
            "shared": str(self.folder("shared")),
        }
        program = ("-c", _START, json.dumps(config))
        return EmulatedBoard(self.folder("state"), attempt.options, program=program)

    def run(self, board: EmulatedBoard, script: str) -> str:
        """What the script said on the board."""
        python = "/opt/board/python/bin/python3 -IS -c"
        command = f"{python} {shlex.quote(_PRELUDE)} {shlex.quote(self._facts())}"
        outcome = board.run(command, stdin=script.encode())
        return (outcome.out + outcome.err).strip()

    def end(self, board: EmulatedBoard) -> None:
        """Of the supervisor, whose words are kept."""
        board.disconnect()
        board.process.terminate()
        try:
            _, errors = board.process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            board.process.kill()
            raise
        self.stderr += errors.decode("utf-8", "replace")

    def close(self) -> None:
        """Give everything back."""
        self.victim.kill()
        self.victim.wait()
        self._tcp.close()
        self._abstract.close()
        _LIBC.shmctl(self._shm, _IPC_RMID, None)


@contextlib.contextmanager
def a_host() -> Iterator[Host]:
    """In a folder that other users of the host could look into."""
    with tempfile.TemporaryDirectory(prefix="walls-") as name:
        Path(name).chmod(0o755)
        host = Host(Path(name))
        try:
            yield host
        finally:
            host.close()


def _through(said: str) -> str:
    return said.partition("through:")[2].strip().partition("\n")[0][:100]


class Bench:
    """Tries one attempt after the other; a board that is as it was serves again."""

    def __init__(self) -> None:
        self._key: object = None
        self._open = contextlib.ExitStack()
        self._host: Host | None = None
        self._board: EmulatedBoard | None = None
        self.said = ""

    def tried(self, attempt: Attempt, breach: Breach) -> str:
        """How the attempt got through with walls down, or nothing."""
        down = attempt.given + breach
        key = None if attempt.alone else (down, attempt.options)
        if key is None or key != self._key:
            self.close()
            self._host = self._open.enter_context(a_host())
            self._board = self._host.start(attempt, down)
        self._key = key
        host, board = self._host, self._board
        assert host is not None
        assert board is not None
        self.said = host.run(board, attempt.script)
        # A supervisor that is lied to ends the board, perhaps before the script is done.
        ended = attempt.harmed is not None and not self.said
        assert ended or self.said.startswith(("held:", "done", "through:")), self.said
        if not attempt.alone:
            return _through(self.said)
        with contextlib.suppress(ValueError, OSError):
            board.control("off")
        self._finish()
        if attempt.again:
            try:
                host.end(host.start(attempt, down))
            except pytest.fail.Exception as failure:
                host.complaint = str(failure).strip().splitlines()[-1]
        harmed = attempt.harmed(host) if attempt.harmed else ""
        return harmed or _through(self.said)

    def _finish(self) -> None:
        board, self._board = self._board, None
        if self._host is not None and board is not None:
            self._host.end(board)

    def close(self) -> None:
        """The board and its host go."""
        self._finish()
        self._key = None
        self._open.close()


def user() -> str:
    """Who the supervisor is here."""
    return "root (sudo)" if os.geteuid() == 0 else "an ordinary user"

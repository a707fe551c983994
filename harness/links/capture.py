"""What a serial console said, kept in files: one a boot, every line with its time."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from pathlib import Path
from typing import IO, Final

FIRMWARE_START: Final = re.compile(
    rb"U-Boot (?:SPL|TPL|\d{4}\.)|NOTICE: +(?:BL[12]|Booting Trusted)|^BL1:|EDK ?II? version"
)
_KERNEL_FIRST = re.compile(rb"\] Linux version \d")

KEEP_BOOTS: Final = 100
KEEP_BYTES: Final = 64 << 20
"""What a folder keeps at most; the oldest boots go first."""
KEEP_OF_ONE: Final = 16 << 20
"""Bytes of one log. Of a console that babbles on, the middle goes: how the boot began and what was
said last are kept."""
LONGEST_LINE: Final = 16 << 10
"""Bytes that are kept as one line; what comes behind is the next one."""

_LEFT_AFTER_CUT: Final = KEEP_OF_ONE // 4  # bytes of its beginning, and as much of its end


class Capture:
    """The console in a file, or in a folder with one file a boot: whole lines, each after
    monotonic seconds and wall-clock time (UTC) of its first byte.

    A folder's newest file is continued until a boot begins: several commands in one boot are one
    log. After a restart of this host, whose monotonic time begins again, a new one is begun.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() or not path.suffix else None
        self._begins_boot = _Boots()
        self._pending = b""  # a line that is not over
        self._stamp = b""
        self._file: IO[bytes] | None = None
        if self._folder is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)

    def write(self, data: bytes) -> None:
        """Append; in a folder, a line with which a boot begins opens a new file."""
        now = f"[{time.monotonic():.6f} {_utc_now()}] ".encode()
        for line in data.splitlines(keepends=True) if b"\n" in data else [data]:
            if not self._pending:
                self._stamp = now
            while line:
                room = LONGEST_LINE - len(self._pending)
                self._pending, line = self._pending + line[:room], line[room:]
                if len(self._pending) >= LONGEST_LINE or self._pending.endswith(b"\n"):
                    self._flush(new_boot=self._begins_boot(self._pending))

    def close(self) -> None:
        """Write the unfinished line, too; never raises."""
        if self._pending:
            self._flush(new_boot=False)
        self._end_file()

    def _flush(self, *, new_boot: bool) -> None:
        # a full disk must not end the reading
        with contextlib.suppress(OSError, ValueError):
            if self._folder is not None:
                self._choose_file(self._folder, new_boot=new_boot)
            if self._file is not None:
                self._file.write(self._stamp + self._pending.removesuffix(b"\n") + b"\n")
                if self._file.tell() > KEEP_OF_ONE:
                    _cut_middle(self._file, self._stamp)
        self._pending = b""

    def _choose_file(self, folder: Path, *, new_boot: bool) -> None:
        if new_boot:
            self._end_file()
        if self._file is not None:
            return
        # The console may hold what was typed: for its owner only.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        newest = max(boot_files(folder), default=(0, folder))
        continued = newest[0] and not new_boot and newest[1].stat().st_mtime > _host_started()
        if continued:
            self._file = newest[1].open("a+b", buffering=0)
        else:
            self._file = (folder / f"boot-{newest[0] + 1:03}.log").open("x+b", buffering=0)
            _prune(folder)

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def boot_files(folder: Path) -> list[tuple[int, Path]]:
    """The logs in a folder with their numbers, in the order in which the boots were; empty where
    there is no such folder."""
    found = ((re.fullmatch(r"boot-(\d+)\.log", path.name), path) for path in folder.glob("*.log"))
    return sorted((int(name[1]), path) for name, path in found if name is not None)


def _cut_middle(log: IO[bytes], stamp: bytes) -> None:
    """Leave whole lines of the beginning and of the end, and say so between them."""
    size = log.tell()
    log.seek(0)
    head = log.read(_LEFT_AFTER_CUT)
    log.seek(size - _LEFT_AFTER_CUT)
    tail = log.read(_LEFT_AFTER_CUT).partition(b"\n")[2]
    kept = head.rfind(b"\n") + 1
    log.seek(kept)
    log.truncate()
    lost = size - kept - len(tail)
    log.write(stamp + b"[hil: %d bytes of this log are left out here]\n" % lost + tail)


def _prune(folder: Path) -> None:
    size = KEEP_OF_ONE  # what the newest may become
    for age, (_, path) in enumerate(reversed(boot_files(folder))):
        size += path.stat().st_size if age else 0
        if age and (age >= KEEP_BOOTS or size > KEEP_BYTES):
            path.unlink()


def _host_started() -> float:
    return time.time() - time.monotonic()


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


class _Boots:
    """Tells the lines with which a boot begins: the first of a firmware, or of a kernel that no
    firmware announced."""

    def __init__(self) -> None:
        self._in_firmware = False

    def __call__(self, line: bytes) -> bool:
        if FIRMWARE_START.search(line):
            first, self._in_firmware = not self._in_firmware, True
            return first
        if _KERNEL_FIRST.search(line):
            first, self._in_firmware = not self._in_firmware, False
            return first
        return False

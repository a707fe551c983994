"""User namespaces and mounts: the id maps a host allows, and mount(2) with its flags."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulation.userland.jail.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_REMOUNT,
    raw,
)

NAMESPACES: Final = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
"""All but the user namespace, which must exist first."""

BOARD_IDS: Final = 65536
"""Ids of a board that is given a range."""

_ROOT_RANGE: Final = 1_879_048_192
"""Where the ids of a board started by root begin: above every range that distributions hand out
(useradd: to 600100000; systemd-nspawn: to 1879048191), so that board root is nobody on the host."""


@dataclass(frozen=True)
class IdRange:
    """A line of uid_map: ``count`` ids from ``inside`` are those from ``outside`` of the host."""

    inside: int
    outside: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


@dataclass(frozen=True)
class IdMaps:
    """How ids of the board map to the host. ``helper``: newuidmap and newgidmap write the maps."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    helper: bool = False

    @property
    def second_uid(self) -> bool:
        """Whether the board has user ids besides 0."""
        return sum(part.count for part in self.uids) > 1


def id_ranges(text: str) -> tuple[IdRange, ...]:
    """The lines of /proc/PID/uid_map or gid_map."""
    return tuple(IdRange(*map(int, line.split())) for line in text.splitlines())


def to_board(ranges: Sequence[IdRange], host_id: int) -> int:
    """A host id as the board sees it; 65534 when it has none there."""
    for part in ranges:
        if part.outside <= host_id < part.outside + part.count:
            return part.inside + host_id - part.outside
    return 65534


def choose_maps() -> list[IdMaps]:
    """The maps to try, best first: with a second uid where the host allows it."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        base, count = _free_range(Path("/proc/self/uid_map").read_text())
        part = (IdRange(0, base, count),)
        return [IdMaps(part, part)]
    single = IdMaps((IdRange(0, uid, 1),), (IdRange(0, gid, 1),))
    name = _user_name(uid)
    uids = _subordinate(Path("/etc/subuid"), name, uid)
    gids = _subordinate(Path("/etc/subgid"), name, uid)
    if not (uids and gids and shutil.which("newuidmap") and shutil.which("newgidmap")):
        return [single]
    full = IdMaps(
        (IdRange(0, uid, 1), IdRange(1, uids[0], min(uids[1], BOARD_IDS - 1))),
        (IdRange(0, gid, 1), IdRange(1, gids[0], min(gids[1], BOARD_IDS - 1))),
        helper=True,
    )
    return [full, single]


def _free_range(own_map: str) -> tuple[int, int]:
    """Where root's boards get their ids: never at 0, within what this namespace itself has."""
    ranges = [tuple(map(int, line.split())) for line in own_map.splitlines()]
    inside, _, count = max(ranges, key=lambda part: part[2])
    if inside <= _ROOT_RANGE and inside + count >= _ROOT_RANGE + BOARD_IDS:
        return _ROOT_RANGE, BOARD_IDS
    # A container with few ids: the upper half of them.
    half = count // 2
    return (inside + half, min(count - half, BOARD_IDS)) if half else (inside, count)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _subordinate(table: Path, name: str, uid: int) -> tuple[int, int] | None:
    """(first, count) of the user's largest range in /etc/subuid or subgid (subuid(5))."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in (name, str(uid)) and first.isdigit() and count.isdigit():
            found.append((int(first), int(count)))
    return max(found, key=lambda part: part[1], default=None)


def write_maps(pid: int, maps: IdMaps) -> None:
    """Give the new user namespace of process ``pid`` its ids; raises ``OSError``."""
    if maps.helper:
        _run_helper("newuidmap", pid, maps.uids)
        _run_helper("newgidmap", pid, maps.gids)
        return
    process = Path(f"/proc/{pid}")
    if os.geteuid() != 0:
        (process / "setgroups").write_text("deny")
    (process / "gid_map").write_text("\n".join(map(str, maps.gids)))
    (process / "uid_map").write_text("\n".join(map(str, maps.uids)))


def _run_helper(program: str, pid: int, ranges: Sequence[IdRange]) -> None:
    words = [word for part in ranges for word in str(part).split()]
    path = shutil.which(program) or program
    actions = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
    argv = [program, str(pid), *words]
    child = os.posix_spawn(path, argv, dict(os.environ), file_actions=actions)
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(errno.EPERM, f"{program} ended with wait status {status}")


_cookie = 0


def set_cookie(cookie: int) -> None:
    """From now on calls of this module carry the sign by which the filter knows PID 1's own."""
    global _cookie
    _cookie = cookie


def mount(
    source: str | None, target: str, kind: str | None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2); raises ``OSError``."""
    raw("mount", _c(source), _c(target), _c(kind), flags, _c(data), _cookie)


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    raw("umount2", _c(target), flags, 0, 0, 0, _cookie)


def _c(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1


def clone(path: str) -> int:
    """A descriptor of a mount of its own of what is mounted at ``path``: nothing that is mounted
    over it later shows there (open_tree(2))."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return raw("open_tree", _AT_FDCWD, _c(path), flags, 0, 0, _cookie)


_MOUNT_ATTR_RDONLY: Final = 1


def make_read_only(target: str) -> None:
    """Set the read-only flag of the mount at ``target`` and of those below it."""
    attributes = struct.pack("<QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    try:
        raw("mount_setattr", _AT_FDCWD, _c(target), _AT_RECURSIVE, attributes, len(attributes),
            _cookie)  # fmt: skip
    except OSError as error:
        if error.errno != errno.ENOSYS:  # before Linux 5.12
            raise
        mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | mount_flags(target))


_ST_FLAGS: Final = {
    os.ST_RDONLY: MS_RDONLY,
    os.ST_NOSUID: MS_NOSUID,
    os.ST_NODEV: MS_NODEV,
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: MS_NOATIME,
    os.ST_RELATIME: MS_RELATIME,
}


def mount_flags(path: str) -> int:
    """Flags of the mount that holds ``path``, as mount(2) takes them: a user namespace may not
    drop those it inherited."""
    flags = os.statvfs(path).f_flag
    return sum(bit for st, bit in _ST_FLAGS.items() if flags & st)


def bind(source: str, target: str, flags: int) -> None:
    """A new mount of what is at ``source``, with the per-mount ``flags`` (MS_RDONLY, MS_NOSUID,
    MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_RELATIME)."""
    mount(source, target, None, MS_BIND)
    mount(None, target, None, MS_REMOUNT | MS_BIND | flags)


_FSPICK_CLOEXEC, _FSPICK_EMPTY_PATH = 1, 8
_FSCONFIG_SET_FLAG, _FSCONFIG_CMD_RECONFIGURE = 0, 7


def set_superblock_read_only(root_fd: int, read_only: bool) -> None:
    """SB_RDONLY of the file system whose root ``root_fd`` is; mounts keep their own flags.

    Raises ``OSError(EBUSY)`` when files are open for writing."""
    fd = raw("fspick", root_fd, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH, 0, 0, _cookie)
    try:
        key = b"ro" if read_only else b"rw"
        raw("fsconfig", fd, _FSCONFIG_SET_FLAG, key, None, 0, _cookie)
        raw("fsconfig", fd, _FSCONFIG_CMD_RECONFIGURE, None, None, 0, _cookie)
    finally:
        os.close(fd)

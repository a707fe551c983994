"""Trees that the board writes to, handled from a descriptor: no name leads out of them.

Root of the board may put links, mounts and special files wherever it likes, and the supervisor has
more rights than it.  So whatever it touches there it opens here: by openat2(2), which follows no
link, crosses no mount and never leaves the tree (Linux 5.6), and what it reads is bounded.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Final

from emulation.userland.jail.syscalls import raw

_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_WITHIN: Final = _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH

READ_LIMIT: Final = 1 << 22
"""Bytes that are read of any file at most."""


class Tree:
    """The tree below ``fd``, which it owns.

    ``mounts``: whether names may cross into what is mounted in it."""

    def __init__(self, fd: int, *, mounts: bool = False) -> None:
        self.fd = fd
        self._resolve = _WITHIN | (0 if mounts else _NO_XDEV)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """openat2(2); ``OSError`` (ELOOP, EXDEV) where a name leads elsewhere."""
        flags |= os.O_CLOEXEC | (0 if flags & os.O_PATH else os.O_NOCTTY)
        how = struct.pack("<QQQ", flags, mode, self._resolve)
        return raw("openat2", self.fd, os.fsencode(path), how, len(how))

    @contextlib.contextmanager
    def opened(self, path: str, flags: int) -> Iterator[int]:
        """As :meth:`open`, and closed afterwards."""
        fd = self.open(path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """A file of a kernel's own file system, up to ``limit`` bytes of it."""
        chunks = []
        with self.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            while limit > 0 and (chunk := os.read(fd, min(limit, 1 << 16))):
                chunks.append(chunk)
                limit -= len(chunk)
        return b"".join(chunks)

    def readlink(self, path: str) -> str:
        """Where the link ``path`` leads; ``OSError`` where it is none."""
        with self.opened(path, os.O_PATH | os.O_NOFOLLOW) as fd:
            return os.readlink("", dir_fd=fd)

    def directory(self, name: str, mode: int) -> None:
        """Make a directory, its parent's owner's, where nothing has that name: what is there is
        the board's business."""
        parent, _, last = name.rpartition("/")
        with contextlib.suppress(OSError), self.opened(parent or ".", os.O_DIRECTORY) as fd:
            os.mkdir(last, 0o700, dir_fd=fd)
            owner = os.fstat(fd)
            with self.opened(name, os.O_DIRECTORY) as made:
                os.fchown(made, owner.st_uid, owner.st_gid)
                os.fchmod(made, mode)

    def give(self, owner: int) -> None:
        """Everything to user and group ``owner``, unless the tree is the owner's already."""
        if os.stat(".", dir_fd=self.fd).st_uid == owner:
            return
        # A board may have made names too deep to walk: it keeps what is below.
        with contextlib.suppress(OSError, RecursionError):
            for _, folders, files, at in os.fwalk(".", dir_fd=self.fd):
                for name in (*folders, *files):
                    os.chown(name, owner, owner, dir_fd=at, follow_symlinks=False)
        os.chown(".", owner, owner, dir_fd=self.fd)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextlib.contextmanager
def tree(path: str | os.PathLike[str], *, mounts: bool = False) -> Iterator[Tree]:
    """The tree at ``path``, whose own name nobody but us and the host's root can change."""
    opened = Tree(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), mounts=mounts)
    try:
        yield opened
    finally:
        opened.close()

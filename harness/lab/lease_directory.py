"""Where all users of a host keep their leases: a directory like /tmp, in which each user has a
folder that nobody else can write in.

Nobody can remove, replace or forge a file of another user there. What a user puts into a folder of
his own concerns his own leases only.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from harness.errors import HostError
from harness.foreign import escaped, say
from harness.lab.holder import (
    Holder,
    holder_of,
    lock,
    open_in,
    regular,
    user_name,
    write,
)

LEASES_ENVIRONMENT: Final = "HIL_LEASES"
_PREFIX = "stmm-hil-"
_TICKET = re.compile(r"[0-9]{20}-[0-9a-f]{16}\.(wait|held)")
_NETWORK = re.compile(r"nfs|cifs|smb|9p|afs|ceph|fuse|virtiofs|gfs|ocfs|lustre")
_MOST_FOLDERS = 20_000
_MOST_FILES = 1000
"""In the folder of one user; what is more is not looked at, and ours is full at half of that."""
_MOST_MARK_BYTES = 1000
_STALE_SECONDS = 3600.0
_OVERFLOW_UID = 65534
_told: set[int] = set()


class Ticket:
    """A locked file of ours that all users see: it waits, and then holds. A context manager: it is
    withdrawn where what goes on inside fails."""

    def __init__(self, folder: int, holder: Holder) -> None:
        self.name = holder.ticket
        self._folder = os.dup(folder)
        # Nobody can have it open, and locked, before us.
        self._descriptor = os.open(
            f"{self.name}.new",
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o600,
            dir_fd=folder,
        )
        self._now = f"{self.name}.new"
        try:
            lock(self._descriptor)
            write(self._descriptor, holder)
            os.fchmod(self._descriptor, 0o644)
            self._become("wait")
        except BaseException:
            self.withdraw()
            raise

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.withdraw()

    def hold(self) -> None:
        """Claim to be the holder."""
        self._become("held")

    def step_back(self) -> None:
        """Wait again."""
        self._become("wait")

    @property
    def removed(self) -> bool:
        """Whether somebody took the file away, so that nobody sees any more that we hold."""
        return os.fstat(self._descriptor).st_nlink == 0

    def withdraw(self) -> None:
        """Neither wait nor hold any longer."""
        with contextlib.suppress(OSError):
            os.unlink(self._now, dir_fd=self._folder)
        os.close(self._descriptor)
        os.close(self._folder)

    def _become(self, state: str) -> None:
        name = f"{self.name}.{state}"
        os.rename(self._now, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._now = name


class LeaseDirectory:
    """The directory at ``path``. Everything that uses it raises :class:`HostError` where it cannot
    be shared by users who do not trust each other; one that is not there is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fit = False

    def holders(self) -> list[Holder]:
        """All that hold or wait and live, oldest first; dead tickets of ours are cleared away."""
        return sorted(self._holders(), key=lambda holder: holder.ticket)

    def ticket(self, holder: Holder) -> Ticket:
        """A turn in the queue."""
        with self._ours() as folder:
            return Ticket(folder, holder)

    def mark(self, victim: Holder, text: str) -> None:
        """Tell a holder something."""
        with self._ours() as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            marked = os.open(f"{victim.ticket}.broken", flags, 0o644, dir_fd=folder)
            with os.fdopen(marked, "wb") as file:
                file.write(text.encode("utf-8", "replace")[:_MOST_MARK_BYTES])
                os.fchmod(marked, 0o644)

    def unmark(self, victim: Holder) -> None:
        """Take back what :meth:`mark` said."""
        with self._ours() as folder, contextlib.suppress(OSError):
            os.unlink(f"{victim.ticket}.broken", dir_fd=folder)

    def marks(self, ticket: str) -> Iterator[str]:
        """What a holder is told: by whom, as the kernel says, and their words."""
        for folder, owner in self._folders():
            try:
                with regular(folder, f"{ticket}.broken", owner) as descriptor:
                    text = os.pread(descriptor, _MOST_MARK_BYTES, 0).decode("utf-8", "replace")
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                _pass_over(owner, f"{ticket}.broken", error)
                continue
            yield f"by {user_name(owner)}: {escaped(text)}"

    @contextlib.contextmanager
    def folder_of(self, holder: Holder) -> Iterator[int | None]:
        """The folder with a holder's ticket, None where that is gone."""
        for folder, owner in self._folders():
            with contextlib.suppress(OSError, ValueError):
                if owner == holder.uid and holder_of(folder, f"{holder.ticket}.held", owner):
                    yield folder
                    return
        yield None

    # --- helpers ------------------------------------------------------------------------------

    def _holders(self) -> Iterator[Holder]:
        for folder, owner in self._folders():
            for name in filter(_TICKET.fullmatch, _names(folder, _MOST_FILES)):
                try:
                    holder = holder_of(folder, name, owner)
                except FileNotFoundError:
                    continue  # it went, or became a holder, just now
                except (OSError, ValueError) as error:
                    _pass_over(owner, name, error)
                    continue
                if holder is not None:
                    yield holder
                elif owner == os.geteuid():
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=folder)

    def _folders(self) -> Generator[tuple[int, int], None, None]:
        """Each user's folder and who that is: by its owner, never by its name."""
        try:
            top = self._open()
        except FileNotFoundError:
            return
        try:
            names = _names(top, _MOST_FOLDERS, _PREFIX)
            if len(names) >= _MOST_FOLDERS:
                raise HostError(
                    f"{self.path} is full: somebody makes folders called {_PREFIX}…",
                    remedy="root can see who, and remove them",
                )
            for name in names:
                try:
                    folder = open_in(top, name, os.O_RDONLY | os.O_DIRECTORY)
                except OSError as error:
                    with contextlib.suppress(OSError):
                        owner = os.stat(name, dir_fd=top, follow_symlinks=False).st_uid
                        _pass_over(owner, name, error)
                    continue
                try:
                    yield folder, os.fstat(folder).st_uid
                finally:
                    os.close(folder)
        finally:
            os.close(top)

    @contextlib.contextmanager
    def _ours(self) -> Iterator[int]:
        """Our own folder, made where it is missing."""
        try:
            folder = self._our_folder()
            try:
                os.fchmod(folder, 0o755)
                self._clear(folder)
                yield folder
            finally:
                os.close(folder)
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def _our_folder(self) -> int:
        if not self.path.is_dir():
            # Root's is for all users; an ordinary user's is for that user alone.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                self.path.chmod(0o1777)
        with contextlib.closing(self._folders()) as folders:
            for folder, owner in folders:
                if owner == os.geteuid():
                    return os.dup(folder)
        name = f"{_PREFIX}{os.geteuid()}-{os.urandom(4).hex()}"
        top = self._open()
        try:
            os.mkdir(name, 0o755, dir_fd=top)
            return open_in(top, name, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(top)

    def _clear(self, folder: int) -> None:
        """What processes of ours left that were killed while they made it."""
        names = _names(folder, _MOST_FILES)
        for name in names:
            with contextlib.suppress(OSError):
                age = time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                if age > _STALE_SECONDS and name.endswith((".new", ".broken")):
                    os.unlink(name, dir_fd=folder)
        if len(names) > _MOST_FILES // 2:
            raise self._unusable(f"your own folder there has {len(names)} files")

    def _open(self) -> int:
        """Raises FileNotFoundError."""
        try:
            top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unusable(error.strerror) from error
        try:
            if not self._fit:
                self._check(top)
                self._fit = True
        except BaseException:
            os.close(top)
            raise
        return top

    def _check(self, top: int) -> None:
        """Nobody but root and ourselves may be able to remove what we make there."""
        status = os.fstat(top)
        trusted = {0, os.geteuid()}
        if not _sees_all_users():
            # Root of outside is nobody in here; whoever made the container gave us the directory.
            trusted.add(_OVERFLOW_UID)
        if status.st_uid not in trusted:
            raise self._unusable(
                f"it belongs to {user_name(status.st_uid)}, who could remove others' leases"
            )
        if status.st_uid != os.geteuid() and not status.st_mode & stat.S_IWOTH:
            raise self._unusable("only its owner can keep leases there")
        real = Path(os.path.realpath(self.path))
        for place in (real, *real.parents):
            found = place.stat()
            if found.st_uid not in trusted:
                raise self._unusable(f"{place} belongs to {user_name(found.st_uid)}")
            # A group called as its user is that user's own.
            others = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != found.st_uid else 0)
            if found.st_mode & others and not found.st_mode & stat.S_ISVTX:
                raise self._unusable(f"{place} can be written by others and is not sticky")
        kind = _file_system(status.st_dev)
        if _NETWORK.match(kind):
            raise self._unusable(f"locks on a file system of type {kind} are not of one host")

    def _unusable(self, why: str | None) -> HostError:
        return HostError(
            f"leases cannot be kept in {self.path}: {why}",
            remedy=f"let root make a directory for all users (install -d -m 1777 {self.path}), or "
            f"set {LEASES_ENVIRONMENT} to one; docs/lab.md",
        )


def default_directory() -> Path:
    """Where all users of this host keep leases: ``$HIL_LEASES``, else ``/run/lock`` where it is
    for everybody, else ``/tmp``. The same for all of them."""
    if override := os.environ.get(LEASES_ENVIRONMENT):
        return Path(override)
    shared = Path("/run/lock")
    with contextlib.suppress(OSError):
        if shared.stat().st_mode & 0o1777 == 0o1777:
            return shared
    return Path("/tmp")


def _names(folder: int, most: int, prefix: str = "") -> list[str]:
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.name.startswith(prefix))
        return [*itertools.islice(names, most)]


def _sees_all_users() -> bool:
    """Whether this is no user namespace with a part of the host's users."""
    try:
        return Path("/proc/self/uid_map").read_text("ascii").split() == ["0", "0", "4294967295"]
    except OSError:
        return True


def _file_system(device: int) -> str:
    """The type of the file system with that number (proc(5), mountinfo)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").split("\n")[:-1]:
        fields = line.split(" ")
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return ""


def _pass_over(owner: int, name: str, why: Exception) -> None:
    """Say, once a user, that files of that user are no leases."""
    if isinstance(why, OSError) and why.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
        raise HostError(
            f"leases cannot be looked at: {why.strerror}", remedy="close files, or raise the limit"
        ) from why
    if owner in _told:
        return
    _told.add(owner)
    reason = why.strerror if isinstance(why, OSError) else str(why)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        say(
            f"hil: passed over {name} of {user_name(owner)} among the leases: {reason}",
            file=sys.stderr,
        )

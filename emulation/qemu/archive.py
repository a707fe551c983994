"""Files of the Debian archive: named by the lock, fetched once, checked by their checksum."""

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

MIRROR = "http://deb.debian.org/debian"
LOCK = Path(__file__).with_name("packages.lock")
_TIMEOUT_SECONDS = 60.0
_ATTEMPTS = 3
_CHUNK = 1 << 20

# What dpkg finds under these names in a merged file system; the tree is made with them first.
MERGED = ("bin", "lib", "lib64", "sbin")


class BuildError(Exception):
    """A piece cannot be built: ``what`` happened, and the ``remedy``."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  {self.remedy}"


@dataclass(frozen=True)
class ArchiveFile:
    """One file of the archive: of the set ``group``, of the package ``name``."""

    group: str
    name: str
    version: str
    path: str
    """Below the mirror, ``pool/main/...``."""
    size: int
    """Bytes."""
    sha256: str

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.path).name

    def line(self) -> str:
        return f"{self.group} {self.name} {self.version} {self.size} {self.sha256} {self.path}"


def read_lock(path: Path = LOCK) -> dict[str, tuple[ArchiveFile, ...]]:
    """The files of each group. Raises :class:`BuildError` where a line is not one."""
    groups: dict[str, list[ArchiveFile]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        try:
            group, name, version, size, sha256, pool = line.split(" ")
            file = ArchiveFile(group, name, version, pool, int(size), sha256)
        except ValueError as error:
            raise BuildError(f"{path}:{number}: not a line of the lock", "write it anew") from error
        groups.setdefault(group, []).append(file)
    return {group: tuple(files) for group, files in groups.items()}


class Downloads:
    """The directory of fetched files, each under its checksum and name."""

    def __init__(self, place: Path, mirror: str = MIRROR) -> None:
        self._place = place
        self._mirror = mirror.rstrip("/")

    def path(self, file: ArchiveFile) -> Path:
        return self._place / f"{file.sha256[:12]}-{file.file_name}"

    def have(self, file: ArchiveFile) -> bool:
        """Whether it was fetched; its checksum was compared then."""
        path = self.path(file)
        return path.is_file() and path.stat().st_size == file.size

    def url(self, file: ArchiveFile) -> str:
        return f"{self._mirror}/{file.path}"

    def why_not(self, file: ArchiveFile) -> str | None:
        """Why the mirror does not have it; ``None`` where it does, or it was fetched already."""
        if self.have(file):
            return None
        request = urllib.request.Request(self.url(file), method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
                size = answer.headers.get("Content-Length")
        except (urllib.error.URLError, OSError) as error:
            return f"{self.url(file)}: {error}"
        if size is not None and int(size) != file.size:
            return f"{self.url(file)}: has {size} bytes, not {file.size}"
        return None

    def fetch(self, file: ArchiveFile) -> Path:
        """Raises :class:`BuildError` where it cannot be had or is another file."""
        path = self.path(file)
        if self.have(file):
            return path
        self._place.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                found = self._copy(file, partial)
                break
            except (urllib.error.URLError, OSError) as error:
                gone = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if gone or attempt == _ATTEMPTS:
                    raise BuildError(
                        f"{self.url(file)} cannot be fetched: {error}",
                        "another mirror may have it (--mirror); `python -m emulation.qemu lock` "
                        "takes the versions that Debian has today",
                    ) from error
        if found != file.sha256:
            partial.unlink()
            raise BuildError(
                f"{self.url(file)} is not the file of the lock (sha256 {found})",
                "the mirror or a proxy changed it; try another (--mirror)",
            )
        partial.replace(path)
        return path

    def _copy(self, file: ArchiveFile, to: Path) -> str:
        digest = hashlib.sha256()
        with (
            urllib.request.urlopen(self.url(file), timeout=_TIMEOUT_SECONDS) as answer,
            to.open("wb") as out,
        ):
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
        return digest.hexdigest()


def unpack_packages(
    packages: Sequence[Path], tree: Path, said: Callable[[str], None] = lambda _: None
) -> None:
    """Unpack .deb files into a tree, owners left out, maintainer scripts not run."""
    for name in MERGED:
        tree.joinpath("usr", name).mkdir(parents=True, exist_ok=True)
        link = tree / name
        if not link.is_symlink():
            link.symlink_to(f"usr/{name}")
    for package in packages:
        said(package.name)
        with _data_of(package) as data:
            for member in data:
                _place(data, member, tree)


def _place(data: tarfile.TarFile, member: tarfile.TarInfo, tree: Path) -> None:
    """One file of a package. Files below the merged directories are placed in /usr: dpkg would
    follow the links too."""
    name = member.name.removeprefix("./")
    top, slash, rest = name.partition("/")
    if top in MERGED:
        if not rest:
            return
        name = f"usr/{top}{slash}{rest}"
    path = tree / name
    if member.isdir():
        if not path.is_symlink():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(member.mode | 0o700)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        linked = member.linkname.removeprefix("./")
        linked = f"usr/{linked}" if linked.partition("/")[0] in MERGED else linked
        os.link(tree / linked, path)
    elif (content := data.extractfile(member)) is not None:
        with path.open("wb") as out:
            shutil.copyfileobj(content, out, _CHUNK)
        path.chmod(member.mode)


@contextmanager
def _data_of(package: Path) -> Iterator[tarfile.TarFile]:
    with _member(package, "data.tar") as stream, tarfile.open(fileobj=stream) as tar:
        yield tar


@contextmanager
def _member(package: Path, prefix: str) -> Iterator[IO[bytes]]:
    """The member of the ar archive whose name begins so (deb(5))."""
    with package.open("rb") as file:
        for name, size in _members(file):
            if name.startswith(prefix):
                yield BytesIO(file.read(size)) if size < _CHUNK else file
                return
            file.seek(size + size % 2, os.SEEK_CUR)
    raise BuildError(f"{package.name} has no {prefix}", "it is no Debian package; fetch it again")


def _members(file: IO[bytes]) -> Iterable[tuple[str, int]]:
    """Each member's name and size, with the file at its content (ar(5): a header of 60 bytes)."""
    if file.read(8) != b"!<arch>\n":
        return
    while len(header := file.read(60)) == 60:
        yield header[:16].decode("ascii").rstrip(" /"), int(header[48:58])

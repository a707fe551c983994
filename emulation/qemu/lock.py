"""Writes the lock: today's versions of what is asked for below, and all they depend on.

For whoever maintains the build; a build itself reads only the lock.
"""

import lzma
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emulation.qemu.archive import LOCK, MIRROR, ArchiveFile, BuildError

Paragraph = Mapping[str, str]


@dataclass(frozen=True)
class Binaries:
    """Binary packages with their dependencies."""

    group: str
    architecture: str
    names: tuple[str, ...]
    suites: tuple[str, ...] = ("trixie",)
    """A package is taken from the first suite that has it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    """Dependencies that what runs here does not need."""
    dependencies: bool = True


@dataclass(frozen=True)
class Source:
    """The upstream archive of a source package and Debian's changes to it."""

    group: str
    name: str
    suite: str = "trixie"


# Tools that build; a tree of trixie, so that the host needs none of them.
_TOOLS = """bash bc binutils bison bzip2 coreutils cpp dash device-tree-compiler diffutils
dosfstools
e2fsprogs fdisk file findutils flex g++ gawk debianutils grep hostname base-files gcc
gcc-aarch64-linux-gnu gzip kmod libc6-dev
libc6-dev-arm64-cross libelf-dev libssl-dev make mtools openssl patch perl pkgconf python3
python3-cryptography python3-pyelftools sed tar util-linux uuid-dev xz-utils"""

_ROOT = """base-files base-passwd bash coreutils dash dbus diffutils dosfstools e2fsprogs efibootmgr
efitools efivar findutils grep gzip hostname init iproute2 kmod less libc-bin libnss-systemd login
login.defs mawk mmc-utils mokutil mount openssh-server openssh-sftp-server passwd perl-base procps
python3 sbsigntool sed sudo systemd systemd-sysv tar udev util-linux xxd"""

REQUESTS: tuple[Binaries | Source, ...] = (
    Binaries("tools", "amd64", tuple(_TOOLS.split())),
    Binaries(
        "qemu",
        "amd64",
        ("qemu-system-arm",),
        suites=("trixie-backports", "trixie"),
        without=frozenset({"qemu-system-data", "qemu-utils"}),
    ),
    Binaries("root", "arm64", tuple(_ROOT.split())),
    Binaries("sysroot", "arm64", ("libuuid1", "uuid-dev"), dependencies=False),
    Binaries(
        "tee-supplicant",
        "arm64",
        ("libteec2", "tee-supplicant"),
        suites=("forky",),
        dependencies=False,
    ),
    Binaries(
        "linux",
        "arm64",
        ("linux-source-6.12",),
        versions={"linux-source-6.12": "6.12.107-1"},
        dependencies=False,
    ),
    Source("tf-a", "arm-trusted-firmware"),
    Source("optee-os", "optee-os", "sid"),
    Source("edk2", "edk2"),
    Source("u-boot", "u-boot"),
    Source("optee-client", "optee-client", "forky"),
)


def resolve(requests: Iterable[Binaries | Source], mirror: str = MIRROR) -> list[ArchiveFile]:
    """All files that the requests come to. Raises :class:`BuildError`."""
    indices = _Indices(mirror)
    files: list[ArchiveFile] = []
    for request in requests:
        if isinstance(request, Binaries):
            files += _Closure(request, indices).files()
        else:
            files += _source(request, indices)
    return files


def write_lock(path: Path = LOCK, mirror: str = MIRROR) -> int:
    """Resolve all requests; the number of files. Raises :class:`BuildError`."""
    files = resolve(REQUESTS, mirror)
    head = "# group package version bytes sha256 path; `python -m emulation.qemu lock` writes it\n"
    path.write_text(head + "".join(f"{file.line()}\n" for file in files), "utf-8")
    return len(files)


class _Indices:
    """The indices of the archive, each read once."""

    def __init__(self, mirror: str) -> None:
        self._mirror = mirror
        self._read: dict[str, list[Paragraph]] = {}

    def packages(self, suite: str, architecture: str) -> list[Paragraph]:
        return self._index(f"{suite}/main/binary-{architecture}/Packages.xz")

    def sources(self, suite: str) -> list[Paragraph]:
        return self._index(f"{suite}/main/source/Sources.xz")

    def _index(self, path: str) -> list[Paragraph]:
        if path not in self._read:
            with urllib.request.urlopen(f"{self._mirror}/dists/{path}", timeout=300) as answer:
                text = lzma.decompress(answer.read()).decode("utf-8")
            self._read[path] = [_paragraph(part) for part in text.split("\n\n") if part.strip()]
        return self._read[path]


class _Closure:
    """Packages and what they depend on."""

    def __init__(self, request: Binaries, indices: _Indices) -> None:
        self._request = request
        self._packages: dict[str, Paragraph] = {}
        self._provided: dict[str, list[str]] = {}
        for suite in reversed(request.suites):
            for package in indices.packages(suite, request.architecture):
                self._offer(package)

    def _offer(self, package: Paragraph) -> None:
        name = package["Package"]
        wanted = self._request.versions.get(name)
        if wanted is not None and package["Version"] != wanted:
            return
        known = self._packages.get(name)
        if known is None or wanted or _newer(package["Version"], known["Version"]):
            self._packages[name] = package
        for provided in _names(package.get("Provides", "")):
            self._provided.setdefault(provided[0], []).append(name)

    def files(self) -> list[ArchiveFile]:
        chosen: dict[str, Paragraph] = {}
        waiting = list(reversed(self._request.names))
        while waiting:
            name = waiting.pop()
            if name in chosen or name in self._request.without:
                continue
            if name not in self._packages:
                raise BuildError(
                    f"{'/'.join(self._request.suites)} has no package {name}", "correct the request"
                )
            chosen[name] = self._packages[name]
            if self._request.dependencies:
                waiting += reversed(list(self._needed(chosen[name], {*chosen, *waiting})))
        return [self._file(package) for _, package in sorted(chosen.items())]

    def _needed(self, package: Paragraph, known: set[str]) -> Iterator[str]:
        for key in ("Pre-Depends", "Depends"):
            for alternatives in _names(package.get(key, "")):
                if not known & {*alternatives, *self._providers(alternatives)}:
                    yield self._first(package["Package"], alternatives)

    def _providers(self, names: list[str]) -> list[str]:
        return [provider for name in names for provider in self._provided.get(name, ())]

    def _first(self, of: str, alternatives: list[str]) -> str:
        real = [name for name in alternatives if name in self._packages]
        for name in [*real, *sorted(self._providers(alternatives))]:
            return name
        raise BuildError(f"nothing provides {alternatives} for {of}", "correct the request")

    def _file(self, package: Paragraph) -> ArchiveFile:
        return ArchiveFile(
            self._request.group,
            package["Package"],
            package["Version"],
            package["Filename"],
            int(package["Size"]),
            package["SHA256"],
        )


def _source(request: Source, indices: _Indices) -> list[ArchiveFile]:
    found: Paragraph | None = None
    for package in indices.sources(request.suite):
        if package["Package"] == request.name and (
            found is None or _newer(package["Version"], found["Version"])
        ):
            found = package
    if found is None:
        raise BuildError(f"{request.suite} has no source {request.name}", "correct the request")
    files = []
    for line in found["Checksums-Sha256"].splitlines():
        sha256, size, name = line.split()
        if re.search(r"\.tar\.(gz|xz|bz2)$", name):
            path = f"{found['Directory']}/{name}"
            files.append(
                ArchiveFile(request.group, request.name, found["Version"], path, int(size), sha256)
            )
    return files


def _paragraph(text: str) -> Paragraph:
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            fields[key] += f"\n{line.strip()}"
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return {key: value.strip() for key, value in fields.items()}


def _names(relation: str) -> list[list[str]]:
    """``a (>= 1) | b, c:any`` as [[a, b], [c]]."""
    return [
        [re.split(r"[\s(:\[]", name.strip(), maxsplit=1)[0] for name in part.split("|")]
        for part in relation.split(",")
        if part.strip()
    ]


def _newer(a: str, b: str) -> bool:
    return _order(a) > _order(b)


def _order(version: str) -> list[object]:
    """A key that orders the versions of one package as deb-version(7) does."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    key: list[object] = [int(epoch)]
    for part in (upstream, revision):
        pieces = re.findall(r"(\D*)(\d*)", part)
        key.append(
            [([_weight(c) for c in text] + [0], int(digits or 0)) for text, digits in pieces]
        )
    return key


def _weight(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256

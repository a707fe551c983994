"""What a piece is: the part of the stack that is built by itself, from inputs that name it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emulation.qemu.archive import ArchiveFile, BuildError


@dataclass(frozen=True)
class Unpack:
    """Unpack the binary packages of a group into a directory of the outputs."""

    group: str
    into: str
    name: str = "unpack"

    def text(self) -> str:
        return f"unpack {self.group} into {self.into}"


@dataclass(frozen=True)
class Script:
    """A shell script, run in the tree of tools (``/bin/sh -eu``). It finds ``/work`` (the piece's
    own), ``/out`` (its outputs), ``/in/PIECE`` (outputs of the pieces it needs), ``/packages``
    (the files of its groups) and ``/own`` (the files it names), and runs again as a whole if it
    was interrupted."""

    name: str
    script: str

    def text(self) -> str:
        return self.script


Step = Unpack | Script


@dataclass(frozen=True)
class Piece:
    """One part of the stack."""

    name: str
    says: str
    """What it is, in one line."""
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    """Files that exist below ``out`` once it is built."""
    needs: tuple[str, ...] = ()
    """Pieces whose outputs it takes; ``tools`` is where its scripts run."""
    groups: tuple[str, ...] = ()
    """Groups of the lock."""
    files: tuple[Path, ...] = ()
    """Files and directories of our own."""
    settings: tuple[tuple[str, str], ...] = ()
    """Variables of its scripts."""
    megabytes: int = 100
    """What it takes on the disk while it is built, roughly."""


@dataclass(frozen=True)
class Plan:
    """Pieces in the order in which they are built, and what identifies each."""

    pieces: tuple[Piece, ...]
    identities: Mapping[str, str]
    groups: Mapping[str, tuple[ArchiveFile, ...]]

    def archive_files(self, piece: Piece) -> list[ArchiveFile]:
        return [file for group in piece.groups for file in self.groups[group]]

    def directory(self, piece: Piece) -> str:
        return f"{piece.name}-{self.identities[piece.name]}"


def plan(
    catalogue: Sequence[Piece],
    groups: Mapping[str, tuple[ArchiveFile, ...]],
    wanted: Iterable[str] | None = None,
) -> Plan:
    """The wanted pieces (all where ``None``) and those they need, needed ones first.

    Raises :class:`BuildError` for a name that is none, a group that the lock lacks, a circle.
    """
    named = {piece.name: piece for piece in catalogue}
    order: dict[str, Piece] = {}
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name not in named:
            raise BuildError(f"there is no piece {name}", f"there are: {', '.join(named)}")
        if name in open_:
            raise BuildError(f"{name} needs itself", "correct the catalogue")
        open_.append(name)
        for needed in named[name].needs:
            visit(needed)
        open_.pop()
        order[name] = named[name]

    for name in named if wanted is None else wanted:
        visit(name)
    identities: dict[str, str] = {}
    for piece in order.values():
        identities[piece.name] = _identity(piece, identities, groups)
    return Plan(tuple(order.values()), identities, groups)


def _identity(
    piece: Piece,
    needed: Mapping[str, str],
    groups: Mapping[str, tuple[ArchiveFile, ...]],
) -> str:
    """The checksum of everything that decides what the piece becomes."""
    digest = hashlib.sha256()

    def take(*words: str) -> None:
        for word in words:
            digest.update(f"{len(word)} {word}\n".encode())

    for name in piece.needs:
        take("needs", name, needed[name])
    for group in piece.groups:
        if group not in groups:
            raise BuildError(f"the lock has no group {group}", "`python -m emulation.qemu lock`")
        for file in groups[group]:
            take("package", file.path, file.sha256)
    for path in own_files(piece.files):
        take("file", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    for key, value in piece.settings:
        take("setting", key, value)
    for step in piece.steps:
        take("step", step.name, step.text())
    take(*piece.outputs)
    return digest.hexdigest()[:12]


def own_files(paths: Iterable[Path]) -> list[Path]:
    """All files at or below these paths, sorted."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise BuildError(f"there is no {path}", "the checkout is incomplete")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += [p for p in inside if "__pycache__" not in p.parts]
    return found

"""Builds pieces: each once for its inputs, from the step at which it was interrupted."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from emulation.qemu import tree
from emulation.qemu.archive import ArchiveFile, BuildError, Downloads, unpack_packages
from emulation.qemu.pieces import Piece, Plan, Script, Step, Unpack

_TOOLS = "tools"


class Progress(Protocol):
    """Who is told how the build goes."""

    def piece(self, piece: Piece, number: int, count: int) -> None: ...
    def step(self, name: str, log: Path | None) -> None: ...
    def said(self, text: str) -> None: ...
    def built(self, piece: Piece, seconds: float) -> None: ...


@dataclass(frozen=True)
class Built:
    """A finished piece: where it is, and what each step took in seconds."""

    place: Path
    seconds: dict[str, float]

    @property
    def out(self) -> Path:
        return self.place / "out"


class Builder:
    """The cache directory: ``packages`` (fetched), ``pieces/NAME-CHECKSUM``."""

    def __init__(self, cache: Path, *, downloads: Downloads | None = None, jobs: int = 2) -> None:
        self._cache = cache
        self.downloads = downloads or Downloads(cache / "packages")
        self._jobs = jobs

    def finished(self, plan: Plan, name: str) -> Built | None:
        """A piece of these inputs, if it was built."""
        piece = next(piece for piece in plan.pieces if piece.name == name)
        place = self._place(plan, piece)
        try:
            record = json.loads((place / "built.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return Built(place, record["seconds"])

    def build(self, plan: Plan, progress: Progress) -> dict[str, Built]:
        """All pieces of the plan. Raises :class:`BuildError`; what is done stays done."""
        built: dict[str, Built] = {}
        with self._alone():
            for number, piece in enumerate(plan.pieces, 1):
                done = self.finished(plan, piece.name)
                if done is None:
                    progress.piece(piece, number, len(plan.pieces))
                    done = self._build(plan, piece, built, progress)
                    progress.built(piece, sum(done.seconds.values()))
                built[piece.name] = done
        return built

    def unused(self, plan: Plan) -> list[Path]:
        """Directories of pieces that were built from other inputs."""
        kept = {self._place(plan, piece) for piece in plan.pieces}
        pieces = self._cache / "pieces"
        return sorted(set(pieces.iterdir()) - kept) if pieces.is_dir() else []

    def _place(self, plan: Plan, piece: Piece) -> Path:
        return self._cache / "pieces" / plan.directory(piece)

    def _build(
        self, plan: Plan, piece: Piece, built: dict[str, Built], progress: Progress
    ) -> Built:
        place = self._place(plan, piece)
        for part in ("out", "work", "steps"):
            (place / part).mkdir(parents=True, exist_ok=True)
        seconds = {"fetch": self._fetch(plan.archive_files(piece), progress)}
        for number, step in enumerate(piece.steps):
            mark = place / "steps" / f"{number}-{step.name}"
            if not mark.exists():
                mark.write_text(str(self._step(plan, piece, step, built, progress)))
            seconds[step.name] = float(mark.read_text())
        missing = [name for name in piece.outputs if not (place / "out" / name).exists()]
        if missing:
            raise BuildError(
                f"{piece.name} was built without {', '.join(missing)}", f"read {place / 'log'}"
            )
        record = place / "built.json.partial"
        record.write_text(json.dumps({"piece": piece.name, "seconds": seconds}, indent=1))
        record.replace(place / "built.json")
        tree.remove(place / "work")
        return Built(place, seconds)

    def _fetch(self, files: list[ArchiveFile], progress: Progress) -> float:
        begun = time.monotonic()
        progress.step("fetch", None)
        for file in files:
            if not self.downloads.have(file):
                progress.said(f"{file.file_name} ({file.size >> 20} MiB)")
                self.downloads.fetch(file)
        return time.monotonic() - begun

    def _step(
        self, plan: Plan, piece: Piece, step: Step, built: dict[str, Built], progress: Progress
    ) -> float:
        place = self._place(plan, piece)
        log = place / "log"
        begun = time.monotonic()
        progress.step(step.name, log)
        if isinstance(step, Unpack):
            packages = [self.downloads.path(file) for file in plan.groups[step.group]]
            unpack_packages(packages, place / "out" / step.into, progress.said)
        else:
            self._run(plan, piece, step, built, log)
        return time.monotonic() - begun

    def _run(
        self, plan: Plan, piece: Piece, step: Script, built: dict[str, Built], log: Path
    ) -> None:
        place = self._place(plan, piece)
        room = tree.Room(
            root=built[_TOOLS].out if _TOOLS in piece.needs else None,
            work=place / "work",
            binds={
                "out": place / "out",
                **{f"in/{name}": built[name].out for name in piece.needs},
                **{
                    f"packages/{file.file_name}": self.downloads.path(file)
                    for file in plan.archive_files(piece)
                },
                **{f"own/{path.name}": path for path in piece.files},
            },
            variables={"JOBS": str(self._jobs), **dict(piece.settings)},
        )
        with log.open("ab") as out:
            out.write(f"\n=== {piece.name}: {step.name}\n".encode())
            out.flush()
            status = tree.run(room, step.script, out)
        if status != 0:
            raise BuildError(
                f"{piece.name}: the step {step.name} failed (status {status})\n{_tail(log)}",
                f"the whole log is {log}; the next build continues with this step",
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._cache.mkdir(parents=True, exist_ok=True)
        with (self._cache / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BuildError(
                    f"another build runs in {self._cache}", "wait for it, or give another --cache"
                ) from error
            yield


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-15:]
    return "\n".join(f"  | {line[:200]}" for line in lines)


def disk_free(path: Path) -> int:
    """Bytes free where the path is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def nice() -> None:
    """Builds give way to everything else."""
    os.nice(max(0, 19 - os.nice(0)))

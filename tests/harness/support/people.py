"""Other users of this host, and containers on it: real users and namespaces, with our Python."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.pace import HANGS

ROOT = Path(__file__).parents[3]
ANN, BOB = 23001, 23002
"""Users that no file of the host belongs to."""
HELD = "is held"
_HANGS = 60.0
needs_users = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare"))),
    reason="needs root to become two other users, and setpriv and unshare of util-linux",
)
CONTAINER = ("--pid", "--net", "--ipc", "--uts", "--kill-child", "--mount-proc")


def _open_the_way(staging: Path) -> Iterator[str]:
    """Lines of shell that let every user of a mount namespace reach Python and our code, also where
    they are below somebody's private folder."""
    children: dict[Path, set[Path]] = {}
    for end in (Path(sys.executable), Path(os.path.realpath(sys.executable)), ROOT):
        for child in (end, *end.parents):
            if not child.parent.stat().st_mode & stat.S_IXOTH:
                children.setdefault(child.parent, set()).add(child)
    for folder, inside in sorted(children.items()):
        for number, child in enumerate(sorted(inside)):
            yield f"mkdir -p {staging}/{number}; mount --bind {child} {staging}/{number}"
        yield f"mount -t tmpfs -o mode=755 none {folder}"
        for number, child in enumerate(sorted(inside)):
            yield f"mkdir {child}; mount --move {staging}/{number} {child}"


@dataclass
class Bench:
    """A host with a board, a directory of leases for all its users (root's, sticky), and users.
    ``leases`` may be changed."""

    folder: Path
    leases: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def board(self) -> Path:
        return self.folder / "desk3.toml"

    def describe(self, *, on: str = "pdu on", serial: str = "socket://10.0.0.9:4001") -> None:
        """Write the board file."""
        self.board.write_text(
            'emmc_cid = "aa015851454d55212101deadbeef2900"\n'
            f'[serial]\nport = "{serial}"\n'
            f'[power]\ndriver = "command"\noptions = {{ on = "{on}", off = "pdu off" }}\n'
        )

    def start(
        self,
        uid: int,
        *words: str | Path,
        container: Sequence[str] = (),
        before: str = ":",
        **environment: str,
    ) -> subprocess.Popen[str]:
        """``python`` with ``words``, by that user; ``container`` are options of unshare(1) and
        ``before`` is a line of shell that root runs in it."""
        script = [*_open_the_way(self.folder / "staging"), before]
        script.append(f'exec setpriv --reuid={uid} --regid={uid} --clear-groups "$@"')
        python = [sys.executable, *map(str, words)]
        process = subprocess.Popen(
            ["unshare", "--mount", *container, "sh", "-ec", "\n".join(script), "sh", *python],
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(self.folder),
                "HIL_LEASES": str(self.leases),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )
        self.started.append(process)
        return process

    def run(
        self, uid: int, *words: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """As :meth:`start`, to its end; what hangs fails the test."""
        process = self.start(uid, *words, **environment)
        output, errors = process.communicate(timeout=_HANGS)
        assert "Traceback" not in errors, errors
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def hil(
        self, uid: int, *words: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(uid, "-m", "harness", *words, **environment)

    def hold(self, uid: int, *words: str | Path) -> subprocess.Popen[str]:
        """``hil lease hold`` of the board, once it has it."""
        process = self.start(uid, "-m", "harness", "lease", "hold", *(words or [self.board]))
        assert process.stdout is not None
        line = process.stdout.readline()
        assert HELD in line, (line, process.communicate(timeout=HANGS))
        return process

    def program(self, uid: int, source: str, *words: str | Path) -> subprocess.Popen[str]:
        """A program of that user, once it has printed a line."""
        process = self.start(uid, "-c", source, *words)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=HANGS)
        return process

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


def bench() -> Iterator[Bench]:
    """For a fixture."""
    with tempfile.TemporaryDirectory(prefix="stmm-hil-people-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "leases").mkdir()
        (folder / "leases").chmod(0o1777)
        made = Bench(folder, folder / "leases")
        made.describe()
        try:
            yield made
        finally:
            made.close()

"""Trees that others write to: no name leads out of them, nothing without end is read of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulation.userland.jail.beneath import Tree, tree

SUPERVISOR = Path(__file__).parents[2] / "emulation" / "userland" / "jail"


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "secret").write_text("the host's")
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    (tmp_path / "tree" / "folder" / "file").write_text("the board's")
    with tree(tmp_path / "tree") as opened:
        yield opened


def test_reads_what_is_there(inside: Tree) -> None:
    assert inside.read("folder/file") == b"the board's"
    assert inside.read("folder/file", 3) == b"the"


@pytest.mark.fault("J2", "J3")
@pytest.mark.parametrize("name", ["../secret", "up", "folder/up", "through/secret", "absolute"])
def test_no_name_leads_out(inside: Tree, tmp_path: Path, name: str) -> None:
    (tmp_path / "tree" / "up").symlink_to("../secret")
    (tmp_path / "tree" / "folder" / "up").symlink_to("../../secret")
    (tmp_path / "tree" / "through").symlink_to("..")
    (tmp_path / "tree" / "absolute").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="openat2"):
        inside.read(name)


@pytest.mark.fault("J2")
def test_a_directory_is_made_once_and_never_elsewhere(inside: Tree, tmp_path: Path) -> None:
    inside.directory("tmp", 0o1777)
    made = tmp_path / "tree" / "tmp"
    assert made.stat().st_mode & 0o7777 == 0o1777
    made.chmod(0o700)
    inside.directory("tmp", 0o1777)
    assert made.stat().st_mode & 0o7777 == 0o700
    outside = tmp_path / "outside"
    outside.mkdir(0o700)
    for name, target in (("link", outside), ("dangling", tmp_path / "nowhere")):
        (tmp_path / "tree" / name).symlink_to(target)
        inside.directory(name, 0o1777)
        inside.directory(f"{name}/below", 0o1777)
    assert outside.stat().st_mode & 0o7777 == 0o700
    assert not list(outside.iterdir())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.fault("J2", "J3")
def test_a_fifo_does_not_hang_and_a_file_without_end_is_cut(inside: Tree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tree" / "fifo")
    assert inside.read("fifo") == b""
    (tmp_path / "tree" / "sparse").touch()
    os.truncate(tmp_path / "tree" / "sparse", 1 << 40)
    assert len(inside.read("sparse", 1 << 20)) == 1 << 20


def test_a_link_is_read_and_not_followed(inside: Tree, tmp_path: Path) -> None:
    (tmp_path / "tree" / "link").symlink_to("/etc/shadow")
    assert inside.readlink("link") == "/etc/shadow"
    with pytest.raises(OSError, match=r"argument|file"):
        inside.readlink("folder/file")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_is_given_away_are_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "secret")
    with tree(tmp_path / "tree") as opened:
        opened.give(4242)
        (tmp_path / "tree" / "deep").mkdir()
        opened.give(4242)
    assert (tmp_path / "tree").stat().st_uid == 4242
    assert (tmp_path / "tree" / "link").lstat().st_uid == 4242
    assert (tmp_path / "secret").stat().st_uid == 0
    assert (tmp_path / "tree" / "deep").stat().st_uid == 0, "walked again"


def test_a_tree_too_deep_to_walk_is_given_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    at = os.open(tmp_path / "tree", os.O_PATH)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_PATH, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with tree(tmp_path / "tree") as opened:
        opened.give(os.geteuid() + 1 if os.geteuid() == 0 else os.geteuid())
    subprocess.run(["rm", "-rf", tmp_path / "tree"], check=True)


def test_only_this_module_opens_what_is_in_the_boards_tree() -> None:
    """The supervisor's ways into it are /proc/PID/root and descriptors of its file systems."""
    allowed = {
        "beneath.py",
        # These run in the board, before it has a program of its own, or look at no file of it.
        "builder.py", "init.py", "walls.py", "namespaces.py", "zygote_process.py", "probe.py",
    }  # fmt: skip
    found = []
    for path in sorted(SUPERVISOR.rglob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        ways = [line for line in lines if "}/root" in line or "dir_fd=" in line]
        found += [(path.name, line.strip()) for line in ways if path.name not in allowed]
    assert found == [("paths.py", 'with tree(f"/proc/{caller.pid}/root", mounts=True) as root:')]

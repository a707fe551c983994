"""The target probe over a real SSH server, with both back-ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import LinkTimeout, TargetError
from harness.links.ssh import SshShell
from harness.probe import steps as do
from harness.probe.probe import Probe
from tests.harness.support.servers import openssh
from tests.pace import within

NEW = "O_WRONLY|O_CREAT|O_TRUNC"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshShell]:
    server = openssh(tmp_path_factory.mktemp("sshd"))
    server.start()
    shell = SshShell(server.address)
    yield shell
    shell.close()
    server.stop()


@pytest.fixture(scope="module", params=["python3", "static", "sh"])
def probe(request: pytest.FixtureRequest, shell: SshShell) -> Iterator[Probe]:
    with Probe(shell, backend=request.param) as probe:
        yield probe


def test_the_static_program_is_taken_where_there_is_one(shell: SshShell) -> None:
    with Probe(shell) as probe:
        probe.steps([do.ListDir("/")])
        assert probe.backend == "static"


def test_descriptors_live_from_batch_to_batch(probe: Probe, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256))
    (opened,) = probe.steps([do.Open("f", str(path), NEW, 0o640)])
    assert opened.ok
    assert path.stat().st_mode & 0o777 == 0o640
    first, second, closed = probe.steps([do.Write("f", data), do.Write("f", b"!"), do.Close("f")])
    assert (first.value, second.value, closed.ok) == (256, 1, True)
    assert path.read_bytes() == data + b"!"
    outcomes = probe.steps(
        [
            do.Open("f", str(path)),
            do.Read("f", 256),
            do.Read("f", 99),
            do.Read("f", 9),
            do.Close("f"),
        ]
    )
    assert [outcome.data for outcome in outcomes[1:4]] == [data, b"!", b""]
    assert [outcome.value for outcome in outcomes[1:4]] == [256, 1, 0]


def test_errors_are_the_targets_errno(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "full").write_bytes(b"x")
    outcomes = probe.steps(
        [
            do.Open("a", str(tmp_path / "missing")),
            do.Read("a", 1),
            do.Open("b", str(tmp_path / "dir"), NEW),
            do.Open("c", "/proc/version", NEW),
            do.Unlink(str(tmp_path / "missing")),
            do.Unlink(str(tmp_path / "dir")),
            do.Rmdir(str(tmp_path / "dir")),
            do.Mkdir(str(tmp_path / "dir")),
            do.Stat(str(tmp_path / "missing")),
            do.ListDir(str(tmp_path / "missing")),
            do.Close("never"),
            do.Open("d", str(tmp_path / ("n" * 300)), NEW),
            do.Open("e", str(tmp_path / "dir" / "full"), "O_WRONLY|O_CREAT|O_EXCL"),
        ]
    )
    names = [outcome.errno for outcome in outcomes]
    assert names[:3] == ["ENOENT", "EBADF", "EISDIR"]
    assert names[3] in ("EACCES", "EPERM", "EIO", None)
    assert names[4:] == [
        "ENOENT", "EISDIR", "ENOTEMPTY", "EEXIST", "ENOENT", "ENOENT", "EBADF", "ENAMETOOLONG",
        "EEXIST",
    ]  # fmt: skip


def test_full_device(probe: Probe) -> None:
    opened, written, _ = probe.steps(
        [do.Open("f", "/dev/full", NEW), do.Write("f", b"x"), do.Close("f")]
    )
    assert opened.ok
    assert written.errno == "ENOSPC"


def test_names_and_links(probe: Probe, tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in ("a'1", "b 2", "ü"))
    (tmp_path / "a'1").write_bytes(b"12345")
    outcomes = probe.steps(
        [do.Rename(a, b), do.Link(b, a), do.Symlink(b, c), do.Stat(b), do.ListDir(str(tmp_path))]
    )
    assert all(outcome.ok for outcome in outcomes)
    assert outcomes[3].value == 5
    assert outcomes[3].field("nlink") == 2
    assert outcomes[4].names == tuple(sorted([b"a'1", b"b 2", "ü".encode()]))


def test_stat_of_a_descriptor(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"123")
    _, found, _ = probe.steps([do.Open("f", str(tmp_path / "f")), do.Fstat("f"), do.Close("f")])
    assert found.value == 3
    assert found.field("ino") == (tmp_path / "f").stat().st_ino


def test_statfs(probe: Probe, tmp_path: Path) -> None:
    (found,) = probe.steps([do.StatFs("/proc")])
    assert found.value == 0x9FA0
    (found,) = probe.steps([do.StatFs(str(tmp_path))])
    assert found.field("blocks") == os.statvfs(tmp_path).f_blocks
    assert found.field("namelen") == 255


def test_immutable_flag(probe: Probe, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    outcomes = probe.steps(
        [do.Open("f", str(path)), do.GetFlags("f"), do.SetFlags("f", 0x10), do.GetFlags("f")]
    )
    if not outcomes[2].ok:
        pytest.skip(f"this file system or user cannot set the flag: {outcomes[2]}")
    assert (outcomes[3].value or 0) & 0x10
    (denied,) = probe.steps([do.Unlink(str(path))])
    assert denied.errno == "EPERM"
    cleared, removed = probe.steps([do.SetFlags("f", 0), do.Unlink(str(path))])
    assert cleared.ok
    assert removed.ok


def test_one_write_is_one_system_call(probe: Probe, shell: SshShell, tmp_path: Path) -> None:
    """A fifo in packet order would not tell; a record file does: O_APPEND writes to a socket-like
    reader arrive separately. 20 kB with line feeds is what shells like to split."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = b"line\n" * 1000
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        probe.steps([do.Open("f", str(path), "O_RDWR|O_CREAT")])
        (written,) = probe.steps([do.Write("f", data)])
        assert written.value == len(data)
        assert os.read(reader, 65536) == data
    finally:
        probe.steps([do.Close("f")])
        os.close(reader)


@pytest.mark.parametrize("backend", ["python3", "static"])
def test_what_the_shell_cannot_do(shell: SshShell, backend: str, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    steps: list[do.Step] = [
        do.Open("f", path, "O_RDWR|O_CREAT", 0o600),
        do.Writev("f", (b"ab", b"cd")),
        do.Pwrite("f", b"B", 1),
        do.Lseek("f", 1),
        do.Read("f", 2),
        do.Pread("f", 2, 2),
        do.Ftruncate("f", 3),
        do.Truncate(path, 2),
        do.Fstat("f"),
        do.Mknod(str(tmp_path / "fifo"), 0o010600),
        do.Close("f"),
    ]
    with Probe(shell, backend=backend) as probe:
        outcomes = probe.steps(steps)
    assert all(outcome.ok for outcome in outcomes)
    assert (outcomes[1].value, outcomes[2].value) == (4, 1)
    assert (outcomes[4].data, outcomes[5].data) == (b"Bc", b"cd")
    assert outcomes[8].value == 2
    assert (tmp_path / "fifo").is_fifo()


def test_the_shell_says_what_it_cannot_do(shell: SshShell, tmp_path: Path) -> None:
    with Probe(shell, backend="sh") as probe:
        outcomes = probe.steps(
            [
                do.Open("f", str(tmp_path / "f"), NEW),
                do.Writev("f", (b"a",)),
                do.Lseek("f", 0),
                do.Open("g", str(tmp_path / "g"), "O_WRONLY"),
                do.Write("f", b"still works"),
            ]
        )
    assert [bool(outcome.unsupported) for outcome in outcomes] == [False, True, True, True, False]
    assert "Lseek" in (outcomes[2].unsupported or "")
    assert (tmp_path / "f").read_bytes() == b"still works"


def test_large_batches(probe: Probe, tmp_path: Path) -> None:
    data = os.urandom(30000)
    path = str(tmp_path / "f")
    outcomes = probe.steps(
        [do.Open("f", path, NEW), do.Write("f", data), do.Close("f"), do.Open("f", path)]
    )
    assert outcomes[1].value == len(data)
    (read, _) = probe.steps([do.Read("f", 65536), do.Close("f")])
    assert read.data == data


def test_more_than_the_static_program_has_room_for(shell: SshShell, tmp_path: Path) -> None:
    path = tmp_path / "f"
    with Probe(shell) as probe:
        outcomes = probe.steps(
            [do.Open("f", str(path), NEW), do.Write("f", bytes(17 << 20)), do.Close("f")],
            timeout=60,
        )
        assert outcomes[1].value == 17 << 20
        assert probe.backend == "python3"


def test_a_step_that_hangs_ends_at_the_timeout(shell: SshShell, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for backend in ("python3", "sh"):
        with Probe(shell, backend=backend) as probe:
            probe.steps([do.ListDir("/")])
            with within(4, waiting=0.4), pytest.raises(LinkTimeout):
                probe.steps([do.Open("f", str(tmp_path / "fifo"))], timeout=0.4)
            assert probe.steps([do.ListDir("/")])[0].ok


def _kill(probe: Probe) -> None:
    """This one: what runs elsewhere on this host, in emulated boards too, are others' probes."""
    assert probe._process is not None
    pid = probe._process._pid
    dead = f"! read -r s </proc/{pid}/stat || case $s in *') Z '*) ;; *) false;; esac"
    killed = probe.shell.run(f"kill -KILL {pid}; until {dead}; do :; done 2>/dev/null", timeout=20)
    killed.check()


def test_a_killed_probe_is_replaced_and_told_if_descriptors_are_lost(
    shell: SshShell, tmp_path: Path
) -> None:
    with Probe(shell) as probe:
        probe.steps([do.Open("f", str(tmp_path / "f"), NEW), do.Close("f")])
        _kill(probe)
        assert probe.steps([do.Open("f", str(tmp_path / "f"))])[0].ok
        _kill(probe)
        with pytest.raises(TargetError, match="probe on the target has ended"):
            probe.steps([do.Read("f", 1)])
        assert probe.steps([do.Read("f", 1)])[0].errno == "EBADF"


def test_closing_leaves_nothing_on_the_target(shell: SshShell) -> None:
    with Probe(shell) as probe:
        probe.steps([do.ListDir("/")])
        before = shell.run("ls -d /run/hil-probe-* /dev/shm/hil-probe-* /tmp/hil-probe-*").stdout
    after = shell.run("ls -d /run/hil-probe-* /dev/shm/hil-probe-* /tmp/hil-probe-*").stdout
    assert len(after.split()) == len(before.split()) - 1

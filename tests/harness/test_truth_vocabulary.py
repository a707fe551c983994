"""Every step of a recorded row's vocabulary is taken, on a board and by each back-end that can;
text is compared by what it says; what a board lacks is a skip that names its package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.links.ssh import SshShell
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.truth import compare
from harness.truth.rows import OWN_ROWS, load
from tests.harness.support.servers import openssh

GUID = "12345678-1234-1234-1234-123456789abc"
FILE = f"V-{GUID}"
LOOP = ["timeout", "dd", "lsattr"]
MAKE = [f"fd=open('{FILE}',O_WRONLY|O_CREAT)", "write(fd,0700000061)", "close(fd)"]


def replay(folder: Path, rows: list[dict[str, Any]], *words: str) -> dict[str, dict[str, Any]]:
    """``hil truth emulated`` on these rows: the row of its JSON by id."""
    lines = (json.dumps({"group": "g", "board": "mm-query", **row}) for row in rows)
    (folder / "g.jsonl").write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-m", "harness", "truth", "--json", "--rows", str(folder)]
    done = subprocess.run(
        [*command, *words, "emulated"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout, done.stderr
    return {row["id"]: row for row in json.loads(done.stdout)["rows"]}


STEPS: dict[str, tuple[list[str], list[Any]]] = {
    "fsync": (["fsync(fd)"], ["-EINVAL"]),
    "fdatasync": (["fdatasync(fd)"], ["-EINVAL"]),
    "fallocate": (["fallocate(fd,0,0,100)"], ["-EOPNOTSUPP"]),
    "pwrite": (["pwrite(fd,0700000062,7)"], [5]),
    "writev": (["writev(fd,[07000000],[6263])"], [4]),
    "mmap": (["mmap(fd,4096,PROT_READ,MAP_SHARED)"], ["-ENODEV"]),
    "poll": (["poll(fd,POLLIN|POLLOUT,0)"], ["POLLIN|POLLOUT"]),
    "signal": (["write(fd,0700000064) + SIGUSR1"], [5]),
    "setflags": (["SETFLAGS 0x20"], ["-EOPNOTSUPP"]),
    "setflags-fd": (["ioctl(fd,FS_IOC_SETFLAGS,0x30)"], ["-EOPNOTSUPP"]),
    "getxattr": (["getxattr('user.x')"], ["-EOPNOTSUPP"]),
    "setxattr": (["setxattr('user.x','y')"], ["-EOPNOTSUPP"]),
    "listxattr": (["listxattr()"], [0]),
    "removexattr": (["removexattr('user.x')"], ["-EOPNOTSUPP"]),
    "rename": ([f"rename('{FILE}','W-{GUID}')"], ["-EPERM"]),
    "link": ([f"link('{FILE}','W-{GUID}')"], ["-EPERM"]),
    "symlink": ([f"symlink('{FILE}','W-{GUID}')"], ["-EPERM"]),
    "mkdir": (["mkdir('dir')"], ["-EPERM"]),
    "rmdir": (["rmdir('dir')"], ["-ENOENT"]),
    "truncate": (["truncate(4)"], [0]),
}


@pytest.mark.fault("P3")
def test_every_step_of_the_vocabulary_is_taken(tmp_path: Path) -> None:
    rows = []
    for number, (name, (steps, outcomes)) in enumerate(STEPS.items(), 1):
        opened = f"fd=open('{FILE}',O_RDWR|O_CREAT)"
        rows.append(
            {
                "id": f"{name}-{number:03d}",
                "op": [opened, "write(fd,0700000061)", *steps, "close(fd)"],
                "outcome": ["ok", 5, *outcomes, 0],
            }
        )
    taken = replay(tmp_path, rows)
    assert len(taken) == len(STEPS)
    assert {name: row["reason"] for name, row in taken.items() if row["verdict"] == "skipped"} == {}
    differed = {name for name, row in taken.items() if row["verdict"] == "differed"}
    # What the emulated board answers to these is for the tests of its userland.
    assert {name for name in differed if "xattr" not in name} == set()


@pytest.mark.fault("P3")
def test_zero_bytes_of_a_read_are_zero(tmp_path: Path) -> None:
    op = [f"fd=open('{FILE}',O_RDONLY)", "read(fd,100)", "read(fd,100)", "close(fd)"]
    rows: list[dict[str, Any]] = [
        {"id": "g-001", "op": MAKE, "outcome": ["ok", 5, 0]},
        {"id": "g-002", "op": op, "outcome": ["ok", 5, 0, 0]},
        {"id": "g-003", "op": op, "outcome": ["ok", 4, 1, 0]},
    ]
    taken = replay(tmp_path, rows)
    assert [row["verdict"] for row in taken.values()] == ["agreed", "agreed", "differed"]


@pytest.mark.fault("P2")
def test_what_goes_wrong_within_a_row_is_that_row_s(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "g-001", "op": MAKE, "outcome": ["ok", 5, 0]},
        {"id": "g-002", "op": ["stat"], "outcome": 5, "free_before": ["a", "b", "c"]},
        {"id": "g-003", "op": [MAKE[0], "pread(fd,3)"], "outcome": ["ok", "3 bytes 070000"]},
        {"id": "g-004", "op": ["read back"], "outcome": "0700000061"},
    ]
    taken = replay(tmp_path, rows)
    verdicts = [row["verdict"] for row in taken.values()]
    assert verdicts == ["agreed", "differed", "skipped", "agreed"]
    assert "pread(fd,3)" in taken["g-003"]["reason"]
    assert "ValueError" in taken["g-002"]["differences"][0]


@pytest.mark.fault("P1")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may put something over /usr/bin/mmc")
@pytest.mark.skipif(not shutil.which("mmc"), reason="no mmc here: apt install mmc-utils")
def test_a_tool_that_the_board_lacks_is_a_skip_that_names_its_package(tmp_path: Path) -> None:
    """In a mount namespace in which these programs are no programs, as on a host without them."""
    hidden = [
        found
        for one in ("mmc", "chattr", "lsattr", "efivar", "xxd")
        if (found := shutil.which(one))
    ]
    over = "; ".join(f"mount --bind /dev/null {one}" for one in hidden)
    report = tmp_path / "report"
    groups = "--group imm --group rpmb --group p2a"
    command = f"{sys.executable} -m harness truth --json {groups} emulated >{report}"
    subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{over}; exec {command}"], timeout=400, check=False
    )
    rows = json.loads(report.read_text())["rows"]
    assert [row for row in rows if row["verdict"] == "differed"] == []
    reasons = "\n".join(row["reason"] for row in rows if row["verdict"] == "skipped")
    assert "mmc (package mmc-utils)" in reasons
    assert "lsattr (package e2fsprogs)" in reasons


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshShell]:
    server = openssh(tmp_path_factory.mktemp("sshd"))
    server.start()
    shell = SshShell(server.address)
    yield shell
    shell.close()
    server.stop()


@pytest.mark.parametrize("backend", ["python3", "static"])
def test_rarer_calls_are_the_kernel_s_own(shell: SshShell, backend: str, tmp_path: Path) -> None:
    file = tmp_path / "f"
    name = os.fsencode(file) + b"\0"
    steps: list[do.Step] = [
        do.Open("f", str(file), "O_RDWR|O_CREAT", 0o600),
        do.SystemCall("fallocate", (0, 0, 100), "f"),
        do.SystemCall("fsync", fd="f"),
        do.SystemCall("fdatasync", fd="f"),
        do.Mmap("f", 100, 3),
        do.SystemCall("lsetxattr", (name, b"user.a\0", b"bc", 2, 0)),
        do.SystemCall("lgetxattr", (name, b"user.a\0", None, 64), room=64),
        do.SystemCall("llistxattr", (name, None, 64), room=64),
        do.SystemCall("lremovexattr", (name, b"user.a\0")),
        do.SystemCall("lgetxattr", (name, b"user.a\0", None, 64), room=64),
        do.SystemCall("fsync", fd="no such"),
    ]
    with Probe(shell, backend=backend) as probe:
        seen = probe.steps(steps)
    assert [one.errno for one in seen[:5]] == [None] * 5
    assert file.stat().st_size == 100
    if seen[5].errno != "EOPNOTSUPP":
        assert (seen[6].data, seen[7].data) == (b"bc", b"user.a\0")
        assert (seen[8].errno, seen[9].errno) == (None, "ENODATA")
    assert seen[10].errno == "EBADF"


def test_poll_and_a_signal_are_python_s_alone(shell: SshShell, tmp_path: Path) -> None:
    steps: list[do.Step] = [
        do.Open("f", str(tmp_path / "f"), "O_RDWR|O_CREAT", 0o600),
        do.Poll("f", 5),
        do.SignalledWrite("f", b"data", 0),
    ]
    with Probe(shell, backend="python3") as probe:
        assert [one.value for one in probe.steps(steps)] == [0, 5, 4]
    with Probe(shell, backend="static") as probe:
        assert [bool(one.unsupported) for one in probe.steps(steps)] == [False, True, True]


@pytest.mark.fault("P4")
@pytest.mark.parametrize(
    ("recorded", "seen"),
    [
        ("bad \ufffd\ufffd name", "bad \udcff\udcfe name"),
        ("4 bytes copied, 0.0123 s, 0.3 kB/s", "4 bytes copied, 1.5e-05 s, 267 kB/s"),
        ("4 bytes copied, 0.0123 s, 0.3 kB/s", "4 bytes (4B) copied, 0.000015 seconds, 267KB/s"),
        (
            "drwxr-xr-x 5 root root 0 Apr 13 19:44 ..",
            "drwxr-xr-x 4 root root 0 Nov 23 14:02 ..",
        ),
        ("mount from util-linux 2.41.5 (libmount 2.41.5: x)", "mount from util-linux 2.38.1"),
        ("kmod version 34.2\n+ZSTD +XZ -EXPERIMENTAL", "kmod version 30"),
        ("efivar 39", "efivar 37"),
        ("version 18", "version 17"),
        ("----i----------------- /x", "----i--------------- /x"),
        (
            "mount: bad option.\n       dmesg(1) may have more information after",
            "mount: bad option.",
        ),
    ],
)
def test_texts_that_say_the_same(recorded: str, seen: str) -> None:
    assert compare.output("", recorded, seen, "") is None


@pytest.mark.fault("P4")
@pytest.mark.parametrize(
    ("recorded", "seen"),
    [
        ("4 bytes copied, 0.0123 s, 0.3 kB/s", "5 bytes copied, 0.0123 s, 0.3 kB/s"),
        ("drwxr-xr-x 5 root root 0 Apr 13 19:44 .", "drwxr-xr-x 4 root root 0 Apr 13 19:44 ."),
        ("----i----------------- /x", "---------------------- /x"),
        ("name \ufffd", "name x"),
        ("efivar: Read-only file system", "efivar: No space left on device"),
        ("Counter value: 0x00000004 version 3x", "Counter value: 0x00000004 version 4x"),
    ],
)
def test_texts_that_do_not(recorded: str, seen: str) -> None:
    assert compare.output("", recorded, seen, "") is not None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmc rpmb read-counter /dev/x 2>&1 | grep -c C; echo rc=$?", ["mmc", "grep", "echo"]),
        ("su tee -c 'chattr -i x; cat y' > /dev/null", ["su", "chattr", "cat"]),
        ("X=1 timeout 5 dd if=a of='b; c' && for f in a b; do lsattr $f; done", LOOP),
        ("echo 'mmc; chattr' \"lsattr | x\"", ["echo"]),
        ("f() { cat; }; f | wc -l", ["cat", "wc"]),
        ("P=$(pidof x); (sleep 1; kill $P) & wait", ["pidof", "sleep", "kill", "wait"]),
        ("echo 'not closed", []),
    ],
)
def test_programs_of_a_command_line(line: str, expected: list[str]) -> None:
    from harness.truth import tools

    assert tools.programs(line) == expected


def test_programs_of_the_record_are_programs() -> None:
    """None of them is a word of a text."""
    from harness.truth import tools

    others = "bash echo efibootmgr efivar exec grep kill pidof printf python3 wait xxd"
    known = {*tools.PACKAGE, *others.split()}
    rows = [row for group in load(OWN_ROWS).values() for row in group if row.is_command]
    found = {one for row in rows if row.replay for one in tools.programs(row.op[0])}
    assert found <= known

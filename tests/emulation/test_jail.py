"""The board's userland: unmodified tools of the host in namespaces, and the host left alone."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from emulation.linux.devices import DeviceFile, DeviceNode, UserMemory
from emulation.linux.kernel import Task
from emulation.userland.jail import probe
from emulation.userland.jail.jail import Jail
from emulation.userland.jail.namespaces import IdRange, _free_range, to_board
from emulation.userland.jail.plan import JailError, JailPlan, WriteSink
from emulation.userland.jail.spawner import Program
from emulation.userland.jail.zygote import Zygote
from tests.emulation.board_processes import BOOT, EFIVARS, NEW, Board
from tests.emulation.memory_filesystem import MemoryFilesystem

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _host_can_run_boards() -> None:
    failed = probe.failure(probe.check())
    if failed is not None:
        pytest.skip(f"{failed.name}: {failed.detail}; {failed.remedy}")


@pytest.fixture(scope="module")
def shared() -> Iterator[Board]:
    """A board that tests leave as they found it."""
    board = Board()
    yield board
    board.jail.kill()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.jail.kill()


# --- what the tools of table 1 of tools.md look at ---


def test_efivarfs_type_is_seen_everywhere(shared: Board) -> None:
    assert shared.text(f"stat -f -c %T,%t {EFIVARS}") == "efivarfs,de5e81e4"
    assert shared.text(f"stat -f -c %t {EFIVARS}/{BOOT}") == "de5e81e4"
    assert "efivarfs" in shared.text(f"df -T {EFIVARS}")
    assert shared.text("findmnt -n -o FSTYPE,SOURCE -t efivarfs").split() == ["efivarfs"] * 2
    line = f"efivarfs {EFIVARS} efivarfs rw,nosuid,nodev,noexec,relatime 0 0"
    assert shared.text("grep efivarfs /proc/mounts") == line
    assert shared.text("grep efivarfs /etc/mtab") == line
    assert "type efivarfs (rw," in shared.text("mount | grep efivarfs")
    assert shared.text("stat -f -c %t /sys") == "62656572"


def test_statfs_of_links_relative_paths_and_descriptors(shared: Board) -> None:
    assert shared.text(f"ln -s {EFIVARS} /tmp/link; stat -f -c %t /tmp/link; rm /tmp/link") == (
        "de5e81e4"
    )
    assert shared.text(f"cd {EFIVARS}; stat -f -c %t . ./{BOOT} ..").split() == [
        "de5e81e4", "de5e81e4", "62656572",
    ]  # fmt: skip
    assert shared.text("stat -f -c %t /sys/bus/tee/devices/tee0/revision") == "62656572"
    missing = shared.run(f"stat -f {EFIVARS}/missing")
    assert missing.status == 1
    assert "No such file" in missing.out
    code = f"import os; print(hex(os.fstatvfs(os.open('{EFIVARS}', 0)).f_blocks))"
    assert shared.text(f'python3 -c "{code}"') == hex(16284)


def test_transport_is_not_seen(board: Board) -> None:
    table = board.text("cat /proc/self/mountinfo /proc/1/mounts /proc/mounts")
    assert "fuse" not in table
    assert "/run/board" not in table
    assert "/usr" not in table
    assert board.text("ls -A /run") == "board.txt\nlock"
    assert "denied" in board.run("cat /proc/1/environ").out
    assert board.text("tr '\\0' ' ' < /proc/1/cmdline").strip() == "/sbin/init"


def test_df_shows_the_models_figures(shared: Board) -> None:
    assert shared.text(f"df -B1 --output=size,avail {EFIVARS}").split()[-2:] == ["16284", "8000"]


def test_immutable_flag_by_chattr_and_lsattr(board: Board) -> None:
    path = f"{EFIVARS}/{NEW}"
    assert board.run(f"printf '\\7\\0\\0\\0x' > {path}").status == 0
    assert board.text(f"lsattr {path}").startswith("----i---")
    refused = board.run(f"printf '\\7\\0\\0\\0y' > {path}")
    assert refused.status != 0
    assert "Operation not permitted" in refused.out
    assert board.run(f"rm -f {path}").status == 1
    assert board.run(f"chattr -i {path}").status == 0
    assert board.text(f"lsattr {path}").startswith("--------")
    assert board.run(f"printf '\\7\\0\\0\\0y' > {path} && rm {path}").status == 0
    other = board.run(f"chattr +a {EFIVARS}/{BOOT}")
    assert other.status == 1
    assert "not supported" in other.out


def test_chattr_by_another_user_is_refused(board: Board) -> None:
    if not board.jail.maps.second_uid:
        pytest.skip("one uid only: install uidmap and give this user a range in /etc/subuid")
    path = f"{EFIVARS}/{BOOT}"
    refused = board.run(f"chattr +i {path}", uid=1000)
    assert "Operation not permitted while setting flags" in refused.out
    assert "Permission denied" in board.run(f"printf x > {path}", uid=1000).out
    assert board.text(f"head -c 4 {path} | xxd -p", uid=1000) == "07000000"
    assert board.run(f"chattr +i {path}").status == 0


def test_su_and_chown(board: Board) -> None:
    if not board.jail.maps.second_uid:
        pytest.skip("one uid only: install uidmap and give this user a range in /etc/subuid")
    assert board.text("su tester -c 'id -u; id -g'") == "1000\n1000"
    assert board.text("touch /tmp/x; chown tester /tmp/x; stat -c %U /tmp/x") == "tester"


def test_refusals_of_a_flat_file_system(shared: Board) -> None:
    for command in ("mkdir d", "ln -s a l", f"ln {BOOT} l", f"mv {BOOT} l", "mknod p p"):
        result = shared.run(f"cd {EFIVARS}; {command}")
        assert result.status == 1
        assert "Operation not permitted" in result.out, command


def test_dd_blocks_are_single_writes(board: Board) -> None:
    payload = 64 * 1024 + 4
    command = f"head -c {payload} /dev/zero > /tmp/z; dd if=/tmp/z of={EFIVARS}/{NEW} bs=1M"
    assert board.run(command).status == 0
    ino = board.efivarfs.nodes[board.efivarfs.root].children[NEW.encode()]
    assert [len(data) for _, data in board.efivarfs.nodes[ino].writes] == [payload]


def test_writev_is_a_write_for_each_part(board: Board) -> None:
    code = f"""
import os
fd = os.open("{EFIVARS}/{NEW}", os.O_WRONLY | os.O_CREAT)
print(os.writev(fd, [b"four", b"", b"fives"]), os.writev(fd, [b"four", b"two"]))
with open("/tmp/plain", "wb", 0) as plain:
    print(os.writev(plain.fileno(), [b"four", b"", b"fives"]))
"""
    # The last part is refused for its length: what went before it counts.
    assert board.text(f"python3 -c '{code}'") == "9 4\n9"
    ino = board.efivarfs.nodes[board.efivarfs.root].children[NEW.encode()]
    assert board.handlers.events[-3:] == [f"write {size} to {ino}" for size in (4, 5, 4)]
    assert board.text("cat /tmp/plain") == "fourfives"


def test_positions_do_not_exist(shared: Board) -> None:
    code = f"""
import os
fd = os.open("{EFIVARS}/{BOOT}", os.O_RDWR)
for call in (lambda: os.lseek(fd, 4, 0), lambda: os.write(fd, b"")):
    try:
        call()
    except OSError as error:
        print(error.errno)
print(os.read(fd, 9).hex(), os.read(fd, 9).hex(), os.pread(fd, 3, 5).hex())
"""
    expected = f"{errno.ESPIPE}\n{errno.EINVAL}\n0700000068656c6c6f  656c6c"
    assert shared.text(f"python3 -c '{code}'") == expected
    assert shared.text("printf abc > /tmp/s; dd if=/tmp/s bs=1 skip=1 2>/dev/null") == "bc"


# --- mounts ---


def test_remount_sets_superblock_and_mount(board: Board) -> None:
    assert board.run(f"mount -o remount,ro {EFIVARS}").status == 0
    assert "efivarfs ro," in board.text("grep efivarfs /proc/mounts")
    assert "Read-only file system" in board.run(f"touch {EFIVARS}/{NEW}").out
    assert board.efivarfs.read_only
    assert board.run(f"mount -o remount,rw {EFIVARS}").status == 0
    assert board.run(f"printf '\\7\\0\\0\\0x' > {EFIVARS}/{NEW}").status == 0


def test_remount_rw_refused_without_set_variable() -> None:
    board = Board(read_only=True)
    try:
        board.handlers.writable = False
        # The superblock is read-only, the mount is not (stack 6.1).
        assert " rw,nosuid" in board.text("grep efivarfs /proc/self/mountinfo")
        assert board.text("grep efivarfs /proc/self/mountinfo").endswith("efivarfs ro")
        assert "Read-only file system" in board.run(f"touch {EFIVARS}/{NEW}").out
        assert board.run(f"mount -o remount,rw {EFIVARS}").status == 32
        board.efivarfs.read_only = False
        board.jail.set_efivarfs_read_only(False)
        assert board.run(f"printf '\\7\\0\\0\\0x' > {EFIVARS}/{NEW}").status == 0
    finally:
        board.jail.kill()


def test_a_change_of_the_superblock_is_seen_once_the_call_is_back(board: Board) -> None:
    for read_only in (True, False) * 20:
        board.efivarfs.read_only = read_only
        board.jail.set_efivarfs_read_only(read_only)
        line = board.text(f"grep ' {EFIVARS} ' /proc/self/mountinfo")
        assert line.endswith(" ro" if read_only else " rw")


def test_mount_made_read_only_by_hand_stays_so_when_the_driver_comes(board: Board) -> None:
    assert board.run(f"mount -o remount,ro {EFIVARS}").status == 0
    board.efivarfs.read_only = False
    board.jail.set_efivarfs_read_only(False)
    assert "Read-only file system" in board.run(f"touch {EFIVARS}/{NEW}").out


def test_second_mount_and_busy_umount(board: Board) -> None:
    mounted = board.text(
        f"mkdir /tmp/m2; mount -t efivarfs none /tmp/m2; grep /tmp/m2 /proc/mounts; ls /tmp/m2;"
        f"exec 3<{EFIVARS}/{BOOT}; umount {EFIVARS}; echo $?; exec 3<&-; umount {EFIVARS};"
        f"echo $?; ls -A {EFIVARS}; umount /tmp/m2; grep -c efivarfs /proc/mounts; true"
    )
    assert mounted.splitlines() == [
        "none /tmp/m2 efivarfs rw,relatime 0 0", BOOT,
        f"umount: {EFIVARS}: target is busy.", "32", "0", "0",
    ]  # fmt: skip
    assert board.handlers.events == ["another mount", "superblock gone"]
    board.handlers.registered = False
    assert board.run(f"mount -t efivarfs efivarfs {EFIVARS}").status == 32
    board.handlers.registered = True
    assert board.run(f"mount -o ro -t efivarfs efivarfs {EFIVARS}").status == 0
    assert board.text("grep efivarfs /proc/mounts") == (
        f"efivarfs {EFIVARS} efivarfs ro,relatime 0 0"
    )
    assert board.handlers.events[2:] == ["new superblock"]


def test_user_without_capabilities_cannot_mount(board: Board) -> None:
    if not board.jail.maps.second_uid:
        pytest.skip("one uid only: install uidmap and give this user a range in /etc/subuid")
    code = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
        f'print(libc.mount(b"none", b"{EFIVARS}", b"efivarfs", 32, None), ctypes.get_errno())'
    )
    assert board.text(f"python3 -c '{code}'", uid=1000) == f"-1 {errno.EPERM}"


def test_masks_cannot_be_lifted(shared: Board) -> None:
    for path in ("/proc/sys", "/usr", "/proc/sys/kernel/random/boot_id"):
        assert shared.run(f"umount {path}").status == 32


# --- identity, log, power ---


def test_uname_dmesg_hostname(board: Board) -> None:
    assert board.text("uname -nrm") == "stmm-board 6.12.107-stmm aarch64"
    assert board.text("hostname other; uname -n") == "other"
    assert "tee_stmm_efi: hello" in board.text("dmesg")
    assert board.run("dmesg -C").status == 0
    assert "hello" not in board.text("dmesg")


def test_files_of_the_plan(shared: Board) -> None:
    assert shared.text("cat /proc/sys/kernel/random/boot_id") == "a-boot-id"
    assert shared.text("systemctl stop x") == "shim stop x"
    assert shared.text("cat /run/board.txt") == "on run"
    assert shared.text("/opt/board/python/bin/python3 -c 'print(6 * 7)'") == "42"


def test_reboot_reaches_the_model_and_does_not_return(board: Board) -> None:
    code = (
        "import ctypes; ctypes.CDLL(None).syscall("
        "{'x86_64': 169}.get('x86_64'), 0xfee1dead, 672274793, 0x01234567, None)"
    )
    command = board.begin(f'python3 -c "{code}"')
    assert board.handlers.rebooted.wait(10)
    assert board.handlers.events == ["reboot 0x1234567"]
    assert command.running(0.05)


def test_modules(board: Board) -> None:
    code = (
        "import ctypes, os; libc = ctypes.CDLL(None); fd = os.open('/tmp/m.ko', 0);"
        "print(libc.syscall(313, fd, b'a=1', 0), libc.syscall(176, b'tee_stmm_efi', 0))"
    )
    if os.uname().machine == "aarch64":
        code = code.replace("313", "273").replace("176", "106")
    assert board.text(f'touch /tmp/m.ko; python3 -c "{code}"') == "0 0"
    assert board.handlers.events == ["load /tmp/m.ko a=1", "unload tee_stmm_efi"]


def test_signal_and_pty(board: Board) -> None:
    sleeper = board.begin("exec sleep 60")
    board.jail.signal(sleeper.pid, signal.SIGTERM)
    assert sleeper.wait(5).status == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        board.jail.signal(9999, signal.SIGTERM)
    pty = board.jail.open_pty()
    done = threading.Event()
    command = ["sh", "-c", "tty; test -t 0 && echo tty > /dev/tty"]
    program = Program(command, {"PATH": "/usr/bin:/bin"}, controlling_tty=True)
    board.jail.spawn(program, (pty.slave,) * 3, lambda status: done.set())
    assert done.wait(10)
    expected = f"{pty.name}\r\ntty\r\n".encode()
    seen = b""
    while len(seen) < len(expected):
        seen += os.read(pty.master, 100)
    assert seen == expected
    os.close(pty.master)
    os.close(pty.slave)


def test_program_that_does_not_exist(board: Board) -> None:
    read, write = os.pipe()
    status: Future[int] = Future()
    board.jail.spawn(Program(["/no/such/program"], {}), (write,) * 3, status.set_result)
    os.close(write)
    assert os.waitstatus_to_exitcode(status.result(10)) == 127
    assert b"No such file" in os.read(read, 1000)
    os.close(read)


# --- devices ---


class Echo:
    """A device whose ioctl 0xA4.1 adds one to the integer at its argument; 0xA4.2 sleeps."""

    def __init__(self) -> None:
        self.opened: list[Task] = []
        self.closed = threading.Event()
        self.sleeping = threading.Event()
        self.interrupted = threading.Event()
        self.results: list[int] = []

    def open(self, task: Task, flags: int) -> DeviceFile:
        self.opened.append(task)
        return self

    def may_sleep(self, request: int) -> bool:
        return request & 0xFF == 2

    def ioctl(self, request: int, argument: int, memory: UserMemory, task: Task) -> int:
        if request & 0xFF == 2:
            self.sleeping.set()
            if task.fatal.wait(10):
                self.interrupted.set()
            raise OSError(errno.EINTR, "interrupted")
        if request & 0xFF != 1:
            raise OSError(errno.ENOTTY, "unknown")
        (value,) = struct.unpack("<I", memory.read(argument, 4))
        memory.write(argument, struct.pack("<I", value + 1))
        return 7

    def close(self) -> None:
        self.closed.set()


IOCTL = """
import fcntl, os, struct
fd = os.open("/dev/tee0", os.O_RDWR)
buffer = bytearray(struct.pack("<I", 41))
print(fcntl.ioctl(fd, 0xA401, buffer), struct.unpack("<I", buffer)[0])
for request, argument in ((0xA409, 0), (0xA401, 8)):
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        print(error.errno)
other = os.dup(fd)
os.close(fd)
print(fcntl.ioctl(other, 0xA401, buffer))
"""


def test_device_node() -> None:
    echo = Echo()
    board = Board(nodes=[DeviceNode("/dev/tee0", echo, 252, 3, mode=0o660)])
    try:
        assert board.text("stat -c '%F %a %U %t:%T' /dev/tee0") == (
            "character special file 660 root fc:3"
        )
        expected = f"7 42\n{errno.ENOTTY}\n{errno.EFAULT}\n7"
        assert board.text(f"python3 -c '{IOCTL}'") == expected
        assert echo.closed.wait(5)
        assert len(echo.opened) == 1
        refused = board.run("head -c 1 /dev/tee0")
        assert "Invalid argument" in refused.out, refused
        if board.jail.maps.second_uid:
            refused = board.run("head -c 1 /dev/tee0", uid=1000)
            assert "Permission denied" in refused.out
            assert board.text("chmod 666 /dev/tee0; su tester -c ': </dev/tee0'") == ""
    finally:
        board.jail.kill()


def test_sleeping_ioctl_ends_with_its_caller() -> None:
    echo = Echo()
    board = Board(nodes=[DeviceNode("/dev/tee0", echo, 252, 3)])
    try:
        code = 'import fcntl; fcntl.ioctl(open(\\"/dev/tee0\\"), 0xA402)'
        sleeper = board.begin(f'exec python3 -c "{code}"')
        assert echo.sleeping.wait(10)
        assert board.text("echo others live") == "others live"
        board.jail.signal(sleeper.pid, signal.SIGTERM)
        assert sleeper.wait(5).status == 128 + signal.SIGTERM
        assert echo.interrupted.wait(5)
        assert echo.closed.wait(5)
    finally:
        board.jail.kill()


class Records:
    """A record device with a fixed number of messages."""

    def __init__(self, count: int) -> None:
        self.messages = [f"6,{i},{i};record {i}\n".encode() for i in range(count)]
        self.received: list[bytes] = []
        self.done = threading.Event()

    def next_message(self) -> bytes | None:
        return self.messages.pop(0) if self.messages else None

    def written(self, data: bytes) -> None:
        self.received.append(data)

    def closed(self) -> None:
        self.done.set()


def test_record_devices_sinks_and_texts() -> None:
    records = Records(5000)  # more than a socket buffer holds
    few = Records(3)
    pressed: list[bytes] = []
    arrived = threading.Event()
    ours, theirs = socket.socketpair()

    def press(data: bytes) -> None:
        pressed.append(data)
        arrived.set()

    board = Board(
        hooks={
            "/dev/kmsg": lambda task, flags: few if flags & os.O_NONBLOCK else records,
            "/proc/sysrq-trigger": lambda task, flags: WriteSink(press),
            "/proc/cmdline": lambda task, flags: f"asked by {task.uid}\n".encode(),
            "/run/control": lambda task, flags: theirs,
            "/proc/version": lambda task, flags: None,
        }
    )
    try:
        size = sum(map(len, records.messages))
        assert board.text(f"head -c {size} /dev/kmsg | grep -c record") == "5000"
        assert records.done.wait(5)
        assert board.run("echo hi > /dev/kmsg").status == 0
        assert board.text("dmesg --raw | wc -l") == "3"
        assert board.run("echo c > /proc/sysrq-trigger").status == 0
        assert arrived.wait(5)
        assert pressed == [b"c\n"]
        assert board.text("cd /proc; cat cmdline ./cmdline") == "asked by 0\nasked by 0"
        command = board.begin("echo question > /run/control")
        assert ours.recv(100) == b"question\n"
        assert command.wait().status == 0
        assert board.text("cat /proc/version") == Path("/proc/version").read_text().rstrip("\n")
    finally:
        board.jail.kill()
        ours.close()


# --- sleeping file systems ---


@pytest.fixture
def stuck() -> Iterator[tuple[Board, threading.Event, threading.Event]]:
    """A board whose writes sleep until a fatal signal; (board, writing, killed)."""
    writing, killed = threading.Event(), threading.Event()

    def write(task: Task) -> None:
        writing.set()
        if not task.fatal.wait(10):
            raise OSError(errno.EIO, "nobody killed the writer")
        killed.set()
        raise OSError(errno.EINTR, "killed")

    efivarfs = MemoryFilesystem(sleeping=frozenset({"write", "statfs"}))
    efivarfs.on_write = write
    board = Board(efivarfs=efivarfs)
    yield board, writing, killed
    board.jail.kill()


def test_sleeping_writer_delays_nobody_and_dies_by_sigterm(
    stuck: tuple[Board, threading.Event, threading.Event],
) -> None:
    board, writing, killed = stuck
    writer = board.begin(f"exec dd if=/dev/zero of={EFIVARS}/{NEW} bs=8 count=1")
    assert writing.wait(5)
    assert board.text(f"cat {EFIVARS}/{BOOT} | xxd -p") == "0700000068656c6c6f"
    board.jail.signal(writer.pid, signal.SIGCONT)  # not fatal
    assert writer.running(0.1)
    board.jail.signal(writer.pid, signal.SIGTERM)
    assert writer.wait(2).status == 128 + signal.SIGTERM
    assert killed.is_set()


def test_caught_signal_leaves_the_writer_asleep_and_sigkill_after_it_does_not(
    stuck: tuple[Board, threading.Event, threading.Event],
) -> None:
    board, writing, killed = stuck
    code = (
        "import os, signal; signal.signal(signal.SIGUSR1, lambda *_: None);"
        f'os.write(os.open(\\"{EFIVARS}/{NEW}\\", os.O_WRONLY | os.O_CREAT), bytes(8))'
    )
    writer = board.begin(f'exec python3 -c "{code}"')
    assert writing.wait(5)
    board.jail.signal(writer.pid, signal.SIGUSR1)
    assert writer.running(0.1)
    assert not killed.is_set()
    board.jail.signal(writer.pid, signal.SIGKILL)
    assert writer.wait(2).status == 128 + signal.SIGKILL


def test_sleeping_statfs_delays_nobody(board: Board) -> None:
    asked, answer = threading.Event(), threading.Event()
    board.efivarfs.sleeping = frozenset({"statfs"})

    def statfs(task: Task) -> None:
        asked.set()
        answer.wait(10)

    board.efivarfs.on_statfs = statfs
    df = board.begin(f"df {EFIVARS}")
    assert asked.wait(5)
    assert board.text("echo here") == "here"
    assert df.running(0.05)
    answer.set()
    assert df.wait(5).status == 0


# --- power ---


def _namespace(pid: int | str, name: str = "pid") -> str:
    """Empty when the process is gone, or not ours to ask."""
    try:
        return str(Path(f"/proc/{pid}/ns/{name}").readlink())
    except OSError:
        return ""


def _namespace_of_board(init: int) -> str:
    """The PID namespace, asked of a child: PID 1 itself shows an ordinary user nothing."""
    return next(found for pid in _descendants(init) if (found := _namespace(pid)))


def _processes_in(namespace: str) -> set[int]:
    """Host numbers of the processes that run in a PID namespace."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if _namespace(pid) == namespace and _state(pid) not in "ZX"}


def _state(pid: int) -> str:
    """R, S, D ...; X when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _wait_until_gone(pids: set[int], seconds: float = 5.0) -> set[int]:
    deadline = time.monotonic() + seconds
    while pids and time.monotonic() < deadline:
        pids = {pid for pid in pids if _state(pid) not in "ZX"}
        select.select([], [], [], 0.01)
    return pids


def test_kill_is_fast_and_complete_and_idempotent(
    stuck: tuple[Board, threading.Event, threading.Event],
) -> None:
    board, writing, _ = stuck
    board.begin(f"dd if=/dev/zero of={EFIVARS}/{NEW} bs=8 count=1")
    board.begin("exec sleep 60")
    board.begin("trap '' TERM HUP; sleep 60")
    assert writing.wait(5)
    members = _processes_in(_namespace_of_board(board.jail.pid)) | {board.jail.pid}
    assert len(members) >= 4
    start = time.monotonic()
    board.jail.kill()
    took = time.monotonic() - start
    assert _wait_until_gone(members, 0.5) == set()  # PID 1 is reaped by its parent
    assert took < 1.0
    board.jail.kill()
    assert board.died.is_set()
    assert not board.jail.alive
    with pytest.raises(OSError, match="the board is off"):
        board.begin("true")


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_power_cycles_leave_nothing_behind() -> None:
    Board().jail.kill()
    fds = _open_descriptors()
    threads = threading.active_count()
    for _ in range(3):
        board = Board()
        assert board.text(f"cat {EFIVARS}/{BOOT} | wc -c") == "9"
        board.jail.kill()
    assert _open_descriptors() == fds
    assert threading.active_count() <= threads + 1


SUPERVISOR = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.emulation.board_processes import Board
board = Board()
board.begin("sleep 60")
board.begin("cat /dev/zero > /dev/null")
print(board.jail.pid, flush=True)
time.sleep(60)
"""


def test_killed_supervisor_leaves_no_process_and_no_mount() -> None:
    mounts = Path("/proc/mounts").read_text()
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(REPOSITORY)], stdout=subprocess.PIPE
    )
    assert supervisor.stdout is not None
    init = int(supervisor.stdout.readline())
    namespace = _namespace_of_board(init)
    children = {int(pid) for pid in _descendants(supervisor.pid)}
    assert init in children
    supervisor.kill()
    supervisor.wait(5)
    assert _wait_until_gone(children) == set()
    assert _processes_in(namespace) == set()
    assert Path("/proc/mounts").read_text() == mounts
    supervisor.stdout.close()


def _descendants(pid: int) -> set[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


# --- the host ---


def test_host_is_unchanged(board: Board) -> None:
    def host() -> tuple[str, ...]:
        names = ("kernel/hostname", "kernel/printk", "net/ipv4/ip_forward", "kernel/pid_max")
        return (
            Path("/proc/mounts").read_text(),
            *(Path("/proc/sys", name).read_text() for name in names),
        )

    before = host()
    attempts = (
        "hostname other",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 7 > /proc/sys/kernel/printk",
        "echo 4000 > /proc/sys/kernel/pid_max",
        "mkdir /tmp/p; mount -t proc proc /tmp/p; echo b > /tmp/p/sysrq-trigger",
        "mkdir /tmp/s; mount -t sysfs sysfs /tmp/s",
        "mount -t tmpfs none /mnt",
        "mknod /tmp/vda b 254 0",
        "echo b > /proc/sysrq-trigger",
        "touch /usr/made-by-a-board",
        "mount -o remount,rw /usr; touch /usr/made-by-a-board",
        "date -s 2001-01-01",
    )
    for attempt in attempts:
        board.run(attempt)
    assert host() == before
    assert not Path("/usr/made-by-a-board").exists()
    assert not board.text("ls /tmp/s 2>/dev/null; true")
    assert board.text("find / -xdev -type b 2>/dev/null; ls /home /root") == "/home:\n\n/root:"


def test_no_descriptor_of_the_host_is_in_reach(shared: Board) -> None:
    assert "denied" in shared.run("ls /proc/1/fd").out
    own = shared.text("ls -l /proc/self/fd | sed -n 's/.*-> //p'").splitlines()
    assert [link for link in own if not link.startswith(("/dev/null", "pipe:", "/proc/"))] == []


def test_board_root_is_nobody_special_on_the_host(board: Board) -> None:
    sleeper = board.begin("sleep 60")
    status = Path(f"/proc/{board.jail.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("Uid:")]
    uid = int(line.split()[1])
    assert uid != 0
    assert (uid == os.geteuid()) == (os.geteuid() != 0)
    board.jail.signal(sleeper.pid, signal.SIGKILL)


def test_own_namespaces(shared: Board) -> None:
    for name in ("user", "mnt", "pid", "net", "ipc", "uts"):
        board = shared.text(f"readlink /proc/self/ns/{name}")
        assert board != _namespace("self", name)
    assert "127.0.0.1" in shared.text("cat /proc/net/fib_trie")


def test_failing_step_is_named() -> None:
    from emulation.userland.jail.plan import Bind

    plan = JailPlan("board", binds=(Bind(Path("/no/such/place"), "/mnt/x"),))
    with pytest.raises(JailError, match="/no/such/place") as caught:
        Jail.start(plan, Board.__new__(Board))  # type: ignore[arg-type]
    assert caught.value.errno == errno.ENOENT


def test_id_maps() -> None:
    whole = "         0          0 4294967295\n"
    assert _free_range(whole) == (1879048192, 65536)
    small = "0 100000 65536\n"
    base, count = _free_range(small)
    assert 0 < base < base + count <= 65536
    ranges = (IdRange(0, 1001, 1), IdRange(1, 100000, 65535))
    assert [to_board(ranges, host) for host in (1001, 100000, 100999, 5)] == [0, 1, 1000, 65534]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv: package util-linux")
def test_user_without_subordinate_ids_gets_a_single_uid() -> None:
    code = SUPERVISOR.replace(
        "print(board.jail.pid, flush=True)", "print(board.jail.maps.second_uid)"
    )
    code = code.replace("time.sleep(60)", "board.jail.kill()")
    result = subprocess.run(
        ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", sys.executable, "-c", code,
         str(REPOSITORY)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == "False", result.stderr


def test_zygote_is_started_again_after_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the one that other tests' boards came from: they end with it.
    monkeypatch.setattr(Zygote, "_shared", None)
    first = Zygote.shared()
    first._process.kill()
    first._process.wait(5)
    board = Board()
    assert board.text("echo up") == "up"
    board.jail.kill()
    second = Zygote.shared()
    assert second is not first
    second._process.kill()
    second._process.wait(5)

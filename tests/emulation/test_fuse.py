"""The FUSE protocol, request by request over a socket that stands for /dev/fuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from emulation.faults import PowerLost
from emulation.linux.kernel import Killed, Task
from emulation.linux.vfs import Attr
from emulation.userland.jail import fuse
from emulation.userland.jail.fuse import FuseConnection
from tests.emulation.memory_filesystem import IMMUTABLE, MemoryFilesystem

IN = struct.Struct("<IIQQIIII")
OUT = struct.Struct("<IiQ")


class Threads:
    """Scheduler with a thread a call; ``fatal`` holds the threads with a fatal signal."""

    def __init__(self) -> None:
        self.fatal: set[int] = set()
        self.watched: list[Callable[[], bool]] = []

    def run_later(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()

    def watch(self, still_needed: Callable[[], bool]) -> None:
        self.watched.append(still_needed)

    def has_fatal_signal(self, pid: int) -> bool:
        return pid in self.fatal


class Kernel:
    """The kernel's end of the connection."""

    def __init__(self, filesystem: MemoryFilesystem) -> None:
        self.filesystem = filesystem
        self.scheduler = Threads()
        self.end, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.end, server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        self.connection = FuseConnection(filesystem, server.detach(), self.scheduler)
        self._unique = 0

    def send(self, opcode: int, body: bytes = b"", *, node: int = 1, pid: int = 7) -> int:
        """Put a request and let the connection take it; returns its number."""
        self._unique += 2
        header = IN.pack(IN.size + len(body), opcode, self._unique, node, 0, 0, pid, 0)
        self.end.send(header + body)
        assert self.connection.serve()
        return self._unique

    def reply(self, timeout: float = 5.0) -> tuple[int, int, bytes]:
        """(unique, errno, data)."""
        self.end.settimeout(timeout)
        data = self.end.recv(1 << 20)
        length, error, unique = OUT.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[OUT.size :]

    def call(self, opcode: int, body: bytes = b"", *, node: int = 1) -> bytes:
        """A request that must succeed."""
        sent = self.send(opcode, body, node=node)
        unique, error, data = self.reply()
        assert (unique, error) == (sent, 0)
        return data

    def error(self, opcode: int, body: bytes = b"", *, node: int = 1) -> int:
        """The errno of a request."""
        self.send(opcode, body, node=node)
        return self.reply()[1]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel(MemoryFilesystem())
    yield kernel
    kernel.connection.close()
    kernel.end.close()


def test_structures_have_the_sizes_of_the_header() -> None:
    # include/uapi/linux/fuse.h, the same on every 64-bit architecture
    sizes = {
        fuse._IN_HEADER: 40, fuse._OUT_HEADER: 16, fuse._ATTR: 88, fuse._ENTRY_HEAD: 40,
        fuse._ATTR_HEAD: 16, fuse._KSTATFS: 80, fuse._SETATTR_IN: 88, fuse._OPEN_IN: 8,
        fuse._OPEN_OUT: 16, fuse._CREATE_IN: 16, fuse._READ_IN: 40, fuse._WRITE_IN: 40,
        fuse._RELEASE_IN: 24, fuse._INIT_OUT: 64, fuse._IOCTL_IN: 32, fuse._IOCTL_OUT: 16,
        fuse._DIRENT: 24, fuse._FSXATTR: 28,
    }  # fmt: skip
    assert {layout.format: layout.size for layout in sizes} == {
        layout.format: size for layout, size in sizes.items()
    }


def test_init_asks_for_one_megabyte_writes(kernel: Kernel) -> None:
    reply = kernel.call(26, struct.pack("<IIII", 7, 38, 1 << 17, 0xFFFFFFFF))
    major, minor, _, flags, _, _, max_write, _, max_pages = struct.unpack_from("<IIIIHHIIH", reply)
    assert (major, minor, max_write, max_pages) == (7, 31, 1 << 20, 256)
    assert flags & (1 << 3) == 0  # no FUSE_ATOMIC_O_TRUNC: O_TRUNC arrives as setattr, as in VFS


def test_old_protocol_is_refused(kernel: Kernel) -> None:
    assert kernel.error(26, struct.pack("<IIII", 7, 30, 0, 0)) == errno.EPROTO


def test_root_has_node_one_and_its_own_inode_number(kernel: Kernel) -> None:
    reply = kernel.call(3, bytes(16))
    valid, _, _, ino = struct.unpack_from("<QIIQ", reply)
    assert (valid, ino) == (0, kernel.filesystem.root)


def test_node_one_of_the_model_is_not_the_root() -> None:
    filesystem = MemoryFilesystem()
    filesystem.nodes[1] = filesystem.nodes[filesystem.add(b"one", b"x")]
    filesystem.nodes[filesystem.root].children[b"one"] = 1
    filesystem.nodes[1].attr = Attr(1, stat.S_IFREG | 0o644, 1, 0, 0, 1, 0.0)
    kernel = Kernel(filesystem)
    node = struct.unpack_from("<Q", kernel.call(1, b"one\0"))[0]
    assert node not in (1, 0)
    mode = struct.unpack_from("<I", kernel.call(3, bytes(16), node=node), 16 + 60)[0]
    assert stat.S_ISREG(mode)


def test_lookup_is_never_cached(kernel: Kernel) -> None:
    ino = kernel.filesystem.add(b"a", b"data")
    reply = kernel.call(1, b"a\0")
    node, _, entry_valid, attr_valid, entry_ns, attr_ns = struct.unpack_from("<QQQQII", reply)
    assert (node, entry_valid, attr_valid, entry_ns, attr_ns) == (ino, 0, 0, 0, 0)
    seconds, nanoseconds = struct.unpack_from("<Q", reply, 40 + 32)[0], struct.unpack_from(
        "<I", reply, 40 + 52
    )[0]  # fmt: skip
    assert (seconds, nanoseconds) == (1, 500_000_000)
    assert kernel.error(1, b"b\0") == errno.ENOENT


def test_create_write_read_release(kernel: Kernel) -> None:
    reply = kernel.call(35, struct.pack("<IIII", os.O_WRONLY, 0o100644, 0, 0) + b"new\0")
    node = struct.unpack_from("<Q", reply)[0]
    handle, flags = struct.unpack_from("<QI", reply, 128)
    assert flags & 1  # FOPEN_DIRECT_IO
    data = bytes(range(256)) * 512
    body = struct.pack("<QQIIQII", handle, 77, len(data), 0, 0, 0, 0) + data
    assert struct.unpack_from("<I", kernel.call(16, body, node=node))[0] == len(data)
    assert kernel.filesystem.nodes[node].writes == [(77, data)]
    read = struct.pack("<QQIIQII", handle, 250, 10, 0, 0, 0, 0)
    assert kernel.call(15, read, node=node) == data[250:260]
    kernel.call(18, struct.pack("<QIIQ", handle, 0, 0, 0), node=node)
    assert kernel.filesystem.handles == {}


@pytest.mark.parametrize(("moves", "expected"), [(True, b"d"), (False, b"abc")])
def test_a_write_moves_the_offset_only_where_the_file_system_does(
    kernel: Kernel, moves: bool, expected: bytes
) -> None:
    """truth basic-021: efivarfs answers a read(2) behind a write(2) from the beginning."""
    kernel.filesystem.write_moves_offset = moves
    node = kernel.filesystem.add(b"file")
    handle = struct.unpack_from("<Q", kernel.call(14, struct.pack("<II", os.O_RDWR, 0), node=node))[
        0
    ]
    body = struct.pack("<QQIIQII", handle, 0, 3, 0, 0, 0, 0) + b"abc"
    kernel.call(16, body, node=node)
    kernel.filesystem._set_content(node, b"abcd")
    # The host's kernel has moved its own offset by the three bytes written.
    read = struct.pack("<QQIIQII", handle, 3, 3, 0, 0, 0, 0)
    assert kernel.call(15, read, node=node) == expected


def test_setattr_passes_only_what_is_valid(kernel: Kernel) -> None:
    ino = kernel.filesystem.add(b"a", b"data")
    body = struct.pack(
        "<IIQQQQQQIIIIIIII", 8 | 1, 0, 0, 2, 0, 5, 6, 7, 0, 0, 0, 0o100600, 0, 9, 9, 0
    )
    kernel.call(4, body, node=ino)
    attr = kernel.filesystem.nodes[ino].attr
    assert (attr.size, stat.S_IMODE(attr.mode), attr.uid, attr.mtime) == (2, 0o600, 0, 1.5)


def test_directory_in_pieces(kernel: Kernel) -> None:
    names = [f"name-{i:03}".encode() for i in range(100)]
    for name in names:
        kernel.filesystem.add(name)
    handle = struct.unpack_from("<Q", kernel.call(27, bytes(8)))[0]
    seen, offset = [], 0
    while True:
        body = struct.pack("<QQIIQII", handle, offset, 512, 0, 0, 0, 0)
        reply = kernel.call(28, body)
        if not reply:
            break
        assert len(reply) <= 512
        position = 0
        while position < len(reply):
            _, offset, length, kind = struct.unpack_from("<QQII", reply, position)
            seen.append((reply[position + 24 : position + 24 + length], kind))
            position += 24 + length + -(24 + length) % 8
    assert seen == [(b".", 4), (b"..", 4), *((name, 8) for name in names)]
    kernel.call(29, struct.pack("<QIIQ", handle, 0, 0, 0))


@pytest.mark.parametrize("opcode", [6, 8, 9, 11, 12, 13, 45])
def test_what_efivarfs_lacks_is_eperm(kernel: Kernel, opcode: int) -> None:
    assert kernel.error(opcode, bytes(16) + b"a\0b\0") == errno.EPERM


def test_unknown_operations_are_enosys(kernel: Kernel) -> None:
    assert kernel.error(43, bytes(32)) == errno.ENOSYS
    assert kernel.error(20, bytes(16)) == errno.EINVAL  # fsync(2) of a file without fsync


def test_flags_by_both_ioctls(kernel: Kernel) -> None:
    ino = kernel.filesystem.add(b"a")
    kernel.filesystem.nodes[ino].flags = IMMUTABLE

    def ioctl(request: int, argument: bytes, out: int) -> bytes:
        header = struct.pack("<QIIQII", 0, 0, request, 0, len(argument), out)
        return kernel.call(39, header + argument, node=ino)[16:]

    assert ioctl(fuse.FS_IOC_GETFLAGS, b"", 4) == struct.pack("<I", IMMUTABLE)
    assert ioctl(fuse.FS_IOC_FSGETXATTR, b"", 28)[:4] == struct.pack("<I", 8)
    ioctl(fuse.FS_IOC_SETFLAGS, struct.pack("<I", 0), 0)
    assert kernel.filesystem.nodes[ino].flags == 0
    ioctl(fuse.FS_IOC_FSSETXATTR, struct.pack("<IIIII8x", 8, 0, 0, 0, 0), 0)
    assert kernel.filesystem.nodes[ino].flags == IMMUTABLE
    header = struct.pack("<QIIQII", 0, 0, 0x1234, 0, 0, 0)
    assert kernel.error(39, header, node=ino) == errno.ENOTTY


def test_xattr_fields_without_a_flag_are_refused() -> None:
    for fields in ((0, 1, 0, 0, 0), (0, 0, 0, 5, 0), (1 << 30, 0, 0, 0, 0)):
        with pytest.raises(OSError, match="extended attributes"):
            fuse.flags_from_xattr(struct.pack("<IIIII8x", *fields))


def test_forget_and_interrupt_get_no_reply(kernel: Kernel) -> None:
    kernel.send(2, bytes(8))
    kernel.send(36, struct.pack("<Q", 4711))
    sent = kernel.send(17)
    assert kernel.reply()[0] == sent


def test_sleeping_operations_do_not_delay_others() -> None:
    go = threading.Event()
    filesystem = MemoryFilesystem(sleeping=frozenset({"statfs"}))

    def wait(task: Task) -> None:
        go.wait(5)

    filesystem.on_statfs = wait
    kernel = Kernel(filesystem)
    slow = kernel.send(17)
    fast = kernel.send(3, bytes(16))
    assert kernel.reply()[0] == fast
    go.set()
    assert kernel.reply()[0] == slow


def test_interrupt_kills_only_by_a_fatal_signal_even_a_later_one() -> None:
    filesystem = MemoryFilesystem(sleeping=frozenset({"write"}))

    def wait(task: Task) -> None:
        assert task.fatal.wait(5)
        raise Killed

    filesystem.on_write = wait
    filesystem.handles[5] = filesystem.add(b"a")
    kernel = Kernel(filesystem)
    body = struct.pack("<QQIIQII", 5, 0, 1, 0, 0, 0, 0) + b"x"
    sent = kernel.send(16, body, pid=33)
    kernel.send(36, struct.pack("<Q", sent))
    (check,) = kernel.scheduler.watched
    assert check()
    kernel.scheduler.fatal.add(33)
    assert not check()
    assert kernel.reply()[:2] == (sent, errno.EINTR)
    assert not check()


def test_mistakes_of_the_model_are_eio_and_lost_power_is_silence(
    kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistake(task: Task) -> None:
        raise KeyError("model")

    def cut(task: Task) -> None:
        raise PowerLost

    kernel.filesystem.on_statfs = mistake
    assert kernel.error(17) == errno.EIO
    assert "KeyError" in capsys.readouterr().err
    kernel.filesystem.on_statfs = cut
    kernel.send(17)
    with pytest.raises(TimeoutError):
        kernel.reply(0.05)


def test_end_of_the_mount(kernel: Kernel) -> None:
    kernel.connection.close()
    kernel.connection.close()
    assert not kernel.connection.serve()

"""tee-supplicant: serves OP-TEE's requests from user space, among them RPMB.

Runs on the board as an ordinary process under a bare interpreter (``python -I -S``), so it imports
only what starts fast, and speaks nothing but the kernel's ABI: /dev/teepriv0, /sys/class/mmc_host,
MMC_IOC_MULTI_CMD.  What it does and checks is what the upstream program does (stack 1.6, 1.7;
OC tee-supplicant/src).  SIGTERM ends it as it ends upstream's: at once.

    tee-supplicant [-d] [--rpmb-cid HEX] [--rpmb-emu] [--rpmb-no-sleep] [device]

``--rpmb-emu`` behaves as a build with RPMB_EMU=1: an RPMB in the memory of this process.
``--rpmb-no-sleep`` leaves out the 20 to 50 ms after each write, for a card that is never busy.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import signal
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    Buffer = array.array[int] | bytearray
    Param = tuple[int, int, int, int]

    class Rpmb(Protocol):
        def device_info(self, device: int) -> bytes: ...
        def transfer(self, device: int, kind: int, frames: bytes, replies: int) -> bytes: ...


TEE_IOC_VERSION = 0x800CA400
TEE_IOC_SHM_ALLOC = 0xC010A401
TEE_IOC_SUPPL_RECV = 0x8010A406
TEE_IOC_SUPPL_SEND = 0x8010A407
MMC_IOC_MULTI_CMD = 0xC008B301

TEE_IMPL_ID_OPTEE = 1
TEE_GEN_CAP_PRIVILEGED = 2

VALUE_INOUT, MEMREF_INPUT, MEMREF_OUTPUT, META = 3, 5, 6, 0x100

RPC_LOAD_TA, RPC_RPMB, RPC_SHM_ALLOC, RPC_SHM_FREE = 0, 1, 6, 7

SUCCESS = 0
GENERIC = 0xFFFF0000
BAD_PARAMETERS = 0xFFFF0006
ITEM_NOT_FOUND = 0xFFFF0008
NOT_SUPPORTED = 0xFFFF000A
OUT_OF_MEMORY = 0xFFFF000C

FRAME = 512
HALF_SECTOR = 256
PROGRAM_KEY, READ_COUNTER, WRITE, READ, READ_RESULT = 1, 2, 3, 4, 5

MMC_READ, MMC_WRITE = 18, 25
RELIABLE = -(1 << 31)
FLAGS = 0x35
"""MMC_RSP_R1 | MMC_CMD_ADTC."""

POSTSLEEP = (20000, 50000)
"""Shortest and longest sleep of the kernel after a write, in microseconds."""

HEADER = struct.Struct("<HHH")
PARAM = struct.Struct("<QQQQ")
PARAMS = 5
"""Room for a request: the number of the request and four parameters."""
MMC_COMMAND = struct.Struct("<iiII16xIIIIIIIIQ")
EMPTY_REQUEST = struct.pack("<II", 0, PARAMS) + PARAM.pack(META, 0, 0, 0) + bytes(4 * PARAM.size)


class Refused(Exception):
    """A request ends with a TEEC result other than success."""

    def __init__(self, result: int) -> None:
        super().__init__(result)
        self.result = result


def log(text: str) -> None:
    """A message as upstream's EMSG prints it."""
    caller = sys._getframe(1).f_code
    line = sys._getframe(1).f_lineno
    sys.stderr.write(f"ERR [{os.getpid()}] TEES:{caller.co_name}:{line}: {text}\n")
    sys.stderr.flush()


class System:
    """The system calls this program makes; a test may make them elsewhere."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)

    def ioctl(self, fd: int, request: int, buffer: Buffer) -> int:
        """ioctl(2) on a writable buffer; a result >= 0."""
        return int(fcntl.ioctl(fd, request, buffer, True))

    def map(self, fd: int, size: int) -> mmap.mmap:
        """Map shared memory."""
        return mmap.mmap(fd, size)

    def read_text(self, path: str) -> str:
        """A sysfs attribute without its line end."""
        # pathlib would double the start-up time.
        with open(path) as attribute:  # noqa: PTH123
            return attribute.read().strip()


def command(
    opcode: int, write_flag: int, blocks: int, pointer: int, postsleep: tuple[int, int] = (0, 0)
) -> bytes:
    """One struct mmc_ioc_cmd."""
    return MMC_COMMAND.pack(
        write_flag, 0, opcode, 0, FLAGS, FRAME, blocks, *postsleep, 0, 0, 0, pointer
    )


class MmcRpmb:
    """The RPMB of a real card, through /dev/mmcblkNrpmb."""

    def __init__(
        self, system: System, cid: str | None = None, postsleep: tuple[int, int] = POSTSLEEP
    ) -> None:
        self.system = system
        self.postsleep = postsleep
        self.wanted_cid = cid
        self.node: int | None = None
        self.device: int | None = None
        self.result_request = array.array("B", bytes(FRAME - 1) + bytes([READ_RESULT]))

    def device_info(self, device: int) -> bytes:
        """The 19 bytes OP-TEE asks for; raises OSError or ValueError."""
        host = self.host(device)
        cid = bytes.fromhex(self.attribute(host, "cid"))
        size_mult = int(self.attribute(host, "raw_rpmb_size_mult"), 0)
        reliable = int(self.attribute(host, "rel_sectors"), 0)
        if len(cid) != 16 or size_mult > 0xFF or reliable > 0xFF:
            raise ValueError("bad attribute of the card")
        return cid + bytes([size_mult, reliable, 0])

    def host(self, device: int) -> int:
        """The number of the card: the one asked for, or the one with the wanted CID."""
        if self.wanted_cid is None:
            return device
        for number in range(10):
            try:
                if self.attribute(number, "cid").lower() == self.wanted_cid.lower():
                    return number
            except OSError:
                continue
        raise OSError("no card with that CID")

    def attribute(self, host: int, name: str) -> str:
        return self.system.read_text(f"/sys/class/mmc_host/mmc{host}/mmc{host}:0001/{name}")

    def transfer(self, device: int, kind: int, frames: bytes, replies: int) -> bytes:
        """Request frames to the card and ``replies`` frames back; raises Refused, OSError."""
        if self.node is None:
            host = self.host(device)
            path = f"/dev/mmcblk{host}rpmb"
            try:
                self.node = self.system.open(path, os.O_RDWR)
            except OSError as error:
                log(f"Could not open {path} ({error.strerror})")
                raise
            self.device = device
        elif device != self.device:
            raise Refused(GENERIC)
        request = array.array("B", frames)
        reply = array.array("B", bytes(replies * FRAME))
        sent = len(frames) // FRAME
        request_at, reply_at = request.buffer_info()[0], reply.buffer_info()[0]
        if kind in (PROGRAM_KEY, WRITE):
            commands = [
                command(MMC_WRITE, 1 | RELIABLE, sent, request_at, self.postsleep),
                command(MMC_WRITE, 1, 1, self.result_request.buffer_info()[0]),
                command(MMC_READ, 0, 1, reply_at),
            ]
        else:
            commands = [
                command(MMC_WRITE, 1, 1, request_at),
                command(MMC_READ, 0, replies, reply_at),
            ]
        multi = array.array("B", struct.pack("<Q", len(commands)) + b"".join(commands))
        self.system.ioctl(self.node, MMC_IOC_MULTI_CMD, multi)
        return reply.tobytes()


class EmulatedRpmb:
    """What a build with RPMB_EMU=1 has instead of a card (stack 1.7); it dies with the process.

    It differs from silicon: the counter counts blocks, the counter of a write is not compared, a
    read without a key is answered, a bad read address is ignored.
    """

    SIZE_MULT = 2
    CID = bytes.fromhex("fe014e4d4d4330344742c8f6552a6115")

    def __init__(self) -> None:
        from hmac import digest

        self.hmac = digest
        self.data = bytearray(self.SIZE_MULT * 128 * 1024)
        self.key: bytes | None = None
        self.counter = 0

    def device_info(self, device: int) -> bytes:
        return self.CID + bytes([self.SIZE_MULT, 1, 0])

    def transfer(self, device: int, kind: int, frames: bytes, replies: int) -> bytes:
        first = frames[:FRAME]
        if kind == PROGRAM_KEY:
            return self.program_key(first)
        if kind == READ_COUNTER:
            return self.counter_reply(first)
        if kind == WRITE:
            return self.write(frames)
        return self.read(first, replies)

    def program_key(self, frame: bytes) -> bytes:
        result = 1
        if self.key is None:
            self.key = frame[196:228]
            result = 0
        return self.frame(kind=PROGRAM_KEY, result=result)

    def counter_reply(self, frame: bytes) -> bytes:
        result = 7 if self.key is None else 0
        return self.signed(
            [self.frame(READ_COUNTER, result, nonce=frame[484:500], counter=self.counter)]
        )

    def write(self, frames: bytes) -> bytes:
        address = int.from_bytes(frames[504:506], "big")
        count = len(frames) // FRAME
        if (address + count) * HALF_SECTOR > len(self.data):
            log("Transfer bounds exceeed emulated memory")
            result = 4
        elif self.key is None:
            log("Cannot check MAC (key not set)")
            result = 2
        elif self.mac(self.key, frames) != frames[-316:-284]:
            log("Invalid MAC")
            result = 2
        else:
            result = 0
            for index in range(count):
                start = (address + index) * HALF_SECTOR
                block = frames[index * FRAME + 228 : index * FRAME + 484]
                self.data[start : start + HALF_SECTOR] = block
            self.counter += count
        reply = self.frame(WRITE, result, counter=self.counter, address=address)
        return self.signed([reply])

    def read(self, frame: bytes, replies: int) -> bytes:
        address = int.from_bytes(frame[504:506], "big")
        frames = []
        for index in range(replies):
            start = (address + index) * HALF_SECTOR
            data = bytes(self.data[start : start + HALF_SECTOR]).ljust(HALF_SECTOR, b"\0")
            frames.append(
                self.frame(READ, 0, nonce=frame[484:500], address=address, count=replies, data=data)
            )
        return self.signed(frames)

    def frame(
        self,
        kind: int,
        result: int = 0,
        *,
        nonce: bytes = bytes(16),
        counter: int = 0,
        address: int = 0,
        count: int = 0,
        data: bytes = bytes(HALF_SECTOR),
    ) -> bytes:
        numbers = struct.pack(">IHHHH", counter, address, count, result, kind << 8)
        return bytes(228) + data + nonce + numbers

    def signed(self, frames: Iterable[bytes]) -> bytes:
        joined = b"".join(frames)
        if self.key is None:
            log("Cannot compute MAC (key not set)")
            return joined
        place = len(joined) - FRAME + 196
        return joined[:place] + self.mac(self.key, joined) + joined[place + 32 :]

    def mac(self, key: bytes, frames: bytes) -> bytes:
        signed = [frames[at + 228 : at + FRAME] for at in range(0, len(frames), FRAME)]
        return self.hmac(key, b"".join(signed), "sha256")


def rpmb_request(rpmb: Rpmb, request: bytes, reply_size: int) -> bytes:
    """Carry out one rpmb_req message; returns the reply, raises Refused with its result."""
    if len(request) < HEADER.size:
        raise Refused(BAD_PARAMETERS)
    asked, device, _blocks = HEADER.unpack_from(request)
    if asked == 1:
        if len(request) != HEADER.size or reply_size != 19:
            raise Refused(BAD_PARAMETERS)
        try:
            return rpmb.device_info(device)
        except (OSError, ValueError):
            raise Refused(GENERIC) from None
    if asked != 0:
        raise Refused(BAD_PARAMETERS)
    frames = request[HEADER.size :]
    sent, replies = len(frames) // FRAME, reply_size // FRAME
    if not sent or len(frames) % FRAME:
        raise Refused(BAD_PARAMETERS)
    kinds = [frames[at - 2 : at] for at in range(FRAME, len(frames) + 1, FRAME)]
    # Upstream swaps the bytes of the first type only, so requests of several frames never match.
    if any(other[::-1] != kinds[0] for other in kinds[1:]):
        raise Refused(BAD_PARAMETERS)
    kind = int.from_bytes(kinds[0], "big")
    if kind in (PROGRAM_KEY, WRITE):
        wrong = replies != 1
    elif kind == READ_COUNTER:
        wrong = sent != 1 or replies != 1
    elif kind == READ:
        wrong = sent != 1 or replies < 1
    else:
        raise Refused(GENERIC)
    if wrong:
        raise Refused(BAD_PARAMETERS)
    try:
        return rpmb.transfer(device, kind, frames, replies)
    except OSError:
        raise Refused(GENERIC) from None


class Supplicant:
    """One supplicant on an open /dev/teepriv0."""

    def __init__(self, system: System, device: int, rpmb: Rpmb) -> None:
        self.system = system
        self.device = device
        self.rpmb = rpmb
        self.shared: dict[int, tuple[int, mmap.mmap]] = {}
        self.message = array.array("B", EMPTY_REQUEST)
        self.buffer = array.array(
            "B", struct.pack("<QQ", self.message.buffer_info()[0], len(self.message))
        )

    def serve(self) -> None:
        """Serve requests until the kernel refuses to give or take one."""
        while self.serve_one():
            pass

    def serve_one(self) -> bool:
        """Wait for one request and answer it; False when the kernel refused."""
        self.message[:] = array.array("B", EMPTY_REQUEST)
        try:
            self.system.ioctl(self.device, TEE_IOC_SUPPL_RECV, self.buffer)
        except OSError as error:
            log(f"TEE_IOC_SUPPL_RECV: {error.strerror}")
            return False
        func, count = struct.unpack_from("<II", self.message)
        params = [PARAM.unpack_from(self.message, 8 + n * PARAM.size) for n in range(count)]
        number, params = params[0], params[1:]
        try:
            params = self.process(func, params)
            result = SUCCESS
        except Refused as refusal:
            result = refusal.result
        return self.answer(result, [number, *params])

    def process(self, func: int, params: list[Param]) -> list[Param]:
        """Carry out a request; returns the parameters to send back."""
        if func == RPC_RPMB:
            return self.rpmb_message(params)
        if func == RPC_SHM_ALLOC:
            return self.allocate(params)
        if func == RPC_SHM_FREE:
            return self.free(params)
        # No trusted applications and no REE file system live on this board.
        raise Refused(ITEM_NOT_FOUND if func == RPC_LOAD_TA else NOT_SUPPORTED)

    def rpmb_message(self, params: list[Param]) -> list[Param]:
        if [param[0] for param in params] != [MEMREF_INPUT, MEMREF_OUTPUT]:
            raise Refused(BAD_PARAMETERS)
        request, reply = params
        source, target = self.memory(request), self.memory(reply)
        sent = bytes(source[request[1] : request[1] + request[2]])
        answer = rpmb_request(self.rpmb, sent, reply[2])
        target[reply[1] : reply[1] + len(answer)] = answer
        return [request, (reply[0], reply[1], len(answer), reply[3])]

    def memory(self, param: Param) -> mmap.mmap:
        if param[3] not in self.shared:
            raise Refused(BAD_PARAMETERS)
        return self.shared[param[3]][1]

    def allocate(self, params: list[Param]) -> list[Param]:
        if [param[0] for param in params] != [VALUE_INOUT]:
            raise Refused(BAD_PARAMETERS)
        request = bytearray(struct.pack("<QIi", params[0][2], 0, 0))
        try:
            fd = self.system.ioctl(self.device, TEE_IOC_SHM_ALLOC, request)
        except OSError:
            raise Refused(OUT_OF_MEMORY) from None
        size, _flags, number = struct.unpack("<QIi", request)
        self.shared[number] = fd, self.system.map(fd, size)
        return [(VALUE_INOUT, params[0][1], params[0][2], number)]

    def free(self, params: list[Param]) -> list[Param]:
        if [param[0] for param in params] != [VALUE_INOUT] or params[0][2] not in self.shared:
            raise Refused(BAD_PARAMETERS)
        fd, memory = self.shared.pop(params[0][2])
        memory.close()
        self.system.close(fd)
        return params

    def answer(self, result: int, params: Sequence[Param]) -> bool:
        size = 8 + len(params) * PARAM.size
        struct.pack_into("<II", self.message, 0, result, len(params))
        for index, param in enumerate(params):
            PARAM.pack_into(self.message, 8 + index * PARAM.size, *param)
        buffer = bytearray(struct.pack("<QQ", self.message.buffer_info()[0], size))
        try:
            self.system.ioctl(self.device, TEE_IOC_SUPPL_SEND, buffer)
        except OSError as error:
            log(f"TEE_IOC_SUPPL_SEND: {error.strerror}")
            return False
        return True


def open_device(system: System, names: Iterable[str]) -> int | None:
    """The first device that is an OP-TEE for a supplicant, None when there is none free."""
    for name in names:
        try:
            fd = system.open(name, os.O_RDWR)
        except OSError:
            continue
        version = bytearray(12)
        try:
            system.ioctl(fd, TEE_IOC_VERSION, version)
        except OSError:
            system.close(fd)
            continue
        implementation, _capabilities, general = struct.unpack("<III", version)
        if implementation == TEE_IMPL_ID_OPTEE and general & TEE_GEN_CAP_PRIVILEGED:
            return fd
        system.close(fd)
    return None


def daemonize() -> None:
    """Go to the background."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    system = System()
    background, emulated, cid, device = False, False, None, None
    postsleep = POSTSLEEP
    arguments = list(arguments)
    while arguments:
        word = arguments.pop(0)
        if word in ("-d", "--daemonize"):
            background = True
        elif word == "--rpmb-emu":
            emulated = True
        elif word == "--rpmb-no-sleep":
            postsleep = (0, 0)
        elif word in ("-r", "--rpmb-cid") and arguments:
            cid = arguments.pop(0)
        elif not word.startswith("-") and device is None:
            device = word
        else:
            sys.stderr.write(
                "Usage: tee-supplicant [-d] [-r|--rpmb-cid CID] [--rpmb-emu] [--rpmb-no-sleep] "
                "[device]\n"
            )
            return 1
    fd = open_device(system, [device] if device else [f"/dev/teepriv{n}" for n in range(10)])
    if fd is None:
        log("failed to find an OP-TEE supplicant device")
        return 1
    if background:
        daemonize()
    rpmb = EmulatedRpmb() if emulated else MmcRpmb(system, cid, postsleep)
    Supplicant(system, fd, rpmb).serve()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The parsers that take what somebody hostile may have made."""

from __future__ import annotations

import functools
import mmap
import struct
import tempfile
import zlib
from collections.abc import Hashable
from pathlib import Path
from typing import Final
from uuid import UUID

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import IMAGE_BYTES, RpmbImage
from emulation.emmc.rpmb import PROFILES, RpmbPartition
from emulation.optee.optee import OpTee
from emulation.rpmb_transport import RpmbTransport
from emulation.stmm.standalone_mm import StandaloneMm
from emulation.uboot.boot import Uboot
from emulation.uboot.variables import FileVariables, StmmVariables, Variable
from emulation.userland.system.tee_supplicant import EmulatedRpmb, Refused, rpmb_request
from harness.formats import rpmb
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.formats.mm import (
    COMM_BUFFER_SIZE,
    MM_HEADER_SIZE,
    AccessVariable,
    GetNextVariableName,
    Message,
    QueryVariableInfo,
    VarCheckProperty,
    VariableFunction,
)
from harness.formats.tee import TeeError
from tests.emulation.fuzz import edges
from tests.emulation.fuzz.engine import Target
from tests.emulation.fuzz.pieces import joined, parts
from tests.emulation.memory_storage import MemoryStorage
from tests.emulation.stmm_client import VENDOR, Partition

AUTH: Final = Path(__file__).parents[2] / "truth" / "auth"
_PATCH: Final = struct.Struct("<IB")
_STATUS_BYTE: Final = 32


def patched(original: bytes | bytearray, data: bytes) -> bytearray:
    """``original`` with the patches of an input: offset (32 bits), length (8 bits), bytes."""
    content = bytearray(original)
    at = 0
    while at + _PATCH.size <= len(data):
        offset, length = _PATCH.unpack_from(data, at)
        at += _PATCH.size
        piece = data[at : at + length]
        at += length
        offset %= len(content)
        content[offset : offset + len(piece)] = piece[: len(content) - offset]
    return content


def patch(offset: int, piece: bytes) -> bytes:
    """One patch, for :func:`patched`."""
    return _PATCH.pack(offset, len(piece)) + piece


@functools.cache
def used_store() -> bytes:
    """A store with plain, deleted, authenticated and volatile history."""
    board = Partition()
    for short in ("A", "Bee", "C"):
        board.set(short, short.encode() * 40)
    board.set("Bee", b"again")
    board.set("C", b"")
    board.set("APriv", (AUTH / "priv1.auth").read_bytes(), 0x27)
    board.set("PK", (AUTH / "PK.auth").read_bytes(), 0x27, GLOBAL_VARIABLE_GUID)
    return bytes(board.storage.content)


def exercise(mm: StandaloneMm) -> tuple[int, ...]:
    """What a client does, on a partition whatever its state; what it gets."""
    current = GetNextVariableName(UUID(int=0), "", 1024).pack()
    status, listed = 0, 0
    while not status and listed < 64:
        status, current = send(mm, VariableFunction.GET_NEXT_VARIABLE_NAME, current)
        listed += 1
    _, space = send(mm, VariableFunction.QUERY_VARIABLE_INFO, QueryVariableInfo(7).pack())
    statuses = [listed, status, QueryVariableInfo.unpack(space).remaining_storage]
    for name, guid, attributes, content in (
        ("A", VENDOR, 7, b"changed"),
        ("New", VENDOR, 7, b"n" * 700),
        ("APriv", VENDOR, 0x27, (AUTH / "priv2.auth").read_bytes()),
        ("PK", GLOBAL_VARIABLE_GUID, 0x27, (AUTH / "PK2-by-PK.auth").read_bytes()),
    ):
        request = AccessVariable(guid, name, len(content), attributes, content).pack(slack=4)
        statuses.append(send(mm, VariableFunction.SET_VARIABLE, request)[0])
        request = AccessVariable(guid, name, 4096).pack()
        statuses.append(send(mm, VariableFunction.GET_VARIABLE, request)[0])
    return tuple(statuses)


def send(mm: StandaloneMm, function: int, payload: bytes) -> tuple[int, bytes]:
    """One message; status and payload of the answer."""
    raw = Message(function, payload).pack()
    buffer = bytearray(COMM_BUFFER_SIZE)
    buffer[: len(raw)] = raw
    mm.communicate(buffer, len(raw))
    answer = Message.unpack(buffer)
    return answer.status & 0xFF, answer.payload


class MmMessages:
    """Messages in the shared buffer, each on top of what the one before left there."""

    name = "mm_messages"

    def samples(self) -> list[bytes]:
        def message(function: int, payload: bytes) -> bytes:
            return Message(function, payload).pack()

        def setting(name: str, content: bytes, attributes: int, guid: UUID = VENDOR) -> bytes:
            request = AccessVariable(guid, name, len(content), attributes, content)
            return message(VariableFunction.SET_VARIABLE, request.pack(slack=4))

        signed = [
            setting(name, (AUTH / f"{file}.auth").read_bytes(), 0x27, guid)
            for name, file, guid in (
                ("APriv", "priv2", VENDOR),
                ("PK", "PK2-by-PK", GLOBAL_VARIABLE_GUID),
                ("KEK", "KEK", GLOBAL_VARIABLE_GUID),
            )
        ]
        getting = AccessVariable(VENDOR, "A", 64).pack()
        following = GetNextVariableName(UUID(int=0), "", 64).pack()
        properties = VarCheckProperty(VENDOR, "A").pack()
        plain = [
            setting("A", b"value", 7),
            setting("D", b"v", 6),
            setting("A", b"more", 0x47),
            setting("PlatformLang", b"en\0", 7, GLOBAL_VARIABLE_GUID),
            setting(
                "MemoryOverwriteRequestControlLock",
                b"12345678",
                7,
                UUID("bb983ccf-151d-40e1-a07b-4a17be168292"),
            ),
            message(VariableFunction.GET_VARIABLE, getting),
            message(VariableFunction.GET_NEXT_VARIABLE_NAME, following),
            message(VariableFunction.QUERY_VARIABLE_INFO, QueryVariableInfo(7).pack()),
            *(message(function, properties) for function in (8, 9, 10)),
            *(message(function, bytes(32)) for function in (0, 5, 6, 7, 11, 12, 13, 14, 15)),
            Message(0, b"", 0, UUID("02ce967a-dd7e-4ffc-9ee7-810cf0470880")).pack(),
        ]
        return [joined(piece) for piece in (*plain, *signed)] + [joined(*plain), joined(*signed)]

    def run(self, data: bytes) -> Hashable:
        mm = StandaloneMm(MemoryStorage(used_store()))
        mm.start()
        buffer = bytearray(COMM_BUFFER_SIZE)
        seen = []
        for piece in list(parts(data))[:24]:
            message = piece[:COMM_BUFFER_SIZE]
            buffer[: len(message)] = message
            code = mm.communicate(buffer, len(message))
            assert len(buffer) == COMM_BUFFER_SIZE
            assert code is None or 0 <= code < 1 << 64
            seen.append((code, buffer[MM_HEADER_SIZE], buffer[_STATUS_BYTE]))
        return frozenset(seen)


class RpmbFrames:
    """Frames to the card in every profile, and rpmb_req messages through those who carry them."""

    name = "rpmb_frames"
    KEY: Final = bytes(range(32))

    def samples(self) -> list[bytes]:
        nonce = b"N" * 16
        key, counter = rpmb.key_request(self.KEY), rpmb.counter_request(nonce)
        writes = [rpmb.write_request(self.KEY, n, 3, bytes([n]) * 256) for n in range(3)]
        long = rpmb.write_request(self.KEY, 0, 0, bytes(512))
        reading, result = rpmb.read_request(2, nonce), rpmb.result_request()
        sequences = (
            (key, counter, writes[0], result, reading),
            (counter, writes[0], reading),
            (key, *writes, key),
            (key, long, reading, bytes(512), bytes(100)),
        )
        info = b"\1" + bytes(5)
        return [
            bytes([flags]) + joined(*sequence, info) for sequence in sequences for flags in range(8)
        ]

    def run(self, data: bytes) -> Hashable:
        flags, pieces = data[:1] or b"\0", list(parts(data[1:]))[:16]
        seen: list[Hashable] = []
        profile = tuple(PROFILES.values())[flags[0] % 3]
        image = RpmbImage.in_memory(1)
        card = RpmbPartition(
            image, profile=profile, rel_wr_sec_c=1 + flags[0] % 2, enhanced=flags[0] > 3
        )
        transport = RpmbTransport(EmmcCard(RpmbImage.in_memory(1), profile=profile))
        emulated = EmulatedRpmb()
        for piece in pieces:
            whole = piece[: len(piece) // 512 * 512]
            count = 1 + piece[-1] % 3 if piece else 1
            if whole:
                card.write_frames(whole, reliable=bool(flags[0] & 4))
            frames = card.read_frames(count)
            assert len(frames) == 512 * count
            seen.append(frames[-4:])
            for carry in (transport.rpmb_rpc, functools.partial(rpmb_request, emulated)):
                for message in (piece, bytes(6) + piece):
                    size = 19 if message[:1] == b"\1" else 512 * count
                    try:
                        seen.append(len(carry(message, size)))
                    except (TeeError, Refused) as error:
                        seen.append(error.result)
        image.close()
        return (flags[0] % 8, frozenset(seen))


class StoreImages:
    """A store that was tampered with, under the partition that starts from it and under U-Boot."""

    name = "store_images"

    def samples(self) -> list[bytes]:
        record = 0x64
        return [
            b"",
            patch(0, b"\0" * 72),
            patch(record, b"\xff" * 60),
            *(patch(record + offset, b"\xff\xff\xff\xff") for offset in (0, 2, 4, 36, 40)),
            *(patch(0x4000 + offset, b"\xfe\xfc") for offset in (0, 20, 32, 60, 72)),
            patch(0x8000, used_store()[:255]),
        ]

    def run(self, data: bytes) -> Hashable:
        content = bytes(patched(used_store(), data))
        storage = MemoryStorage(content)
        seen = []
        for _ in range(2):
            mm = StandaloneMm(storage)
            mm.start()
            seen.append((len(storage.writes), exercise(mm)))
            send(mm, VariableFunction.EXIT_BOOT_SERVICE, b"")
            seen.append((len(storage.writes), exercise(mm)))
        said: list[str] = []
        optee = OpTee(load=lambda _storage: StandaloneMm(MemoryStorage(content)))
        tables = Uboot("mm-query", StmmVariables(optee), said.append).boot()
        return (tuple(seen), tuple(said), len(tables.variables))


class RpmbImages:
    """A tampered RPMB under U-Boot, OP-TEE and StandaloneMM; also the emulator's own records."""

    name = "rpmb_images"

    @functools.cached_property
    def original(self) -> list[tuple[int, bytes]]:
        """The non-zero kilobytes of the image of a board that was booted and used."""
        medium = mmap.mmap(-1, IMAGE_BYTES)
        self._boot(RpmbImage(medium, 1))
        step = 1024
        pieces = ((at, medium[at : at + step]) for at in range(0, len(medium), step))
        return [(at, piece) for at, piece in pieces if any(piece)]

    def samples(self) -> list[bytes]:
        entry = 512
        size = sum(len(piece) for _, piece in self.original)
        return [
            b"",
            patch(0, b"\0\0\0\0"),
            patch(4, b"\3"),
            *(patch(entry + offset, b"\xff\xff\xff\xff") for offset in (0, 4, 8, 16, 32)),
            patch(entry + 8, b"\1\0\0\0"),
            *(patch(at, b"\x55" * 16) for at in range(2048, size, 16384)),
            *(patch(size - 1024 * last, b"\xff" * 80) for last in range(1, 12)),
        ]

    def run(self, data: bytes) -> Hashable:
        medium = mmap.mmap(-1, IMAGE_BYTES)
        content = patched(b"".join(piece for _, piece in self.original), data)
        start = 0
        for at, piece in self.original:
            medium[at : at + len(piece)] = content[start : start + len(piece)]
            start += len(piece)
        image = RpmbImage(medium, 1)
        outcome = self._boot(image)
        image.close()
        return outcome

    @staticmethod
    def _boot(image: RpmbImage) -> Hashable:
        card = EmmcCard(image)
        optee = OpTee()
        optee.normal_world = RpmbTransport(card)
        said: list[str] = []
        variables = StmmVariables(optee)
        tables = Uboot("mm-query", variables, said.append).boot()
        status = variables.set(Variable("Fuzz", VENDOR, 7, b"x"))
        return (tuple(said), tables.services, len(tables.variables), status, optee.rpmb.dead)


class UbootFiles:
    """ubootefi.var, its checksum made right, so that the parser is reached."""

    name = "uboot_files"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "ubootefi.var")

    def samples(self) -> list[bytes]:
        self._path.unlink(missing_ok=True)
        Uboot("file", FileVariables(self._path), lambda line: None).boot()
        entries = self._path.read_bytes()[24:]
        return [entries, b"", entries[:40], entries[:64] * 2]

    def run(self, data: bytes) -> Hashable:
        magic = 0x0161566966456255
        self._path.write_bytes(
            struct.pack("<QQII", 0, magic, 24 + len(data), zlib.crc32(data)) + data
        )
        said: list[str] = []
        variables = FileVariables(self._path)
        tables = Uboot("file", variables, said.append).boot()
        return (tuple(said), tables.services, len(tables.variables), len(list(variables)))


_PARSERS: Final[tuple[Target, ...]] = (
    MmMessages(),
    RpmbFrames(),
    StoreImages(),
    RpmbImages(),
    UbootFiles(),
)
TARGETS: Final[dict[str, Target]] = {target.name: target for target in (*_PARSERS, *edges.TARGETS)}

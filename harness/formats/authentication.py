"""Authenticated variables: EFI_VARIABLE_AUTHENTICATION_2 and signature lists.

Sources: UEFI 2.10, sections 8.2.2 and 32.4.1; stack 4.6 and 4.7.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from harness.formats.efi import EfiTime

Buffer = bytes | bytearray | memoryview

CERT_SHA1_GUID: Final = UUID("826ca512-cf10-4ac9-b187-be01496631bd")
CERT_SHA224_GUID: Final = UUID("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd")
CERT_SHA256_GUID: Final = UUID("c1c41626-504c-4092-aca9-41f936934328")
CERT_SHA384_GUID: Final = UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
CERT_SHA512_GUID: Final = UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a")
CERT_RSA2048_GUID: Final = UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6")
CERT_RSA2048_SHA1_GUID: Final = UUID("67f8444f-8743-48f1-a328-1eaab8736080")
CERT_RSA2048_SHA256_GUID: Final = UUID("e2b36190-879b-4a3d-ad8d-f2e7bba32784")
CERT_X509_GUID: Final = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_X509_SHA256_GUID: Final = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
CERT_X509_SHA384_GUID: Final = UUID("7076876e-80c2-4ee6-aad2-28b349a6865b")
CERT_X509_SHA512_GUID: Final = UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d")
CERT_PKCS7_GUID: Final = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")

WIN_CERTIFICATE_REVISION: Final = 0x0200
WIN_CERTIFICATE_EFI_GUID: Final = 0x0EF1
TIME_SIZE: Final = EfiTime.SIZE
CERT_DATA_OFFSET: Final = 40
"""Where the PKCS#7 message begins."""
WIN_CERTIFICATE_GUID_SIZE: Final = 24
"""Bytes that dwLength counts before the PKCS#7 message."""
AUTHENTICATION_1_SIZE: Final = 560
"""EFI_VARIABLE_AUTHENTICATION with its RSA-2048 SHA-256 block (deprecated)."""

_WIN_CERTIFICATE = struct.Struct("<IHH16s")


@dataclass(frozen=True, slots=True)
class Authentication2:
    """EFI_VARIABLE_AUTHENTICATION_2: time stamp, certificate header, PKCS#7 message."""

    time: EfiTime
    pkcs7: bytes
    revision: int = WIN_CERTIFICATE_REVISION
    certificate_type: int = WIN_CERTIFICATE_EFI_GUID
    certificate_guid: UUID = CERT_PKCS7_GUID

    def pack(self) -> bytes:
        """The descriptor; the variable's new value follows it in SetVariable's data."""
        length = WIN_CERTIFICATE_GUID_SIZE + len(self.pkcs7)
        header = _WIN_CERTIFICATE.pack(
            length, self.revision, self.certificate_type, self.certificate_guid.bytes_le
        )
        return self.time.pack() + header + self.pkcs7

    @classmethod
    def split(cls, data: Buffer) -> tuple[Self, bytes]:
        """(descriptor, payload) of SetVariable's data.

        ValueError if the data is shorter than the descriptor, or dwLength does not fit.
        """
        size = descriptor_size(data)
        if size is None:
            raise ValueError("no complete EFI_VARIABLE_AUTHENTICATION_2")
        _, revision, kind, guid = _WIN_CERTIFICATE.unpack_from(data, TIME_SIZE)
        descriptor = cls(
            EfiTime.unpack(data),
            bytes(data[CERT_DATA_OFFSET:size]),
            revision,
            kind,
            UUID(bytes_le=guid),
        )
        return descriptor, bytes(data[size:])


def descriptor_size(data: Buffer) -> int | None:
    """Bytes of the descriptor that begins ``data``, or None if it is not whole.

    The check of UEFI firmware before anything else (EDK2 Variable.c:VariableServiceSetVariable).
    """
    if len(data) < CERT_DATA_OFFSET:
        return None
    (length,) = struct.unpack_from("<I", data, TIME_SIZE)
    if not WIN_CERTIFICATE_GUID_SIZE <= length <= len(data) - TIME_SIZE:
        return None
    return TIME_SIZE + int(length)


def signed_content(name: bytes, guid: bytes, attributes: int, time: bytes, payload: bytes) -> bytes:
    """The bytes a signature covers: name without NUL, GUID, attributes, time stamp, payload."""
    return name + guid + struct.pack("<I", attributes) + time + payload


SIGNATURE_LIST_HEADER_SIZE: Final = 28
OWNER_SIZE: Final = 16
_LIST = struct.Struct("<16sIII")


@dataclass(frozen=True, slots=True)
class SignatureList:
    """EFI_SIGNATURE_LIST: entries of one type and one size.

    Each entry is its 16-byte owner GUID followed by the signature's data.
    """

    type: UUID
    entries: tuple[bytes, ...]
    header: bytes = b""

    @property
    def signature_size(self) -> int:
        """Bytes of one entry with its owner."""
        return len(self.entries[0]) if self.entries else OWNER_SIZE

    def pack(self) -> bytes:
        """The list; ValueError if the entries differ in size."""
        if len({len(entry) for entry in self.entries}) > 1:
            raise ValueError("entries of one signature list must have one size")
        body = self.header + b"".join(self.entries)
        header = _LIST.pack(
            self.type.bytes_le,
            SIGNATURE_LIST_HEADER_SIZE + len(body),
            len(self.header),
            self.signature_size,
        )
        return header + body


def parse_signature_lists(data: Buffer) -> Iterator[SignatureList]:
    """The lists one after another; ValueError where sizes do not fit into the data."""
    position = 0
    while position < len(data):
        if len(data) - position < SIGNATURE_LIST_HEADER_SIZE:
            raise ValueError("signature list header cut short")
        kind, size, header_size, entry_size = _LIST.unpack_from(data, position)
        body = size - SIGNATURE_LIST_HEADER_SIZE - header_size
        if body < 0 or position + size > len(data) or entry_size < OWNER_SIZE:
            raise ValueError("signature list sizes do not fit")
        if body % entry_size:
            raise ValueError("signature list does not end with an entry")
        start = position + SIGNATURE_LIST_HEADER_SIZE + header_size
        yield SignatureList(
            UUID(bytes_le=kind),
            tuple(
                bytes(data[at : at + entry_size]) for at in range(start, start + body, entry_size)
            ),
            bytes(data[position + SIGNATURE_LIST_HEADER_SIZE : start]),
        )
        position += size

"""EFI_LOAD_OPTION: the content of Boot####, Driver#### and their like (UEFI 2.10, 3.1.3)."""

import struct
from typing import Final

from harness.formats.efi import encode_name

ACTIVE: Final = 1
"""LOAD_OPTION_ACTIVE."""
END_NODE: Final = b"\x7f\xff\x04\x00"
"""The device path node that ends a whole path."""

_HEADER: Final = struct.Struct("<IH")


def load_option(
    description: str, path: bytes = END_NODE, *, attributes: int = ACTIVE, data: bytes = b""
) -> bytes:
    """Attributes, path length, description with NUL, device path, optional data; ``path`` carries
    its own end node, so that one without can be made."""
    return _HEADER.pack(attributes, len(path)) + encode_name(description) + path + data

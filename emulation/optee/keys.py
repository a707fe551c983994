"""Keys that OP-TEE derives, and the encryption of file blocks in the RPMB.

Source: stack 1.8 and 2.5; OT41 and OP-TEE 4.10 core/tee/tee_fs_key_manager.c,
core/kernel/huk_subkey.c, otp_stubs.c.
"""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from typing import Final
from uuid import UUID

from emulation.optee.config import DIE_ID_SIZE, OpTeeConfig
from harness.formats.rpmb import OPTEE_TEST_KEY
from harness.formats.rpmb_fs import FEK_SIZE

_USAGE_RPMB, _USAGE_SSK, _USAGE_DIE_ID = (usage.to_bytes(4, "little") for usage in range(3))
_SSK_LABEL: Final = b"ONLY_FOR_tee_fs_ssk\0"
_AES_BLOCK: Final = 16


def rpmb_key(config: OpTeeConfig, cid: bytes) -> bytes:
    """The RPMB authentication key for the card with this CID, 32 bytes."""
    if config.test_key:
        return OPTEE_TEST_KEY
    # Product revision and CRC change with a firmware update of the card.
    stable = bytearray(cid)
    stable[9] = stable[15] = 0
    return _derive(config, b"" if config.huk_compat else _USAGE_RPMB, bytes(stable))


def storage_key(config: OpTeeConfig) -> bytes:
    """The secure storage key (SSK) from which all keys of files are derived, 32 bytes."""
    if not config.huk_compat:
        return _derive(config, _USAGE_SSK)
    die_id = config.die_id
    if die_id is None:
        die_id = _derive(config, _USAGE_DIE_ID)[:DIE_ID_SIZE]
    return _derive(config, die_id, _SSK_LABEL)


def _derive(config: OpTeeConfig, *parts: bytes) -> bytes:
    """huk_subkey_derive."""
    return hmac.digest(config.huk, b"".join(parts), "sha256")


class FileKeys:
    """The file encryption keys of one trusted application."""

    def __init__(self, config: OpTeeConfig, owner: UUID) -> None:
        self._storage_key = hmac.digest(storage_key(config), owner.bytes_le, "sha256")

    def generate(self) -> bytes:
        """A fresh key as the file table keeps it: encrypted."""
        while True:
            encrypted = _ecb(self._storage_key, os.urandom(FEK_SIZE), encrypt=True)
            if any(encrypted):
                return encrypted

    def cipher(self, encrypted: bytes) -> BlockCipher:
        """The cipher of the file with this table entry."""
        return BlockCipher(_ecb(self._storage_key, encrypted, encrypt=False))


class BlockCipher:
    """AES-128-CBC over a half sector, with an IV made from its number on the card."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._cipher = Cipher
        self._cbc = modes.CBC
        self._key = algorithms.AES(key)
        # A 16-byte message in ECB mode needs no end, so one encryptor serves all IVs.
        iv_key = algorithms.AES(sha256(key).digest()[:_AES_BLOCK])
        self._iv = Cipher(iv_key, modes.ECB()).encryptor()

    def encrypt(self, block: int, data: bytes) -> bytes:
        """The 256 bytes of half sector ``block`` for the card."""
        return self._cipher(self._key, self._cbc(self._make_iv(block))).encryptor().update(data)

    def decrypt(self, block: int, data: bytes) -> bytes:
        """The 256 bytes of half sector ``block`` from the card."""
        return self._cipher(self._key, self._cbc(self._make_iv(block))).decryptor().update(data)

    def _make_iv(self, block: int) -> bytes:
        return self._iv.update(block.to_bytes(2, "little").ljust(_AES_BLOCK, b"\0"))


def _ecb(key: bytes, data: bytes, *, encrypt: bool) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(key), modes.ECB())
    return (cipher.encryptor() if encrypt else cipher.decryptor()).update(data)

"""Keys as OP-TEE derives them: against OP-TEE's own code, and an image read without the model.

``optee_keys.json`` was printed by OP-TEE 4.10's own huk_subkey.c and tee_fs_key_manager.c (Debian
optee-os 4.10.0-2), compiled for the host over OpenSSL's HMAC and AES, once for each way to build
it; its RPMB keys are also those of OP-TEE's scripts/derive_rpmb_key.py. ``block`` is the SHA-256 of
half sector 0x1234 holding 0..255 of StandaloneMM's file with the encrypted key 00112233..ff.
"""

from __future__ import annotations

import hmac
import json
import shutil
import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from emulation.optee import keys
from emulation.optee.config import OpTeeConfig
from emulation.options import BoardOptions, OptionError
from harness.formats.rpmb_fs import FAT_START, FatEntry
from tests.emulation.rig import GUID, Rig

VECTORS: list[dict[str, str]] = json.loads(Path(__file__).with_name("optee_keys.json").read_text())
REAL = json.loads(Path(__file__).with_name("optee_real_blocks.json").read_text())
HUK = bytes(range(0x11, 0x21))
CID = bytes.fromhex("aa015851454d55212101deadbeef2900")
STMM = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
BUILDS: dict[str, dict[str, object]] = {
    "compat": {},
    "no-compat": {"huk_compat": False},
    "compat-derived-die-id": {"die_id": None},
    "compat-platform-die-id": {"die_id": bytes(range(32))},
}
OPTIONS: dict[str, dict[str, object]] = {
    "compat": {},
    "no-compat": {"huk_compat": False},
    "compat-derived-die-id": {"die_id": "derived"},
    "compat-platform-die-id": {"die_id": bytes(range(32)).hex()},
}


def storage_key(build: str, huk: bytes) -> str:
    return next(v["ssk"] for v in VECTORS if (v["build"], v["huk"]) == (build, huk.hex()))


def rpmb_key(build: str, huk: bytes) -> str:
    return next(v["rpmb_key"] for v in VECTORS if (v["build"], v["huk"]) == (build, huk.hex()))


def store_in(image: Path, ssk: bytes) -> bytes:
    """The first half sector of StandaloneMM's store in an RPMB, decrypted by the description of
    stack 2.5 and nothing of the model."""
    raw = image.read_bytes()
    entry = FatEntry.unpack(raw, FAT_START)
    assert entry.active
    tsk = hmac.digest(ssk, STMM.bytes_le, "sha256")
    fek = Cipher(algorithms.AES(tsk), modes.ECB()).decryptor().update(entry.fek)
    block = entry.start_address // 256
    essiv = Cipher(algorithms.AES(sha256(fek).digest()[:16]), modes.ECB()).encryptor()
    iv = essiv.update(block.to_bytes(2, "little") + bytes(14))
    cipher = Cipher(algorithms.AES(fek), modes.CBC(iv)).decryptor()
    return cipher.update(raw[entry.start_address :][:256])


def powered(state: Path, **options: object) -> Rig:
    rig = Rig(state, **options)
    rig.boot()
    return rig


@pytest.mark.fault("K1")
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['build']}-{v['huk'][:4]}")
def test_keys_are_those_of_optee_s_own_code(vector: dict[str, str]) -> None:
    config = replace(
        OpTeeConfig(test_key=False, huk=bytes.fromhex(vector["huk"])),
        **BUILDS[vector["build"]],  # type: ignore[arg-type]
    )
    assert keys.rpmb_key(config, CID).hex() == vector["rpmb_key"]
    cipher = keys.FileKeys(config, STMM).cipher(bytes.fromhex("00112233445566778899aabbccddeeff"))
    assert sha256(cipher.encrypt(0x1234, bytes(range(256)))).hexdigest() == vector["block"]


@pytest.mark.fault("K1")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here: apt install openssl")
def test_the_default_storage_key_is_what_openssl_makes_of_the_formula() -> None:
    said = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{HUK.hex()}"],
        input=b"BEEF" * 8 + b"ONLY_FOR_tee_fs_ssk\0",
        capture_output=True,
        check=True,
        timeout=10,
    ).stdout
    assert said.split()[-1].decode() == storage_key("compat", HUK)


@pytest.mark.fault("K1")
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("huk", [b"", HUK], ids=["test-key", "own-key"])
def test_an_image_of_the_board_is_what_the_real_optee_makes(
    tmp_path: Path, build: str, huk: bytes
) -> None:
    own: dict[str, object] = {"rpmb_test_key": False, "huk": huk.hex()} if huk else {}
    rig = powered(tmp_path, **own, **OPTIONS[build])
    rig.write(f"Kept-{GUID}", b"in the image")
    rig.machine.power_cut()
    ssk = bytes.fromhex(storage_key(build, huk or bytes(16)))
    assert store_in(tmp_path / "rpmb.img", ssk)[40:44] == b"_FVH"
    if huk:
        assert bytes.fromhex(rpmb_key(build, huk)) in (tmp_path / "rpmb.img").read_bytes()


@pytest.mark.fault("K1")
@pytest.mark.parametrize("seen", REAL, ids=lambda one: one["images"])
def test_blocks_that_the_real_optee_wrote_are_read(seen: dict[str, Any]) -> None:
    """``optee_real_blocks.json``: table entry and first half sector of the store in the eMMC of
    QEMU's board, formatted by the images of ``hil qemu build``."""
    config = OpTeeConfig(huk=HUK if seen["images"] == "mm-own-key" else bytes(16))
    cipher = keys.FileKeys(config, STMM).cipher(bytes.fromhex(seen["fek"]))
    assert cipher.decrypt(seen["block"], bytes.fromhex(seen["data"]))[40:44] == b"_FVH"


@pytest.mark.fault("K1")
def test_another_huk_makes_noise_of_a_store_and_it_is_formatted(tmp_path: Path) -> None:
    """As on a real board; the RPMB key is the test key, so only the files cannot be read."""
    rig = powered(tmp_path)
    rig.write(f"Lost-{GUID}", b"with the key")
    rig.machine.power_cut()
    rig.machine.close()
    other = powered(tmp_path, huk=HUK.hex())
    with pytest.raises(FileNotFoundError):
        other.read(f"Lost-{GUID}")
    other.write(f"New-{GUID}", b"works")
    other.reboot()
    assert other.read(f"New-{GUID}") == b"works"


@pytest.mark.fault("K1")
def test_a_huk_does_not_print() -> None:
    assert HUK.hex() not in repr(BoardOptions.parse([f"huk={HUK.hex()}"]))
    assert repr(HUK)[2:-1] not in repr(OpTeeConfig(huk=HUK))
    for word in (f"huk={HUK.hex()}00", f"hukk={HUK.hex()}", f"huk:{HUK.hex()}"):
        with pytest.raises(OptionError) as refused:
            BoardOptions.parse([word])
        assert HUK.hex() not in str(refused.value)


@pytest.mark.parametrize("word", ["die_id=00", "die_id=derived huk_compat=no", "huk=xyz"])
def test_what_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(OptionError):
        BoardOptions.parse(word.split())

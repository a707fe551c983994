"""What the board leaves on its flash, other programs read; what they make, the board takes.

The store by virt-firmware, the way to it through the RPMB file system by the arithmetic of stack
2 written down a second time, signed updates by efitools and sbsigntool.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import subprocess
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.x509.oid import NameOID

from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus
from tests.emulation.memory_storage import MemoryStorage
from tests.emulation.rig import GLOBAL, GUID, MakeRig, Rig, errno_of, name
from tests.emulation.stmm_client import CuttableStorage, Partition

EACCES, EINVAL = 13, 22
AUTHENTICATED = 0x27
IMAGE_SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
STMM = uuid.UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
Need = Callable[[str, str], str]


# The RPMB image, read without any code of the emulator


def efi_vars(medium: bytes) -> bytes:
    """The file of StandaloneMM in a raw RPMB of 2 MiB written with hardware key 0."""
    magic, version, _counter, table = struct.unpack_from("<IIII", medium)
    assert (magic, version, table) == (0x52504D42, 2, 512)
    wanted = b"/33D532EDE69909429CC02D72CDD998A7/4546495F56415253"
    for entry in range(table, table + 64 * 256, 256):
        start, size, flags, _unused, fek, path = struct.unpack_from("<IIII16s224s", medium, entry)
        if flags & 1 and path.rstrip(b"\0") == wanted:
            return decrypted(medium, start, size, fek)
        assert not flags & 2, "the table ends before the file"
    pytest.fail("no file of StandaloneMM")


def decrypted(medium: bytes, start: int, size: int, fek: bytes) -> bytes:
    # CFG_CORE_HUK_SUBKEY_COMPAT, and the die id that OP-TEE has for boards without one.
    label = b"BEEF" * 8 + b"ONLY_FOR_tee_fs_ssk\0"
    storage_key = hmac.digest(bytes(16), label, "sha256")
    application_key = hmac.digest(storage_key, STMM.bytes_le, "sha256")
    key = Cipher(algorithms.AES(application_key), modes.ECB()).decryptor().update(fek)
    iv_key = algorithms.AES(hashlib.sha256(key).digest()[:16])
    content = b""
    for position in range(start, start + size, 256):
        number = (position // 256).to_bytes(2, "little").ljust(16, b"\0")
        iv = Cipher(iv_key, modes.ECB()).encryptor().update(number)
        block = medium[position : position + 256]
        content += Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor().update(block)
    return content


def parsed(store: bytes, folder: Path) -> Any:
    """virt-firmware's list of the variables, by name."""
    edk2 = pytest.importorskip("virt.firmware.varstore.edk2", reason="needs virt-firmware")
    file = folder / "store.fd"
    file.write_bytes(store)
    return edk2.Edk2VarStore(str(file))


def test_virt_firmware_reads_the_store_in_the_rpmb_image(rig: Rig, tmp_path: Path) -> None:
    written = {"Short": b"s", "Long": bytes(range(256)) * 12, "Überlänge": b"\xff" * 3}
    for short, data in {**written, "Gone": b"g"}.items():
        rig.write(name(short), data)
    rig.write(name("Short"), b"replaced")
    rig.delete(name("Gone"))
    rig.machine.close()
    medium = (rig.machine.state / "rpmb.img").read_bytes()[: 2 << 20]
    found = parsed(efi_vars(medium), tmp_path).get_varlist()
    # efivarfs makes one CHAR16 of each byte of a file name (stack 6.2).
    for short, data in {**written, "Short": b"replaced"}.items():
        variable = found[short.encode().decode("latin-1")]
        assert (str(variable.guid), variable.attr, variable.data) == (GUID, 7, data)
    assert "Gone" not in found
    assert {"CustomMode", "certdb", "VendorKeysNv", "PlatformLang", "Boot0000"} <= set(found)
    assert found["certdb"].attr == AUTHENTICATED
    assert found["BootOrder"].data == b"\0\0\1\0"


def test_the_board_takes_a_store_that_virt_firmware_wrote(tmp_path: Path) -> None:
    board = Partition()
    assert board.set("Mine", b"kept") == EfiStatus.SUCCESS
    store = parsed(bytes(board.storage.content), tmp_path)
    variables = store.get_varlist()
    variables["Theirs"] = type(variables["Mine"])("Theirs", guid=GUID, attr=7, data=b"added")
    store.write_varstore(str(tmp_path / "new.fd"), variables)
    again = Partition(CuttableStorage((tmp_path / "new.fd").read_bytes()))
    assert [again.value(short) for short in ("Mine", "Theirs")] == [b"kept", b"added"]
    assert again.set("Theirs", b"changed") == EfiStatus.SUCCESS
    assert again.value("Theirs") == b"changed"
    assert isinstance(again.storage, MemoryStorage)


# Signed updates


class Signer:
    """A self-signed certificate and its key as PEM files."""

    def __init__(self, folder: Path, common_name: str, *, elliptic: bool = False) -> None:
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
            ec.generate_private_key(ec.SECP256R1())
            if elliptic
            else rsa.generate_private_key(65537, 2048)
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        today = datetime(2026, 1, 1, tzinfo=UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today)
            .not_valid_after(today + timedelta(days=3650))
            .sign(key, hashes.SHA256())
        )
        self.certificate = folder / f"{common_name}.crt"
        self.key = folder / f"{common_name}.key"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def signature_list(self) -> Path:
        """cert-to-efi-sig-list."""
        esl = self.certificate.with_suffix(".esl")
        run("cert-to-efi-sig-list", "-g", GUID, str(self.certificate), str(esl))
        return esl

    def sign(self, variable: str, content: Path, second: int, *options: str) -> bytes:
        """sign-efi-sig-list with a time in 2026."""
        auth = content.with_name(f"{variable}-{self.certificate.stem}-{second}.auth")
        time = f"2026-01-01 00:00:{second:02}"
        signer = ("-c", str(self.certificate), "-k", str(self.key))
        run("sign-efi-sig-list", *options, "-t", time, *signer, variable, str(content), str(auth))
        return auth.read_bytes()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@pytest.fixture
def efitools(need_tool: Need) -> None:
    need_tool("sign-efi-sig-list", "efitools")
    need_tool("cert-to-efi-sig-list", "efitools")


@pytest.fixture
def keys(tmp_path: Path, efitools: None) -> dict[str, Signer]:
    return {short: Signer(tmp_path, short) for short in ("PK", "KEK", "DB", "ATT")}


def refused(rig: Rig, variable: str, update: bytes, attributes: int = AUTHENTICATED) -> int | None:
    return errno_of(lambda: rig.write(variable, update, attributes=attributes))


@pytest.mark.cases(437)
def test_efitools_take_a_board_from_setup_to_user_mode(
    rig: Rig, keys: dict[str, Signer], tmp_path: Path
) -> None:
    pk, kek, db, att = (keys[short] for short in ("PK", "KEK", "DB", "ATT"))
    pk_list, kek_list, db_list = (signer.signature_list() for signer in (pk, kek, db))
    db_name = f"db-{IMAGE_SECURITY}"
    rig.write(db_name, kek.sign("db", db_list, 1), attributes=AUTHENTICATED)
    rig.write(f"KEK-{GLOBAL}", pk.sign("KEK", kek_list, 1), attributes=AUTHENTICATED)
    assert rig.read(f"SetupMode-{GLOBAL}") == b"\1"
    rig.write(f"PK-{GLOBAL}", pk.sign("PK", pk_list, 1), attributes=AUTHENTICATED)
    assert rig.read(f"SetupMode-{GLOBAL}") == b"\0"
    assert rig.read(f"PK-{GLOBAL}") == pk_list.read_bytes()
    # User mode: the right signer of each, a wrong one, an old time, a spoilt signature.
    rig.write(db_name, kek.sign("db", db_list, 3), attributes=AUTHENTICATED)
    rig.write(db_name, pk.sign("db", db_list, 4), attributes=AUTHENTICATED)
    assert refused(rig, db_name, att.sign("db", db_list, 5)) == EACCES
    assert refused(rig, db_name, kek.sign("db", db_list, 4)) == EACCES
    assert refused(rig, f"KEK-{GLOBAL}", kek.sign("KEK", kek_list, 5)) == EACCES
    spoilt = bytearray(kek.sign("db", db_list, 6))
    spoilt[-1] ^= 1
    assert refused(rig, db_name, bytes(spoilt)) == EACCES
    assert refused(rig, db_name, kek.sign("dbx", db_list, 7)) == EACCES
    # An append adds what is not there yet.
    att_list = att.signature_list()
    appended = kek.sign("db", att_list, 2, "-a")
    rig.write(db_name, appended, attributes=AUTHENTICATED | 0x40)
    assert rig.read(db_name) == db_list.read_bytes() + att_list.read_bytes()
    rig.write(db_name, appended, attributes=AUTHENTICATED | 0x40)
    assert rig.read(db_name) == db_list.read_bytes() + att_list.read_bytes()
    # Signed for appending is not signed for replacing.
    assert refused(rig, db_name, kek.sign("db", att_list, 9, "-a")) == EACCES
    # Keys are kept over a reboot, which arms Secure Boot.
    rig.reboot()
    assert rig.read(f"SecureBoot-{GLOBAL}") == b"\1"
    # No PK, signed by itself: setup mode again.
    nothing = tmp_path / "nothing.esl"
    nothing.write_bytes(b"")
    rig.write(f"PK-{GLOBAL}", pk.sign("PK", nothing, 8), attributes=AUTHENTICATED)
    assert rig.read(f"SetupMode-{GLOBAL}") == b"\1"


@pytest.mark.cases(288)
def test_a_list_with_an_elliptic_key_is_no_signature_list(
    rig: Rig, tmp_path: Path, efitools: None
) -> None:
    # Stack 4.7: CheckSignatureListFormat wants an RSA key.
    elliptic = Signer(tmp_path, "EC", elliptic=True)
    signer = Signer(tmp_path, "RSA")
    update = signer.sign("db", elliptic.signature_list(), 1)
    assert refused(rig, f"db-{IMAGE_SECURITY}", update) == EINVAL


def test_virt_firmware_reads_the_lists_that_efitools_made(
    keys: dict[str, Signer], tmp_path: Path
) -> None:
    siglist = pytest.importorskip("virt.firmware.efi.siglist", reason="needs virt-firmware")
    board = Partition()
    pk = keys["PK"]
    update = pk.sign("PK", pk.signature_list(), 1)
    assert board.set("PK", update, AUTHENTICATED, GLOBAL_VARIABLE_GUID) == EfiStatus.SUCCESS
    variable = parsed(bytes(board.storage.content), tmp_path).get_varlist()["PK"]
    (found,) = siglist.EfiSigDB(variable.data)
    assert str(found.guid) == "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
    certificate = x509.load_pem_x509_certificate(pk.certificate.read_bytes())
    assert certificate.public_bytes(serialization.Encoding.DER) in variable.data


def test_sbvarsign_makes_private_variables(
    make_rig: MakeRig, tmp_path: Path, need_tool: Need
) -> None:
    need_tool("sbvarsign", "sbsigntool")
    rig = make_rig()
    rig.boot()
    owner, other = Signer(tmp_path, "OWNER"), Signer(tmp_path, "OTHER")

    def signed(signer: Signer, content: bytes, variable: str = "Private") -> bytes:
        source, target = tmp_path / "content", tmp_path / "content.signed"
        source.write_bytes(content)
        attributes = "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS"
        key, certificate = str(signer.key), str(signer.certificate)
        options = ("--guid", GUID, "--attr", attributes, "--key", key, "--cert", certificate)
        run("sbvarsign", *options, "--output", str(target), variable, str(source))
        return target.read_bytes()

    rig.write(name("Private"), signed(owner, b"first"), attributes=AUTHENTICATED)
    assert rig.read(name("Private")) == b"first"
    assert refused(rig, name("Private"), signed(other, b"stolen")) == EACCES
    assert refused(rig, name("Other"), signed(owner, b"for another name")) == EACCES
    assert refused(rig, name("Private"), b"plain", 7) == EINVAL
    assert rig.read(name("Private")) == b"first"

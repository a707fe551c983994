"""Authenticated variables with the recorded signed updates (truth groups authA, authB, log)."""

from __future__ import annotations

import datetime
import functools
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.stmm.config import StmmConfig
from harness.formats.authentication import (
    CERT_SHA256_GUID,
    CERT_X509_GUID,
    Authentication2,
    SignatureList,
    signed_content,
)
from harness.formats.efi import (
    CERT_DB_GUID,
    CUSTOM_MODE_GUID,
    GLOBAL_VARIABLE_GUID,
    IMAGE_SECURITY_DATABASE_GUID,
    SECURE_BOOT_ENABLE_GUID,
    EfiStatus,
    EfiTime,
    encode_name,
)
from tests.emulation.stmm_client import VENDOR, Partition

AUTH = Path(__file__).parents[1] / "truth" / "auth"
OK, VIOLATION = EfiStatus.SUCCESS, EfiStatus.SECURITY_VIOLATION
GUIDS = {
    "PK": GLOBAL_VARIABLE_GUID,
    "KEK": GLOBAL_VARIABLE_GUID,
    "db": IMAGE_SECURITY_DATABASE_GUID,
    "dbx": IMAGE_SECURITY_DATABASE_GUID,
}


def put(board: Partition, name: str, file: str, attributes: int = 0x27) -> EfiStatus:
    data = (AUTH / f"{file}.auth").read_bytes()
    return board.set(name, data, attributes, GUIDS.get(name, VENDOR))


def size(board: Partition, name: str) -> int | None:
    value = board.value(name, GUIDS.get(name, VENDOR))
    return None if value is None else len(value)


def mode(board: Partition, name: str = "SetupMode") -> bytes | None:
    return board.value(name, GLOBAL_VARIABLE_GUID)


def enrolled() -> Partition:
    board = Partition()
    for name in ("KEK", "db", "dbx", "PK"):
        assert put(board, name, name) == OK
    return board


def test_private_variable_as_recorded() -> None:
    """Group authA, in its order."""
    board = Partition()
    board.exit_boot_services()
    steps = (
        ("priv1", 0x27, OK, 11),
        ("priv1", 0x27, VIOLATION, 11),
        ("priv-by-ATT", 0x27, VIOLATION, 11),
        ("priv2", 0x27, OK, 19),
        ("priv1", 0x27, VIOLATION, 19),
        ("priv-app", 0x67, OK, 38),
        ("priv-othername", 0x27, VIOLATION, 38),
        ("priv-del", 0x27, OK, None),
        ("priv1", 0x27, OK, 11),
        ("priv-del", 0x27, OK, None),
    )
    for file, attributes, status, length in steps:
        assert (put(board, "APriv", file, attributes), size(board, "APriv")) == (status, length)
    assert board.value("certdb", CERT_DB_GUID) == struct.pack("<I", 4)
    assert put(board, "A4096", "a4096") == OK


def test_private_variable_costs() -> None:
    board = Partition()
    costs = []
    for file in ("priv1", "priv2", "priv-del"):
        before = len(board.storage.writes)
        assert put(board, "APriv", file) == OK
        costs.append(len(board.storage.writes) - before)
    assert costs == [6, 4, 5]


def test_plain_access_to_a_private_variable() -> None:
    board = Partition()
    assert put(board, "APriv", "priv1") == OK
    assert board.set("APriv", b"plain") == EfiStatus.INVALID_PARAMETER
    assert board.set("APriv", b"", 0) == EfiStatus.WRITE_PROTECTED


def test_keys_as_recorded() -> None:
    """Group authB: in setup mode the signer does not matter, in user mode it does."""
    board = Partition()
    board.exit_boot_services()
    steps = (
        ("db", "db", OK, 819, b"\1"),
        ("KEK", "KEK-by-ATT", OK, 821, b"\1"),
        ("KEK", "KEK", OK, 821, b"\1"),
        ("PK", "PK2-by-ATT", OK, 821, b"\0"),
        ("PK", "PK", VIOLATION, 821, b"\0"),
        ("KEK", "KEK-by-ATT", VIOLATION, 821, b"\0"),
    )
    for name, file, status, length, setup in steps:
        assert (put(board, name, file), size(board, name)) == (status, length), file
        assert mode(board) == setup
    assert mode(board, "SecureBoot") == b"\0"


def test_user_mode_before_exit_boot_services_as_recorded() -> None:
    """Log file-setupmode: SecureBoot follows, and the rightful keys may change each other."""
    board = enrolled()
    assert (mode(board), mode(board, "SecureBoot")) == (b"\0", b"\1")
    assert board.value("SecureBootEnable", SECURE_BOOT_ENABLE_GUID) == b"\1"
    board.boot()
    assert (mode(board), mode(board, "SecureBoot")) == (b"\0", b"\1")
    steps = (
        ("KEK", "KEK-by-ATT", VIOLATION),
        ("db", "db-by-ATT", VIOLATION),
        ("db", "db-del-by-ATT", OK),
        ("db", "db-t10", OK),
        ("PK", "PK2-by-ATT", VIOLATION),
        ("PK", "PK2-by-PK", OK),
        ("KEK", "KEK-del", OK),
        ("PK", "PK-by-PK2", OK),
        ("KEK", "KEK-del", EfiStatus.NOT_FOUND),
    )
    for name, file, status in steps:
        assert put(board, name, file) == status, file
    assert board.set("PK", b"plain", 7, GLOBAL_VARIABLE_GUID) == EfiStatus.INVALID_PARAMETER
    assert board.set("PK", b"", 0, GLOBAL_VARIABLE_GUID) == EfiStatus.INVALID_PARAMETER
    assert put(board, "PK", "PK-del") == OK
    assert (mode(board), mode(board, "SecureBoot")) == (b"\1", b"\0")
    assert board.value("SecureBootEnable", SECURE_BOOT_ENABLE_GUID) is None
    assert put(board, "PK", "PK-del") == EfiStatus.NOT_FOUND


DELETIONS = ("KEK", "PK", "dbx", "db", "APriv")


def test_anybody_deletes_in_user_mode_without_the_policy_engine() -> None:
    """Log auth-delete-by-att."""
    board = enrolled()
    assert put(board, "APriv", "priv1") == OK
    board.exit_boot_services()
    assert put(board, "db", "db-PK2-by-ATT-t55") == VIOLATION
    for name in DELETIONS:
        file = "priv" if name == "APriv" else name
        assert put(board, name, f"{file}-del-by-ATT") == OK, name
        assert size(board, name) is None
    assert mode(board) == b"\1"
    assert board.value("certdb", CERT_DB_GUID) == struct.pack("<I", 4)


def test_with_the_policy_engine_a_deletion_needs_the_rightful_signature() -> None:
    """Private variables go all the same: user presence is always asserted."""
    board = Partition(config=StmmConfig(variable_policy=True))
    for name in ("KEK", "db", "dbx", "PK"):
        assert put(board, name, name) == OK
    for name in ("db", "dbx", "KEK", "PK"):
        assert put(board, name, f"{name}-del-by-ATT") == VIOLATION, name
        assert put(board, name, f"{name}-del") == OK, name


def test_append_filters_what_is_there_and_ignores_the_time() -> None:
    board = enrolled()
    assert size(board, "db") == 819
    assert put(board, "db", "db-append-t02", 0x67) == OK
    grown = size(board, "db")
    assert grown is not None
    assert grown > 819
    assert put(board, "db", "db-append-t02", 0x67) == OK
    assert size(board, "db") == grown


def test_db_signed_by_pk_and_replay() -> None:
    board = enrolled()
    assert put(board, "db", "db") == VIOLATION
    assert put(board, "db", "db-t10") == OK
    assert put(board, "db", "db-t05") == VIOLATION


def test_db_needs_kek_when_pk_did_not_sign() -> None:
    board = Partition()
    assert put(board, "PK", "PK") == OK
    assert put(board, "db", "db") == EfiStatus.NOT_FOUND


def test_custom_mode_needs_no_signature_and_marks_the_vendor_keys() -> None:
    board = enrolled()
    assert mode(board, "VendorKeys") == b"\1"
    assert board.set("CustomMode", b"\1", 3, CUSTOM_MODE_GUID) == OK
    assert put(board, "KEK", "KEK-by-ATT") == OK
    assert mode(board, "VendorKeys") == b"\0"
    board.boot()
    assert mode(board, "VendorKeys") == b"\0"
    assert board.value("CustomMode", CUSTOM_MODE_GUID) == b"\0"
    assert put(board, "KEK", "KEK-by-ATT") == VIOLATION


@pytest.mark.parametrize("position", [0, 6, 8, 12, 22, 24, 60, 300, 1100, -1])
def test_one_changed_byte_is_refused(position: int) -> None:
    """Time (padding, nanoseconds, zone), certificate type and GUID, digest, signature, value."""
    board = Partition()
    data = bytearray((AUTH / "priv1.auth").read_bytes())
    data[position] ^= 0x40
    assert board.set("APriv", bytes(data), 0x27) == VIOLATION
    assert size(board, "APriv") is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([("APriv", "priv1"), ("KEK", "KEK"), ("db", "db-t10")]),
    st.lists(st.tuples(st.integers(16, 2100), st.integers(0, 255)), min_size=1, max_size=4),
    st.none() | st.integers(41, 2000),
)
def test_damaged_updates_never_raise(
    which: tuple[str, str], damage: list[tuple[int, int]], cut: int | None
) -> None:
    board = _enrolled_once()
    name, file = which
    data = bytearray((AUTH / f"{file}.auth").read_bytes()[:cut])
    for position, value in damage:
        data[position % len(data)] = value
    status = board.set(name, bytes(data), 0x27, GUIDS.get(name, VENDOR))
    # NOT_FOUND: an earlier example may have emptied, and so deleted, KEK.
    assert status in (OK, VIOLATION, EfiStatus.INVALID_PARAMETER, EfiStatus.NOT_FOUND)
    assert board.query()[0] == OK


@functools.cache
def _enrolled_once() -> Partition:
    return enrolled()


def test_descriptor_cut_short() -> None:
    board = Partition()
    data = (AUTH / "priv1.auth").read_bytes()
    for length in (0, 16, 39, 40, len(data) - 12):
        assert board.set("APriv", data[:length], 0x27) == VIOLATION


class TestSelfMade:
    """Updates signed here, for what the record has no file for."""

    OWNER = UUID(int=1).bytes_le

    @staticmethod
    def signer(name: str, *, rsa: bool = True) -> tuple[bytes, object, object]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric import rsa as rsa_keys
        from cryptography.x509.oid import NameOID

        key = (
            rsa_keys.generate_private_key(65537, 2048)
            if rsa
            else ec.generate_private_key(ec.SECP256R1())
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER), certificate, key

    @staticmethod
    def update(
        name: str,
        guid: UUID,
        payload: bytes,
        signer: tuple[bytes, object, object],
        *,
        day: int = 1,
        attributed: bool = False,
        attributes: int = 0x27,
    ) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import pkcs7

        _, certificate, key = signer
        assert isinstance(certificate, x509.Certificate)
        assert isinstance(key, RSAPrivateKey)
        time = EfiTime(2026, 2, day)
        content = signed_content(
            encode_name(name)[:-2], guid.bytes_le, attributes, time.pack(), payload
        )
        options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
        if not attributed:
            options.append(pkcs7.PKCS7Options.NoAttributes)
        message = (
            pkcs7.PKCS7SignatureBuilder()
            .set_data(content)
            .add_signer(certificate, key, hashes.SHA256())
            .sign(serialization.Encoding.DER, options)
        )
        return Authentication2(time, message).pack() + payload

    @pytest.mark.parametrize("attributed", [False, True])
    def test_content_info_and_signed_attributes(self, attributed: bool) -> None:
        board = Partition()
        signer = self.signer("one")
        data = self.update("Own", VENDOR, b"value", signer, attributed=attributed)
        assert board.set("Own", data, 0x27) == OK
        later = self.update("Own", VENDOR, b"other", signer, day=2, attributed=attributed)
        assert board.set("Own", later, 0x27) == OK
        stranger = self.update("Own", VENDOR, b"third", self.signer("one"), day=3)
        assert board.set("Own", stranger, 0x27) == VIOLATION

    def test_volatile_private_variable_uses_certdbv(self) -> None:
        board = Partition()
        signer = self.signer("volatile")
        other_attributes = self.update("V", VENDOR, b"x", signer)
        assert board.set("V", other_attributes, 0x26) == VIOLATION
        assert board.value("certdbv", CERT_DB_GUID) == struct.pack("<I", 4)
        data = self.update("V", VENDOR, b"x", signer, attributes=0x26)
        assert board.set("V", data, 0x26) == OK
        database = board.value("certdbv", CERT_DB_GUID)
        assert database is not None
        assert len(database) == 4 + 28 + 2 + 32
        board.boot()
        assert board.value("V") is None
        assert board.value("certdbv", CERT_DB_GUID) == struct.pack("<I", 4)

    def test_certdb_survives_and_is_cleaned(self) -> None:
        """A signer whose variable a power cut left out is forgotten at the next start."""
        board = Partition()
        assert put(board, "APriv", "priv1") == OK
        database = board.value("certdb", CERT_DB_GUID)
        assert database is not None
        assert len(database) == 4 + 28 + 10 + 32
        board.boot()
        assert board.value("certdb", CERT_DB_GUID) == database
        header = encode_name("APriv")
        place = bytes(board.storage.content).rindex(header) - 60
        board.storage.content[place + 2] = 0x3D
        board.boot()
        assert size(board, "APriv") is None
        assert board.value("certdb", CERT_DB_GUID) == struct.pack("<I", 4)

    @pytest.mark.parametrize(
        ("kind", "good"),
        [("sha256", True), ("two", False), ("short", False), ("unknown", False), ("ec", False)],
    )
    def test_signature_list_format_of_pk(self, kind: str, good: bool) -> None:
        board = Partition()
        digest = self.OWNER + bytes(32)
        rsa = self.OWNER + self.signer("a")[0]
        lists = {
            "sha256": SignatureList(CERT_SHA256_GUID, (digest,)),
            "two": SignatureList(CERT_X509_GUID, (rsa, rsa)),
            "short": SignatureList(CERT_SHA256_GUID, (digest[:-1],)),
            "unknown": SignatureList(VENDOR, (digest,)),
            "ec": SignatureList(CERT_X509_GUID, (self.OWNER + self.signer("e", rsa=False)[0],)),
        }
        data = Authentication2(EfiTime(2026, 1, 1), b"").pack() + lists[kind].pack()
        expected = OK if good else EfiStatus.INVALID_PARAMETER
        assert board.set("PK", data, 0x27, GLOBAL_VARIABLE_GUID) == expected
        damaged = Authentication2(EfiTime(2026, 1, 1), b"").pack() + lists[kind].pack() + b"x"
        status = board.set("KEK", damaged, 0x27, GLOBAL_VARIABLE_GUID)
        assert status in (EfiStatus.INVALID_PARAMETER, VIOLATION)

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
from harness.formats.mm import VariableFunction as Fn
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


@pytest.mark.cases(244, 245, 247, 248, 249, 251, 252, 254)
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


@pytest.mark.cases(256, 257)
def test_plain_access_to_a_private_variable() -> None:
    board = Partition()
    assert put(board, "APriv", "priv1") == OK
    assert board.set("APriv", b"plain") == EfiStatus.INVALID_PARAMETER
    assert board.set("APriv", b"", 0) == EfiStatus.WRITE_PROTECTED


@pytest.mark.cases(267, 268)
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


@pytest.mark.cases(266, 267, 269, 276, 284, 294)
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


@pytest.mark.cases(285)
@pytest.mark.parametrize(("armed", "status"), [(False, OK), (True, EfiStatus.INVALID_PARAMETER)])
def test_db_of_another_guid_is_no_key(armed: bool, status: EfiStatus) -> None:
    """It is a plain variable until READY_TO_BOOT lets only names of the specification in."""
    board = enrolled()
    if armed:
        assert board.status(Fn.READY_TO_BOOT) == OK
    assert board.set("db", b"plain", 7, GLOBAL_VARIABLE_GUID) == status
    assert board.value("db", GLOBAL_VARIABLE_GUID) == (b"plain" if status == OK else None)
    assert size(board, "db") == 819


DELETIONS = ("KEK", "PK", "dbx", "db", "APriv")


@pytest.mark.cases(255)
@pytest.mark.pain(26)
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


@pytest.mark.cases(252, 280, 281)
def test_append_filters_what_is_there_and_ignores_the_time() -> None:
    board = enrolled()
    assert size(board, "db") == 819
    assert put(board, "db", "db-append-t02", 0x67) == OK
    grown = size(board, "db")
    assert grown is not None
    assert grown > 819
    assert put(board, "db", "db-append-t02", 0x67) == OK
    assert size(board, "db") == grown


@pytest.mark.cases(273, 277, 248)
def test_db_signed_by_pk_and_replay() -> None:
    board = enrolled()
    assert put(board, "db", "db") == VIOLATION
    assert put(board, "db", "db-t10") == OK
    assert put(board, "db", "db-t05") == VIOLATION


@pytest.mark.cases(269)
def test_db_needs_kek_when_pk_did_not_sign() -> None:
    board = Partition()
    assert put(board, "PK", "PK") == OK
    assert put(board, "db", "db") == EfiStatus.NOT_FOUND


@pytest.mark.cases(291, 292)
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
@pytest.mark.cases(238, 239, 240, 246, 259, 260)
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


@pytest.mark.cases(237)
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
        time: EfiTime | None = None,
        algorithm: str = "sha256",
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
        time = time or EfiTime(2026, 2, day)
        digests: dict[str, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
            "sha256": hashes.SHA256(),
            "sha384": hashes.SHA384(),
            "sha512": hashes.SHA512(),
        }
        content = signed_content(
            encode_name(name)[:-2], guid.bytes_le, attributes, time.pack(), payload
        )
        options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
        if not attributed:
            options.append(pkcs7.PKCS7Options.NoAttributes)
        message = (
            pkcs7.PKCS7SignatureBuilder()
            .set_data(content)
            .add_signer(certificate, key, digests[algorithm])
            .sign(serialization.Encoding.DER, options)
        )
        return Authentication2(time, message).pack() + payload

    @pytest.mark.parametrize("attributed", [False, True])
    @pytest.mark.cases(243)
    def test_content_info_and_signed_attributes(self, attributed: bool) -> None:
        board = Partition()
        signer = self.signer("one")
        data = self.update("Own", VENDOR, b"value", signer, attributed=attributed)
        assert board.set("Own", data, 0x27) == OK
        later = self.update("Own", VENDOR, b"other", signer, day=2, attributed=attributed)
        assert board.set("Own", later, 0x27) == OK
        stranger = self.update("Own", VENDOR, b"third", self.signer("one"), day=3)
        assert board.set("Own", stranger, 0x27) == VIOLATION

    @pytest.mark.cases(242)
    @pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
    def test_digests_that_are_known(self, algorithm: str) -> None:
        data = self.update("Own", VENDOR, b"value", self.signer("one"), algorithm=algorithm)
        board = Partition()
        assert board.set("Own", data, 0x27) == OK
        assert board.value("Own") == b"value"

    @pytest.mark.cases(241)
    @pytest.mark.parametrize(("digest", "status"), [("sha1", VIOLATION), ("sha256", OK)])
    def test_a_sha1_digest_is_refused(self, digest: str, status: EfiStatus) -> None:
        from asn1crypto import cms
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

        signer = self.signer("one")
        key = signer[2]
        assert isinstance(key, RSAPrivateKey)
        update, _ = Authentication2.split(self.update("Own", VENDOR, b"", signer))
        message = cms.ContentInfo.load(update.pkcs7)
        signed = message["content"]
        content = signed_content(
            encode_name("Own")[:-2], VENDOR.bytes_le, 0x27, update.time.pack(), b"value"
        )
        algorithm = hashes.SHA1() if digest == "sha1" else hashes.SHA256()
        signed["digest_algorithms"] = [{"algorithm": digest}]
        signed["signer_infos"][0]["digest_algorithm"] = {"algorithm": digest}
        signed["signer_infos"][0]["signature"] = key.sign(content, padding.PKCS1v15(), algorithm)
        data = Authentication2(update.time, message.dump(force=True)).pack() + b"value"
        assert Partition().set("Own", data, 0x27) == status

    @pytest.mark.cases(250)
    def test_a_later_year_counts_before_the_month(self) -> None:
        board = Partition()
        signer = self.signer("one")
        for month, year, status in ((12, 2025, OK), (1, 2026, OK), (12, 2025, VIOLATION)):
            time = EfiTime(year, month, 1)
            data = self.update("Own", VENDOR, bytes([month]), signer, time=time)
            assert board.set("Own", data, 0x27) == status

    @pytest.mark.cases(253, 261)
    def test_a_signature_is_for_one_guid_and_one_set_of_attributes(self) -> None:
        board = Partition()
        signer = self.signer("one")
        assert board.set("Own", self.update("Own", VENDOR, b"1", signer), 0x27) == OK
        plain = self.update("Own", VENDOR, b"2", signer, day=2)
        assert board.set("Own", plain, 0x67) == VIOLATION
        assert board.set("Own", plain, 0x27, UUID(int=5)) == VIOLATION
        assert board.value("Own") == b"1"
        appended = self.update("Own", VENDOR, b"2", signer, day=2, attributes=0x67)
        assert board.set("Own", appended, 0x67) == OK
        assert board.value("Own") == b"12"

    @pytest.mark.cases(258)
    def test_a_deleted_name_is_free_for_another_key(self) -> None:
        board = Partition()
        first, second = self.signer("one"), self.signer("two")
        assert board.set("Own", self.update("Own", VENDOR, b"1", first), 0x27) == OK
        assert board.set("Own", self.update("Own", VENDOR, b"2", second, day=2), 0x27) == VIOLATION
        assert board.set("Own", self.update("Own", VENDOR, b"", first, day=3), 0x27) == OK
        assert board.set("Own", self.update("Own", VENDOR, b"2", second), 0x27) == OK
        assert board.value("Own") == b"2"

    @pytest.mark.cases(264)
    def test_certdb_has_an_end(self) -> None:
        board = Partition()
        signer = self.signer("one")
        names = [f"{number:02}".ljust(300, "n") for number in range(40)]
        created = 0
        for name in names:
            status = board.set(name, self.update(name, VENDOR, b"x", signer), 0x27)
            if status != OK:
                # InsertCertsToDb has no room; VerifyTimeBasedPayload has one answer to all.
                assert status == VIOLATION
                break
            created += 1
        assert 0 < created < len(names)
        assert [board.value(name) for name in names[:created]] == [b"x"] * created
        assert board.value(names[created]) is None
        board.boot()
        assert [board.value(name) for name in names[:created]] == [b"x"] * created

    @pytest.mark.cases(270, 271, 272, 274, 275, 278, 279, 282)
    def test_who_may_change_which_key(self) -> None:
        """In user mode: PK signs PK and KEK, KEK signs db and dbx, and AT is never left out."""
        board = Partition()
        pk, kek, db = self.signer("PK"), self.signer("KEK"), self.signer("db")

        def put(
            name: str,
            of: tuple[bytes, object, object],
            by: tuple[bytes, object, object],
            day: int,
            attributes: int = 0x27,
        ) -> EfiStatus:
            payload = SignatureList(CERT_X509_GUID, (self.OWNER + of[0],)).pack()
            guid = GUIDS[name]
            data = self.update(name, guid, payload, by, day=day, attributes=attributes)
            return board.set(name, data, attributes, guid)

        for name, of in (("db", db), ("KEK", kek), ("PK", pk)):
            assert put(name, of, pk, 1) == OK
        assert mode(board) == b"\0"
        assert put("KEK", kek, pk, 2) == OK
        assert put("KEK", kek, kek, 3) == VIOLATION
        assert put("db", db, kek, 4) == OK
        assert put("dbx", db, kek, 4) == OK
        assert put("db", db, db, 5) == VIOLATION
        assert put("db", kek, db, 5, 0x67) == VIOLATION
        before = {name: size(board, name) for name in GUIDS}
        plain = SignatureList(CERT_X509_GUID, (self.OWNER + db[0],)).pack()
        for name, guid in GUIDS.items():
            for attributes in (0x07, 0x47):
                status = board.set(name, plain, attributes, guid)
                assert status == EfiStatus.INVALID_PARAMETER, (name, attributes)
            assert board.set(name, b"", 0x07, guid) != OK
            assert board.set(name, b"", 0x27, guid) == VIOLATION
        assert {name: size(board, name) for name in GUIDS} == before

    @pytest.mark.cases(290)
    def test_in_setup_mode_times_are_not_compared(self) -> None:
        board = Partition()
        kek = self.signer("KEK")
        payload = SignatureList(CERT_X509_GUID, (self.OWNER + kek[0],)).pack()
        for day in (9, 2):
            data = self.update("KEK", GLOBAL_VARIABLE_GUID, payload, kek, day=day)
            assert board.set("KEK", data, 0x27, GLOBAL_VARIABLE_GUID) == OK

    @pytest.mark.cases(262)
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

    @pytest.mark.cases(263)
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
    @pytest.mark.cases(286, 287, 288, 289)
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

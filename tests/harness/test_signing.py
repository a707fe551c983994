"""Signed updates as independent tools read them: openssl, efitools, sbsigntool."""

from __future__ import annotations

import functools
import shutil
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from asn1crypto import cms

from harness.formats.authentication import (
    CERT_X509_GUID,
    Authentication2,
    parse_signature_lists,
    signed_content,
)
from harness.formats.efi import IMAGE_SECURITY_DATABASE_GUID, EfiTime, encode_name
from harness.signing import (
    APPENDED,
    AUTHENTICATED,
    OWNER,
    Digest,
    Signer,
    certificate_list,
    digest_list,
    elliptic_certificate,
    moment,
    unsigned,
)
from tests.pace import HANGS

SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
GUID = UUID("6f0e6f5c-2f43-4c0e-9b1f-5a4c8d7be2a1")


@functools.cache
def signer(common_name: str) -> Signer:
    return Signer.create(common_name)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=HANGS, check=False
    )


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def verified(directory: Path, message: bytes, content: bytes) -> bool:
    """Whether openssl finds the detached signature good, whoever the signer is."""
    need("openssl")
    if SIGNED_DATA not in message[:16]:
        signed = cms.SignedData.load(message)
        message = cms.ContentInfo({"content_type": "signed_data", "content": signed}).dump()
    for name, data in (("message", message), ("content", content)):
        (directory / name).write_bytes(data)
    result = run(
        *("openssl", "smime", "-verify", "-noverify", "-binary", "-inform", "DER"),
        *("-in", directory / "message", "-content", directory / "content"),
        *("-out", directory / "out"),
    )
    return result.returncode == 0


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
def test_openssl_verifies_what_we_sign(tmp_path: Path, digest: Digest) -> None:
    message = signer("one").sign(b"content", digest=digest, content_info=True)
    assert verified(tmp_path, message, b"content")
    assert not verified(tmp_path, message, b"c0ntent")


def test_without_content_info_it_is_the_content_of_the_content_info() -> None:
    bare = signer("one").sign(b"content")
    assert signer("one").sign(b"content", content_info=True).endswith(bare)
    # Where EDK2 looks for the digest algorithm's OID: stack 4.7.
    assert bare[13:22] == bytes.fromhex("608648016503040201")


def test_an_update_signs_name_guid_attributes_time_and_payload(tmp_path: Path) -> None:
    time = EfiTime(2026, 2, 3, 4, 5, 6)
    data = signer("one").update("Näme", GUID, b"payload", time, content_info=True)
    descriptor, payload = Authentication2.split(data)
    assert (descriptor.time, payload) == (time, b"payload")
    for name, attributes, right in (
        ("Näme", AUTHENTICATED, True),
        ("Name", AUTHENTICATED, False),
        ("Näme", APPENDED, False),
    ):
        content = signed_content(
            encode_name(name)[:-2], GUID.bytes_le, attributes, time.pack(), b"payload"
        )
        assert verified(tmp_path, descriptor.pkcs7, content) == right


def test_the_content_is_what_efitools_signs(tmp_path: Path) -> None:
    """sign-efi-sig-list -o writes the bytes to be signed."""
    need("sign-efi-sig-list")
    payload = certificate_list(signer("one").certificate)
    (tmp_path / "list").write_bytes(payload)
    time = EfiTime(2026, 2, 3, 4, 5, 6)
    made = run(
        *("sign-efi-sig-list", "-o", "-t", "2026-02-03 04:05:06"),
        *("db", tmp_path / "list", tmp_path / "out"),
    )
    assert made.returncode == 0, made.stderr
    expected = signed_content(
        encode_name("db")[:-2],
        IMAGE_SECURITY_DATABASE_GUID.bytes_le,
        AUTHENTICATED,
        time.pack(),
        payload,
    )
    assert (tmp_path / "out").read_bytes() == expected


def test_sbvarsign_signs_the_same_content(tmp_path: Path) -> None:
    need("sbvarsign")
    signer("one").save(tmp_path, "one")
    pem = ssl.DER_cert_to_PEM_cert(signer("one").certificate)
    (tmp_path / "one.crt").write_text(pem, "ascii")
    (tmp_path / "payload").write_bytes(b"payload")
    made = run(
        *("sbvarsign", "--key", tmp_path / "one.key", "--cert", tmp_path / "one.crt"),
        *("--attr", "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS", "--guid", str(GUID)),
        *("--output", tmp_path / "out", "Name", tmp_path / "payload"),
    )
    assert made.returncode == 0, made.stderr
    theirs, payload = Authentication2.split((tmp_path / "out").read_bytes())
    ours, _ = Authentication2.split(signer("one").update("Name", GUID, payload, theirs.time))
    assert replace(theirs, pkcs7=b"") == replace(ours, pkcs7=b"")
    content = signed_content(
        encode_name("Name")[:-2], GUID.bytes_le, AUTHENTICATED, theirs.time.pack(), payload
    )
    assert verified(tmp_path, theirs.pkcs7, content)
    assert verified(tmp_path, ours.pkcs7, content)


def test_efitools_reads_our_certificates(tmp_path: Path) -> None:
    need("sig-list-to-certs")
    certificates = [signer("one").certificate, signer("two").certificate]
    (tmp_path / "list").write_bytes(certificate_list(*certificates))
    assert run("sig-list-to-certs", tmp_path / "list", tmp_path / "cert").returncode == 0
    found = [(tmp_path / f"cert-{number}.der").read_bytes() for number in range(2)]
    assert found == certificates


def test_signature_lists_parse_back() -> None:
    digests = (bytes(32), bytes([1]) * 32)
    (found,) = parse_signature_lists(digest_list(*digests))
    assert found.entries == tuple(OWNER.bytes_le + digest for digest in digests)
    (found,) = parse_signature_lists(certificate_list(elliptic_certificate("curve")))
    assert found.type == CERT_X509_GUID


def test_a_pair_is_kept_in_files_for_its_owner_only(tmp_path: Path) -> None:
    made = Signer.kept(tmp_path, "PK")
    again = Signer.kept(tmp_path, "PK")
    assert again.certificate == made.certificate
    assert again.sign(b"content") == made.sign(b"content")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"PK.key": 0o600, "PK.der": 0o600}


def test_a_pair_without_its_certificate_is_made_anew(tmp_path: Path) -> None:
    """A run killed between the two files never enrolled it."""
    made = Signer.kept(tmp_path, "PK")
    (tmp_path / "PK.der").unlink()
    assert Signer.kept(tmp_path, "PK").certificate != made.certificate


def test_moments_ascend() -> None:
    moments = [moment(seconds).pack() for seconds in (0, 59, 60, 3599, 3600, 86399, 86400)]
    assert moments == sorted(moments)
    assert moment(86399) == EfiTime(2026, 1, 1, 23, 59, 59)


def test_unsigned_is_a_whole_descriptor_with_an_empty_message() -> None:
    descriptor, payload = Authentication2.split(unsigned(b"x", moment(0)))
    assert (descriptor.pkcs7, payload) == (b"", b"x")

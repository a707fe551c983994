"""Verification of PKCS#7 SignedData over detached content.

Source: ED CryptoPkg/Library/BaseCryptLib/Pk/CryptPkcs7VerifyCommon.c: OpenSSL's PKCS7_verify with
one trusted certificate, partial chains allowed, times and purposes ignored; RFC 2315.

On hostile input the libraries raise whatever they like (asn1crypto's lazy parsing, cryptography's
UnsupportedAlgorithm and InvalidVersion), so the functions here take any Exception for "malformed".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

_SIGNED_DATA_OID: Final = bytes.fromhex("06092a864886f70d010702")
_MAX_CHAIN: Final = 10
DIGESTS: Final = ("sha256", "sha384", "sha512")
_DIGEST_OIDS: Final = {
    name: bytes.fromhex("6086480165030402" + f"{number:02x}")
    for number, name in enumerate(DIGESTS, start=1)
}


class Malformed(Exception):
    """The message is not PKCS#7 SignedData with a certificate for every signer."""


@dataclass(frozen=True, slots=True)
class Signers:
    """``first`` and ``last`` certificate of the signers, DER; with one signer they are the same.

    EDK2 calls the first the top-level certificate and takes the common name from the last.
    """

    first: bytes
    last: bytes


def digest_name(message: bytes) -> str | None:
    """Digest algorithm where EDK2 looks for it: at a fixed offset, with or without ContentInfo.

    None if it is not SHA-256, SHA-384 or SHA-512, or lengths are not two bytes long.
    """
    for name, oid in _DIGEST_OIDS.items():
        for length_at, oid_at in ((1, 13), (20, 32)):
            enough = len(message) >= oid_at + len(oid)
            if enough and message[length_at] & 0x82 == 0x82 and message[oid_at:].startswith(oid):
                return name
    return None


def signers(message: bytes) -> Signers:
    """Certificates of the signers; Malformed."""
    try:
        found = _signer_certificates(_parse(message))
    except Exception as error:
        raise Malformed from error
    return Signers(found[0], found[-1])


def verify(message: bytes, trusted: bytes, content: bytes) -> bool:
    """Whether every signature is good and leads to the ``trusted`` certificate (DER)."""
    try:
        signed = _parse(message)
        certificates = [choice.chosen.dump() for choice in signed["certificates"]]
        leaves = _signer_certificates(signed)
        infos = list(signed["signer_infos"])
        return all(
            _leads_to(leaf, trusted, certificates) and _signature_good(info, leaf, content)
            for info, leaf in zip(infos, leaves, strict=True)
        )
    except Exception:
        return False


def common_name(certificate: bytes) -> bytes | None:
    """Common name of the subject in UTF-8, cut as EDK2's 128-byte buffer cuts it, or None."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        names = x509.load_der_x509_certificate(certificate).subject
        value = names.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    except Exception:
        return None
    raw = value.encode() if isinstance(value, str) else value
    return raw[:127].partition(b"\0")[0]


def chain_digest(message_digest: str, found: Signers) -> bytes | None:
    """Digest over the signer's common name and the top-level certificate's signed part.

    This identifies the owner of a private authenticated variable; None if there is no name.
    """
    from cryptography import x509

    name = common_name(found.last)
    if name is None:
        return None
    try:
        body = x509.load_der_x509_certificate(found.first).tbs_certificate_bytes
    except Exception:
        return None
    return hashlib.new(message_digest, name + body).digest()


def has_rsa_key(certificate: bytes) -> bool:
    """Whether this is a DER X.509 certificate with an RSA key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except Exception:
        return False
    return isinstance(key, rsa.RSAPublicKey)


def _parse(message: bytes) -> Any:
    from asn1crypto import cms

    if _SIGNED_DATA_OID in message[:16]:
        return cms.ContentInfo.load(message)["content"]
    return cms.SignedData.load(message)


def _signer_certificates(signed: Any) -> list[bytes]:
    """One certificate for each signer, in order; ValueError if one is missing."""
    by_identity = {
        (cert.chosen.issuer.dump(), cert.chosen.serial_number): cert.chosen.dump()
        for cert in signed["certificates"]
    }
    found = []
    for info in signed["signer_infos"]:
        identity = info["sid"].chosen
        key = (identity["issuer"].dump(), identity["serial_number"].native)
        if key not in by_identity:
            raise ValueError("no certificate for a signer")
        found.append(by_identity[key])
    if not found:
        raise ValueError("no signer")
    return found


def _leads_to(leaf: bytes, trusted: bytes, others: Sequence[bytes]) -> bool:
    """Whether a chain of signatures leads from ``leaf`` to ``trusted``."""
    from cryptography import x509

    if leaf == trusted:
        return True
    anchor = x509.load_der_x509_certificate(trusted)
    pool = [x509.load_der_x509_certificate(other) for other in others]
    current = x509.load_der_x509_certificate(leaf)
    for _ in range(_MAX_CHAIN):
        if _issued_by(current, anchor):
            return True
        issuer = next((c for c in pool if c != current and _issued_by(current, c)), None)
        if issuer is None:
            return False
        current = issuer
    return False


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _signature_good(info: Any, certificate: bytes, content: bytes) -> bool:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    digest = info["digest_algorithm"]["algorithm"].native
    algorithm = _hash(digest)
    signed = content
    attributes = info["signed_attrs"]
    if len(attributes):
        values = {a["type"].native: a["values"] for a in attributes}
        claimed = values["message_digest"][0].native
        if claimed != hashlib.new(digest, content).digest():
            return False
        # The signature covers the attributes as a SET, not as the [0] they are stored under.
        signed = attributes.untag().dump()
    key = x509.load_der_x509_certificate(certificate).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(info["signature"].native, signed, padding.PKCS1v15(), algorithm)
    except InvalidSignature:
        return False
    return True


def _hash(name: str) -> hashes.HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    known: dict[str, hashes.HashAlgorithm] = {
        "sha1": hashes.SHA1(),
        "sha224": hashes.SHA224(),
        "sha256": hashes.SHA256(),
        "sha384": hashes.SHA384(),
        "sha512": hashes.SHA512(),
    }
    return known[name]

"""Keys, signature lists and signed updates of authenticated variables, made by the harness.

Sources: UEFI 2.10, sections 8.2.2 and 32.4.1; RFC 2315; stack 4.6 and 4.7.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

from harness.formats.authentication import (
    CERT_SHA256_GUID,
    CERT_X509_GUID,
    Authentication2,
    SignatureList,
    signed_content,
)
from harness.formats.efi import Attributes, EfiTime, encode_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

Digest = Literal["sha1", "sha256", "sha384", "sha512"]

OWNER: Final = UUID("5d1c4a57-9a4e-4d2b-8f63-0b7f6f1de3c9")
"""SignatureOwner of every entry that the harness enrols."""

AUTHENTICATED: Final = (
    Attributes.NON_VOLATILE
    | Attributes.BOOTSERVICE_ACCESS
    | Attributes.RUNTIME_ACCESS
    | Attributes.TIME_BASED_AUTHENTICATED_WRITE_ACCESS
)
"""Attributes 0x27: a time-based authenticated variable."""
APPENDED: Final = AUTHENTICATED | Attributes.APPEND_WRITE

_VALID: Final = (
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    datetime.datetime(2049, 12, 31, tzinfo=datetime.UTC),
)


def moment(seconds: int) -> EfiTime:
    """The time stamp ``seconds`` after 2026-01-01 00:00:00; up to 31 days."""
    days, rest = divmod(seconds, 86400)
    return EfiTime(2026, 1, 1 + days, rest // 3600, rest // 60 % 60, rest % 60)


@dataclass(frozen=True, slots=True)
class Signer:
    """An RSA-2048 key with its self-signed X.509 certificate."""

    certificate: bytes
    """DER."""
    _key: RSAPrivateKey

    @classmethod
    def create(cls, common_name: str) -> Signer:
        """A new pair; takes a tenth of a second."""
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(65537, 2048)
        return cls(_certificate(common_name, key), key)

    @classmethod
    def kept(cls, directory: Path, name: str) -> Signer:
        """The pair of this name in ``directory``, made and kept there when it is not: ``NAME.key``
        (PEM) and ``NAME.der`` (the certificate). Raises OSError, ValueError for damaged files."""
        if not (directory / f"{name}.der").exists():
            cls.create(f"{name} of the suite").save(directory, name)
        return cls.load(directory, name)

    @classmethod
    def load(cls, directory: Path, name: str) -> Signer:
        """The pair that :meth:`save` left. Raises OSError, ValueError."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

        path = directory / f"{name}.key"
        # Checking the primes takes a quarter of a second, and nobody but us wrote the file.
        key = serialization.load_pem_private_key(
            path.read_bytes(), password=None, unsafe_skip_rsa_key_validation=True
        )
        if not isinstance(key, RSAPrivateKey):
            raise ValueError(f"{path} holds no RSA key")
        return cls((directory / f"{name}.der").read_bytes(), key)

    def save(self, directory: Path, name: str) -> None:
        """Keep the pair in files that only their owner reads, the certificate last: where it is,
        the key is, too."""
        from cryptography.hazmat.primitives import serialization

        key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write_whole(directory / f"{name}.key", key)
        _write_whole(directory / f"{name}.der", self.certificate)

    def sign(
        self, content: bytes, *, digest: Digest = "sha256", content_info: bool = False
    ) -> bytes:
        """PKCS#7 SignedData over detached ``content``, without signed attributes.

        EDK2 takes it bare, as UEFI says, and in the ContentInfo that PKCS#7 wraps around it.
        """
        from asn1crypto import cms, core, x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        algorithms: dict[Digest, Callable[[], hashes.HashAlgorithm]] = {
            "sha1": hashes.SHA1,
            "sha256": hashes.SHA256,
            "sha384": hashes.SHA384,
            "sha512": hashes.SHA512,
        }
        certificate = x509.Certificate.load(self.certificate)
        hashed = {"algorithm": digest, "parameters": core.Null()}
        signer = {
            "version": "v1",
            "sid": cms.SignerIdentifier(
                {
                    "issuer_and_serial_number": {
                        "issuer": certificate.issuer,
                        "serial_number": certificate.serial_number,
                    }
                }
            ),
            "digest_algorithm": hashed,
            "signature_algorithm": {"algorithm": "rsassa_pkcs1v15", "parameters": core.Null()},
            "signature": self._key.sign(content, padding.PKCS1v15(), algorithms[digest]()),
        }
        signed = cms.SignedData(
            {
                "version": "v1",
                "digest_algorithms": [hashed],
                "encap_content_info": {"content_type": "data"},
                "certificates": [certificate],
                "signer_infos": [signer],
            }
        )
        if content_info:
            signed = cms.ContentInfo({"content_type": "signed_data", "content": signed})
        encoded: bytes = signed.dump()
        return encoded

    def update(
        self,
        name: str,
        guid: UUID,
        payload: bytes,
        time: EfiTime,
        *,
        attributes: int = AUTHENTICATED,
        digest: Digest = "sha256",
        content_info: bool = False,
    ) -> bytes:
        """SetVariable's data: the descriptor signed for exactly this name, GUID, attributes, time
        and payload, then the payload. An empty payload asks for deletion."""
        content = signed_content(
            encode_name(name)[:-2], guid.bytes_le, attributes, time.pack(), payload
        )
        message = self.sign(content, digest=digest, content_info=content_info)
        return Authentication2(time, message).pack() + payload


def unsigned(payload: bytes, time: EfiTime) -> bytes:
    """SetVariable's data with a whole descriptor that nobody signed."""
    return Authentication2(time, b"").pack() + payload


def elliptic_certificate(common_name: str) -> bytes:
    """A self-signed X.509 certificate (DER) with a P-256 key, which EDK2 does not take."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return _certificate(common_name, ec.generate_private_key(ec.SECP256R1()))


def certificate_list(*certificates: bytes) -> bytes:
    """One EFI_SIGNATURE_LIST a certificate (DER): their sizes differ."""
    return b"".join(
        SignatureList(CERT_X509_GUID, (OWNER.bytes_le + certificate,)).pack()
        for certificate in certificates
    )


def digest_list(*digests: bytes) -> bytes:
    """One EFI_SIGNATURE_LIST of SHA-256 digests, 32 bytes each."""
    return SignatureList(
        CERT_SHA256_GUID, tuple(OWNER.bytes_le + digest for digest in digests)
    ).pack()


def _certificate(common_name: str, key: RSAPrivateKey | EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID[0])
        .not_valid_after(_VALID[1])
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def _write_whole(path: Path, content: bytes) -> None:
    """The file with this content, or none: a run may be killed at any moment."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)

"""Checks and filtering of signature lists, as EDK2 does them.

Source: stack 4.7; ED SecurityPkg AuthService.c:CheckSignatureListFormat, FilterSignatureList.
"""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from harness.formats.authentication import (
    CERT_RSA2048_GUID,
    CERT_RSA2048_SHA1_GUID,
    CERT_RSA2048_SHA256_GUID,
    CERT_SHA1_GUID,
    CERT_SHA224_GUID,
    CERT_SHA256_GUID,
    CERT_SHA384_GUID,
    CERT_SHA512_GUID,
    CERT_X509_GUID,
    CERT_X509_SHA256_GUID,
    CERT_X509_SHA384_GUID,
    CERT_X509_SHA512_GUID,
    OWNER_SIZE,
    SignatureList,
    parse_signature_lists,
)

_DATA_SIZES: Final[Mapping[UUID, int]] = {
    CERT_SHA1_GUID: 20,
    CERT_SHA224_GUID: 28,
    CERT_SHA256_GUID: 32,
    CERT_SHA384_GUID: 48,
    CERT_SHA512_GUID: 64,
    CERT_RSA2048_GUID: 256,
    CERT_RSA2048_SHA1_GUID: 256,
    CERT_RSA2048_SHA256_GUID: 256,
    CERT_X509_SHA256_GUID: 48,
    CERT_X509_SHA384_GUID: 64,
    CERT_X509_SHA512_GUID: 80,
}


def well_formed(payload: bytes, *, single: bool) -> bool:
    """Whether ``payload`` is a row of known signature lists; ``single``: at most one entry (PK)."""
    try:
        lists = list(parse_signature_lists(payload))
    except ValueError:
        return False
    if single and sum(len(entry.entries) for entry in lists) > 1:
        return False
    return all(_known(entry) for entry in lists)


def certificates(payload: bytes) -> list[bytes]:
    """All X.509 certificates (DER) in a stored key database, in order."""
    try:
        lists = list(parse_signature_lists(payload))
    except ValueError:
        return []
    return [
        entry[OWNER_SIZE:]
        for listing in lists
        if listing.type == CERT_X509_GUID
        for entry in listing.entries
    ]


def without_known(stored: bytes, added: bytes) -> bytes:
    """``added`` without the entries that ``stored`` has already; lists left empty disappear."""
    try:
        old = list(parse_signature_lists(stored))
        new = list(parse_signature_lists(added))
    except ValueError:
        return added
    known = {(listing.type, entry) for listing in old for entry in listing.entries}
    kept = []
    for listing in new:
        entries = tuple(e for e in listing.entries if (listing.type, e) not in known)
        if entries:
            kept.append(SignatureList(listing.type, entries, listing.header).pack())
    return b"".join(kept)


def _known(listing: SignatureList) -> bool:
    from emulation.stmm.pkcs7 import has_rsa_key

    if listing.header:
        return False
    if listing.type == CERT_X509_GUID:
        # EDK2 looks at the first certificate of a list only.
        return bool(listing.entries) and has_rsa_key(listing.entries[0][OWNER_SIZE:])
    size = _DATA_SIZES.get(listing.type)
    return size is not None and all(len(e) == OWNER_SIZE + size for e in listing.entries)

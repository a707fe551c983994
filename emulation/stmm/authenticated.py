"""Authenticated variables: PK, KEK, db, dbx, dbt, private variables and the platform mode.

Source: stack 4.7 and 11; ED SecurityPkg/Library/AuthVariableLib (AuthVariableLib.c,
AuthService.c).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from emulation.stmm import pkcs7, signature_lists
from emulation.stmm.cert_db import CERT_DB, CERT_DB_VOLATILE, CertDb
from emulation.stmm.config import StmmConfig
from emulation.stmm.refusal import Refused, refuse_if
from emulation.stmm.store import (
    APPEND,
    AT,
    AW,
    BS,
    NV,
    RT,
    Change,
    Key,
    Record,
    Variables,
    is_not_later,
)
from emulation.stmm.var_check import READ_ONLY, Property
from harness.formats.authentication import (
    CERT_DATA_OFFSET,
    CERT_PKCS7_GUID,
    CERT_RSA2048_GUID,
    CERT_SHA1_GUID,
    CERT_SHA256_GUID,
    CERT_SHA384_GUID,
    CERT_SHA512_GUID,
    CERT_X509_GUID,
    OWNER_SIZE,
    SIGNATURE_LIST_HEADER_SIZE,
    TIME_SIZE,
    WIN_CERTIFICATE_EFI_GUID,
    descriptor_size,
    signed_content,
)
from harness.formats.efi import (
    CUSTOM_MODE_GUID,
    GLOBAL_VARIABLE_GUID,
    IMAGE_SECURITY_DATABASE_GUID,
    SECURE_BOOT_ENABLE_GUID,
    VENDOR_KEYS_NV_GUID,
    EfiStatus,
    EfiTime,
    encode_name,
)

_GLOBAL: Final = GLOBAL_VARIABLE_GUID.bytes_le
_PK: Final[Key] = (encode_name("PK"), _GLOBAL)
_KEK: Final[Key] = (encode_name("KEK"), _GLOBAL)
_DATABASES: Final = frozenset(
    (encode_name(name), IMAGE_SECURITY_DATABASE_GUID.bytes_le) for name in ("db", "dbx", "dbt")
)
_SETUP_MODE: Final[Key] = (encode_name("SetupMode"), _GLOBAL)
_SIGNATURE_SUPPORT: Final[Key] = (encode_name("SignatureSupport"), _GLOBAL)
_SECURE_BOOT: Final[Key] = (encode_name("SecureBoot"), _GLOBAL)
_VENDOR_KEYS: Final[Key] = (encode_name("VendorKeys"), _GLOBAL)
_SECURE_BOOT_ENABLE: Final[Key] = (
    encode_name("SecureBootEnable"),
    SECURE_BOOT_ENABLE_GUID.bytes_le,
)
_CUSTOM_MODE: Final[Key] = (encode_name("CustomMode"), CUSTOM_MODE_GUID.bytes_le)
_VENDOR_KEYS_NV: Final[Key] = (encode_name("VendorKeysNv"), VENDOR_KEYS_NV_GUID.bytes_le)

_SUPPORTED_SIGNATURES: Final = b"".join(
    guid.bytes_le
    for guid in (
        CERT_SHA1_GUID,
        CERT_SHA256_GUID,
        CERT_SHA384_GUID,
        CERT_SHA512_GUID,
        CERT_RSA2048_GUID,
        CERT_X509_GUID,
    )
)
_YES: Final = b"\x01"
_NO: Final = b"\0"
_UNLIMITED: Final = (1 << 64) - 1


class Trust(Enum):
    """Against what a signature is checked."""

    PK = "the platform key"
    KEK = "any certificate of KEK"
    PRIVATE = "the first writer"
    PAYLOAD = "the certificate in the new value"


@dataclass(frozen=True, slots=True)
class Request:
    """A SetVariable of an authenticated variable, taken apart."""

    name: bytes
    guid: bytes
    attributes: int
    time: bytes
    certificate: bytes
    payload: bytes

    @classmethod
    def of(cls, change: Change) -> Self:
        """Take apart what begins with a whole authentication descriptor."""
        data = change.data
        size = descriptor_size(data) or 0
        time, certificate = data[:TIME_SIZE], data[TIME_SIZE:size]
        return cls(change.name, change.guid, change.attributes, time, certificate, data[size:])

    @property
    def message(self) -> bytes:
        """The PKCS#7 message."""
        return self.certificate[CERT_DATA_OFFSET - TIME_SIZE :]

    @property
    def key(self) -> Key:
        """Name and GUID."""
        return (self.name, self.guid)

    @property
    def append(self) -> bool:
        """Whether the value is appended."""
        return bool(self.attributes & APPEND)


class AuthenticatedVariables:
    """The authentication library over a variable service; user presence is always asserted."""

    def __init__(self, variables: Variables, config: StmmConfig) -> None:
        self._variables = variables
        self._config = config
        self._setup_mode = True
        self._vendor_keys = _YES
        self._signers = CertDb(variables, config)

    # --- start ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the library's variables; the first failure stops it by Refused."""
        self._setup_mode = self._find(_PK) is None
        self._store(_SETUP_MODE, _flag(self._setup_mode), BS | RT)
        self._store(_SIGNATURE_SUPPORT, _SUPPORTED_SIGNATURES, BS | RT)
        self._start_secure_boot()
        self._store(_CUSTOM_MODE, _NO, NV | BS)
        self._signers.start()
        self._start_vendor_keys()

    def _start_secure_boot(self) -> None:
        enabled = _NO
        stored = self._find(_SECURE_BOOT_ENABLE)
        if stored is not None:
            enabled = _NO if self._setup_mode else stored.data[:1]
        elif not self._setup_mode:
            enabled = _YES
            self._store(_SECURE_BOOT_ENABLE, _YES, NV | BS)
        self._store(_SECURE_BOOT, _flag(enabled == _YES), BS | RT)

    def _start_vendor_keys(self) -> None:
        stored = self._find(_VENDOR_KEYS_NV)
        if stored is not None:
            self._vendor_keys = stored.data[:1]
        else:
            self._store(_VENDOR_KEYS_NV, self._vendor_keys, NV | BS | AT)
        self._store(_VENDOR_KEYS, self._vendor_keys, BS | RT)

    @staticmethod
    def properties() -> Iterator[tuple[bytes, bytes, Property]]:
        """Properties of the library's variables, set when it has started."""
        entries = (
            (_SECURE_BOOT_ENABLE, 0, NV | BS, 1, 1),
            (_CUSTOM_MODE, 0, NV | BS, 1, 1),
            (_VENDOR_KEYS_NV, READ_ONLY, NV | BS | RT | AT, 1, 1),
            (CERT_DB, READ_ONLY, NV | BS | RT | AT, 4, _UNLIMITED),
            (CERT_DB_VOLATILE, READ_ONLY, BS | RT | AT, 4, _UNLIMITED),
        )
        for (name, guid), prop, attributes, smallest, largest in entries:
            yield name, guid, Property(prop, attributes, smallest, largest)

    # --- SetVariable ----------------------------------------------------------------------------

    def process(self, change: Change) -> None:
        """Store a variable if its name, or the signature in the data, allows it."""
        if change.key in (_PK, _KEK):
            self._with_pk(change)
        elif change.key in _DATABASES:
            try:
                self._with_pk(change)
            except Refused:
                self._with_kek(change)
        else:
            self._private(change)

    def _with_pk(self, change: Change) -> None:
        request = _key_request(change)
        is_pk = change.key == _PK
        self_signed = is_pk and self._config.require_self_signed_pk
        if self._in_custom_mode() or (self._setup_mode and not self_signed):
            deleted = not request.payload
            self._store_unverified(request)
            if not self._setup_mode or self_signed:
                self._vendor_keys_modified()
        else:
            deleted = self._store_verified(request, Trust.PAYLOAD if self._setup_mode else Trust.PK)
        if is_pk and self._setup_mode != deleted:
            self._enter_mode(setup=deleted)

    def _with_kek(self, change: Change) -> None:
        request = _key_request(change)
        if not self._setup_mode and not self._in_custom_mode():
            self._store_verified(request, Trust.KEK)
            return
        self._store_unverified(request)
        if not self._setup_mode:
            self._vendor_keys_modified()

    def _private(self, change: Change) -> None:
        stored = self._find(change.key)
        if stored is not None and _deletes_authenticated(stored.attributes, change):
            # Physical presence is asserted, so nobody looks at the signature.
            self._store(change.key, b"", 0)
            if change.attributes & AT:
                self._signers.forget(change)
            return
        refuse_if(change.attributes & AW, EfiStatus.UNSUPPORTED)
        if change.attributes & AT:
            self._store_verified(Request.of(change), Trust.PRIVATE)
            return
        guarded = stored is not None and stored.attributes & (AT | AW)
        refuse_if(guarded, EfiStatus.WRITE_PROTECTED)
        self._variables.update(change)

    def _store_unverified(self, request: Request) -> None:
        refuse_if(not _format_ok(request), EfiStatus.INVALID_PARAMETER)
        self._update(request)

    def _store_verified(self, request: Request, trust: Trust) -> bool:
        """Whether the variable was deleted."""
        stored = self._find(request.key)
        self._verify(request, trust, stored)
        deleted = stored is not None and not request.payload and not request.append
        self._update(request)
        if deleted and trust is Trust.PRIVATE:
            self._signers.forget(request)
        return deleted

    def _update(self, request: Request) -> None:
        payload = request.payload
        stored = self._find(request.key)
        filtered = request.key == _KEK or request.key in _DATABASES
        if stored is not None and request.append and filtered:
            payload = signature_lists.without_known(stored.data, payload)
        self._variables.update(Change(*request.key, request.attributes, payload, request.time))

    # --- verification ---------------------------------------------------------------------------

    def _verify(self, request: Request, trust: Trust, stored: Record | None) -> None:
        """VerifyTimeBasedPayload, in its order."""
        violation = EfiStatus.SECURITY_VIOLATION
        time = EfiTime.unpack(request.time)
        refuse_if(
            any((time.pad1, time.nanosecond, time.timezone, time.daylight, time.pad2)), violation
        )
        if stored is not None and not request.append:
            refuse_if(is_not_later(request.time, stored.time), violation)
        kind, guid = struct.unpack_from("<6xH16s", request.certificate)
        is_pkcs7 = kind == WIN_CERTIFICATE_EFI_GUID and guid == CERT_PKCS7_GUID.bytes_le
        refuse_if(not is_pkcs7, violation)
        digest = pkcs7.digest_name(request.message)
        if digest is None:
            raise Refused(violation)
        # Without the variable policy engine EDK2 lets any empty value delete a variable.
        if request.payload or request.append or self._config.variable_policy:
            self._check_signature(request, trust, stored, digest)
        refuse_if(not _format_ok(request), EfiStatus.INVALID_PARAMETER)

    def _check_signature(
        self, request: Request, trust: Trust, stored: Record | None, digest: str
    ) -> None:
        content = signed_content(
            request.name[:-2], request.guid, request.attributes, request.time, request.payload
        )
        if trust is Trust.KEK:
            kek = self._find(_KEK)
            if kek is None:
                raise Refused(EfiStatus.NOT_FOUND)
            trusted = signature_lists.certificates(kek.data)
            good = any(pkcs7.verify(request.message, cert, content) for cert in trusted)
        elif trust is Trust.PAYLOAD:
            trusted = signature_lists.certificates(request.payload)[:1]
            good = any(pkcs7.verify(request.message, cert, content) for cert in trusted)
        else:
            try:
                found = pkcs7.signers(request.message)
            except pkcs7.Malformed:
                raise Refused(EfiStatus.SECURITY_VIOLATION) from None
            if trust is Trust.PK:
                good = self._is_platform_key(found.first) and pkcs7.verify(
                    request.message, found.first, content
                )
            else:
                good = self._is_owner(request, stored, digest, found, content)
        refuse_if(not good, EfiStatus.SECURITY_VIOLATION)

    def _is_platform_key(self, certificate: bytes) -> bool:
        pk = self._find(_PK)
        if pk is None:
            return False
        start = SIGNATURE_LIST_HEADER_SIZE + OWNER_SIZE
        return pk.data[start:] == certificate

    def _is_owner(
        self,
        request: Request,
        stored: Record | None,
        digest: str,
        found: pkcs7.Signers,
        content: bytes,
    ) -> bool:
        """Whether the signer may write a private variable; a new one is entered into certdb."""
        identity = pkcs7.chain_digest(digest, found)
        if stored is not None:
            known = self._signers.of(request)
            if identity is None or known != identity:
                return False
        if not pkcs7.verify(request.message, found.first, content):
            return False
        if stored is not None or not request.payload:
            return True
        if identity is None:
            return False
        try:
            self._signers.remember(request, identity)
        except Refused:
            return False
        return True

    # --- platform mode --------------------------------------------------------------------------

    def _in_custom_mode(self) -> bool:
        custom = self._find(_CUSTOM_MODE)
        return custom is not None and custom.data[:1] == _YES

    def _enter_mode(self, *, setup: bool) -> None:
        """UpdatePlatformMode: at runtime only SetupMode changes."""
        mode = self._find(_SETUP_MODE)
        if mode is None:
            raise Refused(EfiStatus.NOT_FOUND)
        self._setup_mode = setup
        self._variables.overwrite_volatile(mode, _flag(setup))
        if self._variables.at_runtime:
            return
        secure = _NO if self._find(_SECURE_BOOT) is None else _flag(not setup)
        self._store(_SECURE_BOOT, secure, BS | RT)
        if secure == _YES:
            self._store(_SECURE_BOOT_ENABLE, _YES, NV | BS)
        elif self._find(_SECURE_BOOT_ENABLE) is not None:
            self._store(_SECURE_BOOT_ENABLE, b"", NV | BS)

    def _vendor_keys_modified(self) -> None:
        """Record that keys were changed out of band, once."""
        if self._vendor_keys == _NO:
            return
        self._vendor_keys = _NO
        self._store(_VENDOR_KEYS_NV, _NO, NV | BS | AT)
        self._store(_VENDOR_KEYS, _NO, BS | RT)

    # --- helpers --------------------------------------------------------------------------------

    def _find(self, key: Key) -> Record | None:
        return self._variables.find(*key)

    def _store(self, key: Key, data: bytes, attributes: int) -> None:
        self._variables.update(Change(*key, attributes, data))


def _flag(value: bool) -> bytes:
    return _YES if value else _NO


def _key_request(change: Change) -> Request:
    """The request for PK, KEK or a database; Refused if its attributes are not theirs."""
    needed = NV | AT
    refuse_if(change.attributes & needed != needed, EfiStatus.INVALID_PARAMETER)
    return Request.of(change)


def _deletes_authenticated(stored: int, change: Change) -> bool:
    """IsDeleteAuthVariable: same attributes, and nothing behind the descriptor."""
    if change.attributes != stored or not stored & (AT | AW):
        return False
    # With AW SetVariable has already refused every size but that of a bare descriptor.
    return bool(stored & AW) or descriptor_size(change.data) == len(change.data)


def _format_ok(request: Request) -> bool:
    if not request.payload or not (request.key in (_PK, _KEK) or request.key in _DATABASES):
        return True
    return signature_lists.well_formed(request.payload, single=request.key == _PK)

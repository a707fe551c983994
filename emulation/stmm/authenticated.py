"""Authenticated variables: PK, KEK, db, dbx, dbt, private variables and the platform mode.

Source: contract 4.7 and 11; ED SecurityPkg/Library/AuthVariableLib (AuthVariableLib.c,
AuthService.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from emulation.stmm import pkcs7, signature_lists
from emulation.stmm.config import StmmConfig
from emulation.stmm.store import Record
from emulation.stmm.times import is_not_later
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
    CERT_DB_GUID,
    CUSTOM_MODE_GUID,
    GLOBAL_VARIABLE_GUID,
    IMAGE_SECURITY_DATABASE_GUID,
    SECURE_BOOT_ENABLE_GUID,
    VENDOR_KEYS_NV_GUID,
    Attributes,
    EfiStatus,
    EfiTime,
    encode_name,
)

Name = tuple[bytes, bytes]
"""Name with NUL, GUID."""

_NV: Final = int(Attributes.NON_VOLATILE)
_BS: Final = int(Attributes.BOOTSERVICE_ACCESS)
_RT: Final = int(Attributes.RUNTIME_ACCESS)
_AW: Final = int(Attributes.AUTHENTICATED_WRITE_ACCESS)
_AT: Final = int(Attributes.TIME_BASED_AUTHENTICATED_WRITE_ACCESS)
_APPEND: Final = int(Attributes.APPEND_WRITE)

_GLOBAL: Final = GLOBAL_VARIABLE_GUID.bytes_le
_PK: Final[Name] = (encode_name("PK"), _GLOBAL)
_KEK: Final[Name] = (encode_name("KEK"), _GLOBAL)
_DATABASES: Final = frozenset(
    (encode_name(name), IMAGE_SECURITY_DATABASE_GUID.bytes_le) for name in ("db", "dbx", "dbt")
)
_SETUP_MODE: Final[Name] = (encode_name("SetupMode"), _GLOBAL)
_SIGNATURE_SUPPORT: Final[Name] = (encode_name("SignatureSupport"), _GLOBAL)
_SECURE_BOOT: Final[Name] = (encode_name("SecureBoot"), _GLOBAL)
_VENDOR_KEYS: Final[Name] = (encode_name("VendorKeys"), _GLOBAL)
_SECURE_BOOT_ENABLE: Final[Name] = (
    encode_name("SecureBootEnable"),
    SECURE_BOOT_ENABLE_GUID.bytes_le,
)
_CUSTOM_MODE: Final[Name] = (encode_name("CustomMode"), CUSTOM_MODE_GUID.bytes_le)
_VENDOR_KEYS_NV: Final[Name] = (encode_name("VendorKeysNv"), VENDOR_KEYS_NV_GUID.bytes_le)
_CERT_DB: Final[Name] = (encode_name("certdb"), CERT_DB_GUID.bytes_le)
_CERT_DB_VOLATILE: Final[Name] = (encode_name("certdbv"), CERT_DB_GUID.bytes_le)

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
_EMPTY_CERT_DB: Final = struct.pack("<I", 4)
_CERT_NODE: Final = struct.Struct("<16sIII")
_UNLIMITED: Final = (1 << 64) - 1


class Trust(Enum):
    """Against what a signature is checked."""

    PK = "the platform key"
    KEK = "any certificate of KEK"
    PRIVATE = "the first writer"
    PAYLOAD = "the certificate in the new value"


class Variables(Protocol):
    """What the library needs of the variable service."""

    at_runtime: bool

    def find(self, name: bytes, guid: bytes) -> Record | None: ...
    def update(
        self, name: bytes, guid: bytes, data: bytes, attributes: int, time: bytes | None = None
    ) -> EfiStatus: ...
    def overwrite_volatile(self, record: Record, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One SetVariable of an authenticated variable; the descriptor is known to be whole."""

    name: bytes
    guid: bytes
    attributes: int
    time: bytes
    certificate: bytes
    payload: bytes

    @property
    def message(self) -> bytes:
        """The PKCS#7 message."""
        return self.certificate[CERT_DATA_OFFSET - TIME_SIZE :]

    @property
    def key(self) -> Name:
        """Name and GUID."""
        return (self.name, self.guid)

    @property
    def append(self) -> bool:
        """Whether the value is appended."""
        return bool(self.attributes & _APPEND)


class AuthenticatedVariables:
    """The authentication library over a variable service; user presence is always asserted."""

    def __init__(self, variables: Variables, config: StmmConfig) -> None:
        self._variables = variables
        self._config = config
        self._setup_mode = True
        self._vendor_keys = _YES
        name_size = len(_CERT_DB_VOLATILE[0])
        self._max_cert_db = config.max_auth_variable_size - 60 - name_size

    # --- start ----------------------------------------------------------------------------------

    def start(self) -> EfiStatus:
        """Create the library's variables; the first failure stops it."""
        self._setup_mode = self._find(_PK) is None
        steps: tuple[Callable[[], EfiStatus], ...] = (
            lambda: self._store(_SETUP_MODE, _flag(self._setup_mode), _BS | _RT),
            lambda: self._store(_SIGNATURE_SUPPORT, _SUPPORTED_SIGNATURES, _BS | _RT),
            self._start_secure_boot,
            lambda: self._store(_CUSTOM_MODE, _NO, _NV | _BS),
            self._start_cert_db,
            lambda: self._store(_CERT_DB_VOLATILE, _EMPTY_CERT_DB, _BS | _RT | _AT),
            self._start_vendor_keys,
        )
        for step in steps:
            status = step()
            if status.is_error:
                return status
        return EfiStatus.SUCCESS

    def _start_secure_boot(self) -> EfiStatus:
        enabled = _NO
        stored = self._find(_SECURE_BOOT_ENABLE)
        if stored is not None:
            enabled = _NO if self._setup_mode else stored.data[:1]
        elif not self._setup_mode:
            enabled = _YES
            status = self._store(_SECURE_BOOT_ENABLE, _YES, _NV | _BS)
            if status.is_error:
                return status
        return self._store(_SECURE_BOOT, _flag(enabled == _YES), _BS | _RT)

    def _start_cert_db(self) -> EfiStatus:
        if self._find(_CERT_DB) is None:
            return self._store(_CERT_DB, _EMPTY_CERT_DB, _NV | _BS | _RT | _AT)
        return self._clean_cert_db()

    def _start_vendor_keys(self) -> EfiStatus:
        stored = self._find(_VENDOR_KEYS_NV)
        if stored is not None:
            self._vendor_keys = stored.data[:1]
        else:
            status = self._store(_VENDOR_KEYS_NV, self._vendor_keys, _NV | _BS | _AT)
            if status.is_error:
                return status
        return self._store(_VENDOR_KEYS, self._vendor_keys, _BS | _RT)

    @staticmethod
    def properties() -> Iterator[tuple[bytes, bytes, Property]]:
        """Properties of the library's variables, set when it has started."""
        entries = (
            (_SECURE_BOOT_ENABLE, 0, _NV | _BS, 1, 1),
            (_CUSTOM_MODE, 0, _NV | _BS, 1, 1),
            (_VENDOR_KEYS_NV, READ_ONLY, _NV | _BS | _RT | _AT, 1, 1),
            (_CERT_DB, READ_ONLY, _NV | _BS | _RT | _AT, 4, _UNLIMITED),
            (_CERT_DB_VOLATILE, READ_ONLY, _BS | _RT | _AT, 4, _UNLIMITED),
        )
        for (name, guid), prop, attributes, smallest, largest in entries:
            yield name, guid, Property(prop, attributes, smallest, largest)

    # --- SetVariable ----------------------------------------------------------------------------

    def process(self, name: bytes, guid: bytes, attributes: int, data: bytes) -> EfiStatus:
        """Store a variable if its name, or the signature in ``data``, allows it."""
        if (name, guid) == _PK:
            return self._with_pk(name, guid, attributes, data, is_pk=True)
        if (name, guid) == _KEK:
            return self._with_pk(name, guid, attributes, data, is_pk=False)
        if (name, guid) in _DATABASES:
            status = self._with_pk(name, guid, attributes, data, is_pk=False)
            if status.is_error:
                status = self._with_kek(name, guid, attributes, data)
            return status
        return self._private(name, guid, attributes, data)

    def _with_pk(
        self, name: bytes, guid: bytes, attributes: int, data: bytes, *, is_pk: bool
    ) -> EfiStatus:
        if attributes & (_NV | _AT) != _NV | _AT:
            return EfiStatus.INVALID_PARAMETER
        request = _request(name, guid, attributes, data)
        self_signed = is_pk and self._config.require_self_signed_pk
        deleted = False
        if self._in_custom_mode() or (self._setup_mode and not self_signed):
            deleted = not request.payload
            status = self._store_unverified(request)
            if not status.is_error and (not self._setup_mode or self_signed):
                status = self._vendor_keys_modified()
        else:
            trust = Trust.PAYLOAD if self._setup_mode else Trust.PK
            status, deleted = self._store_verified(request, trust)
        if status.is_error or not is_pk:
            return status
        if self._setup_mode and not deleted:
            return self._enter_mode(setup=False)
        if not self._setup_mode and deleted:
            return self._enter_mode(setup=True)
        return status

    def _with_kek(self, name: bytes, guid: bytes, attributes: int, data: bytes) -> EfiStatus:
        if attributes & (_NV | _AT) != _NV | _AT:
            return EfiStatus.INVALID_PARAMETER
        request = _request(name, guid, attributes, data)
        if not self._setup_mode and not self._in_custom_mode():
            return self._store_verified(request, Trust.KEK)[0]
        status = self._store_unverified(request)
        if not status.is_error and not self._setup_mode:
            status = self._vendor_keys_modified()
        return status

    def _private(self, name: bytes, guid: bytes, attributes: int, data: bytes) -> EfiStatus:
        stored = self._variables.find(name, guid)
        if stored is not None and _deletes_authenticated(stored.attributes, attributes, data):
            # Physical presence is asserted, so nobody looks at the signature.
            status = self._variables.update(name, guid, b"", 0)
            if not status.is_error and attributes & _AT:
                status = self._forget_signer(name, guid, attributes)
            return status
        if attributes & _AW:
            return EfiStatus.UNSUPPORTED
        if attributes & _AT:
            request = _request(name, guid, attributes, data)
            return self._store_verified(request, Trust.PRIVATE)[0]
        if stored is not None and stored.attributes & (_AT | _AW):
            return EfiStatus.WRITE_PROTECTED
        return self._variables.update(name, guid, data, attributes)

    def _store_unverified(self, request: Request) -> EfiStatus:
        if not _format_ok(request):
            return EfiStatus.INVALID_PARAMETER
        return self._update(request)

    def _store_verified(self, request: Request, trust: Trust) -> tuple[EfiStatus, bool]:
        """(status, whether the variable was deleted)."""
        stored = self._variables.find(*request.key)
        status = self._verify(request, trust, stored)
        if status.is_error:
            return status, False
        deleted = stored is not None and not request.payload and not request.append
        status = self._update(request)
        if status.is_error:
            return status, False
        if deleted and trust is Trust.PRIVATE:
            status = self._forget_signer(request.name, request.guid, request.attributes)
        return status, deleted and not status.is_error

    def _update(self, request: Request) -> EfiStatus:
        payload = request.payload
        stored = self._variables.find(*request.key)
        filtered = request.key == _KEK or request.key in _DATABASES
        if stored is not None and request.append and filtered:
            payload = signature_lists.without_known(stored.data, payload)
        return self._variables.update(
            request.name, request.guid, payload, request.attributes, request.time
        )

    # --- verification ---------------------------------------------------------------------------

    def _verify(self, request: Request, trust: Trust, stored: Record | None) -> EfiStatus:
        """VerifyTimeBasedPayload, in its order."""
        time = EfiTime.unpack(request.time)
        if any((time.pad1, time.nanosecond, time.timezone, time.daylight, time.pad2)):
            return EfiStatus.SECURITY_VIOLATION
        if stored is not None and not request.append and is_not_later(request.time, stored.time):
            return EfiStatus.SECURITY_VIOLATION
        kind, guid = struct.unpack_from("<6xH16s", request.certificate)
        if kind != WIN_CERTIFICATE_EFI_GUID or guid != CERT_PKCS7_GUID.bytes_le:
            return EfiStatus.SECURITY_VIOLATION
        digest = pkcs7.digest_name(request.message)
        if digest is None:
            return EfiStatus.SECURITY_VIOLATION
        unguarded = not self._config.variable_policy
        if request.payload or request.append or not unguarded:
            status = self._check_signature(request, trust, stored, digest)
            if status.is_error:
                return status
        # Else: without the variable policy engine EDK2 lets any empty value delete a variable.
        return EfiStatus.SUCCESS if _format_ok(request) else EfiStatus.INVALID_PARAMETER

    def _check_signature(
        self, request: Request, trust: Trust, stored: Record | None, digest: str
    ) -> EfiStatus:
        content = signed_content(
            request.name[:-2], request.guid, request.attributes, request.time, request.payload
        )
        if trust is Trust.KEK:
            kek = self._find(_KEK)
            if kek is None:
                return EfiStatus.NOT_FOUND
            trusted = signature_lists.certificates(kek.data)
            good = any(pkcs7.verify(request.message, cert, content) for cert in trusted)
        elif trust is Trust.PAYLOAD:
            trusted = signature_lists.certificates(request.payload)[:1]
            good = any(pkcs7.verify(request.message, cert, content) for cert in trusted)
        else:
            try:
                found = pkcs7.signers(request.message)
            except pkcs7.Malformed:
                return EfiStatus.SECURITY_VIOLATION
            if trust is Trust.PK:
                good = self._is_platform_key(found.first) and pkcs7.verify(
                    request.message, found.first, content
                )
            else:
                good = self._is_owner(request, stored, digest, found, content)
        return EfiStatus.SUCCESS if good else EfiStatus.SECURITY_VIOLATION

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
            known = self._signer(request)
            if identity is None or known != identity:
                return False
        if not pkcs7.verify(request.message, found.first, content):
            return False
        if stored is None and request.payload:
            return identity is not None and not self._remember_signer(request, identity).is_error
        return True

    # --- certdb ---------------------------------------------------------------------------------

    def _cert_db(self, attributes: int) -> tuple[Name, int]:
        """The database for a variable of these attributes, and the attributes of the database."""
        if attributes & _NV:
            return _CERT_DB, _NV | _BS | _RT | _AT
        return _CERT_DB_VOLATILE, _BS | _RT | _AT

    def _signer(self, request: Request) -> bytes | None:
        database = self._find(self._cert_db(request.attributes)[0])
        if database is None:
            return None
        for node in _nodes(database.data):
            if (node.name, node.guid) == (request.name[:-2], request.guid):
                return node.digest
        return None

    def _remember_signer(self, request: Request, identity: bytes) -> EfiStatus:
        key, attributes = self._cert_db(request.attributes)
        database = self._find(key)
        if database is None:
            return EfiStatus.NOT_FOUND
        if self._signer(request) is not None:
            return EfiStatus.ACCESS_DENIED
        name = request.name[:-2]
        size = _CERT_NODE.size + len(name) + len(identity)
        node = _CERT_NODE.pack(request.guid, size, len(name) // 2, len(identity))
        data = _sized(database.data[4:] + node + name + identity)
        if len(data) > self._max_cert_db:
            return EfiStatus.OUT_OF_RESOURCES
        return self._variables.update(*key, data, attributes)

    def _forget_signer(self, name: bytes, guid: bytes, attributes: int) -> EfiStatus:
        key, db_attributes = self._cert_db(attributes)
        database = self._find(key)
        if database is None:
            return EfiStatus.NOT_FOUND
        if len(database.data) == len(_EMPTY_CERT_DB):
            return EfiStatus.SUCCESS
        nodes = list(_nodes(database.data))
        kept = [node for node in nodes if (node.name, node.guid) != (name[:-2], guid)]
        if len(kept) == len(nodes):
            return EfiStatus.NOT_FOUND
        data = _sized(b"".join(node.raw for node in kept))
        return self._variables.update(*key, data, db_attributes)

    def _clean_cert_db(self) -> EfiStatus:
        """Remove the signers of variables that a power cut left out, one store each."""
        status = EfiStatus.SUCCESS
        database = self._find(_CERT_DB)
        for node in [] if database is None else list(_nodes(database.data)):
            variable = self._variables.find(node.name + b"\0\0", node.guid)
            if variable is None or not variable.attributes & _AT:
                status = self._forget_signer(node.name + b"\0\0", node.guid, _NV)
                if status.is_error:
                    break
        return status

    # --- platform mode --------------------------------------------------------------------------

    def _in_custom_mode(self) -> bool:
        custom = self._find(_CUSTOM_MODE)
        return custom is not None and custom.data[:1] == _YES

    def _enter_mode(self, *, setup: bool) -> EfiStatus:
        """UpdatePlatformMode: at runtime only SetupMode changes."""
        mode = self._find(_SETUP_MODE)
        if mode is None:
            return EfiStatus.NOT_FOUND
        self._setup_mode = setup
        self._variables.overwrite_volatile(mode, _flag(setup))
        if self._variables.at_runtime:
            return EfiStatus.SUCCESS
        secure = _NO if self._find(_SECURE_BOOT) is None else _flag(not setup)
        status = self._store(_SECURE_BOOT, secure, _BS | _RT)
        if status.is_error:
            return status
        if secure == _YES:
            return self._store(_SECURE_BOOT_ENABLE, _YES, _NV | _BS)
        if self._find(_SECURE_BOOT_ENABLE) is None:
            return EfiStatus.SUCCESS
        return self._store(_SECURE_BOOT_ENABLE, b"", _NV | _BS)

    def _vendor_keys_modified(self) -> EfiStatus:
        """Record that keys were changed out of band, once."""
        if self._vendor_keys == _NO:
            return EfiStatus.SUCCESS
        self._vendor_keys = _NO
        status = self._store(_VENDOR_KEYS_NV, _NO, _NV | _BS | _AT)
        return status if status.is_error else self._store(_VENDOR_KEYS, _NO, _BS | _RT)

    # --- helpers --------------------------------------------------------------------------------

    def _find(self, key: Name) -> Record | None:
        return self._variables.find(*key)

    def _store(self, key: Name, data: bytes, attributes: int) -> EfiStatus:
        return self._variables.update(*key, data, attributes)


@dataclass(frozen=True, slots=True)
class _Node:
    """One entry of certdb; ``name`` has no NUL."""

    guid: bytes
    name: bytes
    digest: bytes
    raw: bytes


def _nodes(data: bytes) -> Iterator[_Node]:
    """Entries of a certdb; they end where a size does not fit."""
    position = len(_EMPTY_CERT_DB)
    while position + _CERT_NODE.size <= len(data):
        guid, size, name_length, digest_size = _CERT_NODE.unpack_from(data, position)
        name_size = 2 * name_length
        if size != _CERT_NODE.size + name_size + digest_size or position + size > len(data):
            return
        start = position + _CERT_NODE.size
        middle = start + name_size
        end = position + size
        yield _Node(guid, data[start:middle], data[middle:end], data[position:end])
        position = end


def _sized(nodes: bytes) -> bytes:
    return struct.pack("<I", len(_EMPTY_CERT_DB) + len(nodes)) + nodes


def _flag(value: bool) -> bytes:
    return _YES if value else _NO


def _request(name: bytes, guid: bytes, attributes: int, data: bytes) -> Request:
    size = descriptor_size(data) or 0
    return Request(name, guid, attributes, data[:TIME_SIZE], data[TIME_SIZE:size], data[size:])


def _deletes_authenticated(stored: int, attributes: int, data: bytes) -> bool:
    """IsDeleteAuthVariable: same attributes, and nothing behind the descriptor."""
    if attributes != stored or not attributes & (_AT | _AW):
        return False
    # With AW SetVariable has already refused every size but that of a bare descriptor.
    return bool(attributes & _AW) or descriptor_size(data) == len(data)


def _format_ok(request: Request) -> bool:
    if not request.payload or not (request.key in (_PK, _KEK) or request.key in _DATABASES):
        return True
    return signature_lists.well_formed(request.payload, single=request.key == _PK)

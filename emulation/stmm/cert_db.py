"""certdb and certdbv: who made which private authenticated variable.

Source: stack 4.7; ED SecurityPkg/Library/AuthVariableLib/AuthService.c.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from emulation.stmm.config import StmmConfig
from emulation.stmm.refusal import Refused, refuse_if
from emulation.stmm.store import AT, BS, NV, RT, Change, Key, Record, Variables
from harness.formats.efi import CERT_DB_GUID, EfiStatus, encode_name

CERT_DB: Final[Key] = (encode_name("certdb"), CERT_DB_GUID.bytes_le)
CERT_DB_VOLATILE: Final[Key] = (encode_name("certdbv"), CERT_DB_GUID.bytes_le)

_EMPTY: Final = struct.pack("<I", 4)
_NODE: Final = struct.Struct("<16sIII")


class Owned(Protocol):
    """A private authenticated variable: a SetVariable of one."""

    @property
    def key(self) -> Key: ...
    @property
    def attributes(self) -> int: ...


class CertDb:
    """The two databases; a variable's attributes say which one its signer is in."""

    def __init__(self, variables: Variables, config: StmmConfig) -> None:
        self._variables = variables
        self._max_size = config.max_auth_variable_size - 60 - len(CERT_DB_VOLATILE[0])

    def start(self) -> None:
        """Make what does not exist, and clean what does."""
        if self._variables.find(*CERT_DB) is None:
            self._store(CERT_DB, _EMPTY)
        else:
            self._clean()
        self._store(CERT_DB_VOLATILE, _EMPTY)

    def of(self, variable: Owned) -> bytes | None:
        """The digest of the chain that signed the variable first."""
        database = self._variables.find(*_database(variable))
        for node in [] if database is None else _nodes(database.data):
            if node.key == variable.key:
                return node.digest
        return None

    def remember(self, variable: Owned, identity: bytes) -> None:
        """Enter the signer of a new variable."""
        key = _database(variable)
        database = self._find(key)
        refuse_if(self.of(variable) is not None, EfiStatus.ACCESS_DENIED)
        name, guid = variable.key[0][:-2], variable.key[1]
        size = _NODE.size + len(name) + len(identity)
        node = _NODE.pack(guid, size, len(name) // 2, len(identity))
        data = _sized(database.data[4:] + node + name + identity)
        refuse_if(len(data) > self._max_size, EfiStatus.OUT_OF_RESOURCES)
        self._store(key, data)

    def forget(self, variable: Owned) -> None:
        """Remove the signer of a deleted variable."""
        self._forget(_database(variable), variable.key)

    def _forget(self, key: Key, variable: Key) -> None:
        database = self._find(key)
        if len(database.data) == len(_EMPTY):
            return
        nodes = list(_nodes(database.data))
        kept = [node for node in nodes if node.key != variable]
        refuse_if(len(kept) == len(nodes), EfiStatus.NOT_FOUND)
        self._store(key, _sized(b"".join(node.raw for node in kept)))

    def _clean(self) -> None:
        """Remove the signers of variables that a power cut left out, one store each."""
        for node in list(_nodes(self._find(CERT_DB).data)):
            variable = self._variables.find(*node.key)
            if variable is None or not variable.attributes & AT:
                self._forget(CERT_DB, node.key)

    def _find(self, key: Key) -> Record:
        database = self._variables.find(*key)
        if database is None:
            raise Refused(EfiStatus.NOT_FOUND)
        return database

    def _store(self, key: Key, data: bytes) -> None:
        stays = NV if key == CERT_DB else 0
        self._variables.update(Change(*key, stays | BS | RT | AT, data))


@dataclass(frozen=True, slots=True)
class _Node:
    """One entry; ``key`` is the variable's."""

    key: Key
    digest: bytes
    raw: bytes


def _database(variable: Owned) -> Key:
    return CERT_DB if variable.attributes & NV else CERT_DB_VOLATILE


def _nodes(data: bytes) -> Iterator[_Node]:
    """Entries of a database; they end where a size does not fit."""
    position = len(_EMPTY)
    while position + _NODE.size <= len(data):
        guid, size, name_length, digest_size = _NODE.unpack_from(data, position)
        name_size = 2 * name_length
        if size != _NODE.size + name_size + digest_size or position + size > len(data):
            return
        start = position + _NODE.size
        middle = start + name_size
        end = position + size
        key = (data[start:middle] + b"\0\0", guid)
        yield _Node(key, data[middle:end], data[position:end])
        position = end


def _sized(nodes: bytes) -> bytes:
    return struct.pack("<I", len(_EMPTY) + len(nodes)) + nodes

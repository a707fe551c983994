"""Algorithms with SHA-1, for servers of old boards: only those that ssh_config allows for the
host, as ssh(1) does. paramiko has none of them since its version 5. docs/ssh.md has the reasons."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from paramiko import PKey, RSAKey, Transport

# RFC 2409, 6.2
_GROUP1: Final = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF",
    16,
)
KNOWN: Final = ("diffie-hellman-group14-sha1", "diffie-hellman-group1-sha1", "ssh-rsa")
"""What there is, by its names in ssh_config."""


def allow(transport: Transport, old: frozenset[str]) -> None:
    """Let ``transport`` use what of ``old`` there is, after all that is better."""
    from paramiko.kex_group14 import KexGroup14SHA256

    class Group14(KexGroup14SHA256):
        name = "diffie-hellman-group14-sha1"
        hash_algo = hashlib.sha1

    class Group1(Group14):
        name = "diffie-hellman-group1-sha1"
        P = _GROUP1

    inner: Any = transport
    groups = {one.name: one for one in (Group14, Group1) if one.name in old}
    inner._kex_info = {**inner._kex_info, **groups}
    inner._preferred_kex = (*inner._preferred_kex, *groups)
    if "ssh-rsa" in old:
        inner._key_info = {**inner._key_info, "ssh-rsa": _rsa()}
        inner._preferred_keys = (*inner._preferred_keys, "ssh-rsa")


def signing(transport: Transport, key: PKey) -> PKey:
    """``key`` (of RSA) as one that signs with SHA-1. Nothing else of ``transport`` does then."""
    inner: Any = transport
    inner._preferred_pubkeys = ("ssh-rsa",)
    private = getattr(key, "private_key", None)
    return key if private is None else _rsa()(key=private)  # an agent signs as it is told


def _rsa() -> type[RSAKey]:
    from cryptography.hazmat.primitives import hashes
    from paramiko import RSAKey

    class Rsa(RSAKey):
        HASHES = {**RSAKey.HASHES, "ssh-rsa": hashes.SHA1}  # type: ignore[misc]

    return Rsa

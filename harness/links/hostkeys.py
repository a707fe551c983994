"""The host keys that may answer: a fingerprint, or what known_hosts files say (sshd(8))."""

from __future__ import annotations

import base64
import binascii
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from harness.edges import read_regular, reading
from harness.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncssh import SSHKey, SSHKnownHosts
    from paramiko import PKey

    from harness.links.route import Route

_CERTIFICATE = "-cert-v01@openssh.com"
_LARGEST = 4 << 20
"""Bytes: some 30000 keys."""
_NAMED = 5  # damaged lines of a file that are named
_RSA = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """``types`` are the host key algorithms to ask for, in that order; None for any."""

    described: str
    name: str
    types: tuple[str, ...] | None = None
    fingerprints: frozenset[str] = frozenset()
    authorities: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()

    @classmethod
    def of(cls, route: Route) -> KnownKeys:
        """Raises :class:`ConfigurationError` for what cannot be read."""
        wanted = route.address.host_key_fingerprint
        if not wanted:
            return _read(route)
        wanted = wanted.rstrip("=")
        if not wanted.startswith("SHA256:"):
            raise ConfigurationError(
                f"the host key fingerprint {wanted!r} is not of the form SHA256:…",
                remedy="take the one that `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`"
                " prints on the board",
            )
        return cls(wanted, route.host, fingerprints=frozenset({wanted}))

    def why_not(self, key: PKey) -> str | None:
        """Why a server with ``key`` is not the expected one; None if it is."""
        if key.fingerprint in self.revoked:
            return "it is marked @revoked"
        if key.fingerprint in self.fingerprints:
            return None
        blob = getattr(key, "public_blob", None)
        return "" if blob is None or not self.authorities else self._judged(blob.key_blob)

    def _judged(self, certificate: bytes) -> str | None:
        """The same for the certificate that the key came with."""
        import asyncssh
        from asyncssh.public_key import CERT_TYPE_HOST

        try:
            length = int.from_bytes(certificate[:4], "big")
            kind = certificate[4 : 4 + length]
            read = asyncssh.import_certificate(kind + b" " + base64.b64encode(certificate))
            read.validate(CERT_TYPE_HOST, self.name)  # type: ignore[attr-defined]
            signer: SSHKey = read.signing_key  # type: ignore[attr-defined]
        except (asyncssh.KeyImportError, ValueError) as error:
            return f"its certificate: {error}"
        signed = signer.get_fingerprint()
        if signed in self.revoked:
            return f"its certificate's authority {signed} is marked @revoked"
        if signed not in self.authorities:
            return f"its certificate is by the authority {signed}"
        return None


def fingerprint(public_key: str) -> str | None:
    """``SHA256:...`` of one line of a public key file; None if it is none."""
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error):
        return None
    return "SHA256:" + base64.b64encode(sha256(blob).digest()).decode().rstrip("=")


def _read(route: Route) -> KnownKeys:
    """As ssh(1) looks up: HostKeyAlias, else the name with the port if that is not 22, else the
    name alone."""
    import asyncssh

    known = asyncssh.import_known_hosts("")
    named = route.address.known_hosts
    files = (named,) if named else route.known_hosts
    damaged = [_passed_over(path, load(known, path, needed=named is not None)) for path in files]
    name = (route.name or route.host).lower()
    port = None if route.name or route.port == 22 else route.port
    keys, authorities, revoked = known.match(name, "", port)[:3]
    sought = f"[{name}]:{port}" if port else name
    places = ", ".join(map(str, files)) or "any known_hosts file"
    found = [f"{key.get_algorithm()} {key.get_fingerprint()}" for key in keys]
    found += [f"a certificate by {key.get_fingerprint()}" for key in authorities]
    said = f"{', '.join(found)} from {places}" if found else f"none ({sought} is not in {places})"
    said = "; ".join([said, *filter(None, damaged)])
    return KnownKeys(
        said,
        name,
        _algorithms(keys, certified=bool(authorities), route=route),
        fingerprints=frozenset(key.get_fingerprint() for key in keys),
        authorities=frozenset(key.get_fingerprint() for key in authorities),
        revoked=frozenset(key.get_fingerprint() for key in revoked),
    )


def _algorithms(keys: Sequence[SSHKey], *, certified: bool, route: Route) -> tuple[str, ...]:
    plain = list(dict.fromkeys(key.get_algorithm() for key in keys))
    all_kinds = ("ssh-ed25519", *(f"ecdsa-sha2-nistp{size}" for size in (256, 384, 521)), *_RSA[:2])
    wanted = [kind + _CERTIFICATE for kind in all_kinds if certified]
    for kind in plain:
        wanted += (
            [one for one in _RSA if one in (*_RSA[:2], *route.old)] if kind == "ssh-rsa" else [kind]
        )
    return tuple(wanted)


def load(known: SSHKnownHosts, path: Path, *, needed: bool) -> list[int]:
    """Add a file's lines to ``known``; the numbers of those that nobody can read are returned.
    Raises :class:`ConfigurationError` where a file that is ``needed`` cannot be read."""
    import asyncssh

    # ssh(1) is often pointed at /dev/null, and at files that are not there.
    if not needed and not path.is_file():
        return []
    remedy = "correct `known_hosts` in the board file, or give `host_key_fingerprint`"
    with reading("the known_hosts file", path, remedy=remedy):
        data = read_regular(path, limit=_LARGEST)
    damaged = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            asyncssh.import_public_key(line.split(None, 2 if line.startswith("@") else 1)[-1])
            known.load(line)
        except (ValueError, TypeError, LookupError, asyncssh.KeyImportError):
            damaged.append(number)
    return damaged


def _passed_over(path: Path, damaged: Sequence[int]) -> str:
    """The damaged lines of a file, logged once; empty where there are none."""
    if not damaged:
        return ""
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    numbers = ", ".join(map(str, damaged[:_NAMED]))
    text = f"{path}: damaged and passed over: line {numbers}{more}"
    _tell(text)
    return text


@functools.lru_cache(maxsize=64)
def _tell(text: str) -> None:
    logging.getLogger(__name__).warning("%s", text)

"""The known_hosts file of OpenSSH (sshd(8)): the keys that it has for one host. A line that is
damaged is passed over and named, as one of another host must not lock this one out."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.edges import read_regular, reading

_LARGEST: Final = 4 << 20
"""Bytes: some 30000 keys."""
_NAMED: Final = 5
"""How many damaged lines are named."""
_HASHED: Final = "|1|"
_REVOKED, _AUTHORITY = "@revoked", "@cert-authority"


@dataclass(frozen=True, slots=True)
class HostKeys:
    """What a file has for a host: type and SHA256 fingerprint of each key, and the numbers of the
    lines, of whichever host, that nobody can read."""

    keys: tuple[tuple[str, str], ...]
    damaged: tuple[int, ...]

    @property
    def passed_over(self) -> str:
        """The damaged lines, for messages; empty where there are none."""
        if not self.damaged:
            return ""
        numbers = ", ".join(map(str, self.damaged[:_NAMED]))
        more = len(self.damaged) - _NAMED
        return f"damaged and passed over: line {numbers}" + (f" and {more} more" * (more > 0))


def read(path: Path, names: Iterable[str]) -> HostKeys:
    """The keys that ``path`` has under one of ``names`` (``host``, ``[host]:port``), but for those
    it revokes. Raises :class:`ConfigurationError` where it cannot be read."""
    remedy = "correct `known_hosts` in the board file, or give `host_key_fingerprint`"
    with reading("the known_hosts file", path, remedy=remedy):
        content = read_regular(path, limit=_LARGEST)
    wanted, revoked, damaged = frozenset(names), set(), []
    keys: dict[tuple[str, str], None] = {}
    for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
        try:
            marker, hosts, key = _parse(line)
            if _is_among(hosts, wanted):
                if marker == _REVOKED:
                    revoked.add(key)
                elif not marker:
                    keys[key] = None
        except ValueError:
            damaged.append(number)
    found = HostKeys(tuple(key for key in keys if key not in revoked), tuple(damaged))
    if found.passed_over:
        _tell(f"{path}: {found.passed_over}")
    return found


def _parse(line: str) -> tuple[str, list[str], tuple[str, str]]:
    """Marker, hosts and key of a line, no hosts where it has none. Raises ValueError."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return "", [], ("", "")
    marker = words.pop(0) if words[0].startswith("@") else ""
    if marker not in ("", _REVOKED, _AUTHORITY) or len(words) < 3:
        raise ValueError(line)
    hosts, kind, text = words[:3]
    blob = base64.b64decode(text, validate=True)  # binascii.Error is a ValueError
    named = len(kind).to_bytes(4, "big") + kind.encode("latin-1")
    if not blob.startswith(named) or len(blob) == len(named):
        raise ValueError(line)
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return marker, hosts.split(","), (kind, f"SHA256:{digest}")


def _is_among(hosts: Iterable[str], wanted: frozenset[str]) -> bool:
    return any(
        _is_hash_of_one(host, wanted) if host.startswith(_HASHED) else host in wanted
        for host in hosts
    )


def _is_hash_of_one(hashed: str, wanted: frozenset[str]) -> bool:
    """Raises ValueError for what is no hash."""
    salt, digest = (base64.b64decode(part) for part in hashed.removeprefix(_HASHED).split("|"))
    return any(hmac.digest(salt, name.encode(), "sha1") == digest for name in wanted)


@functools.lru_cache(maxsize=64)
def _tell(text: str) -> None:
    logging.getLogger(__name__).warning("%s", text)

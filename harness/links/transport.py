"""An authenticated SSH connection: TCP_NODELAY, both identities proved, every wait bounded."""

from __future__ import annotations

import errno
import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ConfigurationError, HilError, LinkLost, LinkRefused, of_host
from harness.links import known_hosts
from harness.links.address import SshAddress

if TYPE_CHECKING:
    from paramiko import PKey, Transport
    from paramiko.packet import Packetizer

KEEPALIVE = 15  # seconds between keep-alive packets
PEER_SILENT = 30  # seconds after which the kernel gives up on unacknowledged data
LARGEST_PACKET = 256 << 10  # bytes; OpenSSH's own limit (packet.h, PACKET_MAX_SIZE)

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


class ConnectRefused(LinkRefused):
    """Nothing listens (yet): worth trying again while a board boots."""


def connect(address: SshAddress, *, timeout: float) -> Transport:
    """Connect and authenticate within ``timeout`` seconds.

    Raises ``LinkRefused`` (refused port, wrong host key, wrong user key), ``LinkLost`` (no
    answer, connection broken), ``ConfigurationError`` (unreadable key).
    """
    # connection problems are raised as our errors; paramiko would also print them
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    deadline = time.monotonic() + timeout
    try:
        user_key = _load_key(address.key) if address.key else None
        transport = _negotiate(address, deadline)
        try:
            _authenticate(transport, address, user_key, deadline)
        except BaseException:
            transport.close()
            raise
    except HilError as error:
        raise error.located(link=f"ssh {address}") from error.__cause__
    transport.set_keepalive(KEEPALIVE)
    return transport


def _remaining(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def _open_socket(address: SshAddress, deadline: float) -> socket.socket:
    where = f"{address.host} port {address.port}"
    try:
        sock = socket.create_connection((address.host, address.port), _remaining(deadline))
    except ConnectionRefusedError as error:
        raise ConnectRefused(
            f"{where} refused the connection",
            remedy="check that the board has booted, runs an SSH server and that the board file's"
            " `port` is the right one",
        ) from error
    except socket.gaierror as error:
        raise ConfigurationError(
            f"the host name {address.host!r} cannot be resolved ({error.strerror})",
            remedy="correct `host` in the board file, or the name service of this machine",
        ) from error
    except OSError as error:
        if (host := of_host(error)) is not None:
            raise host from error
        slow = isinstance(error, TimeoutError) or error.errno in _UNREACHABLE
        reason = "does not answer" if slow else f"cannot be reached ({error.strerror})"
        raise LinkLost(
            f"{where} {reason}",
            remedy="check power, network cable and address of the board",
        ) from error
    # paramiko leaves Nagle's algorithm on, which costs 40 ms a command
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_SILENT * 1000)
    return sock


def _negotiate(address: SshAddress, deadline: float) -> Transport:
    """Key exchange and the check of the host key. A server whose first key is not the expected
    one is asked again for its keys of other types, as a server has one of each."""
    seen: dict[str, str] = {}
    expected = _KnownKeys.of(address)
    while True:
        transport = _handshake(address, deadline, expected.types, frozenset(seen))
        if transport is None:
            break
        key = transport.get_remote_server_key()
        if expected.accepts(key):
            return transport
        transport.close()
        seen[key.get_name()] = key.fingerprint
        if expected.types is not None:
            break
    offered = ", ".join(f"{kind} {fingerprint}" for kind, fingerprint in seen.items())
    offered = offered or "none of the expected types"
    raise LinkRefused(
        f"the host key of {address.host} port {address.port} is not the expected one: it offers"
        f" {offered}; expected {expected.described}",
        remedy="if the board was reinstalled, put the new fingerprint into the board file"
        " (`host_key_fingerprint`) or known_hosts; otherwise another machine answers at this"
        " address",
    )


def _handshake(
    address: SshAddress, deadline: float, only: frozenset[str] | None, without: frozenset[str]
) -> Transport | None:
    """A transport after key exchange, with a host key of a type in ``only`` and not in
    ``without``; None if the server has no such key."""
    import paramiko

    sock = _open_socket(address, deadline)
    transport = paramiko.Transport(sock)
    _bound_packets(transport.packetizer)
    transport.daemon = True
    transport.banner_timeout = transport.handshake_timeout = _remaining(deadline)
    transport.clear_to_send_timeout = _remaining(deadline)
    options = transport.get_security_options()
    kinds = [k for k in options.key_types if _plain(k) not in without]
    if only is not None:
        kinds = [k for k in kinds if _plain(k) in only]
    if not kinds:
        transport.close()
        sock.close()
        return None
    options.key_types = kinds
    try:
        transport.start_client(timeout=_remaining(deadline))
        if not transport.initial_kex_done:
            raise TimeoutError("key exchange timed out")
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer) and (only or without):
            return None
        raise LinkLost(
            f"no SSH handshake with {address.host} port {address.port} ({error})",
            remedy="check that an SSH server listens there and that the board is not hung",
        ) from error
    return transport


def _bound_packets(packets: Packetizer) -> None:
    """Whoever answers at the address may announce a packet of 4 GiB, or send a greeting without
    end, before any key was checked; paramiko would take both."""
    import paramiko

    read_all, read_some = packets.read_all, packets._read_timeout  # type: ignore[attr-defined]
    greeting = 0

    def bounded_read(n: int, check_rekey: bool = False) -> bytes:
        if n > LARGEST_PACKET:
            raise paramiko.SSHException(f"a packet of {n} bytes")
        return read_all(n, check_rekey)

    def bounded_greeting(timeout: float) -> bytes:
        nonlocal greeting
        data: bytes = read_some(timeout)
        greeting += len(data)
        if greeting > LARGEST_PACKET:
            raise paramiko.SSHException("a greeting without end")
        return data

    packets.read_all = bounded_read  # type: ignore[method-assign]
    packets._read_timeout = bounded_greeting  # type: ignore[attr-defined]


def _plain(kind: str) -> str:
    """The key's own type for a signature algorithm of RSA (RFC 8332)."""
    return "ssh-rsa" if kind.startswith("rsa-sha2-") else kind


@dataclass(frozen=True, slots=True)
class _KnownKeys:
    """The host keys that may answer."""

    described: str
    types: frozenset[str] | None
    fingerprints: frozenset[str]

    def accepts(self, key: PKey) -> bool:
        return key.fingerprint in self.fingerprints

    @classmethod
    def of(cls, address: SshAddress) -> _KnownKeys:
        if address.host_key_fingerprint:
            wanted = address.host_key_fingerprint.rstrip("=")
            if not wanted.startswith("SHA256:"):
                raise ConfigurationError(
                    f"the host key fingerprint {wanted!r} is not of the form SHA256:…",
                    remedy="take the one that `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`"
                    " prints on the board",
                )
            return cls(wanted, None, frozenset({wanted}))
        return cls._from_file(address, address.known_hosts or Path.home() / ".ssh/known_hosts")

    @classmethod
    def _from_file(cls, address: SshAddress, path: Path) -> _KnownKeys:
        names = [f"[{address.host}]:{address.port}"]
        if address.port == 22:
            names.append(address.host)
        if not address.known_hosts and not path.exists():
            return cls(f"none (there is no {path})", None, frozenset())
        known = known_hosts.read(path, names)
        damaged = f"; {known.passed_over}" if known.damaged else ""
        if not known.keys:
            return cls(f"none ({names[0]} is not in {path}{damaged})", None, frozenset())
        described = ", ".join(f"{kind} {key}" for kind, key in known.keys)
        kinds, fingerprints = zip(*known.keys, strict=True)
        return cls(f"{described} from {path}{damaged}", frozenset(kinds), frozenset(fingerprints))


def _load_key(path: Path) -> PKey:
    import paramiko

    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise ConfigurationError(
            f"the user key {path} cannot be read ({error.strerror})",
            remedy="correct `key` in the board file, or the file's permissions",
        ) from error
    except (paramiko.SSHException, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the user key {path} is not a usable private key ({error})",
            remedy="give an unencrypted private key in OpenSSH or PEM form, e.g. from"
            " `ssh-keygen -t ed25519 -N ''`",
        ) from error


def _authenticate(
    transport: Transport, address: SshAddress, key: PKey | None, deadline: float
) -> None:
    import paramiko

    transport.auth_timeout = _remaining(deadline)
    how = f"user key {address.key}" if key else "password" if address.password else "no key"
    try:
        if key:
            transport.auth_publickey(address.user, key)
        elif address.password is not None:
            transport.auth_password(address.user, address.password)
        else:
            transport.auth_none(address.user)
    except (paramiko.SSHException, OSError, EOFError) as error:
        if time.monotonic() >= deadline or not _is_refusal(error):
            raise LinkLost(
                f"{address} broke off or stopped answering during authentication ({error})",
                remedy="check that the board is not hung or rebooting",
            ) from error
        raise LinkRefused(
            f"{address.host} port {address.port} does not accept {how} for user {address.user!r}",
            remedy="put the public key into ~/.ssh/authorized_keys of that user on the board, or"
            " correct `user`, `key` or `password` in the board file",
        ) from error


def _is_refusal(error: BaseException) -> bool:
    import paramiko

    broken = "shut down" in str(error) or "timeout" in str(error).lower()
    return isinstance(error, paramiko.AuthenticationException) and not broken

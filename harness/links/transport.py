"""An authenticated SSH connection: TCP_NODELAY, both identities proved, every wait bounded."""

from __future__ import annotations

import errno
import logging
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ConfigurationError, LinkLost, LinkRefused, of_host
from harness.links import sha1
from harness.links.hostkeys import KnownKeys
from harness.links.route import ProxySocket, Route
from harness.links.userkeys import authenticate, told

if TYPE_CHECKING:
    from paramiko import Message, Transport
    from paramiko.packet import Packetizer

KEEPALIVE = 15  # seconds between keep-alive packets
PEER_SILENT = 30  # seconds after which the kernel gives up on unacknowledged data
LARGEST_PACKET = 256 << 10  # bytes; OpenSSH's own limit (packet.h, PACKET_MAX_SIZE)

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


class ConnectRefused(LinkRefused):
    """Nothing listens (yet): worth trying again while a board boots."""


def connect(route: Route, *, timeout: float) -> Transport:
    """Connect and authenticate within ``timeout`` seconds.

    Raises ``LinkRefused`` (refused port, wrong host key, wrong user key), ``LinkLost`` (no
    answer, connection broken), ``ConfigurationError`` (unreadable key).
    """
    # connection problems are raised as our errors; paramiko would also print them
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    deadline = time.monotonic() + timeout
    said: list[str] = []
    transport = _negotiate(route, deadline, said)
    try:
        authenticate(transport, route, deadline, said)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(KEEPALIVE)
    return transport


def _remaining(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def _open_socket(route: Route, deadline: float) -> socket.socket:
    where = route.place
    if route.proxy:
        return ProxySocket(route.proxy)
    try:
        sock = socket.create_connection((route.host, route.port), _remaining(deadline))
    except ConnectionRefusedError as error:
        raise ConnectRefused(
            f"{where} refused the connection",
            remedy="check that the board has booted, runs an SSH server and that the board file's"
            f" `port` is the right one{route.note}",
        ) from error
    except socket.gaierror as error:
        raise ConfigurationError(
            f"the host name {route.host!r} cannot be resolved ({error.strerror})",
            remedy="correct `host` in the board file, or the name service of this machine, or give"
            f" ssh_config a `Host` of that name{route.note}",
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


def _negotiate(route: Route, deadline: float, said: list[str]) -> Transport:
    """Key exchange and the check of the host key. A server whose first key is not the expected
    one is asked again for its keys of other types, as a server has one of each."""
    seen: dict[str, str] = {}
    expected = KnownKeys.of(route)
    why: str | None = ""
    while True:
        transport = _handshake(route, deadline, expected.types, frozenset(seen), said)
        if transport is None:
            break
        key = transport.get_remote_server_key()
        why = expected.why_not(key)
        if why is None:
            return transport
        transport.close()
        seen[key.get_name()] = key.fingerprint
        if expected.types is not None:
            break
    offered = ", ".join(f"{kind} {fingerprint}" for kind, fingerprint in seen.items())
    offered = (offered or "none of the expected types") + (f" ({why})" if why else "")
    raise LinkRefused(
        f"the host key of {route.place} is not the expected one: it offers"
        f" {offered}; expected {expected.described}",
        remedy="if the board was reinstalled, put the new fingerprint into the board file"
        " (`host_key_fingerprint`) or known_hosts; otherwise another machine answers at this"
        " address",
    )


def _handshake(
    route: Route,
    deadline: float,
    only: tuple[str, ...] | None,
    without: frozenset[str],
    said: list[str],
) -> Transport | None:
    """A transport after key exchange, with a host key of a type in ``only`` and not in
    ``without``; None if the server has no such key."""
    import paramiko

    sock = _open_socket(route, deadline)
    transport = paramiko.Transport(sock)
    _bound_packets(transport.packetizer)
    offers = _listen(transport, said)
    transport.daemon = True
    transport.banner_timeout = transport.handshake_timeout = _remaining(deadline)
    transport.clear_to_send_timeout = _remaining(deadline)
    if route.old:
        sha1.allow(transport, route.old)
    options = transport.get_security_options()
    ours = tuple(options.key_types)
    able: dict[str, object] = transport._key_info  # type: ignore[attr-defined]
    wanted = ours if only is None else [kind for kind in only if kind in able]
    kinds = [k for k in wanted if _plain(k) not in without]
    # none to ask for and none seen: whatever it has will be named
    options.key_types = kinds or ours
    try:
        if without and not kinds:
            transport.close()
            sock.close()
            return None
        transport.start_client(timeout=_remaining(deadline))
        if not transport.initial_kex_done:
            raise TimeoutError("key exchange timed out")
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            if (why := _unlike(transport, offers, ours)) is not None:
                raise why from error
            return None
        if isinstance(sock, ProxySocket):
            said.append(sock.said)
        raise LinkLost(
            told(said, f"no SSH handshake with {route.place} ({error})"),
            remedy="check that an SSH server listens there and that the board is not hung",
        ) from error
    return transport


_KINDS: Final = {
    "kex": ("kex_algo_list", "KexAlgorithms"),
    "keys": ("server_key_algo_list", "HostKeyAlgorithms"),
    "ciphers": ("server_encrypt_algo_list", "Ciphers"),
    "macs": ("server_mac_algo_list", "MACs"),
}


def _unlike(
    transport: Transport, offers: dict[str, list[str]], keys: tuple[str, ...]
) -> LinkRefused | None:
    """Server and we have no algorithm in common: which, and what each has. None if it is only
    that the server's host keys are not of the types that were asked for."""
    for kind, (theirs, option) in _KINDS.items():
        offered = offers.get(theirs, [])
        ours = (
            *(keys if kind == "keys" else getattr(transport, f"_preferred_{kind}")),
            *(f"{key}-cert-v01@openssh.com" for key in keys if kind == "keys"),
        )
        if not offered or set(offered) & set(ours):
            continue
        weak = [one for one in offered if one in sha1.KNOWN]
        remedy = (
            f"if that board must be used: `{option} +{weak[0]}`"
            f"{' and `PubkeyAcceptedAlgorithms +ssh-rsa`' if 'ssh-rsa' in weak else ''} for its"
            " `Host` in ssh_config; docs/ssh.md says what that costs. Better: a newer SSH server"
            if weak
            else "allow more in the server's configuration, or use the console"
        )
        return LinkRefused(
            f"server and harness have no {option} in common: the server offers only"
            f" {', '.join(one for one in offered if 'kex-strict' not in one)}"
            + (", which need SHA-1" if weak else ""),
            remedy=remedy,
        )
    return None


def _listen(transport: Transport, said: list[str]) -> dict[str, list[str]]:
    """Keep what the server says outside of packets for programs: lines before its version, why it
    ends the connection; and, returned, the algorithms that it offers."""
    inner: Any = transport
    offers: dict[str, list[str]] = {}
    readline, disconnect = inner.packetizer.readline, inner._parse_disconnect
    parse = inner._really_parse_kex_init

    def line(timeout: float) -> str:
        text: str = readline(timeout)
        if not text.startswith("SSH-"):
            said.append(text)
        return text

    def disconnected(message: Message) -> None:
        rest = type(message)(message.get_remainder())
        rest.get_int()
        said.append(rest.get_text())
        disconnect(message)

    def offered(message: Message, *args: Any, **kwargs: Any) -> Any:
        found = parse(message, *args, **kwargs)
        if not offers:  # ours are parsed by it, too
            offers.update({k: [*v] for k, v in found.items() if isinstance(v, list)})
        return found

    inner.packetizer.readline, inner._parse_disconnect = line, disconnected
    inner._really_parse_kex_init = offered
    return offers


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
    """The key's own type for a signature algorithm of RSA (RFC 8332), or of a certificate."""
    kind = kind.removesuffix("-cert-v01@openssh.com")
    return "ssh-rsa" if kind.startswith("rsa-sha2-") else kind

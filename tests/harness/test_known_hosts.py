"""known_hosts: a damaged line is passed over and named, a damaged file is one paragraph."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from harness.errors import ConfigurationError

HANGS = 60.0


def line(host: str, blob: bytes) -> str:
    return f"{host} ssh-ed25519 {base64.b64encode(blob).decode()}"


def blob(seed: bytes) -> bytes:
    kind = b"ssh-ed25519"
    return len(kind).to_bytes(4, "big") + kind + (32).to_bytes(4, "big") + seed * 32


def fingerprint(blob: bytes) -> str:
    return f"SHA256:{base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip('=')}"


def hashed(host: str) -> str:
    salt = bytes(range(20))
    digest = hmac.digest(salt, host.encode(), "sha1")
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


OURS = blob(b"o")


def read(path: Path, host: str = "board") -> tuple[list[str], list[int]]:
    """Fingerprints that ``path`` has for ``host``, and the lines that are damaged."""
    # Late: older commits, which are told by commands only, have no such module.
    import asyncssh

    from harness.links import hostkeys

    known = asyncssh.import_known_hosts("")
    damaged = hostkeys.load(known, path, needed=True)
    trusted, _, revoked = known.match(host, "", None)[:3]
    bad = {key.get_fingerprint() for key in revoked}
    return [one for key in trusted if (one := key.get_fingerprint()) not in bad], damaged


DAMAGED = [
    "board",
    "board ssh-ed25519",
    "board ssh-ed25519 ====",
    "board ssh-ed25519 AAAA",
    f"board ssh-rsa {base64.b64encode(OURS).decode()}",
    "board ssh-ed25519 " + "\xff\xfe",
    "@unheard-of " + line("board", OURS),
    line("|1|x", OURS),
    line("|1|AAAA|AAAA|AAAA", OURS),
    "\0\x01\x02",
]


@pytest.mark.parametrize("host", ["board", "other,board", "b?ard", hashed("board")])
def test_a_key_is_found_under_each_spelling(host: str, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"# comment\n\n{line('elsewhere', blob(b'x'))}\n{line(host, OURS)} me@here\n")
    assert read(path) == ([fingerprint(OURS)], [])


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_line_is_passed_over_and_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_bytes(f"{text}\n{line('board', OURS)}\n".encode("latin-1"))
    assert read(path) == ([fingerprint(OURS)], [1])


def test_a_revoked_key_is_none_and_an_authority_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    good = blob(b"g")
    path.write_text(
        f"{line('board', OURS)}\n@revoked {line('board', OURS)}\n"
        f"@cert-authority {line('*.lab', blob(b'c'))}\n{line('board', good)}\n"
    )
    assert read(path) == ([fingerprint(good)], [])


# --- as a command meets it ------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[int, paramiko.PKey]]:
    """An SSH server that shows a host key and lets nobody in."""
    import threading

    key = paramiko.ECDSAKey.generate()
    listener = socket.create_server(("127.0.0.1", 0))
    transports = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(sock)
            transports.append(transport)
            transport.add_server_key(key)
            try:
                transport.start_server(server=paramiko.ServerInterface())
            except (paramiko.SSHException, EOFError, OSError):
                continue

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1], key
    listener.close()
    for transport in transports:
        transport.close()


def hil_run(tmp_path: Path, port: int) -> subprocess.CompletedProcess[str]:
    (tmp_path / "desk.toml").write_text(
        'emmc_cid = "aa015851454d55212101deadbeef2900"\n[power]\ndriver = "manual"\n'
        f'[ssh]\nhost = "127.0.0.1"\nport = {port}\nknown_hosts = "known"\npassword = "p"\n'
        "[timeouts]\nboot = 2\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "harness", "run", str(tmp_path / "desk.toml"), "true"],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        env={**os.environ, "HIL_LEASES": str(tmp_path / "leases")},
    )


@pytest.mark.fault("R7")
def test_a_command_gets_as_far_as_the_login(
    tmp_path: Path, server: tuple[int, paramiko.PKey]
) -> None:
    port, key = server
    lines = [*DAMAGED, f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}"]
    known = "".join(f"{line}\n" for line in lines)
    (tmp_path / "known").write_bytes(known.encode("latin-1"))
    run = hil_run(tmp_path, port)
    assert "Traceback" not in run.stderr
    assert "does not accept password" in run.stderr
    assert "known: damaged and passed over: line 1, 2, 3, 4" in run.stderr


KINDS: dict[str, Callable[[Path], object]] = {
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 64),
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: None,
    "large": lambda path: path.write_bytes(b"\n" * (5 << 20)),
}


@pytest.mark.fault("R7")
@pytest.mark.parametrize("kind", KINDS)
def test_a_command_says_what_the_file_is(
    kind: str, tmp_path: Path, server: tuple[int, paramiko.PKey]
) -> None:
    KINDS[kind](tmp_path / "known")
    run = hil_run(tmp_path, server[0])
    assert "hil: " in run.stderr, run.stderr
    assert "Traceback" not in run.stderr
    assert str(tmp_path / "known") in run.stderr
    assert run.returncode == (1 if kind == "binary" else 4)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "known").touch(mode=0)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        read(tmp_path / "known")

"""SSH as people have it: every case beside ssh(1) against a real server. The table of them is in
docs/results/benches.md."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, HilError, HostError, LinkLost, LinkRefused
from harness.links.address import SshAddress
from harness.links.ssh import SshShell
from tests.harness.support.servers import (
    Account,
    Server,
    fingerprint,
    free_port,
    make_key,
    need,
    openssh,
)
from tests.pace import within

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server in a folder of its own."""
    need("ssh", "openssh-client")
    servers: list[Server] = []

    def started(name: str = "board", **options: object) -> Server:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        servers.append(openssh(folder, **options))  # type: ignore[arg-type]
        servers[-1].start()
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that ssh(1) takes for its user's ssh_config: it asks the user database, not $HOME,
    where that is."""
    ssh = need("ssh", "openssh-client")
    file = tmp_path / "ssh_config"
    file.touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {file} "$@"\n')
    (tools / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return file


@contextmanager
def shell_to(address: SshAddress) -> Iterator[SshShell]:
    shell = SshShell(address)
    try:
        yield shell
    finally:
        shell.close()


def ours(address: SshAddress) -> str:
    """What ``echo ok`` says through the harness."""
    with shell_to(address) as shell:
        return shell.run("echo ok").text


def theirs(
    address: SshAddress, *options: str, command: str = "echo ok"
) -> subprocess.CompletedProcess[str]:
    """The same by ssh(1), which asks nobody anything."""
    words = ["ssh", "-o", "BatchMode=yes", *(w for one in options for w in ("-o", one))]
    words += ["-i", str(address.key)] if address.key else []
    words += ["-p", str(address.port)] if address.port else []
    words += ["-l", address.user] if address.user else []
    return subprocess.run(
        [*words, "--", address.host, command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(address: SshAddress, kind: type[HilError] = LinkRefused) -> str:
    with pytest.raises(kind) as caught:
        ours(address)
    return str(caught.value)


def known_by(server: Server, file: Path, *lines: str) -> SshAddress:
    """The server's address where only ``file`` with ``lines`` proves it."""
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return replace(server.address, host_key_fingerprint=None, known_hosts=file)


def trusting(file: Path | None) -> tuple[str, ...]:
    return (f"UserKnownHostsFile={file}", "GlobalKnownHostsFile=/dev/null")


def public(folder: Path, name: str = "host_key") -> str:
    return " ".join((folder / f"{name}.pub").read_text("ascii").split()[:2])


def name_of(server: Server) -> str:
    return f"[{server.address.host}]:{server.address.port}"


# --- user keys ------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """ssh-agent of this test alone; called, it takes a key."""
    path = tmp_path / "agent"
    process = subprocess.Popen(
        [need("ssh-agent", "openssh-client"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL
    )
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)

    def add(key: Path, passphrase: str = "") -> None:
        asker = tmp_path / "asker"
        asker.write_text(f"#!/bin/sh\necho {passphrase}\n")
        asker.chmod(0o700)
        environment = {"SSH_ASKPASS": str(asker), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env={**os.environ, **environment})

    yield add
    process.terminate()
    process.wait()


@pytest.mark.fault("B01")
def test_the_agent_is_asked(
    start: Start, config: Path, agent: Callable[..., None], tmp_path: Path
) -> None:
    server = start()
    assert server.address.key is not None
    agent(server.address.key)
    keyless = replace(server.address, key=None)
    known = tmp_path / "known"
    known_by(server, known, f"{name_of(server)} {public(tmp_path / 'board')}")
    assert theirs(keyless, *trusting(known)).stdout == "ok\n"
    assert ours(keyless) == "ok"


def encrypted(folder: Path, passphrase: str) -> Path:
    path = folder / "encrypted"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True
    )
    return path


@pytest.mark.fault("B01")
@pytest.mark.parametrize("beside", [True, False], ids=["public key beside it", "alone"])
def test_an_encrypted_key_is_used_through_the_agent(
    start: Start, config: Path, agent: Callable[..., None], tmp_path: Path, *, beside: bool
) -> None:
    server = start()
    key = encrypted(tmp_path, "secret")
    (tmp_path / "board/authorized_keys").write_bytes(Path(f"{key}.pub").read_bytes())
    address = replace(server.address, key=key)
    if not beside:
        Path(f"{key}.pub").unlink()
    told = refused(address, ConfigurationError)
    assert "is encrypted" in told
    assert f"ssh-add {key}" in told
    agent(key, "secret")
    assert ours(address) == "ok"


@pytest.mark.fault("B01")
@pytest.mark.parametrize("through", ["file", "agent", "encrypted file and agent"])
def test_a_user_certificate(
    start: Start, config: Path, agent: Callable[..., None], tmp_path: Path, through: str
) -> None:
    authority = make_key(tmp_path / "authority")
    server = start(config=[f"TrustedUserCAKeys {authority}.pub", "AuthorizedKeysFile none"])
    key = encrypted(tmp_path, "secret" if "encrypted" in through else "")
    sign(authority, key, "-n", getpass.getuser())
    if through != "file":
        agent(key, "secret" if "encrypted" in through else "")
    address = replace(server.address, key=None if through == "agent" else key)
    known = tmp_path / "known"
    known_by(server, known, f"{name_of(server)} {public(tmp_path / 'board')}")
    assert theirs(address, *trusting(known)).stdout == "ok\n"
    assert ours(address) == "ok"


def sign(authority: Path, key: Path, *options: str) -> None:
    """A certificate for ``key`` beside it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, f"{key}.pub"],
        check=True,
        capture_output=True,
    )


def test_too_many_keys_in_the_agent(
    start: Start, config: Path, agent: Callable[..., None], tmp_path: Path
) -> None:
    """As ssh(1): the server ends it, in its own words; the board file's key is offered alone."""
    server = start(config=["MaxAuthTries 2"])
    for number in range(4):
        agent(make_key(tmp_path / f"key{number}"))
    told = refused(replace(server.address, key=None))
    assert "the server says: Too many authentication failures" in told
    assert ours(server.address) == "ok"


def test_the_banner_stands_before_the_refusal(start: Start, config: Path, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("Only staff of lab 7.\nCall 1234.\n")
    server = start(config=[f"Banner {tmp_path}/banner"])
    assert ours(server.address) == "ok"
    told = refused(replace(server.address, key=make_key(tmp_path / "stranger")))
    assert told.startswith("the server says: Only staff of lab 7. Call 1234.; ")
    assert "(it takes publickey" not in told or "stranger" in told


# --- host keys ------------------------------------------------------------------------------------


@pytest.mark.fault("B02")
@pytest.mark.parametrize(
    "odd",
    [
        "elsewhere ssh-ed25519 AAAAnotbase64!",
        "elsewhere ssh-ed25519 AAAA",
        "onlyonefield",
        "|1|damaged ssh-ed25519 AAAA",
        "@strange-marker * ssh-ed25519 AAAA",
        "\udcff\udcfe binary \x01",
        "@cert-authority *.example.org {other}",
    ],
)
def test_an_odd_line_disables_nothing(start: Start, config: Path, tmp_path: Path, odd: str) -> None:
    server = start()
    other = public(make_key(tmp_path / "other").parent, "other")
    file = tmp_path / "known"
    lines = [odd.format(other=other), f"{name_of(server)} {public(tmp_path / 'board')}"]
    file.write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    address = replace(server.address, host_key_fingerprint=None, known_hosts=file)
    assert theirs(address, *trusting(file)).stdout == "ok\n"
    assert ours(address) == "ok"
    file.write_bytes("\n".join([lines[0], ""]).encode("utf-8", "surrogateescape"))
    assert theirs(address, *trusting(file)).returncode == 255
    told = refused(address)
    assert "is not in" in told
    assert (f"{file}: damaged and passed over: line 1" in told) == ("cert-authority" not in odd)


@pytest.mark.fault("B02")
def test_known_hosts_that_is_no_file_is_told(start: Start, config: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    address = replace(start().address, host_key_fingerprint=None, known_hosts=fifo)
    assert "it is a FIFO" in refused(address, ConfigurationError)


@pytest.mark.fault("B03")
@pytest.mark.parametrize("pattern", ["twice", "wildcard", "negated", "hashed", "no port", "alias"])
def test_known_hosts_is_read_as_ssh_reads_it(
    start: Start, config: Path, tmp_path: Path, pattern: str
) -> None:
    server = start()
    name, key = name_of(server), public(tmp_path / "board")
    other = public(make_key(tmp_path / "other").parent, "other")
    file = tmp_path / "known"
    lines = {
        "twice": [f"{name} {other}", f"{name} {key}"],
        "wildcard": [f"[127.0.0.*]:* {other}", f"[127.*]:* {key}"],
        "negated": [f"*,!{name} {other}", f"elsewhere,{name} {key}"],
        "hashed": [f"{name} {key}"],
        "no port": [f"127.0.0.1 {key}"],
        "alias": [f"desk3 {key}"],
    }[pattern]
    address = known_by(server, file, *lines)
    if pattern == "hashed":
        subprocess.run(["ssh-keygen", "-H", "-f", str(file)], check=True, capture_output=True)
        assert name not in file.read_text()
    if pattern == "alias":
        config.write_text("Host 127.0.0.1\nHostKeyAlias desk3\n")
    assert theirs(address, *trusting(file)).stdout == "ok\n"
    assert ours(address) == "ok"


@pytest.mark.fault("B02")
@pytest.mark.parametrize(
    ("options", "good"),
    [
        (["-n", "127.0.0.1"], True),
        ([], True),
        (["-n", "127.0.0.*"], False),
        (["-n", "elsewhere"], False),
        (["-n", "127.0.0.1", "-V", "20200101:20200102"], False),
    ],
    ids=["name", "any", "wildcard", "another", "expired"],
)
def test_an_authority_is_honoured(
    start: Start, config: Path, tmp_path: Path, options: list[str], *, good: bool
) -> None:
    authority = make_key(tmp_path / "authority")
    folder = tmp_path / "board"
    server = start(config=[f"HostCertificate {folder}/host_key-cert.pub"])
    server.stop()
    sign(authority, folder / "host_key", "-h", *options)
    server.start()
    file = tmp_path / "known"
    address = known_by(
        server, file, f"@cert-authority [127.0.0.1]:* {public(tmp_path, 'authority')}"
    )
    says = theirs(address, *trusting(file))
    assert (says.stdout == "ok\n") == good, says.stderr
    if good:
        assert ours(address) == "ok"
    else:
        assert "certificate" in refused(address)


@pytest.mark.fault("B02")
def test_a_revoked_key_is_refused(start: Start, config: Path, tmp_path: Path) -> None:
    server = start()
    file, key = tmp_path / "known", public(tmp_path / "board")
    address = known_by(server, file, f"@revoked * {key}", f"{name_of(server)} {key}")
    assert "revoked" in theirs(address, *trusting(file)).stderr.lower()
    assert "@revoked" in refused(address)


# --- old servers ----------------------------------------------------------------------------------

_OLD = {
    "key exchange": ["KexAlgorithms diffie-hellman-group14-sha1"],
    "oldest key exchange": ["KexAlgorithms diffie-hellman-group1-sha1"],
    "host key": ["HostKeyAlgorithms ssh-rsa"],
    "everything": [
        "KexAlgorithms diffie-hellman-group1-sha1",
        "HostKeyAlgorithms ssh-rsa",
        "PubkeyAcceptedAlgorithms ssh-rsa",
        "Ciphers aes128-cbc",
        "MACs hmac-sha1",
    ],
}


@pytest.mark.fault("B04")
@pytest.mark.parametrize("what", _OLD)
def test_a_server_with_sha1_only(start: Start, config: Path, tmp_path: Path, what: str) -> None:
    rsa = make_key(tmp_path / "rsa", "rsa")
    server = start(config=[*_OLD[what], f"HostKey {rsa}"])
    user = make_key(tmp_path / "user_rsa", "rsa")
    (tmp_path / "board/authorized_keys").write_text(Path(f"{user}.pub").read_text("ascii"))
    address = known_by(server, tmp_path / "known", f"{name_of(server)} {public(tmp_path, 'rsa')}")
    if what.endswith("exchange"):
        address = known_by(
            server, tmp_path / "known", f"{name_of(server)} {public(tmp_path / 'board')}"
        )
    address = replace(address, key=user)
    pinned = replace(
        address, known_hosts=None, host_key_fingerprint=fingerprint(Path(f"{rsa}.pub"))
    )
    assert "no matching" in theirs(address, *trusting(tmp_path / "known")).stderr
    for one in [address, pinned] if what != "everything" else [address]:
        told = refused(one)
        assert "not the expected one" not in told
        assert "SHA-1" in told
        assert "in ssh_config" in told
    plus = "" if what == "everything" else "+"  # what ssh(1) offers first is refused there
    config.write_text(
        "Host *\nKexAlgorithms +diffie-hellman-group14-sha1,diffie-hellman-group1-sha1\n"
        f"HostKeyAlgorithms +ssh-rsa\nPubkeyAcceptedAlgorithms {plus}ssh-rsa\nCiphers +aes128-cbc\n"
    )
    says = theirs(address, *trusting(tmp_path / "known"))
    assert says.stdout == "ok\n", says.stderr
    assert ours(address) == "ok"


def test_a_server_with_what_paramiko_has_not(start: Start, config: Path, tmp_path: Path) -> None:
    """ssh(1) gets along; we say what is missing."""
    server = start(config=["Ciphers chacha20-poly1305@openssh.com"])
    told = refused(server.address)
    assert "no Ciphers in common" in told
    assert "chacha20-poly1305" in told


# --- what the account does ------------------------------------------------------------------------


def account(tmp_path: Path, shell: str, **files: str) -> Account:
    home = tmp_path / "home"
    home.mkdir()
    for name, text in files.items():
        (home / f".{name}").write_text(text)
    return Account(home, shell=shell)


_PRINTS = 'echo "Welcome to the lab"; echo "and to its errors" >&2; printf "\\0\\0\\0\\5no newline"'


@pytest.mark.fault("B05")
def test_a_start_up_file_that_prints(start: Start, config: Path, tmp_path: Path) -> None:
    """sftp(1) gives up ("Received message too long"); files go through the shell here."""
    sftp = Path("/usr/lib/openssh/sftp-server")
    if not sftp.exists():
        pytest.skip("sftp-server is missing; install the package openssh-sftp-server")
    bash = need("bash", "bash")
    server = start(
        accounts=[account(tmp_path, bash, bashrc=_PRINTS)],
        sftp=False,
        config=[f"Subsystem sftp {sftp}"],
    )
    file = tmp_path / "file"
    with shell_to(server.address) as shell:
        result = shell.run("echo out; echo err >&2")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        shell.write_file(str(file), b"\0content\n")
        assert file.read_bytes() == b"\0content\n"
        assert shell.read_file(str(file)) == b"\0content\n"
        with pytest.raises(FileNotFoundError):
            shell.read_file(str(tmp_path / "nowhere"))
        result = shell.run_isolated("cat", stdin=b"in")
        assert (result.stdout, result.stderr) == (b"in", b"")


@pytest.mark.fault("B06")
def test_one_session_only(start: Start, config: Path, tmp_path: Path) -> None:
    server = start(config=["MaxSessions 1"])
    file = tmp_path / "file"
    much = bytes(range(256)) * 400
    with shell_to(server.address) as shell:
        assert shell.run("echo ok").text == "ok"
        shell.write_file(str(file), much)
        assert shell.read_file(str(file)) == much
        assert shell.run("cat", stdin=much).stdout == much
        assert shell.run_isolated("echo alone").text == "alone"
        for _ in range(20):
            shell.run_isolated("true")
        with pytest.raises(HilError, match="no end of the command"):
            shell.run("sleep 60", timeout=0.5)
        assert shell.run("echo still").text == "still"
        assert len(server.sessions()) < 14


@pytest.mark.fault("B12")
@pytest.mark.parametrize("name", ["tcsh", "fish", "zsh", "bash", "dash"])
def test_a_login_shell_that_is_no_posix_shell(
    start: Start, config: Path, tmp_path: Path, name: str
) -> None:
    """ssh(1) hands the command line to it, whatever that makes of it."""
    server = start(accounts=[account(tmp_path, need(name, name))])
    odd = tmp_path / "it's an \\odd! $name\n"
    with shell_to(server.address) as shell, within(8):
        result = shell.run("echo out'!'; echo err >&2; exit 3")
        assert (result.stdout, result.stderr, result.status) == (b"out!\n", b"err\n", 3)
        shell.write_file(str(odd), b"content")
        assert shell.read_file(str(odd)) == b"content"
        assert shell.run_isolated("echo alone").text == "alone"
        with pytest.raises(HilError, match="no end of the command"):
            shell.run("sleep 60", timeout=0.5)
        assert shell.run("pgrep -x sleep || echo none").status == 0


@pytest.mark.fault("B06", "B12")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shell": "/usr/sbin/nologin"}, "This account is currently not available"),
        ({"config": "ForceCommand internal-sftp"}, "This service allows sftp connections only"),
        ({"config": "ForceCommand echo menu of the day; exit 0"}, "menu of the day"),
        ({"config": "ForceCommand cat"}, "does not run 'sh'"),
    ],
    ids=["nologin", "sftp only", "another command", "one that reads"],
)
def test_an_account_that_runs_something_else(
    start: Start, config: Path, tmp_path: Path, options: dict[str, str], says: str
) -> None:
    """Told at once, and in its words."""
    server = start(
        accounts=[account(tmp_path, options.get("shell", "/bin/sh"))],
        config=[options["config"]] if "config" in options else [],
    )
    with within(4):
        told = refused(server.address, HostError)
    assert says in told
    assert "login shell" in told


def test_a_menu_that_waits(start: Start, config: Path, tmp_path: Path) -> None:
    server = start(config=["ForceCommand echo 'Choose 1 or 2:'; exec sleep 600"])
    with shell_to(server.address) as shell, pytest.raises(LinkLost, match="Choose 1 or 2") as told:
        shell.run("true", timeout=1.5)
    assert "menu" in str(told.value)


# --- passwords ------------------------------------------------------------------------------------

_PASSWORD = "aPPle-7-tree"
_NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="PAM reads /etc/shadow as root only")


@pytest.fixture(params=["password", "keyboard-interactive"])
def pam(request: pytest.FixtureRequest, tmp_path: Path, start: Start) -> Callable[..., Server]:
    """A server with PAM and a user "hiltest" whose shadow(5) ends in what is given."""
    keyboard = request.param == "keyboard-interactive"
    if not Path("/etc/pam.d/sshd").exists():
        pytest.skip("PAM does not know sshd; install the package openssh-server")
    hashed = subprocess.run(
        [need("openssl", "openssl"), "passwd", "-6", _PASSWORD],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()

    def started(ages: str = "19000:0:99999:7:::") -> Server:
        home = tmp_path / "home"
        home.mkdir(mode=0o755)
        os.chown(home, 64321, 64321)
        user = Account(home, "hiltest", 64321, 64321, shadow=f"{hashed}:{ages}")
        server = start(
            accounts=[user],
            config=[
                "UsePAM yes",
                f"PasswordAuthentication {'no' if keyboard else 'yes'}",
                f"KbdInteractiveAuthentication {'yes' if keyboard else 'no'}",
            ],
        )
        server.address = replace(server.address, key=None, password=_PASSWORD)
        return server

    return started


@_NEEDS_ROOT
@pytest.mark.fault("B06")
def test_a_password(pam: Callable[..., Server], config: Path) -> None:
    server = pam()
    assert ours(server.address) == "ok"
    told = refused(replace(server.address, password="wrong"))
    assert "does not accept password" in told
    assert "wrong" not in told


@_NEEDS_ROOT
@pytest.mark.fault("B06")
def test_an_expired_password_is_told_and_not_changed(
    pam: Callable[..., Server], config: Path, tmp_path: Path
) -> None:
    server = pam("0:0:99999:7:::")
    shadow = (tmp_path / "board/shadow").read_text()
    told = refused(server.address)
    assert re.search("the server says: .*(change|expired)", told), told
    assert "authorized_keys" not in told
    assert _PASSWORD not in told
    assert (tmp_path / "board/shadow").read_text() == shadow


# --- the way to it --------------------------------------------------------------------------------


@pytest.mark.fault("B07")
@pytest.mark.parametrize("way", ["alias", "match", "ProxyJump", "ProxyJump twice", "ProxyCommand"])
def test_ssh_config_leads_the_way(start: Start, config: Path, tmp_path: Path, way: str) -> None:
    server = start()
    end = server.address
    known = tmp_path / "known"
    lines = [f"{name_of(server)} {public(tmp_path / 'board')}"]
    here = f"HostName {end.host}\nPort {end.port}\nUser {end.user}\nIdentityFile {end.key}\n"
    text = f"Host desk3\n{here}"
    if way == "match":
        text = f"Match host desk? exec true\n{here}"
    if way.startswith("ProxyJump"):
        jump = start("jump")
        lines.append(f"{name_of(jump)} {public(tmp_path / 'jump')}")
        one = jump.address
        text += f"ProxyJump {'gate,' if 'twice' in way else ''}gate\n"
        text += f"Host gate\nHostName {one.host}\nPort {one.port}\nIdentityFile {one.key}\n"
        text += f"User {one.user}\n"
    if way == "ProxyCommand":
        text += f"ProxyCommand {need('socat', 'socat')} - TCP:%h:%p\n"
    known.write_text("\n".join([*lines, ""]))
    config.write_text(f"UserKnownHostsFile {known}\n{text}")
    alias = SshAddress("desk3", user=end.user)
    assert theirs(alias).stdout == "ok\n"
    with shell_to(alias) as shell:
        assert shell.run("echo ok").text == "ok"
        assert shell.read_file("/etc/hostname") == Path("/etc/hostname").read_bytes()
    if way == "alias":  # the board file's own keys win
        assert f"port {free_port()}"[:4] in refused(replace(alias, port=free_port()))


@pytest.mark.fault("B07")
def test_hil_run_and_shell_go_the_same_way(start: Start, config: Path, tmp_path: Path) -> None:
    server, jump = start(), start("jump")
    one, end = jump.address, server.address
    known = tmp_path / "known"
    known.write_text(f"{name_of(jump)} {public(tmp_path / 'jump')}\n")
    config.write_text(
        f"UserKnownHostsFile {known}\nUser {end.user}\nHost desk3\nHostName {end.host}\n"
        f"Port {end.port}\nIdentityFile {end.key}\nProxyJump gate\n"
        f"Host gate\nHostName {one.host}\nPort {one.port}\nIdentityFile {one.key}\n"
    )
    file = tmp_path / "desk3.toml"
    file.write_text(
        'emmc_cid = "aa015851454d55212101deadbeef2900"\n[ssh]\nhost = "desk3"\n'
        f'user = "{end.user}"\nhost_key_fingerprint = "{end.host_key_fingerprint}"\n'
        '[power]\ndriver = "manual"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "harness", "shell", str(file)],
        input="echo answer-$((40+2))\n",
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HIL_LEASES": str(tmp_path / "leases")},
        check=False,
    )
    assert "answer-42" in done.stdout, done.stderr


@pytest.mark.fault("B07")
def test_what_the_jump_says_comes_first(start: Start, config: Path, tmp_path: Path) -> None:
    config.write_text(f"Host desk3\nProxyJump 127.0.0.1:{free_port()}\n")
    told = refused(SshAddress("desk3", user="root"), LinkLost)
    assert re.search("the server says: .*Connection refused", told), told
    assert "through `" in told


@pytest.mark.fault("B07")
def test_a_wrong_ssh_config_is_told_in_ssh_s_words(config: Path) -> None:
    config.write_text("Hots desk3\n")
    told = refused(SshAddress("desk3"), ConfigurationError)
    assert "Bad configuration option: hots" in told


def test_without_ssh_there_is_no_ssh_config(
    start: Start, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = start()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert ours(server.address) == "ok"
    told = refused(SshAddress("no-such-alias.invalid", key=server.address.key), ConfigurationError)
    assert "ssh(1) is not installed" in told


@pytest.mark.fault("B07")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_literal_address_of_ipv6(start: Start, config: Path, tmp_path: Path, host: str) -> None:
    if not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    server = start(host="::1")
    file = tmp_path / "known"
    known_by(server, file, f"[::1]:{server.address.port} {public(tmp_path / 'board')}")
    assert theirs(server.address, *trusting(file)).stdout == "ok\n"
    known = replace(server.address, host=host, host_key_fingerprint=None, known_hosts=file)
    assert ours(known) == "ok"


@pytest.mark.fault("B07")
@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("[::1]:2222", "host = ::1, port = 2222"),
        ("desk3:2222", "host = desk3, port = 2222"),
        ("pi@desk3", "user = pi, host = desk3"),
    ],
)
def test_what_else_is_written_into_host(tmp_path: Path, host: str, hint: str) -> None:
    from harness.boardfile.loading import load

    file = tmp_path / "desk3.toml"
    file.write_text(
        f'emmc_cid = "aa015851454d55212101deadbeef2900"\n[ssh]\nhost = "{host}"\n'
        '[power]\ndriver = "manual"\n'
    )
    with pytest.raises(ConfigurationError, match=re.escape(hint)):
        load(file)

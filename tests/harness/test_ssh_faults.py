"""The SSH link when something is wrong: identities, dead peers, lost lanes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import (
    ConfigurationError,
    HostError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    OutcomeUnknown,
)
from harness.links.ssh import SshShell
from tests.harness.support.servers import Server, fingerprint, free_port, make_key, openssh
from tests.pace import until, within


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sshd")


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Server:
    return openssh(folder)


@pytest.fixture
def server(prepared: Server) -> Iterator[Server]:
    prepared.start()
    yield prepared
    prepared.stop()


@pytest.fixture
def shell(server: Server) -> Iterator[SshShell]:
    shell = SshShell(server.address)
    yield shell
    shell.close()


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def test_wrong_host_key_names_both_fingerprints(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    other = fingerprint(Path(f"{make_key(tmp_path / 'other')}.pub"))
    shell = SshShell(replace(server.address, host_key_fingerprint=other))
    with pytest.raises(LinkRefused) as caught:
        shell.run("true")
    message = str(caught.value)
    assert other in message
    assert fingerprint(folder / "host_key.pub") in message
    assert "host_key_fingerprint" in message


def test_known_hosts_proves_the_board(server: Server, folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    public = (folder / "host_key.pub").read_text(encoding="ascii")
    name = f"[{server.address.host}]:{server.address.port}"
    known.write_text(f"{name} {public}", encoding="ascii")
    address = replace(server.address, host_key_fingerprint=None, known_hosts=known)
    shell = SshShell(address)
    assert shell.run("echo ok").text == "ok"
    shell.close()
    known.write_text(f"elsewhere {public}", encoding="ascii")
    with pytest.raises(LinkRefused, match="is not in"):
        SshShell(address).run("true")
    known.unlink()
    with pytest.raises(ConfigurationError, match="known_hosts"):
        SshShell(address).run("true")


def test_host_key_of_another_type_is_asked_for(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A server has several host keys and prefers one; the board file may name another."""
    server = openssh(tmp_path_factory.mktemp("two-keys"))
    config = Path(server.argv[-1])
    rsa = make_key(config.parent / "second_key", kind="ecdsa")
    with config.open("a", encoding="ascii") as file:
        file.write(f"HostKey {rsa}\n")
    server.start()
    try:
        shell = SshShell(
            replace(server.address, host_key_fingerprint=fingerprint(Path(f"{rsa}.pub")))
        )
        assert shell.run("echo ok").text == "ok"
        shell.close()
    finally:
        server.stop()


def test_wrong_user_key(server: Server, tmp_path: Path) -> None:
    shell = SshShell(replace(server.address, key=make_key(tmp_path / "stranger")))
    with pytest.raises(LinkRefused, match=r"does not accept user key .*stranger.*authorized_keys"):
        shell.run("true")


def test_missing_or_damaged_user_key(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere cannot be read"):
        SshShell(replace(server.address, key=tmp_path / "nowhere")).run("true")
    (tmp_path / "junk").write_text("junk", encoding="ascii")
    with pytest.raises(ConfigurationError, match="not a usable private key"):
        SshShell(replace(server.address, key=tmp_path / "junk")).run("true")


def test_wrong_port_is_refused_at_once(server: Server) -> None:
    shell = SshShell(replace(server.address, port=free_port()))
    with within(1), pytest.raises(LinkRefused, match=r"refused the connection.*link ssh"):
        shell.run("true")


def test_account_without_a_posix_shell(server: Server) -> None:
    shell = SshShell(replace(server.address, shell="no-such-shell"))
    with pytest.raises(HostError, match="no-such-shell"):
        shell.run("true")
    shell.close()


def test_silent_peer_costs_no_more_than_the_timeout(server: Server, shell: SshShell) -> None:
    shell.run("true")
    server.signal_sessions(signal.SIGSTOP)
    for _ in range(2):
        with within(1.2, waiting=0.7), pytest.raises((LinkTimeout, LinkLost)):
            shell.run("true", timeout=0.7)
    assert shell.run("echo anew").text == "anew"
    shell.read_file("/etc/passwd")
    server.signal_sessions(signal.SIGSTOP)
    with within(1.2, waiting=0.7), pytest.raises((LinkTimeout, LinkLost)):
        shell.read_file("/etc/passwd", timeout=0.7)
    with within(2):
        shell.close()


def test_silent_peer_while_much_is_sent(server: Server, shell: SshShell, tmp_path: Path) -> None:
    shell.run("true")
    server.signal_sessions(signal.SIGSTOP)
    with within(1.2, waiting=0.7), pytest.raises((LinkTimeout, LinkLost)):
        shell.write_file(str(tmp_path / "much"), bytes(8 << 20), timeout=0.7)


def test_lost_connection_result_is_fetched_and_not_run_again(
    server: Server, shell: SshShell, tmp_path: Path
) -> None:
    shell.run("true")
    count = tmp_path / "count"
    command = f"echo x >>{count}; sleep 0.5; printf 'out\\0'; echo err >&2; exit 5"
    later(0.2, lambda: server.signal_sessions(signal.SIGKILL))
    result = shell.run(command, timeout=10)
    assert (result.status, result.stdout, result.stderr) == (5, b"out\0", b"err\n")
    assert count.read_text(encoding="ascii") == "x\n"
    assert shell.run("echo next").text == "next"


def test_fetched_result_has_nothing_of_the_commands_before(server: Server, shell: SshShell) -> None:
    for _ in range(3):
        shell.run("echo before; echo before >&2")
    later(0.2, lambda: server.signal_sessions(signal.SIGKILL))
    result = shell.run("echo mine; echo early >&2; sleep 0.5", timeout=10)
    assert (result.stdout, result.stderr) == (b"mine\n", b"early\n")


def stop_once(server: Server, begun: Path) -> None:
    """Stop it when the command has left its mark."""
    until(begun.exists)
    server.stop()


def test_server_that_stays_away_leaves_the_outcome_unknown(
    server: Server, shell: SshShell, tmp_path: Path
) -> None:
    shell.run("true")
    begun = tmp_path / "count"
    later(0, lambda: stop_once(server, begun))
    with within(2, waiting=1.5), pytest.raises(OutcomeUnknown) as caught:
        shell.run(f"echo x >>{begun}; sleep 0.4", timeout=1.5)
    assert "not repeated" in str(caught.value)
    assert "sleep 0.4" in str(caught.value)
    assert str(shell.address) in str(caught.value)


def _lane_name(shell: SshShell) -> str:
    """The name of the directory in which the lane keeps its last result."""
    lane = shell.run("tr '\\0' ' ' <\"/proc/$$/cmdline\" | grep -o 'hil hil-[0-9a-f]*'").text
    return lane.split()[1]


def test_lost_result_leaves_the_outcome_unknown(server: Server, shell: SshShell) -> None:
    """As after a reboot: the board answers again but knows nothing."""
    shell.run("true")
    name = _lane_name(shell)
    later(0.2, lambda: server.signal_sessions(signal.SIGKILL))
    with pytest.raises(OutcomeUnknown, match="lost the result"):
        shell.run(f"sleep 0.4; rm -rf /run/{name} /dev/shm/{name} /tmp/{name}", timeout=10)


def test_killed_command_leaves_the_outcome_unknown(server: Server, shell: SshShell) -> None:
    shell.run("true")
    lane = int(shell.run("echo $$").text)

    def kill_both() -> None:
        server.signal_sessions(signal.SIGKILL)
        for pid in _tree(lane):
            os.kill(pid, signal.SIGKILL)

    later(0.2, kill_both)
    with pytest.raises(OutcomeUnknown, match="left no result"):
        shell.run("sleep 30", timeout=10)


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(one for child in children for one in _tree(int(child)))]


def test_connection_lost_while_idle_is_replaced(server: Server, shell: SshShell) -> None:
    shell.run("true")
    server.signal_sessions(signal.SIGKILL)
    time.sleep(0.2)
    assert shell.run("echo again").text == "again"


def test_lost_lane_is_replaced_at_most_once_for_a_command(
    server: Server, shell: SshShell, tmp_path: Path
) -> None:
    """Whatever the moment of the loss: the command ran once, or it says that it may not have."""
    for step in range(12):
        count = tmp_path / f"count{step}"
        shell.run("true")
        timer = later(0.0002 * step * step, lambda: server.signal_sessions(signal.SIGKILL))
        try:
            shell.run(f"echo x >>{count}; echo done", timeout=10)
        except LinkLost:
            assert not count.exists()
        except OutcomeUnknown:
            assert not count.exists() or count.read_text(encoding="ascii") == "x\n"
        else:
            assert count.read_text(encoding="ascii") == "x\n"
        finally:
            timer.join()


def test_reconnect_waits_for_a_booting_board(prepared: Server) -> None:
    shell = SshShell(prepared.address)
    later(0.5, prepared.start)
    try:
        with within(2, waiting=0.5):
            shell.reconnect(deadline=10)
        assert shell.run("echo up").text == "up"
    finally:
        shell.close()
        prepared.stop()


def test_reconnect_ends_at_its_deadline(server: Server) -> None:
    shell = SshShell(replace(server.address, port=free_port()))
    with within(1, waiting=0.5), pytest.raises(LinkTimeout, match="did not come back"):
        shell.reconnect(deadline=0.5)


def test_results_kept_on_the_board_do_not_pile_up(server: Server, shell: SshShell) -> None:
    for _ in range(12):
        shell.run("head -c 20000 /dev/zero")
    name = _lane_name(shell)
    sizes = shell.run(f"cat /run/{name}/out /dev/shm/{name}/out /tmp/{name}/out | wc -c")
    assert int(sizes.text) < 200_000


def test_goodbye_leaves_nothing_on_the_board(server: Server) -> None:
    shell, observer = SshShell(server.address), SshShell(server.address)
    try:
        pid = int(shell.run("echo $$").text)
        shell.close()
        observer.run(f"while [ -d /proc/{pid} ]; do :; done", timeout=5).check()
    finally:
        observer.close()

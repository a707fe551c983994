"""The process ``python -m emulation``: what it prints, obeys, survives and leaves behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import serial

from tests.pace import until, within

if TYPE_CHECKING:
    from tests.emulation.conftest import EmulatedBoard

Boot = Callable[..., "EmulatedBoard"]


def emulation(*arguments: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emulation", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def descendants(pid: int) -> set[int]:
    """All living processes below ``pid``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    below: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - below
        below |= fresh
    return below


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except ConnectionRefusedError:
        return True
    return False


def test_json_line_names_everything_needed(boot: Boot) -> None:
    board = boot()
    assert set(board.endpoints) == {
        "host", "port", "user", "key", "known_hosts", "serial", "pid",
    }  # fmt: skip
    assert board.endpoints["pid"] == board.process.pid
    assert Path(board.endpoints["key"]).stat().st_mode & 0o777 == 0o600
    assert Path(board.endpoints["serial"]).is_char_device()
    assert board.ok("echo hello") == "hello\n"


def test_start_to_first_command_takes_less_than_a_second(boot: Boot) -> None:
    with within(3):  # three times the promise: it is not the only one here
        boot().ok("true")


def test_control_cycles_power_and_keeps_the_endpoints(boot: Boot) -> None:
    board = boot()
    assert board.control("status") == {"power": "on"}
    boot_id = board.ok("cat /proc/sys/kernel/random/boot_id")
    tty = str(Path(board.endpoints["serial"]).readlink())
    assert board.control("off") == {"power": "off"}
    assert refused(board.endpoints["port"])
    assert board.control("status") == {"power": "off"}
    assert board.control("off") == {"power": "off"}
    assert board.control("on") == {"power": "on"}
    board.disconnect()
    assert board.ok("cat /proc/sys/kernel/random/boot_id") != boot_id
    assert str(Path(board.endpoints["serial"]).readlink()) == tty
    assert "error" in board.control("nonsense")
    assert "error" in board.control("fault nonsense")


def test_power_cut_ends_commands_at_once(boot: Boot) -> None:
    board = boot()
    channel = board.connect().get_transport().open_session()  # type: ignore[union-attr]
    channel.exec_command("echo up; sleep 60")
    assert channel.recv(3) == b"up\n"
    assert board.control("off") == {"power": "off"}
    channel.settimeout(5)
    assert channel.recv(100) == b""
    assert channel.exit_status == -1


@pytest.mark.parametrize("command", ["reboot", "systemctl reboot", "shutdown -r now", "reboot -f"])
def test_reboot_from_inside(boot: Boot, command: str) -> None:
    board = boot()
    boot_id = board.ok("cat /proc/sys/kernel/random/boot_id")
    board.run(command)
    board.disconnect()

    def back() -> bool:
        try:
            return board.ok("cat /proc/sys/kernel/random/boot_id") != boot_id
        except Exception:  # any way a connection can fail while the board goes down
            board.disconnect()
            return False

    until(back)


def test_poweroff_from_inside(boot: Boot) -> None:
    board = boot()
    board.run("poweroff")
    board.disconnect()
    until(lambda: board.control("status") == {"power": "off"})
    assert refused(board.endpoints["port"])
    assert board.control("on") == {"power": "on"}
    board.ok("true")


def test_a_hung_writer_stops_neither_ssh_nor_reboot_nor_the_end(boot: Boot) -> None:
    board = boot()
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    name = "/sys/firmware/efi/efivars/Hung-12345678-1234-1234-1234-123456789abc"
    hang = f"printf '\\007\\000\\000\\000x' > {name} & echo $!"
    board.ok("kill -STOP $(pidof tee-supplicant)")
    writer = board.ok(f"({hang}) 2>/dev/null </dev/null | head -1").strip()
    board.until(f"grep -q 'State:.*[SD]' /proc/{writer}/status")
    with within(2):
        assert board.ok("echo alive") == "alive\n"
    boot_id = board.ok("cat /proc/sys/kernel/random/boot_id")
    board.run("reboot")
    board.disconnect()
    until(lambda: refused(board.endpoints["port"]))
    until(lambda: not refused(board.endpoints["port"]))
    assert board.ok("cat /proc/sys/kernel/random/boot_id") != boot_id
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    board.ok("kill -STOP $(pidof tee-supplicant)")
    board.ok(f"({hang}) >/dev/null 2>&1 </dev/null")
    with within(5):
        board.close()


def test_sigterm_leaves_nothing_behind(boot: Boot) -> None:
    board = boot(control=False)
    below = descendants(board.process.pid)
    assert below
    board.disconnect()
    board.process.send_signal(signal.SIGTERM)
    assert board.process.wait(10) == 0
    until(lambda: not any(_alive(pid) for pid in below))
    assert not Path(board.endpoints["serial"]).is_symlink()
    assert not Path(board.endpoints["key"]).exists()


def test_kill_9_leaves_no_process(boot: Boot) -> None:
    board = boot()
    board.ok("sleep 300 >/dev/null 2>&1 & echo started")
    below = descendants(board.process.pid)
    board.process.kill()
    board.process.wait(5)
    until(lambda: not any(_alive(pid) for pid in below))


def test_end_of_standard_input_ends_a_controlled_board(boot: Boot) -> None:
    board = boot()
    assert board.process.stdin is not None
    board.process.stdin.close()
    assert board.process.wait(10) == 0
    board.process.stdin = None


def test_same_state_twice_is_refused(boot: Boot, tmp_path: Path) -> None:
    board = boot(state=tmp_path / "shared")
    second = emulation("--json", "--state", str(tmp_path / "shared"))
    assert second.returncode == 2
    assert f"in use by process {board.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "varient=mm"], "did you mean variant"),
        (["-o", "variant=mm-qury"], "did you mean mm-query"),
        (["-o", "baud=-1"], "baud"),
        (["--state", "/dev/null/x"], "choose another"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = emulation("--json", "--state", str(tmp_path / "s"), *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = emulation("--json", "--state", str(tmp_path), "--port", str(port))
    assert result.returncode == 2
    assert f"port {port}" in result.stderr


def test_human_text_says_how_to_log_in(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "emulation", "--state", str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    text = b""
    while b"^C" not in text:
        line = process.stdout.readline()
        assert line, text
        text += line
    assert b"ssh -i " in text
    assert str(tmp_path / "serial").encode() in text
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    process.stdout.close()


def test_serial_boot_log_login_shell_and_logout(boot: Boot) -> None:
    board = boot()
    with serial.Serial(board.endpoints["serial"], 115200, timeout=10) as port:
        board.control("off")
        port.reset_input_buffer()
        board.control("on")
        log = port.read_until(b"stmm-board login: ")
        for word in (b"Booting Trusted Firmware", b"U-Boot 2025.01", b"Linux version 6.12"):
            assert word in log
        assert log.endswith(b"login: ")
        port.write(b"root\r")
        port.read_until(b"# ")
        port.write(b"echo st''ty $(stty size); tty\r")
        answer = port.read_until(b"# ")
        assert b"stty 0 0\r\n" in answer or b"stty 24 80\r\n" in answer
        assert b"/dev/" in answer
        boot_id = board.ok("cat /proc/sys/kernel/random/boot_id").strip().encode()
        port.write(b"cat /proc/sys/kernel/random/boot_id\r")
        assert boot_id in port.read_until(b"# ")
        board.ok("echo '<4>over the prompt' > /dev/kmsg")
        assert b"over the prompt\r\n" in port.read_until(b"prompt\r\n")
        port.write(b"exit\r")
        assert port.read_until(b"login: ").endswith(b"stmm-board login: ")


def test_console_password(boot: Boot) -> None:
    board = boot("root_password=secret", "baud=0")
    with serial.Serial(board.endpoints["serial"], 115200, timeout=10) as port:
        port.write(b"\r")
        port.read_until(b"login: ")
        port.write(b"root\r")
        port.read_until(b"Password: ")
        port.write(b"wrong\r")
        assert b"Login incorrect" in port.read_until(b"login: ")
        port.write(b"root\r")
        port.read_until(b"Password: ")
        port.write(b"secret\r")
        shown = port.read_until(b"# ")
        assert shown.endswith(b"# ")
        assert b"secret" not in shown


def test_shutdown_is_told_on_the_console(boot: Boot) -> None:
    board = boot("baud=0")
    with serial.Serial(board.endpoints["serial"], 115200, timeout=10) as port:
        board.run("reboot")
        log = port.read_until(b"reboot: Restarting system")
        assert b"systemd-shutdown[1]: Rebooting." in log
        assert b"Booting Trusted Firmware" in port.read_until(b"Firmware")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

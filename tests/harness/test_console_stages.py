"""A console is read before it is typed at: what real systems show there, and what is typed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.errors import HilError
from harness.links.address import Login, Prompts, SerialAddress
from harness.links.console import Console
from harness.links.firmware_prompt import FirmwarePrompt
from harness.links.serial import SerialShell
from tests.harness.support import real_login
from tests.harness.support.real_login import PASSWORD
from tests.harness.support.scripted import OnTerminal, Scripted
from tests.harness.support.servers import need
from tests.pace import within

BENCH = Login("bench", PASSWORD)


def refusal(address: SerialAddress, *, timeout: float = 6.0) -> str:
    """What the first command says that cannot be run."""
    shell = SerialShell.open(address)
    try:
        with pytest.raises(HilError) as caught:
            shell.run("true", timeout=timeout)
    finally:
        shell.close()
    return str(caught.value)


# --- login(1), agetty, PAM ------------------------------------------------------------------------


@pytest.mark.fault("B08")
def test_a_forced_password_change_is_never_answered(tmp_path: Path) -> None:
    etc = real_login.account(tmp_path, changed=0)
    before = (etc / "shadow").read_bytes()
    with OnTerminal(lambda tty: real_login.agetty(etc, tty)) as line:
        told = refusal(SerialAddress(line.device, login=BENCH), timeout=20)
        typed = line.typed
    assert typed.count(PASSWORD.encode()) == 1, typed
    assert "password has expired" in told
    assert (etc / "shadow").read_bytes() == before


@pytest.mark.fault("B09")
@pytest.mark.long
def test_a_login_that_takes_long_is_waited_for(tmp_path: Path) -> None:
    """PAM sleeps for eight seconds after the password, on a board that is on."""
    etc = real_login.account(tmp_path, pam="auth optional pam_exec.so /bin/sleep 8\n")
    with OnTerminal(lambda tty: real_login.agetty(etc, tty)) as line:
        path = tmp_path / "desk.toml"
        path.write_text(
            'emmc_cid = "15010038474e4433520155aabbccdd00"\n[power]\ndriver = "manual"\n'
            f'[serial]\nport = "{line.device}"\n[timeouts]\nboot = 60\n'
            f'[serial.login]\nuser = "bench"\npassword = "{PASSWORD}"\n'
        )
        started = time.monotonic()
        with Board(loading.load(path), link="serial") as board:
            assert time.monotonic() - started >= 8
            typed = line.typed
            assert board.shell.run("echo up").text == "up"
    asked = typed.index(PASSWORD.encode()) + len(PASSWORD)
    assert typed[asked : asked + 2] == b"\n\x03", "nothing between the password and the shell"


@pytest.mark.fault("B09")
def test_a_wrong_password_waits_for_the_login_to_ask_again(tmp_path: Path) -> None:
    etc = real_login.account(tmp_path)
    with OnTerminal(lambda tty: real_login.agetty(etc, tty)) as line:
        told = refusal(SerialAddress(line.device, login=Login("bench", "wrong")), timeout=60)
        typed = line.typed
    assert "login of user 'bench' on the console was refused" in told
    assert typed.strip(b"\n") == b"\n".join([b"bench\nwrong"] * 4), typed


@pytest.mark.fault("B09")
@pytest.mark.parametrize("baud", [9600, 3_000_000])
def test_a_line_of_any_rate_logs_in(tmp_path: Path, baud: int) -> None:
    etc = real_login.account(tmp_path)
    with OnTerminal(lambda tty: real_login.agetty(etc, tty), baud=baud) as line:
        shell = SerialShell.open(SerialAddress(line.device, baud, login=BENCH))
        assert shell.run("echo $((6 * 7))", timeout=60).text == "42"
        shell.close()


@pytest.mark.fault("B12")
@pytest.mark.parametrize("name", ["fish", "tcsh", "zsh"])
def test_any_login_shell_becomes_a_posix_shell(tmp_path: Path, name: str) -> None:
    etc = real_login.account(tmp_path, shell=need(name, name))
    with OnTerminal(lambda tty: real_login.agetty(etc, tty)) as line:
        shell = SerialShell.open(SerialAddress(line.device, login=BENCH))
        with within(15):
            assert shell.run("echo $((6 * 7))", timeout=40).text == "42"
        shell.close()


@pytest.mark.fault("B12")
def test_a_login_shell_that_stays_is_named(tmp_path: Path) -> None:
    """tcsh without any `sh` to become."""
    home = tmp_path / "home"
    home.mkdir()
    shell = need("tcsh", "tcsh")
    with OnTerminal(
        lambda tty: [sys.executable, "-c", _LEADER, tty, shell],
        SHELL=shell,
        HOME=str(home),
        PATH=str(home),
    ) as line:
        told = refusal(SerialAddress(line.device), timeout=12)
    assert f"login shell {shell} is no POSIX shell" in told


_LEADER = (
    "import fcntl, os, sys, termios; os.setsid() if os.getsid(0) != os.getpid() else None;"
    "fd = os.open(sys.argv[1], os.O_RDWR); fcntl.ioctl(fd, termios.TIOCSCTTY, 0);"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.fault("B10")
@pytest.mark.parametrize("columns", [10, 61, 79, 80, 81, 130])
@pytest.mark.parametrize("shell", [["busybox", "ash", "-i"], ["bash", "--norc", "-i"]])
def test_a_prompt_of_any_length(shell: list[str], columns: int) -> None:
    need(shell[0], {"busybox": "busybox-static"}.get(shell[0], shell[0]))
    program = shutil.which(shell[0])
    assert program

    def command(tty: str) -> list[str]:
        return [sys.executable, "-c", _LEADER, tty, program, *shell[1:]]

    with OnTerminal(command, PS1="p" * (columns - 2) + "# ") as line:
        console = SerialShell.open(SerialAddress(line.device))
        assert console.run("echo fine", timeout=15).text == "fine"
        console.close()


@pytest.mark.fault("B11")
@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_a_prompt_in_any_encoding(coding: str) -> None:
    prompts = Prompts(login="Anmeldung für Gerät: $", shell="Gerät» $")
    said = iter(["\r\nAnmeldung für Gerät: ", "bench\r\nGerät» "])
    first = next(said).encode(coding)

    def answer(typed: bytes) -> bytes:
        return next(said).encode("utf-8") if typed.endswith(b"bench\n") else b""

    with Scripted(first, answer) as board:
        console = Console(SerialAddress(board.device, login=Login("bench"), prompts=prompts))
        try:
            console.wait_for("Gerät: $", timeout=5, since=0)
            assert console.stage == "login"
        finally:
            console.close()


# --- nothing is typed where nothing of ours is asked ----------------------------------------------

_STOPPED = {
    "emergency": (
        b'You are in emergency mode. After logging in, type "journalctl -xb" to view\r\n'
        b"Give root password for maintenance\r\n(or press Control-D to continue): ",
        "emergency or rescue mode",
    ),
    "locked root": (
        b"You are in emergency mode.\r\nCannot open access to console, the root account is locked."
        b"\r\nSee sulogin(8) man page for more details.\r\n\r\nPress Enter to continue.\r\n",
        "emergency or rescue mode",
    ),
    "maintenance": (
        b"Press Enter for maintenance\r\n(or press Control-D to continue): ",
        "emergency or rescue mode",
    ),
    "busybox": (
        b"Give root password for system maintenance\r\n(or type Control-D for normal startup):",
        "emergency or rescue mode",
    ),
    "rescue shell": (
        b"You are in rescue mode. After logging in, type exit\r\nroot@board:~# ",
        "emergency or rescue mode",
    ),
    "initramfs": (b"built-in shell (ash)\r\n\r\n(initramfs) ", "stopped in its initramfs"),
    "dracut": (b"Generating rdsosreport.txt\r\n\r\n\r\ndracut:/# ", "stopped in its initramfs"),
    "alpine": (b"initramfs emergency recovery shell launched.\r\n~ # ", "emergency or rescue"),
    "new password": (b"Changing password for root.\r\nNew password: ", "password has expired"),
    "armbian": (b"New to Armbian?\r\n\r\nCreate root password: ", "password has expired"),
    "luks": (b"Please enter passphrase for disk root: ", "asks a question"),
    "installer": (b"Please make your choice from [1-5], 'q' to quit: ", "asks a question"),
    "proceed": (b"-- Press any key to proceed --", "asks a question"),
    "fsck": (b"/dev/mmcblk0p2: UNEXPECTED INCONSISTENCY\r\nFix<y>? ", "asks a question"),
    "somebody's password": (b"\r\nboard login: bob\r\nPassword: ", "no user name of ours"),
    "grub": (b"GNU GRUB  version 2.06\r\n\r\ngrub> ", "in the menu"),
    "efi shell": (b"UEFI Interactive Shell v2.2\r\n\r\nShell> ", "in the menu"),
    "u-boot of a vendor": (
        b"U-Boot 2016.11 (Jan 01 2019)\r\nhisilicon # ",
        "waits at its firmware prompt",
    ),
}


@pytest.mark.fault("B22", "B08", "B15")
@pytest.mark.parametrize("name", list(_STOPPED))
def test_nothing_is_typed_at_a_stage_that_asks_something_else(name: str) -> None:
    shown, told = _STOPPED[name]
    with Scripted(b"") as board:
        shell = SerialShell.open(SerialAddress(board.device, login=BENCH))
        board.say(shown)  # now: whoever opens a port discards what came before
        with pytest.raises(HilError) as caught:
            shell.run("true", timeout=2.5)
        shell.close()
        assert board.typed == b""
    said = str(caught.value)
    assert told in said
    assert "TX" not in said


@pytest.mark.fault("B22")
def test_busybox_init_s_enter_is_pressed() -> None:
    with Scripted(b"\r\nPlease press Enter to activate this console. ") as board:
        refusal(SerialAddress(board.device), timeout=2)
        assert board.typed.startswith(b"\n")


@pytest.mark.fault("B09")
def test_nothing_is_typed_while_the_line_talks() -> None:
    """A boot's messages without kernel time stamps, without a pause of any length."""
    began = time.monotonic()

    def chatter(typed: bytes) -> bytes:
        return b"starting something\r\n" if time.monotonic() - began < 3 else b""

    with Scripted(b"hello\r\n", chatter) as board:
        shell = SerialShell.open(SerialAddress(board.device))
        with pytest.raises(HilError):
            shell.run("true", timeout=2.5)
        assert board.typed == b""
        shell.close()


# --- a line that somebody else reads --------------------------------------------------------------


@pytest.mark.fault("B13")
def test_a_second_reader_is_named() -> None:
    with Scripted(b"") as board, subprocess.Popen(["setsid", "cat", board.device]) as reader:
        # A process of its own that is no child of ours, as a getty or a forgotten terminal.
        time.sleep(0.3)
        said = _in_another_process(board.device)
        reader.kill()
    assert "cat (pid" in said


def _in_another_process(device: str) -> str:
    program = (
        "import sys\nfrom harness.links.serial import SerialShell\n"
        "from harness.links.address import SerialAddress\n"
        "shell = SerialShell.open(SerialAddress(sys.argv[1]))\n"
        "try: shell.run('true', timeout=2)\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, device], capture_output=True, text=True, check=False
    )
    return done.stdout


# --- firmware that counts down --------------------------------------------------------------------

_COUNT_DOWNS: list[tuple[bytes, bytes]] = [
    (b"Hit any key to stop autoboot:  3 ", b" "),
    (b"Hit key to stop autoboot('CTRL+C'):  1 ", b"\x03"),
    (b"Hit ctrl+c to stop autoboot:  2 ", b"\x03"),
    (b"Press SPACE to abort autoboot in 2 seconds\r\n", b" "),
    (b"Press [ESC] to abort autoboot in 2 seconds", b"\x1b"),
    (b'Autobooting in 3 seconds, press "<Esc><Esc>" to stop\r\n', b"\x1b\x1b"),
    (b"Hit 'tpl' key to stop autoboot:  1 ", b"tpl"),
    (b"Hit Enter or space or Ctrl+C key to stop autoboot -- :  1 ", b"\x03"),
    (b"Type 123<ENTER> to abort autoboot in 1 seconds", b"\r"),
]


@pytest.mark.fault("B15")
@pytest.mark.parametrize(("shown", "key"), _COUNT_DOWNS, ids=lambda one: repr(one)[2:40])
def test_the_key_that_the_firmware_names_stops_its_count_down(shown: bytes, key: bytes) -> None:
    assert _stopped(Prompts(), shown, key).startswith(key)


@pytest.mark.fault("B15")
def test_text_and_key_of_a_board_file() -> None:
    prompts = Prompts(interrupt_text="Autoboot in", interrupt_key="xyz")
    assert _stopped(prompts, b"Autoboot in 2 seconds\r\n", b"xyz") == b"xyz"


def _stopped(prompts: Prompts, shown: bytes, key: bytes) -> bytes:
    said: list[bytes] = []

    def answer(typed: bytes) -> bytes:
        if key in typed and not said:
            said.append(b"\r\nboard # ")
            return said[0]
        return b""

    start: Callable[[bytes], bytes] = answer
    with Scripted(b"U-Boot 2017.09 (Jan 01 2020)\r\nDRAM: 1 GiB\r\n", start) as board:
        console = Console(SerialAddress(board.device, prompts=prompts))
        try:
            console.wait_for("DRAM", timeout=5, since=0)
            board.say(shown)
            FirmwarePrompt(console).reach(timeout=5, since=0)
        finally:
            console.close()
        return board.typed

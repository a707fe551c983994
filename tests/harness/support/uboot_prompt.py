"""A board that starts with U-Boot: `python uboot_prompt.py TTY USER PASSWORD SHELL...`.

It speaks as U-Boot does on its console (a count-down that any key stops, its line editor, hush's
`;` and `$?`) and boots into the login program beside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from pathlib import Path

BANNER = (
    "\r\nU-Boot 2025.01 (Jan 06 2025 - 20:33:48 +0000)\r\n\r\nDRAM:  1 GiB\r\nMMC:   mmc@1: 1\r\n"
)
PROMPT = "=> "
DELAY = 1.0  # seconds of the count-down, counted in tenths to be quick
LINE_MAX = 256  # CONFIG_SYS_CBSIZE
KERNEL = "[    0.000000] Linux version 6.12.0 (board)\r\n[    0.100000] random: crng init done\r\n"


class UBoot:
    """The command line and the environment behind it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.status = 0
        self.environment = {"bootdelay": "1", "board": "fake"}
        self.efi = {"BootOrder": "00 00 01 00", "Boot0000": "debian"}

    def start(self) -> None:
        """Until the operating system is to be started."""
        self.say(BANNER)
        if self.counted_down():
            return
        while True:
            self.say(PROMPT)
            line = self.read_line()
            for command in line.split(";"):
                words = [self.expanded(word) for word in command.split()]
                if words[:1] in (["boot"], ["bootefi"]):
                    return
                if words:
                    self.status = self.take(words)

    def counted_down(self) -> bool:
        """Whether nobody pressed a key."""
        for left in range(int(DELAY * 10), -1, -1):
            self.say("Hit any key to stop autoboot: " if left == DELAY * 10 else "\b\b\b")
            self.say(f"{left:2} ")
            if select.select([self.fd], [], [], 0.1)[0]:
                os.read(self.fd, 1)
                self.say("\b\b\b 0 \r\n")
                return False
        self.say("\r\n")
        return True

    def say(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def read_line(self) -> str:
        """As cread_line: every key echoed as it comes, ^C for a new line."""
        line = ""
        while True:
            key = os.read(self.fd, 1).decode("latin-1")
            if not key:
                sys.exit(0)
            if key in "\r\n":
                self.say("\r\n")
                return line
            if key == "\x03":
                self.say("<INTERRUPT>\r\n" + PROMPT)
                line = ""
            elif key in "\x15\x18":
                self.say("\b \b" * len(line))
                line = ""
            elif len(line) < LINE_MAX:
                line += key
                self.say(key)
            else:
                self.say("\a")

    def expanded(self, word: str) -> str:
        word = word.strip('"').replace("$?", str(self.status))
        for name, value in self.environment.items():
            word = word.replace(f"${{{name}}}", value)
        return word

    def take(self, words: list[str]) -> int:
        """One command; returns its status."""
        match words:
            case ["echo", *rest]:
                self.say(" ".join(rest) + "\r\n")
            case ["false"]:
                return 1
            case ["version"]:
                self.say(BANNER.strip() + "\r\n")
            case ["setenv", name, *rest]:
                self.environment[name] = " ".join(rest)
            case ["printenv", "-e"]:
                for name, value in self.efi.items():
                    self.say(f"{name}:\r\n    EFI_GLOBAL_VARIABLE_GUID\r\n    {value}\r\n")
            case ["printenv"]:
                for name, value in self.environment.items():
                    self.say(f"{name}={value}\r\n")
            case ["mmc", "list"]:
                self.say("mmc@1: 1 (eMMC)\r\n")
            case ["mmc", "dev", number] if number != "1":
                self.say(f"MMC Device {number} not found\r\nno mmc device at slot {number}\r\n")
                return 1
            case ["mmc", "dev", _]:
                self.say("switch to partitions #0, OK\r\nmmc1(part 0) is current device\r\n")
            case [name, *_]:
                self.say(f"Unknown command '{name}' - try 'help'\r\n")
                return 1
        return 0


def main() -> None:
    name = sys.argv[1]
    fd = os.open(name, os.O_RDWR | os.O_NOCTTY)
    saved = termios.tcgetattr(fd)
    tty.setraw(fd)
    board = UBoot(fd)
    board.start()
    board.say("\r\nStarting kernel ...\r\n\r\n")
    time.sleep(0.05)
    board.say(KERNEL)
    termios.tcsetattr(fd, termios.TCSANOW, saved)
    os.close(fd)
    getty = str(Path(__file__).with_name("getty.py"))
    os.execv(sys.executable, [sys.executable, getty, *sys.argv[1:]])


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # the line was taken away
        main()

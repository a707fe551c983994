"""A login program on a terminal: `python getty.py TTY USER PASSWORD SHELL...`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios


def main() -> None:
    tty, user, password, *shell = sys.argv[1:]
    os.setsid()
    # A process in the background may not take the terminal back otherwise.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    # ^C ends no login program, as with login(1).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd = os.open(tty, os.O_RDWR)
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(fd, number)
    saved = termios.tcgetattr(0)
    while True:
        termios.tcsetattr(0, termios.TCSANOW, saved)
        name = ask("\nBoard 1.0 ttyS0\n\nboard login: ")
        if not name:
            continue
        if password:
            set_echo(False)
            given = ask("Password: ")
            set_echo(True)
        if name != user or (password and given != password):
            os.write(1, b"\nLogin incorrect\n")
            continue
        os.write(1, b"\nWelcome to the board\n")
        subprocess.run(shell, check=False, preexec_fn=foreground)
        os.tcsetpgrp(0, os.getpgrp())


def ask(prompt: str) -> str:
    os.write(1, prompt.encode())
    line = os.read(0, 4096)
    if not line:
        sys.exit(0)
    return line.decode("latin-1").rstrip("\n")


def set_echo(on: bool) -> None:
    attributes = termios.tcgetattr(0)
    attributes[3] = attributes[3] | termios.ECHO if on else attributes[3] & ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, attributes)


def foreground() -> None:
    """What login does for the shell: a process group of its own, in the foreground."""
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()

"""getty and login on the board's serial terminal: asks for a name, then becomes the login shell.

Runs inside the board with the terminal as standard input, output and error, and as the controlling
terminal of its session: ``getty.py TTY-NAME``. The terminal's own line discipline echoes and edits.
The accounts come from /etc/passwd and /etc/shadow; a password is stored as ``$plain$PASSWORD``,
because the account belongs to a board that exists only in software.
"""

# pathlib would double the start-up time.
# ruff: noqa: PTH119, PTH123

import os
import pwd
import signal
import sys
import termios

LOGIN_TIMEOUT = 60
"""Seconds between the name and the end of the password (LOGIN_TIMEOUT of login.defs)."""

PATHS = {
    True: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    False: "/usr/local/bin:/usr/bin:/bin",
}


def sane() -> None:
    """Cooked mode, whatever the last session left behind."""
    mode = termios.tcgetattr(0)
    mode[0] = termios.ICRNL | termios.IXON | termios.BRKINT
    mode[1] = termios.OPOST | termios.ONLCR
    mode[3] = (
        termios.ISIG | termios.ICANON | termios.IEXTEN
        | termios.ECHO | termios.ECHOE | termios.ECHOK | termios.ECHOCTL | termios.ECHOKE
    )  # fmt: skip
    control = mode[6]
    control[termios.VINTR], control[termios.VEOF] = b"\x03", b"\x04"
    control[termios.VERASE], control[termios.VKILL] = b"\x7f", b"\x15"
    termios.tcsetattr(0, termios.TCSADRAIN, mode)


def say(text: str) -> None:
    os.write(1, text.encode())


def ask(prompt: str, *, echo: bool = True) -> str:
    """One line from the terminal; EOFError when the user ends the session."""
    mode = termios.tcgetattr(0)
    if not echo:  # before the prompt: who sees it may answer at once
        quiet = [*mode[:3], mode[3] & ~termios.ECHO, *mode[4:]]
        termios.tcsetattr(0, termios.TCSAFLUSH, quiet)
    say(prompt)
    try:
        line = os.read(0, 1024)
    finally:
        if not echo:
            termios.tcsetattr(0, termios.TCSADRAIN, mode)
            say("\n")
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace").rstrip("\n")


def password_of(name: str) -> str | None:
    """What /etc/shadow demands: empty for no password, None for a locked or unknown account."""
    with open("/etc/shadow") as shadow:
        for line in shadow:
            fields = line.rstrip("\n").split(":")
            if fields[0] == name:
                if fields[1] == "":
                    return ""
                plain = fields[1].removeprefix("$plain$")
                return plain if plain != fields[1] else None
    return None


def authenticate(terminal: str) -> pwd.struct_passwd:
    """Ask until somebody may log in."""
    hostname = os.uname().nodename
    while True:
        name = ""
        while not name:
            name = ask(f"{hostname} login: ").strip()
        expected = password_of(name)
        signal.alarm(LOGIN_TIMEOUT)
        given = "" if expected == "" else ask("Password: ", echo=False)
        signal.alarm(0)
        if expected is not None and given == expected:
            return pwd.getpwnam(name)
        say("\nLogin incorrect\n")


def become_shell(account: pwd.struct_passwd, terminal: str) -> None:
    environment = {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell,
        "PATH": PATHS[account.pw_uid == 0],
        "TERM": "vt220",
    }
    try:
        os.chdir(account.pw_dir)
    except OSError:
        os.chdir("/")
    if account.pw_uid:
        os.fchown(0, account.pw_uid, -1)
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = "-" + os.path.basename(account.pw_shell)
    os.execve(account.pw_shell, [name], environment)


def issue(terminal: str) -> str:
    """/etc/issue with its escapes, as agetty expands them."""
    try:
        with open("/etc/issue") as stream:
            text = stream.read()
    except OSError:
        return "\n"
    return text.replace("\\n", os.uname().nodename).replace("\\l", terminal)


def main() -> None:
    # ^C at the prompt ends nothing, as with agetty.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminal = sys.argv[1]
    sane()
    say("\n" + issue(terminal))
    try:
        become_shell(authenticate(terminal), terminal)
    except EOFError:
        say("\n")


if __name__ == "__main__":
    main()

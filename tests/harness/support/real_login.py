"""What real boards have behind their console: agetty and login(1) with PAM, busybox, and any
login shell, in a private mount namespace whose /etc has accounts of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PASSWORD = "s3cret"
_ROOT = "root:x:0:0:root:/root:/bin/sh\n"
# Mounts a folder over /etc's files, then takes the terminal as init does before it starts a getty.
_SETTING = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x00020000) and sys.exit("unshare")
libc.mount(b"none", b"/", None, 0x44000, None) and sys.exit("private")
folder, tty, *command = sys.argv[1:]
for name in os.listdir(folder):
    target = f"/etc/pam.d/{name[4:]}" if name.startswith("pam.") else f"/etc/{name}"
    if libc.mount(f"{folder}/{name}".encode(), target.encode(), None, 4096, None):
        sys.exit(f"mount {target}: {os.strerror(ctypes.get_errno())}")
while True:
    pid = os.fork()
    if not pid:
        os.setsid()
        fd = os.open(tty, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(fd, number)
        os.execvp(command[0], command)
    os.waitpid(pid, 0)
"""


def account(folder: Path, *, shell: str = "/bin/sh", changed: int = 20000, pam: str = "") -> Path:
    """A folder with passwd, shadow and PAM's stack for an account `bench` with :data:`PASSWORD`;
    ``changed`` is the day of its last change, 0 for one that must be changed."""
    etc = folder / "etc"
    etc.mkdir()
    home = folder / "home"
    home.mkdir()
    for rc in (".zshrc", ".hushlogin"):
        (home / rc).write_text("")
    folder.chmod(0o755)
    text = subprocess.run(
        ["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True
    ).stdout.strip()
    others = [
        line
        for line in Path("/etc/passwd").read_text("utf-8").splitlines(True)
        if not line.startswith("root:")
    ]
    (etc / "passwd").write_text(_ROOT + f"bench:x:0:0::{home}:{shell}\n" + "".join(others))
    (etc / "shadow").write_text(f"root:*:20000::::::\nbench:{text}:{changed}:0:99999:7:::\n")
    (etc / "shadow").chmod(0o640)
    (etc / "pam.login").write_text(
        f"{pam}auth required pam_unix.so\naccount required pam_unix.so\n"
        "password required pam_unix.so\nsession required pam_unix.so\n"
    )
    return etc


def agetty(folder: Path, tty: str) -> list[str]:
    """The command that serves ``tty`` for the accounts in ``folder``."""
    program = shutil.which("agetty", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if os.geteuid() or program is None or shutil.which("login") is None:
        pytest.skip("login(1) and a namespace for its accounts need root, agetty and login")
    getty = [program, "--noclear", "--nohostname", "-8", "-L", tty.removeprefix("/dev/"), "vt220"]
    return [sys.executable, "-c", _SETTING, str(folder), tty, *getty]

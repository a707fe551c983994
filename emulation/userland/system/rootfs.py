"""What is in the board's file system: the host's programs, and an /etc of the board's own.

Two userlands: ``host`` shows the host's /usr read-only, so every tool installed on the host is a
tool of the board; ``busybox`` leaves only busybox's commands in the PATH. /root and /var persist
in the state directory, everything else is made anew at power-on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulation.options import BoardOptions
from emulation.userland.access.ssh import find_sftp_server
from emulation.userland.jail.beneath import tree
from emulation.userland.jail.plan import BOARD_PYTHON, Bind, PlacedFile
from emulation.userland.jail.spawner import Account, UserlandMissing
from emulation.userland.system.manager import COMMANDS

BOARD_PROGRAMS: Final = "/opt/board/sbin"
"""Where the programs of the service manager are; first in the PATH."""

BOARD_LIBRARY: Final = "/opt/board/lib"
"""Programs that are not for the PATH."""

SUPPLICANT_PROGRAM: Final = f"{BOARD_PROGRAMS}/tee-supplicant"

INTERPRETER: Final = f"{BOARD_PYTHON}/bin/python3"
"""The supervisor's own; not in the PATH."""

EFIVARFS_AT: Final = "/sys/firmware/efi/efivars"

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SERVICES: Final = Path(__file__).parent / "services"

_DISGUISES: Final = ("tee-supplicant", "agetty")
"""Names under which processes of the board's Python show themselves."""

_COVERED: Final = tuple(
    f"/usr/bin/{name}" for name in ("systemctl", "journalctl", "udevadm", "systemd-detect-virt")
)
"""The host's own: they would talk to a service manager that is not there."""


@dataclass(frozen=True)
class RootFs:
    """The pieces of a :class:`emulation.userland.jail.plan.JailPlan` that are files."""

    host_programs: bool
    binds: tuple[Bind, ...]
    files: tuple[PlacedFile, ...]
    symlinks: Mapping[str, str]
    directories: tuple[str, ...]
    accounts: Mapping[str, Account]
    path: str
    sftp_server: str | None
    environment: Mapping[str, str]


def build(options: BoardOptions, state: Path) -> RootFs:
    """Lay out the root file system; ``state`` holds what persists of it.

    Raises :class:`UserlandMissing`."""
    busybox = _busybox() if options.userland == "busybox" else None
    shell = "/bin/sh" if busybox or not Path("/bin/bash").exists() else "/bin/bash"
    accounts = _accounts(options, shell)
    path = f"{BOARD_PROGRAMS}:{SYSTEM_PATH}"
    binds, symlinks = _busybox_layout(busybox) if busybox else ([], {})
    files = [
        *_programs(busybox is None, options.supplicant_program),
        *_etc(options, accounts.values(), path, _machine_id(state)),
    ]
    return RootFs(
        host_programs=busybox is None,
        binds=(*binds, *_persistent(state)),
        files=tuple(files),
        symlinks={**symlinks, **{f"{BOARD_LIBRARY}/{name}": INTERPRETER for name in _DISGUISES}},
        directories=("/home/user", "/run/systemd"),
        accounts=accounts,
        path=path,
        sftp_server=find_sftp_server() if options.sftp else None,
        environment={"PATH": path, "LANG": "C.UTF-8"},
    )


def _busybox_layout(busybox: Path) -> tuple[list[Bind], dict[str, str]]:
    """Libraries only, for the board's own programs; every command is an applet."""
    binds = [Bind(busybox, "/bin/busybox")]
    symlinks = {}
    for name in ("lib", "lib32", "lib64", "libx32"):
        top = Path("/", name)
        if top.is_symlink():
            symlinks[str(top)] = os.readlink(top)  # noqa: PTH115
        elif top.is_dir():
            binds.append(Bind(top, str(top)))
        if Path("/usr", name).is_dir():
            binds.append(Bind(Path("/usr", name), f"/usr/{name}"))
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    symlinks |= {f"/bin/{name}": "busybox" for name in applets.stdout.split() if name != "busybox"}
    symlinks |= {"/usr/bin/env": "/bin/busybox"}
    return binds, symlinks


def _busybox() -> Path:
    found = shutil.which("busybox")
    if found is None:
        raise UserlandMissing("userland=busybox needs busybox: install busybox-static")
    return Path(found).resolve()


def _programs(cover_host: bool, supplicant: str) -> list[PlacedFile]:
    shebang = f"#!{INTERPRETER} -IS\n".encode()
    client = shebang + (_SERVICES / "client.py").read_bytes()
    files = [PlacedFile(f"{BOARD_PROGRAMS}/{name}", client, 0o755) for name in COMMANDS]
    files += [
        PlacedFile(SUPPLICANT_PROGRAM, _supplicant(supplicant), 0o755),
        PlacedFile(f"{BOARD_LIBRARY}/getty.py", (_SERVICES / "getty.py").read_bytes()),
    ]
    if cover_host:
        files += [PlacedFile(name, client, 0o755) for name in _COVERED if Path(name).is_file()]
    return files


def _supplicant(program: str) -> bytes:
    if program:
        try:
            return Path(program).read_bytes()
        except OSError as error:
            raise UserlandMissing(f"supplicant_program={program}: {error.strerror}") from None
    # An interpreter of that name, so that argv[0] is what pidof looks for.
    named = f"#!{BOARD_LIBRARY}/tee-supplicant -IS\n".encode()
    return named + (_SERVICES.parent / "tee_supplicant.py").read_bytes()


def _persistent(state: Path) -> list[Bind]:
    """Directories that survive the loss of power; what is in them is the board's."""
    made = []
    for name in ("root", "var"):
        source = state / "rootfs" / name
        source.mkdir(parents=True, exist_ok=True)
        made.append(Bind(source, f"/{name}", writable=True))
    (state / "rootfs" / "root").chmod(0o700)
    with tree(state / "rootfs" / "var") as var:
        for name in ("lib", "log", "cache"):
            var.directory(name, 0o755)
        var.directory("tmp", 0o1777)
    return made


def _accounts(options: BoardOptions, shell: str) -> dict[str, Account]:
    known = (
        Account("root", 0, 0, "/root", shell, options.root_password),
        Account("tee", 900, 900, "/nonexistent", "/usr/sbin/nologin"),
        Account("user", 1000, 1000, "/home/user", shell, gecos="a second user"),
        Account("nobody", 65534, 65534, "/nonexistent", "/usr/sbin/nologin"),
    )
    return {account.name: account for account in known}


def _machine_id(state: Path) -> str:
    """32 hexadecimal digits, made at the first boot and kept (machine-id(5))."""
    file = state / "machine-id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    return file.read_text()


def _etc(options: BoardOptions, accounts: object, path: str, machine_id: str) -> list[PlacedFile]:
    known = list(accounts)  # type: ignore[call-overload]
    shadow = {None: "*", "": ""}
    passwd = [f"{a.name}:x:{a.uid}:{a.gid}:{a.gecos or a.name}:{a.home}:{a.shell}" for a in known]
    secrets = [
        f"{a.name}:{shadow.get(a.password, f'$plain${a.password}')}:19000::::::" for a in known
    ]
    groups = [f"{a.name}:x:{a.gid}:" for a in known]
    groups += ["tty:x:5:", "disk:x:6:", "teeclnt:x:901:"]
    name = options.hostname
    texts = {
        "passwd": "\n".join(passwd) + "\n",
        "group": "\n".join(groups) + "\n",
        "hostname": f"{name}\n",
        "hosts": f"127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost\n",
        "issue": "Emulated board \\n \\l\n\n",
        "os-release": 'PRETTY_NAME="Emulated board"\nNAME="Emulated board"\nID=stmm-hil-board\n',
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "machine-id": f"{machine_id}\n",
        "fstab": f"efivarfs {EFIVARFS_AT} efivarfs ro,nosuid,nodev,noexec 0 0\n"
        if options.mount == "read-only"
        else "# efivarfs is mounted by the service manager\n",
        "login.defs": f"ENV_SUPATH PATH={path}\nENV_PATH PATH={SYSTEM_PATH}\n",
        "environment": f'PATH="{path}"\n',
        "shells": "/bin/sh\n/bin/bash\n",
        "securetty": "ttyAMA0\n",
        "profile": _PROFILE.format(path=path),
        "bash.bashrc": _BASHRC,
    }
    files = [PlacedFile(f"/etc/{key}", text.encode()) for key, text in texts.items()]
    return [*files, PlacedFile("/etc/shadow", ("\n".join(secrets) + "\n").encode(), 0o640)]


_PROFILE: Final = """\
export PATH="{path}"
if [ "${{PS1-}}" ]; then
  if [ "${{BASH-}}" ] && [ "$BASH" != "/bin/sh" ]; then
    . /etc/bash.bashrc
  elif [ "$(id -u)" -eq 0 ]; then
    PS1='# '
  else
    PS1='$ '
  fi
fi
"""

_BASHRC: Final = "[ -z \"${PS1-}\" ] || PS1='\\u@\\h:\\w\\$ '\n"

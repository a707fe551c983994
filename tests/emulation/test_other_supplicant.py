"""Another tee-supplicant takes the place of the board's own, by the same device nodes.

``TEE_SUPPLICANT`` names upstream's, built for this host (optee_client: ``make WITH_TEEACL=0``,
``RPMB_EMU=0``).  Without it a renamed copy of the board's own shows that the option works.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emulation.userland.system import tee_supplicant
from tests.emulation.conftest import EmulatedBoard
from tests.emulation.rig import name

Boot = Callable[..., EmulatedBoard]
EFIVARS = "/sys/firmware/efi/efivars"


def use(boot: Boot, program: Path) -> EmulatedBoard:
    """A board with that supplicant binds, writes, and survives a restart of it."""
    board = boot(f"supplicant_program={program}")
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    board.ok(f"printf '\\7\\0\\0\\0first' > {EFIVARS}/{name('S')}")
    board.ok("systemctl restart tee-supplicant")
    board.ok(f"chattr -i {EFIVARS}/{name('S')}")
    board.ok(f"printf '\\7\\0\\0\\0second' > {EFIVARS}/{name('S')}")
    assert board.ok(f"cat {EFIVARS}/{name('S')} | tail -c +5") == "second"
    return board


def test_upstream_tee_supplicant(boot: Boot) -> None:
    program = os.environ.get("TEE_SUPPLICANT")
    if not program:
        pytest.skip("needs TEE_SUPPLICANT: the path of optee_client's tee-supplicant for this host")
    board = use(boot, Path(program).resolve())
    assert board.ok("pidof tee-supplicant").strip().isdigit()


def test_a_program_of_the_users_own(boot: Boot, tmp_path: Path) -> None:
    program = tmp_path / "my-supplicant"
    own = Path(tee_supplicant.__file__).read_text()
    marker = "print('mine', file=sys.stderr)\n"
    shebang = "#!/opt/board/lib/tee-supplicant -IS\n"
    program.write_text(shebang + own.replace("if __name__", f"{marker}if __name__"))
    board = use(boot, program)
    assert "mine" in board.ok("journalctl -u tee-supplicant")


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    options = ["-o", f"supplicant_program={tmp_path / 'none'}", "--state", str(tmp_path / "state")]
    command = [sys.executable, "-m", "emulation", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "none: No such file" in ended.stderr

"""A board file for a board that was found: its console, and what logging in tells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ConfigurationError, HilError, LabError
from harness.links.hostkeys import fingerprint

if TYPE_CHECKING:
    from harness.links.address import SerialAddress
    from harness.shell import Shell

# Fields that a reader looks for on separate lines; nothing is written on the board.
_FACTS = """cat /sys/class/mmc_host/mmc*/mmc*/cid 2>/dev/null | sed 's/^/cid /'
for t in /sys/class/mmc_host/mmc*/mmc*; do
  test "$(cat "$t/type" 2>/dev/null)" = MMC && echo "emmc $(cat "$t/cid")"; done
uname -n | sed 's/^/host /'
{ ip -o -4 addr show scope global 2>/dev/null || ifconfig 2>/dev/null; } |
  sed -n 's/.*inet \\(addr:\\)\\{0,1\\}\\([0-9.]*\\).*/address \\2/p'
cat /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/ssh_host_ecdsa_key.pub \
  /etc/ssh/ssh_host_rsa_key.pub 2>/dev/null | sed 's/^/key /'
true"""


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What a logged-in board says of itself; ``host_key`` is a fingerprint as ``ssh-keygen -l``
    prints it, None where no SSH server's key can be read."""

    emmc_cid: str
    host: str
    addresses: tuple[str, ...]
    host_key: str | None


def read_facts(shell: Shell) -> BoardFacts:
    """Raises :class:`LabError` for a board without eMMC, and the link's errors."""
    found: dict[str, list[str]] = {}
    for line in shell.run(_FACTS, timeout=20).text.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value.strip())
    # The bus type of a card is not everywhere in sysfs: any card is then better than none.
    cids = found.get("emmc") or found.get("cid")
    if not cids:
        raise LabError(
            "the board has no eMMC: /sys/class/mmc_host shows no card",
            remedy="variables live in the eMMC's RPMB partition: is this the right board, and is "
            "its MMC driver loaded?",
        )
    addresses = [text for text in found.get("address", []) if not text.startswith("127.")]
    keys = found.get("key", [])
    return BoardFacts(
        emmc_cid=cids[0].lower(),
        host=found.get("host", ["board"])[0],
        addresses=tuple(addresses),
        host_key=fingerprint(keys[0]) if keys else None,
    )


def board_name(text: str) -> str:
    """``text`` as a board's name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "board"


def board_file(
    name: str,
    facts: BoardFacts,
    console: SerialAddress,
    *,
    udev: Mapping[str, str] | None,
    ssh: bool,
) -> str:
    """The text of a board file. ``udev`` names the adapter (else the port of ``console`` is
    used); ``ssh`` adds the SSH end point that the board told of itself. Everything that could
    change the board is left off for its owner to allow."""
    quoted = json.dumps
    lines = [
        "#:schema ./board.schema.json",
        f"# Written by `hil discover`. Next: `hil check {name}`.",
        f"name = {quoted(name)}",
        f"description = {quoted('found by hil discover: ' + facts.host)}",
        f"emmc_cid = {quoted(facts.emmc_cid)}",
        "",
    ]
    if ssh and facts.addresses and facts.host_key:
        lines += [
            "[ssh]",
            f"host = {quoted(facts.addresses[0])}",
            f"user = {quoted(console.login.user)}",
            f"host_key_fingerprint = {quoted(facts.host_key)}",
            "",
        ]
    lines += ["[serial]"]
    if udev is None:
        lines += [f"port = {quoted(console.url)}"]
    lines += [f"baud = {console.baud}", ""]
    if udev is not None:
        lines += ["[serial.udev]", *(f"{key} = {quoted(value)}" for key, value in udev.items()), ""]
    lines += ["[serial.login]", f"user = {quoted(console.login.user)}"]
    if console.login.password:
        lines += [f"password = {quoted(console.login.password)}"]
    lines += [
        "",
        "# Until a driver that needs nobody is given here, a person switches when asked.",
        "[power]",
        'driver = "manual"',
        "",
        "# What its owner allows; boards/example.toml explains each.",
        "[consents]",
        "power_cycle = false",
        "write_rpmb = false",
        "",
    ]
    return "\n".join(lines)


def write_board_file(path: Path, text: str, *, force: bool) -> None:
    """Write it, readable by its owner alone if it holds a password, and check that it is valid.

    Raises :class:`ConfigurationError` for a file that is there (without ``force``) or cannot be
    written.
    """
    from harness.boardfile import loading

    if path.exists() and not force:
        raise ConfigurationError(
            f"{path} exists", remedy="give another name, or --force to write over it"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600 if "password" in text else 0o644)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", remedy="give a path that can be written"
        ) from error
    loading.load(path)


def ssh_answers(facts: BoardFacts, user: str) -> HilError | None:
    """Why the SSH end point that the board told of itself cannot be used; None if it can."""
    from harness.links.address import SshAddress
    from harness.links.ssh import SshShell

    if not facts.addresses or facts.host_key is None:
        return LabError("it told no address or host key", remedy="add [ssh] by hand")
    shell = SshShell(SshAddress(facts.addresses[0], user=user, host_key_fingerprint=facts.host_key))
    try:
        shell.run("true", timeout=5.0)
    except HilError as error:
        return error
    finally:
        shell.close()
    return None

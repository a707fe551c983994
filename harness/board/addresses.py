"""Where the links of a board lead: the board file's word, else what its power driver offers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile
    from harness.links.address import SerialAddress, SshAddress


def ssh_address(file: BoardFile, offered: SshAddress | None) -> SshAddress | None:
    """What the board file says; where it names no host, the ``offered`` end with all that it does
    say."""
    section = file.ssh
    if section is None:
        return offered
    from harness.links.address import SshAddress

    base = SshAddress(section.host) if section.host else offered
    said = section.model_dump(exclude_unset=True)
    if section.password is not None:
        said["password"] = section.password.get_secret_value()
    if section.known_hosts is not None:
        said["host_key_fingerprint"] = None
    return None if base is None else replace(base, **said)


def serial_address(
    file: BoardFile, *, patience: float = 0.0, offered: SerialAddress | None = None
) -> SerialAddress | None:
    """The console that the board file names, else the ``offered`` one with its login and prompts;
    None where there is neither. Its adapter may take ``patience`` seconds to appear. Raises
    :class:`HostError` for one found by its udev properties that is not there."""
    section = file.serial
    if section is None:
        return offered
    from harness.links.address import Login, Prompts, SerialAddress

    url = section.port
    if section.udev is not None:
        from harness.lab.adapter import node_of

        url = node_of(section.udev, timeout=patience)
    base = offered if url is None else SerialAddress(url, section.baud)
    if base is None:
        return None
    return replace(
        base,
        baud=section.baud if "baud" in section.model_fields_set else base.baud,
        login=Login(section.login.user, section.login.password.get_secret_value()),
        prompts=Prompts(**section.prompts.model_dump(exclude_none=True)),
    )

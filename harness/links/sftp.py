"""The lane for bytes: SFTP on a channel of an SSH connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import OutputWithoutEnd
from harness.links.channel import OUTPUT_LIMIT, LaneBroken, LaneLate, bounded, left, open_channel

if TYPE_CHECKING:
    from paramiko import SFTPClient, Transport


class SftpLane:
    """SFTP over one connection, opened at the first use."""

    def __init__(self) -> None:
        self._client: SFTPClient | None = None
        self._missing = False

    def drop(self) -> None:
        """Open a fresh one at the next use."""
        self._client = None

    def open(self, transport: Transport, deadline: float) -> SFTPClient | None:
        """The client; None where the board has no SFTP server that works (dropbear, start-up files
        that print). Raises ``LaneLate``, ``LaneBroken``."""
        import paramiko

        if self._missing:
            return None
        if self._client is not None:
            channel = self._client.get_channel()
            if channel is not None and not channel.closed:
                return self._client
        channel = open_channel(transport, deadline)
        try:
            # what is forced upon the account may answer with silence
            with bounded(channel, deadline - left(deadline) / 2):
                channel.invoke_subsystem("sftp")
                self._client = paramiko.SFTPClient(channel)
        except (LaneBroken, LaneLate, paramiko.SFTPError):
            channel.close()
            # a start-up file printed into the protocol, or there is no such server
            if not transport.is_active():
                raise LaneBroken from None
            self._missing = True
            return None
        return self._client


def read(sftp: SFTPClient, path: str, deadline: float) -> bytes:
    """All of a file. Raises ``LaneLate``, ``LaneBroken``, OSError, :class:`OutputWithoutEnd`."""
    channel = sftp.get_channel()
    assert channel is not None
    with bounded(channel, deadline), sftp.open(path, "rb") as file:
        data = bytearray()
        while part := file.read(32768):
            data += part
            if len(data) > OUTPUT_LIMIT:
                raise OutputWithoutEnd(f"the file {path}", OUTPUT_LIMIT)
    return bytes(data)


def write(sftp: SFTPClient, path: str, data: bytes, mode: int, deadline: float) -> bool:
    """Whether SFTP took the data; if not, the shell's message will say why. Raises ``LaneLate``,
    ``LaneBroken``."""
    channel = sftp.get_channel()
    assert channel is not None
    try:
        with bounded(channel, deadline):
            with sftp.open(path, "wb") as file:
                file.set_pipelined(True)
                file.write(data)
            sftp.chmod(path, mode)
    except OSError:
        return False
    return True

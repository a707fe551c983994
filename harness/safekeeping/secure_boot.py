"""Secure Boot: a board whose platform key is somebody else's is not touched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.board import state_dir as place
from harness.consents import Consent
from harness.errors import ConsentMissing, FirmwareError
from harness.formats.authentication import CERT_X509_GUID, OWNER_SIZE, parse_signature_lists
from harness.formats.efi import GLOBAL_VARIABLE_GUID

if TYPE_CHECKING:
    from harness.board.board import Board

_KEYS = "secure-boot-keys"
_USER_MODE = b"\0"
_PRIVATE = 0o700


def key_directory(board: Board) -> Path:
    """Where the suite keeps the keys that it enrols on this board, as ``NAME.der`` (the X.509
    certificate) beside its private key: written *before* they are enrolled, so that the next run
    can still remove what a killed one left. Private (0700)."""
    keys = place.directory(board.power, board.file) / _KEYS
    keys.mkdir(mode=_PRIVATE, exist_ok=True)
    return keys


def require_own_keys(board: Board) -> None:
    """Return if the suite may enrol and remove keys: the owner consents to ``secure_boot_keys``,
    the board is disposable, and either it has no platform key (setup mode) or it has one whose
    certificate is in :func:`key_directory`.

    Raises :class:`ConsentMissing` (a skip), :class:`OSError` when the mode cannot be read,
    :class:`FirmwareError` for user mode without a platform key. Costs no RPMB write.
    """
    board.require_consent(Consent.SECURE_BOOT_KEYS)
    if not board.file.disposable:
        raise ConsentMissing(
            "enrolled keys may lock this board for ever",
            remedy="run it on a board whose file says disposable = true",
            board=board.name,
        )
    if board.efivars.read("SetupMode", GLOBAL_VARIABLE_GUID).data != _USER_MODE:
        return
    enrolled = set(_platform_certificates(board))
    held = {path.read_bytes() for path in key_directory(board).glob("*.der")}
    if not enrolled or not enrolled <= held:
        raise ConsentMissing(
            "the board is in user mode, and its platform key is not one of this suite's",
            remedy="its owner removes PK (setup mode), or the tests of keys stay skipped here",
            board=board.name,
        )


def _platform_certificates(board: Board) -> Iterable[bytes]:
    if not board.efivars.exists("PK", GLOBAL_VARIABLE_GUID):
        raise FirmwareError(
            "SetupMode is 0 and there is no PK",
            remedy="UEFI 32.3: without a platform key the firmware is in setup mode",
            board=board.name,
        )
    for found in parse_signature_lists(board.efivars.read("PK", GLOBAL_VARIABLE_GUID).data):
        for entry in found.entries:
            # What is no certificate is certainly none of ours.
            yield entry[OWNER_SIZE:] if found.type == CERT_X509_GUID else b""

"""Boards that differ, each by what its option says and by nothing that its board file tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.cases.collecting import ROOT

VARIANTS: Mapping[str, Mapping[str, str | bool]] = {
    "mm-query": {"variant": "mm-query"},
    "mm": {"variant": "mm"},
    "file": {"variant": "file"},
    "mm-kernel-rpmb": {"variant": "mm-kernel-rpmb"},
    "K7": {"efivarfs": "K7"},
    "optee-4.1": {"optee": "4.1"},
    "busybox": {"userland": "busybox"},
    "service-unbinds": {"supplicant_unbinds": True},
    "no-sftp": {"sftp": False},
    "busybox-no-sftp-K7": {"userland": "busybox", "sftp": False, "efivarfs": "K7"},
}
"""Name: options of the board."""

_TEMPLATE = ROOT / "boards" / "emulated.toml"
_OPTIONS = "[power.options]\n"


def write_board_file(name: str, folder: Path) -> Path:
    """A board file in ``folder`` that differs from ``boards/emulated.toml`` in the power driver's
    options only. Raises KeyError for an unknown name."""
    before, header, after = _TEMPLATE.read_text("utf-8").partition(_OPTIONS)
    if not header:
        raise ValueError(f"{_TEMPLATE} has no {_OPTIONS.strip()}")
    _, gap, rest = after.partition("\n\n")
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in VARIANTS[name].items())
    path = folder / f"{name}.toml"
    path.write_text(before + header + lines + gap[1:] + rest, "utf-8")
    return path


def _toml(value: str | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()

"""What `hil qemu build` made: for each configuration a file with the options of a QEMU that runs
it, and the keys by which one logs in."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import ConfigurationError

if TYPE_CHECKING:
    from harness.tables import Table

OptionsT = TypeVar("OptionsT", bound="Table")
_PATHS = ("program", "bios", "kernel", "initrd", "emmc", "flash", "disks")


@dataclass(frozen=True)
class ImagesLogin:
    """How to log in to a board that runs these images."""

    user: str
    key: Path
    host_key_fingerprint: str


def cache() -> Path:
    """Where `hil qemu build` keeps what it made: ``$XDG_CACHE_HOME/stmm-hil/qemu``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "stmm-hil" / "qemu"


def with_images(
    options: OptionsT, name: str | None, *, board: str
) -> tuple[OptionsT, ImagesLogin | None]:
    """The options with those of the images of that ``name`` below them. Raises
    :class:`ConfigurationError` where these were not built."""
    if name is None:
        return options, None
    from pydantic import ValidationError

    path = cache() / "images" / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        login = table.pop("login")
        images = {key: _at(path.parent, key, value) for key, value in table.items()}
        merged = type(options)(**(images | options.model_dump(exclude_defaults=True)))
        return merged, ImagesLogin(
            login["user"], path.parent / login["key"], login["host_key_fingerprint"]
        )
    except FileNotFoundError:
        raise ConfigurationError(
            f"there are no images {name!r} (looked for {path})",
            remedy="`hil qemu build` makes them; images of your own are named one by one in "
            "[power.options]",
            board=board,
        ) from None
    except (ValidationError, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"{path} does not say how to run these images: {error}",
            remedy="`hil qemu build` writes it anew",
            board=board,
        ) from error


def _at(folder: Path, key: str, value: Any) -> Any:
    """Paths of the file are relative to it."""
    if isinstance(value, list):
        return tuple(_at(folder, key, item) for item in value)
    if key not in _PATHS:
        return value
    return str(folder / value) if key == "program" else folder / value

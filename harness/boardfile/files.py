"""Where board files are, and whose are taken. Apart from what reads them, so that a shell may ask
for their names while somebody waits: this module imports nothing slow.

A board file names shell commands and consents. Where a folder is named (``--boards-from``, or
``$HIL_BOARDS``), only its files count: nothing of the current folder, of the package nothing but
the board in software, and no file that others could have written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness import resources
from harness.edges import reading
from harness.errors import ConfigurationError

BOARDS_ENVIRONMENT: Final = "HIL_BOARDS"
IN_SOFTWARE: Final = "emulated"
"""The board that stays known beside those of a named folder: it has no command and no owner."""
_OTHERS_MAY_ADD: Final = stat.S_IWOTH
_SUFFIX: Final = ".toml"


def named_folder(boards_from: str | None = None) -> Path | None:
    """The one folder whose files are taken, if one is named. Raises :class:`ConfigurationError`
    where the option and the environment name two: a checkout may set an option."""
    environment = os.environ.get(BOARDS_ENVIRONMENT) or None
    given = [Path(_expanded(name)) for name in (boards_from, environment) if name]
    if len(set(map(os.path.realpath, given))) > 1:
        raise ConfigurationError(
            f"--boards-from is {given[0]}, {BOARDS_ENVIRONMENT} is {given[1]}",
            remedy=f"give one of the two; `unset {BOARDS_ENVIRONMENT}` for the option",
        )
    return given[0] if given else None


def own_folder() -> Path:
    """Where a new board file goes."""
    return named_folder() or Path("boards")


def board_files(boards_from: str | None = None) -> Iterator[Path]:
    """All board files that are known by name: those of the folder that is named and the board in
    software, else those in ``./boards`` and our own. Raises :class:`ConfigurationError` for a
    named folder that is none."""
    ours = resources.boards()
    folder = named_folder(boards_from)
    if folder is None:
        mine = Path("boards")
        if not _same(mine, ours):
            yield from sorted(mine.glob(f"*{_SUFFIX}"))
        yield from sorted(ours.glob(f"*{_SUFFIX}"))
        return
    with reading("the folder of boards", folder, remedy="name one that is there and readable"):
        names = sorted(os.listdir(folder))  # noqa: PTH208 - of what it lacks glob says nothing
    yield from (folder / name for name in names if name.endswith(_SUFFIX))
    if not _same(folder, ours):
        yield _in_software()


def allowed(path: Path, boards_from: str | None = None) -> Path:
    """The same path. Raises :class:`ConfigurationError` where a folder is named and the file is
    not in it, or others may write it or a folder on the way."""
    folder = named_folder(boards_from)
    if folder is None:
        return path
    with reading("the board file", path, remedy="give a name from `hil boards`"):
        # Not the file itself: a link in the folder is its owner's.
        place = Path(os.path.realpath(path.parent), path.name)
        if _same(place, _in_software()):
            return path
        if not place.is_relative_to(os.path.realpath(folder)):
            raise ConfigurationError(
                f"the board file {path} is not in {folder}, the folder that is named for boards",
                remedy="give the name of one of its boards; only its owner may grant consents",
            )
        for one in (place, *place.parents):
            _require_ours_alone(one, inside=one.is_relative_to(os.path.realpath(folder)))
    return path


def _require_ours_alone(path: Path, *, inside: bool) -> None:
    mode = path.stat().st_mode
    # Of a folder like /tmp others cannot take away what is another's.
    kept = not inside and mode & stat.S_ISVTX
    if mode & _OTHERS_MAY_ADD and not kept:
        raise ConfigurationError(
            f"{path} may be written by everybody: whose consents these are is not known",
            remedy=f"chmod o-w {path}, and look at what is in it",
        )


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _expanded(name: str) -> str:
    return os.path.expanduser(name)  # noqa: PTH111 - pathlib raises for an unknown user


def _in_software() -> Path:
    return resources.boards() / f"{IN_SOFTWARE}{_SUFFIX}"

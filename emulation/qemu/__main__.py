"""``python -m emulation.qemu``: builds the images of the real stack (``hil qemu build``)."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emulation.qemu import tree
from emulation.qemu.archive import MIRROR, BuildError, Downloads, read_lock
from emulation.qemu.catalogue import (
    CATALOGUE,
    CATALOGUE_WITHOUT_OPTEE_CLIENT,
    SUPPLICANT,
)
from emulation.qemu.engine import Builder, disk_free, nice
from emulation.qemu.images import publish
from emulation.qemu.pieces import Piece, Plan, plan
from emulation.qemu.progress import Reporter, clock


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/stmm-hil/qemu``"""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "stmm-hil" / "qemu"


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    try:
        status: int = arguments.run(arguments)
    except BuildError as error:
        print(f"hil qemu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next build continues here", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hil qemu", description=__doc__)
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="build the images, or what is missing of them")
    build.add_argument("pieces", nargs="*", metavar="PIECE", help="only these and what they need")
    build.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    build.add_argument("--mirror", default=MIRROR, help="of Debian; default: %(default)s")
    build.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of make")
    build.add_argument("--list", action="store_true", help="say what there is, build nothing")
    build.add_argument(
        "--json",
        action="store_true",
        help="the same as one JSON array: name, says, folder, seconds",
    )
    build.add_argument("--check", action="store_true", help="say what stands in the way of a build")
    build.add_argument("--clean", action="store_true", help="remove pieces built of other inputs")
    build.set_defaults(run=_build)
    lock = commands.add_parser("lock", help="take the versions that Debian has today")
    lock.add_argument("--mirror", default=MIRROR)
    lock.set_defaults(run=_lock)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    downloads = Downloads(arguments.cache / "packages", arguments.mirror)
    builder = Builder(arguments.cache, downloads=downloads, jobs=arguments.jobs)
    wanted = _wanted(builder, arguments.pieces or None)
    if arguments.list or arguments.json:
        return _list(builder, wanted, as_json=arguments.json)
    if arguments.clean:
        return _clean(builder, wanted)
    missing = [piece for piece in wanted.pieces if builder.finished(wanted, piece.name) is None]
    hindrances = _hindrances(arguments.cache, downloads, wanted, missing)
    for hindrance in hindrances:
        print(hindrance, file=sys.stderr)
    if arguments.check or hindrances:
        count = sum(len(wanted.archive_files(piece)) for piece in missing)
        if not hindrances:
            print(f"nothing stands in the way: {len(missing)} pieces to build, {count} files")
        return 1 if hindrances else 0
    if missing:
        nice()
    with Reporter() as reporter:
        built = builder.build(wanted, reporter)
    if not missing:
        print(f"nothing to do: {len(wanted.pieces)} pieces are built")
    for path in publish(arguments.cache, built):
        print(f"board: power.options.images = {path.stem!r}")
    return 0


def _wanted(builder: Builder, names: Sequence[str] | None) -> Plan:
    """The plan with upstream's supplicant; where neither it nor its source is to be had, with
    that of the emulated board, which is said."""
    groups = read_lock()
    whole = plan(CATALOGUE, groups, names)
    if SUPPLICANT not in whole.pieces or builder.finished(whole, SUPPLICANT.name) is not None:
        return whole
    reasons = [builder.downloads.why_not(file) for file in whole.archive_files(SUPPLICANT)]
    absent = [why for why in reasons if why is not None]
    if not absent:
        return whole
    print(
        f"optee-client cannot be had: {absent[0]}\n"
        "  where it takes RPMB frames, the board runs the emulated board's tee-supplicant instead;"
        " where the kernel does, Debian's",
        file=sys.stderr,
    )
    return plan(CATALOGUE_WITHOUT_OPTEE_CLIENT, groups, names)


def _hindrances(
    cache: Path, downloads: Downloads, wanted: Plan, missing: Sequence[Piece]
) -> list[str]:
    """Everything that would stop the build, before it starts."""
    found: list[str] = []
    if missing and (why := tree.why_not()):
        found.append(why)
    needed = sum(piece.megabytes for piece in missing)
    free = disk_free(cache) >> 20
    if free < needed:
        found.append(f"{cache} has {free} MiB free, the build needs about {needed}")
    files = {file.sha256: file for piece in missing for file in wanted.archive_files(piece)}
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(downloads.why_not, files.values())
        for file, why in zip(files.values(), answers, strict=True):
            if why is not None:
                found.append(f"{file.group}: {file.name} {file.version} cannot be had: {why}")
    return found


def _list(builder: Builder, wanted: Plan, *, as_json: bool) -> int:
    described = []
    for piece in wanted.pieces:
        built = builder.finished(wanted, piece.name)
        seconds = None if built is None else sum(built.seconds.values())
        folder = wanted.directory(piece)
        described.append(
            {"name": piece.name, "says": piece.says, "folder": folder, "seconds": seconds}
        )
        if not as_json:
            state = "not built" if seconds is None else clock(seconds)
            print(f"{folder:36} {state:>9}  {piece.says}")
    if as_json:
        print(json.dumps(described, indent=2))
    return 0


def _clean(builder: Builder, wanted: Plan) -> int:
    for place in builder.unused(wanted):
        print(f"removing {place}")
        tree.remove(place)
    return 0


def _lock(arguments: argparse.Namespace) -> int:
    from emulation.qemu.lock import write_lock

    print(f"{write_lock(mirror=arguments.mirror)} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

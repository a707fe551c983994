"""`hil qemu build`: pieces by the checksum of their inputs, each built once, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import lzma
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emulation.qemu import tree
from emulation.qemu.__main__ import main
from emulation.qemu.archive import (
    MIRROR,
    ArchiveFile,
    BuildError,
    Downloads,
    read_lock,
    unpack_packages,
)
from emulation.qemu.catalogue import CATALOGUE, CATALOGUE_WITHOUT_OPTEE_CLIENT, CONFIGURATIONS
from emulation.qemu.engine import Builder
from emulation.qemu.images import publish
from emulation.qemu.lock import Binaries, Source, resolve
from emulation.qemu.pieces import Piece, Plan, Script, Unpack, plan
from emulation.qemu.progress import Reporter

FILE = ArchiveFile("group", "package", "1.0-1", "pool/main/p/package_1.0-1_all.deb", 4, "ab" * 32)


def reporter() -> Reporter:
    return Reporter(io.StringIO())


def piece(name: str = "one", script: str = 'echo built > "$OUT/file"', **changes: object) -> Piece:
    base = Piece(name=name, says="a piece", steps=(Script("make", script),), outputs=("file",))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def only(*pieces: Piece) -> Plan:
    return plan(pieces, {})


# --- what identifies a piece --------------------------------------------------------------------


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.config"
    path.write_text("a = 1\n")
    return path


def identity(last: Piece, *others: Piece, files: tuple[ArchiveFile, ...] = (FILE,)) -> str:
    return plan((*others, last), {"group": files}).identities[last.name]


def test_the_same_inputs_are_the_same_piece(own_file: Path) -> None:
    both = [identity(piece(files=(own_file,), groups=("group",))) for _ in range(2)]
    assert both[0] == both[1]


def test_each_input_makes_another_piece(own_file: Path) -> None:
    needed = piece("needed")
    base = piece(files=(own_file,), groups=("group",), needs=("needed",))
    seen = [identity(base, needed)]
    seen.append(identity(dataclasses.replace(base, settings=(("JOBS", "4"),)), needed))
    seen.append(identity(dataclasses.replace(base, outputs=("other",)), needed))
    seen.append(identity(dataclasses.replace(base, steps=(Script("make", "true"),)), needed))
    seen.append(identity(base, piece("needed", "echo otherwise")))
    seen.append(identity(base, needed, files=(dataclasses.replace(FILE, sha256="cd" * 32),)))
    own_file.write_text("a = 2\n")
    seen.append(identity(base, needed))
    assert len(set(seen)) == len(seen)


def test_what_a_piece_says_is_no_input() -> None:
    assert identity(piece()) == identity(piece(says="something else", megabytes=9))


def test_pieces_come_after_what_they_need() -> None:
    pieces = (piece("c", needs=("b",)), piece("b", needs=("a",)), piece("a"), piece("other"))
    assert [p.name for p in plan(pieces, {}, ["c"]).pieces] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("pieces", "wanted", "what"),
    [
        ((piece("a"),), "b", "no piece b"),
        ((piece("a", needs=("a",)),), "a", "needs itself"),
        ((piece("a", groups=("missing",)),), "a", "no group missing"),
        ((piece("a", files=(Path("/nowhere/x"),)),), "a", "no /nowhere/x"),
    ],
)
def test_a_plan_that_cannot_be_says_why(pieces: tuple[Piece, ...], wanted: str, what: str) -> None:
    with pytest.raises(BuildError, match=what):
        plan(pieces, {}, [wanted])


# --- building -----------------------------------------------------------------------------------


def test_a_second_build_does_nothing(tmp_path: Path) -> None:
    counted = piece(script=f'echo x >> {tmp_path}/count; echo built > "$OUT/file"')
    for _ in range(2):
        built = Builder(tmp_path / "cache").build(only(counted), reporter())
    assert (tmp_path / "count").read_text() == "x\n"
    assert (built["one"].out / "file").read_text() == "built\n"
    assert set(built["one"].seconds) == {"fetch", "make"}


def test_a_piece_of_other_inputs_is_built_beside_it(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    first = builder.build(only(piece()), reporter())["one"]
    second_plan = only(piece(script='echo other > "$OUT/file"'))
    second = builder.build(second_plan, reporter())["one"]
    assert (first.out / "file").read_text() == "built\n"
    assert (second.out / "file").read_text() == "other\n"
    assert builder.unused(second_plan) == [first.place]


def _two_steps(tmp_path: Path) -> Piece:
    first = Script("first", f"echo first >> {tmp_path}/ran; echo kept > kept")
    second = Script(
        "second",
        f"echo second >> {tmp_path}/ran\n"
        f"test -e {tmp_path}/allowed || {{ echo 'the compiler is cross' >&2; exit 3; }}\n"
        'cp kept "$OUT/file"',
    )
    return piece(steps=(first, second))


def test_a_failing_step_says_what_and_why_and_is_where_the_next_build_goes_on(
    tmp_path: Path,
) -> None:
    steps = only(_two_steps(tmp_path))
    builder = Builder(tmp_path / "cache")
    with pytest.raises(BuildError) as failed:
        builder.build(steps, reporter())
    assert "one: the step second failed (status 3)" in str(failed.value)
    assert "the compiler is cross" in str(failed.value)
    log = next((tmp_path / "cache" / "pieces").glob("one-*/log"))
    assert str(log) in failed.value.remedy
    assert builder.finished(steps, "one") is None

    (tmp_path / "allowed").touch()
    built = builder.build(steps, reporter())["one"]
    assert (tmp_path / "ran").read_text().split() == ["first", "second", "second"]
    assert (built.out / "file").read_text() == "kept\n"
    assert not (built.place / "work").exists()


def test_a_piece_without_its_outputs_is_not_built(tmp_path: Path) -> None:
    builder, empty = Builder(tmp_path), only(piece(script="true"))
    with pytest.raises(BuildError, match="without file"):
        builder.build(empty, reporter())
    assert builder.finished(empty, "one") is None


def test_only_one_build_at_a_time(tmp_path: Path) -> None:
    refused: list[str] = []

    class Within(Reporter):
        def step(self, name: str, log: Path | None) -> None:
            with pytest.raises(BuildError, match="another build runs") as error:
                Builder(tmp_path).build(only(piece("other")), reporter())
            refused.append(error.value.what)

    Builder(tmp_path).build(only(piece()), Within(io.StringIO()))
    assert refused


def test_progress_without_a_terminal_is_a_line_a_step(tmp_path: Path) -> None:
    out = io.StringIO()
    with Reporter(out) as said:
        Builder(tmp_path).build(only(piece()), said)
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["[1/1] one: a piece", "  fetch", "  make"]
    assert "\r" not in out.getvalue()


# --- the archive --------------------------------------------------------------------------------


class Mirror:
    """A mirror on the loopback that serves a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        handler = partial(SimpleHTTPRequestHandler, directory=str(place))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def offer(self, path: str, content: bytes) -> ArchiveFile:
        target = self.place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return ArchiveFile("group", "package", "1.0-1", path, len(content), digest)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    place = tmp_path / "mirror"
    place.mkdir()
    serving = Mirror(place)
    yield serving
    serving.close()


def test_a_file_is_fetched_once(mirror: Mirror, tmp_path: Path) -> None:
    file = mirror.offer("pool/a.deb", b"content")
    downloads = Downloads(tmp_path / "packages", mirror.url)
    assert downloads.why_not(file) is None
    assert downloads.fetch(file).read_bytes() == b"content"
    (mirror.place / file.path).unlink()
    assert downloads.fetch(file).read_bytes() == b"content"
    assert downloads.why_not(file) is None


def test_a_file_that_is_another_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    file = mirror.offer("pool/a.deb", b"content")
    mirror.offer("pool/a.deb", b"CONTENT")
    downloads = Downloads(tmp_path / "packages", mirror.url)
    with pytest.raises(BuildError, match="is not the file of the lock"):
        downloads.fetch(file)
    assert not downloads.have(file)


def test_a_file_that_is_not_there_is_named(mirror: Mirror, tmp_path: Path) -> None:
    downloads = Downloads(tmp_path / "packages", mirror.url)
    url = f"{mirror.url}/{FILE.path}"
    assert downloads.why_not(FILE) == f"{url}: HTTP Error 404: File not found"
    with pytest.raises(BuildError, match="cannot be fetched") as error:
        downloads.fetch(FILE)
    assert url in error.value.what


def _deb(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as data:
        for info, content in members:
            info.size = len(content)
            data.addfile(info, io.BytesIO(content))
    whole = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("data.tar.xz", tar.getvalue())):
        whole += f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode()
        whole += content + b"\n" * (len(content) % 2)
    return whole


def _info(
    name: str, kind: bytes = tarfile.REGTYPE, to: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, to, mode
    return info


def test_packages_unpack_into_a_merged_tree(tmp_path: Path) -> None:
    package = tmp_path / "a.deb"
    package.write_bytes(
        _deb(
            [
                (_info("./lib/", tarfile.DIRTYPE, mode=0o755), b""),
                (_info("./lib/x.so.1", mode=0o755), b"library"),
                (_info("./usr/lib/x.so", tarfile.SYMTYPE, "x.so.1"), b""),
                (_info("./lib/y.so", tarfile.LNKTYPE, "./lib/x.so.1"), b""),
                (_info("./etc/conf"), b"conf"),
            ]
        )
    )
    root = tmp_path / "tree"
    for _ in range(2):  # as after an interruption
        unpack_packages([package], root)
    assert (root / "lib").readlink() == Path("usr/lib")
    assert (root / "usr/lib/x.so").read_bytes() == b"library"
    assert (root / "lib/y.so").samefile(root / "usr/lib/x.so.1")
    assert (root / "usr/lib/x.so.1").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/conf").read_text() == "conf"


def test_a_package_of_a_piece_is_fetched_and_unpacked(mirror: Mirror, tmp_path: Path) -> None:
    file = mirror.offer("pool/a.deb", _deb([(_info("./usr/share/a"), b"a")]))
    unpacked = piece(steps=(Unpack("group", "tree"),), groups=("group",))
    unpacked = dataclasses.replace(unpacked, outputs=("tree/usr/share/a",))
    builder = Builder(tmp_path, downloads=Downloads(tmp_path / "packages", mirror.url))
    built = builder.build(plan((unpacked,), {"group": (file,)}), reporter())["one"]
    assert (built.out / "tree/usr/share/a").read_text() == "a"


# --- the lock -----------------------------------------------------------------------------------

_PACKAGES = """\
Package: app
Version: 1.0-1
Depends: libx (>= 1) | liby, mail-agent, awk:any
Filename: pool/app.deb
Size: 1
SHA256: 00

Package: libx
Version: 1.9-1~bpo13+1
Filename: pool/libx-bpo.deb
Size: 1
SHA256: 01

Package: libx
Version: 1.10-1
Filename: pool/libx.deb
Size: 1
SHA256: 02

Package: postman
Version: 1
Provides: mail-agent (= 1)
Pre-Depends: libx
Filename: pool/postman.deb
Size: 1
SHA256: 03

Package: mawk
Version: 1
Provides: awk
Filename: pool/mawk.deb
Size: 1
SHA256: 04

Package: gawk
Version: 1
Provides: awk
Filename: pool/gawk.deb
Size: 1
SHA256: 05
"""

_SOURCES = """\
Package: app
Version: 1.0-1
Directory: pool/main/a/app
Checksums-Sha256:
 0a 5 app_1.0-1.dsc
 0b 6 app_1.0.orig.tar.gz
 0c 7 app_1.0.orig.tar.gz.asc
 0d 8 app_1.0-1.debian.tar.xz
"""


@pytest.fixture
def indices(mirror: Mirror) -> str:
    dists = "dists/suite/main"
    mirror.offer(f"{dists}/binary-arm64/Packages.xz", lzma.compress(_PACKAGES.encode()))
    mirror.offer(f"{dists}/source/Sources.xz", lzma.compress(_SOURCES.encode()))
    return mirror.url


def test_the_lock_names_what_is_needed_and_the_newest_of_it(indices: str) -> None:
    request = Binaries("g", "arm64", ("app", "mawk"), suites=("suite",))
    files = resolve([request], indices)
    assert [file.path for file in files] == [
        "pool/app.deb",
        "pool/libx.deb",
        "pool/mawk.deb",
        "pool/postman.deb",
    ]


def test_the_lock_names_the_archives_of_a_source_and_not_its_description(indices: str) -> None:
    files = resolve([Source("g", "app", "suite")], indices)
    assert [file.file_name for file in files] == ["app_1.0.orig.tar.gz", "app_1.0-1.debian.tar.xz"]
    assert files[0].line() == "g app 1.0-1 6 0b pool/main/a/app/app_1.0.orig.tar.gz"


def test_a_package_that_is_not_there_is_named(indices: str) -> None:
    with pytest.raises(BuildError, match="no package nonsense"):
        resolve([Binaries("g", "arm64", ("nonsense",), suites=("suite",))], indices)


def test_the_lock_of_the_checkout_has_every_group_of_the_catalogue() -> None:
    groups = read_lock()
    for catalogue in (CATALOGUE, CATALOGUE_WITHOUT_OPTEE_CLIENT):
        whole = plan(catalogue, groups)
        assert {p.name for p in whole.pieces} == {p.name for p in catalogue}
    files = [file for group in groups.values() for file in group]
    assert all(len(file.sha256) == 64 and file.path.startswith("pool/") for file in files)


def test_the_mirror_has_what_the_lock_names(tmp_path: Path) -> None:
    """A file of each group: all are asked for by `hil qemu build --check`."""
    try:
        urllib.request.urlopen(f"{MIRROR}/dists/trixie/InRelease", timeout=30).close()
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"no Debian mirror can be reached: {error}")
    groups = read_lock()
    groups.pop("optee-client")  # has a substitute
    asked = [max(files, key=lambda file: file.size) for files in groups.values()]
    downloads = Downloads(tmp_path, MIRROR)
    assert [why for why in map(downloads.why_not, asked) if why is not None] == []


# --- running in a tree --------------------------------------------------------------------------


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("the host has no busybox (package busybox-static)")
    if why := tree.why_not():
        pytest.skip(why)
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/busybox").write_bytes(busybox.read_bytes())
    (root / "usr/bin/busybox").chmod(0o755)
    for name in ("sh", "cat", "ls", "id", "touch"):
        (root / "usr/bin" / name).symlink_to("busybox")
    (root / "bin").symlink_to("usr/bin")
    return root


def test_a_script_sees_the_tree_and_what_is_bound(small_tree: Path, tmp_path: Path) -> None:
    work, out, own = (tmp_path / name for name in ("work", "out", "own"))
    work.mkdir()
    out.mkdir()
    own.write_text("own")
    room = tree.Room(small_tree, work, {"out": out, "own/a": own}, {"JOBS": "2"})
    with (tmp_path / "log").open("w+b") as log:
        status = tree.run(
            room, f'id -u; cat /own/a; echo " $JOBS"; touch /out/x y; ls {tmp_path}', log
        )
        log.seek(0)
        said = log.read().decode()
    assert status != 0, "the host's files are not there"
    assert said.splitlines()[:2] == ["0", "own 2"]
    assert (out / "x").exists()
    assert (work / "y").exists()
    assert not (small_tree / "own").exists()


# --- the command --------------------------------------------------------------------------------


def test_the_pieces_are_listed_without_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--list", "--cache", str(tmp_path), "tf-a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("-")[0] for line in lines] == ["tools", "tf"]
    assert all("not built" in line for line in lines)
    assert main(["build", "--json", "--cache", str(tmp_path), "tf-a"]) == 0
    pieces = json.loads(capsys.readouterr().out)
    assert [(piece["name"], piece["seconds"]) for piece in pieces] == [
        ("tools", None),
        ("tf-a", None),
    ]


def test_what_stands_in_the_way_is_said_before_anything_is_built(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "--cache", str(tmp_path / "cache"), "--mirror", mirror.url, "qemu"]
    for words in ([*command, "--check"], command):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert f"qemu: qemu-system-arm 1:11.1.3+ds-1~bpo13+1 cannot be had: {mirror.url}" in said
    assert not (tmp_path / "cache" / "pieces").exists()


def test_each_configuration_has_a_file_for_the_power_driver(tmp_path: Path) -> None:
    from harness.power.qemu import QemuPowerOptions
    from harness.power.qemu_images import with_images

    names = ("qemu", "firmware", "disk", "root")
    keys = 'echo SHA256:x > "$OUT/host_key.fingerprint"; touch "$OUT/file"'
    cache = tmp_path / "stmm-hil" / "qemu"
    built = Builder(cache).build(only(*(piece(name, keys) for name in names)), reporter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for path, configuration in zip(publish(cache, built), CONFIGURATIONS, strict=True):
            options, login = with_images(QemuPowerOptions(), path.stem, board="b")
            assert options.machine == "virt,secure=on,gic-version=3"
            assert options.bios is not None
            assert options.bios.resolve() == built["firmware"].out / f"{configuration.name}.bin"
            assert options.disks[0].name == f"{configuration.routing}.img"
            assert login is not None
            assert login.key.resolve() == built["root"].out / "login_key"


def test_one_piece_is_not_a_board(tmp_path: Path) -> None:
    built = Builder(tmp_path).build(only(piece("qemu")), reporter())
    assert publish(tmp_path, built) == []

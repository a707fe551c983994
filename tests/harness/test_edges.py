"""What can never be right is refused where it is read: file, line, one paragraph, exit status 4;
never a hang, never a traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import pytest

GOOD, BAD, USAGE = 0, 1, 4
HANGS = 60.0
"""As harness/cli/status.py and tests/pace.py have them, which older commits do not."""

CID = "aa015851454d55212101deadbeef2900"
MANUAL = f'emmc_cid = "{CID}"\n[serial]\nport = "/dev/ttyUSB0"\n[power]\ndriver = "manual"\n'
SSH = '[ssh]\nhost = "h"\nuser = "u"\n'

REFUSED_VALUES: dict[str, tuple[str | bytes, int]] = {
    "limit_nan": (MANUAL + "[limits]\nset_variable_ms = nan\n", 7),
    "limit_inf": (MANUAL + "[limits]\nset_variable_ms = inf\n", 7),
    "limit_negative": (MANUAL + "[limits]\nset_variable_ms = -1\n", 7),
    "timeout_inf": (MANUAL + "[timeouts]\ncommand = inf\n", 7),
    "timeout_nan": (MANUAL + "[timeouts]\nboot = nan\n", 7),
    "timeout_of_a_year": (MANUAL + "[timeouts]\ncommand = 31536000\n", 7),
    "pattern_open": (f'kernel_log_allowed = ["ok", "("]\n{MANUAL}', 1),
    "pattern_huge": (f'kernel_log_allowed = ["a{{99999999999999999999}}"]\n{MANUAL}', 1),
    "pattern_deep": (f'kernel_log_allowed = ["{"(" * 4000}{")" * 4000}"]\n{MANUAL}', 1),
    "pattern_number": (f"kernel_log_allowed = [3]\n{MANUAL}", 1),
    "prompt_open": (MANUAL + '[serial.prompts]\nshell = "["\n', 7),
    "name_date": (f"name = 2026-01-02\n{MANUAL}", 1),
    "name_escape": (f'name = "a\\u001b[31m"\n{MANUAL}', 1),
    "limit_date": (MANUAL + "[limits]\na_ms = 2026-01-02T03:04:05Z\n", 7),
}
REFUSED_FILES: dict[str, tuple[str | bytes, int]] = {
    "integer": (f"rpmb_write_budget = {'9' * 5000}\n{MANUAL}", 1),
    "integer_hex": (f"#\nrpmb_write_budget = 0x{'f' * 5000}\n{MANUAL}", 2),
    "integer_late": (f"{MANUAL}[timeouts]\nboot = {'9' * 5000}\n", 7),
    "nested_tables": (f"{MANUAL}[{'.'.join('t' * 1400)}]\n", 6),
    "nested_arrays": (f"#\nx = {'[' * 1400}{']' * 1400}\n{MANUAL}", 2),
    "nested_inline": (f"x = {'{a=' * 1400}1{'}' * 1400}\n{MANUAL}", 1),
    "nul_in_port": (MANUAL.replace("/dev/", "/dev/\\u0000"), 3),
    "line_feed_in_host": (MANUAL + '[ssh]\nhost = "a\\nb"\nknown_hosts = "k"\n', 7),
    "turned_round": (MANUAL + '[ssh]\nhost = "a\\u202eb"\nknown_hosts = "k"\n', 7),
    "key_with_escape": (f'"\\u001b]0;x" = 1\n{MANUAL}', 1),
    "unknown_home": (MANUAL + SSH + 'key = "~no-such-user/.ssh/id"\nknown_hosts = "k"\n', 9),
    "unknown_home_of_hosts": (MANUAL + SSH + 'known_hosts = "~no-such-user/k"\n', 9),
    "many_unknown_keys": ("".join(f"a{n}=1\n" for n in range(6000)) + MANUAL, 1),
    "brackets_in_text": (f"x = '''\n{'[' * 60000}\n'''\n{MANUAL}", 1),
    "not_utf8": (MANUAL.encode() + b"description = '\xff'\n", 6),
    "byte_order_mark": (b"\xef\xbb\xbf" + MANUAL.encode(), 1),
    "no_end": (f"{MANUAL}description = '''\n", 6),
}
REFUSED_KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "large": lambda path: path.write_bytes(b"#" * (1 << 20)),
    "hole": lambda path: sparse(path),
}


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def some(rows: Iterable[str], every_time: Collection[str]) -> list[object]:
    """All rows; those that are of a kind with one of ``every_time`` in the nightly job only. Each
    starts interpreters."""
    return [row if row in every_time else pytest.param(row, marks=pytest.mark.slow) for row in rows]


def hil(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        env={**os.environ, **environment},
    )


def run_pytest(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_one.py").write_text("def test_one(): print('ran')\n")
    plugins = ("-p", "no:cacheprovider", "-p", "harness.pytest_plugin")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, f"--rootdir={folder}", *words, "test_one.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def one_paragraph(run: subprocess.CompletedProcess[str]) -> str:
    told = run.stderr.strip()
    assert run.returncode == USAGE, told[-500:]
    assert "Traceback" not in told
    assert "\n\n" not in told
    return told


Listed = Callable[[str], str]


def listing(folder: Path) -> Listed:
    """What `hil boards` says of each file of a folder, in one run."""
    run = hil("boards", "--json", HIL_BOARDS=str(folder))
    assert run.returncode == USAGE, run.stderr[-500:]
    boards = {one["name"]: one for one in json.loads(run.stdout)}
    assert "error" not in boards["good"], "a bad file hides no other"
    return lambda name: str(boards[name].get("error", "taken"))


def written(folder: Path, files: Mapping[str, tuple[str | bytes, int]]) -> Path:
    (folder / "good.toml").write_text(MANUAL)
    for name, (text, _) in files.items():
        content = text if isinstance(text, bytes) else text.encode()
        (folder / f"{name}.toml").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def of_values(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return listing(written(tmp_path_factory.mktemp("values"), REFUSED_VALUES))


@pytest.fixture(scope="module")
def of_files(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return listing(written(tmp_path_factory.mktemp("files"), REFUSED_FILES))


@pytest.fixture(scope="module")
def of_kinds(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    folder = written(tmp_path_factory.mktemp("kinds"), {})
    for name, make in REFUSED_KINDS.items():
        make(folder / f"{name}.toml")
    return listing(folder)


# --- board files ----------------------------------------------------------------------------------


@pytest.mark.fault("R6")
@pytest.mark.parametrize("name", REFUSED_VALUES)
def test_a_value_that_can_never_be_right_is_told_with_its_line(
    name: str, of_values: Listed
) -> None:
    assert f"{name}.toml:{REFUSED_VALUES[name][1]}: " in of_values(name)


@pytest.mark.fault("R7")
@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_file_that_nobody_can_read_is_told_with_its_line(name: str, of_files: Listed) -> None:
    told, line = of_files(name), REFUSED_FILES[name][1]
    assert re.search(rf"{name}\.toml:{line}: ", told), told
    assert len(told) < 4000


@pytest.mark.fault("R7")
@pytest.mark.parametrize("name", REFUSED_KINDS)
def test_what_is_no_file_is_told_and_not_waited_for(name: str, of_kinds: Listed) -> None:
    assert f"{name}.toml" in of_kinds(name)


@pytest.mark.fault("R6", "R7")
@pytest.mark.parametrize(
    "name", some(["limit_nan", "integer", "nested_tables", "fifo"], {"limit_nan", "fifo"})
)
def test_a_run_and_a_command_end_before_the_board(name: str, tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    if name in REFUSED_KINDS:
        REFUSED_KINDS[name](path)
    else:
        path.write_text(str({**REFUSED_VALUES, **REFUSED_FILES}[name][0]))
    assert str(path) in one_paragraph(hil("power", "state", str(path)))
    assert str(path) in one_paragraph(run_pytest(tmp_path, "--board", str(path)))


def test_texts_of_several_lines_stay_where_they_make_sense(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(
        f'description = """two\nlines"""\nemmc_cid = "{CID}"\n[serial]\nport = "/dev/ttyUSB0"\n'
        '[power]\ndriver = "command"\n[power.options]\non = "true\\n\\ttrue"\noff = "true"\n'
    )
    run = hil("boards", HIL_BOARDS=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "two lines" in run.stdout


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.fault("R8")
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e400", "1e300", "ten", ""])
@pytest.mark.parametrize(
    "words",
    [
        ("run", "--timeout={}", "{board}", "true"),
        ("console", "--wait={}", "{board}"),
        ("console", "--quiet={}", "{board}"),
        ("lease", "hold", "--wait={}", "{board}", "true"),
        ("discover", "--watch={}"),
    ],
    ids=lambda words: "-".join(words[:-2]),
)
def test_a_time_that_cannot_be_is_refused(
    words: tuple[str, ...], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli.main import main

    # In this process: thirty interpreters take long. The board is never looked for.
    with pytest.raises(SystemExit) as ended:
        main([word.format(value, board="none-such") for word in words])
    assert ended.value.code == USAGE
    assert f"{value!r} is no time" in capsys.readouterr().err


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    "words",
    [
        ("run", "--timeout", "nan", "emulated", "true"),
        pytest.param(("run", "--timeout", "0", "emulated", "true"), marks=pytest.mark.slow),
        ("discover", "--baud", "-1"),
        pytest.param(("discover", "--baud", "9" * 5000), marks=pytest.mark.slow),
        ("emulate", "--port", "99999"),
        pytest.param(("emulate", "--port", "-1"), marks=pytest.mark.slow),
        pytest.param(("emulate", "--port", "9" * 5000), marks=pytest.mark.slow),
        ("run", "a" * 5000 + ".toml", "true"),
        ("run", "no/such\x1b/board", "true"),
        ("log", "--boot", "9" * 5000, "emulated"),
    ],
    ids=lambda words: "-".join(words)[:30],
)
def test_a_wrong_word_is_one_paragraph(words: tuple[str, ...], tmp_path: Path) -> None:
    run = hil(*words, XDG_STATE_HOME=str(tmp_path))
    assert "Traceback" not in run.stderr
    assert run.returncode == (BAD if words[0] == "log" else USAGE), run.stderr[-300:]


@pytest.mark.fault("R8")
@pytest.mark.parametrize("value", some(["nan", "-1"], {"nan"}))
def test_a_run_refuses_a_time_that_cannot_be(value: str, tmp_path: Path) -> None:
    run = run_pytest(tmp_path, f"--wait-for-board={value}")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "is no time" in run.stderr


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    "words",
    [
        ("--ktap", "missing/results.ktap"),
        pytest.param(("--ktap", "."), marks=pytest.mark.slow),
        ("--ktap", "unread"),
        pytest.param(("--ktap", "test_one.py/x"), marks=pytest.mark.slow),
        ("--junitxml", "test_one.py/results.xml"),
        pytest.param(("--junitxml", "unread"), marks=pytest.mark.slow),
        pytest.param(("--console-log", "test_one.py/console.log"), marks=pytest.mark.slow),
        ("--console-log", "unread"),
    ],
    ids="".join,
)
def test_what_could_not_be_written_is_told_before_the_tests(
    words: tuple[str, str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "unread")
    run = run_pytest(tmp_path, "-s", *words)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout[-500:]
    assert f"{words[0]} {words[1]}: cannot be written" in run.stderr
    assert "ran" not in run.stdout


def test_what_can_be_written_is(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "--ktap=a.ktap", "--junitxml=new/b.xml", "--console-log=new/c.log")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "a.ktap").read_text().startswith("KTAP")
    assert (tmp_path / "new/b.xml").exists()
    # Not there before either: nobody's results are emptied by the look.
    assert run_pytest(tmp_path, "--ktap=/dev/stdout").returncode == 0


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    "kind", some([*REFUSED_KINDS, "too_long"], {"fifo", "folder", "loop", "large", "too_long"})
)
def test_leases_in_an_odd_place_are_no_traceback(kind: str, tmp_path: Path) -> None:
    place = tmp_path / ("x" * 300 if kind == "too_long" else "leases")
    if kind in REFUSED_KINDS and kind != "folder":
        REFUSED_KINDS[kind](place)
    run = hil("lease", "show", HIL_LEASES=str(place))
    assert "Traceback" not in run.stderr
    assert run.returncode in (GOOD, BAD, USAGE)
    assert run.returncode == GOOD or run.stderr.startswith("hil: ")


@pytest.mark.fault("R8")
@pytest.mark.parametrize("folder", some(["missing", "file", "fifo"], {"missing", "fifo"}))
def test_a_folder_of_boards_that_is_none_is_told(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(MANUAL)
    os.mkfifo(tmp_path / "fifo")
    told = one_paragraph(hil("boards", HIL_BOARDS=str(tmp_path / folder)))
    assert str(tmp_path / folder) in told


# --- whose consents -------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Somebody's checkout with board files of its own; the lab's are in ``../lab``."""
    evil = MANUAL.replace("[serial]", "[consents]\nprogram_key = true\n[serial]")
    for folder, names in (("lab", ["desk3"]), ("checkout/boards", ["desk3", "other", "emulated"])):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            text = MANUAL if folder == "lab" else evil
            (tmp_path / folder / f"{name}.toml").write_text(text)
    return tmp_path / "checkout"


def in_checkout(
    checkout: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "harness", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def test_a_named_folder_excludes_all_other_boards(checkout: Path) -> None:
    lab = str(checkout.parent / "lab")
    for words, environment in (
        (("--boards-from", lab), {}),
        ((), {"HIL_BOARDS": lab}),
    ):
        run = in_checkout(checkout, "boards", "--json", *words, **environment)
        assert run.returncode == 0, run.stderr
        files = {board["name"]: board["file"] for board in json.loads(run.stdout)}
        assert set(files) == {"desk3", "emulated"}
        assert files["desk3"] == f"{lab}/desk3.toml"
        assert not files["emulated"].startswith(str(checkout)), "a checkout's own shadows nothing"
        told = one_paragraph(
            in_checkout(checkout, "power", "state", *words, "other", **environment)
        )
        assert "Known boards: desk3, emulated" in told


@pytest.mark.parametrize(
    "name",
    some(
        [
            "./boards/other.toml",
            "boards/desk3.toml",
            "../checkout/boards/other.toml",
            "{lab}/../checkout/boards/other.toml",
            "{lab}/sub/other.toml",
        ],
        {"./boards/other.toml", "../checkout/boards/other.toml", "{lab}/sub/other.toml"},
    ),
)
def test_a_path_outside_the_named_folder_is_refused(name: str, checkout: Path) -> None:
    lab = checkout.parent / "lab"
    (lab / "sub").symlink_to(checkout / "boards")
    one = name.format(lab=lab)
    run = in_checkout(checkout, "power", "state", "--boards-from", str(lab), one)
    assert f"is not in {lab}" in one_paragraph(run)
    run = run_pytest(checkout, "--boards-from", str(lab), "--board", one)
    assert f"is not in {lab}" in one_paragraph(run)


def test_a_path_inside_the_named_folder_is_taken(checkout: Path) -> None:
    lab = checkout.parent / "lab"
    run = in_checkout(checkout, "power", "state", "--boards-from", str(lab), f"{lab}/desk3.toml")
    assert run.stdout.startswith("desk3: power unknown")


def test_a_checkout_cannot_name_the_folder_in_the_lab_s_place(checkout: Path) -> None:
    (checkout / "pytest.ini").write_text("[pytest]\naddopts = --boards-from boards\n")
    lab = str(checkout.parent / "lab")
    run = run_pytest(checkout, "--board", "other", HIL_BOARDS=lab)
    assert lab in one_paragraph(run)
    assert "--boards-from is boards" in run.stderr
    # The one on the command line comes after that of the checkout.
    run = run_pytest(checkout, "--boards-from", lab, "--board", "other")
    assert "Known boards: desk3, emulated" in one_paragraph(run)


def test_several_boards_are_taken_from_the_named_folder(checkout: Path) -> None:
    lab = checkout.parent / "lab"
    (lab / "desk4.toml").write_text(MANUAL.replace("ttyUSB0", "ttyUSB4"))
    words = ("--boards-from", str(lab), "--board", "desk3")
    run = run_pytest(checkout, *words, "--board", "desk4")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout or "1 passed" in run.stdout
    told = one_paragraph(run_pytest(checkout, *words, "--board", "boards"))
    assert f"is not in {lab}" in told


def test_one_name_twice_shows_both_files(checkout: Path) -> None:
    told = one_paragraph(in_checkout(checkout, "power", "state", "emulated"))
    assert "boards/emulated.toml and /" in told
    told = one_paragraph(run_pytest(checkout, "--board", "emulated"))
    assert "boards/emulated.toml and /" in told
    listed = in_checkout(checkout, "boards")
    assert listed.returncode == USAGE
    assert "other " in listed.stdout
    lab = checkout.parent / "lab"
    (lab / "emulated.toml").write_text(MANUAL)
    told = one_paragraph(in_checkout(checkout, "check", "--boards-from", str(lab), "emulated"))
    assert f"{lab}/emulated.toml and /" in told


@pytest.mark.parametrize("what", ["desk3.toml", ".", ".."])
def test_what_everybody_may_write_grants_nothing(what: str, checkout: Path) -> None:
    lab = checkout.parent / "lab"
    place = lab / what
    mode = place.stat().st_mode
    place.chmod(mode | 0o002)
    try:
        run = in_checkout(checkout, "power", "state", "--boards-from", str(lab), "desk3")
        assert "may be written by everybody" in one_paragraph(run)
        if what == "..":
            # As /tmp: what another put there nobody can take away.
            place.chmod(mode | 0o1002)
            run = in_checkout(checkout, "power", "state", "--boards-from", str(lab), "desk3")
            assert run.returncode == 0, run.stderr
    finally:
        place.chmod(mode)

"""A lab's own plugin: the hooks of a run are called when and in which order their specifications
say, on one board and on several, and what it does wrong harms neither board nor results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.support.runs import Run, board_file, inner_run

CONFTEST = """
import pytest

from harness.board import state_dir
from harness.errors import LabError
from harness.pytest_plugin.hookspecs import Look
from harness.safekeeping import snapshot


def say(board, line):
    with open(f"said-{board.name}", "a") as file:
        print(line, file=file)


def saved(board):
    return "saved" if snapshot.pending(state_dir.directory(board.power, board.file)) else "not saved"


@pytest.hookimpl(tryfirst=True)
def pytest_hil_begin(board, items):
    say(board, f"begin {len(items)}, {saved(board)}")


@pytest.hookimpl(trylast=True)
def pytest_hil_look(board, item):
    yours = Look(
        'echo "moved $moved"; ls /sys/firmware/efi/efivars | grep -c ^Left',
        lambda text: say(board, f"look {text.split()}"),
    )
    if "no_shell_command" in item.name:
        return Look("fi", print)
    return None if "unseen" in item.name else yours


@pytest.hookimpl(tryfirst=True)
def pytest_hil_tidying(board, item, standing):
    say(board, f"before {len(standing.own_variables)} {len(board.efivars.own())}")
    if "refused" in item.name:
        raise LabError("planted while tidying", remedy="none")


class Late:
    @pytest.hookimpl(trylast=True)
    def pytest_hil_tidying(self, board, item):
        say(board, f"after {len(board.efivars.own())}")

    @pytest.hookimpl(trylast=True)
    def pytest_hil_close(self, board):
        say(board, f"close, {saved(board)}")
        raise RuntimeError("planted at the close")


def pytest_configure(config):
    config.pluginmanager.register(Late())


@pytest.hookimpl(wrapper=True)
def pytest_hil_restoring(board, interrupted, lost):
    say(board, f"restoring {interrupted} {lost}, {saved(board)}")
    yield
    raise LabError("planted while restoring", remedy="none")
"""
INNER = """
def test_leaves_something(efivars):
    efivars.write("Left", b"behind")

def test_leaves_nothing(board):
    pass

def test_unseen(board):
    pass

def test_refused(board):
    pass

def test_no_shell_command(board):
    pass

def test_without_a_board():
    pass
"""
SAID = """\
begin 5, saved
look ['moved', 'yes', '1']
before 1 1
after 0
look ['moved', '0']
before 0 0
after 0
before 0 0
after 0
look ['moved', '0']
before 0 0
restoring True None, saved
close, not saved
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hooks")
    (folder / "conftest.py").write_text(CONFTEST)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return inner_run(folder, INNER, board_file(folder), "--capabilities pinned")


def test_hooks_are_called_in_the_promised_order(run: Run, folder: Path) -> None:
    assert (folder / "said-emulated").read_text() == SAID, run.output


def test_an_error_fails_what_it_is_about(run: Run) -> None:
    for name, why in {
        "test_refused": "planted while tidying",
        "test_no_shell_command": "a plugin's is no good sh",
    }.items():
        outcome, message = run.outcomes.pop(name)
        assert outcome == "error"
        assert why in message
    assert {outcome for outcome, _ in run.outcomes.values()} == {"passed"}, run.output


def test_errors_at_the_end_hide_no_result_and_keep_no_variable(run: Run) -> None:
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert "at the end of the run: planted while restoring." in run.output
    assert "RuntimeError: planted at the close" in run.output
    assert "14 identical" in run.output
    assert "6 passed, 2 errors" in run.output


def test_each_of_several_boards_has_its_own(folder: Path) -> None:
    boards = folder / "boards"
    boards.mkdir()
    text = board_file(folder).read_text()
    for name in ("alpha", "beta"):
        named = text.replace('name = "emulated"', f'name = "{name}"')
        (boards / f"{name}.toml").write_text(named)
    run = inner_run(folder, INNER, boards, "--capabilities pinned")
    for name in ("alpha", "beta"):
        assert (folder / f"said-{name}").read_text() == SAID, run.output


OUTLIVING = """
import pytest

@pytest.fixture(scope="module")
def left(board):
    board.efivars.write("Left", b"behind")
    yield
    board.efivars.delete("Left")
    raise RuntimeError("planted after a file")

@pytest.fixture
def ends_badly(board):
    yield
    raise RuntimeError("planted after a test")

def test_ends_badly(left, ends_badly):
    pass

def test_is_not_run(left):
    pass
"""


def test_a_fixture_that_outlives_its_last_test_has_the_board_and_hides_no_result(
    tmp_path: Path,
) -> None:
    run = inner_run(tmp_path, OUTLIVING, board_file(tmp_path), "-x")
    assert run.status == pytest.ExitCode.TESTS_FAILED
    error = "ERROR test_inner.py::test_ends_badly - RuntimeError: planted after a test"
    assert error in run.output, run.output
    assert "RuntimeError: planted after a file" in run.output
    assert "LinkLost" not in run.output
    assert "14 identical" in run.output

"""What conformance tests expect is what real firmware was recorded to do, where they say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import citations
from tests.cases.citations import BadCitation, Errno, agrees, check


def test_every_cited_row_agrees() -> None:
    problems = citations.problems()
    assert not problems, "\n".join(["", *problems])


def test_the_suite_cites_rows() -> None:
    cited = [
        row
        for path in citations.CONFORMANCE.glob("test_*.py")
        for rows in citations.cited_by(path).values()
        for row in rows
    ]
    assert cited


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (Errno("EINVAL"), "-EINVAL"),
        (b"\7\0\0\0hello", "0700000068656c6c6f"),
        (b"\7\0\0\0hello", "9 bytes 0700000068656c6c6f"),
        (b"", "0 bytes"),
        (b"", "b''"),
        (b"\7\0\0\0n", "b'\\x07\\x00\\x00\\x00n'"),
        (9, 9),
        (1, "rc=1"),
        (True, True),
        (True, "ok"),
        (None, None),
        ([16284, 40, 40], [16284, 40, 40]),
        ("01", "01"),
    ],
)
def test_what_agrees(value: object, recorded: object) -> None:
    assert agrees(value, recorded)


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (Errno("EINVAL"), "-EIO"),
        (Errno("EINVAL"), 0),
        (b"\7", "08"),
        (b"hello", "9 bytes 68656c6c6f"),
        (b"\0", "ok"),
        (9, 8),
        (1, True),
        (True, 1),
        (False, "ok"),
        (0, "rc=1"),
        ("01", "0100"),
    ],
)
def test_what_does_not_agree(value: object, recorded: object) -> None:
    assert not agrees(value, recorded)


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (Errno("EINVAL"), "attr-002[1]"),
        (0, "attr-002[2]"),
        (True, "attr-002.file_left"),
        (15352, "basic-001.outcome.bfree"),
        (9420, "authA-001.free[1]"),
        (Errno("EROFS"), "mount-001.output"),
        ("efivarfs ro,relatime", "mount-001.output"),
    ],
)
def test_a_row_is_looked_up(value: object, row: str) -> None:
    check(value, row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("attr-999[1]", "no recorded row 'attr-999"),
        ("attr-002", "neither a step"),
        ("attr-002[9]", "no 9 there; the row has 5 steps"),
        ("attr-002.reedback", "no 'reedback' there; the row has .*file_left"),
        ("attr-002[0]", "the test expects errno.EINVAL, attr-002.0. has 'ok'"),
    ],
)
def test_a_bad_citation_is_explained(row: str, message: str) -> None:
    with pytest.raises(BadCitation, match=message):
        check(Errno("EINVAL"), row)


def test_a_wrong_call_is_named_by_file_and_line(tmp_path: Path) -> None:
    source = tmp_path / "test_wrong.py"
    source.write_text(
        "VALUE = recorded(errno.EINVAL, 'attr-002[1]')\n"
        "OTHER = recorded(errno.EROFS, 'attr-002[1]')\n"
        "THIRD = recorded(OTHER, 'attr-002[1]')\n"
        "FOURTH = recorded(errno.EINVAL)\n"
    )
    assert [problem.removeprefix(str(tmp_path)) for problem in citations.problems(tmp_path)] == [
        "/test_wrong.py:2: the test expects errno.EROFS, attr-002[1] has '-EINVAL'",
        "/test_wrong.py:3: recorded() takes literals, so that they can be compared; not OTHER",
        "/test_wrong.py:4: recorded() takes a value and names of rows",
    ]


def test_rows_are_found_through_names_and_decorators(tmp_path: Path) -> None:
    source = tmp_path / "test_scopes.py"
    source.write_text(
        "REFUSED = recorded(errno.EINVAL, 'attr-002[1]')\n"
        "def helper():\n"
        "    return REFUSED\n"
        "class TestIt:\n"
        "    @mark(recorded(0, 'attr-004[2]'))\n"
        "    def test_one(self):\n"
        "        helper()\n"
        "    def test_two(self):\n"
        "        pass\n"
    )
    cited = citations.cited_by(source)
    assert cited["TestIt::test_one"] == {"attr-002", "attr-004"}
    assert cited["TestIt::test_two"] == set()

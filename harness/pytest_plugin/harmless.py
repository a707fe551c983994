"""What pytest shows and writes of a test holds nothing that a terminal would obey: messages of
assertions, captured output, properties, reasons."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import pytest
from _pytest._code.code import ExceptionChainRepr

from harness.foreign import escaped, escaped_lines

_LONGEST_LINE: Final = 1 << 16


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Last of all: nobody changes the report afterwards."""
    report = yield
    report.longrepr = _harmless(report.longrepr)
    report.sections = [(title, _text(content)) for title, content in report.sections]
    report.user_properties = [
        (name, _line(value) if isinstance(value, str) else value)
        for name, value in report.user_properties
    ]
    if hasattr(report, "wasxfail"):
        report.wasxfail = _line(report.wasxfail)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_collectionfinish() -> Generator[None, list[Any], list[Any]]:
    """Board, firmware and kernel as they call themselves."""
    lines = yield
    return [
        [escaped(line) for line in one] if isinstance(one, list) else escaped(one) for one in lines
    ]


def _harmless(shown: Any) -> Any:
    match shown:
        case str():
            return _text(shown)
        case (path, line, reason):
            return path, line, _line(reason)
        case ExceptionChainRepr():
            for trace, crash, _ in shown.chain:
                if crash is not None:
                    crash.message = _text(crash.message)
                for entry in trace.reprentries:
                    lines: list[str] = getattr(entry, "lines", [])
                    lines[:] = map(_text, lines)
    return shown


def _line(text: str) -> str:
    return str(escaped(text))  # pytest-xdist sends no class of our own


def _text(text: str) -> str:
    return escaped_lines(text, most=_LONGEST_LINE)

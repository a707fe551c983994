"""JUnit XML: what tests are called in it, and of several boards one test suite a board."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.resources import conformance_suite

BOARD = "board"
"""The property of a test that names its board."""
_COUNTED = {"errors": "error", "failures": "failure", "skipped": "skipped"}


def rename(path: Path, root: Path) -> None:
    """Name the suite's tests by their place in the suite (:mod:`harness.resources`);
    pytest names them by that below ``root``."""
    suite = conformance_suite()
    if not suite.is_relative_to(root):
        return
    prefix = "".join(f"{part}." for part in suite.relative_to(root).parts)
    tree = ET.parse(path)
    for case in tree.iter("testcase"):
        case.set("classname", case.get("classname", "").removeprefix(prefix))
    tree.write(path, encoding="utf-8", xml_declaration=True)


def split(path: Path, properties: Mapping[str, Mapping[str, object]]) -> None:
    """Give each board of ``properties`` a ``testsuite`` of its name in the file, with those
    properties and the board's tests. What belongs to no board stays where it was."""
    tree = ET.parse(path)
    root = tree.getroot()
    for suite in list(root.iter("testsuite")):
        for board, values in properties.items():
            cases = [
                case for case in suite.findall("testcase") if _board_of(case, properties) == board
            ]
            for case in cases:
                suite.remove(case)
            root.append(_suite(board, suite, values, cases))
        if suite.find("testcase") is None:
            root.remove(suite)
        else:
            _count(suite)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _board_of(case: ET.Element, boards: Iterable[str]) -> str | None:
    for one in case.iter("property"):
        if one.get("name") == BOARD:
            return one.get("value")
    # A test within which its process died has no properties, but the board as a parameter.
    _, _, parameters = case.get("name", "").partition("[")
    named = [board for board in boards if parameters.startswith((f"{board}]", f"{board}-"))]
    return max(named, key=len, default=None)


def _suite(
    board: str, whole: ET.Element, values: Mapping[str, object], cases: list[ET.Element]
) -> ET.Element:
    suite = ET.Element("testsuite", {**whole.attrib, "name": board})
    properties = ET.SubElement(suite, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": name, "value": str(value)})
    suite.extend(cases)
    _count(suite)
    return suite


def _count(suite: ET.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
    for attribute, tag in _COUNTED.items():
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))

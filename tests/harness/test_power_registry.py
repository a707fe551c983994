"""Power drivers are known by their records, and by nothing else outside their folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from harness.boardfile import loading
from harness.power.driver import Driver
from harness.power.registry import DRIVERS, PowerSection, driver_of
from harness.power.section import Section
from tests.harness.support.power_tables import TEXTS

ROOT = Path(__file__).parents[2]
SECTION: TypeAdapter[Section] = TypeAdapter(PowerSection)
OUTSIDE = [
    path
    for path in sorted((ROOT / "harness").rglob("*.py"))
    if path.parent != ROOT / "harness" / "power"
]
# Of drivers, sections and outlets alike.
KIND = re.compile(r"\w(Power|PowerSection|Section|Outlet)$")


def tells_drivers_apart(tree: ast.AST) -> list[int]:
    """Lines that compare the ``driver`` of something, or ask for the class of a driver."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                if any(isinstance(side, ast.Attribute) and side.attr == "driver" for side in sides):
                    found.append(node.lineno)
            case ast.Match(subject=ast.Attribute(attr="driver")):
                found.append(node.lineno)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
                if any(
                    isinstance(kind, ast.Name) and KIND.search(kind.id) for kind in ast.walk(kinds)
                ):
                    found.append(node.lineno)
    return found


def test_nobody_outside_tells_drivers_apart() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in OUTSIDE
        for line in tells_drivers_apart(ast.parse(path.read_text("utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        'file.power.driver == "qemu"',
        'section.driver in ("a", "b")',
        "isinstance(power, PlacePower)",
        "isinstance(power, (int, QemuPowerSection))",
        "match section.driver:\n    case _: pass",
    ],
)
def test_the_rule_finds_what_it_forbids(line: str) -> None:
    assert tells_drivers_apart(ast.parse(line)) == [1]


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_a_section_is_read_as_that_of_the_driver_it_names(driver: Driver[Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        SECTION.validate_python({"driver": driver.name, "nonsense": 1})
    assert (driver.name, "nonsense") in [error["loc"] for error in refused.value.errors()]
    assert driver_of(driver.section.model_construct()) is driver


@pytest.mark.parametrize(
    ("driver", "options", "things"),
    [
        ("emulated", {}, []),
        ("manual", {}, []),
        ("labgrid", {}, []),
        ("command", {"on": "a", "off": "b"}, ["outlet ca978112ca1bbdca"]),
        ("http", {"kind": "shelly", "host": "plug", "outlet": 2}, ["outlet http plug 2"]),
        ("snmp", {"host": "pdu", "oid": ".1.3.6"}, ["outlet snmp pdu 1.3.6"]),
        ("usb-hub", {"location": "1-1", "port": 2}, ["outlet usb 1-1 2"]),
        ("relay", {"port": "/dev/null"}, ["outlet relay /dev/null 1"]),
        ("qemu", {"disks": (Path("/d"),), "emmc": Path("/e")}, ["image /d", "image /e"]),
    ],
)
def test_the_things_of_a_driver(driver: str, options: dict[str, Any], things: list[str]) -> None:
    section = SECTION.validate_python({"driver": driver, "options": options})
    assert [*driver_of(section).things(section)] == things


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_the_documentation_has_every_driver(path: Path) -> None:
    pattern, text = TEXTS[path]
    (found,) = re.finditer(pattern, path.read_text("utf-8"))
    assert found[0] == text(), "run: python -m tests.harness.support.power_tables"


def test_paths_of_a_section_are_relative_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(
        'emmc_cid = "aa015851454d55212101deadbeef2900"\n[serial]\nport = "/dev/ttyUSB0"\n'
        '[power]\ndriver = "qemu"\n[power.options]\nprogram = "qemu"\nemmc = "e.img"\n'
        'flash = ["f.img", "/g.img"]\n'
    )
    options = loading.load(path).power.options
    assert (options.program, options.kernel) == ("qemu", None)
    assert options.emmc == tmp_path / "e.img"
    assert options.flash == (tmp_path / "f.img", Path("/g.img"))

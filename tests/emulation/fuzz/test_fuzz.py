"""Hostile input never raises: a few hundred mutants of each parser's kept seeds in a normal run.

``tox -e nightly`` goes on for ten minutes a parser.
"""

from __future__ import annotations

import pytest

from tests.emulation.fuzz import edges
from tests.emulation.fuzz.engine import fuzz
from tests.emulation.fuzz.targets import TARGETS

INPUTS = {
    "mm_messages": 2000,
    "rpmb_frames": 1500,
    "store_images": 150,
    "rpmb_images": 60,
    "uboot_files": 250,
}
"""About a second each, and always the same mutants."""


SECONDS = 4.0
"""For each edge; what it takes depends on the machine, and so do the mutants."""
GROWTH = 64 << 20


@pytest.mark.parametrize("name", INPUTS)
def test_hostile_input_raises_nothing(name: str) -> None:
    report = fuzz(TARGETS[name], lambda report: report.inputs >= INPUTS[name], seed=1)
    for finding in report.findings:
        raise finding.error
    assert report.outcomes > 3


@pytest.mark.parametrize("name", [target.name for target in edges.TARGETS])
def test_nothing_that_others_write_gets_past_an_edge(name: str) -> None:
    """No traceback, no hang, no growth."""
    report = fuzz(TARGETS[name], lambda report: report.seconds >= SECONDS, seed=1)
    for finding in report.findings:
        raise finding.error
    assert report.outcomes > 1
    assert report.grown < GROWTH


def test_growth_is_seen() -> None:
    class Greedy:
        name = "greedy"
        kept: list[bytes] = []

        def samples(self) -> list[bytes]:
            return [b"\0\0"]

        def run(self, data: bytes) -> bytes:
            self.kept.append(bytes(1 << 18))
            return b""

    assert fuzz(Greedy(), lambda report: report.inputs > 600).grown > GROWTH


def test_a_parser_that_raises_is_found() -> None:
    class Fragile:
        name = "fragile"

        def samples(self) -> list[bytes]:
            return [b"\0\0"]

        def run(self, data: bytes) -> bytes:
            assert data[:1] != b"\xff"
            return data[:1]

    report = fuzz(Fragile(), lambda report: report.inputs > 5000)
    assert [finding.data[:1] for finding in report.findings] == [b"\xff"]

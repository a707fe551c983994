"""A mutation fuzzer: an input that leads to an outcome not seen before is kept and mutated further.

A target says what an input led to (result codes, states), which takes the place of code coverage.
"""

from __future__ import annotations

import base64
import mmap
import random
import signal
import time
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

HANG_SECONDS: Final = 20.0
MAX_INPUT: Final = 1 << 16
CORPUS: Final = 5000
"""How many inputs are mutated further; beyond that a new one takes the place of another."""
SEEDS: Final = Path(__file__).parent / "seeds"

_EDGES: Final = (
    *(0, 1, 2, 3, 4, 7, 8, 0x10, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xFE, 0xFF, 0x100, 0xFFF, 0x1000),
    *(0x2000, 0x27F4, 0x3F9C, 0x4000, 0x7FFF, 0x8000, 0xC000, 0xFFFE, 0xFFFF, 0x10000),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1),
)


class Target(Protocol):
    """One parser under test."""

    name: str

    def samples(self) -> list[bytes]:
        """Inputs to begin with."""
        ...

    def run(self, data: bytes) -> Hashable:
        """Feed one input; what it led to.  Any exception is a finding."""
        ...


class Hang(Exception):
    """One input took longer than HANG_SECONDS."""


@dataclass(frozen=True)
class Finding:
    """An input and what it raised."""

    data: bytes
    error: BaseException


@dataclass
class Report:
    """What one run of the fuzzer did."""

    inputs: int = 0
    outcomes: int = 0
    seconds: float = 0.0
    grown: int = 0
    """Bytes of memory that the process gained since its samples were fed, but for the corpus."""
    corpus: list[bytes] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def fuzz(
    target: Target,
    stop: Callable[[Report], bool],
    *,
    seed: int = 0,
    max_findings: int = 1,
) -> Report:
    """Feed samples, kept seeds and their mutants until ``stop`` or enough findings."""
    randomness = random.Random(seed)
    report = Report()
    outcomes: set[int] = set()
    started = time.monotonic()
    given = deque([*target.samples(), *load_seeds(target.name)])
    report.corpus.extend(given)
    memory = _resident()
    while given or not stop(report):
        if given:
            memory = _resident()
        data = given.popleft() if given else mutate(randomness, report.corpus)
        try:
            with _no_hang():
                outcome = target.run(data)
        except Exception as error:
            report.findings.append(Finding(data, error))
            if len(report.findings) >= max_findings:
                return report
        else:
            if hash(outcome) not in outcomes:
                outcomes.add(hash(outcome))
                if len(report.corpus) < CORPUS:
                    report.corpus.append(data)
                else:
                    report.corpus[randomness.randrange(CORPUS)] = data
        report.inputs += 1
        report.outcomes = len(outcomes)
        report.seconds = time.monotonic() - started
        if not report.inputs % 256:
            report.grown = max(0, _resident() - memory - sum(map(len, report.corpus)))
    return report


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def mutate(randomness: random.Random, corpus: list[bytes]) -> bytes:
    """One to four changes to an input of the corpus."""
    data = bytearray(randomness.choice(corpus))
    for _ in range(randomness.randint(1, 4)):
        randomness.choice(_MUTATIONS)(randomness, data, corpus)
    return bytes(data[:MAX_INPUT])


def load_seeds(name: str) -> Iterator[bytes]:
    """Inputs kept in the repository: those that once failed, and one for each outcome."""
    path = SEEDS / f"{name}.txt"
    if path.exists():
        for line in path.read_text().splitlines():
            yield zlib.decompress(base64.b64decode(line))


def save_seeds(name: str, inputs: list[bytes]) -> None:
    """Replace the inputs kept in the repository."""
    lines = [base64.b64encode(zlib.compress(data, 9)).decode() for data in inputs]
    (SEEDS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


@contextmanager
def _no_hang() -> Iterator[None]:
    def expired(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _flip(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    if data:
        data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)


def _byte(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    if data:
        data[randomness.randrange(len(data))] = randomness.randrange(256)


def _number(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    size = randomness.choice((2, 4, 8))
    if len(data) >= size:
        at = randomness.randrange(len(data) - size + 1)
        value = randomness.choice(_EDGES) + randomness.choice((0, 0, -1, 1))
        order = randomness.choice(("little", "little", "big"))
        wrapped = value & ((1 << 8 * size) - 1)
        data[at : at + size] = wrapped.to_bytes(size, "big" if order == "big" else "little")


def _remove(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    at = randomness.randrange(len(data) + 1)
    del data[at : at + randomness.choice((1, 2, 4, 16, 256))]


def _repeat(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    at = randomness.randrange(len(data) + 1)
    part = data[at : at + randomness.choice((1, 4, 16, 60, 512))]
    data[at:at] = part * randomness.choice((1, 1, 2, 8))


def _cut(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    del data[randomness.randrange(len(data) + 1) :]


def _splice(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    other = randomness.choice(corpus)
    at, start = randomness.randrange(len(data) + 1), randomness.randrange(len(other) + 1)
    part = other[start : start + randomness.choice((4, 16, 60, 512, 4096))]
    if randomness.random() < 0.5:
        data[at:at] = part
    else:
        data[at : at + len(part)] = part


def _append(randomness: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    data += randomness.choice(corpus)


_MUTATIONS: Final = (
    *(_flip, _byte, _number, _number, _number, _remove, _repeat, _cut, _splice, _splice, _append),
)

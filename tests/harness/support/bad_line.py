"""Many commands over a bad line: how many come back right, how many as a link error.

``python -m tests.harness.support.bad_line [COUNT [LINE ...]]`` prints the table of
docs/results/serial-noise.md.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from harness.errors import LinkError
from harness.links.address import Login, SerialAddress
from harness.links.serial import SerialShell
from tests.harness.support.line import Line, Weather


def _paced(baud: int) -> Callable[[], Weather]:
    return lambda: Weather(baud=baud)


SECONDS = 30.0  # that a command may take
SHELL = ["bash", "--norc", "-i"]
NOISE = 0.05
WEATHERS: dict[str, Callable[[], Weather]] = {
    "input": lambda: Weather(lost_input=0.01, noise=NOISE, escapes=True),
    "output": lambda: Weather(lost_output=0.01, noise=NOISE, escapes=True),
    "both": lambda: Weather(lost_input=0.01, lost_output=0.01, noise=NOISE, escapes=True),
}
"""One character in a hundred lost, kernel messages every 50 ms, colour escapes."""
PACES = {f"{baud} baud": baud for baud in (9600, 115200, 1500000)}
"""Rates whose pace the line keeps, both ways."""
WEATHERS |= {name: _paced(baud) for name, baud in PACES.items()}


@dataclass
class Tally:
    """``right`` of ``count`` commands had the right bytes and status; ``errors`` are link errors
    by class; ``wrong`` and ``repeated`` (run more than once) are faults of the link."""

    count: int
    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    repeated: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """At least 99 of 100 right (of fewer: all but one), the others link errors, none wrong,
        none run twice."""
        allowed = max(1, self.count // 100)
        return self.right >= self.count - allowed and not self.wrong and not self.repeated


def run(where: str, count: int, folder: Path, *, seed: int = 1) -> Tally:
    """``count`` commands with ``where`` one of :data:`WEATHERS`; ``folder`` is scratch."""
    line = Line(SHELL, environment={"PS1": r"\[\e[01;32m\]board\[\e[0m\]# "})
    shell = SerialShell.open(
        SerialAddress(line.device, PACES.get(where, 115200), login=Login("root"))
    )
    ran = folder / f"ran-{where.split()[0]}"
    tally = Tally(count)
    chance = random.Random(seed)
    started = time.monotonic()
    try:
        shell.run("true", timeout=SECONDS)
        line.weather = WEATHERS[where]()
        for number in range(count):
            _one(shell, tally, chance, f"echo {number} >>{ran}; ")
    finally:
        line.weather = Weather()
        shell.close()
        line.close()
    runs = Counter(ran.read_text(encoding="ascii").split())
    tally.repeated = sum(times > 1 for times in runs.values())
    tally.seconds = time.monotonic() - started
    return tally


def _one(shell: SerialShell, tally: Tally, chance: random.Random, prefix: str) -> None:
    status = chance.randrange(256)
    out = _text(chance, chance.choice((0, 0, 8, 60, 60, 600)))
    err = _text(chance, chance.choice((0, 0, 0, 20)))
    command = f"{prefix}printf %s {quote(out)}; printf %s {quote(err)} >&2; exit {status}"
    try:
        result = shell.run(command, timeout=SECONDS)
    except LinkError as error:
        tally.errors[type(error).__name__] += 1
        return
    if (result.status, result.stdout, result.stderr) == (status, out.encode(), err.encode()):
        tally.right += 1
    else:
        tally.wrong.append(f"{command!r}: {result}")


def _text(chance: random.Random, most: int) -> str:
    """What looks like prompts, kernel messages and log lines."""
    letters = "abcdefgh 0123456789[.]:#$>%\n"
    return "".join(chance.choices(letters, k=chance.randrange(most + 1)))


def main() -> int:
    """Print one line a weather; 1 if one of them did not pass."""
    count = int(sys.argv[1]) if sys.argv[1:] else 500
    print("| 1 % lost on | commands | right | link errors | wrong | run twice | ms a command |")
    print("|---|---|---|---|---|---|---|")
    passed = True
    with tempfile.TemporaryDirectory() as name:
        for where in sys.argv[2:] or WEATHERS:
            tally = run(where, count, Path(name))
            passed = passed and tally.passed
            errors = ", ".join(f"{n} {kind}" for kind, n in tally.errors.items()) or "0"
            print(
                f"| {where} | {count} | {tally.right} | {errors} | {len(tally.wrong)} |"
                f" {tally.repeated} | {tally.seconds / count * 1000:.0f} |",
                flush=True,
            )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

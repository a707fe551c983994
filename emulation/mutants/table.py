"""The table of mutants as documentation."""

from typing import Final

from emulation.mutants.registry import LAYERS

_INTRODUCTION: Final = """\
# Mutant boards

A mutant is the emulated board with one thing broken, as firmware, kernel or flash really break.
`python -m emulation -o mutant=NAME` runs one; in a board file it is `mutant = "NAME"` under
`[power.options]`. The conformance tests must fail on each:

    python -m tests.mutants [NAME ...] [--jobs N] [--sample] [--results FILE]

runs them on every mutant, with the capabilities that the healthy board was measured to have, and
prints which tests caught it ([the last table](results/mutants.md)); with `--results` batches add
up. Caught means that an assertion about the board's behaviour failed; a
failed set-up, a timeout or a crash does not count. A mutant that survives is a missing test.

The healthy emulator contains no trace of them: each replaces a method or a value of the model in
the supervisor process before the board is made (`emulation/mutants/`), and says so loudly when the
model no longer has what it replaces. This file is what `python -m emulation.mutants` prints.

Not among them, because a board broken so is no different at its interface, or never gets as far as
a test:

- efivars whose semaphore nobody takes: OP-TEE admits one caller at a time anyway;
- an RPMB write counter that jumps, or stands still for OP-TEE itself: OP-TEE gives the RPMB up
  during the first boot, and no efivarfs appears;
- another CID in sysfs than on the card: the harness refuses the board, because it is not the one of
  the board file;
- half a half sector written when the power goes: a state byte lies in one half or the other, so it
  is `flash_forgets_last_write` or nothing;
- a card that takes a second authentication key: the tests program none, unless a person demands it;
- a device on the TEE bus that no partition serves: other OP-TEE builds announce more as well.
"""


def document() -> str:
    """docs/mutants.md."""
    parts = [_INTRODUCTION]
    for layer, members in LAYERS.items():
        rows = [f"| `{mutant.name}` | {mutant.broken} |" for mutant in members]
        parts += [f"\n## {layer}\n", "| mutant | what is broken |", "|---|---|", *rows]
    return "\n".join(parts) + "\n"

"""The standard state of a board: what a boot brings about and a test may have left otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING

from harness.board.links import Links
from harness.capabilities import EFIVARS_PATH, STMM_DEVICE, STMM_DRIVER, VENDOR_GUID
from harness.errors import CommandFailed, LabError, MissingCapability
from harness.instruments.efivars import VariableName, mount_state
from harness.shell import Shell

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile

_POLL_SECONDS = 0.05
# Built-in commands where possible: it runs after every test, and a process costs a millisecond.
STANDING = f"""IFS= read -r b </proc/sys/kernel/random/boot_id && echo "boot $b"
test -e {STMM_DRIVER}/{STMM_DEVICE} && echo bound
while IFS= read -r m; do case $m in *' {EFIVARS_PATH} '*) printf '%s\\n' "$m";; esac
done </proc/self/mountinfo
for p in /proc/[0-9]*; do IFS= read -r n <$p/comm && case $n in tee-supplicant*) \
echo supplicant; break;; esac; done 2>/dev/null
for v in {EFIVARS_PATH}/*-{VENDOR_GUID} {EFIVARS_PATH}/.*-{VENDOR_GUID}; do test -e "$v" && \
echo "own ${{v##*/}}"; done; true
"""
# Sizes and names of the others; of "-rw-r--r-- 1 0 0 12 Jan  1 00:00 NAME" (POSIX ls -n), because
# stat is not on every board. A name may begin with a dot.
_FOREIGN = f"""ls -Aln {EFIVARS_PATH} 2>/dev/null | sed -n -e '/-{VENDOR_GUID}$/d' -e \
's/^-[^ ]* *[0-9]* *[0-9]* *[0-9]* *\\([0-9]*\\) *[^ ]* *[^ ]* *[^ ]* /\\1 /p'"""
FOREIGN_STANDING = f"echo foreign $({_FOREIGN} | cksum)\n"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a test may have left otherwise than it found it."""

    bound: bool
    mounted: bool
    writable: bool
    supplicant: bool
    own_variables: tuple[str, ...] = ()
    boot: str = ""
    """Id of the boot that answered."""
    foreign: str = ""
    """A checksum over names and sizes of all other variables: a serial line is slow. Empty where
    nobody looked."""

    def lacks(self, wanted: Standing) -> list[str]:
        """What ``wanted`` has and this has not, in the order in which it must be mended."""
        pairs = {
            "supplicant running": (self.supplicant, wanted.supplicant),
            "driver bound": (self.bound, wanted.bound),
            "efivarfs mounted": (self.mounted, wanted.mounted),
            "efivarfs writable": (self.writable, wanted.writable),
        }
        return [what for what, (has, should) in pairs.items() if should and not has]


class Standard:
    """The standing that the last boot brought about, and how to come back to it. ``kept`` names
    own variables that may stay."""

    def __init__(self, file: BoardFile, links: Links, kept: Collection[VariableName]) -> None:
        self._file = file
        self._links = links
        self._kept = kept
        self._wanted: Standing | None = None

    def now(self, *, foreign: bool = False) -> Standing:
        """Driver, mount, supplicant and own variables, in one round trip; with ``foreign`` the
        others, too, which takes three processes."""
        look = STANDING + FOREIGN_STANDING if foreign else STANDING
        return self.parse(self._links.shell.run(look).text.splitlines())

    def parse(self, lines: Iterable[str]) -> Standing:
        """What :data:`STANDING`, and perhaps :data:`FOREIGN_STANDING`, printed; other lines are
        passed over."""
        lines = list(lines)
        mounts = [mount_state(line) for line in lines if f" {EFIVARS_PATH} " in line]
        own = {line[4:] for line in lines if line.startswith("own ")}
        return Standing(
            bound="bound" in lines,
            mounted=bool(mounts),
            writable=bool(mounts) and mounts[-1].writable,
            supplicant="supplicant" in lines,
            own_variables=tuple(sorted(own - {str(name) for name in self._kept})),
            boot=next((line[5:] for line in lines if line.startswith("boot ")), ""),
            foreign=next((line for line in lines if line.startswith("foreign ")), ""),
        )

    def wait(self) -> None:
        """Wait until the driver is bound and efivarfs writable, as after every boot; a board that
        does not come so far is left to the capabilities to tell."""
        deadline = time.monotonic() + self._file.timeouts.ready
        standing = self.now()
        while not (standing.bound and standing.writable) and time.monotonic() < deadline:
            Event().wait(_POLL_SECONDS)
            standing = self.now()
        self._wanted = replace(standing, own_variables=(), boot="", foreign="")

    def restore(self, standing: Standing | None = None) -> list[str]:
        """Bring back what the last boot had and a test left otherwise; returns what was mended.
        ``standing`` spares the round trip. Raises when something cannot be mended."""
        if self._wanted is None:
            return []
        mended = (standing or self.now()).lacks(self._wanted)
        if not mended:
            return []
        for what in mended:
            # Each mend may bring the next by itself: the supplicant enumerates the device.
            if what in self.now().lacks(self._wanted):
                self._mend(what)
        left = self.now().lacks(self._wanted)
        if left:
            raise LabError(
                f"the board could not be brought back to: {', '.join(left)}",
                remedy="power-cycle it",
                board=self._file.name,
            )
        return mended

    def _mend(self, what: str) -> None:
        instruments = self._links.instruments
        with contextlib.suppress(CommandFailed, MissingCapability):
            match what:
                case "supplicant running":
                    instruments.tee.start_supplicant()
                case "driver bound":
                    instruments.tee.bind()
                case "efivarfs mounted":
                    instruments.efivars.mount()
                case "efivarfs writable":
                    instruments.efivars.remount("rw")


def foreign_variables(shell: Shell) -> dict[str, int]:
    """File names and sizes (data plus four bytes) of the variables that are not ours, by the
    shell; what the checksum of :attr:`Standing.foreign` is over."""
    lines = shell.run(_FOREIGN).text.splitlines()
    return {name: int(size) for size, _, name in (line.partition(" ") for line in lines)}

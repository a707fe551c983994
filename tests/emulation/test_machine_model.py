"""Files of the whole board agree with a short model of UEFI variables, through reboots and through
power cuts at any RPMB frame.  What StandaloneMM alone does is in test_stmm_model.py."""

from __future__ import annotations

import errno
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emulation.faults import POWER_CUT, PowerLost
from emulation.machine import Machine
from emulation.options import BoardOptions
from tests.emulation.rig import GUID, Rig, name
from tests.emulation.supplicant_thread import SupplicantThread
from tests.emulation.test_independent_tools import efi_vars

NV_BS_RT, APPEND = 7, 0x47
LARGEST = 8132
RPMB_BYTES = 2 << 20
VOLUME_SIGNATURE = slice(40, 44)
_SCRATCH = tempfile.TemporaryDirectory()

names = st.sampled_from(["A", "Bb", "Longer name"])
datas = st.binary(min_size=1, max_size=12) | st.integers(100, 3000).map(lambda n: b"\xa5" * n)
points = st.sampled_from(["rpmb.request", "rpmb.write", "rpmb.written", "rpmb.response"])
passages = st.integers(1, 12) | st.integers(13, 500)


@functools.cache
def used_flash() -> Path:
    """The image of a board that was booted once."""
    state = Path(_SCRATCH.name)
    machine = Machine(BoardOptions(), state)
    machine.power_on(console=lambda data: None)
    machine.close()
    return state / "rpmb.img"


def errno_or_zero(work: Callable[[], None]) -> int | None:
    try:
        work()
    except OSError as error:
        return error.errno
    return 0


class Files(RuleBasedStateMachine):
    """``self.model`` maps a name to the value of its file."""

    @initialize()
    def power_on(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        state = Path(self.folder.name)
        shutil.copy(used_flash(), state)
        self.rig = Rig(state)
        self.rig.boot()
        self.model: dict[str, bytes] = {}
        # Values that a cut left behind newer ones (test_stmm_model).
        self.ghosts: dict[str, set[bytes]] = {}

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.machine.close()
            self.folder.cleanup()

    # What the specification says

    def outcome(self, short: str, data: bytes, attributes: int) -> int:
        """UEFI 8.2 SetVariable of a non-volatile runtime variable, at run time: 0 or an errno."""
        old = self.model.get(short)
        value = (old or b"") + data if attributes == APPEND else data
        if 2 * (len(short) + 1) + len(value) > LARGEST:
            return errno.EINVAL
        if value == old and attributes != APPEND:
            return 0
        record = 60 + 2 * (len(short) + 1) + len(value)
        return errno.ENOSPC if record > self.rig.free()[1] else 0

    def apply(self, short: str, data: bytes, attributes: int) -> None:
        old = self.model.get(short, b"")
        self.model[short] = old + data if attributes == APPEND else data

    # What may happen

    @rule(short=names, data=datas, attributes=st.sampled_from([NV_BS_RT, NV_BS_RT, APPEND]))
    def write(self, short: str, data: bytes, attributes: int) -> None:
        if short in self.ghosts and short not in self.model:
            attributes = NV_BS_RT  # what an append would find is not shown
        expected = self.outcome(short, data, attributes)
        seen = errno_or_zero(lambda: self.rig.write(name(short), data, attributes=attributes))
        assert seen == expected
        if seen:
            self.forget_empty_file(short)
        else:
            self.apply(short, data, attributes)

    @rule(short=names)
    def delete(self, short: str) -> None:
        if short in self.model and name(short) in self.rig.names():
            self.rig.delete(name(short))
            self.forget(short)

    @rule()
    def reboot(self) -> None:
        self.rig.reboot()
        self.settle_ghosts()

    @rule(short=names, data=datas, point=points, nth=passages)
    def write_losing_power(self, short: str, data: bytes, point: str, nth: int) -> None:
        expected = self.outcome(short, data, NV_BS_RT)
        if self.loses_power(f"{point}:{nth}", lambda: self.rig.write(name(short), data)):
            self.settle(short, {data} if expected == 0 else set())
        elif expected == 0:
            self.apply(short, data, NV_BS_RT)
        else:
            self.forget_empty_file(short)

    @rule(short=names, point=points, nth=st.integers(1, 5))
    def delete_losing_power(self, short: str, point: str, nth: int) -> None:
        if short not in self.model or name(short) not in self.rig.names():
            return
        if self.loses_power(f"{point}:{nth}", lambda: self.rig.delete(name(short))):
            self.settle(short, {None})
        else:
            self.forget(short)

    @rule(nth=st.integers(1, 3) | st.integers(4, 3000))
    def boot_losing_power(self, nth: int) -> None:
        """The firmware may be reclaiming: no variable is lost but in the firmware's own gap."""
        self.rig.machine.faults.arm(f"rpmb.write:{nth}={POWER_CUT}")
        self.rig.machine.power_cut()
        self.rig.supplicant = SupplicantThread(self.rig.machine)
        try:
            self.rig.machine.power_on(console=lambda data: None)
        except PowerLost:
            self.notice_the_gap()
        self.rig.machine.faults.disarm()
        self.rig.reboot()
        self.settle_ghosts()

    # Helpers

    def loses_power(self, place: str, work: Callable[[], None]) -> bool:
        """Do something with a power cut armed; whether it happened.  Then the board is up again."""
        self.rig.machine.faults.arm(f"{place}={POWER_CUT}")
        try:
            assert errno_or_zero(work) in (0, errno.ENOSPC)
        except PowerLost:
            self.notice_the_gap()
            self.rig.machine.faults.disarm()
            self.rig.reboot()
            return True
        self.rig.machine.faults.disarm()
        return False

    def notice_the_gap(self) -> None:
        """Between erasing the store and writing its first block the real firmware has nothing
        (stack 4.12, test_stmm_power): it then formats."""
        medium = (self.rig.machine.state / "rpmb.img").read_bytes()[:RPMB_BYTES]
        if efi_vars(medium)[VOLUME_SIGNATURE] != b"_FVH":
            self.model, self.ghosts = {}, {}

    def settle(self, short: str, new: set[bytes] | set[None]) -> None:
        """Take the value that a cut left, if it is one of those that may be there."""
        self.settle_ghosts(but=short)
        before = self.model.get(short)
        found = self.rig.read(name(short)) if name(short) in self.rig.names() else None
        assert found in {before, *new, *self.ghosts.get(short, ())}
        if before is not None and found != before:
            self.ghosts.setdefault(short, set()).add(before)
        self.model.pop(short, None)
        if found is not None:
            self.model[short] = found

    def settle_ghosts(self, but: str = "") -> None:
        """Take the values that this start brought back."""
        for short, ghosts in self.ghosts.items():
            if short != but and name(short) in self.rig.names():
                found = self.rig.read(name(short))
                if short in self.model:
                    ghosts.add(self.model[short])
                assert found in ghosts
                self.model[short] = found

    def forget(self, short: str) -> None:
        """A deleted variable's file is gone at once; what lay behind it shows at the next mount."""
        del self.model[short]

    def forget_empty_file(self, short: str) -> None:
        """A refused first write leaves an empty file until the next mount (truth size)."""
        if short not in self.model and name(short) in self.rig.names():
            assert self.rig.read(name(short)) == b""
            self.rig.delete(name(short))

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "rig"):
            return
        listed = {entry for entry in self.rig.names() if entry.endswith(GUID)}
        known = {name(short) for short in self.model}
        # GetNext passes over what lies between two records of one variable (test_stmm_model).
        assert listed == known or (self.ghosts and listed < known)
        for short, value in self.model.items():
            if name(short) in listed:
                assert self.rig.read(name(short)) == value
        size, free = self.rig.free()
        live = sum(60 + 2 * (len(short) + 1) + len(value) for short, value in self.model.items())
        assert 0 <= free <= size - live


TestFiles = Files.TestCase
TestFiles.settings = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

"""Any sequence of calls, reboots and power cuts agrees with a short model of the specification."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emulation.faults import PowerLost
from harness.formats.efi import EfiStatus
from tests.emulation.stmm_client import VENDOR, Partition

NV, BS, RT, APPEND = 1, 2, 4, 0x40
names = st.sampled_from(["A", "Bb", "Name three"])
datas = st.binary(max_size=12) | st.integers(200, 3000).map(lambda size: b"\xa5" * size)
attributes = st.sampled_from([7, 7, 7, 6, 3, 2, 0x47, 0x46, 0, 1, 4, 5, 0x80])
LARGEST = 8132


class Variables(RuleBasedStateMachine):
    """``self.model`` maps a name to (attributes, value)."""

    @initialize()
    def power_on(self) -> None:
        self.board = Partition()
        self.model: dict[str, tuple[int, bytes]] = {}
        self.runtime = False
        # Values a cut left behind newer ones. An update clears away one of them, so the others may
        # come back by a deletion, a second cut (test_stmm_power), or a start that reclaims.
        self.ghosts: dict[str, set[bytes]] = {}

    def expected(self, name: str, attrs: int, data: bytes) -> EfiStatus:
        """UEFI 8.2 SetVariable, without quota."""
        if attrs & ~0x7F or attrs & (RT | BS) == RT or attrs & 0x6F == NV:
            return EfiStatus.INVALID_PARAMETER
        if 2 * (len(name) + 1) + len(data) > LARGEST:
            return EfiStatus.INVALID_PARAMETER
        stored = self.model.get(name)
        deletion = not attrs & (BS | RT) or (not data and not attrs & APPEND)
        if stored is None:
            if not data and attrs & APPEND:
                return EfiStatus.SUCCESS
            if deletion:
                return EfiStatus.NOT_FOUND
            if self.runtime and attrs & (NV | RT) != NV | RT:
                return EfiStatus.INVALID_PARAMETER
            return EfiStatus.SUCCESS
        if self.runtime and not stored[0] & RT:
            return EfiStatus.WRITE_PROTECTED
        if attrs and attrs & ~APPEND != stored[0]:
            return EfiStatus.INVALID_PARAMETER
        if self.runtime and not stored[0] & NV:
            return EfiStatus.WRITE_PROTECTED
        if attrs & APPEND and 2 * (len(name) + 1) + len(stored[1]) + len(data) > LARGEST:
            return EfiStatus.INVALID_PARAMETER
        return EfiStatus.SUCCESS

    def apply(self, name: str, attrs: int, data: bytes) -> None:
        stored = self.model.get(name)
        if not attrs & (BS | RT) or (not data and not attrs & APPEND):
            self.model.pop(name, None)
        elif stored is not None and attrs & APPEND:
            self.model[name] = (stored[0], stored[1] + data)
        elif stored is not None or data:
            self.model[name] = (attrs & ~APPEND, data)
        if name not in self.model:
            self.settle_ghost(name)

    @rule(name=names, attrs=attributes, data=datas)
    def set(self, name: str, attrs: int, data: bytes) -> None:
        expected = self.expected(name, attrs, data)
        status = self.board.set(name, data, attrs)
        if status == EfiStatus.OUT_OF_RESOURCES:
            # Quota: a reclaim before runtime makes room for three variables of 3000 bytes.
            assert expected == EfiStatus.SUCCESS
            sizes = [len(value) for _, value in self.model.values()]
            assert self.runtime or sum(sizes) + len(data) > 9000
            return
        assert status == expected
        if status == EfiStatus.SUCCESS:
            self.apply(name, attrs, data)

    @rule(name=names, data=datas, write=st.integers(0, 25))
    def set_losing_power(self, name: str, data: bytes, write: int) -> None:
        before = self.model.get(name)
        expected = self.expected(name, 7, data)
        self.board.storage.cut_at = write
        try:
            status = self.board.set(name, data, 7)
        except PowerLost:
            gap = self.board.storage.content[40:44] != b"_FVH"
            if gap:
                # The firmware's own gap, pinned by test_stmm_power.
                self.model, self.ghosts = {}, {}
                self.reboot()
                return
            self.restart()
            self.settle_ghosts(but=name)
            value = self.board.value(name)
            allowed = {None if before is None else before[1], *self.ghosts.get(name, ())}
            if expected == EfiStatus.SUCCESS:
                allowed.add(data or None)
            if before is not None and not before[0] & NV:
                allowed = {None}
            assert value in allowed
            if before is not None and value != before[1]:
                self.ghosts.setdefault(name, set()).add(before[1])
            self.model.pop(name, None)
            if value is not None:
                self.model[name] = (7 if value == data else before[0] if before else 7, value)
        else:
            self.board.storage.cut_at = None
            if status == EfiStatus.SUCCESS:
                self.apply(name, 7, data)

    @rule()
    def exit_boot_services(self) -> None:
        self.board.exit_boot_services()
        self.runtime = True

    @rule()
    def reboot(self) -> None:
        self.restart()
        self.settle_ghosts()

    def restart(self) -> None:
        self.board.boot()
        self.runtime = False
        self.model = {name: entry for name, entry in self.model.items() if entry[0] & NV}

    def settle_ghosts(self, but: str = "") -> None:
        """Take the values that this start brought back."""
        for name in self.ghosts:
            if name != but:
                self.settle_ghost(name)

    def settle_ghost(self, name: str) -> None:
        """Take the value that came back, if one did."""
        ghosts = self.ghosts.get(name)
        if not ghosts:
            return
        status, answer = self.board.get(name)
        if name in self.model:
            assert status == EfiStatus.SUCCESS
            ghosts.add(self.model[name][1])
        if status == EfiStatus.SUCCESS:
            assert answer.data in ghosts
            self.model[name] = (answer.attributes, answer.data)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "board"):
            return
        visible = {
            name: entry for name, entry in self.model.items() if not self.runtime or entry[0] & RT
        }
        listed = [name for name, guid in self.board.names() if guid == VENDOR]
        # From a variable with two records in transition GetNext goes on behind the second, so it
        # passes over what lies between them.
        assert sorted(listed) == sorted(visible) or (self.ghosts and set(listed) < set(visible))
        for name, (attrs, value) in visible.items():
            status, answer = self.board.get(name)
            assert (status, answer.data, answer.attributes) == (EfiStatus.SUCCESS, value, attrs)
        for name in set(self.model) - set(visible):
            assert self.board.get(name)[0] == EfiStatus.NOT_FOUND
        status, info = self.board.query()
        assert status == EfiStatus.SUCCESS
        live = sum(len(value) for attrs, value in self.model.values() if attrs & NV)
        assert info.remaining_storage <= info.maximum_storage - live


TestVariables = Variables.TestCase
TestVariables.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

"""Takes one row of system calls, and compares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.capabilities import EFIVARS_PATH
from harness.probe import steps as do
from harness.probe.steps import Outcome, Step
from harness.truth import compare
from harness.truth.results import Difference, caused, differs
from harness.truth.rows import Row
from harness.truth.state import State
from harness.truth.steps import GLOBAL_GUID, READ_BYTES, CannotTake, Plan
from harness.truth.tools import PACKAGE

_CONTENTS = ("after", "readback", "back", "read")
_MODES = ("SetupMode", "SecureBoot", "VendorKeys", "AuditMode", "DeployedMode")


@dataclass
class Calls:
    """One row of system calls: taken in one batch, with what is looked at around it."""

    state: State
    row: Row
    plan: Plan

    def run(self) -> list[Difference]:
        """Take the row and compare."""
        row = self.row
        where = f"{EFIVARS_PATH}/{self.plan.file}"
        counts = "rpmb_writes" in row.facts or isinstance(row.facts.get("before"), int)
        logs = bool({"dm", "dmesg"} & set(row.facts))
        mark = self.state.board.kernel_log.mark() if logs else None
        flags_before = self._flags() if "flags_before" in row.facts else None
        before = self.state.counter() if counts else 0
        if row.op[0] == "ioctl":
            return self._all_flags()
        early = self._looked_at_early()
        closing = self.plan.actions.pop() if early else None
        seen, around = self._batch(where)
        moved = self.state.counter() - before if counts else 0
        if closing is not None:
            taken = self.state.take([*closing.hidden, *closing.steps])
            seen.append(taken[len(closing.hidden) :])
            self.plan.actions.append(closing)
        found = list(self._steps(seen))
        found += self._around(around)
        if "flags_before" in row.facts and self.state.is_original(self.plan.file):
            found += differs("flags_before", row.facts["flags_before"], flags_before)
        if counts:
            expected = row.facts.get("rpmb_writes")
            if not isinstance(expected, int):
                expected = int(row.facts["after"]) - int(row.facts["before"])
            found += differs("rpmb_writes", expected, moved)
        if mark is not None:
            during = compare.without_noise(self.state.board.kernel_log.since(mark))
            found += caused(row, during)
        return found

    def _batch(self, where: str) -> tuple[list[list[Outcome]], list[Outcome]]:
        looks: list[Step] = [
            do.Stat(where),
            do.Open("a", where),
            do.Read("a", READ_BYTES),
            do.GetFlags("a"),
            do.Close("a"),
            do.StatFs(EFIVARS_PATH),
            do.ListDir(EFIVARS_PATH),
        ]
        steps: list[Step] = []
        spans: list[tuple[int, int]] = []
        for action in self.plan.actions:
            steps += action.hidden
            spans.append((len(steps), len(steps) + len(action.steps)))
            steps += action.steps
        look_at = len(steps)
        steps += looks
        outcomes = self.state.take(steps)
        unsupported = next((one.unsupported for one in outcomes if one.unsupported), None)
        if unsupported:
            lacking = unsupported.rpartition("lacks the tool: ")[2].strip()
            package = f" (package {PACKAGE[lacking]})" if lacking in PACKAGE else ""
            raise CannotTake(f"this board's probe cannot take it: {unsupported}{package}")
        return (
            [outcomes[begin:end] for begin, end in spans],
            outcomes[look_at : look_at + len(looks)],
        )

    def _looked_at_early(self) -> bool:
        """A row that reads back and then cleans up was looked at before the cleaning."""
        texts = [action.text for action in self.plan.actions]
        return "read back" in texts and texts[-1] == "unlink"

    def _steps(self, seen: list[list[Outcome]]) -> Iterator[Difference]:
        outcomes = self.row.outcomes
        for number, action in enumerate(self.plan.actions):
            if number >= len(outcomes):
                return
            came = action.result(seen[number])
            if isinstance(came, dict):
                mount = self.state.board.efivars.mount_state()
                came["flag"] = compare.mount_flags(mount.options if mount else ())
            if not compare.value(outcomes[number], came):
                yield Difference(action.text, outcomes[number], came)

    def _around(self, around: list[Outcome]) -> Iterator[Difference]:
        facts = self.row.facts
        stat, _, read, flags, _, space, listing = around
        size = stat.value if stat.ok else f"-{stat.errno}"
        if isinstance(facts.get("st_size"), int | str):
            yield from differs("st_size", facts["st_size"], size)
        for key in ("exists", "file", "file_left"):
            if isinstance(facts.get(key), bool):
                yield from differs(key, facts[key], stat.ok)
        for key in ("after", "readback", "back", "read"):
            yield from self._content(key, read, stat)
        if isinstance(facts.get("readback_len"), int):
            yield from differs("readback_len", facts["readback_len"], len(read.data) - 4)
        if isinstance(facts.get("flags"), int):
            yield from differs("flags", facts["flags"], flags.value)
        for key in ("free", "free_after"):
            if isinstance(facts.get(key), list) and facts[key][0]:
                seen = [space.field(name) for name in ("blocks", "bfree", "bavail")]
                yield from differs(key, facts[key], seen)
        if isinstance(facts.get("listing"), list):
            yield from self._listing(facts["listing"], listing)
        for name in ("SetupMode", "SecureBoot", "VendorKeys", "AuditMode", "DeployedMode"):
            if isinstance(facts.get(name), str):
                content = self.state.look(f"{name}-{GLOBAL_GUID}").content or b""
                yield from differs(name, facts[name], content[4:].hex())

    def _content(self, key: str, read: Outcome, stat: Outcome) -> Iterator[Difference]:
        expected = self.row.facts.get(key)
        if not isinstance(expected, str):
            return
        seen = read.data if read.ok else None
        error = stat.errno or read.errno
        if not compare.content(expected, seen, error):
            yield Difference(key, expected, seen.hex() if seen is not None else f"-{error}")

    def _listing(self, expected: list[Any], listing: Outcome) -> Iterator[Difference]:
        """Whether the row's own file is listed; the others belong to rows before."""
        raw = self.plan.file.encode("utf-8", "surrogateescape")
        listed = any(name in (str(raw), self.plan.file) for name in expected)
        yield from differs("listing shows the file", listed, raw in listing.names)

    def _flags(self) -> int | None:
        where = f"{EFIVARS_PATH}/{self.plan.file}"
        seen = self.state.take([do.Open("f", where), do.GetFlags("f"), do.Close("f")])
        return seen[1].value if seen[1].ok else None

    def _all_flags(self) -> list[Difference]:
        """Flags of every variable: for all names that the row lists, and the firmware's own."""
        found: list[Difference] = []
        expected = {str(name): flags for name, flags in self.row.outcome}
        seen = {}
        for name in self.state.names():
            self.plan.file = name
            seen[name] = self._flags()
        for name, flags in expected.items():
            found += differs(f"flags of {name}", flags, seen.get(name))
        return found

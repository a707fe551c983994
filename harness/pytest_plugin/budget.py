"""The store and the flash as budgets: what a run will cost, what each test took, and when to stop.

Before a test there is room for what it declares and for what restoring needs; where there is not,
the store is reclaimed, and where it cannot be, the test is skipped with that reason.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import pytest

from harness.capabilities import Capability
from harness.errors import MissingCapability
from harness.instruments.efivars import is_named
from harness.pytest_plugin import costs
from harness.pytest_plugin.bench import Bench
from harness.pytest_plugin.blame import BLAME, Whose
from harness.pytest_plugin.hookspecs import Look
from harness.pytest_plugin.keeper import Keeper, foreign_names
from harness.pytest_plugin.markers import uses_board
from harness.pytest_plugin.meter import Meter, Reading
from harness.store.records import RECORDED
from harness.store.space import CACHED_SECONDS, FOREIGN, StoreSpace
from harness.store.wear import Entry, Ledger

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.board.standing import Standing

BUDGET: pytest.StashKey[Budget] = pytest.StashKey()
"""Where a configuration keeps its budget."""
RECLAIMS: Final = "(reclaims)"
RESTORING: Final = "(restoring)"
MEASURING: Final = "(measuring)"
"""Groups of RPMB writes that no test made."""
_UNKNOWN: Final = "RPMB writes: unknown, the write counter of this board cannot be read"


class Budget:
    """Store bytes and RPMB writes of one run."""

    def __init__(self, config: pytest.Config, bench: Bench, keeper: Keeper) -> None:
        self._config = config
        self._bench = bench
        self._keeper = keeper
        self._meter: Meter | None = None
        self._ledger: Ledger | None = None
        self._items: Sequence[pytest.Item] = ()
        self._reserve = 0
        self._start: int | None = None
        self._last = Reading(None, None)
        # Who pays for what the counter has moved since the last reading.
        self._group = ""
        self._before = Reading(None, None)
        self._passed = False
        self._excess: str | None = None
        self._cost = costs.Cost(0, None, declared=False)
        # Stories that a test has paid for, and how many bytes.
        self._told: dict[str, int] = {}
        # What the stories that end with the test may take.
        self._ending = 0
        # When tests ended and what they declared, for figures that lag behind.
        self._recent: list[tuple[float, int]] = []
        self._oddity: str | None = None
        self._per_byte = RECORDED.writes_per_byte
        self._declared = 0
        self._suite = " ".join(map(str, config.invocation_params.args))
        # Why the store cannot be reclaimed, once that has been tried in vain.
        self._no_reclaim: str | None = None
        self.writes: Counter[str] = Counter()
        """RPMB writes of each group (a test file)."""

    # --- for tests ----------------------------------------------------------------------------

    @functools.cached_property
    def space(self) -> StoreSpace:
        """The store of the run's board (the fixture ``store``)."""
        spent = self._ledger.unreclaimed() if self._ledger else 0
        return StoreSpace(self._bench.board(), spent=spent)

    # --- the session --------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Expensive tests last. First of all plugins, so that one that shuffles has its way; and
        who names single tests has them in that order."""
        if not any("::" in argument for argument in self._config.args):
            items.sort(key=lambda item: costs.rank(item) if uses_board(item) else costs.Rank.PLAIN)

    def pytest_report_collectionfinish(self) -> list[str]:
        """What the run will cost."""
        if self._meter is None:
            return []
        reclaims = self._expected_reclaims()
        tests = sum(self._each_once(lambda i, told: costs.rpmb_writes(i, self._per_byte, told)))
        if self._start is None:
            return [_UNKNOWN]
        limit = self._bench.file.rpmb_write_budget
        budget = "no budget" if limit is None else f"budget {limit}"
        lines = [
            f"RPMB writes: {self._start} so far; this run about "
            f"{tests + reclaims * RECORDED.reclaim} ({reclaims} reclaims of the store); {budget}"
        ]
        return [*lines, f"wear: {self._oddity}"] if self._oddity else lines

    def summary(self) -> list[str]:
        """What the run cost, as lines of the terminal summary."""
        if self._start is None:
            return [_UNKNOWN] if self._meter is not None else []
        limit = self._bench.file.rpmb_write_budget
        of = "" if limit is None else f" of a budget of {limit}"
        total = f"; {self._ledger.total()} in all recorded runs" if self._ledger else ""
        return [f"RPMB writes: {self.spent}{of}{total}"]

    @property
    def spent(self) -> int:
        """RPMB writes of this run up to the last reading."""
        if self._start is None or self._last.counter is None:
            return 0
        return self._last.counter - self._start

    # --- one test -----------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Room and writes for the test, or a skip that says why."""
        if not uses_board(item):
            return
        if self._meter is not None and self._bench.current:
            self._account(self._meter.last)
        else:
            self._read()
        self._passed = False
        cost = self._cost = costs.cost_after(item, self._told)
        self._check_writes(costs.rpmb_writes(item, self._per_byte, self._told))
        self._make_room(cost)
        self._declared += cost.store_bytes
        self.space.took(cost.store_bytes)
        self._group = costs.group(item)
        self._before = self._last

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Only what a passing test took is judged."""
        if story := costs.story_of(item):
            # Its fixtures are made.
            self._told.setdefault(story, self._cost.store_bytes)
        result = yield
        self._passed = True
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """After everything is tidied: a test that took more than it said fails."""
        self._ending = 0
        if nextitem is None or costs.group(nextitem) != costs.group(item):
            # Fixtures of the file end; what that takes the first test of each story declared.
            self._ending = sum(self._told.values())
            self._told.clear()
        result = yield
        self._recent.append((time.monotonic(), self._cost.store_bytes))
        excess, self._excess = self._excess, None
        if excess is not None:
            item.stash[BLAME] = Whose.TEST
            pytest.fail(excess, pytrace=False)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_hil_look(self) -> Look | None:
        """The meter."""
        return None if self._meter is None else Look(self._meter.script(), self._meter.take)

    @pytest.hookimpl(wrapper=True)
    def pytest_hil_tidying(
        self, item: pytest.Item, standing: Standing
    ) -> Generator[None, object, object]:
        """What the test took, read after its own fixtures and before anything is given back."""
        if self._meter is None:
            return (yield)
        read = self._meter.last
        self._charge(item, self._meter)
        result = yield
        if standing.own_variables and self._meter.last is read:
            # Deleting them has moved it.
            self._meter.read()
        return result

    def _charge(self, item: pytest.Item, meter: Meter) -> None:
        before, now = self._before, self._account(meter.last)
        self._before = Reading(None, None)
        if before.counter is not None and now.counter is not None:
            item.user_properties.append(("rpmb_writes", now.counter - before.counter))
        if before.free is None or now.free is None:
            return
        taken = max(before.free - now.free, 0)
        item.user_properties.append(("store_bytes", taken))
        judged = taken and self._passed and self._config.getini(costs.ENFORCE)
        if judged and meter.figures():
            self._excess = _excess(self._cost, taken, self._ending)

    # --- room and writes ----------------------------------------------------------------------

    def _check_writes(self, wanted: int) -> None:
        limit = self._bench.file.rpmb_write_budget
        if limit is None or self._start is None:
            return
        if self.spent + wanted > limit:
            pytest.skip(
                f"the test may cost {wanted} RPMB writes, and {self.spent} of the budget of "
                f"{limit} are spent"
            )

    def _make_room(self, cost: costs.Cost) -> None:
        """Reclaim where the test and restoring do not both fit."""
        space = self.space
        if not cost.store_bytes or space.reclaims_by_itself():
            return
        free = self._free()
        if free >= cost.store_bytes + self._reserve:
            return
        fits = space.after_reclaim() >= cost.store_bytes + self._reserve
        if not fits and free > self._reserve and space.proved:
            # It fills the store, whatever is left of it; the room is won back afterwards.
            return
        self._reclaim_for(
            f"the test takes up to {cost.store_bytes} bytes of the store, restoring needs "
            f"{self._reserve}, {free} are free"
        )

    def _free(self) -> int:
        """Free bytes at least. Figures from a cache may lack what the last tests took."""
        if self._meter is None or self._last.free is None:
            return self.space.at_least_free()
        if not any(took for _, took in self._recent) or self._meter.figures():
            return self._last.free
        since = time.monotonic() - CACHED_SECONDS
        self._recent = [(ended, took) for ended, took in self._recent if ended > since]
        return max(self._last.free - sum(took for _, took in self._recent), 0)

    def _reclaim_for(self, why: str) -> None:
        """Reclaim, or skip with ``why`` and what stands in the way."""
        no = self._why_no_reclaim()
        if no is not None:
            pytest.skip(f"{why}; {no}")
        self._check_writes(RECORDED.reclaim)
        try:
            self._reclaim(why)
        except MissingCapability as error:
            self._no_reclaim = error.what
            pytest.skip(f"{why}; {error.what}")

    def _reclaim(self, why: str) -> None:
        self._read()
        self._group = RECLAIMS
        self._keeper.declare(FOREIGN)
        try:
            done = self.space.reclaim()
            self._recent.clear()
        finally:
            self._read()
        freed = "an unknown number of" if done.freed is None else done.freed
        self._bench.notes.append(f"{why} -> reclaimed {freed} bytes")

    def pytest_hil_restoring(self) -> None:
        """What restoring needs, after the last test filled the store."""
        if self._bench.ended or self._meter is None or self.space.reclaims_by_itself():
            return
        self._read()
        free = self._free()
        if free < self._reserve and self._why_no_reclaim() is None:
            self._reclaim(f"restoring may need {self._reserve} bytes of the store, {free} are free")

    def _why_no_reclaim(self) -> str | None:
        if self._no_reclaim is None:
            self._no_reclaim = self.space.why_not()
        return self._no_reclaim

    def _expected_reclaims(self) -> int:
        """How often the store will have to be reclaimed, if tests take what they declare."""
        space = self.space
        if space.reclaims_by_itself() or self._why_no_reclaim() is not None:
            return 0
        free = self._last.free if self._last.free is not None else space.at_least_free()
        fresh, reclaims = space.after_reclaim(), 0
        for wanted in self._each_once(lambda i, told: costs.cost_after(i, told).store_bytes):
            needed = wanted + self._reserve
            if wanted and free < needed and (needed <= fresh or free <= self._reserve):
                free, reclaims = fresh, reclaims + 1
            free = max(free - wanted, 0)
        return reclaims

    def _each_once(self, cost: Callable[[pytest.Item, set[str]], int]) -> Iterator[int]:
        """``cost`` of each test, with the stories that earlier ones have told."""
        told: set[str] = set()
        group = ""
        for item in self._items:
            if costs.group(item) != group:
                told.clear()
                group = costs.group(item)
            yield cost(item, told)
            if story := costs.story_of(item):
                told.add(story)

    # --- begin and end ------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_hil_begin(self, board: Board, items: Sequence[pytest.Item]) -> None:
        """The first reading; what the last run left in the ledger."""
        self._items = items
        self._meter = Meter(board)
        self._ledger = Ledger.of(board)
        self._per_byte = self._ledger.writes_per_byte() or RECORDED.writes_per_byte
        self._reserve = self._room_to_restore()
        self._start = self._read().counter
        if self._start is not None:
            self._oddity = self._ledger.oddity(self._start)
            self._ledger.add(Entry("begin", self._start, self._suite))
        if any(map(_looks_at_space, items)):
            # Here, so that no test pays for a measurement that writes.
            self._group = MEASURING
            self._meter.figures()
            self._read()

    def _room_to_restore(self) -> int:
        """A new record for each variable that this run's tests are marked to change; at least
        one for the largest."""
        records = self.space.records()
        names = [name for item in self._items for name in foreign_names(item)]
        marked = sum(record for name, record in records.items() if is_named(name, names))
        return max(marked, max(records.values(), default=0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_hil_close(self) -> None:
        """The last reading, before the board is given back."""
        if self._meter is None or self._ledger is None:
            return
        self._group = RESTORING
        counter = self._read().counter
        if self._start is None or counter is None:
            return
        others = sum(self.writes[group] for group in (RECLAIMS, RESTORING, MEASURING))
        self._ledger.add(
            Entry(
                "end",
                counter,
                self._suite,
                spent=self.spent,
                by_tests=self.spent - others,
                store_bytes=self._declared,
                unreclaimed=self.space.spent,
            )
        )

    def _read(self) -> Reading:
        """A reading; what the counter moved is charged to the group that ran."""
        if self._meter is None:
            return self._last
        return self._account(self._meter.read())

    def _account(self, now: Reading) -> Reading:
        if now.counter is not None and self._last.counter is not None:
            self.writes[self._group] += now.counter - self._last.counter
        if now.counter is not None or self._last.counter is None:
            self._last = now
        return now


def _looks_at_space(item: pytest.Item) -> bool:
    needs = (Capability.STATFS_IS_LIVE in one.args for one in item.iter_markers("needs"))
    return bool(costs.cost_of(item).store_bytes) or costs.may_write(item) or any(needs)


def _excess(cost: costs.Cost, taken: int, ending: int) -> str | None:
    if taken > ending and not cost.declared:
        return f"took {taken} store bytes and declares no cost"
    if taken > cost.store_bytes + ending:
        return f"took {taken} store bytes, declares {cost.store_bytes}"
    return None

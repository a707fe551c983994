"""The board of a replay: its configuration, a fresh store, restarts on the same store.

What the board file's power driver lets one choose of a board in software is chosen; any other board
is taken as it is.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path
from shlex import quote
from typing import Self

from harness.board.board import Board
from harness.boardfile.sections import BoardFile
from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import ConsentMissing, HilError, MissingCapability
from harness.instruments.guard import ANY
from harness.instruments.tee import ServiceKind
from harness.links.names import LinkName
from harness.power.registry import driver_of
from harness.power.section import Section
from harness.truth.rows import VARIANTS
from harness.truth.steps import CannotTake


class Rig:
    """One board for one group after the other. Close it, or use it as a context manager."""

    def __init__(self, file: BoardFile, *, link: LinkName | None = None) -> None:
        self._file = file
        self._link = link
        self._board: Board | None = None
        self._stores: list[Path] = []
        self._variant: str | None = None
        self.starts = 0
        """How often a board was switched on or restarted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def board(self) -> Board:
        """The board that is on."""
        assert self._board is not None
        return self._board

    @property
    def chooses(self) -> bool:
        """Whether the power driver lets the configuration be chosen."""
        return self._varied() is not None

    def begin(self, variant: str | None) -> None:
        """Switch on with the configuration that rows name and, where possible, a fresh store.

        Raises :class:`CannotTake` when this board is another configuration."""
        if self.chooses:
            if variant is not None and variant not in VARIANTS:
                raise CannotTake(f"there is no configuration {variant}")
            self._variant = variant
            self._fresh_store()
            self._open()
        else:
            if self._board is None:
                self._open()
            seen = self._measured_variant()
            if variant is not None and seen != variant:
                raise CannotTake(f"recorded on configuration {variant}, this board is {seen}")
        self._wait_until_ready()

    def renew(self) -> None:
        """The same configuration with a store that was never written; boots. Raises
        :class:`CannotTake`."""
        if not self.chooses:
            raise CannotTake("the store of this board cannot be made afresh")
        self._fresh_store()
        self._open()
        self._wait_until_ready()

    def restart(self, *, autostart: bool = True) -> None:
        """Power-cycle on the same store; without ``autostart`` into a userland that has not
        started the supplicant yet. Raises :class:`CannotTake`."""
        if not self._file.consents_to(Consent.POWER_CYCLE):
            raise CannotTake("a restart needs the consent power_cycle")
        if self._varied(autostart=False) is not None:
            self._open(autostart=autostart)
            if autostart:
                self._wait_until_ready()
            return
        if autostart:
            self.board.switch.cycle()
        else:
            self._restart_without_supplicant()
        self._keep_driver_at_stop()
        self.starts += 1

    def close(self) -> None:
        """Switch off and remove the stores made here; never raises."""
        if self._board is not None:
            with contextlib.suppress(HilError):
                self._board.tee.stop_as_configured()
            self._board.close()
            self._board = None
        for store in self._stores:
            shutil.rmtree(store, ignore_errors=True)
        self._stores.clear()

    def _wait_until_ready(self) -> None:
        """Every row counts on it, so a busy host is given more time than the board file gives."""
        for _ in range(4):
            self.board.wait_until_ready()
            standing = self.board.standing()
            if standing.bound and standing.writable:
                break
        self._keep_driver_at_stop()

    def _keep_driver_at_stop(self) -> None:
        """The recorder's service unbound nothing when it was stopped; until the next boot, nor
        does this board's."""
        with contextlib.suppress(MissingCapability, ConsentMissing):
            self.board.tee.leave_driver_at_stop()

    def _restart_without_supplicant(self) -> None:
        """The service's unit is enabled again at once, but not started."""
        service = self.board.tee.service
        if service.kind is not ServiceKind.SYSTEMD:
            raise CannotTake("this board starts its supplicant at boot, by no unit of systemd")
        unit = quote(service.name)
        self.board.shell.run_isolated(f"systemctl disable {unit} && sync").check()
        try:
            self.board.switch.cycle(until_ready=False)
        finally:
            self.board.shell.run_isolated(f"systemctl enable {unit}").check()

    def _fresh_store(self) -> None:
        if not self.chooses:
            return
        if self._board is not None:
            self._board.close()
            self._board = None
        for store in self._stores:
            shutil.rmtree(store, ignore_errors=True)
        self._stores = [Path(tempfile.mkdtemp(prefix="hil-truth-"))]

    def _open(self, *, autostart: bool = True) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
        file = self._file
        if (power := self._varied(autostart=autostart)) is not None:
            file = file.model_copy(update={"power": power})
        board = Board(file, link=self._link)
        try:
            board.start()
        except BaseException as error:
            board.close()
            if not autostart and isinstance(error, HilError):
                raise CannotTake("this board cannot boot without its supplicant") from error
            raise
        # The rows are about every variable there is; the owner's consent is asked all the same.
        board.foreign_writes.allow(ANY)
        self._board = board
        self.starts += 1

    def _varied(self, *, autostart: bool = True) -> Section | None:
        """``[power]`` for the configuration and the store of now; None where neither is chosen."""
        power, store = self._file.power, self._stores[-1] if self._stores else None
        varied: Section | None = driver_of(power).vary(power, self._variant, autostart, store)
        return varied

    def _measured_variant(self) -> str:
        capabilities = self.board.capabilities
        if capabilities.has(Capability.KERNEL_ROUTED_RPMB):
            return "mm-kernel-rpmb"
        return "mm-query" if capabilities.has(Capability.QUERY_VARIABLE_INFO) else "mm"

"""A board: power, links, instruments, capabilities, and the proof that it is the right one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from harness import capabilities
from harness.board.boot import PowerSwitch
from harness.board.identity import SOFTWARE, Identity, check_right_board, identity
from harness.board.instruments import Instruments
from harness.board.links import Links
from harness.board.standing import Standard, Standing
from harness.capabilities import Capabilities
from harness.consents import Consent
from harness.errors import ConsentMissing, of_board
from harness.instruments.efivars import Efivars, VariableName
from harness.instruments.guard import ForeignWrites
from harness.instruments.kernel_log import KernelLog
from harness.instruments.rpmb import Rpmb
from harness.instruments.tee import Tee
from harness.lab.powering import power_of
from harness.links.names import LinkName
from harness.power.driver import PowerDriver
from harness.probe import Probe
from harness.shell import Shell

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile


def nobody_asked(board: Board) -> NoReturn:
    """Refuse to program an RPMB key. Raises :class:`ConsentMissing`."""
    raise ConsentMissing(
        "programming the RPMB key was not asked for",
        remedy="if it is really meant: --program-rpmb-key; it cannot be undone, ever",
        board=board.name,
    )


class Board:
    """One board as tests see it; a context manager.

    ``link`` chooses the link that :attr:`shell` is; by default SSH where the board has it. The
    other one stays available in :attr:`links`. Everything that changes the board asks the board
    file's consents first and raises :class:`ConsentMissing`. ``believe_pins`` takes the board
    file's ``[capabilities]`` for measured. ``console_log`` keeps what the serial console says, by
    itself in the board's own folder (`hil log`). ``programming`` raises unless the RPMB key may be
    programmed. Timeouts are seconds and default to the board file's ``[timeouts]``.
    """

    def __init__(
        self,
        file: BoardFile,
        *,
        link: LinkName | None = None,
        assume_yes: bool = False,
        console_log: Path | None = None,
        believe_pins: bool = False,
        programming: Callable[[Board], None] = nobody_asked,
    ) -> None:
        self.file = file
        self.name = file.name
        self.power: PowerDriver = power_of(file, assume_yes=assume_yes)
        self.kept_variables: set[VariableName] = set()
        """Own variables that outlive the test that made them: a fixture of wider scope holds and
        deletes them."""
        self.foreign_writes = ForeignWrites(self.require_consent, board=file.name)
        self.links = Links(
            file,
            self.power,
            chosen=link,
            console_log=console_log,
            equip=self._equip,
            check_held=self.power.check,
        )
        self.standard = Standard(file, self.links, self.kept_variables)
        self.switch = PowerSwitch(file, self.power, self.links, self.standard, self.require_consent)
        self._programming = programming
        self._believe_pins = believe_pins
        # What software was measured, and what of that outlives a boot.
        self._last: tuple[str, Capabilities | None] = ("", None)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch the board on if it is not, and wait until it answers on the chosen link.

        Raises the power driver's and the link's errors, :class:`LabError` at the deadline.
        """
        with of_board(self.name):
            self.power.hold()
        self.switch.start()

    def reboot(self, *, timeout: float | None = None) -> None:
        """Restart from inside and wait until the board is ready; needs ``power_cycle``."""
        self.switch.reboot(timeout=timeout)

    def wait_until_ready(self) -> None:
        """Wait until the driver is bound and efivarfs writable, as after every boot; a board that
        does not come so far is left to the capabilities to tell."""
        self.standard.wait()

    def relink(self) -> None:
        """Throw away every link, probe and instrument; they are made afresh at the next use."""
        self.links.close()

    def close(self) -> None:
        """Give links and power driver back; never raises. The board stays as it is (a board that
        exists only in software ends)."""
        self.relink()
        self.power.close()

    # --- what tests use -----------------------------------------------------------------------

    @property
    def shell(self) -> Shell:
        """The chosen link. Raises :class:`MissingCapability` when the board has no such link."""
        return self.links.shell

    @property
    def instruments(self) -> Instruments:
        """All instruments over :attr:`shell`: hold on to none across a relink."""
        return self.links.instruments

    def _equip(self, shell: Shell) -> Instruments:
        return Instruments(
            shell,
            consent=self.require_consent,
            guard=self.foreign_writes.check,
            kept=self.kept_variables,
            programming=lambda: self._programming(self),
        )

    @property
    def probe(self) -> Probe:
        """Raw system calls."""
        return self.instruments.probe

    @property
    def efivars(self) -> Efivars:
        """The variables."""
        return self.instruments.efivars

    @property
    def rpmb(self) -> Rpmb:
        """The RPMB partition."""
        return self.instruments.rpmb

    @property
    def tee(self) -> Tee:
        """Supplicant, TEE devices, driver."""
        return self.instruments.tee

    @property
    def kernel_log(self) -> KernelLog:
        """The kernel log."""
        return self.instruments.kernel_log

    def standing(self, *, foreign: bool = False) -> Standing:
        """What a test may have left otherwise, as it is now; with ``foreign`` other people's
        variables, too."""
        return self.standard.now(foreign=foreign)

    # --- which board, and what it may and can -------------------------------------------------

    def identity(self) -> Identity:
        """What answers on the chosen link now."""
        return identity(self.name, self.links)

    def check_right_board(self) -> None:
        """Prove that this is the board of the board file: the boot id is the same over every
        link, and one eMMC has the board file's CID. Raises :class:`WrongBoard`."""
        check_right_board(self.file, self.links, self.links.names)

    def require_consent(self, consent: Consent) -> None:
        """Return if the owner allows it and this is the right board (checked before the first
        use of any consent in a boot). Raises :class:`ConsentMissing`, :class:`WrongBoard`."""
        if not self.file.consents_to(consent):
            raise ConsentMissing(
                f"the board file does not consent to {consent}",
                remedy=f"if its owner agrees, set {consent} = true in [consents]",
                board=self.name,
            )
        if not self.links.boot.right_board:
            self.check_right_board()

    def _may(self, consent: Consent) -> bool:
        """:meth:`require_consent` as a question; raises only :class:`WrongBoard`."""
        try:
            self.require_consent(consent)
        except ConsentMissing:
            return False
        return True

    @property
    def capabilities(self) -> Capabilities:
        """What the board can do; measured once a boot, and what lasts once for each firmware and
        kernel that answer."""
        if self.links.boot.capabilities is None:
            software = self.shell.run(SOFTWARE).text
            known_of, last = self._last
            measured = capabilities.measure(
                self.shell,
                board=self.name,
                pinned=self.file.capabilities,
                may=self._may,
                believe=self._believe_pins,
                known=last.lasting() if last is not None and software == known_of else None,
            )
            self.links.boot.capabilities = measured
            self._last = software, measured
        return self.links.boot.capabilities

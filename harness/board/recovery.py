"""A wedged board: escalate until a variable can be written and read again.

After a timeout nobody knows what hangs. Each step is tried in turn, the gentlest first, and each
is proved by a bounded write and read of a variable of our own; when none helps, the board is
wedged and the run ends.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from harness.board.board import Board
from harness.capabilities import EFIVARS_PATH
from harness.consents import Consent
from harness.errors import BoardWedged, HilError, TargetError, WrongBoard, of_host
from harness.instruments.tee import routing_model
from harness.power.driver import PowerState

PROOF_NAME = "HilProof"
_STEP_SECONDS = 10.0
# A store without room for the proof's own record (60-byte header, name, data) is full, not wedged.
_RECORD_BYTES = 96
# The writer has a variable open, or sleeps in a system call that waits for firmware or supplicant
# (state D); only processes of user space have a command line.
_KILL_WRITERS = f"""for p in /proc/[0-9]*; do test -s $p/cmdline || continue
case $(sed 's/.*) //' $p/stat) in D*) kill -9 ${{p#/proc/}};; esac
case $(ls -l $p/fd) in *{EFIVARS_PATH}/*) kill -9 ${{p#/proc/}};; esac
done 2>/dev/null; true"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What helped, and what had been tried before in vain (one sentence each)."""

    helped: str
    in_vain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of the ladder; ``consent`` is what the owner must allow, ``over_link`` whether it
    is made through the link and so is in vain on a board that cannot be reached."""

    name: str
    act: Callable[[Board], None]
    consent: Consent | None = None
    over_link: bool = True


def recover(board: Board) -> Recovery:
    """Bring a board back that stopped answering.

    Raises :class:`BoardWedged` when nothing helped, :class:`WrongBoard` when another board
    answers, :class:`HostExhausted` when this machine cannot go on.
    """
    board.relink()
    in_vain: list[str] = []
    reachable = True
    for step in _ladder(board):
        if step.over_link and not reachable:
            continue
        if step.consent is not None and not board.file.consents_to(step.consent):
            in_vain.append(f"{step.name}: the board file does not consent to {step.consent}")
            continue
        try:
            if step.over_link:
                reachable = False
                board.shell.reconnect(deadline=_STEP_SECONDS)
                reachable = True
            step.act(board)
            board.standard.restore()
            prove(board)
        except WrongBoard:
            raise
        except (HilError, OSError) as error:
            if (host := of_host(error)) is not None:
                raise host from error
            in_vain.append(f"{step.name}: {error.what if isinstance(error, HilError) else error}")
            board.relink()
        else:
            return Recovery(step.name, tuple(in_vain))
    raise BoardWedged(
        f"nothing brought the board back ({'; '.join(in_vain)})",
        remedy="look at its console and power; the remaining tests of this run are not its fault",
        board=board.name,
    )


def prove(board: Board) -> None:
    """A bounded write and read of our own variable, and its deletion; costs about five RPMB
    writes. Raises what failed. Without the consent ``write_rpmb`` reading must do."""
    if not board.file.consents_to(Consent.WRITE_RPMB):
        board.shell.run_isolated(f"cat {EFIVARS_PATH}/* >/dev/null").check()
        return
    content = os.urandom(8)
    try:
        board.efivars.overwrite(PROOF_NAME, content, timeout=10.0)
    except OSError as error:
        if error.errno == errno.ENOSPC and _store_is_full(board):
            return
        raise
    seen = board.efivars.read(PROOF_NAME).data
    if seen != content:
        raise TargetError(
            f"wrote {content.hex()} to {PROOF_NAME} and read {seen.hex()}",
            remedy="power-cycle the board; does OP-TEE report a dead RPMB?",
            board=board.name,
        )
    board.efivars.delete(PROOF_NAME)


def _store_is_full(board: Board) -> bool:
    space = board.efivars.space()
    supplied = routing_model(board.shell) == "kernel" or bool(board.tee.supplicant_pids())
    return supplied and space.free < _RECORD_BYTES


def _ladder(board: Board) -> list[Step]:
    """The steps for this board, the gentlest first."""
    if board.power.state() is PowerState.OFF:
        # It did not hang, it lost its power (or the process that is its power supply).
        return [Step("power on", lambda board: board.switch.on(), over_link=False), _POWER_CYCLE]
    return [
        Step("fresh lanes", lambda board: None),
        Step("kill the writer", _kill_the_writer),
        Step("restart the supplicant", _restart_supplicant, Consent.STOP_SUPPLICANT),
        Step("reboot", lambda board: board.reboot(), Consent.POWER_CYCLE),
        _POWER_CYCLE,
    ]


_POWER_CYCLE = Step(
    "power cycle", lambda board: board.switch.cycle(), Consent.POWER_CYCLE, over_link=False
)


def _kill_the_writer(board: Board) -> None:
    board.shell.run_isolated(_KILL_WRITERS, timeout=_STEP_SECONDS)


def _restart_supplicant(board: Board) -> None:
    # The order that loses nothing: no client of the RPMB while its server is away.
    with contextlib.suppress(HilError, OSError):
        board.tee.unbind()
    board.tee.restart_supplicant()
    board.tee.wait_until_bound()

"""Defects that a kernel or firmware is known to have. Each is an expected failure with its reason
as long as the board has it, and shows as XPASS where it has been mended.

A test here may crash the kernel, so it needs the consent for that and ends with a power cycle.
"""

from __future__ import annotations

import time

import pytest

from harness.board.board import Board
from harness.board.boot import PowerSwitch
from harness.errors import HilError
from harness.instruments.kernel_log import bad_lines
from harness.probe import steps as do
from harness.store.records import record_size

_READERS = 3
_ROUNDS = 12
"""At least so many."""
_SECONDS = 10
"""The longest that the race is waited for."""
_HANGS_SECONDS = 2.0


@pytest.mark.cases(321, 323)
@pytest.mark.fault("P5")
@pytest.mark.pain(22)
@pytest.mark.xfail(
    reason="who reads between unregister and register finds no efivars: the kernel oopses "
    "(fs/efivarfs, drivers/firmware/efi/vars.c: __efivars is NULL after efivar_lock)",
    raises=AssertionError,
    strict=True,
)
@pytest.mark.needs("driver_bound", "writable", "kernel_log")
@pytest.mark.consents("unbind_driver", "crash_kernel", "power_cycle")
@pytest.mark.allow_kernel_log(".*")
@pytest.mark.disturbs
@pytest.mark.power
@pytest.mark.destructive
def test_readers_while_the_driver_goes_and_comes(board: Board, power: PowerSwitch) -> None:
    mark = board.kernel_log.mark()
    rounds, said = 0, list[str]()
    until = time.monotonic() + _SECONDS
    board.shell.run_isolated(
        f"for r in $(seq {_READERS}); do (timeout {_SECONDS} sh -c 'while :; do "
        f"cat {board.efivars.path}/* >/dev/null 2>&1; done') </dev/null >/dev/null 2>&1 & done"
    ).check()
    try:
        while not bad_lines(said) and (rounds < _ROUNDS or time.monotonic() < until):
            board.tee.unbind(timeout=_HANGS_SECONDS)
            board.tee.bind(timeout=_HANGS_SECONDS)
            said = board.kernel_log.since(mark)
            rounds += 1
    except HilError:
        # A crashed kernel may do nothing any more, or hang up.
        said = ["BUG: the board stopped answering"]
    finally:
        power.cycle()
    if not bad_lines(said):
        # A race that was not hit shows neither that the defect is there nor that it is mended.
        pytest.skip(f"{rounds} times unbound and bound in {_SECONDS} s of reading: no oops seen")
    assert bad_lines(said) == []


@pytest.mark.cases(321)
@pytest.mark.pain(22)
@pytest.mark.xfail(
    reason="a file that was open when the driver was unbound can be written to, and firmware "
    "without a SetVariable at run time has no function to call: the kernel oopses "
    "(drivers/firmware/efi/vars.c: efivar_set_variable_locked calls NULL)",
    raises=AssertionError,
    strict=False,
)
@pytest.mark.needs("driver_bound", "writable", "kernel_log")
@pytest.mark.consents("write_rpmb", "unbind_driver", "crash_kernel", "power_cycle")
@pytest.mark.cost(store_bytes=record_size("Ub", 8))
@pytest.mark.allow_kernel_log(".*")
@pytest.mark.disturbs
@pytest.mark.power
@pytest.mark.destructive
def test_a_file_opened_before_unbind_is_written_to_after_it(
    board: Board, power: PowerSwitch
) -> None:
    efivars, probe = board.efivars, board.probe
    efivars.write("Ub", b"kept")
    efivars.set_immutable("Ub", False)
    path = efivars.file("Ub")
    (opened,) = probe.steps([do.Open("v", path, "O_WRONLY")])
    mark = board.kernel_log.mark()
    try:
        board.tee.unbind()
        (written,) = probe.steps([do.Write("v", b"\7\0\0\0lost")], timeout=_HANGS_SECONDS)
        said = board.kernel_log.since(mark)
    except HilError:
        said, written = ["BUG: the board stopped answering"], None
    finally:
        power.cycle()
    assert opened.ok
    assert bad_lines(said) == []
    assert written is not None
    assert written.errno in ("EROFS", "EINVAL")
    assert efivars.read("Ub").data == b"kept"

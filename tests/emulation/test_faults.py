"""Every fault point through the whole board, with the consequences of stack 9 and 11."""

from __future__ import annotations

import errno
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emulation.faults import POINTS, POWER_CUT, Fault, FaultSpecError, PowerLost
from emulation.linux.kernel import Killed, Task
from emulation.options import BoardOptions, OptionError
from tests.emulation.conftest import EmulatedBoard
from tests.emulation.rig import ROOT, MakeRig, Rig, errno_of, name
from tests.emulation.supplicant_thread import SupplicantThread
from tests.emulation.test_kernel import in_thread

ROOT_OF_REPOSITORY = Path(__file__).parents[2]
OLD, NEW = b"old value", b"new value"
ATTEMPTS = 10
"""RPMB_MAX_RETRIES of OP-TEE."""
# OP-TEE reads the FAT twice and the old content once before it writes.
FIRST_WRITE = 4
"""Which request, and which response, of an update is the first write."""


@pytest.fixture
def faulty(rig: Rig) -> Rig:
    """A board with the variable V, whose next overwriting costs four RPMB writes."""
    rig.write(name("V"), OLD)
    return rig


def arm(rig: Rig, *specs: str) -> None:
    for spec in specs:
        rig.machine.faults.arm(spec)


def assert_works(rig: Rig, data: bytes = b"works") -> None:
    rig.write(name("W"), data)
    assert rig.read(name("W")) == data


def assert_dead_until_reboot(rig: Rig) -> None:
    """Cached reads answer, writes do not, whatever is put right meanwhile; a reboot helps."""
    rig.machine.faults.disarm()
    assert rig.read(name("V")) == OLD
    with rig.costs(0):
        assert errno_of(lambda: rig.write(name("V"), b"again")) == errno.EINVAL
    rig.reboot()
    assert_works(rig)


# The card


def test_a_write_that_always_fails_kills_the_rpmb_until_reboot(faulty: Rig) -> None:
    arm(faulty, "rpmb.write:1+=result:5")
    with faulty.costs(0):
        assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    assert_dead_until_reboot(faulty)
    assert faulty.read(name("V")) == OLD


@pytest.mark.parametrize("result", range(1, 7))
def test_a_single_failed_write_is_tried_again(faulty: Rig, result: int) -> None:
    with faulty.costs(4, 400):
        faulty.write(name("V"), b"unharmed!")
    arm(faulty, f"rpmb.write=result:{result}")
    faulty.write(name("V"), NEW)
    assert faulty.read(name("V")) == NEW
    faulty.reboot()
    assert faulty.read(name("V")) == NEW


@pytest.mark.cases(71, 80, 81)
def test_nine_failures_are_survived_and_ten_are_not(faulty: Rig) -> None:
    arm(faulty, *[f"rpmb.write:{n}=result:5" for n in range(1, ATTEMPTS)])
    faulty.write(name("V"), OLD + b"!")
    faulty.write(name("V"), OLD)
    arm(faulty, *[f"rpmb.write:{n}=result:5" for n in range(1, ATTEMPTS + 1)])
    assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    assert_dead_until_reboot(faulty)


def test_a_lost_request_is_tried_again(faulty: Rig) -> None:
    # The result register still holds the answer to the read before it.
    arm(faulty, f"rpmb.request:{FIRST_WRITE}=lost")
    with faulty.costs(4, 400):
        faulty.write(name("V"), NEW)
    assert faulty.read(name("V")) == NEW


def test_an_answer_lost_after_the_write_took_effect_kills_the_rpmb(faulty: Rig) -> None:
    # Stack 9: the old counter is sent again, nine times refused as stale.
    arm(faulty, "rpmb.written=lost")
    with faulty.costs(1):
        assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    assert_dead_until_reboot(faulty)
    # The one byte that was written marked the old record as in transition, which still counts.
    assert faulty.read(name("V")) == OLD


def test_a_wrong_mac_on_a_write_costs_one_write_more(faulty: Rig) -> None:
    # OP-TEE moves its counter before it looks at the MAC, so the second attempt is a new write.
    faulty.write(name("Pad"), b"p" * 300)
    counts = []
    for spec in (None, f"rpmb.response:{FIRST_WRITE}=mac"):
        if spec:
            arm(faulty, spec)
        before = faulty.counter
        faulty.delete(name("V" if spec is None else "Pad"))
        counts.append(faulty.counter - before)
    assert counts == [1, 2]
    assert_works(faulty)


@pytest.mark.cases(77, 82)
def test_a_wrong_mac_on_a_read_fails_one_call_and_nothing_else(faulty: Rig) -> None:
    arm(faulty, "rpmb.response=mac")
    with faulty.costs(0):
        assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    assert faulty.read(name("V")) == OLD
    assert_works(faulty)


def test_a_failed_read_fails_one_call_and_nothing_else(faulty: Rig) -> None:
    arm(faulty, "rpmb.read=result:6")
    assert errno_of(lambda: faulty.delete(name("V"))) == errno.EINVAL
    assert faulty.read(name("V")) == OLD
    assert_works(faulty)


def test_zeros_instead_of_an_answer(faulty: Rig) -> None:
    arm(faulty, "rpmb.response=lost")
    assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    assert_works(faulty)


def test_a_busy_card_is_asked_again(faulty: Rig) -> None:
    # The supplicant's ioctl is ETIMEDOUT, which it reports as GENERIC.
    arm(faulty, f"rpmb.request:{FIRST_WRITE}=busy")
    faulty.write(name("V"), NEW)
    assert faulty.read(name("V")) == NEW


def test_a_card_busy_for_ever_kills_the_rpmb(faulty: Rig) -> None:
    arm(faulty, f"rpmb.request:{FIRST_WRITE}+=busy")
    assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    assert_dead_until_reboot(faulty)


def test_a_busy_card_while_the_kernel_routes(make_rig: MakeRig) -> None:
    rig = make_rig(variant="mm-kernel-rpmb")
    rig.boot(supplicant=False)
    rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
    arm(rig, f"rpmb.request:{FIRST_WRITE}=busy")
    assert_works(rig)


# Power


@pytest.mark.parametrize("point", ["rpmb.request", "rpmb.write", "rpmb.written", "rpmb.response"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
def test_power_cut_between_any_two_frames(faulty: Rig, point: str, nth: int) -> None:
    faulty.machine.faults.disarm()
    arm(faulty, f"{point}:{nth}={POWER_CUT}")
    outcome = in_thread(lambda: faulty.write(name("V"), NEW))()
    faulty.machine.faults.disarm()
    faulty.reboot()
    assert faulty.read(name("V")) in ((OLD, NEW) if isinstance(outcome, PowerLost) else (NEW,))
    assert_works(faulty)


# OP-TEE's storage and StandaloneMM


@pytest.mark.cases(96)
def test_no_space_in_the_rpmb_file_system_is_einval(faulty: Rig) -> None:
    arm(faulty, "storage.write:1+=result:0xffff3041")
    with faulty.costs(0):
        assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EINVAL
    faulty.machine.faults.disarm()
    faulty.write(name("V"), NEW)
    assert faulty.read(name("V")) == NEW


@pytest.mark.parametrize("spec", ["storage.read=result:0xffff000f", "rpmb.read:4=result:6"])
@pytest.mark.cases(300)
@pytest.mark.pain(23)
def test_a_read_error_at_the_start_of_standalone_mm_formats_the_store(
    faulty: Rig, spec: str
) -> None:
    # Stack 4.12: the result of the read is ignored, and what is not a volume is formatted.
    arm(faulty, spec)
    faulty.reboot()
    assert name("V") not in faulty.names()
    assert faulty.free() == (16284, 15352)
    assert_works(faulty)


@pytest.mark.cases(126, 329)
def test_a_panic_of_standalone_mm_is_eio_from_then_on(faulty: Rig) -> None:
    arm(faulty, "stmm.call=panic")
    assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EIO
    assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.EIO
    assert errno_of(lambda: faulty.read(name("V"))) == errno.EIO
    faulty.reboot()
    assert faulty.read(name("V")) == OLD
    assert_works(faulty)


def test_a_panic_at_its_start_leaves_linux_without_efi(make_rig: MakeRig) -> None:
    # The first is met by U-Boot, which goes on without EFI; the second by the driver's probe.
    rig = make_rig(fault=("stmm.start:1+=panic",))
    rig.machine.power_on(console=rig.console.extend)
    assert b"Cannot initialize UEFI sub-system" in rig.console
    assert errno_of(lambda: rig.machine.running.efivarfs.mount(task=ROOT)) == errno.EOPNOTSUPP
    rig.machine.faults.disarm()
    rig.reboot()
    assert_works(rig)


# Linux and the supplicant


@pytest.mark.cases(332)
@pytest.mark.pain(15)
def test_no_memory_in_the_driver_is_enospc(faulty: Rig) -> None:
    arm(faulty, "driver.allocation:1+=fail")
    with faulty.costs(0):
        assert errno_of(lambda: faulty.write(name("V"), NEW)) == errno.ENOSPC
        assert errno_of(lambda: faulty.delete(name("V"))) == errno.EINVAL
    faulty.machine.faults.disarm()
    assert faulty.read(name("V")) == OLD
    assert_works(faulty)


@pytest.mark.cases(339)
def test_a_stuck_supplicant_holds_everybody_until_sigkill(faulty: Rig) -> None:
    # Stack 9; truth kill2.
    arm(faulty, "supplicant.request:2=stuck")
    writer, reader = Task(236), Task(237)
    outcome = in_thread(lambda: faulty.write(name("V"), NEW, writer))
    waiting = in_thread(lambda: faulty.read(name("V"), reader))
    queue = faulty.machine.running.optee.queue
    faulty.wait(lambda: bool(queue.unanswered))
    assert not threading.Event().wait(0.05)
    assert queue.unanswered
    writer.fatal.set()
    assert isinstance(outcome(), Killed | OSError)
    assert waiting() == OLD
    faulty.supplicant.kill()
    faulty.supplicant = SupplicantThread(faulty.machine)
    assert faulty.supplicant.start()
    assert_works(faulty)


# The mechanism


def test_faults_of_the_options_are_armed_before_the_first_start(make_rig: MakeRig) -> None:
    rig = make_rig(fault=(f"rpmb.written:100={POWER_CUT}",))
    with pytest.raises(PowerLost):
        rig.machine.power_on(console=rig.console.extend)
    assert rig.counter == 100
    rig.boot()
    assert_works(rig)


def test_options_add_faults_up_and_refuse_wrong_ones() -> None:
    words = ["fault=stmm.call=panic,rpmb.read=result:6", "fault=rpmb.written:2+=lost"]
    assert len(BoardOptions.parse(words).fault) == 3
    with pytest.raises(OptionError, match=r"did you mean rpmb\.read"):
        BoardOptions.parse(["fault=rpmb.reed=result:6"])


def test_faults_by_the_control_line(boot: Callable[..., EmulatedBoard]) -> None:
    board = boot("fault=driver.allocation:2000+=fail")
    write = f"printf '\\7\\0\\0\\0x' > /sys/firmware/efi/efivars/{name('C')}"
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    assert "error" in board.control("fault rpmb.nowhere=lost")
    assert board.control("fault driver.allocation:1+=fail") == {"power": "on"}
    assert "No space left" in board.run(write).err
    assert board.control("fault clear") == {"power": "on"}
    board.ok(write.replace(name("C"), name("B")))
    # A stuck supplicant: the writer sleeps until SIGKILL, and a new supplicant serves the next.
    assert board.control("fault supplicant.request=stuck") == {"power": "on"}
    writer = shlex.quote(write.replace(name("C"), name("E")))
    assert board.run(f"timeout -s KILL 1 sh -c {writer}; echo $?").out == "137\n"
    board.ok("systemctl restart tee-supplicant")
    board.ok(write.replace(name("C"), name("F")))
    assert board.control(f"fault rpmb.write={POWER_CUT}") == {"power": "on"}
    board.run(f"printf '\\7\\0\\0\\0y' > /sys/firmware/efi/efivars/{name('D')}")
    assert board.control("status") == {"power": "off"}
    assert board.control("on") == {"power": "on"}


def test_a_board_whose_power_fails_while_it_boots(boot: Callable[..., EmulatedBoard]) -> None:
    board = boot(f"fault=rpmb.written:100={POWER_CUT}")
    assert board.control("status") == {"power": "off"}
    assert board.control("on") == {"power": "on"}
    board.until("grep -q 'efivarfs rw' /proc/mounts")


def _points_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        yield from re.findall(r'(?:\.point|\._pass)\("([\w.-]+)"\)', path.read_text())


def test_every_point_is_passed_somewhere_and_every_passage_is_a_point() -> None:
    assert set(_points_in(ROOT_OF_REPOSITORY / "emulation")) == {point.name for point in POINTS}


def test_the_table_in_the_documentation_is_the_list_of_points() -> None:
    text = (ROOT_OF_REPOSITORY / "docs" / "faults.md").read_text()
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+?) \| `([\w-]+)(?::N)?` \| (.+?) \|", text, re.M)
    documented = {(point, passed, action, effect) for point, passed, action, effect in rows}
    assert documented == {
        (point.name, point.passed, action, effect)
        for point in POINTS
        for action, effect in point.actions.items()
    }
    for spec in re.findall(r"fault[= ](\w[\w.-]*(?::\d+\+?)?=[\w:-]+)", text):
        try:
            Fault.parse(spec)
        except FaultSpecError as error:
            pytest.fail(f"docs/faults.md: {error}")

"""Single steps of ``hil check``, on what boards say that are not at hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.check import cable, firmware, rpmb, tee
from harness.check.finding import Verdict
from harness.check.target import Node, Target
from tests.harness.support.udev_bench import run


def survey(**sections: str) -> Any:
    """A survey of a board that said so; words of a section's name are joined by underscores."""
    lines = {name.replace("_", " "): tuple(text.split("\n")) for name, text in sections.items()}
    return SimpleNamespace(target=Target(lines), console_text="")


@pytest.mark.parametrize(
    ("uid", "groups", "opens"),
    [(0, (), True), (7, (), True), (8, (900,), True), (8, (901,), False), (8, (), False)],
)
def test_who_may_open_a_node(uid: int, groups: tuple[int, ...], opens: bool) -> None:
    assert Node("/dev/mmcblk0rpmb", "crw-rw----", 7, 900).opens_for(uid, groups) is opens


def test_a_kernel_that_tells_nothing_is_judged_by_what_it_shows() -> None:
    shown = survey(
        kernel="Linux 6.12.0 #1 SMP aarch64",
        modules="optee",
        loadable="tee_stmm_efi",
        file_systems="nodev\tsysfs\nnodev\tefivarfs",
    )
    finding = firmware.kernel(shown)
    assert finding.verdict is Verdict.OK
    assert finding.found == (
        "Linux 6.12.0: CONFIG_OPTEE=yes, CONFIG_TEE_STMM_EFI=m, CONFIG_EFIVAR_FS=yes"
    )
    finding = firmware.kernel(survey(kernel="Linux 6.12.0 #1 SMP aarch64"))
    assert finding.verdict is Verdict.WARN
    assert "CONFIG_TEE_STMM_EFI=?" in finding.found


def test_a_kernel_without_optee() -> None:
    finding = firmware.firmware(survey(log_readable="yes", log="efi: EFI v2.10 by EDK II"))
    assert finding.verdict is Verdict.FAIL
    assert "found no OP-TEE" in finding.cause


def test_a_kernel_without_the_driver_is_the_cause_and_not_the_firmware() -> None:
    shown = survey(kernel="Linux 6.12.0 #1", config="# CONFIG_OPTEE is not set\nCONFIG_EFIVAR_FS=y")
    assert firmware.kernel(shown).verdict is Verdict.FAIL
    assert firmware.firmware(shown).reason == "kernel config failed"


def test_nodes_that_a_container_was_not_given() -> None:
    shown = survey(container="podman", tee_class="tee0\nteepriv0", log="mmcblk0rpmb: mmc0:0001")
    for finding in (tee.devices(shown), rpmb.device(shown)):
        assert "a container (podman)" in finding.cause


@pytest.mark.parametrize("said", ["", "hello\n", "pi\nuid=1000(pi)\n", "This account is closed\n"])
def test_a_shell_that_does_not_tell_its_user_is_none(said: str) -> None:
    answer = SimpleNamespace(check=lambda: SimpleNamespace(text=said))
    shown = survey()
    shown.shell = SimpleNamespace(name="ssh", run=lambda command: answer)
    shown.board = SimpleNamespace(links=SimpleNamespace(chosen="ssh"))
    finding = cable.login(shown)
    assert finding.found == "no POSIX shell over ssh"
    assert finding.evidence[0].endswith(said.strip() or "nothing")


def test_only_root_goes_on() -> None:
    shown = survey()
    shown.user, shown.shell = ("pi", "1000"), SimpleNamespace(name="ssh")
    shown.board = SimpleNamespace(links=SimpleNamespace(chosen="ssh"))
    assert cable.root(shown).verdict is Verdict.FAIL
    shown.user = ("toor", "0")
    assert cable.root(shown).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("unit", "script", "verdict"),
    [
        ("unit a.service active\nExecStart=/usr/sbin/tee-supplicant", "", Verdict.WARN),
        ("ExecStop=-/bin/sh -c 'echo x > /sys/bus/tee/drivers/tee-stmm-efi/unbind'", "", "ok"),
        ("ExecStop=/sbin/modprobe -r tee_stmm_efi", "", "ok"),
        ("ExecStop=/sbin/modprobe -r tpm_ftpm_tee", "", Verdict.WARN),
        ("# ExecStop=/sbin/modprobe -r tee_stmm_efi", "", Verdict.WARN),
        ("", "stop) rmmod tee_stmm_efi; kill $PID;;", "ok"),
        ("", "stop) kill $PID;;", Verdict.WARN),
    ],
)
def test_whether_a_service_unbinds_is_read(unit: str, script: str, verdict: str) -> None:
    assert tee.service_stop(survey(unit=unit, script=script)).verdict == verdict


def test_a_program_that_names_no_rpmb_is_an_emulating_build() -> None:
    said = "pid 7\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\nGroups:\t"
    finding = tee.access(survey(supplicants=said))
    assert "RPMB_EMU" in finding.cause
    assert tee.access(survey(supplicants=f"{said}\nnames rpmb")).verdict is Verdict.OK


def test_two_supplicants() -> None:
    one = "State:\tS (sleeping)\nUid:\t0\t0\t0\t0\nnames rpmb"
    finding = tee.supplicant(survey(supplicants=f"pid 7\n{one}\npid 8\n{one}"))
    assert (finding.verdict, finding.found) == (Verdict.WARN, "2 run: processes 7, 8")


_LATENCY = """
import sys
from types import SimpleNamespace
from harness.check.cable import latency_timer
from harness.links.address import SerialAddress
bench.add("P: /devices/usb1/1-1/1-1:1.0/ttyUSB0\\nE: SUBSYSTEM=usb-serial\\n"
          f"A: latency_timer={sys.argv[1]}\\n")
print(*latency_timer(SimpleNamespace(serial=SerialAddress("/dev/ttyUSB0"))).lines(), sep="\\n")
"""


@pytest.mark.parametrize(("timer", "verdict"), [("16", "warn"), ("1", "ok")])
def test_the_latency_timer_of_an_ftdi_adapter(timer: str, verdict: str) -> None:
    shown = run(_LATENCY, timer)
    assert shown.startswith(verdict)
    assert f"{timer} ms" in shown
    assert ("echo 1 > /sys/bus/usb-serial/devices/ttyUSB0/latency_timer" in shown) == (
        verdict == "warn"
    )

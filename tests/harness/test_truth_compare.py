"""The rules of comparison: what they let pass, and that nothing else passes."""

from __future__ import annotations

import pytest

from harness.truth import compare

LISTED = "-rw-r--r-- 1 root root   7 Apr 13 19:44 B2-12345678-1234-1234-1234-123456789abc"
SEEN = "-rw-r--r-- 1 root root 7 Nov 23 14:02 B2-12345678-1234-1234-1234-123456789abc"


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        (5, 6),
        ("ok", "-EPERM"),
        ("-EINVAL", "-EIO"),
        ("3 bytes 656c6c", "3 bytes 656c6d"),
        ([16284, 40, 40], {"blocks": 16284, "bfree": 44, "bavail": 44}),
        ("[0, 0, 0]", {"blocks": 16284, "bfree": 40, "bavail": 40}),
        ({"namemax": 255}, {"namelen": 254}),
        (None, "-ENOENT"),
    ],
)
def test_values_that_differ(expected: object, seen: object) -> None:
    assert not compare.value(expected, seen)


def test_values_that_agree() -> None:
    assert compare.value([16284, 40, 40], {"blocks": 16284, "bfree": 40, "bavail": 40})
    assert compare.value({"namemax": 255, "flag": 4110}, {"namelen": 255, "flag": 4110})
    assert compare.value(None, 0)
    assert compare.mount_flags(["rw", "nosuid", "nodev", "noexec", "relatime"]) == 4110


def test_contents() -> None:
    assert compare.content("27000000+3", b"\x27\0\0\0abc", None)
    assert not compare.content("27000000+3", b"\x27\0\0\0ab", None)
    assert not compare.content("27000000+3", b"\7\0\0\0abc", None)
    assert compare.content("b'\\x07\\x00'", b"\7\0", None)
    assert compare.content("-ENOENT", None, "ENOENT")
    assert not compare.content("-ENOENT", b"", None)
    # recorded whole, so more is another content
    assert not compare.content("0700", b"\7\0\0", None)


def test_dates_do_not_matter_and_sizes_do() -> None:
    assert compare.output("ls -la", LISTED, SEEN, "") is None
    assert compare.output("ls -la", LISTED, SEEN.replace(" 7 ", " 8 "), "") is not None
    assert compare.output("ls -la", LISTED, SEEN.replace("rw-r--r--", "rwxr-xr-x"), "") is not None
    assert compare.output("ls -la", LISTED, "", "") is not None
    assert compare.output("ls -la", "", SEEN, "") is not None


def test_streams_are_merged_in_order() -> None:
    whole = "a\nb\nx: failed"
    assert compare.output("c", whole, "a\nb\n", "x: failed\n") is None
    assert compare.output("c", "x: failed\na\nb", "a\nb\n", "x: failed\n") is None
    assert compare.output("c", whole, "b\na\n", "x: failed\n") is not None


def test_counters_by_their_movement() -> None:
    text = "Counter value: 0x000017f6\nrc=1\nCounter value: 0x000017f7"
    moved = "Counter value: 0x00000010\nrc=1\nCounter value: 0x00000011"
    still = "Counter value: 0x00000010\nrc=1\nCounter value: 0x00000010"
    assert compare.output("mmc", text, moved, "") is None
    assert "counter" in str(compare.output("mmc", text, still, ""))


def test_which_shell_says_it_does_not_matter() -> None:
    said = "main: line 1: /x: Read-only file system"
    assert compare.output("c", said, "", "bash: line 3: /x: Read-only file system") is None
    assert compare.output("c", said, "", "bash: line 3: /x: Permission denied") is not None


def test_efibootmgr_by_entry_and_label() -> None:
    entry = "Boot0000* mmc 0\tVenHw(1)/eMMC(0){auto}\n      dp: 01 04\n    data: 4e"
    assert compare.output("efibootmgr", entry, "Boot0000* mmc 0\tHD(1)", "") is None
    assert compare.output("efibootmgr", entry, "Boot0000* mmc 1\tHD(1)", "") is not None
    assert compare.output("efibootmgr", entry, "Boot0000  mmc 0\tHD(1)", "") is not None


def test_kernel_lines() -> None:
    driver = ["efivars: Unregistered efivars operations", "efivars: Registered efivars operations"]
    assert compare.kernel_log(driver, driver, driver) is None
    assert compare.kernel_log(driver, driver[::-1], driver[::-1]) is not None
    assert compare.kernel_log([], driver, driver) is not None
    assert compare.kernel_log([], driver, []) is None
    assert compare.kernel_lines("[   1.5] efivars: x\n[ 2.0] systemd[1]: y\nz") == ["efivars: x"]


def test_journal_by_its_newest_message() -> None:
    head = "Apr 13 19:38:18 stmm-board systemd[1]: "
    started = f"{head}Started tee-supplicant.service - TEE Supplicant (RPMB_EMU=0 build)."
    assert (
        compare.output("journalctl", started, f"{head}Started tee-supplicant.service", "") is None
    )
    assert compare.output("journalctl", started, f"{head}Stopped tee-supplicant.service", "")
    assert compare.output("journalctl", started, "No journal", "")


def test_a_cut_output_is_compared_as_far_as_it_goes() -> None:
    lines = [f"line {number:04}" for number in range(400)]
    recorded = "\n".join(lines)[: compare.RECORDED_CHARS]
    assert compare.output("c", recorded, "\n".join(lines), "") is None
    lines[3] = "other"
    assert compare.output("c", recorded, "\n".join(lines), "") is not None

"""Ordinary programs on the emulated board, logged in over SSH: they do what they do on a board."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import paramiko
import pytest

if TYPE_CHECKING:
    from tests.emulation.conftest import EmulatedBoard

EFIVARS = "/sys/firmware/efi/efivars"
VENDOR = "12345678-1234-1234-1234-123456789abc"
STMM_DEVICE = "optee-ta-ed32d533-99e6-4209-9cc0-2d72cdd998a7"

Need = Callable[[str, str], str]


def counter(board: EmulatedBoard) -> int:
    text = board.ok("mmc rpmb read-counter /dev/mmcblk0rpmb")
    match = re.fullmatch(r"Counter value: 0x([0-9a-f]{8})\n", text)
    assert match, text
    return int(match[1], 16)


def test_efivar_lists_and_prints(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("efivar", "efivar")
    names = emulated.ok("efivar -l").split()
    assert "8be4df61-93ca-11d2-aa0d-00e098032b8c-SetupMode" in names
    shown = emulated.ok("efivar -p -n 8be4df61-93ca-11d2-aa0d-00e098032b8c-SetupMode")
    assert 'Name: "SetupMode"' in shown
    assert re.search(r"^00000000  01 ", shown, re.MULTILINE)


def test_efibootmgr_shows_orders_and_deletes(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("efibootmgr", "efibootmgr")
    order = re.search(r"^BootOrder: (\S+)$", emulated.ok("efibootmgr -v"), re.MULTILINE)
    assert order
    first, second = order[1].split(",")[:2]
    assert f"BootOrder: {second},{first}" in emulated.ok(f"efibootmgr -o {second},{first}")
    assert f"BootNext: {second}" in emulated.ok(f"efibootmgr -n {second}")
    assert "BootNext" not in emulated.ok("efibootmgr -N")
    assert "Timeout: 7 seconds" in emulated.ok("efibootmgr -t 7")
    emulated.ok("efibootmgr -T")
    emulated.ok(f"efibootmgr -o {order[1]}")


def test_efibootmgr_creates_and_deletes(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("efibootmgr", "efibootmgr")
    order = re.search(r"^BootOrder: (\S+)$", emulated.ok("efibootmgr"), re.MULTILINE)
    assert order
    create = r"efibootmgr -c -d /dev/mmcblk0 -p 1 -L refentry -l '\EFI\BOOT\BOOTAA64.EFI'"
    created = re.search(r"^Boot(\w{4})\* refentry$", emulated.ok(create), re.MULTILINE)
    assert created
    # truth special-051
    partition = "HD(1,GPT,a29769bf-d244-45b9-97b6-26eb9344794d,0x800,0x20000)"
    path = rf"{partition}/File(\EFI\BOOT\BOOTAA64.EFI)"
    shown = emulated.ok("efibootmgr -v")
    assert f"Boot{created[1]}* refentry\t{path}\n" in shown
    assert f"BootOrder: {created[1]},{order[1]}\n" in shown
    shown = emulated.ok(f"efibootmgr -b {created[1]} -B")
    assert f"Boot{created[1]}" not in shown
    assert f"BootOrder: {order[1]}\n" in shown


def test_chattr_and_lsattr(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("chattr", "e2fsprogs")
    name = f"{EFIVARS}/Flags-{VENDOR}"
    emulated.ok(f"printf '\\007\\000\\000\\000x' > {name}")
    assert re.match(r"-+i-+ ", emulated.ok(f"lsattr {name}"))
    refused = emulated.run(f"rm {name}")
    assert refused.status == 1
    assert "Operation not permitted" in refused.err
    emulated.ok(f"chattr -i {name}")
    assert "i" not in emulated.ok(f"lsattr {name}").split()[0]
    emulated.ok(f"rm {name}")


def test_df_and_stat(emulated: EmulatedBoard) -> None:
    fields = emulated.ok(f"df -B1 {EFIVARS}").splitlines()[1].split()
    assert fields[0] == "efivarfs"
    assert int(fields[1]) == 16284
    assert int(fields[3]) < 16284
    assert "Type: efivarfs" in emulated.ok(f"stat -f {EFIVARS}")
    assert emulated.ok(f"df -T {EFIVARS}").splitlines()[1].split()[1] == "efivarfs"


def test_remount(emulated: EmulatedBoard) -> None:
    name = f"{EFIVARS}/Remount-{VENDOR}"
    emulated.ok(f"mount -o remount,ro {EFIVARS}")
    try:
        refused = emulated.run(f"printf '\\007\\000\\000\\000x' > {name}")
        assert refused.status != 0
        assert "Read-only file system" in refused.err
        assert re.search(r"efivarfs ro[ ,]", emulated.ok("grep efivarfs /proc/mounts"))
    finally:
        emulated.ok(f"mount -o remount,rw {EFIVARS}")
    emulated.ok(f"printf '\\007\\000\\000\\000x' > {name} && chattr -i {name} && rm {name}")


def test_mount_options_are_shown_and_kept(emulated: EmulatedBoard) -> None:
    emulated.ok(f"umount {EFIVARS}")
    emulated.ok(f"mount -t efivarfs -o ro,uid=7,gid=8 none {EFIVARS}")
    line = emulated.ok(f"grep ' {EFIVARS} ' /proc/self/mountinfo")
    assert " ro,relatime " in line
    assert line.endswith("- efivarfs none ro,uid=7,gid=8\n")
    emulated.ok(f"umount {EFIVARS}; mount -t efivarfs efivarfs {EFIVARS}")
    line = emulated.ok(f"grep ' {EFIVARS} ' /proc/self/mountinfo")
    assert line.endswith("- efivarfs efivarfs rw\n")


def test_mount_twice_shows_the_same_variables(emulated: EmulatedBoard) -> None:
    emulated.ok("mkdir -p /tmp/second && mount -t efivarfs none /tmp/second")
    assert "none /tmp/second efivarfs rw,relatime 0 0\n" in emulated.ok("cat /proc/mounts")
    assert emulated.ok("ls /tmp/second") == emulated.ok(f"ls {EFIVARS}")
    emulated.ok("umount /tmp/second")
    assert "/tmp/second" not in emulated.ok("cat /proc/mounts")


def test_mokutil(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("mokutil", "mokutil")
    outcome = emulated.run("mokutil --sb-state")
    assert "SecureBoot disabled" in outcome.out
    assert "Setup Mode" in outcome.out


def test_efi_readvar(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("efi-readvar", "efitools")
    assert "Variable PK has no entries" in emulated.ok("efi-readvar -v PK")


def test_mmc_utils_read_the_counter_that_a_write_moves(
    emulated: EmulatedBoard, need_tool: Need
) -> None:
    need_tool("mmc", "mmc-utils")
    before = counter(emulated)
    assert counter(emulated) == before
    name = f"{EFIVARS}/Count-{VENDOR}"
    emulated.ok(f"printf '\\007\\000\\000\\000x' > {name}")
    assert counter(emulated) > before
    emulated.ok(f"chattr -i {name} && rm {name}")


def test_mmc_extcsd(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("mmc", "mmc-utils")
    shown = emulated.ok("mmc extcsd read /dev/mmcblk0")
    assert "RPMB Size [RPMB_SIZE_MULT]: 0x10" in shown


def test_lsblk(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("lsblk", "util-linux")
    shown = emulated.ok("lsblk -bnro NAME,MAJ:MIN,SIZE,TYPE,PKNAME")
    assert shown.splitlines() == [
        "mmcblk0 179:0 134217728 disk ",
        "mmcblk0p1 179:1 67108864 part mmcblk0",
        "mmcblk0p2 179:2 65011712 part mmcblk0",
    ]
    partitions = emulated.ok("cat /proc/partitions").splitlines()[2:]
    assert [line.split()[3] for line in partitions] == ["mmcblk0", "mmcblk0p1", "mmcblk0p2"]


def test_blkid(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("blkid", "util-linux")
    guid = "a29769bf-d244-45b9-97b6-26eb9344794d"
    assert emulated.ok("blkid -ps PTTYPE -o value /dev/mmcblk0") == "gpt\n"
    assert emulated.ok("blkid -ps PART_ENTRY_UUID -o value /dev/mmcblk0p1") == f"{guid}\n"


@pytest.mark.parametrize(
    ("size", "error"),
    # truth size-049, size-050, size-052
    [
        (65536, "Invalid argument"),
        (1048576, "Invalid argument"),
        (16777216, "Cannot allocate memory"),
    ],
)
def test_write_too_long_for_a_variable(emulated: EmulatedBoard, size: int, error: str) -> None:
    name = f"{EFIVARS}/Long-{VENDOR}"
    emulated.ok(f"{{ printf '\\007\\0\\0\\0'; head -c {size} /dev/zero; }} > /tmp/long")
    refused = emulated.run(f"dd if=/tmp/long of={name} bs={size + 4} iflag=fullblock")
    assert refused.status == 1
    assert error in refused.err
    emulated.ok(f"test -e {name}; chattr -i {name}; rm {name} /tmp/long")


def test_kernel_log(emulated: EmulatedBoard) -> None:
    shown = emulated.ok("dmesg")
    assert re.search(r"^\[ +\d+\.\d{6}\] efivars: Registered efivars operations$", shown, re.M)
    emulated.ok("echo '<5>marked by a test' > /dev/kmsg")
    assert emulated.ok("dmesg").splitlines()[-1].endswith("marked by a test")
    assert "marked by a test" in emulated.ok("journalctl -k -o cat")


def test_identity(emulated: EmulatedBoard) -> None:
    assert emulated.ok("uname -m") == "aarch64\n"
    assert emulated.ok("uname -n") == emulated.ok("cat /etc/hostname")
    assert re.fullmatch(r"6\.\d+\.\d+\S*\n", emulated.ok("uname -r"))
    assert re.fullmatch(r"[0-9a-f-]{36}\n", emulated.ok("cat /proc/sys/kernel/random/boot_id"))
    cid = emulated.ok("cat /sys/class/mmc_host/mmc0/mmc0:0001/cid")
    assert re.fullmatch(r"[0-9a-f]{32}\n", cid)


def test_service_life_cycle(emulated: EmulatedBoard) -> None:
    pid = emulated.ok("systemctl show -p MainPID --value tee-supplicant").strip()
    assert emulated.ok("pidof tee-supplicant").split() == [pid]
    assert emulated.ok("pgrep tee-supplicant").split() == [pid]
    assert emulated.ok(f"ps -o ppid= -p {pid}").strip() == "1"
    emulated.ok("systemctl stop tee-supplicant")
    try:
        assert emulated.run("systemctl is-active tee-supplicant").out == "inactive\n"
        assert emulated.run("pidof tee-supplicant").status == 1
        # Reads go on, the mount stays writable, writes fail (stack 9, truth).
        emulated.ok(f"cat {EFIVARS}/SetupMode-*")
        assert re.search(r"efivarfs rw[ ,]", emulated.ok("grep efivarfs /proc/mounts"))
    finally:
        emulated.ok("systemctl reset-failed tee-supplicant; systemctl start tee-supplicant")
    assert emulated.ok("systemctl is-active tee-supplicant") == "active\n"
    emulated.until("pidof tee-supplicant")


def test_killed_supplicant_is_failed(emulated: EmulatedBoard) -> None:
    emulated.until("pidof tee-supplicant")
    emulated.ok("kill -9 $(pidof tee-supplicant)")
    try:
        emulated.until("systemctl is-failed -q tee-supplicant")
        status = emulated.run("systemctl status tee-supplicant")
        assert status.status == 3
        assert "Active: failed (Result: signal)" in status.out
    finally:
        emulated.ok("systemctl reset-failed tee-supplicant; systemctl start tee-supplicant")


def test_unbind_and_bind(emulated: EmulatedBoard) -> None:
    driver = "/sys/bus/tee/drivers/tee-stmm-efi"
    emulated.ok(f"echo {STMM_DEVICE} > {driver}/unbind")
    try:
        assert re.search(r"efivarfs ro[ ,]", emulated.ok("grep efivarfs /proc/mounts"))
        again = emulated.run(f"echo {STMM_DEVICE} > {driver}/unbind")
        assert again.status != 0
        assert "No such device" in again.err
    finally:
        emulated.ok(f"echo {STMM_DEVICE} > {driver}/bind")
    emulated.until("grep -q 'efivarfs rw' /proc/mounts")


def test_modules(emulated: EmulatedBoard) -> None:
    assert "tee_stmm_efi" in emulated.ok("lsmod")
    missing = emulated.run("modprobe no_such_module")
    assert missing.status == 1
    assert "Module no_such_module not found" in missing.err
    assert emulated.run("rmmod no_such_module").status == 1


def test_second_user(emulated: EmulatedBoard) -> None:
    if (
        "4294967295" not in emulated.ok("cat /proc/self/uid_map")
        and emulated.run("su user -c true").status
    ):
        pytest.skip("needs a range of user ids: install uidmap, add a line to /etc/subuid")
    assert emulated.ok("su user -c 'id -u'") == "1000\n"
    refused = emulated.run(f"su user -c 'printf x > {EFIVARS}/User-{VENDOR}'")
    assert refused.status != 0
    assert "Permission denied" in refused.err
    assert emulated.run("su user -c 'systemctl stop tee-supplicant'").status == 1
    assert emulated.ok("systemctl is-active tee-supplicant") == "active\n"


def test_plain_ssh_with_the_printed_command(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("ssh", "openssh-client")
    ends = emulated.endpoints
    command = ["ssh", "-F", "none", "-i", ends["key"], "-p", str(ends["port"])]
    command += ["-o", f"UserKnownHostsFile={ends['known_hosts']}", "-o", "BatchMode=yes"]
    command += [f"{ends['user']}@{ends['host']}"]
    result = subprocess.run([*command, "echo $HOME; exit 5"], capture_output=True, timeout=20)
    assert (result.returncode, result.stdout) == (5, b"/root\n")
    login = subprocess.run(
        [*command, "-tt"], input=b"tty; exit 4\n", capture_output=True, timeout=20
    )
    assert login.returncode == 4
    assert b"/dev/pts/" in login.stdout


def test_files_of_root_persist(boot: Callable[..., EmulatedBoard]) -> None:
    board = boot("variant=mm")
    board.ok("echo kept > /root/file; echo gone > /tmp/file")
    board.disconnect()
    assert board.control("off") == {"power": "off"}
    assert board.control("on") == {"power": "on"}
    assert board.ok("cat /root/file") == "kept\n"
    assert board.run("cat /tmp/file").status == 1


def test_busybox_userland(boot: Callable[..., EmulatedBoard], need_tool: Need) -> None:
    need_tool("busybox", "busybox-static")
    board = boot("userland=busybox", "sftp=no")
    assert not board.has("python3")
    assert not board.has("bash")
    assert "BusyBox" in board.run("ls --help").err + board.run("busybox").out
    assert board.ok(f"ls {EFIVARS} | grep -c SetupMode") == "1\n"
    assert board.ok("systemctl is-active tee-supplicant") == "active\n"
    with pytest.raises(Exception, match=r".*"):
        board.connect().open_sftp()


def test_busybox_tells_init_to_reboot(boot: Callable[..., EmulatedBoard], need_tool: Need) -> None:
    need_tool("busybox", "busybox-static")
    board = boot("userland=busybox")
    before = board.ok("cat /proc/sys/kernel/random/boot_id").strip()
    board.ok("sh -c 'reboot' </dev/null")
    boot_id = before
    deadline = time.monotonic() + 30
    while boot_id == before and time.monotonic() < deadline:
        # The session ends with the boot that it is of, and the next is not up at once.
        with contextlib.suppress(OSError, paramiko.SSHException, EOFError):
            boot_id = (
                board.run("cat /proc/sys/kernel/random/boot_id", timeout=3).out.strip() or before
            )
    assert boot_id != before


@pytest.mark.fault("U1")
@pytest.mark.parametrize(
    "line",
    ["systemctl reboot", "systemctl poweroff", "reboot", "poweroff", "halt", "shutdown now"],
)
def test_help_ends_nothing(emulated: EmulatedBoard, line: str) -> None:
    boot_id = emulated.ok("cat /proc/sys/kernel/random/boot_id")
    for option in ("--help", "--frob", "--he"):
        emulated.run(f"{line} {option}")
        assert emulated.ok("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert f"{line.split()[0]} [OPTIONS" in emulated.ok(f"{line} --help")
    refused = emulated.run(f"{line} --frob")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == f"{line.split()[0]}: unrecognized option '--frob'\n"


@pytest.mark.fault("U1")
def test_what_warns_only_ends_nothing(emulated: EmulatedBoard) -> None:
    boot_id = emulated.ok("cat /proc/sys/kernel/random/boot_id")
    for line in ("shutdown -k now", "reboot -w", "reboot one two", "systemctl reboot more"):
        emulated.run(line)
        assert emulated.ok("cat /proc/sys/kernel/random/boot_id") == boot_id


_REFUSED = (
    "--frob", "-Z", "-p", "--lines", "-n", "show --property", "--force=3", "-o", "--quiet=1",
    "reboot --frob", "show -qZ", "--no-p=1",
)  # fmt: skip


@pytest.mark.fault("U1")
@pytest.mark.parametrize("command", ["systemctl", "journalctl"])
def test_options_are_refused_as_systemd_does(
    emulated: EmulatedBoard, need_tool: Need, command: str
) -> None:
    """Beside the host's own program, which reads its options before it looks for systemd."""
    real = need_tool(command, "systemd")
    ours = ("--frob", "-Z", "-u", "--unit", "-o", "--no-pager=1", "-kZ")
    for line in _REFUSED if command == "systemctl" else ours:
        theirs = subprocess.run(
            [command, *line.split()], executable=real, capture_output=True, text=True, timeout=20
        )
        refused = emulated.run(f"{command} {line}")
        assert (refused.status, refused.err) == (theirs.returncode, theirs.stderr), line


@pytest.mark.fault("U1")
@pytest.mark.parametrize("command", ["systemctl", "journalctl"])
def test_version_is_systemds(emulated: EmulatedBoard, command: str) -> None:
    assert re.match(r"systemd \d+ \(.*\)\n\+PAM ", emulated.ok(f"{command} --version"))


@pytest.mark.fault("U1")
def test_options_that_choose(emulated: EmulatedBoard) -> None:
    shown = emulated.ok("systemctl -P LoadState show tee-supplicant")
    assert shown == "loaded\n"
    assert "tee-supplicant" not in emulated.ok("systemctl list-units --state=failed")
    assert "tee-supplicant" in emulated.ok("systemctl list-units --state=active,failed")
    emulated.ok("echo one of a kind > /dev/kmsg")
    assert emulated.ok("journalctl -k -n 2 -g 'of a kind' -o cat -b 0") == "one of a kind\n"
    assert emulated.run("journalctl -b -1").status == 1


@pytest.mark.fault("U2")
def test_machine_id_is_kept(boot: Callable[..., EmulatedBoard]) -> None:
    board = boot("variant=mm")
    first = board.ok("cat /etc/machine-id")
    assert re.fullmatch(r"[0-9a-f]{32}\n", first)
    board.disconnect()
    board.control("off")
    board.control("on")
    assert board.ok("cat /etc/machine-id") == first
    assert boot("variant=mm").ok("cat /etc/machine-id") != first


@pytest.mark.fault("U2")
def test_processors_and_device_tree_are_an_arm64_boards(emulated: EmulatedBoard) -> None:
    cpus = "/sys/devices/system/cpu"
    assert emulated.ok(f"cat {cpus}/online {cpus}/present") == "0-1\n0-1\n"
    assert emulated.ok(f"cat {cpus}/cpu1/regs/identification/midr_el1") == "0x00000000411fd070\n"
    assert emulated.ok("getconf _NPROCESSORS_ONLN") == "2\n"
    for base in ("/sys/firmware/devicetree/base", "/proc/device-tree"):
        assert emulated.ok(f"cat {base}/model") == "linux,dummy-virt\0"
        assert emulated.ok(f"cat {base}/compatible | tr '\\0' '\\n'") == "linux,dummy-virt\n"
        assert re.fullmatch(r"[0-9a-f]{16}\0", emulated.ok(f"cat {base}/serial-number"))
    assert emulated.ok("cat /sys/firmware/devicetree/base/firmware/optee/compatible") == (
        "linaro,optee-tz\0"
    )


@pytest.mark.fault("U2")
def test_csd_tells_the_size(emulated: EmulatedBoard) -> None:
    """JESD84-B51 7.3: capacity = (C_SIZE + 1) * 2^(C_SIZE_MULT + 2) * 2^READ_BL_LEN."""
    csd = int(emulated.ok("cat /sys/class/mmc_host/mmc0/mmc0:0001/csd"), 16)
    size = (csd >> 62 & 0xFFF) + 1 << (csd >> 47 & 7) + 2 << (csd >> 80 & 0xF)
    assert size == int(emulated.ok("blockdev --getsize64 /dev/mmcblk0"))
    assert (csd >> 126, csd & 0xFF) == (3, 0)


@pytest.mark.fault("U2")
def test_the_system_partition_is_a_fat(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("blkid", "util-linux")
    shown = emulated.ok("blkid -p -o export /dev/mmcblk0p1").split()
    assert {"TYPE=vfat", "VERSION=FAT16", "LABEL_FATBOOT=ESP", "LABEL=ESP"} <= set(shown)


@pytest.mark.fault("U2")
def test_fsck_finds_nothing(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("fsck.fat", "dosfstools")
    assert "0 files, 0/" in emulated.ok("fsck.fat -n -v /dev/mmcblk0p1")


@pytest.mark.fault("U5")
def test_the_host_is_not_shown(emulated: EmulatedBoard) -> None:
    cpuinfo = emulated.ok("cat /proc/cpuinfo")
    assert cpuinfo.count("CPU part\t: 0xd07\n") == 2
    assert "vendor_id" not in cpuinfo
    assert emulated.ok("systemd-detect-virt") == "qemu\n"
    inside = emulated.run("systemd-detect-virt --container")
    assert (inside.status, inside.out) == (1, "none\n")


_XATTR = """
import errno, os
for call in (os.listxattr, lambda p: os.setxattr(p, "user.x", b"1"),
             lambda p: os.getxattr(p, "user.x"), lambda p: os.removexattr(p, "user.x")):
    try:
        print(call(PATH))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.fault("U4")
def test_extended_attributes_of_a_variable(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("python3", "python3")
    name = f"{EFIVARS}/Xattr-{VENDOR}"
    emulated.ok(f"printf '\\007\\000\\000\\000x' > {name}")
    try:
        program = _XATTR.replace("PATH", repr(name)).encode()
        shown = emulated.ok("python3 -", stdin=program)
        assert shown.split() == ["[]", "EPERM", "ENOTSUP", "EPERM"]
        emulated.ok(f"chattr -i {name}")
        shown = emulated.ok("python3 -", stdin=program)
        assert shown.split() == ["[]", "ENOTSUP", "ENOTSUP", "ENOTSUP"]
    finally:
        emulated.run(f"chattr -i {name}; rm {name}")


@pytest.mark.fault("U4")
@pytest.mark.parametrize(
    "line",
    [
        "mount -t efivarfs none /mnt",
        f"mount -o remount,rw {EFIVARS}",
        f"umount {EFIVARS}",
        "rmmod -f efi_pstore || python3 -c 'import ctypes; "
        'l = ctypes.CDLL(None, use_errno=True); exit(l.delete_module(b"efi_pstore", 0) != 0)\'',
    ],
)
def test_root_of_another_user_namespace_is_nobody(
    emulated: EmulatedBoard, need_tool: Need, line: str
) -> None:
    need_tool("unshare", "util-linux")
    if "python3" in line:
        line = line.partition(" || ")[2]
    table = emulated.ok(f"grep {EFIVARS} /proc/mounts; lsmod")
    refused = emulated.run(f"unshare -Urm sh -c {shlex.quote(line)}")
    assert refused.status != 0
    assert emulated.ok(f"grep {EFIVARS} /proc/mounts; lsmod") == table


@pytest.mark.fault("U5")
def test_erase_and_write_protection_answer(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("mmc", "mmc-utils")
    need_tool("python3", "python3")
    shown = emulated.ok("python3 -", stdin=_MMC_COMMANDS.encode())
    assert shown.splitlines() == [
        "38 10000900 -",  # no start, no end
        "35 00000900 -", "36 00000900 -", "38 00000900 -", "erased True",
        "35 80000900 -",  # behind the end
        "31 00000900 0000000000000000", "28 00000900 -", "31 00000900 0000000000000001",
        "30 00000900 00000001", "write EIO", "35 00000900 -", "36 00000900 -", "38 00008900 -",
        "29 00000900 -", "30 00000900 00000000", "write ok",
    ]  # fmt: skip


_MMC_COMMANDS = """
import ctypes, errno, fcntl, os, struct
disk = os.open("/dev/mmcblk0", os.O_RDWR)
AT = 96 << 20
def command(opcode, arg, size=0):
    data = ctypes.create_string_buffer(max(size, 1))
    record = bytearray(struct.pack("<iiII4IIIIIIIIIQ", 0, 0, opcode, arg, 0, 0, 0, 0, 0x15,
                                   size, int(size > 0), 0, 0, 0, 0, 0, ctypes.addressof(data)))
    fcntl.ioctl(disk, 0xC048B300, record)
    shown = data.raw[:size].hex() if size else "-"
    print(opcode, "%08x" % struct.unpack_from("<I", record, 16), shown)
def write():
    try:
        other = os.open("/dev/mmcblk0", os.O_WRONLY | os.O_DSYNC)
        os.pwrite(other, bytes(512), AT)
        os.close(other)
        print("write ok")
    except OSError as error:
        print("write", errno.errorcode[error.errno])
os.pwrite(disk, bytes(512), AT)
command(38, 0)
command(35, AT); command(36, AT); command(38, 0)
print("erased", os.pread(disk, 512, AT) == b"\\xff" * 512)
command(35, 128 << 20)
command(31, AT, 8); command(28, AT); command(31, AT, 8); command(30, AT, 4)
write()
command(35, AT); command(36, AT); command(38, 0)
command(29, AT); command(30, AT, 4)
write()
"""


@pytest.mark.fault("U6")
def test_eight_entries_at_once(emulated: EmulatedBoard, need_tool: Need) -> None:
    """efibootmgr finds a free number and the order first and writes then: some are told EINVAL by
    libefivar's two reads of what another changes meanwhile. What came through is there whole, and
    nobody else's entry is harmed."""
    need_tool("efibootmgr", "efibootmgr")
    before = emulated.ok("efibootmgr")
    order = re.search(r"^BootOrder: (\S+)$", before, re.MULTILINE)
    assert order
    create = r"efibootmgr -q -c -d /dev/mmcblk0 -p 1 -l '\EFI\X.EFI' -L many$n"
    try:
        said = emulated.ok(
            f"for n in 1 2 3 4 5 6 7 8; do ({create} 2>&1 || echo failed $n) & done; wait",
            timeout=60,
        )
        assert "Traceback" not in said
        after = emulated.ok("efibootmgr -v")
        entries = re.findall(
            r"^Boot(\w{4})\* many\d\tHD\(1,.*\)/File\(\\EFI\\X.EFI\)$", after, re.M
        )
        made = re.findall(r"many\d", after)
        assert 1 <= len(made) == len(entries)
        for line in before.splitlines():
            if re.match(r"Boot\w{4}\*", line):
                assert line in after
    finally:
        for number in re.findall(r"^Boot(\w{4})\* many", emulated.ok("efibootmgr"), re.M):
            emulated.run(f"efibootmgr -q -b {number} -B")
        emulated.ok(f"efibootmgr -q -o {order[1]}")


_CHARACTER_DEVICE = """
import errno, os, stat, sys
for _ in range(2):
    fd = os.open(sys.argv[1], os.O_RDWR)
for call in (lambda: os.read(fd, 512), lambda: os.write(fd, bytes(512)), lambda: os.write(fd, b"x"),
             lambda: os.lseek(fd, 0, os.SEEK_SET), lambda: os.lseek(fd, 0, os.SEEK_END)):
    try:
        print(call())
    except OSError as error:
        print(errno.errorcode[error.errno])
status = os.fstat(fd)
print(stat.S_ISCHR(status.st_mode), status.st_rdev == os.stat(sys.argv[1]).st_rdev)
"""


@pytest.mark.fault("U3")
@pytest.mark.parametrize("node", ["mmcblk0rpmb", "tee0"])
def test_character_devices_are_not_read(
    emulated: EmulatedBoard, need_tool: Need, node: str
) -> None:
    """Recorded of the RPMB: opened twice, EINVAL, EINVAL, ESPIPE."""
    need_tool("python3", "python3")
    shown = emulated.ok(f"python3 - /dev/{node}", stdin=_CHARACTER_DEVICE.encode())
    assert shown.split() == ["EINVAL"] * 3 + ["ESPIPE"] * 2 + ["True", "True"]


@pytest.mark.fault("U3")
@pytest.mark.parametrize("node", ["mmcblk0rpmb", "tee0", "mmcblk0p1"])
def test_fuser_shows_who_holds_a_device(
    emulated: EmulatedBoard, need_tool: Need, node: str
) -> None:
    need_tool("fuser", "psmisc")
    lines = f"exec 7</dev/{node}; echo $$; fuser /dev/{node} 2>/dev/null"
    pid, *holders = emulated.ok(f"bash -c '{lines}'").split()
    assert pid in holders
    assert pid not in emulated.run(f"fuser /dev/{node} 2>/dev/null").out.split()


@pytest.mark.fault("U3")
def test_closed_devices_are_free_again(emulated: EmulatedBoard) -> None:
    """More opens than may be at once, one after the other and at once."""
    emulated.ok("for i in $(seq 300); do : </dev/tee0 || exit 1; done", timeout=60)
    many = "for i in $(seq 300); do exec {fd}</dev/tee0 || exit 1; done"
    refused = emulated.run(f"bash -c '{many}'", timeout=60)
    assert "Too many open files in system" in refused.err
    emulated.until(": </dev/tee0")

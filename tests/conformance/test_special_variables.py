"""Variables that firmware or kernel treat specially: read-only ones, those that the kernel
validates, those that are not immutable, and the memory overwrite request.

Recorded rows: special-001 to -051, imm-001; stack 4.9, 4.10, 6.3, 6.4. U-Boot never tells
StandaloneMM that boot is over (EndOfDxe), so read-only is what the driver asks for before each
write, and the firmware's own checks of names and sizes are asleep.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.capabilities import VENDOR_GUID
from harness.expectations import recorded
from harness.formats.efi import (
    CERT_DB_GUID,
    CUSTOM_MODE_GUID,
    GLOBAL_VARIABLE_GUID,
    IMAGE_SECURITY_DATABASE_GUID,
    MEMORY_OVERWRITE_CONTROL_GUID,
    MEMORY_OVERWRITE_LOCK_GUID,
    SECURE_BOOT_ENABLE_GUID,
    VENDOR_KEYS_NV_GUID,
)
from harness.formats.load_option import END_NODE, load_option
from harness.instruments.efivars import IMMUTABLE, Efivars
from harness.instruments.outcomes import refused, succeeded
from harness.instruments.tee import Tee
from harness.probe import steps as do
from harness.probe.probe import Probe

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

BS_RT = 0x6
CRASH_GUID = UUID("cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0")
RANDOM_SEED_GUID = UUID("1ce1e5bc-7ceb-42f2-81e5-8aadf180f57b")
"""LINUX_EFI_RANDOM_SEED_TABLE_GUID (K6 include/linux/efi.h)."""
SIGNATURE_TYPES = {
    UUID("826ca512-cf10-4ac9-b187-be01496631bd"): "SHA-1",
    UUID("c1c41626-504c-4092-aca9-41f936934328"): "SHA-256",
    UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): "SHA-384",
    UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): "SHA-512",
    UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6"): "RSA-2048",
    UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072"): "X.509",
}
REMOVABLE = {
    "BootNext", "BootOrder", "DriverOrder", "ConIn", "ConInDev", "ConOut", "ConOutDev", "ErrOut",
    "ErrOutDev", "Lang", "OsIndications", "PlatformLang", "Timeout",
}  # fmt: skip
"""Names under the global GUID that are not immutable, besides Boot* and Driver* (K6 vars.c)."""

in_stmm = pytest.mark.needs("exit_boot_services_told")
"""Where the firmware keeps its own variables in StandaloneMM."""


@pytest.fixture
def setup_mode(efivars: Efivars) -> None:
    """Skips on a board with a platform key: AuditMode and DeployedMode are writable there."""
    if efivars.read("SetupMode", GLOBAL_VARIABLE_GUID).data != b"\1":
        pytest.skip("the board is in user mode")


@pytest.fixture
def remounted(efivars: Efivars) -> Iterator[Efivars]:
    """Afterwards a fresh mount: files that were created and never stored are gone."""
    yield efivars
    efivars.unmount()
    efivars.mount()


class TestValues:
    @pytest.mark.cases(265, 293)
    @pytest.mark.parametrize("name", ["SetupMode", "SecureBoot", "VendorKeys"])
    def test_a_mode_is_one_byte_of_0_or_1_and_volatile(self, efivars: Efivars, name: str) -> None:
        mode = efivars.read(name, GLOBAL_VARIABLE_GUID)
        assert mode.attributes == BS_RT
        assert mode.data in (b"\0", b"\1")

    @pytest.mark.cases(297)
    @pytest.mark.parametrize("name", ["AuditMode", "DeployedMode"])
    @in_stmm
    def test_audit_and_deployed_mode_are_off(self, efivars: Efivars, name: str) -> None:
        mode = efivars.read(name, GLOBAL_VARIABLE_GUID)
        assert (mode.attributes, mode.data) == (BS_RT, b"\0")

    @pytest.mark.cases(265)
    def test_without_a_platform_key_secure_boot_is_off(
        self, efivars: Efivars, setup_mode: None
    ) -> None:
        assert not efivars.exists("PK", GLOBAL_VARIABLE_GUID)
        raw = efivars.read_raw("SetupMode", GLOBAL_VARIABLE_GUID)
        assert raw == recorded(b"\x06\x00\x00\x00\x01", "special-001.after", "special-042.after")
        raw = efivars.read_raw("SecureBoot", GLOBAL_VARIABLE_GUID)
        assert raw == recorded(b"\x06\x00\x00\x00\x00", "special-043.after")

    @in_stmm
    def test_no_vendor_keys_are_in_use_before_any_were_enrolled(
        self, efivars: Efivars, setup_mode: None
    ) -> None:
        raw = efivars.read_raw("VendorKeys", GLOBAL_VARIABLE_GUID)
        assert raw == recorded(b"\x06\x00\x00\x00\x00", "special-003.after")

    @in_stmm
    def test_the_supported_signature_types_are_listed(self, efivars: Efivars) -> None:
        # special-045
        supported = efivars.read("SignatureSupport", GLOBAL_VARIABLE_GUID)
        found = [
            UUID(bytes_le=supported.data[at : at + 16]) for at in range(0, len(supported.data), 16)
        ]
        assert supported.attributes == BS_RT
        assert found == list(SIGNATURE_TYPES)

    @in_stmm
    def test_the_supported_os_indications_are_eight_bytes(self, efivars: Efivars) -> None:
        raw = efivars.read_raw("OsIndicationsSupported", GLOBAL_VARIABLE_GUID)
        assert raw == recorded(b"\6\0\0\0\0\0\0\0\0\0\0\0", "special-007.after")

    @pytest.mark.cases(225)
    @in_stmm
    def test_the_language_is_one_of_the_supported_ones(self, efivars: Efivars) -> None:
        codes = efivars.read("PlatformLangCodes", GLOBAL_VARIABLE_GUID)
        language = efivars.read("PlatformLang", GLOBAL_VARIABLE_GUID)
        assert (codes.attributes, language.attributes) == (BS_RT, 7)
        assert codes.data.endswith(b"\0")
        assert language.data.endswith(b"\0")
        assert language.data[:-1] in codes.data[:-1].split(b";")

    @in_stmm
    @pytest.mark.consents("unbind_driver")
    @pytest.mark.disturbs
    def test_they_read_the_same_without_the_driver(self, efivars: Efivars, tee: Tee) -> None:
        """What firmware copied to memory for its own run time is what StandaloneMM answers."""
        names = ("SecureBoot", "SetupMode", "AuditMode", "DeployedMode", "OsIndicationsSupported")
        with_driver = [efivars.read_raw(name, GLOBAL_VARIABLE_GUID) for name in names]
        tee.unbind()
        without = [efivars.read_raw(name, GLOBAL_VARIABLE_GUID) for name in names]
        assert without == with_driver


READ_ONLY = [
    pytest.param("SetupMode", GLOBAL_VARIABLE_GUID, recorded(errno.EROFS, "special-001[1]")),
    pytest.param("SecureBoot", GLOBAL_VARIABLE_GUID, errno.EROFS),
    pytest.param("VendorKeys", GLOBAL_VARIABLE_GUID, recorded(errno.EROFS, "special-003[1]")),
    pytest.param("SignatureSupport", GLOBAL_VARIABLE_GUID, recorded(errno.EROFS, "special-004[1]")),
    pytest.param("AuditMode", GLOBAL_VARIABLE_GUID, errno.EROFS, marks=in_stmm),
    pytest.param(
        "DeployedMode",
        GLOBAL_VARIABLE_GUID,
        recorded(errno.EROFS, "special-006[1]"),
        marks=in_stmm,
    ),
    pytest.param(
        "OsIndicationsSupported",
        GLOBAL_VARIABLE_GUID,
        recorded(errno.EROFS, "special-007[1]"),
        marks=in_stmm,
    ),
    pytest.param("PlatformLangCodes", GLOBAL_VARIABLE_GUID, errno.EROFS, marks=in_stmm),
    pytest.param("certdb", CERT_DB_GUID, recorded(errno.EROFS, "special-034[1]")),
    pytest.param("certdbv", CERT_DB_GUID, errno.EROFS),
]


@pytest.mark.cases(221, 226, 296, 297, 328)
@pytest.mark.foreign("SignatureSupport", "OsIndicationsSupported", "PlatformLangCodes")
@pytest.mark.foreign("*Mode", "SecureBoot", "VendorKeys", "certdb*", "*Default")
@pytest.mark.disturbs
class TestReadOnly:
    """The driver asks StandaloneMM whether a variable is read-only and never sends the write."""

    @pytest.fixture(autouse=True)
    def _all_listed(self, efivars: Efivars) -> None:
        """A mount as old as the boot lists what the firmware told, not what StandaloneMM has."""
        if not efivars.exists("certdb", CERT_DB_GUID):
            efivars.unmount()
            efivars.mount()

    @pytest.mark.parametrize(("name", "guid", "expected"), READ_ONLY)
    def test_a_write_is_refused_and_the_value_stays(
        self, efivars: Efivars, setup_mode: None, name: str, guid: UUID, expected: int
    ) -> None:
        before = efivars.read(name, guid)
        with refused(expected):
            efivars.overwrite(name, bytes([1] * len(before.data)), before.attributes, guid)
        efivars.set_immutable(name, True, guid)
        assert efivars.read(name, guid) == before

    @pytest.mark.needs("rpmb_access")
    def test_a_refused_write_costs_no_rpmb_write(self, board: Board, efivars: Efivars) -> None:
        before = board.rpmb.counter()
        with refused(errno.EROFS):
            efivars.overwrite("SetupMode", b"\2", BS_RT, GLOBAL_VARIABLE_GUID)
        efivars.set_immutable("SetupMode", True, GLOBAL_VARIABLE_GUID)
        assert board.rpmb.counter() - before == recorded(0, "special-001.rpmb_writes")

    @pytest.mark.parametrize(
        ("name", "guid", "expected"),
        [
            ("SetupMode", GLOBAL_VARIABLE_GUID, recorded(errno.EINVAL, "special-042[1]")),
            ("SecureBoot", GLOBAL_VARIABLE_GUID, recorded(errno.EINVAL, "special-043[1]")),
            ("SignatureSupport", GLOBAL_VARIABLE_GUID, recorded(errno.EINVAL, "special-045[1]")),
            ("VendorKeys", GLOBAL_VARIABLE_GUID, errno.EINVAL),
            ("certdb", CERT_DB_GUID, recorded(errno.EINVAL, "special-048.output")),
        ],
    )
    @pytest.mark.cases(233)
    def test_a_delete_is_refused_and_the_value_stays(
        self, efivars: Efivars, name: str, guid: UUID, expected: int
    ) -> None:
        before = efivars.read(name, guid)
        with refused(expected):
            efivars.delete(name, guid)
        efivars.set_immutable(name, True, guid)
        assert efivars.read(name, guid) == before

    @pytest.mark.parametrize("guid", [VENDOR_GUID, IMAGE_SECURITY_DATABASE_GUID])
    @pytest.mark.cost(store_bytes=84)
    def test_the_vendor_guid_is_part_of_the_name(self, efivars: Efivars, guid: UUID) -> None:
        """A variable of the same name under another GUID is an ordinary one."""
        efivars.write("SetupMode", b"x", guid=guid)
        assert efivars.read("SetupMode", guid).data == b"x"
        efivars.delete("SetupMode", guid)

    @pytest.mark.parametrize(
        ("name", "guid"),
        [
            ("PKDefault", GLOBAL_VARIABLE_GUID),
            ("KEKDefault", GLOBAL_VARIABLE_GUID),
            ("dbDefault", GLOBAL_VARIABLE_GUID),
            ("dbxDefault", GLOBAL_VARIABLE_GUID),
        ],
    )
    def test_a_default_of_the_factory_cannot_be_made_up(
        self, remounted: Efivars, name: str, guid: UUID
    ) -> None:
        if remounted.exists(name, guid):
            pytest.skip(f"the firmware has {name}")
        with refused(recorded(errno.EROFS, "special-030[1]")):
            remounted.write(name, b"x", BS_RT, guid)

    def test_what_the_firmware_keeps_to_itself_is_not_listed(
        self, board: Board, remounted: Efivars
    ) -> None:
        """Variables without run-time access exist until StandaloneMM knows that boot is over."""
        remounted.unmount()
        remounted.mount()
        hidden = {
            ("CustomMode", CUSTOM_MODE_GUID),
            ("VendorKeysNv", VENDOR_KEYS_NV_GUID),
            ("SecureBootEnable", SECURE_BOOT_ENABLE_GUID),
        }
        listed = {(name.name, name.guid) for name in remounted.names()} & hidden
        if board.capabilities.has("exit_boot_services_told"):
            assert listed == set()
        else:
            assert ("CustomMode", CUSTOM_MODE_GUID) in listed


class TestImmutable:
    @pytest.mark.cases(389, 390, 391)
    def test_exactly_the_removable_ones_are_listed_without_the_flag(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        # imm-001
        names = efivars.names()
        steps = [
            step
            for name in names
            for step in (
                do.Open("v", efivars.file(name.name, name.guid)),
                do.GetFlags("v"),
                do.Close("v"),
            )
        ]
        outcomes = probe.steps(steps, timeout=30)[1::3]
        for outcome in outcomes:
            succeeded(outcome)
        mutable = {
            name
            for name, outcome in zip(names, outcomes, strict=True)
            if not (outcome.value or 0) & IMMUTABLE
        }
        assert mutable == {name for name in names if _is_removable(name.name, name.guid)}

    @pytest.mark.cases(389, 390, 391)
    @pytest.mark.disturbs
    @pytest.mark.foreign("[Bb]oot*", "Driver*", "Con*", "ErrOut", "Lang", "OsIndications")
    @pytest.mark.foreign("Timeout*", "dump-*", "SysPrep*", "Key*", "HwErrRecSupport", "dbx")
    @pytest.mark.parametrize(
        ("name", "guid", "immutable"),
        [
            ("BootNext", GLOBAL_VARIABLE_GUID, False),
            ("Boot7ABC", GLOBAL_VARIABLE_GUID, False),
            ("Driver0000", GLOBAL_VARIABLE_GUID, False),
            ("DriverOrder", GLOBAL_VARIABLE_GUID, False),
            ("ConInDev", GLOBAL_VARIABLE_GUID, False),
            ("ErrOut", GLOBAL_VARIABLE_GUID, False),
            ("Lang", GLOBAL_VARIABLE_GUID, False),
            ("OsIndications", GLOBAL_VARIABLE_GUID, False),
            ("Timeout", GLOBAL_VARIABLE_GUID, False),
            ("dump-type0-1-1-1", CRASH_GUID, False),
            ("SysPrep0001", GLOBAL_VARIABLE_GUID, True),
            ("Key0000", GLOBAL_VARIABLE_GUID, True),
            ("HwErrRecSupport", GLOBAL_VARIABLE_GUID, True),
            ("Timeouts", GLOBAL_VARIABLE_GUID, True),
            ("Con", GLOBAL_VARIABLE_GUID, True),
            ("bootNext", GLOBAL_VARIABLE_GUID, True),
            ("dbx", IMAGE_SECURITY_DATABASE_GUID, True),
            ("BootNext", VENDOR_GUID, True),
            ("Boot7ABC", IMAGE_SECURITY_DATABASE_GUID, True),
        ],
    )
    def test_a_new_file_has_the_flag_by_its_name(
        self, efivars: Efivars, probe: Probe, name: str, guid: UUID, immutable: bool
    ) -> None:
        """Nothing is written: the kernel decides when the file is created."""
        path = efivars.file(name, guid)
        opened, flags, closed = probe.steps(
            [do.Open("v", path, "O_RDWR|O_CREAT"), do.GetFlags("v"), do.Close("v")]
        )
        _discard(efivars, name, guid)
        for outcome in (opened, flags, closed):
            succeeded(outcome)
        assert bool((flags.value or 0) & IMMUTABLE) == immutable


def _discard(efivars: Efivars, name: str, guid: UUID) -> None:
    """Remove a file that was created and never written; where the firmware guards its name even
    so, a fresh mount does."""
    if not efivars.exists(name, guid) or efivars.read_raw(name, guid):
        return
    try:
        efivars.delete(name, guid)
    except OSError:
        efivars.unmount()
        efivars.mount()


def _is_removable(name: str, guid: UUID) -> bool:
    if guid == CRASH_GUID:
        return True
    return guid == GLOBAL_VARIABLE_GUID and (
        name in REMOVABLE or name.startswith(("Boot", "Driver"))
    )


def _content(efivars: Efivars, name: str) -> bytes:
    """What is stored under the global GUID: a file that was created in vain holds nothing."""
    return (
        efivars.read_raw(name, GLOBAL_VARIABLE_GUID)
        if efivars.exists(name, GLOBAL_VARIABLE_GUID)
        else b""
    )


@pytest.mark.foreign("Boot7*", "Driver7*")
class TestLoadOptions:
    """The kernel looks into Boot#### and Driver#### before the firmware sees them."""

    @pytest.mark.cases(392, 394, 395)
    @pytest.mark.parametrize(
        ("name", "data", "expected"),
        [
            pytest.param(
                "Boot7ABC", b"junk", recorded(errno.EINVAL, "special-019[1]"), id="four bytes"
            ),
            pytest.param(
                "Boot7ABC",
                b"\1\0\0\0\0\0t\0\0\0",
                recorded(errno.EINVAL, "special-018[1]", "special-021[1]"),
                id="without a path",
            ),
            pytest.param("Driver7ABC", b"junk", errno.EINVAL, id="a driver of four bytes"),
            pytest.param(
                "Boot7ABC",
                load_option("t", b"\3\x1d\5\0\0"),
                errno.EINVAL,
                id="a path without its end",
            ),
            pytest.param(
                "Boot7ABC",
                load_option("t", b"\x7f\1\4\0"),
                errno.EINVAL,
                id="the end of an instance only",
            ),
            pytest.param(
                "Boot7ABC",
                load_option("t")[:-1],
                errno.EINVAL,
                id="a path longer than the data",
            ),
            pytest.param(
                "Boot7ABC",
                b"\1\0\0\0" + END_NODE + b"t\0t\0",
                errno.EINVAL,
                id="a description without its end",
            ),
            pytest.param("Boot7ABCD", load_option("t"), errno.EINVAL, id="five digits"),
            pytest.param("Boot7ABCx", load_option("t"), errno.EINVAL, id="more behind the digits"),
        ],
    )
    def test_a_malformed_one_is_refused(
        self, efivars: Efivars, name: str, data: bytes, expected: int
    ) -> None:
        with refused(expected):
            efivars.write(name, data, guid=GLOBAL_VARIABLE_GUID)
        assert _content(efivars, name) == b""
        _discard(efivars, name, GLOBAL_VARIABLE_GUID)

    @pytest.mark.cases(393)
    @pytest.mark.cost(store_bytes=96)
    @pytest.mark.parametrize("name", ["Boot7ABC", "Driver7abc"])
    def test_a_proper_one_is_accepted(self, efivars: Efivars, name: str) -> None:
        efivars.write(name, load_option("t"), guid=GLOBAL_VARIABLE_GUID)
        assert efivars.read(name, GLOBAL_VARIABLE_GUID).data == load_option("t")

    @pytest.mark.cases(393)
    @pytest.mark.cost(store_bytes=96)
    def test_data_behind_the_path_is_the_loader_s_own(self, efivars: Efivars) -> None:
        option = load_option("", data=b"any")
        efivars.write("Boot7ABC", option, guid=GLOBAL_VARIABLE_GUID)
        assert efivars.read("Boot7ABC", GLOBAL_VARIABLE_GUID).data == option

    @pytest.mark.cost(store_bytes=92)
    def test_a_malformed_overwrite_leaves_the_proper_one(self, efivars: Efivars) -> None:
        efivars.write("Boot7ABC", load_option("t"), guid=GLOBAL_VARIABLE_GUID)
        with refused(errno.EINVAL):
            efivars.write("Boot7ABC", b"junk", guid=GLOBAL_VARIABLE_GUID, flags="O_WRONLY")
        assert efivars.read("Boot7ABC", GLOBAL_VARIABLE_GUID).data == load_option("t")

    @pytest.mark.cases(399)
    @pytest.mark.cost(store_bytes=92)
    def test_a_write_of_nothing_does_not_delete_it_and_unlink_does(self, efivars: Efivars) -> None:
        efivars.write("Boot7ABC", load_option("t"), guid=GLOBAL_VARIABLE_GUID)
        with refused(errno.EINVAL):
            efivars.write("Boot7ABC", b"", guid=GLOBAL_VARIABLE_GUID, flags="O_WRONLY")
        assert efivars.read("Boot7ABC", GLOBAL_VARIABLE_GUID).data == load_option("t")
        efivars.unlink("Boot7ABC", GLOBAL_VARIABLE_GUID)
        assert not efivars.exists("Boot7ABC", GLOBAL_VARIABLE_GUID)

    @pytest.mark.cost(store_bytes=84)
    def test_under_another_guid_it_is_an_ordinary_variable(self, efivars: Efivars) -> None:
        """K6 fs/efivarfs/vars.c:efivar_validate looks at names under the global GUID only."""
        efivars.write("Boot7ABC", b"junk")
        assert efivars.read("Boot7ABC").data == b"junk"


@pytest.mark.foreign("Boot12", "BootNext", "OsIndications", "Timeout", "Hil")
class TestFirmwareChecks:
    """Names and sizes under the global GUID are the firmware's to check, and it does so as a whole
    or, where nobody told it EndOfDxe, not at all (stack 4.3, 4.10)."""

    @pytest.fixture
    def armed(self, efivars: Efivars, probe: Probe) -> bool:
        """Whether the firmware refuses a name that UEFI does not define."""
        path = efivars.file("Hil", GLOBAL_VARIABLE_GUID)
        opened, written, _ = probe.steps(
            [
                do.Open("v", path, "O_WRONLY|O_CREAT"),
                do.Write("v", b"\7\0\0\0x"),
                do.Close("v"),
            ]
        )
        assert opened.ok
        if efivars.exists("Hil", GLOBAL_VARIABLE_GUID):
            efivars.delete("Hil", GLOBAL_VARIABLE_GUID)
        return written.errno == "EINVAL"

    @pytest.mark.cases(231, 232, 396, 397, 398)
    @pytest.mark.pain(24)
    @pytest.mark.cost(store_bytes=172)
    @pytest.mark.parametrize(
        ("name", "data", "written"),
        [
            pytest.param("BootNext", b"\1\0\0", recorded(7, "special-016[1]"), id="BootNext"),
            pytest.param("Timeout", b"\5\0\0\0\0", 9, id="Timeout"),
            pytest.param("OsIndications", b"\1", recorded(5, "special-024[1]"), id="OsIndications"),
            pytest.param("Boot12", b"junk", recorded(8, "special-022[1]"), id="Boot12"),
        ],
    )
    def test_a_wrong_size_or_name_is_judged_as_every_other(
        self, efivars: Efivars, probe: Probe, armed: bool, name: str, data: bytes, written: int
    ) -> None:
        """The kernel means to check these and never does (its length is one too many)."""
        path = efivars.file(name, GLOBAL_VARIABLE_GUID)
        outcomes = probe.steps(
            [
                do.Open("v", path, "O_WRONLY|O_CREAT"),
                do.Write("v", b"\7\0\0\0" + data),
                do.Close("v"),
            ]
        )
        if armed:
            assert outcomes[1].errno == "EINVAL"
        else:
            assert outcomes[1].value == written
            assert efivars.read(name, GLOBAL_VARIABLE_GUID).data == data


class TestRandomSeed:
    """The kernel feeds its own entropy through a variable that user space must not see."""

    @pytest.mark.cases(405)
    @pytest.mark.foreign("RandomSeed")
    def test_it_cannot_be_created(self, efivars: Efivars) -> None:
        with refused(errno.EPERM):
            efivars.write("RandomSeed", b"x", guid=RANDOM_SEED_GUID)
        assert not efivars.exists("RandomSeed", RANDOM_SEED_GUID)

    @pytest.mark.cases(406)
    def test_it_is_not_listed(self, efivars: Efivars) -> None:
        assert [name for name in efivars.names() if name.guid == RANDOM_SEED_GUID] == []


@pytest.mark.cases(225)
@pytest.mark.foreign("PlatformLang")
@pytest.mark.cost(store_bytes=92)
@in_stmm
def test_a_language_that_the_firmware_does_not_offer_is_stored(efivars: Efivars) -> None:
    """After boot the firmware converts nothing between Lang and PlatformLang."""
    efivars.write("PlatformLang", b"de-DE\0", guid=GLOBAL_VARIABLE_GUID, flags="O_WRONLY")
    raw = efivars.read_raw("PlatformLang", GLOBAL_VARIABLE_GUID)
    assert raw == recorded(b"\x07\x00\x00\x00\x64\x65\x2d\x44\x45\x00", "special-009.after")
    assert not efivars.exists("Lang", GLOBAL_VARIABLE_GUID)


MOR = "MemoryOverwriteRequestControl"
MOR_LOCK = "MemoryOverwriteRequestControlLock"


@pytest.mark.destructive
@pytest.mark.foreign(MOR, MOR_LOCK)
class TestMemoryOverwriteRequest:
    """TCG's request to clear memory at the next boot, and its lock. Neither variable can be
    deleted once it is there, hence only on a disposable board (stack 4.9). EFI_ACCESS_DENIED
    has no errno of its own in Linux: it is EINVAL (K6 efi.c, efi_status_to_err)."""

    @pytest.fixture(autouse=True)
    def _present(self, efivars: Efivars) -> None:
        efivars.overwrite(MOR, b"\0", guid=MEMORY_OVERWRITE_CONTROL_GUID)

    @pytest.mark.cases(227)
    @pytest.mark.cost(store_bytes=372)
    def test_one_byte_is_stored(self, efivars: Efivars) -> None:
        efivars.overwrite(MOR, b"\1", guid=MEMORY_OVERWRITE_CONTROL_GUID)
        assert efivars.read(MOR, MEMORY_OVERWRITE_CONTROL_GUID).data == b"\1"
        efivars.overwrite(MOR, b"\0", guid=MEMORY_OVERWRITE_CONTROL_GUID)

    @pytest.mark.cases(227)
    @pytest.mark.cost(store_bytes=124)
    @pytest.mark.parametrize(("data", "attributes"), [(b"\0\0", 0x7), (b"\1", 0x3), (b"\1", 0x47)])
    def test_another_size_or_other_attributes_are_refused(
        self, efivars: Efivars, data: bytes, attributes: int
    ) -> None:
        with refused(errno.EINVAL):
            efivars.overwrite(MOR, data, attributes, MEMORY_OVERWRITE_CONTROL_GUID)
        assert efivars.read(MOR, MEMORY_OVERWRITE_CONTROL_GUID).data == b"\0"

    @pytest.mark.cases(228)
    @pytest.mark.cost(store_bytes=256)
    def test_neither_can_be_deleted_or_both_can(self, efivars: Efivars) -> None:
        """EDK2 guards them with its policy engine; a StandaloneMM without one lets both go."""
        efivars.overwrite(MOR_LOCK, b"\0", guid=MEMORY_OVERWRITE_LOCK_GUID)
        control = _deleted(efivars, MOR, MEMORY_OVERWRITE_CONTROL_GUID)
        lock = _deleted(efivars, MOR_LOCK, MEMORY_OVERWRITE_LOCK_GUID)
        assert control == lock

    @pytest.mark.cases(229)
    @pytest.mark.consents("power_cycle")
    @pytest.mark.power
    @pytest.mark.cost(store_bytes=504)
    def test_a_lock_without_a_key_holds_until_the_next_boot(
        self, board: Board, efivars: Efivars
    ) -> None:
        efivars.overwrite(MOR_LOCK, b"\1", guid=MEMORY_OVERWRITE_LOCK_GUID)
        with refused(errno.EINVAL):
            efivars.overwrite(MOR, b"\1", guid=MEMORY_OVERWRITE_CONTROL_GUID)
        with refused(errno.EINVAL):
            efivars.overwrite(MOR_LOCK, b"\0", guid=MEMORY_OVERWRITE_LOCK_GUID)
        assert efivars.read(MOR, MEMORY_OVERWRITE_CONTROL_GUID).data == b"\0"
        board.reboot()
        board.efivars.overwrite(MOR, b"\1", guid=MEMORY_OVERWRITE_CONTROL_GUID)
        board.efivars.overwrite(MOR, b"\0", guid=MEMORY_OVERWRITE_CONTROL_GUID)

    @pytest.mark.cases(230)
    @pytest.mark.consents("power_cycle")
    @pytest.mark.power
    @pytest.mark.cost(store_bytes=900)
    def test_a_key_unlocks_what_it_locked_and_a_wrong_one_forfeits_it(
        self, board: Board, efivars: Efivars
    ) -> None:
        def lock(data: bytes) -> None:
            efivars.overwrite(MOR_LOCK, data, guid=MEMORY_OVERWRITE_LOCK_GUID)

        def value() -> bytes:
            return efivars.read(MOR_LOCK, MEMORY_OVERWRITE_LOCK_GUID).data

        key, wrong = b"hil-key1", b"hil-key2"
        lock(key)
        assert value() == b"\2"
        lock(key)
        assert value() == b"\0"
        lock(key)
        with refused(errno.EINVAL):
            lock(wrong)
        with refused(errno.EINVAL):
            lock(key)
        assert value() == b"\1"
        board.reboot()
        board.efivars.overwrite(MOR, b"\1", guid=MEMORY_OVERWRITE_CONTROL_GUID)
        board.efivars.overwrite(MOR, b"\0", guid=MEMORY_OVERWRITE_CONTROL_GUID)


def _deleted(efivars: Efivars, name: str, guid: UUID) -> bool:
    """Whether a variable could be deleted; EINVAL is what a refusal looks like."""
    try:
        efivars.delete(name, guid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return not efivars.exists(name, guid)

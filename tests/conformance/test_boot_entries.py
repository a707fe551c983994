"""Boot entries as people make them: with efibootmgr, mokutil and plain files, over a reboot, beside
the firmware's own options.

Recorded rows: special-010 to -015, -051 (efibootmgr), log-reboot-b2. Whatever a test changes here
is put back after it.
"""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.errors import MissingCapability
from harness.expectations import recorded
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.formats.load_option import ACTIVE, load_option
from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Result, Shell

pytestmark = [
    pytest.mark.needs("writable"),
    pytest.mark.consents("write_rpmb", "foreign_variables"),
]

LOADER_GUID = UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
"""Vendor of systemd-boot's variables."""
SHIM_GUID = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
"""Vendor of shim's variables (MOK)."""
AUTO_CREATED = UUID("8108ac4e-9f11-4d59-850e-e21a522c59b2").bytes_le
"""Ends the boot options that U-Boot makes by itself for each disk."""

LABEL = "hil"
LOADER = r"\hil.efi"


@dataclass(frozen=True)
class Entries:
    """Boot#### and BootOrder, read as files."""

    efivars: Efivars

    def numbers(self) -> list[str]:
        """The #### of every Boot####, sorted."""
        names = [n.name for n in self.efivars.names() if n.guid == GLOBAL_VARIABLE_GUID]
        return sorted(name[4:] for name in names if re.fullmatch("Boot[0-9A-F]{4}", name))

    def option(self, number: str) -> bytes:
        variable = self.efivars.read(f"Boot{number}", GLOBAL_VARIABLE_GUID)
        assert variable.attributes == 7
        return variable.data

    def all(self) -> dict[str, bytes]:
        return {number: self.option(number) for number in self.numbers()}

    def order(self) -> list[str]:
        """BootOrder; empty where there is none."""
        if not self.efivars.exists("BootOrder", GLOBAL_VARIABLE_GUID):
            return []
        data = self.efivars.read("BootOrder", GLOBAL_VARIABLE_GUID).data
        return [
            f"{int.from_bytes(data[at : at + 2], 'little'):04X}" for at in range(0, len(data), 2)
        ]

    def set_order(self, numbers: list[str]) -> None:
        data = b"".join(int(number, 16).to_bytes(2, "little") for number in numbers)
        self.efivars.write("BootOrder", data, guid=GLOBAL_VARIABLE_GUID)


@pytest.fixture
def entries(efivars: Efivars) -> Entries:
    return Entries(efivars)


@pytest.fixture
def listed(efivars: Efivars) -> None:
    """The listing is StandaloneMM's: where the firmware keeps its entries elsewhere, a mount as old
    as the boot shows those, and they read as empty."""
    if efivars.exists("BootOrder", GLOBAL_VARIABLE_GUID) and not efivars.read_raw(
        "BootOrder", GLOBAL_VARIABLE_GUID
    ):
        efivars.unmount()
        efivars.mount()


@pytest.fixture
def two(entries: Entries, listed: None) -> list[str]:
    """The numbers of two options that are in the order; skips on a board with fewer."""
    order = entries.order()
    if len(order) < 2:
        raise MissingCapability(
            f"the boot order has {len(order)} entries, the test needs two",
            remedy="make a second one with efibootmgr -c",
        )
    return order


@pytest.mark.foreign("BootOrder", "Boot[0-9A-F]*", "BootNext", "Timeout")
@pytest.mark.needs("efibootmgr")
@pytest.mark.usefixtures("listed")
@pytest.mark.cases(435)
class TestEfibootmgr:
    @pytest.fixture
    def disk(self, shell: Shell) -> str:
        """A disk with a partition that efibootmgr can name; the first that is an eMMC."""
        found = shell.run("ls -d /sys/class/block/mmcblk*p1 2>/dev/null | head -n 1").text
        if not found:
            raise MissingCapability(
                "no eMMC with a first partition", remedy="partition the board's eMMC"
            )
        return "/dev/" + found.rsplit("/", 1)[1].removesuffix("p1")

    @pytest.fixture
    def created(self, shell: Shell, entries: Entries, disk: str) -> str:
        """The number of an entry that efibootmgr -c made."""
        before = entries.numbers()
        efibootmgr(shell, f"-c -d {disk} -p 1 -L {LABEL} -l {shlex.quote(LOADER)}")
        (number,) = set(entries.numbers()) - set(before)
        return number

    def test_it_lists_every_option_and_the_order(self, shell: Shell, entries: Entries) -> None:
        lines = efibootmgr(shell, "").text.splitlines()
        listed = [line[4:8] for line in lines if re.match("Boot[0-9A-F]{4}[* ]", line)]
        assert listed == entries.numbers()
        shown = [line.split()[1] for line in lines if line.startswith("BootOrder: ")]
        assert ",".join(shown) == ",".join(entries.order())

    @pytest.mark.cost(store_bytes=320)
    def test_a_new_entry_is_a_load_option_and_first_in_the_order(
        self, shell: Shell, entries: Entries, disk: str
    ) -> None:
        # special-051
        order, numbers = entries.order(), entries.numbers()
        efibootmgr(shell, f"-c -d {disk} -p 1 -L {LABEL} -l {shlex.quote(LOADER)}")
        (number,) = set(entries.numbers()) - set(numbers)
        assert entries.order() == [number, *order]
        option = entries.option(number)
        assert option[:4] == ACTIVE.to_bytes(4, "little")
        assert option[6:14] == "hil\0".encode("utf-16-le")
        shown = efibootmgr(shell, "-v").text
        assert re.search(
            rf"^Boot{number}\* hil\tHD\(1,GPT,[-0-9a-f]{{36}},0x\w+,0x\w+\)/File\(\\hil.efi\)",
            shown,
            re.MULTILINE,
        )

    @pytest.mark.cost(store_bytes=200)
    def test_an_entry_can_be_made_without_touching_the_order(
        self, shell: Shell, entries: Entries, disk: str
    ) -> None:
        order = entries.order()
        efibootmgr(shell, f"-C -d {disk} -p 1 -L {LABEL} -l {shlex.quote(LOADER)}")
        assert entries.order() == order

    @pytest.mark.cost(store_bytes=420)
    def test_deleting_an_entry_takes_it_out_of_the_order(
        self, shell: Shell, entries: Entries, created: str
    ) -> None:
        # special-051
        rest = entries.order()[1:]
        options = {number: data for number, data in entries.all().items() if number != created}
        efibootmgr(shell, f"-b {created} -B")
        assert entries.order() == rest
        assert entries.all() == options

    @pytest.mark.cost(store_bytes=680)
    def test_an_entry_is_deactivated_and_activated_by_one_bit(
        self, shell: Shell, entries: Entries, created: str
    ) -> None:
        active = entries.option(created)
        efibootmgr(shell, f"-b {created} -A")
        inactive = entries.option(created)
        efibootmgr(shell, f"-b {created} -a")
        assert (active[0], inactive[0]) == (ACTIVE, 0)
        assert inactive[1:] == active[1:]
        assert entries.option(created) == active

    @pytest.mark.cost(store_bytes=100)
    def test_the_order_is_set(self, shell: Shell, entries: Entries, two: list[str]) -> None:
        wanted = list(reversed(two))
        efibootmgr(shell, f"-o {','.join(wanted)}")
        assert entries.order() == wanted

    def test_an_order_with_an_unknown_entry_is_refused(
        self, shell: Shell, entries: Entries
    ) -> None:
        before = entries.order()
        assert not shell.run_isolated("efibootmgr -o EEEE").ok
        assert entries.order() == before

    @pytest.mark.cost(store_bytes=320)
    def test_the_order_is_deleted(self, shell: Shell, entries: Entries, created: str) -> None:
        efibootmgr(shell, "-O")
        assert not entries.efivars.exists("BootOrder", GLOBAL_VARIABLE_GUID)

    @pytest.mark.cost(store_bytes=80)
    def test_the_next_boot_is_chosen_once_and_taken_back(
        self, shell: Shell, efivars: Efivars, two: list[str]
    ) -> None:
        # special-051
        assert f"BootNext: {two[1]}" in efibootmgr(shell, f"-n {two[1]}").text
        chosen = efivars.read("BootNext", GLOBAL_VARIABLE_GUID)
        assert chosen.data == int(two[1], 16).to_bytes(2, "little")
        assert "BootNext" not in efibootmgr(shell, "-N").text
        assert not efivars.exists("BootNext", GLOBAL_VARIABLE_GUID)

    @pytest.mark.cost(store_bytes=80)
    def test_the_timeout_is_set_and_deleted(self, shell: Shell, efivars: Efivars) -> None:
        # special-051
        assert "Timeout: 3 seconds" in efibootmgr(shell, "-t 3").text
        assert efivars.read("Timeout", GLOBAL_VARIABLE_GUID).data == b"\3\0"
        efibootmgr(shell, "-T")
        assert not efivars.exists("Timeout", GLOBAL_VARIABLE_GUID)

    @pytest.mark.needs("exit_boot_services_told")
    @pytest.mark.consents("power_cycle")
    @pytest.mark.power
    @pytest.mark.cost(store_bytes=520)
    def test_an_entry_and_the_order_outlive_a_reboot_beside_the_firmware_s_own(
        self, board: Board, shell: Shell, entries: Entries, created: str
    ) -> None:
        wanted = [*entries.order()[1:], created]
        efibootmgr(shell, f"-o {','.join(wanted)} -t 2")
        options = entries.all()
        board.reboot()
        after = Entries(board.efivars)
        assert after.all() == options
        assert after.order() == wanted
        assert board.efivars.read("Timeout", GLOBAL_VARIABLE_GUID).data == b"\2\0"


@pytest.mark.foreign("BootOrder", "Boot[0-9A-F]*", "BootNext", "Timeout", "OsIndications")
@pytest.mark.usefixtures("listed")
class TestByFiles:
    """What efibootmgr does, without it: busybox-only boards have nothing else."""

    @pytest.mark.cost(store_bytes=100)
    def test_the_order_is_overwritten_without_clearing_any_flag(
        self, efivars: Efivars, entries: Entries, probe: Probe, two: list[str]
    ) -> None:
        content = b"\7\0\0\0" + b"".join(
            int(number, 16).to_bytes(2, "little") for number in (two[1], two[0])
        )
        path = efivars.file("BootOrder", GLOBAL_VARIABLE_GUID)
        _, written, _ = probe.steps(
            [do.Open("v", path, "O_WRONLY|O_CREAT"), do.Write("v", content), do.Close("v")]
        )
        succeeded(written)
        assert written.value == recorded(8, "special-012[1]")
        assert entries.order() == [two[1], two[0]]

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            pytest.param("BootNext", b"\1\0", marks=pytest.mark.cost(store_bytes=80)),
            pytest.param("Timeout", b"\5\0", marks=pytest.mark.cost(store_bytes=80)),
            pytest.param("OsIndications", bytes(8), marks=pytest.mark.cost(store_bytes=96)),
        ],
    )
    def test_a_setting_is_made_and_deleted(self, efivars: Efivars, name: str, data: bytes) -> None:
        # special-010, special-015
        efivars.overwrite(name, data, guid=GLOBAL_VARIABLE_GUID)
        variable = efivars.read(name, GLOBAL_VARIABLE_GUID)
        assert (variable.attributes, variable.data) == (7, data)
        efivars.unlink(name, GLOBAL_VARIABLE_GUID)
        assert not efivars.exists(name, GLOBAL_VARIABLE_GUID)

    @pytest.mark.cost(store_bytes=184)
    def test_an_option_is_changed_in_one_write(self, efivars: Efivars) -> None:
        efivars.write("BootEEEE", load_option("a"), guid=GLOBAL_VARIABLE_GUID)
        efivars.write("BootEEEE", load_option("b"), guid=GLOBAL_VARIABLE_GUID, flags="O_WRONLY")
        assert efivars.read("BootEEEE", GLOBAL_VARIABLE_GUID).data == load_option("b")

    @pytest.mark.cases(416)
    @pytest.mark.needs("exit_boot_services_told")
    @pytest.mark.consents("power_cycle")
    @pytest.mark.power
    @pytest.mark.cost(store_bytes=440)
    def test_the_firmware_makes_its_own_option_again(self, board: Board, entries: Entries) -> None:
        """U-Boot has one for each disk; it writes to the RPMB before any supplicant exists."""
        own = [n for n, data in entries.all().items() if data.endswith(AUTO_CREATED)]
        if not own:
            raise MissingCapability(
                "no boot option on this board was made by U-Boot",
                remedy="use a U-Boot with CONFIG_BOOTMETH_EFI_BOOTMGR",
            )
        option, others = entries.option(own[0]), entries.all()
        del others[own[0]]
        board.efivars.unlink(f"Boot{own[0]}", GLOBAL_VARIABLE_GUID)
        entries.set_order([number for number in entries.order() if number != own[0]])
        board.reboot()
        after = Entries(board.efivars)
        found = after.all()
        (number,) = set(found) - set(others)
        assert found[number] == option
        assert {n: data for n, data in found.items() if n != number} == others
        assert number in after.order()


@pytest.mark.foreign("LoaderEntryDefault", "LoaderConfigTimeout")
@pytest.mark.cases(441, 442)
@pytest.mark.pain(13)
class TestLoaderVariables:
    """systemd-boot's settings, as bootctl writes them."""

    NAME = "LoaderEntryDefault"
    VALUE = "hil\0".encode("utf-16-le")

    @pytest.mark.cost(store_bytes=108)
    def test_a_default_is_set_read_and_removed(self, efivars: Efivars) -> None:
        efivars.overwrite(self.NAME, self.VALUE, guid=LOADER_GUID)
        assert efivars.read(self.NAME, LOADER_GUID).data == self.VALUE
        efivars.delete(self.NAME, LOADER_GUID)
        assert not efivars.exists(self.NAME, LOADER_GUID)

    @pytest.mark.cost(store_bytes=108)
    def test_one_that_an_interrupted_tool_left_empty_is_written_all_the_same(
        self, board: Board, efivars: Efivars, probe: Probe
    ) -> None:
        path = efivars.file(self.NAME, LOADER_GUID)
        probe.steps([do.Open("v", path, "O_WRONLY|O_CREAT"), do.Close("v")])
        stays = board.capabilities.has("uncommitted_files_stay")
        assert efivars.exists(self.NAME, LOADER_GUID) == stays
        efivars.overwrite(self.NAME, self.VALUE, guid=LOADER_GUID)
        assert efivars.read(self.NAME, LOADER_GUID).data == self.VALUE

    def test_removing_one_that_was_never_written_is_no_error(
        self, board: Board, efivars: Efivars, probe: Probe
    ) -> None:
        path = efivars.file(self.NAME, LOADER_GUID)
        probe.steps([do.Open("v", path, "O_WRONLY|O_CREAT"), do.Close("v")])
        if board.capabilities.has("uncommitted_files_stay"):
            efivars.delete(self.NAME, LOADER_GUID)
        assert not efivars.exists(self.NAME, LOADER_GUID)


@pytest.mark.foreign("Mok*", "SHIM_*")
@pytest.mark.needs("mokutil")
class TestMokutil:
    """Machine owner keys: a request that shim finds at the next boot."""

    FILES = "/tmp/hil-mok"

    @pytest.fixture
    def certificate(self, shell: Shell) -> Iterator[str]:
        """A certificate as DER on the board, and beside it the hash of a password."""
        shell.run(f"mkdir -p {self.FILES}").check()
        shell.write_file(f"{self.FILES}/hil.der", _certificate())
        shell.run(f"mokutil --generate-hash=hil > {self.FILES}/hash").check()
        yield f"{self.FILES}/hil.der"
        shell.run(f"rm -rf {self.FILES}")

    @pytest.mark.cases(436)
    @pytest.mark.cost(store_bytes=700)
    def test_a_key_is_asked_for_listed_and_taken_back(
        self, shell: Shell, efivars: Efivars, certificate: str
    ) -> None:
        command = f"mokutil --import {certificate} --hash-file {self.FILES}/hash"
        shell.run_isolated(command, timeout=30).check()
        request = efivars.read("MokNew", SHIM_GUID)
        assert request.attributes == 7
        assert request.data.endswith(_certificate())
        assert efivars.read("MokAuth", SHIM_GUID).attributes == 7
        assert "CN=hil" in shell.run("mokutil --list-new").text
        shell.run("mokutil --revoke-import").check()
        assert not efivars.exists("MokNew", SHIM_GUID)
        assert not efivars.exists("MokAuth", SHIM_GUID)

    @pytest.mark.cost(store_bytes=88)
    def test_a_timeout_is_set(self, shell: Shell, efivars: Efivars) -> None:
        shell.run("mokutil --timeout 5").check()
        assert efivars.read("MokTimeout", SHIM_GUID).data == (5).to_bytes(4, "little")

    def test_it_tells_the_secure_boot_state(self, shell: Shell, efivars: Efivars) -> None:
        shown = shell.run("mokutil --sb-state").text
        enabled = efivars.read("SecureBoot", GLOBAL_VARIABLE_GUID).data == b"\1"
        setup = efivars.read("SetupMode", GLOBAL_VARIABLE_GUID).data == b"\1"
        assert ("SecureBoot enabled" in shown) == enabled
        assert ("Setup Mode" in shown) == setup


def efibootmgr(shell: Shell, arguments: str) -> Result:
    """Run it; it must not fail."""
    result = shell.run(f"efibootmgr {arguments}")
    assert result.ok, f"efibootmgr {arguments}: {result.error_text}"
    return result


@cache
def _certificate() -> bytes:
    """A small self-signed certificate, the same at each call of a run."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hil")])
    begin = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)

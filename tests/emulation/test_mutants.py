"""Mutants replace what the model has, boot, and leave no trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from emulation.__main__ import CANNOT_RUN, main
from emulation.mutants.mutant import Patches, StaleMutant
from emulation.mutants.registry import LAYERS, MUTANTS, installed
from emulation.mutants.table import document
from emulation.options import OptionError
from tests.emulation.conftest import EmulatedBoard
from tests.emulation.rig import MakeRig, errno_of, name

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_boots(mutant: str, make_rig: MakeRig, used_flash: Path, tmp_path: Path) -> None:
    with installed(mutant):
        rig = make_rig()
        shutil.copy(used_flash, tmp_path)
        rig.boot()
        assert rig.machine.running.efivarfs.mounted
        rig.machine.close()


@pytest.mark.parametrize("mutant", [m.name for m in LAYERS["userland"]])
def test_it_boots_with_its_userland(mutant: str, boot: Callable[..., EmulatedBoard]) -> None:
    board = boot(f"mutant={mutant}")
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    assert board.ok("ls /sys/firmware/efi/efivars")


def test_it_is_gone_after_the_block(make_rig: MakeRig) -> None:
    rig = make_rig()
    with installed("maximum_too_large"):
        rig.boot()
        rig.write(name("A"), bytes(8132 - 4 + 4))
    assert errno_of(lambda: rig.write(name("B"), bytes(8132 - 4 + 4))) is not None


def test_all_patches_are_taken_back() -> None:
    import emulation.linux.efivarfs as module
    from emulation.linux.efivarfs import Efivarfs

    before = {**vars(Efivarfs)}, {**vars(module)}
    for mutant in MUTANTS:
        with installed(mutant):
            pass
    assert ({**vars(Efivarfs)}, {**vars(module)}) == before


class TestPatches:
    module = ModuleType("model")

    def test_what_is_not_there_cannot_be_replaced(self) -> None:
        with pytest.raises(StaleMutant, match="model has no gone"):
            Patches().replace(self.module, "gone", 1)

    def test_what_is_inherited_cannot_be_wrapped(self) -> None:
        class Base:
            def method(self) -> None: ...

        class Derived(Base): ...

        with pytest.raises(StaleMutant, match="Derived has no method"):
            Patches().wrap(Derived, "method", lambda *_: None)

    def test_a_value_is_no_function(self) -> None:
        class Owner:
            value = 1

        with pytest.raises(StaleMutant, match="no function"):
            Patches().wrap(Owner, "value", lambda *_: None)

    def test_the_same_value_breaks_nothing(self) -> None:
        class Owner:
            value = 1

        with pytest.raises(StaleMutant, match="already"):
            Patches().replace(Owner, "value", 1)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="no such mutant; did you mean erofs_is_eperm"):
        installed("erofs_is_eprm")


def test_help_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(tmp_path), "-o", "mutant=help"]) == CANNOT_RUN
    said = capsys.readouterr().err
    assert said.startswith("emulation: mutant=help: no such mutant")
    assert all(mutant in said for mutant in MUTANTS)


def test_there_are_enough_in_every_layer() -> None:
    assert len(MUTANTS) >= 55
    assert min(len(members) for members in LAYERS.values()) >= 5


def test_no_two_have_one_name() -> None:
    assert len(MUTANTS) == sum(len(members) for members in LAYERS.values())


def test_the_document_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "mutants.md").read_text() == document()


def test_the_healthy_emulator_does_not_know_them() -> None:
    knowing = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "emulation").rglob("*.py")
        if "mutant" in path.read_text() and path.parent.name != "mutants"
    }
    assert knowing == {"emulation/options.py", "emulation/__main__.py"}

"""U-Boot, broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from emulation.mutants.registry import Original, Patches, Registry
from emulation.uboot.boot import Uboot
from emulation.uboot.variables import StmmVariables, Variable
from harness.formats.efi import EfiStatus
from harness.formats.mm import VariableFunction

mutants: Final = Registry("U-Boot")


@mutants("SecureBoot stays 0 with a platform key enrolled", "secure_boot")
def secure_boot_stays_off(patches: Patches) -> None:
    def set_variable(original: Original, self: Uboot, name: str, data: bytes, **kw: Any) -> None:
        original(self, name, b"\0" if name == "SecureBoot" else data, **kw)

    patches.wrap(Uboot, "_set", set_variable)


@mutants("every boot adds the boot options once more", "boot_entries", "persist")
def boot_options_multiply(patches: Patches) -> None:
    def is_automatic(original: Original, variable: Variable) -> bool:
        return False

    patches.wrap(Uboot, "_is_automatic", is_automatic)


@mutants("every boot drops the user's boot options", "boot_entries", "persist")
def boot_order_reset(patches: Patches) -> None:
    def update(original: Original, self: Uboot) -> None:
        original(self)
        self._set_order(self._order()[:4])

    patches.wrap(Uboot, "_update_boot_options", update)


@mutants("StandaloneMM is not told ExitBootServices", "attributes")
def exit_boot_services_not_told(patches: Patches) -> None:
    def communicate(
        original: Original, self: StmmVariables, function: VariableFunction, payload: bytes
    ) -> tuple[EfiStatus, bytes]:
        if function == VariableFunction.EXIT_BOOT_SERVICE:
            return EfiStatus.SUCCESS, payload
        answer: tuple[EfiStatus, bytes] = original(self, function, payload)
        return answer

    patches.wrap(StmmVariables, "_communicate", communicate)


@mutants("the runtime copy of the variables has no attributes", "takeover")
def runtime_copy_without_attributes(patches: Patches) -> None:
    def exit_boot_services(original: Original, self: StmmVariables) -> list[Variable]:
        return [replace(variable, attributes=0) for variable in original(self)]

    patches.wrap(StmmVariables, "exit_boot_services", exit_boot_services)


@mutants("the runtime copy of the variables is empty", "takeover")
def runtime_copy_empty(patches: Patches) -> None:
    def exit_boot_services(original: Original, self: StmmVariables) -> list[Variable]:
        original(self)
        return []

    patches.wrap(StmmVariables, "exit_boot_services", exit_boot_services)

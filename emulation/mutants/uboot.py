"""U-Boot, broken."""

from dataclasses import replace
from typing import Any, Final

from emulation.mutants.mutant import Mutant, Original
from emulation.uboot.boot import Uboot
from emulation.uboot.variables import StmmVariables, Variable
from harness.formats.efi import EfiStatus
from harness.formats.mm import VariableFunction


def secure_boot_stays_off(
    original: Original, self: Uboot, name: str, data: bytes, **kw: Any
) -> None:
    """SecureBoot stays 0 with a platform key enrolled"""
    original(self, name, b"\0" if name == "SecureBoot" else data, **kw)


def boot_options_multiply(original: Original, variable: Variable) -> bool:
    """every boot adds the boot options once more"""
    return False


def boot_order_reset(original: Original, self: Uboot) -> None:
    """every boot drops the user's boot options"""
    original(self)
    self._set_order(self._order()[:4])


def exit_boot_services_not_told(
    original: Original, self: StmmVariables, function: VariableFunction, payload: bytes
) -> tuple[EfiStatus, bytes]:
    """StandaloneMM is not told ExitBootServices"""
    if function == VariableFunction.EXIT_BOOT_SERVICE:
        return EfiStatus.SUCCESS, payload
    answer: tuple[EfiStatus, bytes] = original(self, function, payload)
    return answer


def runtime_copy_without_attributes(original: Original, self: StmmVariables) -> list[Variable]:
    """the runtime copy of the variables has no attributes"""
    return [replace(variable, attributes=0) for variable in original(self)]


def runtime_copy_empty(original: Original, self: StmmVariables) -> list[Variable]:
    """the runtime copy of the variables is empty"""
    original(self)
    return []


MUTANTS: Final = (
    Mutant(secure_boot_stays_off, ("secure_boot",), Uboot, "_set"),
    Mutant(boot_options_multiply, ("boot_entries", "persist"), Uboot, "_is_automatic"),
    Mutant(boot_order_reset, ("boot_entries", "persist"), Uboot, "_update_boot_options"),
    Mutant(exit_boot_services_not_told, ("attributes",), StmmVariables, "_communicate"),
    Mutant(runtime_copy_without_attributes, ("takeover",), StmmVariables, "exit_boot_services"),
    Mutant(runtime_copy_empty, ("takeover",), StmmVariables, "exit_boot_services"),
)

"""All mutants, and how one is put in."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Final

from emulation.mutants import emmc, linux, optee, stmm, uboot, userland
from emulation.mutants.mutant import Mutant, Patches
from emulation.options import OptionError, nearest

LAYERS: Final[Mapping[str, tuple[Mutant, ...]]] = MappingProxyType(
    {
        "eMMC": emmc.MUTANTS,
        "OP-TEE": optee.MUTANTS,
        "StandaloneMM": stmm.MUTANTS,
        "U-Boot": uboot.MUTANTS,
        "Linux": linux.MUTANTS,
        "userland": userland.MUTANTS,
    }
)
"""From the flash upwards."""

MUTANTS: Final[Mapping[str, Mutant]] = MappingProxyType(
    {mutant.name: mutant for members in LAYERS.values() for mutant in members}
)


def installed(name: str) -> AbstractContextManager[None]:
    """Break the model of this process inside the block.

    Raises :class:`OptionError` naming the nearest mutant for an unknown name, and inside
    :class:`emulation.mutants.mutant.StaleMutant` when the model no longer has what the mutant
    replaces.
    """
    if name not in MUTANTS:
        raise OptionError(f"mutant={name}: no such mutant{nearest(name, list(MUTANTS))}")
    return Patches().applied(MUTANTS[name].install)

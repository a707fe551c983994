"""Sabotage: boards with one thing broken each, to prove that the conformance tests notice.

A mutant is the healthy emulator with one method or value of its model replaced in the supervisor
process before the board is made; the healthy code knows nothing of it.  ``python -m emulation -o
mutant=NAME`` runs one, docs/mutants.md lists them, ``python -m tests.mutants`` tries the tests on
all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import Final

from emulation.mutants.registry import Mutant, Patches, Registry

_LAYERS: Final = ("emmc", "optee", "stmm", "uboot", "linux", "userland")


@cache
def mutants() -> Mapping[str, Mutant]:
    """All mutants by name, from the flash upwards."""
    found: dict[str, Mutant] = {}
    for layer in _LAYERS:
        registry: Registry = import_module(f"{__name__}.{layer}").mutants
        for mutant in registry.mutants:
            if mutant.name in found:
                raise ValueError(f"two mutants are called {mutant.name}")
            found[mutant.name] = mutant
    return found


def installed(name: str) -> AbstractContextManager[None]:
    """Break the model of this process inside the block; the empty name breaks nothing.

    Raises KeyError for an unknown name, :class:`emulation.mutants.registry.StaleMutant` when the
    model no longer has what the mutant replaces.
    """
    return Patches().applied(mutants()[name].install) if name else nullcontext()

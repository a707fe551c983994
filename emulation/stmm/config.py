"""How the StandaloneMM image was built."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

SINGLE_WRITE_RELEASE: Final = 202402
"""First edk2 release that writes a new variable in one piece (commit 88580a79d4)."""
FFA_ERROR_RELEASE: Final = 202502
"""First edk2 release whose entry point answers a message it refuses with FFA_ERROR
(ArmPkg/Library/ArmStandaloneMmCoreEntryPoint)."""


@dataclass(frozen=True, slots=True)
class StmmConfig:
    """Build-time settings (stack 4.4); sizes in bytes.

    ``release`` is the edk2 stable tag as a number, yyyymm. ``variable_policy`` is whether
    VarCheckPolicyLib is linked: without it the policy engine never starts, so locks are refused
    and authenticated variables can be deleted by anybody (stack 11). ``storage_codes`` and
    ``storage_code_bits`` say how OP-TEE's storage codes are read: FF-A numbers compared as
    32-bit values (edk2-platforms since October 2024), or the older SPM numbers, which on AArch64
    were compared as 64-bit values and so never matched (stack 3).
    """

    release: int = 202502
    variable_policy: bool = False
    require_self_signed_pk: bool = False
    storage_codes: Literal["ffa", "spm"] = "ffa"
    storage_code_bits: Literal[32, 64] = 32
    max_variable_size: int = 0x2000
    max_auth_variable_size: int = 0x2800
    volatile_store_size: int = 0x4000
    max_hardware_error_size: int = 0x8000
    hardware_error_storage: int = 0

    @property
    def single_write(self) -> bool:
        """Whether header, name and data of a new variable are written at once."""
        return self.release >= SINGLE_WRITE_RELEASE

    @property
    def refuses_by_ffa_error(self) -> bool:
        """Whether a message that is out of bounds is answered with FFA_ERROR, not with a code."""
        return self.release >= FFA_ERROR_RELEASE

    @property
    def max_payload(self) -> int:
        """Answer of GET_PAYLOAD_SIZE: the largest payload after the two headers."""
        return max(self.max_variable_size, self.max_auth_variable_size) + 48 - 60


CONFIGS: Final[Mapping[str, StmmConfig]] = MappingProxyType(
    {
        "4.10": StmmConfig(),
        # Both sides of the storage codes changed in 2024, and had to change together.
        "4.1": StmmConfig(release=202311, storage_codes="spm", storage_code_bits=64),
    }
)
"""The build that was current with an OP-TEE release."""

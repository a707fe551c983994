"""Known pitfalls of this stack that several steps may meet: the cause, and what to do."""

from typing import Final

from harness.check.target import Target

RPMB_EMU: Final = (
    "tee-supplicant is a build with RPMB_EMU (the default of its CMake files): it keeps an RPMB in "
    "its own memory, and the eMMC is never written"
)
RPMB_EMU_REMEDY: Final = "build optee_client with -DRPMB_EMU=0 (make: RPMB_EMU=0)"

WRONG_KEY: Final = (
    "wrong key: the RPMB has another key than OP-TEE uses, so that OP-TEE can neither read nor "
    'write it ("Verify key failed")'
)
WRONG_KEY_REMEDY: Final = (
    "watch the secure world's console while it boots (E/TC lines); a key cannot be changed: give "
    "OP-TEE what the key was made from (test key, HUK, CID), or use another eMMC"
)

NO_KEY: Final = "the RPMB has no authentication key, and this OP-TEE programs none"
NO_KEY_REMEDY: Final = (
    "use an OP-TEE with CFG_RPMB_WRITE_KEY for the first boot, or program the key; it is for ever"
)


def no_node(target: Target) -> tuple[str, str]:
    """Why a device that the kernel has is not below /dev, and what to do."""
    container = target.word("container")
    if container:
        return (
            f"the login leads into a container ({container}), which was not given the node",
            "log in to the board itself, or give the container its devices (--device)",
        )
    return "the kernel has the device and nobody made its node", "mount devtmpfs, or let udev run"

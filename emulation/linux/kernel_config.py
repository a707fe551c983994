"""What the board's kernel was built with: the options that this stack depends on.

Source: K6 drivers/tee/Kconfig, drivers/firmware/efi/Kconfig, init/Kconfig.
"""

from emulation.options import BoardOptions


def kernel_config(options: BoardOptions) -> str:
    """The text of /proc/config.gz, shortened."""
    values = {
        "IKCONFIG": "y",
        "IKCONFIG_PROC": "y",
        "PREEMPT_RT": "y" if options.preempt_rt else "",
        "MODULES": "y",
        "MMC_BLOCK": "y",
        "RPMB": "y",
        "TEE": "y",
        "OPTEE": "y",
        "EFI": "y",
        "EFI_STUB": "y",
        # Its default is that of PREEMPT_RT: firmware may switch interrupts off for long.
        "EFI_DISABLE_RUNTIME": "y" if options.preempt_rt else "",
        "EFI_VARS_PSTORE": "m",
        "TEE_STMM_EFI": {"builtin": "y", "absent": ""}.get(options.driver, "m"),
        "EFIVAR_FS": "m",
    }
    lines = (
        f"CONFIG_{name}={value}" if value else f"# CONFIG_{name} is not set"
        for name, value in values.items()
    )
    return "\n".join(lines) + "\n"

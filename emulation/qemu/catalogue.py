"""The pieces of the stack, and the configurations made of them."""

from dataclasses import dataclass
from pathlib import Path

from emulation.qemu.pieces import Piece, Script, Unpack

_HERE = Path(__file__).parent

_FLASH_DRIVER = _HERE / "flash_driver"
_QUERY_PATCH = _HERE / "u-boot-query.patch"


@dataclass(frozen=True)
class Configuration:
    """One of the boards of the record (tests/truth/README.md)."""

    name: str
    u_boot: str
    """Which U-Boot: ``mm`` and ``mm-query`` keep variables in StandaloneMM, ``file`` in a file."""
    routing: str
    """Who takes RPMB frames from OP-TEE to the eMMC: ``supplicant`` or ``kernel``."""
    optee: str = ""
    """Which OP-TEE, if not that of the routing; ``own-key`` has no test key and a HUK."""


CONFIGURATIONS = (
    Configuration("mm-query", "mm-query", "supplicant"),
    Configuration("mm", "mm", "supplicant"),
    Configuration("file", "file", "supplicant"),
    Configuration("mm-kernel-rpmb", "mm", "kernel"),
    Configuration("mm-own-key", "mm-query", "supplicant", "own-key"),
)

OWN_KEY_HUK = bytes(range(0x11, 0x21))
"""The hardware unique key of ``mm-own-key``: known to all, so no board may have it."""

# What maintainer scripts would have done in the tree of tools.
_TOOLS_CONFIGURED = """
ln -sf gcc "$OUT/usr/bin/cc"
ln -sf gawk "$OUT/usr/bin/awk"
mkdir -p "$OUT/etc"
echo 'root:x:0:0:root:/work:/bin/sh' > "$OUT/etc/passwd"
echo 'root:x:0:' > "$OUT/etc/group"
"""

# A source package without its .dsc, which some mirrors lack: the two archives are all there is.
_SOURCE = """
rm -rf source debian
mkdir source
tar xf /packages/*.orig.tar.* -C source --strip-components=1
tar xf /packages/*.debian.tar.*
grep -v '^#' debian/patches/series | while read -r patch; do
    patch -s -p1 -d source < "debian/patches/$patch"
done
"""

_LINUX_UNPACK = """
rm -rf linux-source-* deb
mkdir deb
(cd deb && ar x /packages/linux-source-*.deb && tar xf data.tar.*)
tar xf deb/usr/src/linux-source-*.tar.xz
rm -rf deb
"""

# One tree for both kernels: the second differs in few files.
_LINUX_COMPILE = """
export ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
export KBUILD_BUILD_USER=stmm KBUILD_BUILD_HOST=hil
cp /own/linux.config fragment
echo CONFIG_RPMB=%(rpmb)s >> fragment
make -C linux-source-* O=/work/o KCONFIG_ALLCONFIG=/work/fragment allnoconfig
grep '^CONFIG_[A-Z0-9_]*=[ym]' fragment | while read -r line; do
    grep -qxF "$line" o/.config || { echo "the kernel has no $line"; exit 1; }
done
make -C o -j"$JOBS" Image modules
rm -rf /out/%(routing)s
mkdir -p /out/%(routing)s
make -C o INSTALL_MOD_PATH=/out/%(routing)s INSTALL_MOD_STRIP=1 modules_install
rm -f /out/%(routing)s/lib/modules/*/build
cp o/arch/arm64/boot/Image o/.config /out/%(routing)s/
"""

# $1 the name, $2 what chooses where variables are kept, the rest patches
_U_BOOT_COMPILE = """
export CROSS_COMPILE=aarch64-linux-gnu-
%(prepare)s
cp /own/u-boot.config fragment
echo '%(store)s' >> fragment
make -C source O=/work/o qemu_arm64_defconfig
(cd source && sh scripts/kconfig/merge_config.sh -m -O /work/o /work/o/.config /work/fragment)
make -C source O=/work/o olddefconfig
grep -v '^#' fragment | while read -r line; do
    grep -qxF "$line" o/.config || { echo "U-Boot has no $line"; exit 1; }
done
make -C source O=/work/o -j"$JOBS" u-boot.bin
mkdir -p /out/%(name)s
cp o/u-boot.bin o/.config /out/%(name)s/
"""

_TF_A_COMPILE = """
make -C source -j"$JOBS" CROSS_COMPILE=aarch64-linux-gnu- BUILD_BASE=/work/build PLAT=qemu \
    SPD=opteed QEMU_USE_GIC_DRIVER=QEMU_GICV3 bl1 bl2 bl31 fiptool
cp build/qemu/release/bl1.bin build/qemu/release/bl2.bin build/qemu/release/bl31.bin /out/
cp "$(find source build -name fiptool -type f -perm -100 | head -n 1)" /out/fiptool
"""

# 15 MiB of secure memory need a heap for the image of StandaloneMM and the blocks of the RPMB.
_OPTEE_COMPILE = """
make -C source -j"$JOBS" O=/work/%(name)s PLATFORM=vexpress-qemu_armv8a \
    CROSS_COMPILE64=aarch64-linux-gnu- CFG_ARM64_core=y CFG_USER_TA_TARGETS=ta_arm64 \
    CFG_ARM_GICV3=y CFG_CORE_HEAP_SIZE=524288 CFG_SCTLR_ALIGNMENT_CHECK=n \
    CFG_REE_FS=n CFG_RPMB_FS=y CFG_RPMB_TESTKEY=%(test_key)s CFG_RPMB_WRITE_KEY=y \
    CFG_RPMB_ANNOUNCE_PROBE_CAP=%(announce)s CFG_STMM_PATH=/in/stmm/BL32_AP_MM.fd \
    CFG_BUILD_IN_TREE_TA=n CFG_TEE_CORE_EMBED_INTERNAL_TESTS=n CFG_TEE_CORE_LOG_LEVEL=2
mkdir -p /out/%(name)s
cp %(name)s/core/tee-header_v2.bin %(name)s/core/tee-pager_v2.bin \
    %(name)s/core/tee-pageable_v2.bin /out/%(name)s/
"""

# The HUK of this platform is zero (core/kernel/otp_stubs.c).
_OPTEE_HUK = f"""
huk='(uint8_t []){{ {", ".join(map(hex, OWN_KEY_HUK))} }}'
sed -i "s/^\tmemset(&hwkey->data.*/\tmemcpy(hwkey->data, $huk, sizeof(hwkey->data));/" \\
    source/core/kernel/otp_stubs.c
grep -q 'memcpy(hwkey' source/core/kernel/otp_stubs.c
"""

_STMM_COMPILE = """
STMM_TARGET=RELEASE bash /own/build.sh /work/source /work/build /out/BL32_AP_MM.fd
"""

# BL1 is where the CPU starts, the package of the other images 256 KiB above (TF-A, plat/qemu).
_FIRMWARE = """
/in/tf-a/fiptool create --tb-fw /in/tf-a/bl2.bin --soc-fw /in/tf-a/bl31.bin \
    --tos-fw /in/optee-os/%(optee)s/tee-header_v2.bin \
    --tos-fw-extra1 /in/optee-os/%(optee)s/tee-pager_v2.bin \
    --tos-fw-extra2 /in/optee-os/%(optee)s/tee-pageable_v2.bin \
    --nt-fw /in/u-boot/%(u_boot)s/u-boot.bin fip.bin
cp /in/tf-a/bl1.bin /out/%(name)s.bin
dd if=fip.bin of=/out/%(name)s.bin bs=64K seek=4 conv=notrunc
"""

_QEMU_WRAPPED = """
cat > "$OUT/qemu-system-aarch64" <<'END'
#!/bin/sh
# Debian 13's QEMU on any host: by the loader and the libraries it was built with.
here=$(dirname "$(readlink -f "$0")")
lib=$here/tree/usr/lib/x86_64-linux-gnu
exec "$here/tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$lib" \
    "$here/tree/usr/bin/qemu-system-aarch64" -L "$here/tree/usr/share/qemu" "$@"
END
chmod 755 "$OUT/qemu-system-aarch64"
"$OUT/qemu-system-aarch64" --version
"$OUT/qemu-system-aarch64" -M virt -device emmc,help | grep rpmb-partition-size
"""

# Upstream's program without its emulation of an RPMB, which Debian's package has.
_SUPPLICANT_COMPILE = """
mkdir -p sysroot
for package in /packages/*.deb; do
    (cd sysroot && ar x "$package" && tar xf data.tar.*)
done
export PKG_CONFIG_LIBDIR=/work/sysroot/usr/lib/aarch64-linux-gnu/pkgconfig
export PKG_CONFIG_SYSROOT_DIR=/work/sysroot
make -C source CROSS_COMPILE=aarch64-linux-gnu- RPMB_EMU=0 CFG_TEE_SUPP_PLUGINS=n \\
    build-tee-supplicant
mkdir -p /out/usr/sbin /out/usr/lib/aarch64-linux-gnu
cp source/out/tee-supplicant/tee-supplicant /out/usr/sbin/
cp -a source/out/libteec/libteec.so* /out/usr/lib/aarch64-linux-gnu/
"""

_SUPPLICANT_OF_OURS = """
mkdir -p /out/usr/sbin
{ echo '#!/usr/bin/python3 -IS'; cat /own/tee_supplicant.py; } > /out/usr/sbin/tee-supplicant
chmod 755 /out/usr/sbin/tee-supplicant
dropin=/out/usr/lib/systemd/system/tee-supplicant.service.d
mkdir -p $dropin
printf '%s\n' '[Service]' ExecStart= 'ExecStart=/usr/sbin/tee-supplicant --rpmb-no-sleep' \
    > $dropin/no-sleep.conf
"""

# What maintainer scripts would have done in the board's root file system.
_ROOT_CONFIGURED = """
cd /out/tree
sed 's/^root:[^:]*:/root:x:/' usr/share/base-passwd/passwd.master > etc/passwd
cp usr/share/base-passwd/group.master etc/group
cat >> etc/passwd <<END
messagebus:x:101:101::/nonexistent:/usr/sbin/nologin
sshd:x:102:65534::/run/sshd:/usr/sbin/nologin
systemd-network:x:103:103::/:/usr/sbin/nologin
user:x:1000:1000::/tmp:/bin/bash
END
printf '%s:x:%s:\n' user 1000 messagebus 101 systemd-network 103 systemd-journal 104 input 105 \
    sgx 106 clock 107 kvm 108 render 109 >> etc/group
awk -F: '{ print $1 ":" ($1 == "root" ? "" : "*") ":20000:0:99999:7:::" }' etc/passwd > etc/shadow
chmod 640 etc/shadow
cp usr/share/base-files/profile usr/share/libc-bin/nsswitch.conf etc/
cp usr/share/openssh/sshd_config etc/ssh/sshd_config
mkdir -p root/.ssh etc/systemd/system/sysinit.target.wants
mkdir -p etc/systemd/system/multi-user.target.wants
ln -sf mawk usr/bin/awk
ln -sf /usr/lib/systemd/system/ssh.service etc/systemd/system/multi-user.target.wants/
ln -sf ../network.service etc/systemd/system/multi-user.target.wants/
ln -sf ../tee-supplicant.service etc/systemd/system/sysinit.target.wants/
cp -r /own/board/. .
echo 0123456789abcdef0123456789abcdef > etc/machine-id
python3 /own/keys.py /out
cp /out/host_key etc/ssh/ssh_host_ed25519_key
cp /out/host_key.pub etc/ssh/ssh_host_ed25519_key.pub
cp /out/login_key.pub root/.ssh/authorized_keys
chmod 700 root root/.ssh
chmod 600 root/.ssh/authorized_keys etc/ssh/ssh_host_ed25519_key
touch etc/.updated var/.updated
"""

# An EFI system partition with the kernel, and the root file system (offsets of the record).
_DISK = """
rm -rf tree disk.img
cp -a /in/root/tree tree
cp -a /in/%(supplicant)s/usr/. tree/usr/
cp -a /in/linux/%(routing)s/lib/modules tree/usr/lib/modules
depmod -b tree "$(ls tree/usr/lib/modules)"
truncate -s 1608M disk.img
printf '%%s\n' 'label: gpt' 'start=2048, size=131072, type=U, name=ESP' \
    'start=133120, size=3145728, type=L, name=root' | sfdisk -q disk.img
rm -f esp.img root.img
mkfs.vfat -C -n ESP esp.img 65536
printf 'bootargs=%%s\n' 'console=ttyAMA0 root=/dev/vda2 rw rootwait loglevel=7 net.ifnames=0 \
systemd.show_status=0 udev.event_timeout=1800' > bootargs.txt
mcopy -i esp.img /in/linux/%(routing)s/Image bootargs.txt ::
mke2fs -q -t ext4 -L root -d tree root.img 1536M
dd if=esp.img of=disk.img bs=1M seek=1 conv=notrunc,sparse
dd if=root.img of=disk.img bs=1M seek=65 conv=notrunc,sparse
mv disk.img /out/%(routing)s.img
rm -rf tree esp.img root.img
"""

TOOLS = Piece(
    name="tools",
    says="compilers and tools of Debian 13, as a tree to build in",
    groups=("tools",),
    steps=(Unpack("tools", "."), Script("configure", _TOOLS_CONFIGURED)),
    outputs=("usr/bin/aarch64-linux-gnu-gcc", "usr/bin/make", "etc/passwd"),
    megabytes=1200,
)

LINUX = Piece(
    name="linux",
    says="Linux 6.12 with a trimmed configuration, RPMB routed by the supplicant or the kernel",
    needs=("tools",),
    groups=("linux",),
    files=(_HERE / "linux.config",),
    steps=(
        Script("unpack", _LINUX_UNPACK),
        Script("compile", _LINUX_COMPILE % {"rpmb": "n", "routing": "supplicant"}),
        Script("compile-kernel-rpmb", _LINUX_COMPILE % {"rpmb": "y", "routing": "kernel"}),
    ),
    outputs=("supplicant/Image", "kernel/Image"),
    megabytes=3500,
)


def _u_boot_compile(name: str, store: str, prepare: str = "") -> Script:
    values = {"name": name, "store": store, "prepare": prepare}
    return Script(f"compile-{name}", _U_BOOT_COMPILE % values)


U_BOOT = Piece(
    name="u-boot",
    says="U-Boot 2025.01: variables in StandaloneMM (as released; told to Linux) or in a file",
    needs=("tools",),
    groups=("u-boot",),
    files=(_HERE / "u-boot.config", _QUERY_PATCH),
    steps=(
        Script("unpack", _SOURCE),
        _u_boot_compile("mm", "CONFIG_EFI_MM_COMM_TEE=y"),
        _u_boot_compile("file", "CONFIG_EFI_VARIABLE_FILE_STORE=y"),
        _u_boot_compile(
            "mm-query",
            "CONFIG_EFI_MM_COMM_TEE=y",
            f"patch -N -p1 -d source < /own/{_QUERY_PATCH.name} || patch -R -s --dry-run -p1 "
            f"-d source < /own/{_QUERY_PATCH.name}",
        ),
    ),
    outputs=("mm/u-boot.bin", "file/u-boot.bin", "mm-query/u-boot.bin"),
    megabytes=900,
)

TF_A = Piece(
    name="tf-a",
    says="Trusted Firmware-A 2.12 for QEMU's virt machine, OP-TEE as its secure payload",
    needs=("tools",),
    groups=("tf-a",),
    steps=(Script("unpack", _SOURCE), Script("compile", _TF_A_COMPILE)),
    outputs=("bl1.bin", "bl2.bin", "bl31.bin", "fiptool"),
    megabytes=300,
)

STMM = Piece(
    name="stmm",
    says="EDK2 StandaloneMM 2025.02 with our flash driver over OP-TEE's storage",
    needs=("tools",),
    groups=("edk2",),
    files=(_FLASH_DRIVER / "build.sh", _FLASH_DRIVER / "StmmRpmbPkg"),
    steps=(Script("unpack", _SOURCE), Script("compile", _STMM_COMPILE)),
    outputs=("BL32_AP_MM.fd",),
    megabytes=1200,
)


def _optee_compile(
    step: str, name: str, before: str = "", *, announce: str = "n", test_key: str = "y"
) -> Script:
    values = {"name": name, "announce": announce, "test_key": test_key}
    return Script(step, before + _OPTEE_COMPILE % values)


OPTEE_OS = Piece(
    name="optee-os",
    says="OP-TEE 4.10 with StandaloneMM and RPMB file system: test key, both routings; own key",
    needs=("tools", "stmm"),
    groups=("optee-os",),
    steps=(
        Script("unpack", _SOURCE),
        _optee_compile("compile", "supplicant"),
        _optee_compile("compile-kernel-rpmb", "kernel", announce="y"),
        # Last: it changes the source.
        _optee_compile("compile-own-key", "own-key", _OPTEE_HUK, test_key="n"),
    ),
    outputs=tuple(f"{name}/tee-pager_v2.bin" for name in ("supplicant", "kernel", "own-key")),
    megabytes=600,
)

FIRMWARE = Piece(
    name="firmware",
    says="the flash image of each configuration, and an empty eMMC",
    needs=("tools", "tf-a", "optee-os", "u-boot"),
    steps=(
        # Two boot partitions of 1 MiB, an RPMB of 2, 64 MiB for the user.
        Script("make-emmc", "truncate -s 68M /out/emmc.img"),
        *(
            Script(
                f"assemble-{one.name}",
                _FIRMWARE
                % {
                    "name": one.name,
                    "optee": one.optee or one.routing,
                    "u_boot": one.u_boot,
                },
            )
            for one in CONFIGURATIONS
        ),
    ),
    outputs=("emmc.img", *(f"{one.name}.bin" for one in CONFIGURATIONS)),
)

QEMU = Piece(
    name="qemu",
    says="QEMU 11.1 of trixie-backports, which has an eMMC with RPMB, with its libraries",
    groups=("qemu",),
    steps=(Unpack("qemu", "tree"), Script("wrap", _QEMU_WRAPPED)),
    outputs=("qemu-system-aarch64",),
    megabytes=400,
)

ROOT = Piece(
    name="root",
    says="root file system of Debian 13 for arm64, with OpenSSH and the tools of efivars and eMMC",
    needs=("tools",),
    groups=("root",),
    files=(_HERE / "board", _HERE / "keys.py"),
    steps=(Unpack("root", "tree"), Script("configure", _ROOT_CONFIGURED)),
    outputs=("tree/etc/shadow", "login_key", "host_key.fingerprint"),
    megabytes=400,
)

SUPPLICANT = Piece(
    name="supplicant",
    says="tee-supplicant of optee-client, built to use the eMMC's RPMB",
    needs=("tools",),
    groups=("optee-client", "sysroot"),
    steps=(Script("unpack", _SOURCE), Script("compile", _SUPPLICANT_COMPILE)),
    outputs=("usr/sbin/tee-supplicant",),
)

SUPPLICANT_OF_OURS = Piece(
    name="supplicant",
    says="the emulated board's tee-supplicant, where optee-client cannot be had",
    needs=("tools",),
    files=(_HERE.parent / "userland" / "system" / "tee_supplicant.py",),
    steps=(Script("install", _SUPPLICANT_OF_OURS),),
    outputs=("usr/sbin/tee-supplicant",),
)

PACKAGED_SUPPLICANT = Piece(
    name="packaged-supplicant",
    says="Debian's own tee-supplicant, whose emulated RPMB nobody asks where the kernel routes",
    groups=("tee-supplicant",),
    steps=(Unpack("tee-supplicant", "."),),
    outputs=("usr/sbin/tee-supplicant",),
)

DISK = Piece(
    name="disk",
    says="the disk image of each routing: kernel, root file system",
    needs=("tools", "linux", "root", "supplicant", "packaged-supplicant"),
    steps=tuple(
        Script(f"assemble-{routing}", _DISK % {"routing": routing, "supplicant": supplicant})
        for routing, supplicant in (("supplicant", "supplicant"), ("kernel", "packaged-supplicant"))
    ),
    outputs=("supplicant.img", "kernel.img"),
    megabytes=1500,
)

_FIXED = (
    TOOLS,
    QEMU,
    TF_A,
    U_BOOT,
    STMM,
    OPTEE_OS,
    FIRMWARE,
    LINUX,
    ROOT,
    PACKAGED_SUPPLICANT,
    DISK,
)
CATALOGUE = (*_FIXED, SUPPLICANT)
CATALOGUE_WITHOUT_OPTEE_CLIENT = (*_FIXED, SUPPLICANT_OF_OURS)

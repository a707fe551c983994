"""The pieces of the stack."""

from __future__ import annotations

from emulation.qemu.pieces import Piece, Script, Unpack

# What maintainer scripts would have done in the tree of tools.
_TOOLS_CONFIGURED = """
ln -sf gcc "$OUT/usr/bin/cc"
ln -sf mawk "$OUT/usr/bin/awk"
[ -e "$OUT/usr/bin/gawk" ] && ln -sf gawk "$OUT/usr/bin/awk"
mkdir -p "$OUT/etc"
echo 'root:x:0:0:root:/work:/bin/sh' > "$OUT/etc/passwd"
echo 'root:x:0:' > "$OUT/etc/group"
"""

TOOLS = Piece(
    name="tools",
    says="compilers and tools of Debian 13, as a tree to build in",
    groups=("tools",),
    steps=(Unpack("tools", "."), Script("configure", _TOOLS_CONFIGURED)),
    outputs=("usr/bin/aarch64-linux-gnu-gcc", "usr/bin/make", "etc/passwd"),
    megabytes=1200,
)

CATALOGUE = (TOOLS,)

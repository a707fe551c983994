#!/usr/bin/env bash
# StandaloneMM's image from an edk2 source package: build.sh EDK2_SOURCE WORK OUTPUT (README.md).
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 EDK2_SOURCE WORK OUTPUT" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
edk2=$(cd "$1" && pwd)
mkdir -p "$2" "$(dirname "$3")"
work=$(cd "$2" && pwd)
output=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
jobs=${JOBS:-$(nproc)}
cross=${CROSS_COMPILE:-aarch64-linux-gnu-}

for tool in "${cross}gcc" g++ make python3; do
    command -v "$tool" >/dev/null || { echo "$0: $tool is not installed" >&2; exit 1; }
done
test -e "$edk2/StandaloneMmPkg/Core/StandaloneMmCore.inf" || {
    echo "$0: $edk2 is not an edk2 source tree" >&2
    exit 1
}

# The source tree is only read: the tools are built in a copy, objects go to $work/Build.
tools=$work/BaseTools
if [ ! -e "$tools/built" ]; then
    rm -rf "$tools"
    cp -r "$edk2/BaseTools" "$tools"
    # What makes a firmware volume of PE files. The other tools want sources Debian leaves out.
    make -C "$tools/Source/C" -j "$jobs" EDK2_PATH="$edk2" VFRAUTOGEN= \
        APPLICATIONS="GenFfs GenFv GenFw GenSec"
    # The tool chain GCC optimises at link time and would lose memcpy and memset but for this
    # object, which it expects under the name of a library.
    lto=$tools/Bin/GccLto/liblto-aarch64
    "${cross}gcc" -c "$lto.s" -o "$lto.a"
    touch "$tools/built"
fi
# What an interrupted build left half written would be linked.
rm -rf "$work/Build"
mkdir -p "$work/Conf"
for name in target tools_def build_rule; do
    cp "$tools/Conf/$name.template" "$work/Conf/$name.txt"
done

export WORKSPACE=$work PACKAGES_PATH=$edk2:$here EDK_TOOLS_PATH=$tools CONF_PATH=$work/Conf
export GCC_AARCH64_PREFIX=$cross PYTHON_COMMAND=python3
export PATH=$tools/BinWrappers/PosixLike:$PATH
cd "$work"
build --silent -n "$jobs" -a AARCH64 -b RELEASE -t GCC -p StmmRpmbPkg/StmmRpmb.dsc

cp "$work/Build/StmmRpmb/RELEASE_GCC/FV/BL32_AP_MM.Fv" "$output.part"
mv "$output.part" "$output"

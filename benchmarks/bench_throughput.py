"""SetVariable through the whole emulated stack, in this process: efivarfs to flash and back.

Limit in the same run: the HMAC-SHA-256 and AES operations of the very same calls, recorded and then
done alone, one after another.  The printed ratio is to that.  Then what the number of variables in
the store does to SetVariable and to listing.
"""

from __future__ import annotations

import hashlib
import hmac
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.figures import figure
from emulation.optee.keys import BlockCipher
from emulation.options import Variant
from harness.formats import rpmb
from tests.emulation.rig import ROOT, Rig, name

ROUNDS = 7
UPDATES = 60
SAMPLES = 20
FREE = 15352
"""Bytes of the store after the first boot (truth state-002)."""
RECORD, UPDATED = 76, 80
"""Bytes that a variable V000 and one update of the variable Updated take in the store."""
MOST = (FREE - (3 * SAMPLES + 1) * UPDATED) // RECORD
COUNTS = (10, 100, MOST)
"""How many variables; at last as many as leave room for the updates that are measured."""


class Primitives:
    """The cryptographic operations of a stretch of work."""

    def __init__(self) -> None:
        self.macs: list[tuple[bytes, bytes]] = []
        self.blocks: list[tuple[Any, int, bytes, bool]] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what is done inside the block."""
        mac, encrypt, decrypt = rpmb.mac, BlockCipher.encrypt, BlockCipher.decrypt

        def recording_mac(key: bytes, frames: bytes) -> bytes:
            starts = range(0, len(frames), rpmb.FRAME_SIZE)
            ends = (frames[at + rpmb.SIGNED_OFFSET : at + rpmb.FRAME_SIZE] for at in starts)
            self.macs.append((key, b"".join(ends)))
            return mac(key, frames)

        def recording_encrypt(cipher: BlockCipher, block: int, data: bytes) -> bytes:
            self.blocks.append((cipher._key, block, data, True))
            return encrypt(cipher, block, data)

        def recording_decrypt(cipher: BlockCipher, block: int, data: bytes) -> bytes:
            self.blocks.append((cipher._key, block, data, False))
            return decrypt(cipher, block, data)

        with (
            mock.patch.object(rpmb, "mac", recording_mac),
            mock.patch.object(BlockCipher, "encrypt", recording_encrypt),
            mock.patch.object(BlockCipher, "decrypt", recording_decrypt),
        ):
            yield

    def hmac_seconds(self) -> float:
        """All MACs again, alone."""
        started = time.perf_counter()
        for key, signed in self.macs:
            hmac.digest(key, signed, "sha256")
        return time.perf_counter() - started

    def aes_seconds(self) -> float:
        """All half sectors again, alone: an IV by AES-ECB, then AES-CBC."""
        iv_keys = {key: _iv_encryptor(key) for key, *_ in self.blocks}
        started = time.perf_counter()
        for key, block, data, encrypting in self.blocks:
            iv = iv_keys[key].update(block.to_bytes(16, "little"))
            cipher = Cipher(key, modes.CBC(iv))
            (cipher.encryptor() if encrypting else cipher.decryptor()).update(data)
        return time.perf_counter() - started


def _iv_encryptor(key: Any) -> Any:
    iv_key = algorithms.AES(hashlib.sha256(key.key).digest()[:16])
    return Cipher(iv_key, modes.ECB()).encryptor()


def first_boot(folder: Path, variant: Variant) -> Path:
    """The flash of a board that was booted once and has one small variable."""
    with board(folder / "first", variant) as rig:
        update(rig, 1)
    return folder / "first" / "rpmb.img"


@contextmanager
def board(state: Path, variant: Variant, flash: Path | None = None) -> Iterator[Rig]:
    """A running board, on a copy of ``flash`` if there is one."""
    state.mkdir()
    if flash is not None:
        shutil.copy(flash, state)
    rig = Rig(state, variant=variant)
    rig.boot(supplicant=variant != "mm-kernel-rpmb")
    rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
    try:
        yield rig
    finally:
        rig.machine.close()


def update(rig: Rig, rounds: int) -> None:
    """Overwrite one small variable; each time it lies elsewhere in its half sector."""
    for number in range(rounds):
        rig.write(name("Updated"), number.to_bytes(4, "little"))


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def throughput(title: str, folder: Path, variant: Variant) -> None:
    """The same updates of the same flash: once recorded, then timed."""
    flash = first_boot(folder, variant)
    primitives = Primitives()
    with board(folder / "recorded", variant, flash) as rig:
        before = rig.counter
        with primitives.recorded():
            update(rig, UPDATES)
        writes = (rig.counter - before) / UPDATES
    rows = []
    for number in range(ROUNDS):
        with board(folder / f"timed{number}", variant, flash) as rig:
            whole = seconds(lambda: update(rig, UPDATES))
        rows.append((whole, primitives.hmac_seconds(), primitives.aes_seconds()))
    # The least of each: another load of this host only adds.
    whole, macs, aes = (min(column) for column in zip(*rows, strict=True))
    print(f"SetVariable, {title}: {writes:.0f} RPMB writes on average")
    print(
        f"  time                 {milliseconds(whole / UPDATES)}  {UPDATES / whole:6.0f} a second"
    )
    print(f"  in HMAC-SHA-256      {milliseconds(macs / UPDATES)}  {macs / whole:6.0%}")
    print(f"  in AES               {milliseconds(aes / UPDATES)}  {aes / whole:6.0%}")
    print(f"  ratio to HMAC + AES  {whole / (macs + aes):8.2f}     (aim: at most 3)")
    figure(f"SetVariable ({variant})", whole / UPDATES * 1000)
    figure(f"SetVariable ({variant}) / HMAC + AES", whole / (macs + aes), "x")


def milliseconds(duration: float) -> str:
    """A duration in seconds, as it is shown."""
    return f"{duration * 1000:8.2f} ms"


def growth(folder: Path) -> None:
    """Cost against the number of variables."""
    flash = first_boot(folder, "mm-kernel-rpmb")
    print("variables SetVariable  RPMB writes   per write      listing  per variable")
    with board(folder / "growth", "mm-kernel-rpmb", flash) as rig:
        filled = 0
        for count in COUNTS:
            for number in range(filled, count):
                rig.write(name(f"V{number:03}"), number.to_bytes(4, "little"))
            filled = count
            listing = min(relist(rig) for _ in range(ROUNDS))
            before = rig.counter
            whole = seconds(lambda: update(rig, SAMPLES)) / SAMPLES
            writes = (rig.counter - before) / SAMPLES
            listed = len(rig.names())
            figure(f"SetVariable of {listed} variables", whole * 1000)
            figure(f"listing {listed} variables", listing * 1000)
            print(
                f"{listed:9} {milliseconds(whole)} {writes:12.0f} {whole / writes * 1e6:8.0f} us"
                f"  {milliseconds(listing)} {listing / listed * 1e6:8.0f} us"
            )


def relist(rig: Rig) -> float:
    """Seconds to mount efivarfs, which asks for every name and size."""
    rig.machine.running.efivarfs.unmount()
    return seconds(lambda: rig.machine.running.efivarfs.mount(task=ROOT))


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        boards: tuple[tuple[str, Variant], ...] = (
            ("RPMB routed by the kernel", "mm-kernel-rpmb"),
            ("RPMB by way of tee-supplicant on a thread", "mm-query"),
        )
        for title, variant in boards:
            (folder / variant).mkdir()
            throughput(title, folder / variant, variant)
        growth(folder)


if __name__ == "__main__":
    main()

"""The image file: what survives the end of the process at any point."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from emulation.emmc import image as image_module
from emulation.emmc.image import ImageError, RpmbImage
from harness.formats.rpmb import SIZE_UNIT

if TYPE_CHECKING:
    from _typeshed import TraceFunction

KEY = bytes(range(32))


def half_sectors(*letters: str) -> bytes:
    return b"".join(letter.encode() * 256 for letter in letters)


def test_a_new_image_is_blank(tmp_path: Path) -> None:
    image = RpmbImage.open(tmp_path / "rpmb", size_mult=16)
    assert (image.key, image.write_counter, image.blocks) == (None, 0, 8192)
    assert image.read(8191) == bytes(256)


@pytest.mark.cases(34)
def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "rpmb"
    image = RpmbImage.open(path, size_mult=2)
    image.program_key(KEY)
    image.commit(1, 7, half_sectors("a"))
    image.commit(2, 8, half_sectors("b", "c"))
    image.close()
    again = RpmbImage.open(path, size_mult=2)
    assert (again.key, again.write_counter) == (KEY, 2)
    assert again.read(7, 3) == half_sectors("a", "b", "c")


def test_the_partition_is_the_beginning_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rpmb"
    image = RpmbImage.open(path, size_mult=1)
    image.commit(1, 511, half_sectors("z"))
    assert path.read_bytes()[SIZE_UNIT - 256 : SIZE_UNIT] == half_sectors("z")
    assert path.stat().st_blocks * 512 < 2 * SIZE_UNIT


def test_addresses_wrap_as_sixteen_bits_do() -> None:
    image = RpmbImage.in_memory()
    image.commit(1, 0xFFFF, half_sectors("x", "y"))
    assert image.read(0xFFFF, 2) == half_sectors("x", "y")
    assert image.read(0) == half_sectors("y")


def test_one_board_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rpmb"
    first = RpmbImage.open(path)
    with pytest.raises(ImageError, match="in use"):
        RpmbImage.open(path)
    first.close()
    RpmbImage.open(path).close()


def test_other_files_and_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rpmb"
    RpmbImage.open(path, size_mult=4).close()
    with pytest.raises(ImageError, match=r"4 \* 128 KiB"):
        RpmbImage.open(path, size_mult=8)
    text = tmp_path / "text"
    text.write_text("no image")
    with pytest.raises(ImageError, match="no RPMB image"):
        RpmbImage.open(text)
    assert text.read_text() == "no image"
    with pytest.raises(ValueError, match="not 1"):
        RpmbImage.open(tmp_path / "other", size_mult=129)


@pytest.mark.cases(35)
def test_a_write_is_whole_or_not_at_all_at_every_line() -> None:
    """Stop between any two lines of the commit; the image is the old or the new one."""
    medium = mmap.mmap(-1, image_module.IMAGE_BYTES)
    image = RpmbImage(medium, 16)
    image.program_key(KEY)
    for counter in range(1, 4):
        image.commit(counter, 50, half_sectors("o", str(counter)))
    old = (3, half_sectors("o", "3"))
    new = (4, half_sectors("n", "4"))
    stops: list[bytes] = []

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction:
        if frame.f_code.co_filename == image_module.__file__ and event == "line":
            stops.append(medium[:])
        return trace

    sys.settrace(trace)
    try:
        image.commit(4, 50, half_sectors("n", "4"))
    finally:
        sys.settrace(None)
    stops.append(medium[:])

    outcomes = []
    for stopped in stops:
        copy = mmap.mmap(-1, len(stopped))
        copy[:] = stopped
        found = RpmbImage(copy, 16)
        assert found.key == KEY
        outcomes.append((found.write_counter, found.read(50, 2)))
    assert len(stops) > 10
    assert set(outcomes) == {old, new}
    assert outcomes == sorted(outcomes)


def test_a_half_copied_journal_slot_does_not_count() -> None:
    medium = mmap.mmap(-1, image_module.IMAGE_BYTES)
    image = RpmbImage(medium, 16)
    image.commit(1, 5, half_sectors("a"))
    image.commit(2, 5, half_sectors("b"))
    for slot in image_module._SLOT_OFFSETS:
        for position in (0, 5, 11, 12, 100, 267):
            copy = mmap.mmap(-1, len(medium))
            copy[:] = medium[:]
            copy[slot + position] ^= 0x40
            found = RpmbImage(copy, 16)
            assert (found.write_counter, found.read(5)) in (
                (1, half_sectors("a")),
                (2, half_sectors("b")),
            )


WRITER = """
import sys
from pathlib import Path
from emulation.emmc.image import RpmbImage
image = RpmbImage.open(Path(sys.argv[1]))
counter = image.write_counter
while True:
    counter += 1
    image.commit(counter, counter % 64, counter.to_bytes(4, "big") * 128)
    if counter % 100 == 0:
        print(counter, flush=True)
"""


@pytest.mark.cases(35)
def test_kill_9_leaves_a_consistent_image(tmp_path: Path) -> None:
    path = tmp_path / "rpmb"
    chance = random.Random(1)
    counter = 0
    for _round in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            seen = [int(writer.stdout.readline()) for _ in range(chance.randint(1, 40))]
            os.kill(writer.pid, signal.SIGKILL)
        image = RpmbImage.open(path)
        assert image.write_counter >= seen[-1] > counter
        counter = image.write_counter
        assert image.read(counter % 64, 2) == counter.to_bytes(4, "big") * 128
        before = counter - 1
        assert image.read(before % 64) == before.to_bytes(4, "big") * 64
        image.close()

"""The static helper: its code is that of its sources, and its answers are the kernel's."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness.probe import steps as do
from harness.probe.helper import program as helper
from harness.probe.helper.program import MACHINES, machine_of
from harness.probe.static_steps import StaticCodec

UMASK = os.umask(0)
os.umask(UMASK)
SOURCES = Path(helper.__file__).parent
ASSEMBLERS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


def tool(machine: str, name: str) -> str:
    found = shutil.which(f"{ASSEMBLERS[machine]}-{name}")
    if found is None:
        pytest.skip(f"needs {ASSEMBLERS[machine]}-{name} (package binutils-{ASSEMBLERS[machine]})")
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_the_code_is_that_of_its_source(machine: str, tmp_path: Path) -> None:
    made, text = tmp_path / "made.o", tmp_path / "text"
    source = SOURCES / f"{machine}.S"
    assemble = [tool(machine, "as"), "-o", str(made), str(source)]
    subprocess.run(assemble, check=True, timeout=20)
    copy = [tool(machine, "objcopy"), "-O", "binary", "-j", ".text", str(made), str(text)]
    subprocess.run(copy, check=True, timeout=20)
    assert MACHINES[machine].code == text.read_bytes()


@pytest.mark.parametrize("machine", MACHINES)
def test_it_is_a_small_program_for_its_processor(machine: str) -> None:
    program = MACHINES[machine].program
    assert machine_of(program[:20]) is MACHINES[machine]
    assert len(program) < 1000


def test_other_processors_have_none() -> None:
    riscv = bytearray(MACHINES["x86_64"].program[:20])
    riscv[18] = 243
    assert machine_of(bytes(riscv)) is None
    assert machine_of(b"#!/bin/sh") is None


def emulator(machine: str) -> list[str]:
    if machine_of(Path("/proc/self/exe").read_bytes()[:20]) is MACHINES[machine]:
        return []
    found = shutil.which(f"qemu-{machine}")
    if found is None:
        pytest.skip(f"needs qemu-{machine} (package qemu-user)")
    return [found]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_batch_on_each_processor(machine: str, tmp_path: Path) -> None:
    command = emulator(machine)
    program = tmp_path / "helper"
    program.write_bytes(MACHINES[machine].program)
    program.chmod(0o700)
    codec = StaticCodec(MACHINES[machine])
    path = str(tmp_path / "file")
    steps: list[do.Step] = [
        do.Open("f", path, "O_RDWR|O_CREAT|O_EXCL", 0o640),
        do.Writev("f", (b"first", b"", b"second")),
        do.Lseek("f", 2),
        do.Read("f", 100),
        do.Pread("f", 3, 5),
        do.Fstat("f"),
        do.Open("again", path, "O_WRONLY|O_CREAT|O_EXCL"),
        do.Write("again", b"never"),
        do.Close("f"),
        do.Close("f"),
        do.Truncate(path, 4),
        do.Symlink("file", str(tmp_path / "link")),
        do.Stat(str(tmp_path / "link")),
        do.ListDir(str(tmp_path)),
        do.StatFs("/proc"),
        do.Rename(path, str(tmp_path / "nowhere" / "file")),
    ]
    known, request = codec.encode(steps)
    fifos = [tmp_path / "request", tmp_path / "answer"]
    for fifo in fifos:
        os.mkfifo(fifo)
    process = subprocess.Popen([*command, program], cwd=tmp_path)
    try:
        fifos[0].write_bytes(request)
        answer = fifos[1].read_bytes()
    finally:
        process.kill()
        process.wait(10)
    asked = [step for step, outcome in zip(steps, known, strict=True) if outcome is None]
    assert len(asked) == len(steps) - 1
    outcomes = codec.decode(asked, answer)
    assert [outcome.value for outcome in outcomes[1:3]] == [11, 2]
    assert [outcome.data for outcome in outcomes[3:5]] == [b"rstsecond", b"sec"]
    assert (outcomes[5].value, outcomes[5].field("mode")) == (11, 0o100640 & ~UMASK)
    assert [outcome.errno for outcome in outcomes[6:8]] == ["EEXIST", "EBADF"]
    assert all(outcome.ok for outcome in outcomes[8:11])
    assert outcomes[11].value == len("file")
    assert set(outcomes[12].names) >= {b"file", b"link", b"request"}
    assert outcomes[13].value == 0x9FA0
    assert outcomes[14].errno == "ENOENT"


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_is_left_to_a_linker(machine: str, tmp_path: Path) -> None:
    made = tmp_path / "made.o"
    assemble = [tool(machine, "as"), "-o", str(made), str(SOURCES / f"{machine}.S")]
    subprocess.run(assemble, check=True, timeout=20)
    listed = subprocess.run(
        [tool(machine, "objdump"), "-r", str(made)], capture_output=True, check=True, timeout=20
    )
    assert b"R_" not in listed.stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_a_second_batch_is_served(machine: str, tmp_path: Path) -> None:
    command = emulator(machine)
    program = tmp_path / "helper"
    program.write_bytes(MACHINES[machine].program)
    program.chmod(0o700)
    codec = StaticCodec(MACHINES[machine])
    fifos = [tmp_path / "request", tmp_path / "answer"]
    for fifo in fifos:
        os.mkfifo(fifo)
    process = subprocess.Popen([*command, program], cwd=tmp_path)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        for _ in range(2):
            step = do.StatFs("/proc")
            _, request = codec.encode([step])
            _exchange(fifos[0], request, process)
            (outcome,) = codec.decode([step], fifos[1].read_bytes())
            assert outcome.value == 0x9FA0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait(10)


def _exchange(fifo: Path, request: bytes, process: subprocess.Popen[bytes]) -> None:
    """Give the request to whoever opens the fifo; a program that does not is an error."""
    deadline = time.monotonic() + 30
    while True:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            assert process.poll() is None, "the helper ended"
            assert time.monotonic() < deadline, "the helper does not ask for a batch"
            time.sleep(0.01)
        else:
            break
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(request)

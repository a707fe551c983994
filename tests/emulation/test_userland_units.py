"""The service manager with processes of the host in place of the board's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence

from emulation.userland.jail.spawner import Program, Pty
from emulation.userland.system.command_line import Reply
from emulation.userland.system.journal import Journal
from emulation.userland.system.journalctl import Journalctl
from emulation.userland.system.systemctl import Systemctl, UnitTable
from emulation.userland.system.units import ProcessUnit, Readiness, UnitFile

ROOT = 0
FILE = UnitFile("tee-supplicant.service", "TEE Supplicant", "/etc/systemd/system/x.service")
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0));"
    "print('up', flush=True); time.sleep(60)"
)


class HostProcesses:
    def spawn(self, program: Program, fds: Sequence[int], on_exit: Callable[[int], None]) -> int:
        process = subprocess.Popen(
            program.argv, env=dict(program.env), stdin=fds[0], stdout=fds[1], stderr=fds[2]
        )

        def reap() -> None:
            _, status = os.waitpid(process.pid, 0)
            process.returncode = 0
            on_exit(status)

        threading.Thread(target=reap, daemon=True).start()
        return process.pid

    def signal(self, pid: int, number: int) -> None:
        os.kill(pid, number)

    def open_pty(self) -> Pty:
        raise NotImplementedError


class Recorder:
    def __init__(self) -> None:
        self.requests: list[tuple[str, bool]] = []

    def request(self, action: str, *, force: bool) -> None:
        self.requests.append((action, force))


class Bench:
    """A manager with one unit."""

    def __init__(self, program: str, readiness: Readiness | None = None) -> None:
        self.journal = Journal("board")
        self.power = Recorder()
        argv = (sys.executable, "-IS", "-c", program)
        self.unit = ProcessUnit(
            FILE, self.journal, HostProcesses(), argv, {"PATH": "/bin"}, readiness
        )
        units = UnitTable()
        units.load(self.unit)
        self._systemctl = Systemctl(units, self.journal, self.power)
        self._journalctl = Journalctl(units, self.journal)

    async def systemctl(self, line: str, uid: int = ROOT) -> Reply:
        return await self._systemctl.run(uid, line.split())

    async def journalctl(self, line: str) -> list[str]:
        return (await self._journalctl.run(ROOT, line.split())).out

    async def until(self, state: str) -> None:
        async def poll() -> None:
            while self.unit.active != state:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), 5)

    async def until_said(self, text: str) -> None:
        async def poll() -> None:
            while not any(text in entry.text for entry in self.journal.entries()):
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), 5)


def on_bench(
    body: Callable[[Bench], Awaitable[None]],
    program: str = SLEEPER,
    readiness: Readiness | None = None,
) -> None:
    async def bounded() -> None:
        bench = Bench(program, readiness)
        try:
            await asyncio.wait_for(body(bench), 20)
        finally:
            if bench.unit.main_pid:
                os.kill(bench.unit.main_pid, signal.SIGKILL)
                await bench.until("failed")

    asyncio.run(bounded())


def test_start_stop_and_states() -> None:
    async def body(bench: Bench) -> None:
        assert (await bench.systemctl("is-active tee-supplicant")).status == 3
        assert (await bench.systemctl("start tee-supplicant")).status == 0
        active = await bench.systemctl("is-active tee-supplicant.service")
        assert (active.out, active.status) == (["active"], 0)
        pid = (await bench.systemctl("show -p MainPID --value tee-supplicant")).out
        assert pid == [str(bench.unit.main_pid)]
        os.kill(int(pid[0]), 0)
        assert (await bench.systemctl("stop tee-supplicant")).status == 0
        stopped = await bench.systemctl("is-active tee-supplicant")
        assert (stopped.out, stopped.status) == (["inactive"], 3)
        assert (await bench.systemctl("status tee-supplicant")).status == 3

    on_bench(body)


def test_killed_unit_is_failed_until_reset() -> None:
    async def body(bench: Bench) -> None:
        await bench.systemctl("start tee-supplicant")
        pid = bench.unit.main_pid
        os.kill(pid, signal.SIGKILL)
        await bench.until("failed")
        status = await bench.systemctl("status tee-supplicant")
        assert status.status == 3
        assert status.out[0] == "\u00d7 tee-supplicant.service - TEE Supplicant"
        assert "     Active: failed (Result: signal) since" in status.out[2]
        assert f"   Main PID: {pid} (code=killed, signal=KILL)" in status.out
        assert (await bench.systemctl("is-failed tee-supplicant")).status == 0
        lines = await bench.journalctl("-u tee-supplicant -o cat")
        assert lines[-2:] == [
            "tee-supplicant.service: Main process exited, code=killed, status=9/KILL",
            "tee-supplicant.service: Failed with result 'signal'.",
        ]
        await bench.systemctl("reset-failed tee-supplicant")
        assert (await bench.systemctl("is-active tee-supplicant")).out == ["inactive"]

    on_bench(body)


def test_a_program_that_fails_at_once() -> None:
    async def body(bench: Bench) -> None:
        assert (await bench.systemctl("start tee-supplicant")).status == 0
        await bench.until("failed")
        shown = await bench.systemctl("show tee-supplicant -p Result,ExecMainStatus")
        assert shown.out == ["Result=exit-code", "ExecMainStatus=1"]
        await bench.until_said("no device")
        lines = await bench.journalctl("-u tee-supplicant -o cat")
        assert "Started tee-supplicant.service - TEE Supplicant." in lines
        assert "tee-supplicant.service: Main process exited, code=exited, status=1/FAILURE" in lines

    on_bench(body, "import sys; sys.stderr.write('no device\\n'); sys.exit(1)")


def test_termination_counts_as_success() -> None:
    async def body(bench: Bench) -> None:
        await bench.systemctl("start tee-supplicant")
        await bench.until_said("up")
        assert (await bench.systemctl("kill -s TERM tee-supplicant")).status == 0
        await bench.until("inactive")
        lines = await bench.journalctl("-u tee-supplicant -o cat")
        assert lines[-1] == "tee-supplicant.service: Deactivated successfully."

    on_bench(body, STUBBORN)


def test_started_too_often() -> None:
    async def body(bench: Bench) -> None:
        for _ in range(5):
            assert (await bench.systemctl("restart tee-supplicant")).status == 0
        refused = await bench.systemctl("restart tee-supplicant")
        assert refused.status == 1
        assert "attempted too often" in refused.err[0]
        assert (await bench.systemctl("show -p Result --value tee-supplicant")).out == [
            "start-limit-hit"
        ]
        await bench.systemctl("reset-failed tee-supplicant")
        assert (await bench.systemctl("start tee-supplicant")).status == 0

    on_bench(body)


class Notification:
    """Readiness that the test gives."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready = False

    def about_to_start(self) -> None:
        self._ready = False

    def wait(self, given_up: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._ready or given_up(), timeout=5)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def give(self) -> None:
        self._ready = True
        self.wake()


def test_a_notifying_service_is_started_once_it_says_so() -> None:
    notification = Notification()

    async def body(bench: Bench) -> None:
        start = asyncio.create_task(bench.systemctl("start tee-supplicant"))
        await bench.until("activating")
        assert not start.done()
        notification.give()
        assert (await start).status == 0
        assert bench.unit.active == "active"

    on_bench(body, readiness=notification)


def test_a_notifying_service_that_ends_first_has_failed() -> None:
    async def body(bench: Bench) -> None:
        reply = await bench.systemctl("start tee-supplicant")
        assert reply.status == 1
        assert "control process exited with error code" in "".join(reply.err)
        assert bench.unit.active == "failed"

    on_bench(body, "raise SystemExit(1)", readiness=Notification())


def test_unknown_units_verbs_and_callers() -> None:
    async def body(bench: Bench) -> None:
        started = await bench.systemctl("start nonsense")
        assert started.status == 5
        assert started.err == ["Failed to start nonsense.service: Unit nonsense.service not found."]
        assert (await bench.systemctl("stop nonsense")).status == 5
        assert (await bench.systemctl("status nonsense")).status == 4
        assert (await bench.systemctl("is-active nonsense")).status == 4
        assert (await bench.systemctl("show -p LoadState nonsense")).out == ["LoadState=not-found"]
        assert (await bench.systemctl("frobnicate")).err == ["Unknown command verb 'frobnicate'."]
        refused = await bench.systemctl("start tee-supplicant", 1000)
        assert refused.status == 1
        assert bench.unit.active == "inactive"
        assert (await bench.systemctl("reboot", 1000)).status == 1
        assert bench.power.requests == []
        await bench.systemctl("reboot -f")
        assert bench.power.requests == [("reboot", True)]

    on_bench(body)


def test_journal_lines_and_limits() -> None:
    async def body(bench: Bench) -> None:
        assert await bench.journalctl("-u tee-supplicant") == ["-- No entries --"]
        bench.journal.add("kernel", "efivars: Registered efivars operations")
        await bench.systemctl("start tee-supplicant")
        assert len(await bench.journalctl("-n 1 --no-pager")) == 1
        assert (await bench.journalctl("-k -o cat")) == ["efivars: Registered efivars operations"]
        line = (await bench.journalctl("-u tee-supplicant --no-pager"))[0]
        assert line.endswith(" board systemd[1]: Started tee-supplicant.service - TEE Supplicant.")

    on_bench(body)

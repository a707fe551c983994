"""The zygote: the process that forks boards.

The supervisor has threads, so it never forks: at its start it executes this module as a small
process of its own, the *zygote*, which prepares a child in new namespaces ahead of time.  On a
power-on that child forks PID 1 (:mod:`emulation.userland.jail.init`).

If the supervisor dies its sockets close: the zygote and PID 1 exit.  If the zygote dies the rest
follows by PR_SET_PDEATHSIG, and with PID 1 the kernel ends every process and mount of the board.
Only the standard library is used; everything needed is imported before the host's root goes away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import traceback
from typing import NoReturn

from emulation.userland.jail import namespaces, walls, wire
from emulation.userland.jail.builder import StepFailed, step
from emulation.userland.jail.init import become_init, report
from emulation.userland.jail.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    prctl,
    unshare,
)


def zygote(control_fd: int) -> NoReturn:
    """Fork a board for every request, until the supervisor closes its end."""
    control = socket.socket(fileno=control_fd)
    prctl(PR_SET_NAME, b"board-zygote")
    spare = _prepare(control)
    while True:
        received = wire.receive(control)
        if received is None:
            os._exit(0)
        _, fds = received
        with contextlib.suppress(OSError):
            wire.send(spare, ("start",), tuple(fds))
        for fd in fds:
            os.close(fd)
        spare.close()
        spare = _prepare(control)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _prepare(control: socket.socket) -> socket.socket:
    """A child that has its namespaces and waits for the word to become a board."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        control.close()
        ours.close()
        try:
            _wait_for_power(theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    received = wire.receive(ours)
    if received is not None and received[0][0] == "unshared":
        _map_ids(ours, pid)
    return ours


def _map_ids(child: socket.socket, pid: int) -> None:
    failure: OSError | None = None
    for maps in namespaces.choose_maps():
        try:
            namespaces.write_maps(pid, maps)
        except OSError as error:
            failure = error
            continue
        lines = [[(p.inside, p.outside, p.count) for p in part] for part in (maps.uids, maps.gids)]
        wire.send(child, ("mapped", *lines))
        return
    wire.send(child, ("unmapped", failure.errno if failure else 0, str(failure)))


def _wait_for_power(parent: socket.socket) -> None:
    """The waiting child: unshare, wait, fork PID 1, outlive it."""
    failure: StepFailed | None = None
    maps: list[list[list[int]]] = []
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        with step("unshare(CLONE_NEWUSER)"):
            unshare(CLONE_NEWUSER)
        wire.send(parent, ("unshared",))
        with step("uid_map"):
            received = wire.receive(parent)
            if received is None:
                return
            if received[0][0] != "mapped":
                raise OSError(*received[0][1:])
            maps = received[0][1:]
        with step("unshare(mount)"):
            unshare(CLONE_NEWNS)
    except StepFailed as error:
        failure = error
        wire.send(parent, ("failed",))
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # unshare(CLONE_NEWUSER) cleared it
    received = wire.receive(parent)
    if received is None:
        return
    plan_fd, control_fd = received[1]
    control = socket.socket(fileno=control_fd)
    plan = wire.load(plan_fd)
    try:
        if failure is not None:
            raise failure
        walls.leave_behind()
        walls.stage(plan["sources"])
        walls.enter_inner(maps, plan["limits"])
    except StepFailed as error:
        report(control, error)
        return
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        parent.close()
        try:
            os.read(gate, 1)
            os.close(gate)
            become_init(control, plan)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    # Which process that is the kernel says: the descriptor cannot mean another one.
    pidfd = os.pidfd_open(pid)
    wire.send(control, ("pid",), (pidfd,))
    for fd in (pidfd, opener, gate):
        os.close(fd)
    control.close()
    parent.close()
    os.waitpid(pid, 0)

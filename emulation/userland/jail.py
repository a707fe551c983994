"""The board's namespaces: built, entered and destroyed from the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from emulation.userland.plan import JailPlan, SyscallHandlers
from emulation.userland.spawner import Pty


class Jail:
    """One power-on of the board's userland.

    Thread-safe.  ``second_uid`` tells whether the board has user ids besides 0; ``pid`` is the
    host's number of the board's PID 1; ``on_death`` is called once from the jail thread when PID 1
    is gone for whatever reason.
    """

    second_uid: bool
    pid: int

    @classmethod
    def start(
        cls,
        plan: JailPlan,
        handlers: SyscallHandlers,
        *,
        on_death: Callable[[], None] | None = None,
        timeout: float = 10.0,
    ) -> Jail:
        """Build the namespaces and mounts; raises :class:`JailError` with the failing step."""
        raise NotImplementedError

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str = "/",
        fds: Sequence[int],
        controlling_tty: bool = False,
        uid: int = 0,
        gid: int = 0,
        on_exit: Callable[[int], None],
    ) -> int:
        """Start ``argv`` (looked up in env PATH) in a new session with ``fds`` as 0, 1, 2, ...;
        ``on_exit`` gets the wait status in the jail thread. Returns the board's process id."""
        raise NotImplementedError

    def signal(self, pid: int, number: int) -> None:
        """kill(2) inside the board; raises ``OSError``."""
        raise NotImplementedError

    def open_pty(self) -> Pty:
        """A new pseudo-terminal of the board's devpts."""
        raise NotImplementedError

    def set_efivarfs_read_only(self, read_only: bool) -> None:
        """Set or clear SB_RDONLY of efivarfs' superblock (not the mounts' own flags), soon.

        Callable from any thread, jail thread included; does not wait."""
        raise NotImplementedError

    def poke(self) -> None:
        """Record devices have news: pump them. Callable from any thread; does not wait."""
        raise NotImplementedError

    def kill(self) -> None:
        """Power cut: processes, mounts and FUSE connections are gone on return; idempotent."""
        raise NotImplementedError

"""Loadable modules of the board's kernel: what modprobe, rmmod and lsmod see.

Source: K6 kernel/module/main.c (load, delete_module); truth state-002 for sizes.
"""

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from emulation.linux.kernel import Task, current_task


@dataclass(frozen=True, eq=False)
class Module:
    """A module on the board's disk.

    ``start`` is its init function (OSError refuses loading), ``stop`` its exit function; both act
    for the task that loads or removes.  ``users`` counts what holds it, e.g. mounts.
    """

    name: str
    size: int
    start: Callable[[Task], None] = lambda task: None
    stop: Callable[[Task], None] = lambda task: None
    users: Callable[[], int] = lambda: 0
    aliases: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()


@dataclass
class ModuleLoader:
    """Modules by name; loading and removal are serialised, as by module_mutex and the states."""

    available: dict[str, Module]
    built_in: frozenset[str] = frozenset()
    """Names that are part of the kernel: loading them succeeds and does nothing."""
    _loaded: dict[str, Module] = field(default_factory=dict, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    @property
    def loaded(self) -> tuple[Module, ...]:
        """What is loaded, the newest first, as /proc/modules has it."""
        return tuple(reversed(self._loaded.values()))

    def users(self, name: str) -> int:
        """The use count of a loaded module: what holds it and how many modules need it."""
        module = self._loaded[name]
        return module.users() + len(self.dependents(name))

    def dependents(self, name: str) -> list[str]:
        """Loaded modules that need ``name``."""
        return [other.name for other in self._loaded.values() if name in other.needs]

    def find(self, name: str) -> Module | None:
        """The module of that name or alias; None for one that is part of the kernel.

        FileNotFoundError when there is none.
        """
        name = name.replace("-", "_") if ":" not in name else self._by_alias(name)
        if name in self.built_in:
            return None
        if name not in self.available:
            raise FileNotFoundError(errno.ENOENT, f"Module {name} not found")
        return self.available[name]

    def modprobe(self, name: str, *, task: Task | None = None) -> None:
        """Load a module, found by name or alias, after what it needs.

        FileNotFoundError when there is none; OSError from the module's init function.
        """
        module = self.find(name)
        if module is None:
            return
        name = module.name
        with self._lock:
            if name in self._loaded:
                return
            for needed in module.needs:
                self.modprobe(needed, task=task)
            # The module is visible while its init function runs, as in state "Loading".
            self._loaded[name] = module
        try:
            module.start(task or current_task())
        except BaseException:
            self._loaded.pop(name, None)
            raise

    def rmmod(self, name: str, *, task: Task | None = None) -> None:
        """Remove a module: FileNotFoundError when it is not loaded, OSError EAGAIN when in use."""
        name = name.replace("-", "_")
        with self._lock:
            if name not in self._loaded:
                raise FileNotFoundError(errno.ENOENT, f"Module {name} is not currently loaded")
            if self.users(name):
                raise OSError(errno.EAGAIN, f"Module {name} is in use")
            module = self._loaded.pop(name)
        module.stop(task or current_task())

    def load_by_alias(self, alias: str, *, task: Task) -> None:
        """What udev does with a device's MODALIAS: load what matches, quietly."""
        for module in self.available.values():
            if alias in module.aliases:
                self.modprobe(module.name, task=task)

    def _by_alias(self, alias: str) -> str:
        for module in self.available.values():
            if alias in module.aliases:
                return module.name
        raise FileNotFoundError(errno.ENOENT, f"Module {alias} not found")

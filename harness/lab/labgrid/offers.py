"""What a labgrid place that is held offers: its power, its serial port, its SSH address.

For the process that holds it (:mod:`harness.lab.labgrid.keeper`) only: labgrid's drivers may wait
for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.errors import ConfigurationError, HilError, LabError, PowerError

# An exporter starts ser2net when the place is acquired, and looks at its hardware every second.
_AVAILABLE_SECONDS = 10.0
_POLL_SECONDS = 0.2
# ser2net as an exporter starts it (`local`) acknowledges no modem control lines.
_RFC2217_OPTIONS = "ign_set_control&timeout=10"

# What labgrid-client's `power` uses for each resource; the later drivers stand on the earlier.
_POWER_DRIVERS = {
    "NetworkPowerPort": ("NetworkPowerDriver",),
    "NetworkUSBPowerPort": ("USBPowerDriver",),
    "NetworkSiSPMPowerPort": ("SiSPMPowerDriver",),
    "PDUDaemonPort": ("PDUDaemonDriver",),
    "TasmotaPowerPort": ("TasmotaPowerDriver",),
    "NetworkYKUSHPowerPort": ("YKUSHPowerDriver",),
    "NetworkSysfsGPIO": ("GpioDigitalOutputDriver", "DigitalOutputPowerDriver"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which place, for how long to wait for it (seconds), and the resources' names where the place
    has several of a kind."""

    coordinator: str
    place: str
    wait: float
    board: str
    power: str
    serial: str
    ssh: str
    parent: int


@dataclass(frozen=True, slots=True)
class _Resource:
    """A resource of the place: its name there, its path, and what its exporter says of it (None,
    or no class, where the exporter left)."""

    name: str
    cls: str
    path: str
    entry: Any

    @property
    def available(self) -> bool:
        return bool(self.entry and self.entry.data.get("cls") and self.entry.avail)


class Offers:
    """What the place offers that a session with the coordinator has acquired."""

    def __init__(self, wanted: Wanted, session: Any) -> None:
        self._wanted = wanted
        self._session = session

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request of the parent; raises :class:`HilError`."""
        match request["ask"]:
            case "serial":
                return {"end": await self._serial_end()}
            case "ssh":
                return {"end": await self._ssh_end()}
            case "switch":
                await self._power("on" if request["on"] else "off")
                return {}
            case "state":
                return {"on": await self._power("get")}
            case unknown:
                raise ValueError(f"no such request: {unknown}")

    async def _serial_end(self) -> dict[str, Any] | None:
        resource = self._choose("serial", ["NetworkSerialPort"])
        if resource is None:
            return None
        deadline = time.monotonic() + _AVAILABLE_SECONDS
        while not (resource.available and resource.entry.args["port"]):
            if time.monotonic() >= deadline:
                raise self._unavailable(resource)
            await asyncio.sleep(_POLL_SECONDS)
        args = resource.entry.args
        host, port = await asyncio.to_thread(_forwarded, resource)
        raw = args.get("protocol") == "raw"
        url = f"socket://{host}:{port}" if raw else f"rfc2217://{host}:{port}?{_RFC2217_OPTIONS}"
        return {"url": url, "baud": args["speed"]}

    async def _ssh_end(self) -> dict[str, Any] | None:
        resource = self._choose("ssh", ["NetworkService"])
        if resource is None:
            return None
        if not resource.available:
            raise self._unavailable(resource)
        args = resource.entry.args
        return {
            "host": args["address"],
            "port": args.get("port", 22),
            "user": args["username"],
            "password": args.get("password"),
        }

    async def _power(self, action: str) -> object:
        resource = self._choose("power", _POWER_DRIVERS)
        if resource is None:
            raise ConfigurationError(
                f"labgrid place {self._wanted.place} has nothing that switches power",
                remedy=f"add one of {', '.join(_POWER_DRIVERS)} to the place, or name another "
                "driver in [power]",
            )
        if not resource.available:
            raise self._unavailable(resource)
        return await asyncio.to_thread(self._switch, resource, action)

    def _switch(self, resource: _Resource, action: str) -> object:
        try:
            method = getattr(self._power_driver, action, None)
            return None if method is None else method()
        except NotImplementedError:
            return None
        except HilError:
            raise
        except Exception as error:
            raise PowerError(
                f"labgrid's power resource {resource.path}: {reason(error)}",
                remedy=f"try `labgrid-client -p {self._wanted.place} power {action}`; see the "
                "exporter's file for host and model",
            ) from error

    @cached_property
    def _power_driver(self) -> Any:
        from labgrid import Target, target_factory
        from labgrid.resource.remote import RemotePlace, RemotePlaceManager

        chosen = self._choose("power", _POWER_DRIVERS)
        assert chosen is not None
        manager = RemotePlaceManager.get()
        manager.session, manager.loop = self._session, self._session.loop
        target = Target(self._wanted.place)
        RemotePlace(target, name=self._wanted.place)
        below = chosen.name
        for name in _POWER_DRIVERS[chosen.cls]:
            (binding,) = target_factory.class_from_string(name).bindings
            target.set_binding_map({binding: below})
            driver = target_factory.make_driver(target, name, below, {})
        target.activate(driver)
        return driver

    def _choose(self, use: str, classes: Collection[str]) -> _Resource | None:
        """The place's resource for ``use`` (power, serial, ssh); None where it has none."""
        found = [one for one in self._resources() if one.cls in classes]
        wanted = getattr(self._wanted, use)
        if wanted:
            found = [one for one in found if one.name == wanted]
        if len(found) == 1:
            return found[0]
        if not found and not wanted:
            return None
        choice = ", ".join(one.name for one in self._resources() if one.cls in classes)
        what = f"no {use} resource {wanted!r}" if wanted else f"{len(found)} resources for {use}"
        raise ConfigurationError(
            f"labgrid place {self._wanted.place} has {what}; there is {choice or 'none'}",
            remedy=f'name one: {use} = "..." in [labgrid]',
        )

    def _resources(self) -> Iterator[_Resource]:
        place = self._session.places[self._wanted.place]
        for exporter, group, cls, name in place.acquired_resources:
            match = place.getmatch((exporter, group, cls, name))
            entry = self._session.resources.get(exporter, {}).get(group, {}).get(name)
            called = match.rename if match is not None and match.rename else name
            yield _Resource(called, cls, f"{exporter}/{group}/{cls}/{name}", entry)

    def _unavailable(self, resource: _Resource) -> LabError:
        exporter = resource.path.partition("/")[0]
        return LabError(
            f"labgrid's resource {resource.path} is not available",
            remedy=f"is labgrid-exporter running on {exporter!r}, and what it exports plugged in? "
            "its log says more",
        )


def _forwarded(resource: _Resource) -> tuple[str, int]:
    """Where to connect: through an SSH tunnel where the exporter or LG_PROXY asks for one."""
    from labgrid import Target, target_factory
    from labgrid.util.proxy import proxymanager

    entry = resource.entry
    made = target_factory.make_resource(Target("end"), resource.cls, resource.name, entry.args)
    made.extra = entry.extra
    host, port = proxymanager.get_host_and_port(made)
    return str(host), int(port)


def reason(error: BaseException) -> str:
    """What an error of labgrid or of a library says, or what it is called."""
    return str(error) or type(error).__name__

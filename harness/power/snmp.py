"""Power by an outlet of a PDU with SNMP (version 1 or 2c), by pysnmp."""

from typing import Literal

from pydantic import Field, SecretStr

from harness.errors import HostError, PowerError
from harness.power.driver import Driver, PowerState
from harness.power.outlet import OutletPower
from harness.power.section import OutletOptions, Section
from harness.tables import Port


class SnmpPowerOptions(OutletOptions):
    """One outlet of a PDU that is switched over SNMP: the object that controls it."""

    host: str = Field(min_length=1)
    port: Port = 161
    version: Literal["1", "2c"] = "1"
    community: SecretStr = Field(
        default=SecretStr("private"), json_schema_extra={"default": "private"}
    )
    oid: str = Field(
        pattern=r"^\.?\d+(\.\d+)+$",
        description="e.g. 1.3.6.1.4.1.318.1.1.4.4.2.1.3.4: APC sPDUOutletCtl of outlet 4",
    )
    on: int = Field(default=1, description="the value that means on")
    off: int = Field(default=2, description="the value that means off")


class SnmpPowerSection(Section):
    """An outlet of a PDU with SNMP."""

    driver: Literal["snmp"]
    options: SnmpPowerOptions


class SnmpOutlet:
    """See :class:`harness.power.driver.Outlet`; the state is the control object's value."""

    def __init__(self, options: SnmpPowerOptions) -> None:
        self._options = options

    def switch(self, on: bool, timeout: float) -> None:
        value = self._options.on if on else self._options.off
        self._ask(value, timeout)

    def read(self, timeout: float) -> PowerState:
        value = self._ask(None, timeout)
        return {self._options.on: PowerState.ON, self._options.off: PowerState.OFF}.get(
            value, PowerState.UNKNOWN
        )

    def __str__(self) -> str:
        return f"object {self._options.oid} of {self._options.host}"

    def _ask(self, value: int | None, timeout: float) -> int:
        import asyncio

        return asyncio.run(self._request(value, timeout))

    async def _request(self, value: int | None, timeout: float) -> int:
        """SET to ``value``, or GET for None; the value that the agent answers."""
        try:
            from pysnmp.hlapi.v1arch import asyncio as snmp
        except ImportError as error:
            raise HostError(
                "pysnmp is not installed", remedy="pip install 'stmm-hil[lab]'"
            ) from error
        version = 0 if self._options.version == "1" else 1
        tries = 3
        with snmp.SnmpDispatcher() as dispatcher:
            target = await snmp.UdpTransportTarget.create(
                (self._options.host, self._options.port), timeout=timeout / tries, retries=tries - 1
            )
            community = snmp.CommunityData(
                self._options.community.get_secret_value(), mpModel=version
            )
            identity = snmp.ObjectIdentity(self._options.oid)
            if value is None:
                answer = await snmp.get_cmd(
                    dispatcher, community, target, snmp.ObjectType(identity)
                )
            else:
                binding = snmp.ObjectType(identity, snmp.Integer32(value))
                answer = await snmp.set_cmd(dispatcher, community, target, binding)
        failure, status, _, bindings = answer
        if failure or status:
            raise PowerError(
                f"{self}: {failure or status.prettyPrint()}",
                remedy="check address, community (it must be allowed to write) and oid with "
                "snmpget and snmpset",
            )
        return int(bindings[0][1])


DRIVER = Driver(
    section=SnmpPowerSection,
    open=lambda section, context: OutletPower(
        SnmpOutlet(section.options), section.options, board=context.board
    ),
    things=lambda section: [
        f"outlet snmp {section.options.host} {section.options.oid.lstrip('.')}"
    ],
)

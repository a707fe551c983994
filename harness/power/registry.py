"""Every power driver: one line each.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from harness.power import command, emulated, http, labgrid, manual, qemu, relay, snmp, usb_hub
from harness.power.driver import Driver
from harness.power.section import Section

DRIVERS: tuple[Driver[Any], ...] = (
    emulated.DRIVER,
    command.DRIVER,
    manual.DRIVER,
    qemu.DRIVER,
    labgrid.DRIVER,
    http.DRIVER,
    snmp.DRIVER,
    usb_hub.DRIVER,
    relay.DRIVER,
)
OF_A_PLACE = labgrid.DRIVER.name
"""The driver of a board in a labgrid place whose file names none."""


def driver_of(section: Section) -> Driver[Any]:
    """The driver that a ``[power]`` chooses."""
    return next(driver for driver in DRIVERS if driver.section is type(section))


class _OneOfTheDrivers:
    """How pydantic reads a section: as that of the driver it names."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        sections = {driver.name: handler.generate_schema(driver.section) for driver in DRIVERS}
        return core_schema.tagged_union_schema(sections, discriminator="driver")


PowerSection = Annotated[Section, _OneOfTheDrivers()]

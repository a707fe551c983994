"""Power by an outlet of a PDU with SNMP (version 1, 2c or 3), by pysnmp."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from harness.errors import HostError, PowerError
from harness.power.driver import Driver, PowerState
from harness.power.outlet import OutletPower, StateUnclear
from harness.power.section import OutletOptions, Section
from harness.tables import Port

_AUTH: Final = {
    "md5": "USM_AUTH_HMAC96_MD5",
    "sha": "USM_AUTH_HMAC96_SHA",
    "sha224": "USM_AUTH_HMAC128_SHA224",
    "sha256": "USM_AUTH_HMAC192_SHA256",
    "sha384": "USM_AUTH_HMAC256_SHA384",
    "sha512": "USM_AUTH_HMAC384_SHA512",
}
_PRIV: Final = {
    "des": "USM_PRIV_CBC56_DES",
    "3des": "USM_PRIV_CBC168_3DES",
    "aes": "USM_PRIV_CFB128_AES",
    "aes192": "USM_PRIV_CFB192_AES",
    "aes256": "USM_PRIV_CFB256_AES",
}
_TRIES: Final = 3


class SnmpPowerOptions(OutletOptions):
    """One outlet of a PDU that is switched over SNMP: the object that controls it."""

    host: str = Field(min_length=1)
    port: Port = 161
    version: Literal["1", "2c", "3"] = "1"
    community: SecretStr = Field(
        default=SecretStr("private"), json_schema_extra={"default": "private"}
    )
    user: str = Field(default="", description="of version 3")
    auth: Literal["md5", "sha", "sha224", "sha256", "sha384", "sha512"] = "sha"
    auth_password: SecretStr | None = None
    priv: Literal["des", "3des", "aes", "aes192", "aes256"] = "aes"
    priv_password: SecretStr | None = None
    oid: str = Field(
        pattern=r"^\.?\d+(\.\d+)+$",
        description="e.g. 1.3.6.1.4.1.318.1.1.4.4.2.1.3.4: APC sPDUOutletCtl of outlet 4",
    )
    on: int = Field(default=1, description="the value that means on")
    off: int = Field(default=2, description="the value that means off")

    @model_validator(mode="after")
    def _version_and_user(self) -> Self:
        if self.version == "3" and not self.user:
            raise ValueError("version 3 needs user")
        if self.version != "3" and (self.user or self.auth_password or self.priv_password):
            raise ValueError('user and passwords are for version = "3"')
        if self.priv_password is not None and self.auth_password is None:
            raise ValueError("priv_password needs auth_password: SNMP has no privacy without")
        return self


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
        known = {self._options.on: PowerState.ON, self._options.off: PowerState.OFF}
        if value not in known:
            raise StateUnclear(
                f"{self} is {value}, which is neither on nor off",
                remedy="give the PDU's values as power.options.on and off; is oid the object that "
                "controls the outlet?",
            )
        return known[value]

    def __str__(self) -> str:
        return f"object {self._options.oid} of {self._options.host}"

    def _ask(self, value: int | None, timeout: float) -> int:
        import asyncio

        return asyncio.run(self._request(value, timeout))

    async def _request(self, value: int | None, timeout: float) -> int:
        """SET to ``value``, or GET for None; the value that the agent answers."""
        try:
            import pysnmp.error
        except ImportError as error:
            raise HostError(
                "pysnmp is not installed", remedy="pip install 'stmm-hil[lab]'"
            ) from error
        request = self._as_user if self._options.version == "3" else self._as_community
        try:
            failure, status, _, bindings = await request(value, timeout / _TRIES)
        except (pysnmp.error.PySnmpError, OSError) as error:
            raise self._refused(str(error).splitlines()[0]) from error
        if failure or status:
            raise self._refused(str(failure) if failure else status.prettyPrint())
        answer = bindings[0][1]
        try:
            return int(answer)
        except (TypeError, ValueError):  # noSuchObject, noSuchInstance, or a text
            raise self._refused(answer.prettyPrint()) from None

    def _refused(self, why: str) -> PowerError:
        who = "user and passwords" if self._options.version == "3" else "community"
        return PowerError(
            f"{self}: {why}",
            remedy=f"check address, {who} (it must be allowed to write) and oid with "
            "snmpget and snmpset",
        )

    async def _as_community(self, value: int | None, timeout: float) -> Any:
        from pysnmp.hlapi.v1arch import asyncio as snmp

        secret = self._options.community.get_secret_value()
        community = snmp.CommunityData(secret, mpModel=0 if self._options.version == "1" else 1)
        with snmp.SnmpDispatcher() as dispatcher:
            target = await snmp.UdpTransportTarget.create(
                (self._options.host, self._options.port), timeout=timeout, retries=_TRIES - 1
            )
            binding = self._binding(snmp, value)
            command = snmp.get_cmd if value is None else snmp.set_cmd
            return await command(dispatcher, community, target, binding)

    async def _as_user(self, value: int | None, timeout: float) -> Any:
        from pysnmp.hlapi.v3arch import asyncio as snmp

        def secret(password: SecretStr | None) -> str | None:
            return None if password is None else password.get_secret_value()

        options = self._options
        auth, priv = secret(options.auth_password), secret(options.priv_password)
        user = snmp.UsmUserData(
            options.user,
            auth,
            priv,
            authProtocol=getattr(snmp, _AUTH[options.auth] if auth else "USM_AUTH_NONE"),
            privProtocol=getattr(snmp, _PRIV[options.priv] if priv else "USM_PRIV_NONE"),
        )
        engine = snmp.SnmpEngine()
        try:
            target = await snmp.UdpTransportTarget.create(
                (options.host, options.port), timeout=timeout, retries=_TRIES - 1
            )
            binding = self._binding(snmp, value)
            command = snmp.get_cmd if value is None else snmp.set_cmd
            return await command(engine, user, target, snmp.ContextData(), binding)
        finally:
            engine.close_dispatcher()

    def _binding(self, snmp: Any, value: int | None) -> Any:
        """The object to ask for, or to set to ``value``."""
        identity = snmp.ObjectIdentity(self._options.oid)
        return snmp.ObjectType(identity, *([] if value is None else [snmp.Integer32(value)]))


DRIVER = Driver(
    section=SnmpPowerSection,
    open=lambda section, context: OutletPower(
        SnmpOutlet(section.options), section.options, board=context.board
    ),
    things=lambda section: [
        f"outlet snmp {section.options.host} {section.options.oid.lstrip('.')}"
    ],
)

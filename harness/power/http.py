"""Power by a plug or strip that is switched over HTTP: Tasmota, Shelly.

Sources: Tasmota "Commands" (Power, web requests by ``/cm?cmnd=``), Shelly API (generation 1
``/relay/N``, generation 2 ``Switch.Set`` and ``Switch.GetStatus``).
"""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Literal, assert_never
from urllib.parse import quote, urlencode

from pydantic import Field, SecretStr

from harness.errors import PowerError
from harness.foreign import redacted
from harness.power.driver import Driver, PowerState
from harness.power.outlet import OutletPower
from harness.power.section import OutletOptions, Section

if TYPE_CHECKING:
    from urllib.request import BaseHandler, OpenerDirector

_LARGEST_ANSWER = 65536


class HttpPowerOptions(OutletOptions):
    """One outlet of a plug or strip that is switched over HTTP."""

    kind: Literal["tasmota", "shelly", "shelly-gen1"] = Field(
        description="`shelly` is generation 2 and later (RPC)"
    )
    host: str = Field(min_length=1, description="name or address, with :PORT where it is not 80")
    outlet: int = Field(
        default=0, ge=0, le=31, description="relay number, from 0 (Tasmota shows it from 1)"
    )
    user: str = "admin"
    password: SecretStr | None = None


class HttpPowerSection(Section):
    """A Tasmota or Shelly plug."""

    driver: Literal["http"]
    options: HttpPowerOptions


class HttpOutlet:
    """See :class:`harness.power.driver.Outlet`; the state is what the device reports of its
    relay."""

    def __init__(self, options: HttpPowerOptions) -> None:
        self._options = options
        self._opener = _opener(options)

    def switch(self, on: bool, timeout: float) -> None:
        number = self._options.outlet
        match self._options.kind:
            case "tasmota":
                self._tasmota(f"Power{number + 1} {'On' if on else 'Off'}", timeout)
            case "shelly":
                flag = "true" if on else "false"
                self._get(f"/rpc/Switch.Set?id={number}&on={flag}", timeout)
            case "shelly-gen1":
                self._get(f"/relay/{number}?turn={'on' if on else 'off'}", timeout)
            case _:
                assert_never(self._options.kind)

    def read(self, timeout: float) -> PowerState:
        number = self._options.outlet
        match self._options.kind:
            case "tasmota":
                answer = self._tasmota(f"Power{number + 1}", timeout)
                # A device with one relay leaves its number out.
                state = answer.get(f"POWER{number + 1}", answer.get("POWER"))
                return {"ON": PowerState.ON, "OFF": PowerState.OFF}.get(
                    str(state), PowerState.UNKNOWN
                )
            case "shelly":
                answer = self._get(f"/rpc/Switch.GetStatus?id={number}", timeout)
                return _state(answer.get("output"))
            case "shelly-gen1":
                return _state(self._get(f"/relay/{number}", timeout).get("ison"))
            case _:
                assert_never(self._options.kind)

    def __str__(self) -> str:
        return f"outlet {self._options.outlet} of http://{self._options.host}"

    def _tasmota(self, command: str, timeout: float) -> dict[str, Any]:
        query = {"cmnd": command}
        if self._options.password is not None:
            # Tasmota takes no other authentication for commands.
            password = self._options.password.get_secret_value()
            query |= {"user": self._options.user, "password": password}
        return self._get(f"/cm?{urlencode(query, quote_via=quote)}", timeout)

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        try:
            with self._opener.open(
                f"http://{self._options.host}{path}", timeout=timeout
            ) as response:
                answer = json.loads(response.read(_LARGEST_ANSWER))
        except (OSError, ValueError, HTTPException) as error:
            reason = self._redacted(getattr(error, "reason", error))
            raise PowerError(
                f"{self}: no usable answer ({reason})",
                remedy="check its address, its password and that it is the kind that "
                "power.options.kind says; where it redirects to is not followed",
            ) from None
        if not isinstance(answer, dict):
            raise PowerError(
                f"{self}: it answered {self._redacted(answer)[:80]!r}",
                remedy="check that it is the kind that power.options.kind says",
            )
        return answer

    def _redacted(self, text: object) -> str:
        password = self._options.password
        return redacted(str(text), password.get_secret_value() if password else "")


def _opener(options: HttpPowerOptions) -> OpenerDirector:
    """Straight to the device, whatever proxy the environment names."""
    # Late: it costs as much as a whole `hil --help`.
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """The password is in the request, and another host would get it."""

        def redirect_request(self, *of: object) -> None:
            return None

    handlers: list[BaseHandler] = [urllib.request.ProxyHandler({}), NoRedirect()]
    if options.password is not None and options.kind != "tasmota":
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        secret = options.password.get_secret_value()
        passwords.add_password(None, f"http://{options.host}/", options.user, secret)
        handlers += [
            urllib.request.HTTPDigestAuthHandler(passwords),
            urllib.request.HTTPBasicAuthHandler(passwords),
        ]
    return urllib.request.build_opener(*handlers)


def _state(on: object) -> PowerState:
    return PowerState.UNKNOWN if on is None else PowerState.ON if on else PowerState.OFF


DRIVER = Driver(
    section=HttpPowerSection,
    open=lambda section, context: OutletPower(
        HttpOutlet(section.options), section.options, board=context.board
    ),
    things=lambda section: [f"outlet http {section.options.host} {section.options.outlet}"],
)

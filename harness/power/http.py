"""Power by a plug or strip that is switched over HTTP: Tasmota, Shelly.

Sources: Tasmota "Commands" (Power, web requests by ``/cm?cmnd=``), Shelly API (generation 1
``/relay/N``, generation 2 ``Switch.Set`` and ``Switch.GetStatus``).
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Literal, assert_never
from urllib.parse import quote, urlencode

from pydantic import Field, SecretStr

from harness.errors import PowerError
from harness.foreign import redacted
from harness.power.driver import Driver, PowerState
from harness.power.outlet import OutletPower
from harness.power.section import OutletOptions, Section

if TYPE_CHECKING:
    from requests import Response, Session

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
    relay. A password is answered as the device asks for it: digest (MD5, SHA-256), else basic."""

    def __init__(self, options: HttpPowerOptions) -> None:
        self._options = options

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
                return self._state({"ON": True, "OFF": False}.get(str(state)), answer)
            case "shelly":
                answer = self._get(f"/rpc/Switch.GetStatus?id={number}", timeout)
                return self._state(answer.get("output"), answer)
            case "shelly-gen1":
                answer = self._get(f"/relay/{number}", timeout)
                return self._state(answer.get("ison"), answer)
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

    def _state(self, on: object, answer: dict[str, Any]) -> PowerState:
        """Raises :class:`PowerError` where the answer does not say it: a refusal, mostly."""
        if not isinstance(on, bool):
            raise self._no_answer(f"it says {json.dumps(answer)[:200]}")
        return PowerState.ON if on else PowerState.OFF

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        # Late: it costs more than a whole `hil --help`.
        import requests

        with requests.Session() as session:
            # Straight to the device, whatever proxy or .netrc the environment names.
            session.trust_env = False
            try:
                status, text = self._ask(session, f"http://{self._options.host}{path}", timeout)
                answer = json.loads(text)
            except (OSError, ValueError, RecursionError) as error:
                raise self._no_answer(error) from None
        if status >= 400 or not isinstance(answer, dict):
            raise self._no_answer(f"status {status}: {text[:80]!r}")
        return answer

    def _ask(self, session: Session, url: str, timeout: float) -> tuple[int, str]:
        """Status and text. Where it redirects to is not asked: it would get the password."""
        from requests.auth import HTTPBasicAuth, HTTPDigestAuth

        deadline = time.monotonic() + timeout
        name, password = self._options.user, self._options.password
        # Tasmota takes it in the request only.
        if password is None or self._options.kind == "tasmota":
            return self._read(session.get(url, **_LIMITS, timeout=timeout), deadline)
        digest = HTTPDigestAuth(name, password.get_secret_value())
        answer = session.get(url, **_LIMITS, timeout=timeout, auth=digest)
        asked = answer.headers.get("WWW-Authenticate", "").lower()
        if answer.status_code == 401 and "basic" in asked and "digest" not in asked:
            basic = HTTPBasicAuth(name, password.get_secret_value())
            answer = session.get(url, **_LIMITS, timeout=timeout, auth=basic)
        return self._read(answer, deadline)

    def _read(self, answer: Response, deadline: float) -> tuple[int, str]:
        text = b""
        with answer:
            if answer.is_redirect:
                raise OSError(f"status {answer.status_code}, a redirect")
            for piece in answer.iter_content(4096):
                text += piece
                if len(text) > _LARGEST_ANSWER:
                    raise OSError("an answer without end")
                if time.monotonic() > deadline:
                    raise TimeoutError("it did not end within the time for a request")
        if answer.status_code == 401:
            given = "not the one given" if self._options.password else "not given"
            raise OSError(f"status 401: it wants a password, and it was {given}")
        return answer.status_code, text.decode("utf-8", "replace")

    def _no_answer(self, why: object) -> PowerError:
        password = self._options.password
        secret = password.get_secret_value() if password else ""
        return PowerError(
            f"{self}: no usable answer ({redacted(str(why), secret, quote(secret))})",
            remedy="check its address, its password and that it is the kind that "
            "power.options.kind says; where it redirects to is not followed",
        )


_LIMITS: Any = {"allow_redirects": False, "stream": True}


DRIVER = Driver(
    section=HttpPowerSection,
    open=lambda section, context: OutletPower(
        HttpOutlet(section.options), section.options, board=context.board
    ),
    things=lambda section: [f"outlet http {section.options.host} {section.options.outlet}"],
)

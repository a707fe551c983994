"""OP-TEE as its callers see it: sessions, invocations, and the list of devices.

Source: stack 1.8, 3; OTH core/kernel/tee_ta_manager.c, core/pta/device.c.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final, Protocol
from uuid import UUID

from emulation.faults import Faults
from emulation.optee.config import OpTeeConfig, Release, Trace
from emulation.optee.rpmb_client import RpmbClient
from emulation.optee.rpmb_fs import RpmbFileSystem
from emulation.optee.stmm_partition import (
    STMM_UUID,
    LoadPartition,
    SecurePartition,
    StmmContext,
    StoreFile,
)
from emulation.stmm.storage import SecureStorage
from harness.formats.tee import Param, ParamType, TeeError, TeeOrigin, TeeResult

DEVICE_ENUMERATION_UUID: Final = UUID("7011a688-ddde-4053-a5a9-7b3c4ddf13b8")
GET_DEVICES: Final = 0
GET_DEVICES_SUPP: Final = 1
GET_DEVICES_RPMB: Final = 2


class NormalWorld(Protocol):
    """Who answers OP-TEE's remote procedure calls: U-Boot, or the Linux optee driver."""

    def rpmb_rpc(self, request: bytes, reply_size: int) -> bytes:
        """RPC RPMB (stack 1.7): a RequestHeader with frames in, ``reply_size`` bytes out.

        May block and may raise PowerLost.  Raises TeeError: OUT_OF_MEMORY when the memory for the
        request cannot be had, which is what an absent supplicant comes to, COMMUNICATION when the
        caller was killed while waiting, otherwise what the supplicant said.  Nothing else leaves
        it: OP-TEE's thread goes on when the caller's does not.
        """
        ...


class NoNormalWorld:
    """Before U-Boot runs nobody answers."""

    def rpmb_rpc(self, request: bytes, reply_size: int) -> bytes:
        """See NormalWorld."""
        raise TeeError(TeeResult.COMMUNICATION, TeeOrigin.COMMS)


class OpTee:
    """One OP-TEE from power-on to power-off.

    ``log`` gets OP-TEE's console lines; ``load`` makes the secure partition, by default the
    StandaloneMm that belongs to the release.  Calls may come from several threads; OP-TEE works for
    one at a time.  A caller that must be seen waiting, or that the loss of power must reach while
    it waits, waits in the normal world (optee_notif_wait) beforehand.
    """

    def __init__(
        self,
        config: OpTeeConfig | None = None,
        *,
        log: Callable[[str], None] = lambda line: None,
        faults: Faults | None = None,
        load: LoadPartition | None = None,
    ) -> None:
        self.config = config or OpTeeConfig()
        self.normal_world: NormalWorld = NoNormalWorld()
        self._faults = faults or Faults()
        self._load = load or functools.partial(_load_stmm, self.config.release)
        self._trace = Trace(log, self.config.log_level)
        self.rpmb = RpmbClient(
            self.config, lambda *request: self.normal_world.rpmb_rpc(*request), self._trace
        )
        files = RpmbFileSystem(self.config, self.rpmb, self._trace)
        self._store = StoreFile(files, self.config.release, self._trace, self._faults)
        self._stmm: StmmContext | None = None
        self._sessions: dict[int, StmmContext] = {}
        self._numbers = count(1)
        self._inside = threading.Lock()

    def open_session(self, uuid: UUID, param_types: Sequence[int] = (0, 0, 0, 0)) -> int:
        """Open a session; its number.  The first one of StMM loads it, which uses the RPMB.

        Raises TeeError: ITEM_NOT_FOUND for an unknown application, TARGET_DEAD after a panic,
        BAD_PARAMETERS, BAD_STATE.
        """
        if uuid != STMM_UUID or not self.config.stmm:
            raise TeeError(TeeResult.ITEM_NOT_FOUND)
        with self._inside:
            context = self._stmm_context()
            context.check_open(tuple(ParamType(kind) for kind in param_types))
            context.sessions += 1
            session = next(self._numbers)
            self._sessions[session] = context
            return session

    def close_session(self, session: int) -> None:
        """Close a session; TeeError BAD_PARAMETERS if it is unknown."""
        with self._inside:
            context = self._sessions.pop(session, None)
            if context is None:
                raise TeeError(TeeResult.BAD_PARAMETERS)
            context.sessions -= 1
            self._drop_if_dead(context)

    def invoke(self, session: int, command: int, params: list[Param]) -> None:
        """Invoke a command; outputs are in ``params``.  Raises TeeError."""
        with self._inside:
            context = self._sessions.get(session)
            if context is None:
                raise TeeError(TeeResult.BAD_PARAMETERS)
            context.invoke(command, params)

    def enumerate_devices(self, function: int) -> list[UUID]:
        """The device enumeration PTA: GET_DEVICES, GET_DEVICES_SUPP or GET_DEVICES_RPMB.

        StMM needs storage, so it is listed when that is within reach.  Raises TeeError:
        STORAGE_NOT_AVAILABLE if the RPMB cannot be had, NOT_IMPLEMENTED.
        """
        if function == GET_DEVICES:
            return list(self.config.listed_devices)
        stmm = [STMM_UUID] if self.config.stmm else []
        if function == GET_DEVICES_SUPP:
            return [] if self.config.announce_probe else stmm
        if function == GET_DEVICES_RPMB and self.config.release != "4.1":
            with self._inside:
                try:
                    self.rpmb.initialise()
                except TeeError:
                    raise TeeError(TeeResult.STORAGE_NOT_AVAILABLE) from None
                return stmm
        raise TeeError(TeeResult.NOT_IMPLEMENTED)

    def _stmm_context(self) -> StmmContext:
        context = self._stmm
        if context is None:
            context = StmmContext(self.config, self._store, self._load, self._faults)
            self._stmm = context
            try:
                context.start()
            except TeeError:
                self._drop_if_dead(context)
                raise
        elif context.panicked:
            raise TeeError(TeeResult.TARGET_DEAD)
        return context

    def _drop_if_dead(self, context: StmmContext) -> None:
        """A context that panicked goes with its last session; the next open loads a new one."""
        if context.panicked and context.sessions == 0:
            self._stmm = None


def _load_stmm(release: Release, storage: SecureStorage) -> SecurePartition:
    # Late, because a board whose U-Boot keeps its own variables may never load it.
    from emulation.stmm.config import CONFIGS
    from emulation.stmm.standalone_mm import StandaloneMm

    return StandaloneMm(storage, CONFIGS[release])

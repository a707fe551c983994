"""A card, an OP-TEE on it, and a partition that only stores: what the OP-TEE tests share."""

from __future__ import annotations

from collections.abc import Callable

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.faults import Faults
from emulation.optee.config import OpTeeConfig
from emulation.optee.optee import OpTee
from emulation.optee.rpmb_client import RpmbClient
from emulation.optee.stmm_partition import STMM_UUID, SecurePartition
from emulation.rpmb_transport import RpmbTransport
from emulation.stmm.storage import SecureStorage


class Wire:
    """The normal world: straight to the card, with every request in a list, and a saboteur."""

    def __init__(self, card: EmmcCard) -> None:
        self._transport = RpmbTransport(card)
        self.requests: list[bytes] = []
        self.before: Callable[[bytes], None] = lambda request: None
        self.after: Callable[[bytes], bytes] = lambda reply: reply

    def rpmb_rpc(self, request: bytes, reply_size: int) -> bytes:
        self.requests.append(request)
        self.before(request)
        return self.after(self._transport.rpmb_rpc(request, reply_size))


class Partition:
    """A secure partition that reverses the message and keeps its storage in reach."""

    def __init__(self, storage: SecureStorage) -> None:
        self.storage = storage
        self.started = 0
        self.answer: int | None = 0

    def start(self) -> None:
        self.started += 1

    def communicate(self, buffer: bytearray, size: int) -> int | None:
        buffer[:size] = buffer[:size][::-1]
        return self.answer


class Bench:
    """One boot of OP-TEE; :meth:`reboot` makes the next, on the same card."""

    def __init__(
        self,
        config: OpTeeConfig | None = None,
        card: EmmcCard | None = None,
        *,
        size_mult: int = 16,
    ) -> None:
        self.config = config or OpTeeConfig()
        self.faults = Faults()
        self.card = card or EmmcCard(RpmbImage.in_memory(size_mult), faults=self.faults)
        self.log: list[str] = []
        self.loaded: list[Partition] = []
        self.wire = Wire(self.card)
        self.optee = OpTee(self.config, log=self.log.append, faults=self.faults, load=self._load)
        self.optee.normal_world = self.wire

    def _load(self, storage: SecureStorage) -> SecurePartition:
        self.loaded.append(Partition(storage))
        return self.loaded[-1]

    def storage(self) -> SecureStorage:
        """The storage service as the partition sees it, after a session was opened."""
        self.optee.open_session(STMM_UUID)
        return self.loaded[-1].storage

    @property
    def rpmb(self) -> RpmbClient:
        return self.optee.rpmb

    @property
    def counter(self) -> int:
        return self.card.rpmb.write_counter

    def reboot(self, config: OpTeeConfig | None = None) -> Bench:
        self.card.power_cycle()
        again = Bench(config or self.config, self.card)
        again.faults = self.faults
        return again

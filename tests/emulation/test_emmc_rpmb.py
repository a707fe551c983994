"""The RPMB as a state machine: each rule of stack 1.4, and a second model of the whole."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.emmc.image import RpmbImage
from emulation.emmc.rpmb import PROFILES, QEMU, SILICON, SUPPLICANT_EMULATION, RpmbPartition
from emulation.faults import Action, Faults, FaultSpecError, PowerLost
from harness.formats import rpmb
from harness.formats.rpmb import RpmbFrame, RpmbResult

KEY = bytes(range(32))
NONCE = b"nonce of 16 byte"
LAST = 16 * 512 - 1


def block(text: str) -> bytes:
    return text.encode().ljust(256, b".")


class Host:
    """Sends what tee-supplicant sends and reads what it reads."""

    def __init__(
        self,
        profile: str = "qemu",
        *,
        keyed: bool = True,
        rel_wr_sec_c: int = 1,
        enhanced: bool = False,
    ) -> None:
        self.image = RpmbImage.in_memory()
        self.faults = Faults()
        self.card = RpmbPartition(
            self.image,
            profile=PROFILES[profile],
            faults=self.faults,
            rel_wr_sec_c=rel_wr_sec_c,
            enhanced=enhanced,
        )
        if keyed:
            assert self.program(KEY).result == RpmbResult.OK

    def program(self, key: bytes, *, reliable: bool = True) -> RpmbFrame:
        return self.do(rpmb.key_request(key), reliable=reliable)

    def do(self, frames: bytes, *, reliable: bool = True) -> RpmbFrame:
        self.card.write_frames(frames, reliable=reliable)
        self.card.write_frames(rpmb.result_request(), reliable=False)
        return RpmbFrame.unpack(self.card.read_frames(1))

    def write(self, address: int, data: bytes, counter: int | None = None) -> RpmbFrame:
        at = self.card.write_counter if counter is None else counter
        return self.do(rpmb.write_request(KEY, at, address, data))

    def ask(self, request: bytes, count: int = 1) -> bytes:
        self.card.write_frames(request, reliable=False)
        return self.card.read_frames(count)

    def counter(self) -> RpmbFrame:
        return RpmbFrame.unpack(self.ask(rpmb.counter_request(NONCE)))

    def read(self, address: int, count: int = 1) -> list[RpmbFrame]:
        return rpmb.unpack_frames(self.ask(rpmb.read_request(address, NONCE), count))


@pytest.mark.parametrize("profile", ["qemu", "silicon"])
@pytest.mark.cases(1, 2, 3, 4)
def test_nothing_but_key_programming_without_a_key(profile: str) -> None:
    host = Host(profile, keyed=False)
    assert (host.counter().result, host.counter().kind) == (7, 0x0200)
    assert host.read(0)[0].result == 7
    assert host.write(0, block("x")).result == 7
    assert host.card.write_counter == 0
    answer = host.program(KEY)
    assert (answer.result, answer.kind) == (0, 0x0100)


def test_an_unkeyed_supplicant_emulation_lets_itself_be_read() -> None:
    """What makes every SetVariable fail on a board with a real RPMB (truth log-debian-emu)."""
    host = Host("supplicant-emu", keyed=False)
    (frame,) = host.read(0)
    assert (frame.result, frame.mac) == (0, rpmb.NO_MAC)
    assert host.counter().result == 7


@pytest.mark.parametrize(
    ("profile", "result"), [("qemu", 5), ("silicon", 1), ("supplicant-emu", 1)]
)
@pytest.mark.cases(6, 7)
def test_the_key_is_written_once(profile: str, result: int) -> None:
    host = Host(profile)
    assert host.program(b"other key".ljust(32)).result == result
    assert host.program(KEY).result == result
    assert host.write(0, block("still the first key")).result == 0


@pytest.mark.cases(5)
def test_only_silicon_insists_on_reliable_write() -> None:
    host = Host("silicon", keyed=False)
    assert host.program(KEY, reliable=False).result == 1
    assert host.program(KEY).result == 0
    request = rpmb.write_request(KEY, 0, 0, block("x"))
    assert host.do(request, reliable=False).result == 1
    assert Host("qemu").do(request, reliable=False).result == 0


@pytest.mark.cases(8)
def test_counter_read() -> None:
    host = Host()
    host.write(1, block("x"))
    frame = host.counter()
    assert (frame.result, frame.write_counter, frame.nonce) == (0, 1, NONCE)
    assert frame.mac == rpmb.mac(KEY, frame.pack())


@pytest.mark.cases(11, 16)
def test_a_write_answers_with_the_new_counter() -> None:
    host = Host()
    answer = host.write(LAST, block("last"))
    assert (answer.result, answer.kind, answer.write_counter, answer.address) == (0, 0x300, 1, LAST)
    assert answer.nonce == rpmb.NO_NONCE
    assert answer.mac == rpmb.mac(KEY, answer.pack())
    assert host.read(LAST)[0].data == block("last")


@pytest.mark.parametrize("profile", ["qemu", "silicon"])
@pytest.mark.cases(10, 12, 13, 14, 15)
def test_wrong_mac_wrong_counter_and_replay_change_nothing(profile: str) -> None:
    host = Host(profile)
    accepted = rpmb.write_request(KEY, 0, 3, block("first"))
    assert host.do(accepted).result == 0
    assert host.do(accepted).result == RpmbResult.COUNTER_FAILURE
    assert host.write(3, block("early"), counter=2).result == RpmbResult.COUNTER_FAILURE
    forged = rpmb.write_request(b"wrong key".ljust(32), 1, 3, block("forged"))
    assert host.do(forged).result == RpmbResult.AUTHENTICATION_FAILURE
    stuffed = b"\xff" * 196 + rpmb.write_request(KEY, 1, 4, block("stuffed"))[196:]
    assert host.do(stuffed).result == RpmbResult.OK
    assert host.read(3)[0].data == block("first")
    assert host.card.write_counter == 2


def test_the_recorded_board_has_no_address_check() -> None:
    """Truth rpmb-005, -009."""
    host = Host("qemu")
    assert host.write(LAST + 1, block("beyond")).result == 0
    assert host.card.write_counter == 1
    beyond = host.read(LAST, 2)
    assert [frame.result for frame in beyond] == [0, 0]
    assert beyond[1].data == block("beyond")


@pytest.mark.cases(17, 18, 19, 26)
def test_silicon_checks_addresses_before_macs() -> None:
    host = Host("silicon")
    forged = rpmb.write_request(b"wrong key".ljust(32), 0, LAST + 1, block("x"))
    assert host.do(forged).result == RpmbResult.ADDRESS_FAILURE
    assert host.write(LAST, block("a") + block("b")).result == RpmbResult.ADDRESS_FAILURE
    assert [frame.result for frame in host.read(LAST, 2)] == [4, 4]
    assert host.card.write_counter == 0
    assert Host("supplicant-emu").read(LAST, 2)[1].result == 0


@pytest.mark.parametrize(
    ("profile", "rel_wr_sec_c", "enhanced", "allowed"),
    [
        ("qemu", 8, False, {1}),
        ("silicon", 1, False, {1, 2}),
        ("silicon", 4, False, set(range(1, 9))),
        ("silicon", 1, True, {1, 2, 32}),
    ],
)
@pytest.mark.cases(20, 23)
def test_frames_in_one_write(
    profile: str, rel_wr_sec_c: int, enhanced: bool, allowed: set[int]
) -> None:
    for count in (1, 2, 3, 8, 9, 31, 32, 33):
        host = Host(profile, rel_wr_sec_c=rel_wr_sec_c, enhanced=enhanced)
        data = b"".join(block(f"{index}") for index in range(count))
        answer = host.write(100, data)
        assert answer.result == (0 if count in allowed else 1), count
        assert host.card.write_counter == (1 if count in allowed else 0)
        if count in allowed:
            assert b"".join(frame.data for frame in host.read(100, count)) == data


@pytest.mark.cases(20, 21, 22)
def test_a_write_of_two_frames_has_one_mac_and_one_address() -> None:
    host = Host("silicon")
    good = rpmb.write_request(KEY, 0, 10, block("a") + block("b"))
    first, second = rpmb.unpack_frames(good)
    early = RpmbFrame(second.mac, first.data, kind=3, address=10, block_count=2).pack()
    assert (
        host.do(
            early + RpmbFrame(data=second.data, kind=3, address=10, block_count=2).pack()
        ).result
        == RpmbResult.AUTHENTICATION_FAILURE
    )
    stepping = first.pack() + RpmbFrame(data=second.data, kind=3, address=11, block_count=2).pack()
    assert host.do(rpmb.sign(KEY, stepping)).result == RpmbResult.GENERAL_FAILURE
    assert host.do(good).result == RpmbResult.OK


@pytest.mark.cases(20)
def test_supplicant_emulation_counts_blocks_and_ignores_the_counter() -> None:
    host = Host("supplicant-emu")
    assert host.write(0, block("a") + block("b"), counter=77).write_counter == 2
    frames = host.read(0, 2)
    assert frames[0].block_count == 0x0200


@pytest.mark.cases(24, 25)
def test_a_long_read_is_signed_as_a_whole() -> None:
    host = Host()
    for index in range(192):
        host.write(index, block(f"block {index}"))
    raw = host.ask(rpmb.read_request(0, NONCE), 192)
    frames = rpmb.unpack_frames(raw)
    assert [frame.data for frame in frames] == [block(f"block {index}") for index in range(192)]
    assert {(f.nonce, f.address, f.block_count, f.result, f.kind) for f in frames} == {
        (NONCE, 0, 192, 0, 0x0400)
    }
    assert {frame.mac for frame in frames[:-1]} == {rpmb.NO_MAC}
    assert frames[-1].mac == rpmb.mac(KEY, raw)


@pytest.mark.parametrize("profile", ["qemu", "silicon"])
@pytest.mark.cases(27, 28, 29)
def test_the_counter_stops_at_its_end(profile: str) -> None:
    host = Host(profile)
    host.write(9, block("before"))
    host.image.commit(0xFFFFFFFE)
    assert host.write(9, block("very last")).result == 0x80
    assert host.write(9, block("too late")).result == 0x85
    assert (host.counter().result, host.counter().write_counter) == (0x80, 0xFFFFFFFF)
    assert (host.read(9)[0].result, host.read(9)[0].data) == (0x80, block("very last"))


@pytest.mark.parametrize("kind", [0, 6, 7, 9, 0x00FF, 0xFFFF])
@pytest.mark.cases(30)
def test_unknown_requests_are_a_general_failure(kind: int) -> None:
    answer = Host().do(RpmbFrame(kind=kind).pack())
    assert (answer.result, answer.kind) == (1, kind << 8 & 0xFFFF)


@pytest.mark.cases(31, 32, 34)
def test_the_result_register_stays_and_goes_with_the_power() -> None:
    host = Host()
    first = host.write(0, block("x"))
    host.card.write_frames(rpmb.result_request(), reliable=False)
    assert RpmbFrame.unpack(host.card.read_frames(1)) == first
    host.card.power_cycle()
    assert RpmbFrame.unpack(host.card.read_frames(1)).kind == 0
    assert host.card.write_counter == 1
    assert host.read(0)[0].data == block("x")


@pytest.mark.cases(33)
def test_two_hosts_without_a_lock_get_each_others_answers() -> None:
    host = Host()
    host.card.write_frames(rpmb.counter_request(b"A" * 16), reliable=False)
    host.card.write_frames(rpmb.read_request(3, b"B" * 16), reliable=False)
    assert RpmbFrame.unpack(host.card.read_frames(1)).nonce == b"B" * 16


def test_faults() -> None:
    host = Host()
    host.faults.arm("rpmb.write=result:5")
    host.faults.arm("rpmb.response:2=mac")
    assert host.write(0, block("refused")).result == 5
    assert host.card.write_counter == 0
    spoilt = host.write(0, block("taken"))
    assert spoilt.result == 0
    assert spoilt.mac != rpmb.mac(KEY, spoilt.pack())
    host.faults.arm("rpmb.request=lost")
    assert host.write(0, block("lost")).write_counter == 1
    host.faults.arm("rpmb.response=result:6")
    assert host.read(0)[0].result == 6
    host.faults.arm("rpmb.response=lost")
    assert host.counter() == RpmbFrame()
    assert host.counter().write_counter == 1


@pytest.mark.cases(35)
def test_a_power_cut_is_seen_by_the_whole_board() -> None:
    host = Host()
    cut: list[str] = []
    host.faults.cut_power = lambda: cut.append("now")
    host.faults.arm("rpmb.written:2=power-cut")
    assert host.write(0, block("first")).result == 0
    with pytest.raises(PowerLost):
        host.write(0, block("second"))
    assert cut == ["now"]
    host.card.power_cycle()
    assert (host.read(0)[0].data, host.card.write_counter) == (block("second"), 2)


def test_fault_specifications() -> None:
    faults = Faults()
    for text in (
        "",
        "x",
        "rpmb.write:0=power-cut",
        "rpmb.write:=power-cut",
        "rpmb.write=",
        "rpmb.write:a=power-cut",
        "rpmb.write=result",
        "rpmb.write=result:x",
        "rpmb.written=lost:1",
    ):
        with pytest.raises(FaultSpecError):
            faults.arm(text)
    with pytest.raises(FaultSpecError, match="did you mean"):
        faults.arm("rpmb.wrote=result:5")
    with pytest.raises(FaultSpecError, match="one of result, power-cut"):
        faults.arm("rpmb.write=lost")
    faults.arm("rpmb.write:2+=result:0x11")
    assert faults.point("rpmb.write") is None
    assert [faults.point("rpmb.write") for _ in range(3)] == [Action("result", 17)] * 3
    assert faults.point("rpmb.read") is None
    faults.disarm("rpmb.write")
    assert faults.point("rpmb.write") is None


@dataclass
class Reference:
    """A second reading of JESD84-B51 6.6.22 and of the recorded device, in other terms."""

    silicon: bool
    key: bytes | None = None
    counter: int = 0
    flash: dict[int, bytes] = field(default_factory=dict)
    register: tuple[int, int, bytes, int, int] = (0, 0, bytes(16), 0, 0)
    """Response type, result, nonce, counter, address."""

    def request(self, raw: bytes, reliable: bool) -> None:
        last = raw[-512:]
        kind = int.from_bytes(last[510:512], "big")
        if kind == 5:
            return
        nonce, address = last[484:500], int.from_bytes(last[504:506], "big")
        result, counter, echoed = self.judge(kind, raw, reliable), 0, 0
        if kind == 2 and result == 0:
            counter = self.counter
        if kind in (3, 4) and result == 0:
            echoed = address
        if kind == 3 and result == 0:
            for index in range(len(raw) // 512):
                self.flash[address + index] = raw[index * 512 + 228 : index * 512 + 484]
            self.counter += 1
            counter = self.counter
        if kind == 1 and result == 0:
            self.key = last[196:228]
        self.register = (kind * 256 % 65536, result, nonce, counter, echoed)

    def judge(self, kind: int, raw: bytes, reliable: bool) -> int:
        count = len(raw) // 512
        if kind == 1:
            if self.key is not None:
                return 1 if self.silicon else 5
            return 1 if count != 1 or (self.silicon and not reliable) else 0
        if self.key is None:
            return 7
        if kind in (2, 4):
            return 0
        if kind != 3:
            return 1
        if self.silicon:
            heads = {
                raw[start + 500 : start + 508] + raw[start + 510 : start + 512]
                for start in range(0, len(raw), 512)
            }
            told = int.from_bytes(raw[-6:-4], "big")
            if not reliable or count > 2 or len(heads) > 1 or told != count:
                return 1
            if int.from_bytes(raw[-8:-6], "big") + count > 8192:
                return 4
        elif count != 1:
            return 1
        signed = hashlib.sha256
        covered = b"".join(raw[start + 228 : start + 512] for start in range(0, len(raw), 512))
        if hmac.new(self.key, covered, signed).digest() != raw[-316:-284]:
            return 2
        return 0 if int.from_bytes(raw[-12:-8], "big") == self.counter else 3

    def response(self, count: int) -> bytes:
        kind, result, nonce, counter, address = self.register
        frames = []
        reading = kind == 0x0400 and result == 0
        if reading and self.silicon and address + count > 8192:
            reading, result = False, 4
            told = count
        else:
            told = count if reading else 0
        for index in range(count):
            data = self.flash.get((address + index) % 65536, bytes(256)) if reading else bytes(256)
            tail = nonce + counter.to_bytes(4, "big") + address.to_bytes(2, "big")
            tail += told.to_bytes(2, "big") + result.to_bytes(2, "big") + kind.to_bytes(2, "big")
            frames.append(data + tail)
        key = self.key or bytes(32)
        alone = told == 0
        whole = hmac.new(key, b"".join(frames), hashlib.sha256).digest()
        out = b""
        for index, frame in enumerate(frames):
            mac = bytes(32)
            if alone:
                mac = hmac.new(key, frame, hashlib.sha256).digest()
            elif index == count - 1:
                mac = whole
            out += bytes(196) + mac + frame
        return out


KEYS = st.sampled_from([KEY, b"\x55" * 32])
ADDRESSES = st.sampled_from([0, 1, 2, LAST - 1, LAST, LAST + 1, 0xFFFE, 0xFFFF])
NONCES = st.sampled_from([NONCE, bytes(16)])
BLOCKS = st.sampled_from([block("a"), block("b"), bytes(256)])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, int]:
    """Name, frames (the counter of a write is filled in later), offset of the counter."""
    name = draw(st.sampled_from(["key", "counter", "read", "write", "result", "wild"]))
    if name == "key":
        return name, rpmb.key_request(draw(KEYS)), 0
    if name == "counter":
        return name, rpmb.counter_request(draw(NONCES)), 0
    if name == "read":
        return name, rpmb.read_request(draw(ADDRESSES), draw(NONCES)), 0
    if name == "result":
        return name, rpmb.result_request(), 0
    if name == "wild":
        kinds = st.integers(0, 0xFFFF) | st.integers(0, 9)
        frames = [RpmbFrame(address=draw(ADDRESSES), kind=draw(kinds)) for _ in "ab"]
        return name, rpmb.join(frames[: draw(st.integers(1, 2))]), 0
    data = b"".join(draw(st.lists(BLOCKS, min_size=1, max_size=3)))
    address = min(draw(ADDRESSES), 0xFFFF)
    return name, rpmb.write_request(draw(KEYS), 0, address, data), draw(st.integers(-1, 1))


def with_counter(frames: bytes, counter: int) -> bytes:
    patched = b"".join(
        frames[start : start + 500]
        + (counter & 0xFFFFFFFF).to_bytes(4, "big")
        + frames[start + 504 : start + 512]
        for start in range(0, len(frames), 512)
    )
    return rpmb.sign(KEY, patched)


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(requests(), st.booleans(), st.integers(1, 3)), max_size=12),
)
def test_two_models_agree_on_any_sequence(
    silicon: bool, steps: list[tuple[tuple[str, bytes, int], bool, int]]
) -> None:
    card = RpmbPartition(RpmbImage.in_memory(), profile=SILICON if silicon else QEMU)
    reference = Reference(silicon)
    for (name, frames, offset), reliable, count in steps:
        if name == "write" and offset >= 0:
            frames = with_counter(frames, reference.counter + offset)
        card.write_frames(frames, reliable=reliable)
        reference.request(frames, reliable)
        assert card.read_frames(count) == reference.response(count)
        assert card.write_counter == reference.counter


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(PROFILES)),
    st.lists(st.binary(min_size=512, max_size=512) | requests().map(lambda r: r[1]), max_size=6),
)
def test_hostile_frames_get_an_answer(profile: str, many: list[bytes]) -> None:
    host = Host(profile)
    for raw in many:
        host.card.write_frames(raw, reliable=True)
        assert len(host.card.read_frames(2)) == 1024
    assert host.counter().result & 0x7F == 0


def test_the_profiles_are_named() -> None:
    assert PROFILES["supplicant-emu"] is SUPPLICANT_EMULATION

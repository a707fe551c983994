"""The ladder of recovery: order, proof of each step, consents, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.board import recovery
from harness.board.board import Board
from harness.board.recovery import Step, recover
from harness.boardfile.sections import BoardFile, SshSection
from harness.consents import Consent
from harness.errors import BoardWedged, LabError, PowerError, WrongBoard
from harness.power.driver import PowerState
from harness.power.manual import ManualPowerSection
from tests.harness.support.servers import Server, openssh


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = openssh(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def reached(server: Server) -> Iterator[Board]:
    address = server.address
    file = BoardFile(
        name="desk",
        emmc_cid="0" * 32,
        ssh=SshSection(
            host=address.host,
            port=address.port,
            user=address.user,
            key=address.key,
            host_key_fingerprint=address.host_key_fingerprint,
        ),
        power=ManualPowerSection(driver="manual"),
        consents={Consent.WRITE_RPMB: True},
    )
    with Board(file) as board:
        yield board


class Ladder:
    """Steps that only note that they were taken; ``cure`` is the one that helps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cure: str) -> None:
        self.taken: list[str] = []
        self._cure = cure
        steps = [
            Step("kill", self._step("kill")),
            Step("restart", self._step("restart"), Consent.STOP_SUPPLICANT),
            Step("reboot", self._step("reboot"), Consent.WRITE_RPMB),
            Step("cycle", self._step("cycle"), over_link=False),
        ]
        monkeypatch.setattr(recovery, "_ladder", lambda board: steps)
        monkeypatch.setattr(recovery, "prove", self._prove)

    def _step(self, name: str) -> Callable[[Board], None]:
        return lambda board: self.taken.append(name)

    def _prove(self, board: Board) -> None:
        if self.taken[-1] != self._cure:
            raise LabError("nothing was written", remedy="none")


def test_the_first_step_that_is_proved_ends_it(
    reached: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Ladder(monkeypatch, cure="reboot")
    result = recover(reached)
    assert built.taken == ["kill", "reboot"]
    assert result.helped == "reboot"
    assert result.in_vain == (
        "kill: nothing was written",
        "restart: the board file does not consent to stop_supplicant",
    )


def test_when_nothing_helps_the_board_is_wedged(
    reached: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ladder(monkeypatch, cure="none")
    with pytest.raises(BoardWedged, match=r"kill: .*restart: .*reboot: .*cycle: .*board desk"):
        recover(reached)


def test_an_unreachable_board_is_not_talked_to(
    reached: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Ladder(monkeypatch, cure="cycle")
    monkeypatch.setattr(recovery, "_STEP_SECONDS", 0.2)
    away = Board(
        reached.file.model_copy(
            update={"ssh": reached.file.ssh and reached.file.ssh.model_copy(update={"port": 1})}
        )
    )
    away.links.find()
    assert recover(away).helped == "cycle"
    assert built.taken == ["cycle"]


def test_another_board_ends_it_at_once(reached: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(board: Board) -> None:
        raise WrongBoard("another CID", remedy="none")

    monkeypatch.setattr(recovery, "_ladder", lambda board: [Step("kill", swapped)])
    with pytest.raises(WrongBoard):
        recover(reached)


def test_the_ladder_is_gentle_first(reached: Board) -> None:
    assert [step.name for step in recovery._ladder(reached)] == [
        "fresh lanes",
        "kill the writer",
        "restart the supplicant",
        "reboot",
        "power cycle",
    ]


def test_a_board_without_power_gets_power_first(
    reached: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reached.power, "state", lambda: PowerState.OFF)
    assert [step.name for step in recovery._ladder(reached)] == ["power on", "power cycle"]


def test_the_switch_itself_may_fail(reached: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(board: Board) -> None:
        raise PowerError("the relay is stuck", remedy="none")

    monkeypatch.setattr(recovery, "_ladder", lambda board: [Step("cycle", stuck, over_link=False)])
    with pytest.raises(BoardWedged, match="cycle: the relay is stuck"):
        recover(reached)

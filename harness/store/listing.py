"""The listing of efivarfs is a snapshot of its mount, which a boot may make before the driver."""

from harness.board.board import Board
from harness.capabilities import Capability
from harness.instruments.efivars import Efivars


def of_the_store(board: Board) -> Efivars:
    """The board's variables with a listing that shows StandaloneMM's.

    A firmware that keeps its own variables elsewhere, and so never tells StandaloneMM
    ExitBootServices, left the boot's mount a listing of those (stack 6.1): mount afresh.
    """
    if not board.capabilities.has(Capability.EXIT_BOOT_SERVICES_TOLD):
        board.efivars.unmount()
        board.efivars.mount()
    return board.efivars

"""Which tests a worker of pytest-xdist gets when each has a board of its own: all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class OneWorkerABoard:
    """The scheduler of a run on several boards (the protocol of pytest-xdist's schedulers).

    A worker starts as soon as it has collected: it may have to wait for its board, and nobody
    else shall. A worker that ends early or dies leaves its tests to nobody, because no other
    worker has its board.
    """

    def __init__(self, boards: int, collected: Callable[[Any, Sequence[str]], None]) -> None:
        """``collected`` is told of each worker and its tests."""
        self._boards = boards
        self._collected = collected
        self._waiting: list[Any] = []
        self._pending: dict[Any, list[int]] = {}
        self._names: dict[Any, Sequence[str]] = {}
        self._gone = 0

    @property
    def nodes(self) -> list[Any]:
        """The living workers."""
        return list(self._pending)

    @property
    def collection_is_completed(self) -> bool:
        """Whether a worker is to be started."""
        return bool(self._waiting)

    @property
    def tests_finished(self) -> bool:
        """Whether no worker needs to be told anything any more."""
        started = sum(node in self._names for node in self._pending)
        return started + self._gone == self._boards and not self._waiting

    @property
    def has_pending(self) -> bool:
        """Whether tests are being run."""
        return any(self._pending.values())

    def add_node(self, node: Any) -> None:
        """A worker came up."""
        self._pending[node] = []

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """A worker has collected."""
        self._names[node] = collection
        self._pending[node] = list(range(len(collection)))
        self._waiting.append(node)
        self._collected(node, collection)

    def schedule(self) -> None:
        """Start who has collected."""
        while self._waiting:
            node = self._waiting.pop()
            node.send_runtest_all()
            # After the last of them it gives its board back, whatever others still do.
            node.shutdown()

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """A worker has run a test."""
        self._pending[node].remove(item_index)

    def mark_test_pending(self, item: str) -> None:
        """Nobody else could run it."""
        raise NotImplementedError

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        """No test is ever taken from a worker."""
        raise NotImplementedError

    def remove_node(self, node: Any) -> str | None:
        """A worker is gone; the test that it died in, unless it said good-bye."""
        pending = self._pending.pop(node)
        self._gone += 1
        if hasattr(node, "workeroutput") or not pending:
            return None
        return self._names[node][pending[0]]

"""The harness's own tests leave nothing among the user's leases, ledgers and console logs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.board.state_dir import STATE_ENVIRONMENT
from harness.lab.lease import LEASES_ENVIRONMENT


@pytest.fixture(autouse=True, scope="session")
def _places_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LEASES_ENVIRONMENT, str(tmp_path_factory.mktemp("leases")))
        patch.setenv(STATE_ENVIRONMENT, str(tmp_path_factory.mktemp("state")))
        yield

"""``pytest -p tests.emulation.real_stmm.plugin``: the tests' client speaks to the real image.

Tests of other builds are skipped, known differences expected to fail, each with its reason; all
are skipped where there is no image, or no Unicorn.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from emulation.qemu.__main__ import default_cache
from emulation.stmm.config import StmmConfig
from emulation.stmm.storage import SecureStorage
from tests.emulation import stmm_client
from tests.emulation.real_stmm.partition import RealStandaloneMm

IMAGE_VARIABLE: Final = "HIL_STMM_IMAGE"
_IMAGE: Final = pytest.StashKey[Path | None]()

DIFFERENCES: Final[Mapping[str, str]] = {
    "test_stmm_boot.py::test_store_header_not_healthy_leaves_no_service": (
        "a RELEASE image only asserts, which it leaves out: the handler works on freed memory, and "
        "what it answers, or that it aborts, is chance"
    ),
    "test_stmm_power.py::test_hostile_working_space_never_raises": (
        "entry sizes of a damaged queue lead FTW past its copy of the working space: into the heap "
        "of this build, or out of mapped memory, which aborts; the model reads erased flash there"
    ),
}
"""Tests, with all their items, that the real image fails, and why the model differs."""


def find_image() -> Path | None:
    """The file ``HIL_STMM_IMAGE`` names, else the newest that ``hil qemu build`` made."""
    named = os.environ.get(IMAGE_VARIABLE)
    if named:
        return Path(named)
    built = default_cache().glob("pieces/stmm-*/out/BL32_AP_MM.fd")
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Look for the image once."""
    config.stash[_IMAGE] = find_image()


def pytest_report_header(config: pytest.Config) -> str:
    """Which image the tests judge, or what is missing."""
    return f"StandaloneMM: {_missing(config) or config.stash[_IMAGE]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip all if the image cannot run; else mark the known differences."""
    missing = _missing(config)
    for item in items:
        if missing is not None:
            item.add_marker(pytest.mark.skip(reason=missing))
            continue
        name = item.nodeid.rpartition("/")[2]
        reason = DIFFERENCES.get(name.partition("[")[0])
        if reason is not None:
            # Of a test with items some may agree.
            item.add_marker(pytest.mark.xfail(reason=reason, strict="[" not in name))


@pytest.fixture(scope="session", autouse=True)
def _real_partition(request: pytest.FixtureRequest) -> Iterator[None]:
    """The client's partitions are real ones from here on."""
    image = request.config.stash[_IMAGE]

    def partition(storage: SecureStorage, config: StmmConfig) -> RealStandaloneMm:
        if config != StmmConfig():
            pytest.skip("the image is one build, and the test is of another")
        assert image is not None
        return RealStandaloneMm(image, storage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stmm_client, "StandaloneMm", partition)
        yield


def _missing(config: pytest.Config) -> str | None:
    image = config.stash[_IMAGE]
    if image is None:
        return f"no image: {IMAGE_VARIABLE} names none, and `hil qemu build` has not made one"
    if not image.is_file():
        return f"no image: there is no file {image}"
    if importlib.util.find_spec("unicorn") is None:
        return "the package unicorn is not installed"
    return None

"""What other file systems have and efivarfs has not: links, directories, nodes, new names."""

from __future__ import annotations

import errno

import pytest

from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import refused, succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.probe.steps import Step
from harness.store.records import record_size

pytestmark = [
    pytest.mark.needs("writable"),
    pytest.mark.consents("write_rpmb"),
    pytest.mark.cases(403),
]

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 1))
TWO_RECORDS = pytest.mark.cost(store_bytes=2 * record_size("V", 1))


def take(probe: Probe, step: Step) -> None:
    (outcome,) = probe.steps([step])
    succeeded(outcome)


@pytest.mark.parametrize("immutable", [True, False])
@ONE_RECORD
def test_a_variable_cannot_be_renamed(efivars: Efivars, probe: Probe, immutable: bool) -> None:
    efivars.write("V", b"x")
    efivars.set_immutable("V", immutable)
    with refused(errno.EPERM):
        take(probe, do.Rename(efivars.file("V"), efivars.file("W")))
    assert efivars.read("V").data == b"x"
    assert not efivars.exists("W")


@TWO_RECORDS
def test_a_variable_cannot_replace_another(efivars: Efivars, probe: Probe) -> None:
    for name in "VW":
        efivars.write(name, name.encode())
        efivars.set_immutable(name, False)
    with refused(errno.EPERM):
        take(probe, do.Rename(efivars.file("V"), efivars.file("W")))
    assert [efivars.read(name).data for name in "VW"] == [b"V", b"W"]


@pytest.mark.parametrize("immutable", [True, False])
@ONE_RECORD
def test_a_variable_has_one_name(efivars: Efivars, probe: Probe, immutable: bool) -> None:
    efivars.write("V", b"x")
    efivars.set_immutable("V", immutable)
    with refused(errno.EPERM):
        take(probe, do.Link(efivars.file("V"), efivars.file("W")))
    (found,) = probe.steps([do.Stat(efivars.file("V"))])
    assert found.field("nlink") == 1
    assert not efivars.exists("W")


def test_there_are_no_symbolic_links(efivars: Efivars, probe: Probe) -> None:
    with refused(errno.EPERM):
        take(probe, do.Symlink("/dev/null", efivars.file("V")))
    assert not efivars.exists("V")


@pytest.mark.parametrize("name", ["V", None], ids=["a variable's name", "any name"])
def test_there_are_no_directories(efivars: Efivars, probe: Probe, name: str | None) -> None:
    path = efivars.file(name) if name else f"{efivars.path}/directory"
    with refused(errno.EPERM):
        take(probe, do.Mkdir(path))


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(0o010644, id="fifo"),
        pytest.param(0o140644, id="socket"),
    ],
)
def test_there_are_no_nodes(efivars: Efivars, probe: Probe, mode: int) -> None:
    with refused(errno.EPERM):
        take(probe, do.Mknod(efivars.file("V"), mode))
    assert not efivars.exists("V")


# Linux 7 drops it at its last close: that of the ioctl which takes the immutable flag away.
@pytest.mark.needs("uncommitted_files_stay")
@pytest.mark.cost(store_bytes=0)
def test_a_node_that_is_a_regular_file_is_a_file_without_variable(
    efivars: Efivars, probe: Probe
) -> None:
    """vfs_mknod hands it to the same operation as open(2) with O_CREAT (fs/namei.c)."""
    take(probe, do.Mknod(efivars.file("V"), 0o100644))
    assert efivars.size("V") == 0
    efivars.set_immutable("V", False)
    take(probe, do.Unlink(efivars.file("V")))
    assert not efivars.exists("V")


@ONE_RECORD
def test_a_variable_is_no_directory(efivars: Efivars, probe: Probe) -> None:
    efivars.write("V", b"x")
    efivars.set_immutable("V", False)
    with refused(errno.ENOTDIR):
        take(probe, do.Rmdir(efivars.file("V")))
    with refused(errno.ENOTDIR):
        take(probe, do.Stat(efivars.file("V") + "/below"))
    assert efivars.exists("V")


@ONE_RECORD
def test_an_existing_name_is_taken(efivars: Efivars, probe: Probe) -> None:
    efivars.write("V", b"x")
    with refused(errno.EEXIST):
        take(probe, do.Mkdir(efivars.file("V")))
    with refused(errno.EEXIST):
        take(probe, do.Symlink("/dev/null", efivars.file("V")))
    assert efivars.read("V").data == b"x"


def test_the_directory_cannot_be_removed(efivars: Efivars, probe: Probe) -> None:
    with refused(errno.EBUSY):
        take(probe, do.Rmdir(efivars.path))
    assert efivars.names()


def test_there_are_no_nameless_files(efivars: Efivars, probe: Probe) -> None:
    with refused(errno.EOPNOTSUPP, errno.EINVAL):
        take(probe, do.Open("t", efivars.path, "O_WRONLY|O_TMPFILE"))

"""Several processes at once: each SetVariable is whole, one after the other, and none is lost.

The processes are dd of the board, one write(2) or read(2) each; the test reads what is left.
"""

from __future__ import annotations

from shlex import quote

import pytest

from harness.instruments.efivars import Efivars
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

WRITERS = 4
SIZE = 20
"""Bytes of data that tell who wrote them."""

# "put FILE CHARACTER [ATTRIBUTES]" makes one write(2) of that character, SIZE times; "get FILE" one
# read(2).
_TOOLS = f"""
t=$(mktemp -d) || exit
trap 'rm -rf "$t"' EXIT
content() {{ printf "\\\\$1\\\\000\\\\000\\\\000"; printf '%{SIZE}s' '' | tr ' ' "$2"; }}
put() {{ content "${{3:-007}}" "$2" >"$t/in.$2" && \
dd if="$t/in.$2" of="$1" bs={SIZE + 4} conv=notrunc 2>>"$t/errors"; }}
get() {{ dd if="$1" bs={SIZE + 4} count=1 2>>"$t/errors"; }}
"""


def run(shell: Shell, script: str) -> bytes:
    """Run a script that uses put and get on a lane of its own; what it printed."""
    return shell.run_isolated(_TOOLS + script, timeout=60.0).check().stdout


def content(character: str) -> bytes:
    """What one put wrote."""
    return b"\7\0\0\0" + character.encode() * SIZE


def blocks(output: bytes) -> list[bytes]:
    """What the gets read, one after the other."""
    return [output[start : start + SIZE + 4] for start in range(0, len(output), SIZE + 4)]


@pytest.mark.cases(415)
@pytest.mark.cost(store_bytes=(WRITERS + 1) * record_size("V", SIZE))
def test_of_several_writers_of_one_file_one_wins_whole(efivars: Efivars, shell: Shell) -> None:
    efivars.write("V", b"-" * SIZE)
    efivars.set_immutable("V", False)
    path = quote(efivars.file("V"))
    run(shell, f"for c in A B C D; do put {path} $c & done; wait")
    assert efivars.read_raw("V") in [content(character) for character in "ABCD"]
    assert efivars.size("V") == SIZE + 4


@pytest.mark.cases(415)
@pytest.mark.cost(store_bytes=WRITERS * record_size("V", SIZE * WRITERS))
def test_of_several_appends_to_one_file_none_is_lost(efivars: Efivars, shell: Shell) -> None:
    with efivars.opened("V", "O_WRONLY|O_CREAT"):
        efivars.set_immutable("V", False)
        path = quote(efivars.file("V"))
        run(shell, f"for c in A B C D; do put {path} $c 107 & done; wait")
        data = efivars.read("V").data
    pieces = [data[start : start + SIZE] for start in range(0, len(data), SIZE)]
    assert sorted(pieces) == [character.encode() * SIZE for character in "ABCD"]


@pytest.mark.cases(235)
@pytest.mark.cost(store_bytes=2 * WRITERS * record_size("V", SIZE))
def test_variables_created_at_once_are_all_there(efivars: Efivars, shell: Shell) -> None:
    names = "ABCDEFGH"
    paths = " ".join(quote(efivars.file(name)) for name in names)
    run(shell, f'for p in {paths}; do n=${{p##*/}}; put "$p" "${{n%%-*}}" & done; wait')
    assert [variable.name for variable in efivars.own()] == list(names)
    assert [efivars.read_raw(name) for name in names] == [content(name) for name in names]


@pytest.mark.cost(store_bytes=record_size("V", SIZE))
def test_of_several_exclusive_creators_one_succeeds(efivars: Efivars, shell: Shell) -> None:
    path = quote(efivars.file("V"))
    create = f'(set -C; content 007 $c >"$t/$c"; cat "$t/$c" >{path}) 2>/dev/null && echo $c'
    winners = run(shell, f"for c in A B C D; do {create} & done; wait").decode().split()
    assert len(winners) == 1
    assert efivars.read_raw("V") == content(winners[0])


@pytest.mark.cases(415)
@pytest.mark.cost(store_bytes=7 * record_size("V", SIZE))
def test_a_reader_sees_the_old_or_the_new_value_and_no_mixture(
    efivars: Efivars, shell: Shell
) -> None:
    efivars.write("V", b"-" * SIZE)
    efivars.set_immutable("V", False)
    path = quote(efivars.file("V"))
    seen = blocks(
        run(
            shell,
            f'(for c in A B A B A B; do put {path} $c; done; : >"$t/done") & '
            f'get {path}; while [ ! -e "$t/done" ]; do get {path}; done; wait; get {path}',
        )
    )
    assert set(seen) <= {content(character) for character in "-AB"}
    assert seen[-1] == content("B")


@pytest.mark.cases(174)
@pytest.mark.cost(store_bytes=7 * record_size("V", SIZE))
def test_a_listing_meanwhile_shows_what_is_there_throughout(efivars: Efivars, shell: Shell) -> None:
    efivars.write("V", b"-" * SIZE)
    others = [variable for variable in efivars.names() if variable.name != "W"]
    path = quote(efivars.file("W"))
    output = run(
        shell,
        f"(for c in A B C D E F; do put {path} $c; chattr -i {path}; rm -f {path}; done; "
        f': >"$t/done") 2>/dev/null & while [ ! -e "$t/done" ]; do ls -A {efivars.path} '
        f"| grep -v '^W-' | wc -l; done; wait",
    ).split()
    assert output
    assert {int(number) for number in output} == {len(others)}


@pytest.mark.needs("chattr")
@pytest.mark.cost(store_bytes=WRITERS * 2 * record_size("V", SIZE))
def test_processes_with_a_variable_each_do_not_disturb_each_other(
    efivars: Efivars, shell: Shell
) -> None:
    """Create, read, delete in a circle, each under its own name."""
    circle = (
        f'p={efivars.path}/$c-{efivars.file("X")[-36:]}; for n in 1 2; do put "$p" $c; '
        'get "$p" >"$t/out.$c"; cmp "$t/in.$c" "$t/out.$c" || echo differs $c; '
        'chattr -i "$p" && rm "$p" || echo stays $c; [ ! -e "$p" ] || echo remains $c; done'
    )
    assert run(shell, f"for c in A B C D; do ({circle}) & done; wait") == b""
    assert efivars.own() == []


@pytest.mark.cost(store_bytes=7 * record_size("V", SIZE))
def test_a_write_and_a_delete_at_once_leave_the_one_or_the_other(
    efivars: Efivars, shell: Shell
) -> None:
    path = quote(efivars.file("V"))
    for character in "ABC":
        efivars.overwrite("V", b"-" * SIZE)
        efivars.set_immutable("V", False)
        run(shell, f"put {path} {character} & rm -f {path} & wait; true")
        if efivars.exists("V"):
            assert efivars.read_raw("V") == content(character)

"""What commands have in common, and the receiver's checksum in each shell."""

from __future__ import annotations

import subprocess
from shlex import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.links import agent
from harness.links.fragments import Fragments
from tests.harness.support.servers import need

TEXTS = st.text(st.sampled_from("ab"), max_size=80)


@given(st.lists(TEXTS, max_size=30))
def test_what_is_split_is_the_text(texts: list[str]) -> None:
    fragments = Fragments(4)
    known: dict[str, str] = {"": ""}
    for text in texts:
        for fragment in fragments.new_in(text):
            assert fragment
            assert text.startswith(fragment) or text.endswith(fragment)
            place = fragments.free_place()
            fragments.keep(place, fragment)
            known[str(place)] = fragment
        before, rest, after = fragments.split(text)
        assert known[before] + rest + known[after] == text


def test_a_command_met_again_is_a_reference() -> None:
    fragments = Fragments(4)
    text = "test -e /sys/bus/tee/drivers/{} && echo bound"
    assert fragments.new_in(text.format("one")) == []
    new = fragments.new_in(text.format("two"))
    assert new == ["test -e /sys/bus/tee/drivers/"]
    for fragment in new:
        fragments.keep(fragments.free_place(), fragment)
    assert fragments.split(text.format("three"))[1] == "three && echo bound"


@pytest.mark.parametrize("shell", [["dash"], ["bash"], ["busybox", "ash"]], ids=lambda one: one[-1])
def test_the_digest_is_the_shells(shell: list[str]) -> None:
    need(shell[0], {"busybox": "busybox-static"}.get(shell[0], shell[0]))
    receiver = agent.script("x").replace("\\n", "\n").replace("\\\\", "\\")
    start, end = receiver.index("t='"), receiver.index("small()")
    text = "".join(map(chr, range(32, 127))) * 3
    program = f"{receiver[start:end]}\nhash {quote(text)}; echo $v"
    done = subprocess.run([*shell, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == agent.digest(text)


def test_a_lost_or_changed_character_changes_the_digest() -> None:
    line = agent.line("x12.0", "echo hello; exit 3")
    text = line.replace(f".{agent.digest('x12.0:echo hello; exit 3')}", "", 1)
    for at in range(len(text)):
        assert agent.digest(text[:at] + text[at + 1 :]) != agent.digest(text)
        assert agent.digest(text[:at] + "~" + text[at + 1 :]) != agent.digest(text)


@pytest.mark.parametrize("encoding", ["base64", "base64+gzip", "od", "od+gzip"])
def test_an_encoding_that_lost_a_character_is_none(encoding: str) -> None:
    tools = agent.Tools.named(encoding)
    assert tools == agent.Tools(base64="base64" in encoding, gzip="gzip" in encoding)
    for at in range(len(encoding)):
        assert agent.Tools.named(encoding[:at] + encoding[at + 1 :]) is None

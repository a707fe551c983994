"""docs/stack.md: what comments cite is there, and every key of a source is spelled out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
STACK = (REPOSITORY / "docs" / "stack.md").read_text()
CITATION = re.compile(r"\b[Ss]tack\s+(\d+(?:\.\d+)?)((?:(?:,| and| to)\s+\d+\.?\d*)*)")
SOURCE = re.compile(r"\b(K6|K7|OT41|OTH|OC|EDH?|EP|UB|QE|MU)\b(?=[ ,/:])")


def texts() -> Iterator[tuple[str, str]]:
    """Path and text of everything that may cite the document."""
    for folder in ("harness", "emulation", "tests", "docs"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".c", ".h") and path.name != "stack.md":
                yield path.relative_to(REPOSITORY).as_posix(), path.read_text(errors="replace")


def citations(text: str) -> Iterator[str]:
    for first, more in CITATION.findall(text):
        yield first
        yield from re.findall(r"\d+(?:\.\d+)?", more)


def test_citations_are_found() -> None:
    text = "stack 1.6 and 1.7, UB x.c; stack\n    10.1.  (Stack 9; stack 4.1 to 4.3, a stack of 5)"
    assert list(citations(text)) == ["1.6", "1.7", "10.1", "9", "4.1", "4.3"]


def test_every_citation_leads_to_a_section() -> None:
    sections = set(re.findall(r"^##+ (\d+(?:\.\d+)?)\b", STACK, re.M))
    questions = re.findall(r"^(\d+)\. ", STACK.split("\n## 10")[1], re.M)
    sections.update(f"10.{number}" for number in questions)
    cited = {(path, section) for path, text in texts() for section in citations(text)}
    assert len(cited) > 30
    assert [at for at in sorted(cited) if at[1] not in sections] == []


def test_every_key_of_a_source_is_in_the_legend() -> None:
    legend = set(
        re.findall(r"^\| ([A-Z0-9]+(?:, [A-Z]+)?) \| .*\| (?:https|the same)", STACK, re.M)
    )
    used = set(SOURCE.findall(STACK)) | {key for _, text in texts() for key in SOURCE.findall(text)}
    assert used <= legend
    assert len(used) > 8

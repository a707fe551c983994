"""No circle between files or folders, and the order of the floors.

What only runs late counts (an import in a function), what only mypy sees (TYPE_CHECKING), and what
is named in a string ("package.module:attribute"): a circle is a circle for who reads or moves it.
import-linter's contract `acyclic_siblings` sees all of these but the strings, hence a rule of our
own.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VOCABULARY = (
    "errors interrupts headroom shell consents capabilities tables resources progress expectations "
    "signing"
)
FLOORS = {
    "harness": (
        f"formats|{VOCABULARY}|links|probe|instruments|power|boardfile|lab|board|store|safekeeping|"
        "truth check cuts results|pytest_plugin cli|__main__ __init__"
    ),
    "emulation": (
        "boot_log faults|options|emmc|optee stmm rpmb_transport|uboot linux|machine|mutants|"
        "userland|board|qemu __main__ __init__"
    ),
    "emulation.userland": "__init__ jail|access|system",
}
"""From the ground up: what stands between bars may import what is left of it, and its like."""


def arrows(root: Path, package: str) -> Iterator[tuple[str, str]]:
    """Every (module, module of the package that it imports or names) but a module and itself."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in (root / package).rglob("*.py")
    }
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                word = node.value.partition(":")[0]
                names = [word] if word in files else []
            for name in names:
                parent = name.rpartition(".")[0]
                known = (name, f"{name}.__init__", parent, f"{parent}.__init__")
                found = next((one for one in known if one in files), module)
                if found != module:
                    yield module, found


def siblings(root: Path, package: str) -> dict[str, dict[str, dict[str, str]]]:
    """By folder: who of its files and folders points to whom, and an arrow that does."""
    folders: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for start, end in arrows(root, package):
        ours, theirs = start.split("."), end.split(".")
        depth = next(at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        folder = folders[".".join(ours[:depth])]
        folder[ours[depth]][theirs[depth]] = f"{start} -> {end}"
    return folders


def circles(root: Path, package: str) -> list[str]:
    """A line for the first circle in each folder: the arrows that it is made of."""
    found = []
    for pointing in siblings(root, package).values():
        try:
            TopologicalSorter(pointing).prepare()
        except CycleError as error:
            # graphlib names each before those who point to it.
            ring = error.args[1][::-1]
            found.append(", ".join(pointing[a][b] for a, b in pairwise(ring)))
    return found


def falling(pointing: Mapping[str, Mapping[str, str]], floors: str) -> list[str]:
    """The arrows that point up, or from or to what stands on no floor."""
    floor = {name: at for at, row in enumerate(floors.split("|")) for name in row.split()}
    return [
        arrow
        for start, ends in pointing.items()
        for end, arrow in ends.items()
        if floor.get(start, -1) < floor.get(end, len(floor))
    ]


def does_something(statement: ast.stmt) -> bool:
    """Whether it is more than a docstring."""
    return not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


@pytest.mark.parametrize("package", ["harness", "emulation"])
def test_no_circle_between_files_or_folders(package: str) -> None:
    found = circles(ROOT, package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", FLOORS)
def test_each_floor_stands_on_those_below(folder: str) -> None:
    pointing = siblings(ROOT, folder.partition(".")[0])[folder]
    assert pointing
    wrong = falling(pointing, FLOORS[folder])
    assert not wrong, "\n".join(wrong)


def test_a_package_s_own_file_says_at_most_what_it_is() -> None:
    own = {
        str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")).body
        for package in ("harness", "emulation")
        for path in (ROOT / package).rglob("__init__.py")
    }
    del own["harness/pytest_plugin/__init__.py"]  # pytest loads it by its name
    more = [path for path, body in own.items() if len(body) > 1 or any(map(does_something, body))]
    assert own
    assert not more, "\n".join(more)


_LATE = "def later() -> None:\n    from pack.low import b\n"
_TYPING = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pack.low.b\n"


@pytest.mark.parametrize(
    "back", ["import pack.low.b\n", _LATE, _TYPING, 'AT = "pack.low.b:main"\n']
)
@pytest.mark.parametrize("place", ["low/a.py", "high/c.py"], ids=["files", "folders"])
def test_a_circle_is_found_and_named(tmp_path: Path, back: str, place: str) -> None:
    for name in ("low/a.py", "low/b.py", "high/c.py", "high/d.py", "low/__init__.py"):
        file = tmp_path / "pack" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    # Folders: low/b -> high/d and high/c -> low/b is no circle of files.
    forth = "pack.low.a" if place == "low/a.py" else "pack.high.d"
    (tmp_path / "pack/low/b.py").write_text(f"import {forth}\n")
    assert circles(tmp_path, "pack") == []
    (tmp_path / "pack" / place).write_text(back)
    (circle,) = circles(tmp_path, "pack")
    module = f"pack.{place.removesuffix('.py').replace('/', '.')}"
    assert set(circle.split(", ")) == {f"{module} -> pack.low.b", f"pack.low.b -> {forth}"}


def test_an_arrow_that_points_up_is_named() -> None:
    pointing = {"low": {"high": "low.a -> high.b"}, "high": {"low": "fine"}, "new": {"low": "new"}}
    assert falling(pointing, "low|high") == ["low.a -> high.b", "new"]

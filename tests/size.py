"""``python -m tests.size [--against COMMIT]``: how much code, and how wide its concepts are.

Code is counted in statements (docstrings are none), so that joining lines makes nothing smaller.
With ``--against``, each figure of that commit, of this tree and the difference. This tree is what
git knows or would add; the commit is read out of git, nothing is checked out.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
CODE: Final = ("harness", "emulation")
"""Packages that are the product; the others test and measure it."""
PACKAGES: Final = (*CODE, "tests", "benchmarks")
LONG: Final = 500
CONCEPTS: Final = (
    *("Shell", "Probe", "Instrument", "PowerDriver", "BoardFile", "Board", "Capability"),
    *("Consent", "HilError"),
)
# How a file's docstring says why it is long.
REASON: Final = re.compile(r"\b(longer than|catalogue|one piece)\b", re.IGNORECASE)
Tree = Mapping[str, str]
"""Python files: text by path."""


def git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True).stdout


def ours(path: str) -> bool:
    return path.endswith(".py") and path.partition("/")[0] in PACKAGES


def working_tree(root: Path) -> Tree:
    """The files that git knows, and those that it would add."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    paths = sorted({path for path in listed.split("\0") if ours(path) and (root / path).exists()})
    return {path: (root / path).read_text("utf-8") for path in paths}


def commit_tree(root: Path, commit: str) -> Tree:
    """The files of a commit."""
    with tarfile.open(fileobj=io.BytesIO(git(root, "archive", commit))) as archive:
        files = {one.name: archive.extractfile(one) for one in archive if ours(one.name)}
        return {path: file.read().decode() for path, file in files.items() if file is not None}


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def statements(module: ast.Module) -> int:
    """Statements at any depth, but for docstrings and other lone constants."""
    nodes = (node for node in ast.walk(module) if isinstance(node, ast.stmt))
    return sum(not is_docstring(node) for node in nodes)


def packages_of(path: str) -> list[str]:
    """What a file is counted to: the product by its folders and in all, the rest as a whole."""
    top, *rest = path.split("/")
    return [top] if top not in CODE else [top, f"{top}/{rest[0] if rest[1:] else '*.py'}"]


def public(concept: ast.ClassDef) -> set[str]:
    """The names that a class's body gives to who uses it."""
    names: set[str] = set()
    for node in concept.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return {name for name in names if not name.startswith("_")}


def figures(tree: Tree) -> dict[str, int]:
    """All that is counted, by what it is called, in the order of the table."""
    code: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    classes: dict[str, ast.ClassDef] = {}
    for path, text in tree.items():
        module = ast.parse(text)
        for name in packages_of(path):
            code[name] += statements(module)
            lines[name] += text.count("\n")
        if path.startswith("harness/"):
            found = (node for node in module.body if isinstance(node, ast.ClassDef))
            classes.update({node.name: node for node in found if node.name in CONCEPTS})
    board = classes.get("Board")
    return {
        **{f"statements: {name}": code[name] for name in sorted(code)},
        **{f"lines: {name}": lines[name] for name in sorted(lines)},
        "lines of class Board": 1 + (board.end_lineno or 0) - board.lineno if board else 0,
        **{
            f"public names of {name}": len(public(classes[name])) if name in classes else 0
            for name in CONCEPTS
        },
    }


def long_files(tree: Tree) -> Iterator[str]:
    """A line for each file above :data:`LONG` lines, the product's first."""
    for path in sorted(tree, key=lambda path: (not path.startswith(CODE), path)):
        if (length := tree[path].count("\n")) > LONG:
            said = REASON.search(ast.get_docstring(ast.parse(tree[path])) or "")
            why = "" if not path.startswith(CODE) else "says why" if said else "DOES NOT SAY WHY"
            yield f"  {path:44}{length:8}  {why}".rstrip()


def table(now: Mapping[str, int], before: Mapping[str, int] | None) -> Iterator[str]:
    """A line for each figure."""
    for name in sorted({**now, **(before or {})}, key=[*now, *(before or {})].index):
        this = now.get(name, 0)
        then = None if before is None else before.get(name, 0)
        yield f"{name:46}{this:8}" + ("" if then is None else f"{then:8}{this - then:+8}")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.size")
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit")
    commit: str | None = parser.parse_args(arguments).against
    tree = working_tree(root)
    before = None if commit is None else figures(commit_tree(root, commit))
    print(f"{'':46}{'now':>8}" + ("" if commit is None else f"{commit[:7]:>8}{'':8}"))
    print("\n".join(table(figures(tree), before)))
    print(f"files above {LONG} lines:", *long_files(tree), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

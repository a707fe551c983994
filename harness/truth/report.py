"""Prints a replay: agreement group by group, every difference, and the count."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.boardfile.sections import BoardFile
from harness.errors import ConfigurationError
from harness.links.names import LinkName
from harness.truth.recipes import Recipes
from harness.truth.replay import GroupReplay
from harness.truth.results import Agreement, GroupResult, RowResult
from harness.truth.rig import Rig
from harness.truth.rows import OWN_ROWS, Row, load, with_own


def replay(
    file: BoardFile,
    folder: Path | None = None,
    *,
    link: LinkName | None = None,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[GroupResult]:
    """Replay the groups of ``folder`` (default: the project's own copy) on a board and print as
    it goes. ``only`` names groups. Raises the harness's errors where the board cannot be used."""
    folder = folder or OWN_ROWS
    groups = load(folder)
    own = load(OWN_ROWS) if OWN_ROWS.is_dir() else {}
    auth = [rows / "auth" for rows in (folder, OWN_ROWS)]
    results = []
    with Rig(file, link=link) as rig:
        for name, given in groups.items():
            if only and name not in only:
                continue
            rows = with_own(given, own.get(name, ()))
            recipes = Recipes([*rows, *_all(groups, own)], auth)
            result = GroupResult(name)
            for one in GroupReplay(rig, rows, auth, recipes).run():
                result.results.append(one)
                _say_row(one, say)
            if result.results:
                results.append(result)
                say(_group_line(result))
    unknown = sorted(set(only) - set(groups))
    if unknown:
        raise ConfigurationError(
            f"no group {', '.join(unknown)} in {folder}",
            remedy=f"groups are {', '.join(groups)}",
        )
    say(last_line(results))
    return results


def all_agree(results: Iterable[GroupResult]) -> bool:
    """Whether every row that was not skipped agreed, and there was one."""
    verdicts = [one.verdict for result in results for one in result.results]
    return Agreement.AGREED in verdicts and Agreement.DIFFERED not in verdicts


def last_line(results: Sequence[GroupResult]) -> str:
    """``TRUTH agreed N of M, skipped K``; M counts every row that may be replayed."""
    counted = sum(len(result.results) for result in results)
    return (
        f"TRUTH agreed {sum(result.count(Agreement.AGREED) for result in results)} of {counted}, "
        f"skipped {sum(result.count(Agreement.SKIPPED) for result in results)}"
    )


def _group_line(result: GroupResult) -> str:
    skipped = result.count(Agreement.SKIPPED)
    line = f"{result.group}: agreed {result.count(Agreement.AGREED)} of {len(result.results)}"
    return f"{line}, skipped {skipped}" if skipped else line


def _say_row(result: RowResult, say: Callable[[str], None]) -> None:
    if result.verdict is Agreement.SKIPPED:
        say(f"  {result.row.id} skipped: {result.reason}")
    for difference in result.differences:
        say(f"  {result.row.id} {difference}")


def _all(*copies: dict[str, list[Row]]) -> list[Row]:
    return [row for groups in copies for rows in groups.values() for row in rows]

"""The rules by which what was seen agrees with what was recorded (docs/truth.md).

A rule is about a kind of line or value, never about a row. What no rule touches must be equal.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.capabilities import VENDOR_GUID
from harness.truth.needs import content_of

RECORDED_CHARS = 3000
"""The recorder cut outputs at this length."""
_CUT_HEX = 80
_NOISE = re.compile(r"systemd|hrtimer|random: |audit|usb |EXT4|loop\d|clocksource|rcu|sched")
_KERNEL = re.compile(r"^\[ *\d+\.\d+\] (.*)$")
_COUNTER = re.compile(r"Counter value: 0x([0-9a-fA-F]+)")
_JOURNAL = re.compile(r"^\w{3} +\d+ [\d:]{8} \S+ [^\s:]+: (.*)$")
_JOURNAL_BOOT = re.compile(r"^-- (Boot [0-9a-f]{32}|No entries) --$")
_MODULES = ("tee_stmm_efi", "efivarfs")

_MOUNT_FLAGS = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 0x1000,
}
"""``statvfs`` f_flag bits (K6 include/linux/statfs.h)."""

_LS = re.compile(
    r"^([-dlbcps][-rwxsStT]{9})[.+@]? +(\d+) (\S+) +(\S+) +(\d+|\d+, +\d+) "
    r"(?:\w{3} +\d+ +[\d:]+|\d{4}-\d\d-\d\d [\d:]+) (.*)$"
)
# As many columns as its version knows letters.
_LSATTR = re.compile(r"^([-a-zA-Z]{10,}) (/.*)$")
_LINE_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # a time, or a time in seconds printed by itself
    (re.compile(r"^\d+\.\d+$"), "SECONDS"),
    # which shell says it, and on which line of its script
    (re.compile(r"^(?:-?\w*sh|main): (?:line \d+: |\d+: )?"), "shell: "),
    # ids of mounts and their propagation group (proc(5))
    (re.compile(r"^\d+ \d+ \d+:\d+ (.*?) (?:shared:\d+ )?- "), r"MOUNT \1 - "),
    # the file system's id in `stat -f`
    (re.compile(r"^ *ID: [0-9a-f]+ "), "ID: "),
    # how long dd took, and how it tells amounts
    (re.compile(r"^(\d+) bytes? (?:\([^)]*\) )*copied, .*"), r"\1 bytes copied"),
    # versions of the tools, printed by themselves
    (
        re.compile(
            r"(\butil-linux|\bkmod version|\b(?:lib)?efivar(?: version:?)?"
            r"|\befibootmgr(?: version)?|\bmmc-utils|^version:?)"
            r" +v?\d+(?:[.~+-][\w.]+)*(?= *$|[,;:) ])(?: \(libmount [^)]*\))?"
        ),
        r"\1 VERSION",
    ),
    # a boot entry's device path, and how the tool prints optional data
    (re.compile(r"^(Boot[0-9A-F]{4}\*?) ([^\t]*)\t.*$"), r"\1 \2"),
    (_COUNTER, "Counter value: N"),
)
_DROPPED = re.compile(
    r"^(real|user|sys)\s+\d+m[\d.]+s$|^ *(dp|data): |^\s*$"
    # hints of newer mounts of util-linux
    r"|^ *dmesg\(1\) may have more information|^mount: \(hint\) |^ +the old version; use 'systemctl"
    # what kmod was built with
    r"|^[-+][A-Z0-9]+(?: [-+][A-Z0-9]+)+$"
)
_SAME_ERROR = {"-EOPNOTSUPP": "-ENOTSUP", "-EWOULDBLOCK": "-EAGAIN", "-EDEADLOCK": "-EDEADLK"}
_UNDECODABLE = re.compile("[\ud800-\udfff\ufffd]+")


def value(expected: Any, seen: Any) -> bool:
    """Whether one step's outcome agrees."""
    if expected is None:
        return seen in (None, 0)
    expected, seen = _named(expected), _named(seen)
    if isinstance(seen, Mapping):
        return _space(expected, seen)
    if isinstance(expected, str) and isinstance(seen, str):
        return _text(expected, seen)
    return bool(expected == seen) or _count(expected) == _count(seen) is not None


def _named(outcome: Any) -> Any:
    """An error by one of its names, where Linux has two for one number."""
    return _SAME_ERROR.get(outcome, outcome) if isinstance(outcome, str) else outcome


def _count(outcome: Any) -> int | None:
    """What a read returned: a number, or where its bytes are told, how many."""
    if isinstance(outcome, int):
        return outcome
    told = re.fullmatch(r"(\d+) bytes?( .*)?", outcome, re.DOTALL) if type(outcome) is str else None
    return int(told[1]) if told else None


def _text(expected: str, seen: str) -> bool:
    if expected == seen:
        return True
    recorded = re.fullmatch(r"(\d+) bytes ([0-9a-f]+)", expected)
    if recorded and len(recorded[2]) < 2 * int(recorded[1]):
        return seen.startswith(expected)
    return len(expected) == _CUT_HEX and seen.startswith(expected)


def _space(expected: Any, seen: Mapping[str, int]) -> bool:
    """``statvfs``: a list is blocks, bfree, bavail; a mapping names its fields."""
    if isinstance(expected, str) and expected.startswith("["):
        expected = ast.literal_eval(expected)
    if isinstance(expected, list):
        return [seen.get(key) for key in ("blocks", "bfree", "bavail")] == expected
    if not isinstance(expected, dict):
        return False
    known = {**seen, "namemax": seen.get("namelen")}
    return all(known.get(key) == number for key, number in expected.items())


def mount_flags(options: Sequence[str]) -> int:
    """``f_flag`` of statvfs for a mount with these options; 0x20000 "valid" is not shown."""
    return sum(_MOUNT_FLAGS.get(option, 0) for option in options)


def content(expected: Any, seen: bytes | None, error: str | None) -> bool:
    """Whether a recorded content (hex, bytes literal, ``ATTRIBUTES+SIZE``, -ERRNO) agrees."""
    if expected is None:
        return seen is None
    if isinstance(expected, str) and expected.startswith("-E"):
        return error is not None and _named(f"-{error}") == _named(expected)
    wanted = content_of(expected)
    if wanted is None or seen is None:
        return False
    if isinstance(wanted, tuple):
        return seen[:4] == wanted[0] and len(seen) == 4 + wanted[1]
    return seen == wanted or (len(expected) == _CUT_HEX and seen.startswith(wanted))


# --- output of shell command lines --------------------------------------------------------------


def output(command: str, expected: str, stdout: str, stderr: str) -> str | None:
    """None when an output agrees, else what differs. The recorder put both streams into one text,
    in one or the other order: each stream's lines must come in their order."""
    counters = _counter_steps(expected), _counter_steps(stdout + "\n" + stderr)
    if counters[0] != counters[1]:
        return f"write counter moved by {counters[1]}, expected {counters[0]}"
    cut = len(expected) >= RECORDED_CHARS
    want = _lines(command, expected)
    out, err = _lines(command, stdout), _lines(command, stderr)
    if "journalctl" in command:
        return _journal(want, out)
    if cut:
        want = want[:-1]
        out, err = out[: len(want)], err[: max(0, len(want) - len(out))]
    if _is_merge(want, out, err):
        return None
    return _first_difference(want, [*out, *err])


def kernel_lines(text: str) -> list[str]:
    """The kernel log lines in an output, without their times; lines of parts that have nothing
    to do with variables are left out."""
    found = [_KERNEL.match(line) for line in text.splitlines()]
    return without_noise([line[1] for line in found if line])


def without_noise(lines: Sequence[str]) -> list[str]:
    """Kernel lines without times and without those of other parts of the system."""
    plain = [re.sub(r"^\[ *\d+\.\d+\] ", "", line) for line in lines]
    return [line for line in plain if not _NOISE.search(line)]


def kernel_log(expected: Sequence[str], seen: Sequence[str], during: Sequence[str]) -> str | None:
    """Every expected line must have been logged, in order; what was logged while the row ran must
    be expected. Lines of earlier rows may be there: the recorder cleared the log in between."""
    rest = iter(seen)
    for line in expected:
        if not any(line == other for other in rest):
            return f"no kernel line {line!r}"
    extra = [line for line in during if line not in expected]
    return f"kernel line {extra[0]!r}" if extra else None


def since_boot(expected: Sequence[str], logged: Sequence[str]) -> list[str]:
    """What ``dmesg | tail`` can still show where the state needed a reboot between the rows: the
    lines of rows before are in the log of another boot."""
    first = next((n for n, line in enumerate(expected) if line in logged), len(expected) - 1)
    return list(expected[max(first, 0) :])


def _lines(command: str, text: str) -> list[str]:
    rules: list[Callable[[str], str | None]] = [_by_line_rules]
    if "lsmod" in command:
        rules.append(_stack_module)
    if re.search(r"\bps ", command):
        rules.append(lambda line: None if _is_own_process(line, command) else line)
    found = []
    for line in text.strip().splitlines():
        kept: str | None = line.rstrip()
        if _KERNEL.match(line) or _DROPPED.match(line) or str(VENDOR_GUID) in line:
            continue
        for rule in rules:
            kept = rule(kept) if kept is not None else None
        if kept:
            found.append(kept)
    return found


def _by_line_rules(line: str) -> str:
    # Recorders decode in their own ways what is no UTF-8.
    line = _UNDECODABLE.sub("\ufffd", line)
    listed = _LS.match(line)
    if listed:
        mode, links, *rest, name = listed.groups()
        # A directory above has as many links as the kernel has directories in it.
        return " ".join((mode, "LINKS" if name == ".." else links, *rest, name))
    attributes = _LSATTR.match(line)
    if attributes:
        return f"{attributes[1].replace('-', '')} {attributes[2]}"
    for pattern, replacement in _LINE_RULES:
        line = pattern.sub(replacement, line)
    return line


def _stack_module(line: str) -> str | None:
    """Module sizes depend on the compiler, and which others a kernel has is its own affair."""
    counted = re.fullmatch(r"(\w+) +\d+ +(\d+)(?: \S*)?", line)
    if not counted:
        return line
    return f"{counted[1]} used by {counted[2]}" if counted[1] in _MODULES else None


def _is_own_process(line: str, command: str) -> bool:
    """``ps`` shows the very command line that asks."""
    return "grep" in line or command[:20] in line


def _counter_steps(text: str) -> list[int]:
    """How the RPMB write counter moves within one output: where it stands is the part's life."""
    values = [int(found[1], 16) for found in _COUNTER.finditer(text)]
    return [number - values[0] for number in values]


def _journal(want: Sequence[str], seen: Sequence[str]) -> str | None:
    """The journal of a service goes back over boots: the newest message must be the same, and
    everything must be journal lines. What a unit calls itself is the distribution's word."""
    strange = [line for line in seen if not (_JOURNAL.match(line) or _JOURNAL_BOOT.match(line))]
    if strange:
        return f"not a line of the journal: {strange[0]!r}"
    last = [_message(lines) for lines in (want, seen)]
    return None if last[0] == last[1] else f"newest message {last[1]!r}, expected {last[0]!r}"


def _message(lines: Sequence[str]) -> str | None:
    found = [line for line in map(_JOURNAL.match, lines) if line]
    return re.sub(r" - .*$", "", found[-1][1]) if found else None


def _is_merge(whole: Sequence[str], one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether ``whole`` is made of both, each in its order."""
    if len(whole) != len(one) + len(other):
        return False
    reachable = {0}  # how many of `one` have been used
    for count, line in enumerate(whole):
        step = {used + 1 for used in reachable if used < len(one) and one[used] == line}
        step |= {
            used for used in reachable if count - used < len(other) and other[count - used] == line
        }
        reachable = step
    return bool(reachable)


def _first_difference(want: Sequence[str], seen: Sequence[str]) -> str:
    lacking = [line for line in want if line not in seen]
    extra = [line for line in seen if line not in want]
    if lacking or extra:
        return f"expected {lacking[:2]}, saw {extra[:2]}"
    return "the same lines in another order or number"

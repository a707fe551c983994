"""Steps as a POSIX shell can take them: what has a redirection or a utility of its own.

Descriptors are the shell's numbers 3 to 9. The errno is read from the utilities' messages.
Everything else is reported as unsupported rather than imitated.
"""

from shlex import quote

from harness.links import posix
from harness.probe import steps as do
from harness.probe.steps import Outcome, Step

# Runs on the target, `sh -c SERVER hil DIRECTORY`: evaluates batches from one fifo and answers
# into another. Every step leaves its message in "e" and its data in "o".
SERVER = r"""
P=$1
cd /
umask 077
hex() { od -An -v -tx1 <"$P/$1" | tr -d ' \n'; }
tell() { echo "$1 $(hex e). $(hex o)."; : >"$P/o"; : >"$P/e"; }
need() { command -v "$1" >/dev/null 2>&1; }
: >"$P/o"; : >"$P/e"
while [ -p "$P/request" ]; do
  batch=$(cat "$P/request") || exit
  eval "$batch" >"$P/answer"
done
"""

_REDIRECTIONS = {
    frozenset({"O_RDONLY"}): "<",
    frozenset({"O_RDWR", "O_CREAT"}): "<>",
    frozenset({"O_WRONLY", "O_CREAT", "O_TRUNC"}): ">",
    frozenset({"O_WRONLY", "O_CREAT", "O_APPEND"}): ">>",
    frozenset({"O_WRONLY", "O_CREAT", "O_EXCL"}): ">",
}
_FLAG_LETTERS = {0x4: "c", 0x8: "S", 0x10: "i", 0x20: "a", 0x40: "d", 0x80: "A", 0x80000: "e"}
# Those that chattr clears; the rest is the file system's own affair.
_CLEARED = {0x10: "i", 0x20: "a"}
_STAT = "%s %f %h %u %g %i %Y"
_STAT_FIELDS = ("mode", "nlink", "uid", "gid", "ino", "size", "mtime")
_STATFS_FIELDS = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "namelen")
_STATFS = "%t %s %S %b %f %a %c %d %l"


def _chattr_modes(flags: int) -> str:
    """The flags as chattr's words. Not ``=``: with that it reports no failure in its status."""
    added = "".join(letter for bit, letter in _FLAG_LETTERS.items() if flags & bit)
    cleared = "".join(letter for bit, letter in _CLEARED.items() if not flags & bit)
    return " ".join(sign + letters for sign, letters in (("+", added), ("-", cleared)) if letters)


class Translator:
    """Turns steps into shell text; remembers which number a named descriptor has."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._paths: dict[str, str] = {}

    def script(self, step: Step) -> str | Outcome:
        """Shell text that ends in one ``tell``, or the outcome if it cannot be run."""
        name = getattr(step, "fd", None)
        if name is not None and not isinstance(step, do.Open) and name not in self._numbers:
            return Outcome(step, errno="EBADF")
        made = self._make(step)
        return (
            Outcome(step, unsupported=f"the POSIX shell cannot {made[1:]}")
            if (made.startswith("!"))
            else made
        )

    def _make(self, step: Step) -> str:
        match step:
            case do.Open():
                return self._open(step)
            case do.Write(fd, data):
                return self._write(fd, data)
            case do.Read(fd, size):
                number = self._numbers[fd]
                return f'{{ dd bs={size} count=1 <&{number} >"$P/o"; }} 2>"$P/e"; tell $?'
            case do.Close(fd):
                del self._paths[fd]
                return f"exec {self._numbers.pop(fd)}>&-; tell 0"
            case do.Fstat(fd):
                return _utility("stat", f"-L -c '{_STAT}' /proc/$$/fd/{self._numbers[fd]}")
            case do.GetFlags(fd):
                return _utility("lsattr", f"-d {quote(self._paths[fd])}")
            case do.SetFlags(fd, flags):
                return _utility("chattr", f"{_chattr_modes(flags)} {quote(self._paths[fd])}")
            case do.Stat(path):
                return _utility("stat", f"-c '{_STAT}' {quote(path)}")
            case do.StatFs(path):
                return _utility("stat", f"-f -c '{_STATFS}' {quote(path)}")
            case do.Unlink(path):
                return _utility("unlink", quote(path))
            case do.Rename(source, target):
                if source.rpartition("/")[0] != target.rpartition("/")[0]:
                    return "!rename between directories without copying"
                return _utility("mv", f"-f -T {quote(source)} {quote(target)}")
            case do.Link(source, target):
                return _utility("ln", f"{quote(source)} {quote(target)}")
            case do.Symlink(target, path):
                return _utility("ln", f"-s {quote(target)} {quote(path)}")
            case do.Mkdir(path, mode):
                return _utility("mkdir", f"-m {mode:o} {quote(path)}")
            case do.Rmdir(path):
                return _utility("rmdir", quote(path))
            case do.ListDir(path):
                return _utility("ls", f"-1a {quote(path)}/")
            case do.SystemCall(name):
                return f"!make the call {name}"
            case _:
                return f"!take the step {type(step).__name__}"

    def _open(self, step: do.Open) -> str:
        flags = frozenset(step.flags.split("|"))
        redirection = _REDIRECTIONS.get(flags)
        if redirection is None:
            return f"!open with {step.flags}"
        free = (n for n in range(3, 10) if n not in self._numbers.values())
        number = self._numbers.get(step.fd) or next(free, None)
        if number is None:
            return "!keep more than seven descriptors open"
        self._numbers[step.fd] = number
        self._paths[step.fd] = step.path
        exclusive = ("set -C; ", "; set +C") if "O_EXCL" in flags else ("", "")
        return (
            f"umask {0o777 & ~step.mode:o}; {exclusive[0]}"
            f'{{ command exec {number}{redirection}{quote(step.path)}; }} 2>|"$P/e"; r=$?'
            f"{exclusive[1]}; umask 077; tell $r"
        )

    def _write(self, fd: str, data: bytes) -> str:
        if not data:
            return "!write nothing"
        # dd, because a shell's printf may split its output into several write(2)
        return (
            f"printf '{posix.octal(data)}' >\"$P/b\"; "
            f'{{ dd if="$P/b" bs={len(data)} count=1 >&{self._numbers[fd]}; }} 2>"$P/e"; tell $?'
        )

    def outcome(self, step: Step, line: str) -> Outcome:
        """What the step's ``tell`` line means."""
        status, message_hex, data_hex = line.replace(".", "").split(" ")
        message, data = bytes.fromhex(message_hex), bytes.fromhex(data_hex)
        if status == "127":
            text = message.decode("utf-8", "replace")
            return Outcome(step, unsupported=f"the target lacks the tool: {text}")
        if status != "0":
            if isinstance(step, do.Open):
                self._numbers.pop(step.fd, None)
                self._paths.pop(step.fd, None)
            name = posix.errno_name(message)
            if name is None:
                text = message.decode("utf-8", "replace").strip()
                return Outcome(step, unsupported=f"the message tells no errno: {text}")
            return Outcome(step, errno=name)
        return _success(step, data)


def _utility(tool: str, arguments: str) -> str:
    return (
        f'if need {tool}; then {tool} {arguments} >"$P/o" 2>"$P/e"; tell $?; '
        f'else echo {tool} >"$P/e"; tell 127; fi'
    )


def _success(step: Step, data: bytes) -> Outcome:
    match step:
        case do.Write():
            return Outcome(step, value=len(step.data))
        case do.Read():
            return Outcome(step, value=len(data), data=data)
        case do.Stat() | do.Fstat():
            size, mode, nlink, uid, gid, ino, mtime = data.split()
            values = (int(mode, 16), *map(int, (nlink, uid, gid, ino, size, mtime)))
            fields = tuple(zip(_STAT_FIELDS, values, strict=True))
            return Outcome(step, value=int(size), fields=fields)
        case do.StatFs():
            kind, *numbers = data.split()
            fields = tuple(zip(_STATFS_FIELDS, map(int, numbers), strict=True))
            return Outcome(step, value=int(kind, 16), fields=fields)
        case do.GetFlags():
            letters = data.split()[0].decode()
            flags = sum(bit for bit, letter in _FLAG_LETTERS.items() if letter in letters)
            return Outcome(step, value=flags)
        case do.ListDir():
            found = sorted(set(data.splitlines()) - {b".", b".."})
            return Outcome(step, value=len(found), names=tuple(found))
        case _:
            return Outcome(step, value=0)

"""The program a persistent lane runs on the target, and the frames it speaks.

The target's own ``sh`` reads a command from the lane, runs it in a subshell that was forked
beforehand (so the fork costs no latency and ``cd``, ``exit`` or ``set -e`` cannot leak), and
ends its output with ``TOKEN:ID:STATUS``. Standard output passes through one long-lived
``tee``, standard error through a file that is sent only when it is not empty: so both are
also kept in a mode 700 directory, on a tmpfs where there is one, and the result of the last
command survives the loss of the connection, at no fork per command. After the connection is
gone the directory stays ``LINGER`` seconds for the host to fetch that result by its id.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from harness.links import posix
from harness.links.channel import (
    LaneBroken,
    LaneLate,
    Output,
    Streams,
    bounded,
    left,
    no_shell,
    open_channel,
    said_by,
)

if TYPE_CHECKING:
    from paramiko import Channel, Transport

LINGER = 60  # seconds
STORED_BLOCKS = 32768  # of 512 bytes (bash: 1024): more standard output is delivered but not kept
FORGET_AFTER = 64 * 1024  # bytes of standard output of old results that stay on the target

_SCRIPT = r"""
hil_dir= hil_all=
while read -r hil_x hil_all hil_n hil_x; do
  case $hil_n:$hil_all in tmpfs:/run|tmpfs:/dev/shm|tmpfs:/tmp) hil_dir="$hil_dir $hil_all" ;; esac
done 2>/dev/null </proc/mounts
for hil_x in $hil_dir /run /dev/shm /tmp /var/tmp; do
  hil_dir=$hil_x/$1
  mkdir -m 700 "$hil_dir" 2>/dev/null && break
  hil_dir=
done
[ "$hil_dir" ] || { echo "no directory is writable" >&2; exit 1; }
IFS= read -r hil_token || exit
hil_keep() {
  trap '' XFSZ
  ulimit -f @BLOCKS@ 2>/dev/null
  command -v tee >/dev/null || exec cat
  exec tee -a "$hil_dir/out" 2>/dev/null
}
hil_loop() {
  hil_n=0 hil_e=
  read -r hil_p hil_x </proc/self/stat
  while :; do
    hil_n=$((hil_n+1))
    (
      trap - PIPE
      IFS=' ' read -r hil_id hil_l hil_x || { kill -KILL "$hil_p"; exit; }
      [ "$hil_id" = bye ] && { rm -rf "$hil_dir"; kill -KILL "$hil_p"; exit; }
      hil_c=
      [ "$hil_x" ] && : >"$hil_dir/out"
      [ "$hil_e" ] && : >"$hil_dir/err"
      while [ "$hil_l" -gt 0 ]; do
        IFS= read -r hil_x || { kill -KILL "$hil_p"; exit; }
        hil_c="$hil_c
$hil_x"
        hil_l=$((hil_l-1))
      done
      echo "$hil_id" >&6
      exec <&7 4>&- 6>&- 7>&-
      eval "unset hil_token hil_dir hil_all hil_n hil_e hil_p hil_id hil_l hil_c hil_x
set --;$hil_c"
    )
    hil_s=$? hil_e=
    if [ -s "$hil_dir/err" ]; then
      { cat "$hil_dir/err"; echo "$hil_token:$hil_n:end"; } >&4 2>/dev/null
      hil_s=$hil_s:e hil_e=1
    fi
    echo "$hil_token:$hil_n:$hil_s"
  done
}
hil_boot=-
read -r hil_boot 2>/dev/null </proc/sys/kernel/random/boot_id
: >"$hil_dir/alive"
echo "$hil_token" >&2
echo "$hil_token $$ $hil_boot $hil_dir"
trap '' PIPE
exec 3>&1 4>&2 6>"$hil_dir/ids" 7</dev/null
{ hil_loop 2>>"$hil_dir/err"; } 3>&- | hil_keep >&3 3>&- 4>&- 6>&- 7>&-
exec <&7 >/dev/null 2>&1 3>&- 4>&- 6>&- 7>&-
[ -d "$hil_dir" ] || exit 0
rm -f "$hil_dir/alive"
sleep @LINGER@
rm -rf "$hil_dir"
"""

_STATUS = re.compile(rb"(\d{1,3})(:e)?\n")

# Children die first, as a killed parent would hide them, but it is stopped before so that it
# starts no more. Only in the boot that the process ids are of.
_KILL = r"""
read -r boot </proc/sys/kernel/random/boot_id
[ "$boot" = "$1" ] || exit 0
shift
slay() {
  kill -STOP "$1" 2>/dev/null
  for stat in /proc/[0-9]*/stat; do
    IFS= read -r line 2>/dev/null <"$stat" || continue
    rest=${line##*) }; rest=${rest#* }
    [ "${rest%% *}" = "$1" ] && slay "${line%% *}"
  done
  kill -KILL "$1" 2>/dev/null
}
for pid; do slay "$pid"; done
exit 0
"""

_FETCH = r"""
cd {directory} 2>/dev/null || {{ echo gone; exit; }}
id=0
while read -r line; do id=$line; done <ids
state=running
kill -0 {pid} 2>/dev/null || state=dead
[ -e alive ] || state=over
echo "$state $id"
cat out 2>/dev/null
cat err >&2 2>/dev/null
"""

GOODBYE = b"bye 0\n"


def start_command(shell: str, directory_name: str) -> str:
    """The command line that starts the lane; it prints one line, see :func:`parse_ready`."""
    script = _SCRIPT.replace("@BLOCKS@", str(STORED_BLOCKS)).replace("@LINGER@", str(LINGER))
    return posix.command_line(shell, script, directory_name)


@dataclass(frozen=True, slots=True)
class End:
    """The end of a command's standard output: offsets of the marker and of what comes after it,
    the exit status, and whether there is standard error, which ends on its own."""

    offset: int
    after: int
    status: int
    has_errors: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the lane with process id ``pid`` keeps the result of its last command."""

    token: str
    pid: int
    boot: str
    directory: str

    @property
    def fetch_script(self) -> str:
        """Prints the lane's state and the stored streams, see :func:`parse_fetched`."""
        return _FETCH.format(directory=quote(self.directory), pid=self.pid)

    def find_end(self, number: int, output: bytes | bytearray, start: int = 0) -> End | None:
        """Where command ``number`` ends in the output of the lane; None while it does not."""
        # A pattern of its own for every command costs more to compile than the command.
        marker = b"%s:%d:" % (self.token.encode(), number)
        at = output.find(marker, start)
        found = _STATUS.match(output, at + len(marker)) if at >= 0 else None
        return End(at, found.end(), int(found[1]), found[2] is not None) if found else None

    def end_of_errors(self, number: int) -> bytes:
        return f"{self.token}:{number}:end\n".encode()


def parse_ready(line: bytes) -> Stored:
    """The lane's first line. Raises ValueError if it is none."""
    token, pid, boot, directory = line.decode().rstrip("\n").split(" ", 3)
    return Stored(token, int(pid), boot, directory)


def kill_script(stored: Stored) -> str:
    """Kills an abandoned lane with everything it started, if the board has not rebooted."""
    return f"set -- {quote(stored.boot)} {stored.pid}\n{_KILL}"


def request(number: int, command: str, *, forget: bool) -> bytes:
    """The frame that makes the lane run ``command`` (any text without NUL) as its
    ``number``-th; ``forget`` drops the stored output of older ones first.

    Raises ValueError on NUL.
    """
    if "\0" in command:
        raise ValueError("a command line cannot contain NUL")
    lines = command.count("\n") + 1
    head = f"{number} {lines}{' forget' if forget else ''}"
    return f"{head}\n{command}\n".encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a target still knew of command ``number``: ``state`` is ``gone`` (the directory is
    no more), ``never`` (certainly not started), ``running``, ``over`` (started, no result) or
    ``done``."""

    state: str
    status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


def parse_fetched(stored: Stored, number: int, stdout: bytes, stderr: bytes) -> Fetched:
    """Judge the output of :attr:`Stored.fetch_script`."""
    header, _, out = stdout.partition(b"\n")
    if b" " not in header:
        return Fetched("gone")
    state, last = header.decode("ascii", "replace").split(" ", 1)
    end = stored.find_end(number, out)
    if end is None:
        # only a lane that ended in order, its record ending before this command, proves that
        # the command was not started
        before = last.isdecimal() and len(last) < 10 and int(last) < number
        if state == "over" and before:
            return Fetched("never")
        return Fetched("over" if state == "dead" else state)
    out = out[: end.offset]
    # the file may still hold what older commands printed
    previous = stored.find_end(number - 1, out)
    return Fetched("done", end.status, out[previous.after :] if previous else out, stderr)


class Lane:
    """A shell program on one channel that runs commands one after the other."""

    def __init__(self, channel: Channel, streams: Streams, stored: Stored) -> None:
        self.channel = channel
        self.stored = stored
        self.number = 0
        self._kept = 0
        self._streams = streams

    @classmethod
    def open(cls, transport: Transport, shell: str, deadline: float) -> Lane:
        """Start the lane. Raises ``LaneLate``, ``LaneBroken``, ``HostError``."""
        channel = open_channel(transport, deadline)
        # 128 random bits: what a command prints can never look like the end of its output
        token = secrets.token_hex(16)
        name = f"hil-{secrets.token_hex(6)}"
        with bounded(channel, deadline):
            channel.exec_command(start_command(shell, name))
            channel.sendall(f"{token}\n".encode())
        streams = Streams(channel)
        start, echoed = f"{token} ".encode(), f"{token}\n".encode()
        try:
            # whatever the login shell's start-up files print comes before these, in both streams
            while (at := streams.out.find(start)) < 0 or b"\n" not in streams.out[at:]:
                if echoed in streams.out:  # a program that was not asked for answers
                    raise no_shell(shell, streams, 0)
                streams.pump(deadline)
            while echoed not in streams.err:
                streams.pump(deadline)
        except LaneLate:
            raise LaneLate(said_by(streams)) from None
        except LaneBroken:
            # a shell killed by a signal has no exit status: its board is going down
            channel.status_event.wait(min(1.0, left(deadline)))
            if not transport.is_active() or channel.exit_status < 0:
                raise
            raise no_shell(shell, streams, channel.exit_status) from None
        ready = bytes(streams.out[at:]).split(b"\n", 1)[0]
        try:
            return cls(channel, streams, parse_ready(ready))
        except ValueError:
            raise LaneBroken from None

    @property
    def alive(self) -> bool:
        return not (self.channel.closed or self.channel.eof_received)

    def run(self, command: str, deadline: float) -> Output:
        """Send one command and wait for the end of both streams. Raises as :class:`Streams`."""
        streams = self._streams
        streams.clear()
        self.number += 1
        forget = self._kept > FORGET_AFTER
        frame = request(self.number, command, forget=forget)
        self._send(frame, deadline)
        out_end = self._wait_for_end(deadline)
        out = bytes(memoryview(streams.out)[: out_end.offset])
        self._kept = len(out) if forget else self._kept + len(out)
        if not out_end.has_errors:
            return Output(out_end.status, out, b"")
        end = self.stored.end_of_errors(self.number)
        while not streams.err.endswith(end):
            streams.pump(deadline)
        return Output(out_end.status, out, bytes(memoryview(streams.err)[: -len(end)]))

    def _wait_for_end(self, deadline: float) -> End:
        streams = self._streams
        longest = len(self.stored.token) + 24
        searched = 0
        while True:
            streams.pump(deadline)
            end = self.stored.find_end(self.number, streams.out, searched)
            if end is not None:
                return end
            searched = max(0, len(streams.out) - longest)

    def _send(self, frame: bytes, deadline: float) -> None:
        if len(frame) < 16384:
            # fits the window of a lane whose last command was answered: cannot block
            try:
                self.channel.sendall(frame)
            except (OSError, EOFError) as error:  # paramiko says EOFError for a reset connection
                raise LaneBroken from error
            return
        with bounded(self.channel, deadline):
            self.channel.sendall(frame)

    def say_goodbye(self) -> None:
        """Let the target tidy up; best effort."""
        with contextlib.suppress(Exception):
            if self.alive:
                self.channel.settimeout(0.2)
                self.channel.sendall(GOODBYE)
                self.channel.shutdown_write()

    def throw_away(self) -> None:
        with contextlib.suppress(Exception):
            self.channel.close()

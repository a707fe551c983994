r"""The program that receives commands over a serial line on the target, and its frames.

The line may lose characters both ways, and the kernel may print into it anywhere, so nothing
that arrives is ever interpreted by an interactive shell. A small receiver reads lines; a
command is put together from numbered pieces, runs only when its checksum is right and its id
is new, and its result is kept in a directory so that it can be asked for again and again.

Host to target, one line each (``^U`` before it kills a damaged rest):

=====================  ==========================================================
``c ID.N:TEXT``        piece N of command ID; answered by ``C`` and the same line
``d ID.N:TEXT``        the same, not answered
``x ID.CRC``           run it: ``S ID`` when started, then ``R``; ``N ID`` if damaged
``r ID``               the result again: ``R``, ``U ID`` never started, ``L ID`` no result
``f ID.SIZE.N``        block N of SIZE bytes of the result: ``B ID.SIZE.N.CRC.DATA``
``p NONCE``            ``P NONCE.STATE.ENCODING.DIRECTORY``, STATE ``new`` or ``old``
``q``                  tidy up and end
=====================  ==========================================================

(without the blanks). Target to host: ``RS body US``. ``R ID.SIZE.CRC.DATA`` carries the whole
result, encoded, when it is small. A result is standard output, standard error and a trailer
``LF ID STATUS LENGTH-OF-STANDARD-ERROR LF``, all under one POSIX ``cksum``.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum

from harness.links import posix
from harness.links.console import without_escapes

START, END = b"\x1e", b"\x1f"
SMALL = 512  # bytes of a result that travel with R

# Runs under `sh -c`: no job control, so ^C reaches it; its command is a background child, so
# the trap runs at once and ends the command's whole tree, whatever that ignores.
_SCRIPT = r"""
d=/DIR
s=new
for i in /run /dev/shm /tmp; do [ -d "$i/NAME" ] && { d=$i/NAME s=old; break; }; done
[ "$s" = old ] || for i in /run /dev/shm /tmp; do
  mkdir -m 700 "$i/NAME" 2>/dev/null && { d=$i/NAME; break; }
done
e=base64
case $(printf QQ== | base64 -d 2>/dev/null) in
  A) ;;
  *) e='od -An -v -tx1' ;;
esac
stty -echo -iexten icanon isig icrnl intr '^C' kill '^U' eof '^D'
say() { printf '\036%s\037\n' "$1"; }
slay() {
  kill -STOP "$1" 2>/dev/null
  for y in /proc/[0-9]*/stat; do
    IFS= read -r z 2>/dev/null <"$y" || continue
    w=${z##*) } w=${w#* }
    [ "${w%% *}" = "$1" ] && slay "${z%% *}"
  done
  kill -KILL "$1" 2>/dev/null
}
CKSUM
sum() { w=$(cksum <"$d/$1"); v=${w#* } w=${w%% *}; v=${v%% *}; }
report() {
  z=
  read -r z v w 2>/dev/null <"$d/done"
  [ "$z" = "$1" ] || { say "L$1"; return; }
  if [ "$v" -le SMALL ]; then
    printf '\036R%s' "$1.$v.$w."; $e <"$d/out"; printf '\037\n'
  else
    say "R$1.$v.$w."
  fi
}
run() {
  last=$1
  echo "$1" >"$d/last"
  say "S$1"
  : >"$d/out"
  (
    exec </dev/null >>"$d/out" 2>"$d/err"
    eval "unset d s e o t l a b i n g p v w z y k u last; set --; $g$p"
  ) &
  k=$!
  wait "$k"
  u=$?
  while kill -0 "$k" 2>/dev/null; do wait "$k"; u=$?; done
  k=
  z=0
  if [ -s "$d/err" ]; then
    z=$(wc -c <"$d/err")
    cat "$d/err" >>"$d/out"
  fi
  printf '\n%s %s %s\n' "$1" "$u" "$((z))" >>"$d/out"
  sum out
  echo "$1 $v $w" >"$d/done"
}
trap '[ "$k" ] && slay "$k"' INT
trap '' QUIT TSTP
last= i= n=0 g= p= k= z= l=
read -r last 2>/dev/null <"$d/last"
say "Pready.$s.${e%% *}.$d"
while :; do
  l=
  if ! IFS= read -r l; then
    z=$((${z:-0}+1))
    [ "$z" -gt 20 ] && break
    continue
  fi
  z=0
  b=${l#*:} a=${l%%:*}
  a=${a#?}
  case $l in
    [cd]*:*)
      case $a in
        "$i.$n") p=$b ;;
        "$i.$((n+1))") g=$g$p p=$b n=$((n+1)) ;;
        *.0) i=${a%.*} n=0 g= p=$b ;;
      esac
      case $l in c*) say "C${l#c}" ;; esac ;;
    x*.*)
      b=${a#*.} a=${a%%.*}
      if [ "$a" = "$last" ]; then
        report "$a"
      else
        printf %s "$a.$g$p" >"$d/cmd"
        sum cmd
        if [ "$a.$w" = "$i.$b" ]; then run "$a"; report "$a"; else say "N$a"; fi
      fi ;;
    r*) if [ "$a" = "$last" ]; then report "$a"; else say "U$a"; fi ;;
    f*.*.*)
      b=${a#*.} z=0
      case $b in
        *[!0-9.]*|*.*.*|.*|*.) ;;
        *)
          dd if="$d/out" bs="${b%.*}" skip="${b#*.}" count=1 2>/dev/null >"$d/cmd"
          sum cmd
          printf '\036B%s' "$a.$w."; $e <"$d/cmd"; printf '\037\n' ;;
      esac ;;
    p*) say "P$a.$s.${e%% *}.$d" ;;
    q) break ;;
  esac
done
stty "$o"
rm -rf "$d"
printf '\036Q\037\n'
"""

# Typed at the prompt in short pieces: it only collects the script above, line by line, and
# prints back what it got. Without single quotes, as it travels inside them.
LOADER = (
    r"o=$(stty -g);stty -echo;n=0 g= t=;"
    r"while IFS= read -r l;do a=${l%%:*} b=${l#*:};"
    r"case $a in $n)t=$b;;$((n+1)))g=$g$t n=$a t=$b;;x)eval "
    r'"$(printf %b "$g$t")";exit;;esac;'
    r'printf "\036%s\037\n" "$l";done'
)


def script(name: str) -> str:
    """The receiver, keeping results in a directory called ``name``, on one line for
    ``printf %b``."""
    text = _SCRIPT.replace("NAME", name).replace("SMALL", str(SMALL)).replace("CKSUM", posix.CKSUM)
    return text.strip().replace("\\", "\\\\").replace("\n", "\\n")


def printable(command: str) -> str:
    """``command`` as one line of printable ASCII that does the same."""
    if command.isascii() and command.isprintable():
        return command
    escaped = "".join(
        f"\\0{byte:03o}" if not 32 <= byte < 127 or byte in b"\\'" else chr(byte)
        for byte in command.encode("utf-8", "surrogateescape")
    )
    return f"eval \"$(printf %b '{escaped}')\""


def checksum(command_id: int, text: str) -> int:
    """What the target's ``x`` compares."""
    return posix.cksum(f"{command_id}.{text}".encode())


class Kind(StrEnum):
    """First letter of a frame from the target."""

    PIECE = "C"
    DAMAGED = "N"
    STARTED = "S"
    RESULT = "R"
    BLOCK = "B"
    UNKNOWN = "U"
    LOST = "L"
    PONG = "P"
    BYE = "Q"


@dataclass(frozen=True, slots=True)
class Frame:
    """``fields`` are the dot-separated texts after the kind; ``body`` is all of the frame."""

    body: str

    @property
    def kind(self) -> Kind | None:
        return Kind(self.body[0]) if self.body[:1] in _KINDS else None

    @property
    def fields(self) -> list[str]:
        return self.body[1:].split(".")


_FRAME = re.compile(rb"\x1e([^\x1e\x1f]*)\x1f")
# printk with time stamps, anywhere in a frame, up to its end of line
_PRINTK = re.compile(rb"\[ *\d+\.\d{6}\](?:\[[^\]\n]*\])? [^\n]*\n")
_KINDS = {kind.value for kind in Kind}


def frames(data: bytes) -> tuple[list[Frame], int]:
    """The complete frames in ``data``, without kernel messages and escape sequences that
    were printed into them, and the position after the last of them."""
    found = []
    position = 0
    for match in _FRAME.finditer(data):
        position = match.end()
        found.append(Frame(without_noise(match[1]).replace("\r", "").replace("\n", "")))
    return found, position


def without_noise(data: bytes) -> str:
    """Console output without escape sequences and time-stamped kernel messages, as Latin-1."""
    return _PRINTK.sub(b"", without_escapes(data)).decode("latin-1")


def decode(text: str) -> bytes | None:
    """Bytes from base64 or ``od`` hexadecimal; None if damaged."""
    if re.fullmatch(r"(?: [0-9a-f]{2})*", text):
        return bytes.fromhex(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command's result as the receiver keeps it."""

    status: int
    stdout: bytes
    stderr: bytes


def parse_result(blob: bytes, command_id: int) -> Outcome:
    """Take a result with a right checksum apart. Raises ValueError if it is none of
    ``command_id``."""
    head, newline, trailer = blob.rstrip(b"\n").rpartition(b"\n")
    number, status, errors = (int(field) for field in trailer.split())
    if not newline or number != command_id or errors > len(head):
        raise ValueError("not the result of this command")
    split = len(head) - errors
    return Outcome(status, head[:split], head[split:])

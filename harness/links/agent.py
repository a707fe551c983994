r"""The program that receives commands over a serial line on the target, and its frames.

The line may lose characters both ways, and the kernel may print into it anywhere, so nothing
that arrives is ever interpreted by an interactive shell. A small receiver reads lines; a
command runs only when the checksum of its line is right and its id is new, and its result is
kept in a directory so that it can be asked for again and again.

What is checked and answered for every command is done by the shell itself: a process costs as
much as a dozen characters on the line. Hence the checksum :func:`digest`, which a shell can
compute, and the texts that the receiver remembers, so that what commands have in common crosses
the line once.

Host to target, one line each (``^U`` before it kills a damaged rest). ``H`` is the digest of the
line without it:

=========================  ======================================================
``c ID.N.H:TEXT``          piece N of command ID, or that one again; answered by ``C ID.N.H``
``x ID.N.H:TEXT``          the last piece: run it. ``ACK`` when started, then ``R`` or ``T``
``y ID.N.A.B.H:TEXT``      the same, between the remembered texts A and B (none if empty)
``k ID.N.A.H:TEXT``        the last piece of the text to be remembered as A: ``C ID.N.H``
``r ID``                   the result again: ``R`` or ``T``, ``U ID`` not run, ``L ID`` no result
``f ID.SIZE.N``            block N of SIZE bytes of the result: ``B ID.SIZE.N.CRC.DATA``
``p NONCE``                ``P NONCE.STATE.ENCODING.DIRECTORY``, STATE ``new`` or ``old``
``q``                      tidy up and end
=========================  ======================================================

(without the blanks). ``X``, ``Y`` and ``K`` are the same with a text that is to be decoded by
base64 and gzip, where the target has both (ENCODING ``base64+gzip``). A line with a wrong digest
is answered by ``N``, one that does not follow what came before by ``U ID``.

Target to host: ``RS body US``. ``R ID.STATUS.OUT.ERR.H`` is a short result. A long one is
announced by ``T ID.STATUS.SIZE.ERRORS.CRC.H``: SIZE bytes, of which the last ERRORS are standard
error, with their POSIX ``cksum``; its first block follows unasked. Where the target has gzip, SIZE
and CRC are of the result compressed.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import zlib
from dataclasses import dataclass
from enum import StrEnum

from harness.errors import OutputWithoutEnd
from harness.links import posix
from harness.links.channel import OUTPUT_LIMIT
from harness.links.readable import decoded, without_escapes

START, END = b"\x1e", b"\x1f"
SMALL = 120  # bytes of a stream that travel with R; longer ones cost the target more processes
LONG = 150  # characters of a text from which packing is tried
UNPACKING = 40  # characters that cross the line while a target unpacks one
FIRST_BLOCK = 512  # bytes of a long result that are sent unasked
SLOTS = 32  # texts that the receiver remembers

_FIRST, _LAST = 32, 126
_TABLE = "".join(map(chr, range(_FIRST, _LAST + 1)))
_FACTOR, _MODULUS = 131, 16_000_057
# their product is below 2**31: the arithmetic of a shell may have no more

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
f=${e%% *} q=out
[ "$(printf A | gzip -c 2>/dev/null | gzip -dc 2>/dev/null)" = A ] && f=$f+gzip q=packed
stty -echo -iexten -opost icanon isig icrnl intr '^C' kill '^U' eof '^D'
say() { printf '\036%s\037' "$1"; }
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
t='TABLE'
hash() {
  y=$1 v=0
  while [ "$y" ]; do
    z=${y#?} w=${y%"${y#?}"}
    w=${t%%"$w"*} y=$z
    v=$(((v*FACTOR+${#w})%MODULUS))
  done
}
small() {
  x= w=0
  [ -s "$d/$1" ] || return 0
  while IFS= read -r y; do
    w=$((w+${#y}+1))
    [ "$w" -gt SMALL ] && return 1
  done <"$d/$1"
  [ "$((w+${#y}))" -gt SMALL ] && return 1
  set -- $($e <"$d/$1")
  IFS=
  x="$*"
  unset IFS
  [ "${#x}" -le 400 ]
}
block() {
  dd if="$d/$q" bs="$2" skip="$3" count=1 2>/dev/null >"$d/cmd"
  sum cmd
  printf '\036B%s' "$1.$2.$3.$w."; $e <"$d/cmd"; printf '\037'
}
show() {
  say "$1"
  case $1 in T*) block "$2" FIRST 0 ;; esac
}
report() {
  z=
  IFS= read -r z 2>/dev/null <"$d/done"
  case $z in
    [RT]"$1".*) show "$z" "$1" ;;
    *) say "L$1" ;;
  esac
}
run() {
  last=$1
  echo "$1" >"$d/last"
  printf '\n\006'
  : >"$d/out" >"$d/err"
  (
    exec </dev/null >>"$d/out" 2>"$d/err"
    eval "unset d s e f q o t l a b i j n g p v w x y z k u last; set --; $b"
  ) &
  k=$!
  wait "$k"
  u=$?
  while kill -0 "$k" 2>/dev/null; do wait "$k"; u=$?; done
  k=
  if small out && { b=$x; small err; }; then
    b=R$1.$u.$b.$x
  else
    z=0
    if [ -s "$d/err" ]; then
      z=$(wc -c <"$d/err")
      cat "$d/err" >>"$d/out"
    fi
    [ "$q" = out ] || gzip -c <"$d/out" >"$d/$q"
    sum "$q"
    b=T$1.$u.$v.$((z)).$w
  fi
  hash "$b"
  b=$b.$v
  show "$b" "$1"
  echo "$b" >"$d/done"
}
take() {
  a=$1.
  j=${a%%.*} a=${a#*.}
  z=${a%%.*} a=${a#*.}
  case $l in [xyXY]*) [ "$j" = "$last" ] && { report "$j"; return; } ;; esac
  [ "$z" = 0 ] && i=$j n=0 g= p=
  if [ "$j" != "$i" ]; then say "U$j"; return; fi
  case $z in
    "$n") g=$g$p n=$((n+1)) ;;
    "$((n-1))") ;;
    *) say "U$j"; return ;;
  esac
  p=$b
  case $l in c*) say "C$j.$z.$v"; return ;; esac
  b=$g$p
  case $l in [XYK]*) b=$(printf %s "$b" | base64 -d | gzip -dc) ;; esac
  case $l in
    [kK]*) eval "_m${a%.}=\$b"; say "C$j.$z.$v" ;;
    [xX]*) run "$j" ;;
    [yY]*)
      eval "w=\${_m${a%%.*}}"; a=${a#*.}
      eval "x=\${_m${a%.}}"
      b=$w$b$x; run "$j" ;;
  esac
}
trap 'if [ "$k" ]; then slay "$k"; else say "Pidle.$s.$f.$d"; fi' INT
trap '' QUIT TSTP
last= i= n=0 g= p= k= u=0 l= _m=
read -r last 2>/dev/null <"$d/last"
say "Pready.$s.$f.$d"
while :; do
  l=
  if ! IFS= read -r l; then
    u=$((u+1))
    [ "$u" -gt 20 ] && break
    continue
  fi
  u=0
  b=${l#*:} a=${l%%:*}
  case $l in
    [ckxyKXY]*.*.*:*)
      hash "${a%.*}:$b"
      if [ "$v" = "${a##*.}" ]; then a=${a%.*}; take "${a#?}"; else say N; fi ;;
    r*) a=${a#?}; if [ "$a" = "$last" ]; then report "$a"; else say "U$a"; fi ;;
    f*.*.*)
      a=${a#?}
      case $a in
        *[!0-9.]*|*.*.*.*|.*|*..*|*.) ;;
        *) b=${a#*.}; block "${a%%.*}" "${b%.*}" "${b#*.}" ;;
      esac ;;
    p*) say "P${a#?}.$s.$f.$d" ;;
    q) break ;;
    ?*) say N ;;
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
    values = {
        "NAME": name,
        "SMALL": str(SMALL),
        "CKSUM": posix.CKSUM,
        "FACTOR": str(_FACTOR),
        "MODULUS": str(_MODULUS),
        "FIRST": str(FIRST_BLOCK),
        "TABLE": _TABLE.replace("'", "'\\''"),
    }
    text = re.sub("|".join(values), lambda found: values[found[0]], _SCRIPT)
    lines = (line.strip() for line in text.strip().splitlines())
    return "\n".join(lines).replace("\\", "\\\\").replace("\n", "\\n")


def printable(command: str) -> str:
    """``command`` as one line of printable ASCII that does the same."""
    if command.isascii() and command.isprintable():
        return command
    escaped = "".join(
        f"\\0{byte:03o}" if not 32 <= byte < 127 or byte in b"\\'" else chr(byte)
        for byte in command.encode("utf-8", "surrogateescape")
    )
    return f"eval \"$(printf %b '{escaped}')\""


def digest(text: str) -> int:
    """A checksum that a shell computes without a process: a polynomial over the characters'
    places in the table of printable ASCII. One in sixteen million damages passes."""
    value = 0
    for byte in text.encode("latin-1"):
        place = byte - _FIRST if _FIRST <= byte <= _LAST else len(_TABLE)
        value = (value * _FACTOR + place) % _MODULUS
    return value


def line(head: str, text: str) -> str:
    """A line of the kinds c, k, x and y: ``head`` is its kind and numbers."""
    return f"{head}.{digest(f'{head}:{text}')}:{text}"


class Kind(StrEnum):
    """First letter of a frame from the target."""

    STARTED = "\x06"
    """ACK, which stands alone: one character to lose, and none that a kernel prints."""
    PIECE = "C"
    DAMAGED = "N"
    RESULT = "R"
    LONG_RESULT = "T"
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


_FRAME = re.compile(rb"\x1e([^\x06\x1e\x1f]*)\x1f|\x06")
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
        body = match[0] if match[1] is None else match[1]
        text = _quiet(body).decode("latin-1")
        found.append(Frame(text.replace("\r", "").replace("\n", "")))
    return found, position


def without_noise(data: bytes) -> str:
    """Console output without escape sequences and time-stamped kernel messages."""
    return decoded(_quiet(data))


def _quiet(data: bytes) -> bytes:
    return _PRINTK.sub(b"", without_escapes(data))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command's result as the receiver keeps it."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Announced:
    """A result that must be fetched: ``size`` bytes with the POSIX checksum ``checksum``. The
    last ``errors`` of them, once unpacked if they are ``packed``, are standard error."""

    status: int
    size: int
    errors: int
    checksum: int
    packed: bool

    def outcome(self, blob: bytes) -> Outcome | None:
        """The result, or None if ``blob`` is not it. Raises :class:`OutputWithoutEnd` for one
        that unpacks to more than :data:`OUTPUT_LIMIT`."""
        if len(blob) != self.size or posix.cksum(blob) != self.checksum:
            return None
        whole = _unpacked(blob) if self.packed else blob
        if whole is None:
            return None
        split = len(whole) - self.errors
        return Outcome(self.status, whole[:split], whole[split:])


def _unpacked(blob: bytes) -> bytes | None:
    """gzip's one member; None if damaged. A few bytes may be told to unpack to a gigabyte."""
    unpacking = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        whole = unpacking.decompress(blob, OUTPUT_LIMIT)
    except zlib.error:
        return None
    if not unpacking.eof and len(whole) >= OUTPUT_LIMIT:
        raise OutputWithoutEnd("the command", OUTPUT_LIMIT)
    return whole if unpacking.eof else None


@dataclass(frozen=True, slots=True)
class Tools:
    """What the target has, by the ENCODING it names."""

    base64: bool = True
    gzip: bool = False

    @classmethod
    def named(cls, encoding: str) -> Tools | None:
        """None if the name, which no checksum guards, is damaged: with another encoding than the
        target's, every result would be a wrong one."""
        decoder, _, packer = encoding.partition("+")
        if decoder not in ("base64", "od") or encoding not in (decoder, f"{decoder}+gzip"):
            return None
        return cls(base64=decoder == "base64", gzip=packer == "gzip")

    def parse_result(self, frame: Frame) -> Outcome | Announced | None:
        """What an ``R`` or ``T`` frame says; None if anything about it is damaged."""
        text, _, check = frame.body.rpartition(".")
        if check != str(digest(text)):
            return None
        _, *fields = text[1:].split(".")
        try:
            if frame.kind is Kind.LONG_RESULT:
                status, size, errors, checksum = map(int, fields)
                return Announced(status, size, errors, checksum, packed=self.gzip)
            number, *streams = fields
            out, err = map(self.decode, streams)
            return None if out is None or err is None else Outcome(int(number), out, err)
        except ValueError:  # right by its digest, and yet none of the receiver's
            return None

    def decode(self, text: str) -> bytes | None:
        """Bytes from base64, or from ``od``'s hexadecimal with or without its blanks; None if
        damaged."""
        try:
            return base64.b64decode(text, validate=True) if self.base64 else bytes.fromhex(text)
        except (binascii.Error, ValueError):
            return None

    def shorter(self, text: str) -> str | None:
        """``text`` packed where that spares the line more than it costs the target."""
        if not (self.base64 and self.gzip) or len(text) < LONG:
            return None
        packed = base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")
        return packed if len(packed) + UNPACKING < len(text) else None

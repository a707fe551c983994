"""Options of the board's commands, read as getopt_long(3) reads them, and refused in its words.

What a command does not know it refuses before it does anything; ``--help`` and ``--version`` do
nothing else either.  Messages as of glibc and systemd 257.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

SYSTEMD_VERSION: Final = (
    "systemd 257 (257.9-1~deb13u1)",
    "+PAM +AUDIT +SELINUX +APPARMOR +IMA +IPE +SMACK +SECCOMP +GCRYPT +OPENSSL +ACL +BLKID +CURL "
    "+FIDO2 +IDN2 +KMOD +LIBCRYPTSETUP +PCRE2 +TPM2 +BZIP2 +LZ4 +XZ +ZLIB +ZSTD +UTMP +SYSVINIT",
)


@dataclass
class Reply:
    """What a command prints and returns."""

    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    status: int = 0

    def fail(self, status: int, *lines: str) -> Reply:
        """Add error lines and raise the exit status to ``status``."""
        self.err += lines
        self.status = max(self.status, status)
        return self


class Ended(Exception):
    """The command line says it all: ``reply`` is the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("".join(reply.err))
        self.reply = reply


@dataclass(frozen=True)
class Words:
    """A command line: the options in their order, by long name (by letter where there is none),
    with their values; and what is no option."""

    options: tuple[tuple[str, str], ...]
    operands: tuple[str, ...]

    def has(self, *names: str) -> bool:
        """Whether one of the options is given."""
        return any(name in names for name, _ in self.options)

    def last(self, *names: str) -> str | None:
        """Value of the last of these options, None without any."""
        return next((value for name, value in reversed(self.options) if name in names), None)


class CommandLine:
    """What one command knows.

    ``options``: as in ``-p --property=VALUE``, one after the other; ``=`` takes a value, ``=?``
    perhaps one.  ``usage``: the first lines of its help.
    """

    def __init__(
        self, program: str, options: str, *usage: str, version: Sequence[str] = SYSTEMD_VERSION
    ) -> None:
        self._program = program
        self._version = version
        self._usage = usage
        self._long: dict[str, str] = {}
        self._short: dict[str, str] = {}
        letter = ""
        for word in ("-h", "--help", "--version", *options.split()):
            if not word.startswith("--"):
                letter = word[1]
                self._short[letter] = letter
                self._long.setdefault(letter, word[2:])
                continue
            name, equals, rest = word[2:].partition("=")
            self._long[name] = equals + rest
            if letter:
                self._short[letter] = name
                self._long.pop(letter)
                letter = ""

    def read(self, arguments: Sequence[str]) -> Words:
        """Take a command line apart; raises :class:`Ended`."""
        options: list[tuple[str, str]] = []
        operands: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                operands += rest
                break
            if not word.startswith("-") or word == "-":
                operands.append(word)
                continue
            for option in self._option(word, rest):
                if option[0] in ("help", "version"):
                    raise Ended(Reply(out=self._about(option[0])))
                options.append(option)
        return Words(tuple(options), tuple(operands))

    def refuse(self, text: str) -> Ended:
        """A complaint that begins with the program's name, as getopt's do."""
        return Ended(Reply().fail(1, f"{self._program}: {text}"))

    def _option(self, word: str, rest: list[str]) -> Iterator[tuple[str, str]]:
        if word.startswith("--"):
            typed, equals, value = word[2:].partition("=")
            name = self._full(typed)
            kind = self._long[name]
            if equals and not kind:
                raise self.refuse(f"option '--{name}' doesn't allow an argument")
            if kind == "=" and not equals:
                if not rest:
                    raise self.refuse(f"option '--{name}' requires an argument")
                value = rest.pop(0)
            yield name, value
            return
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in self._short:
                raise self.refuse(f"invalid option -- '{letter}'")
            name = self._short[letter]
            kind = self._long[name]
            value = ""
            if kind:
                value, letters = letters, ""
                if kind == "=" and not value:
                    if not rest:
                        raise self.refuse(f"option requires an argument -- '{letter}'")
                    value = rest.pop(0)
            yield name, value

    def _full(self, typed: str) -> str:
        """Of a long option that may be shortened."""
        names = [name for name in self._long if len(name) > 1 and name.startswith(typed)]
        if typed in names:
            return typed
        if len(names) > 1:
            possible = " ".join(f"'--{name}'" for name in names)
            raise self.refuse(f"option '--{typed}' is ambiguous; possibilities: {possible}")
        if not names:
            raise self.refuse(f"unrecognized option '--{typed}'")
        return names[0]

    def _about(self, what: str) -> list[str]:
        if what == "version":
            return list(self._version)
        letters = {name: f"-{letter} " for letter, name in self._short.items() if letter != name}
        known = [
            f"  {letters.get(name, '   ')}" + (f"--{name}" if len(name) > 1 else f"-{name}")
            for name in self._long
        ]
        return [*self._usage, "", "Options:", *known]

"""Who we are for an SSH server: user keys, certificates, ssh-agent, passwords; in the order of
ssh(1), or what the board file names and nothing else."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.errors import ConfigurationError, LinkLost, LinkRefused
from harness.links import sha1
from harness.links.route import Route

if TYPE_CHECKING:
    from paramiko import PKey, Transport

_AGENT_SECONDS: Final = 30.0  # a person may have to touch or confirm
_ASKS_NEW: Final = re.compile(
    r"\b(new|current|old|retype|re-?enter|again|confirm)\b", re.IGNORECASE
)
_EXPIRED: Final = re.compile(
    r"(password|account|token) (\w+ )?expired|password change required|(must|required to) change",
    re.IGNORECASE,
)
_Way = tuple[str, str, Callable[[], list[str]]]


class PasswordExpired(LinkRefused):
    """The server wants a new password, which is its owner's to choose."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the server says: {said.strip()}; the password has expired, and nothing was answered",
            remedy="log in by hand (ssh, or the console), choose a new password, and put it into"
            " the board file",
        )


def asks_for_change(said: str) -> bool:
    """Whether a server's words are about a password or an account that has expired."""
    return _EXPIRED.search(said) is not None


def told(said: Sequence[str], ours: str) -> str:
    """``ours`` after what the server said of it."""
    words = "; ".join(filter(None, (" ".join(text.split()) for text in said)))
    return f"the server says: {words[-600:]}; {ours}" if words else ours


def authenticate(transport: Transport, route: Route, deadline: float, said: list[str]) -> None:
    """Log in. ``said`` collects the server's words.

    Raises ``LinkRefused``, ``LinkLost``, and ``ConfigurationError`` for an unreadable key.
    """
    import paramiko

    tried: list[str] = []
    allowed: list[str] = []
    transport.auth_timeout = max(0.01, deadline - time.monotonic())
    agent = _Agent(route.agent)
    try:
        for method, how, offer in _ways(transport, route, agent, said):
            # a password that was refused is not given once more in another way
            if method not in (allowed or ["none", "publickey", "password"]):
                continue
            tried.append(how)
            try:
                allowed = offer()
            except paramiko.BadAuthenticationType as error:
                allowed = error.allowed_types
            except paramiko.AuthenticationException as error:
                if not _is_refusal(error):
                    raise
            if transport.is_authenticated():
                return
    except (paramiko.SSHException, OSError, EOFError) as error:
        words = _words(transport, said)
        # A server that goes down says so, too: that is no answer to a key.
        answered = any("authentication" in one.lower() or asks_for_change(one) for one in words)
        if time.monotonic() >= deadline or not answered:
            raise LinkLost(
                told(words, f"{route.place} broke off or stopped answering during authentication")
                + f" ({error})",
                remedy="check that the board is not hung or rebooting",
            ) from error
    finally:
        agent.close()
    how = ", ".join(tried)
    ours = f"{route.place} does not accept {how} for user {route.user!r}"
    ours += f" (it takes {', '.join(allowed)})" if allowed else ""
    ours += f"; {agent.trouble}" if agent.trouble else ""
    words = _words(transport, said)
    if asks_for_change(" ".join(words)):
        raise PasswordExpired(" ".join(words))
    raise LinkRefused(
        told(words, ours),
        remedy="put the public key into ~/.ssh/authorized_keys of that user on the board, or"
        f" correct `user`, `key` or `password` in the board file{route.note}",
    )


def _words(transport: Transport, said: Sequence[str]) -> list[str]:
    banner = transport.get_banner()
    return [*([banner.decode("utf-8", "replace")] if banner else []), *said]


def _is_refusal(error: BaseException) -> bool:
    return not ("shut down" in str(error) or "timeout" in str(error).lower())


def _ways(transport: Transport, route: Route, agent: _Agent, said: list[str]) -> Iterator[_Way]:
    """What to try, in turn, each with its method's name (RFC 4252)."""
    user, password = route.user, route.address.password

    def by_key(key: PKey) -> Callable[[], list[str]]:
        return lambda: transport.auth_publickey(user, key)

    if route.address.key is None and password is None:
        yield "none", "no key", lambda: transport.auth_none(user)
    for how, key in _keys(route, agent):
        yield "publickey", how, by_key(key)
        if "ssh-rsa" in route.old and key.get_name() == "ssh-rsa":
            yield "publickey", f"{how} with SHA-1", by_key(sha1.signing(transport, key))
    if password is not None:
        yield (
            "password",
            "password",
            lambda: transport.auth_password(user, password, fallback=False),
        )
        answer = _answerer(password, said)
        yield (
            "keyboard-interactive",
            "password",
            lambda: transport.auth_interactive(user, answer),
        )


def _answerer(password: str, said: list[str]) -> Callable[..., list[str]]:
    """Answers one question for the password, and no other."""
    answered = False

    def answer(title: str, instructions: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
        nonlocal answered
        said.extend(filter(None, (title, instructions)))
        texts = [text for text, _ in prompts]
        if any(map(_ASKS_NEW.search, texts)) or asks_for_change(instructions):
            raise PasswordExpired(" ".join([title, instructions, *texts]))
        if not prompts:
            return []
        if answered or len(prompts) > 1 or prompts[0][1]:
            raise LinkRefused(
                f"the server says: {' '.join(texts).strip()}; it asks for more than a password",
                remedy="use a user key for this board",
            )
        answered = True
        return [password]

    return answer


# --- keys -----------------------------------------------------------------------------------------


def _keys(route: Route, agent: _Agent) -> Iterator[tuple[str, PKey]]:
    """The board file's key; else the agent's, those that ssh_config names first, then files."""
    if route.address.key is not None:
        for key in _of_file(route.address.key, agent, route.certificates):
            yield f"user key {route.address.key}", key
        return
    if route.address.password is not None:
        return
    files = {path: fingerprint_of(path) for path in route.identities if path.is_file()}
    named = set(files.values())
    held = sorted(agent.identities(), key=lambda key: key.fingerprint not in named)
    for key in held:
        if key.fingerprint in named or not route.identities_only:
            yield f"ssh-agent's {getattr(key, 'comment', '') or key.fingerprint}", key
    in_agent = {key.fingerprint for key in held}
    for path in (path for path in files if files[path] not in in_agent):
        try:
            for key in _of_file(path, agent, route.certificates):
                yield f"user key {path}", key
        except ConfigurationError as error:
            agent.trouble = "; ".join(filter(None, (agent.trouble, error.what)))


def _of_file(path: Path, agent: _Agent, certificates: Sequence[Path]) -> Iterator[PKey]:
    """The key of a private key file, by the agent if it is encrypted; with each certificate that
    there is for it, then without."""
    import paramiko

    key: PKey
    try:
        key = paramiko.PKey.from_path(path)
    except OSError as error:
        raise ConfigurationError(
            f"the user key {path} cannot be read ({error.strerror})",
            remedy="correct `key` in the board file, or the file's permissions",
        ) from error
    except (paramiko.SSHException, ValueError, TypeError) as error:
        if not re.search("password|encrypted|passphrase", str(error), re.IGNORECASE):
            raise ConfigurationError(
                f"the user key {path} is not a usable private key ({error})",
                remedy="give a private key in OpenSSH or PEM form, e.g. from"
                " `ssh-keygen -t ed25519`",
            ) from error
        key = _held(path, agent)
    beside = path.with_name(f"{path.name}-cert.pub")
    for certificate in (beside, *certificates):
        if certificate.is_file() and fingerprint_of(certificate) == key.fingerprint:
            key.public_blob = paramiko.pkey.PublicBlob.from_file(str(certificate))
            yield key
    key.public_blob = None
    yield key


def _held(path: Path, agent: _Agent) -> PKey:
    sought = fingerprint_of(path)
    for key in agent.identities():
        if key.fingerprint == sought and not getattr(key, "public_blob", None):
            return key
    why = agent.trouble or "ssh-agent does not have it"
    raise ConfigurationError(
        f"the user key {path} is encrypted, and {why}",
        remedy=f"`ssh-add {path}`, then repeat",
    )


def fingerprint_of(path: Path) -> str | None:
    """``SHA256:…`` of the key in a private key file (an encrypted one, too), public key or
    certificate; None for none, and where there is no ssh-keygen(1)."""
    program = shutil.which("ssh-keygen")
    if program is None:
        return None
    words = [program, "-lf", str(path)]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
    )
    found = re.search(r"SHA256:\S+", done.stdout)
    return found[0] if found else None


class _Agent:
    """ssh-agent, asked when first needed."""

    def __init__(self, path: str | None) -> None:
        self.trouble = "" if path else "there is no ssh-agent (SSH_AUTH_SOCK)"
        self._path = path
        self._keys: list[PKey] | None = None
        self._socket: socket.socket | None = None

    def identities(self) -> list[PKey]:
        """Its keys, certificates first. None of an agent that does not answer."""
        import paramiko
        from paramiko.agent import AgentSSH

        if self._keys is None and self._path:
            self._keys = []
            self._socket = sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_AGENT_SECONDS)
            agent = AgentSSH()
            try:
                sock.connect(self._path)
                agent._connect(sock)  # type: ignore[attr-defined]
            except (OSError, paramiko.SSHException) as error:
                self.trouble = f"ssh-agent at {self._path} does not answer ({error})"
            self._keys = [*agent.get_keys()]
            for key in self._keys:
                if "-cert-v01@" in key.get_name():
                    key.public_blob = paramiko.pkey.PublicBlob(key.get_name(), key.blob)  # type: ignore[attr-defined]
            self._keys.sort(key=lambda key: not getattr(key, "public_blob", None))
        return self._keys or []

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

"""What root of the board tries against the host: a row each.

``script`` is Python that runs on the board as root. It has ``host`` (what is there to be had:
paths, process ids, numbers of system calls), ``call(name, ...)`` and says
``through(...)`` when it got
what it wanted; an exception is a wall that held. ``harmed`` looks at the host instead.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.emulation.walls import breaches
from tests.emulation.walls.breaches import NONE, Breach

if TYPE_CHECKING:
    from tests.emulation.walls.bench import Host


@dataclass(frozen=True)
class Attempt:
    """``given``: walls that are down in any case, so that the one in question is reached;
    ``again``: the board is started anew on its state before the host is looked at; ``only``: for
    whom it can be shown at all, ``root`` (sudo) or ``x86_64``."""

    name: str
    wall: str
    breach: Breach
    script: str
    faults: tuple[str, ...] = ()
    given: Breach = NONE
    options: tuple[str, ...] = ()
    harmed: Callable[[Host], str] | None = None
    again: bool = False
    only: str = ""
    harms: bool = False

    @property
    def alone(self) -> bool:
        """Whether the board is not as it was afterwards."""
        return self.harms or self.again or self.harmed is not None


_STEAL = """
def control():
    import array
    for number in range(3, 64):
        try:
            fd = call("pidfd_getfd", call("pidfd_open", 1, 0), number, 0)
            sock = socket.socket(fileno=fd)
            if sock.type == socket.SOCK_SEQPACKET and sock.family == socket.AF_UNIX:
                return sock
        except OSError as error:
            if error.errno != errno.EBADF and error.errno != errno.ENOTSOCK:
                raise
    raise OSError(errno.EBADF, "no control socket")
"""

_MANAGER = """
def ask(line, timeout=5):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    sock.connect("/run/systemd/private")
    sock.sendall(line)
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
        if data.endswith(b"\\n"):
            break
    return data
"""

_CLOSED = "PID 1 is closed: its memory is the host's namespace's (PR_SET_DUMPABLE)"
_LIMITED = ("processes=128", "tmpfs=8", "memory=128", "file=1", "descriptors=64")


def _victim_dead(host: Host) -> str:
    return "a process of the host was killed" if host.victim.poll() is not None else ""


def _victim_open(host: Host) -> str:
    mode = host.folder("victim").stat().st_mode & 0o7777
    return f"a folder of the host has mode {mode:o}" if mode != 0o700 else ""


def _made(host: Host) -> str:
    return "wrote into a read-only folder of the host" if host.made() else ""


def _not_started(host: Host) -> str:
    return f"the board does not start: {host.complaint}" if host.complaint else ""


def _traceback(host: Host) -> str:
    return "the supervisor printed a traceback" if "Traceback" in host.stderr else ""


def _used_by_nobody(host: Host) -> str:
    return host.as_nobody()


ATTEMPTS = (
    Attempt(
        "read PID 1's environment and memory map", _CLOSED, breaches.OPEN_INIT,
        "through(open('/proc/1/environ', 'rb').read(9), open('/proc/1/maps').readline()[:20])",
        ("J1",),
    ),
    Attempt(
        "read PID 1's memory by /proc/1/mem", _CLOSED, breaches.OPEN_INIT,
        "fd = os.open('/proc/1/mem', os.O_RDWR); through('open for writing')", ("J1",),
    ),
    Attempt(
        "list PID 1's descriptors", _CLOSED, breaches.OPEN_INIT,
        "through(os.listdir('/proc/1/fd'))", ("J1",),
    ),
    Attempt(
        "ptrace PID 1", _CLOSED, breaches.OPEN_INIT,
        "call('ptrace', 0x4206, 1, 0, 0); through('seized')", ("J1",),
    ),
    Attempt(
        "process_vm_readv of PID 1", _CLOSED, breaches.OPEN_INIT,
        """
buffer = ctypes.create_string_buffer(8)
local = struct.pack('QQ', ctypes.addressof(buffer), 8)
remote = struct.pack('QQ', 0x10000, 8)
try:
    call('process_vm_readv', 1, local, 1, remote, 1, 0)
except OSError as error:
    if error.errno == errno.EPERM:
        raise
through('was let in')
""", ("J1",),
    ),
    Attempt(
        "pidfd_getfd of the control socket", _CLOSED, breaches.OPEN_INIT,
        _STEAL + "through(control())", ("J1",),
    ),
    Attempt(
        "join a namespace by /proc/1/ns", _CLOSED, breaches.OPEN_INIT,
        "through(os.readlink('/proc/1/ns/user'), os.open('/proc/1/ns/user', os.O_RDONLY))",
    ),
    Attempt(
        "spare the board when memory is short", _CLOSED, breaches.OPEN_INIT,
        "open('/proc/1/oom_score_adj', 'w').write('0'); through('PID 1 would be spared')", ("J7",),
    ),
    Attempt(
        "name a process of the host to be killed", "what PID 1 says is no process id",
        breaches.BELIEVE_INIT,
        _STEAL + """
sock = control()
sock.send(json.dumps(['pid', host['victim']]).encode())

""", ("J1",), given=breaches.OPEN_INIT, harmed=_victim_dead,
    ),
    Attempt(
        "send nonsense by the control socket", "messages are bounded and typed",
        breaches.BELIEVE_INIT,
        _STEAL + """
sock = control()
sock.send(json.dumps(['reply', 'x', None]).encode())
""", ("J1",), given=breaches.OPEN_INIT, harmed=_traceback,
    ),
    Attempt(
        "open a folder of the host by a link at /var/tmp", "the tree by openat2, no links",
        breaches.FOLLOW_LINKS,
        "shutil.rmtree('/var/tmp'); os.symlink(host['victim_folder'], '/var/tmp')",
        ("J2",), harmed=_victim_open, again=True,
    ),
    Attempt(
        "stop the next start by a dangling link", "what is in /var is the board's business",
        breaches.FOLLOW_LINKS,
        "shutil.rmtree('/var/tmp'); os.symlink('/nowhere/at/all', '/var/tmp')",
        ("J2",), harmed=_not_started, again=True,
    ),
    Attempt(
        "stop the next start by a FIFO at /var/log", "what is in /var is the board's business",
        breaches.FOLLOW_LINKS,
        "shutil.rmtree('/var/log'); os.mkfifo('/var/log')",
        ("J2",), harmed=_not_started, again=True,
    ),
    Attempt(
        "show a file of the host as a mount table", "/proc by the descriptor of the boot",
        breaches.PROC_BY_NAME,
        """
os.makedirs('/tmp/p/1')
os.symlink(host['secret'], '/tmp/p/1/mountinfo')
mount('/tmp/p', '/proc', None, 4096)
text = open('/proc/1/mountinfo').read()
through(text) if host['token'] in text else None
""", ("J3",), given=breaches.OPEN_INIT, harms=True,
    ),
    Attempt(
        "manage services as the board's user", "SO_PEERCRED", breaches.ANY_CALLER,
        _MANAGER + """
os.setgid(1000); os.setuid(1000)
line = {'command': 'systemctl', 'arguments': ['stop', 'tee-supplicant'], 'uid': 0}
answer = json.loads(ask(json.dumps(line).encode() + b'\\n'))
through(answer) if answer['status'] == 0 else None
""", ("J4",), harms=True,
    ),
    Attempt(
        "leave malformed requests hanging", "refused and closed", breaches.ANY_REQUEST,
        _MANAGER + """
for line in (b'[]', b'{}', b'"x"', b'{"command": []}', b'[' * 100000, b'\\xff\\xfe', b'1e999',
             b'{"command": "systemctl", "arguments": [1]}', b'{"command": "no", "arguments": []}',
             b'{"command": "systemctl", "arguments": [], "drop_ins": {"a": 1}}', b'9' * 5000):
    try:
        ask(line + b'\\n')
    except TimeoutError:
        through('left open', line[:20])
        break
""", ("J9",), harmed=_traceback,
    ),
    Attempt(
        "hold 200 conversations with the service manager", "a limit of connections",
        breaches.MANY_CALLERS,
        """
import select
socks = []
for _ in range(200):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect('/run/systemd/private')
    socks.append(sock)
ask = socks[-1]
select.select([ask], [], [], 3)
ended = len(select.select(socks, [], [], 0)[0])
through(200 - ended, 'are open') if ended < 100 else None
""", ("J9",),
    ),
    Attempt(
        "leave a set-user-ID program for other users of the host",
        "a state directory of mode 0700", breaches.OPEN_STATE,
        """
shutil.copy('/bin/true', '/var/true')
os.chmod('/var/true', 0o6755)
os.chmod('/var', 0o755)
""",
        ("J5", "J4"), harmed=_used_by_nobody, only="root",
    ),
    Attempt(
        "run a set-user-ID program of /var", "/var and /root are nosuid", NONE,
        "raise OSError(0, 'nosuid') if os.statvfs('/var').f_flag & 2 else None; through('suid')",
        ("J5",),
    ),
    Attempt(
        "read the host's session keyring", "a session keyring of its own", breaches.OLD_KEYRING,
        """
key = call('keyctl', 10, -3, b'user', b'walls', 0)
buffer = ctypes.create_string_buffer(64)
call('keyctl', 11, key, buffer, 64)
through(buffer.value) if host['token'].encode() in buffer.value else None
""", ("J6",), given=breaches.KEYS,
    ),
    Attempt(
        "use keys at all", "keyctl(2) does not exist", breaches.KEYS,
        "through(call('keyctl', 0, -3, 1))", ("J6",),
    ),
    Attempt(
        "system calls by int 0x80", "the filter knows one architecture",
        breaches.ANY_ARCHITECTURE,
        """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('53b814000000cd805bc3'))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
pid = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
through('getpid', pid) if pid > 0 else None
""", ("J7",), only="x86_64",
    ),
    Attempt(
        "take read-only off a folder of the host", "locked flags: an outer user namespace",
        breaches.UNLOCKED,
        """
flags = os.statvfs('/mnt/host').f_flag
keep = flags & (2 | 4 | 8 | 1024) | (1 << 21 if flags & 4096 else 0)
mount(None, '/mnt/host', None, 32 | 4096 | keep)
open('/mnt/host/made', 'w').close()
""", ("J5",), harmed=_made,
    ),
    Attempt(
        "more processes than are allowed, as several users", "one limit for the namespace",
        breaches.LIMIT_A_USER, fork := """
import time
reader, writer = os.pipe()
for uid in (0, 1000, 1001):
    if os.fork() == 0:
        try:
            os.setgid(uid); os.setuid(uid)
        except OSError:
            pass
        made = 0
        try:
            while made < 60:
                if os.fork() == 0:
                    time.sleep(2)
                    os._exit(0)
                made += 1
        except OSError:
            pass
        os.write(writer, bytes([made]))
        time.sleep(2)
        os._exit(0)
total = sum(b''.join(os.read(reader, 1) for _ in range(3)))
through(total, 'processes') if total > 128 else None
""", ("J7",), options=_LIMITED,
    ),
    Attempt(
        "more processes than are allowed", "RLIMIT_NPROC", breaches.UNLIMITED, fork, ("J7",),
        options=_LIMITED,
    ),
    Attempt(
        "more than a tmpfs may hold", "sizes of tmpfs", breaches.UNLIMITED,
        """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for number in range(16):
    for at in ('/tmp', '/dev/shm', '/run', ''):
        with open(f'{at}/fill{number}', 'wb') as file:
            file.write(bytes(1000000))
through('64 MB')
""", ("J7",), options=_LIMITED,
    ),
    Attempt(
        "more memory than a process may have", "RLIMIT_DATA", breaches.UNLIMITED,
        "bytearray(256 << 20); through('256 MiB')", ("J7",), options=_LIMITED,
    ),
    Attempt(
        "a file larger than is allowed", "RLIMIT_FSIZE", breaches.UNLIMITED,
        """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open('/var/large', 'wb') as file:
    os.posix_fallocate(file.fileno(), 0, 4 << 20)
through(os.stat('/var/large').st_size)
""", ("J7",), options=_LIMITED,
    ),
    Attempt(
        "more descriptors than are allowed", "RLIMIT_NOFILE", breaches.UNLIMITED,
        "held = [os.open('/dev/null', 0) for _ in range(200)]; through(len(held))", ("J7",),
        options=_LIMITED,
    ),
    Attempt(
        "raise a limit again", "limits are hard, and CAP_SYS_RESOURCE the host's",
        breaches.UNLIMITED,
        """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (1024, 1024)); through('1024 processes')
""", ("J7",), options=_LIMITED,
    ),
    Attempt(
        "exhaust the supervisor's descriptors by open devices", "a limit of open devices",
        breaches.MANY_DEVICES,
        "held = [os.open('/dev/kmsg', 0) for _ in range(400)]; through(len(held))", ("J7",),
    ),
    Attempt(
        "reach a service on the host's loopback", "a network namespace", breaches.HOST_NETWORK,
        "sock = socket.create_connection(('127.0.0.1', host['port']), 3); through('connected')",
    ),
    Attempt(
        "reach an abstract socket of the host", "a network namespace", breaches.HOST_NETWORK,
        "sock = socket.socket(socket.AF_UNIX); sock.connect(host['abstract']); through('in')",
    ),
    Attempt(
        "attach the host's shared memory", "an IPC namespace", breaches.HOST_IPC,
        """
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(host['shm'], 4096, 0)
if number < 0:
    raise OSError(ctypes.get_errno(), 'shmget')
address = libc.shmat(number, None, 0o10000)
text = ctypes.string_at(address)
through(text) if host['token'].encode() in text else None
""",
    ),
)  # fmt: skip


def possible(attempt: Attempt, *, root: bool) -> str:
    """Why it cannot be shown here, or nothing."""
    if attempt.only == "root" and not root:
        return "needs root to be a second user of the host"
    if attempt.only == "x86_64" and platform.machine() != "x86_64":
        return "needs x86_64"
    return ""

"""systemctl, journalctl, modprobe, reboot …: sends its arguments to the service manager.

Runs inside the board under a bare interpreter (``python -I -S``), so it imports only what starts
fast. Installed under the name of each command.
"""

# pathlib would double the start-up time.
# ruff: noqa: PTH119, PTH123, PTH207

import json
import os
import socket
import sys

MANAGER = "/run/systemd/private"
UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system")


def drop_ins() -> dict[str, str]:
    """Path and content of every drop-in of the board."""
    import glob  # slow, and few commands need it

    found = {}
    for path in (path for folder in UNIT_FOLDERS for path in glob.glob(f"{folder}/*.d/*.conf")):
        with open(path, encoding="utf-8") as file:
            found[path] = file.read()
    return found


def main() -> int:
    command = os.path.basename(sys.argv[0])
    request: dict[str, object] = {"command": command, "arguments": sys.argv[1:]}
    if command == "systemctl" and "daemon-reload" in sys.argv:
        request["drop_ins"] = drop_ins()
    try:
        with socket.socket(socket.AF_UNIX) as manager:
            manager.connect(MANAGER)
            manager.sendall(json.dumps(request).encode() + b"\n")
            with manager.makefile("rb") as stream:
                answer = json.loads(stream.readline())
    except (OSError, ValueError):
        sys.stderr.write(f"{command}: Failed to connect to the service manager\n")
        return 1
    sys.stdout.write(answer["out"])
    sys.stdout.flush()
    sys.stderr.write(answer["err"])
    return int(answer["status"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)

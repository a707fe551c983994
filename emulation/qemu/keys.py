"""Makes the keys of a board in the directory that is given: its host key, and a key to log in."""

import base64
import hashlib
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

place = Path(sys.argv[1])
for name in ("host_key", "login_key"):
    key = Ed25519PrivateKey.generate()
    private = place / name
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    private.chmod(0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    Path(f"{private}.pub").write_bytes(public + b"\n")
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    fingerprint = base64.b64encode(digest).decode().rstrip("=")
    Path(f"{private}.fingerprint").write_text(f"SHA256:{fingerprint}\n")

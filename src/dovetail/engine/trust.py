"""Who vouches for the binaries in an engine file.

Every machine has a key of its own, made on first use; engines built here are signed with it. An
engine from elsewhere is used as data only, unless its key was added: `dovetail trust add KEY`.
Keys are symmetric (HMAC-SHA256): who can check a signature can also make one, so share a key only
among machines that trust each other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dovetail.core.env import env
from dovetail.core.errors import PlanFormatError, TrustError
from dovetail.engine.codec import parse_json

_KEY_BYTES = 32


def own_key() -> bytes:
    """This machine's key; created on first use, readable by its owner only.

    Raises:
        TrustError: the file is damaged, readable by others, or cannot be made.
    """
    path = env().home / "key"
    try:
        if not path.exists():
            _create(path, secrets.token_bytes(_KEY_BYTES).hex())
        return _read(path)
    except OSError as error:
        raise TrustError(
            f"{path}: cannot use this machine's key ({error}); set DOVETAIL_HOME to a writable "
            "folder"
        ) from error


def trusted_keys() -> list[bytes]:
    """This machine's key and all that were added."""
    keys = [own_key()]
    folder = env().home / "trusted"
    if folder.is_dir():
        keys += [_read(p) for p in sorted(folder.iterdir()) if p.suffix == ".key"]
    return keys


def key_id(key: bytes) -> str:
    """A short public name of a key."""
    return hashlib.sha256(b"dovetail key " + key).hexdigest()[:16]


def add(key: str) -> str:
    """Trust a key (64 hex digits, or a file that holds them) and return its id.

    Raises:
        TrustError: not a key.
    """
    text = key
    if len(key) != 2 * _KEY_BYTES:
        try:
            text = Path(key).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise TrustError(
                f"trust: got {key[:80]!r}, expected {2 * _KEY_BYTES} hex digits or a file with "
                f"them ({error})"
            ) from None
    value = _parse(text, "trust")
    path = env().home / "trusted" / f"{key_id(value)}.key"
    if not path.exists():
        _create(path, value.hex())
    return key_id(value)


def remove(identity: str) -> None:
    """Stop trusting the key with this id.

    Raises:
        TrustError: no such key.
    """
    path = env().home / "trusted" / f"{identity}.key"
    if not identity.isalnum() or not path.exists():
        raise TrustError(f"trust: got {identity[:80]!r}, expected the id of an added key")
    path.unlink()


def statement(target: str, digests: Mapping[str, str]) -> bytes:
    """What a signature covers: the target, and SHA-256 digests by role (plan, kernels, host …)."""
    return json.dumps(["dovetail-signature-1", target, dict(digests)], sort_keys=True).encode()


def sign(message: bytes, key: bytes | None = None) -> bytes:
    """A signature member over `statement(…)`, by default with this machine's key."""
    key = own_key() if key is None else key
    mac = hmac.new(key, message, hashlib.sha256).hexdigest()
    return json.dumps({"key": key_id(key), "hmac": mac}, sort_keys=True).encode()


def verify(message: bytes, signature: bytes | memoryview) -> None:
    """Check a signature member.

    Raises:
        TrustError: unknown key, or the signature does not fit the message.
    """
    try:
        parsed = parse_json(signature, "signature", 4096)
    except PlanFormatError as error:
        raise TrustError(str(error)) from None
    if (
        not isinstance(parsed, dict)
        or not isinstance(parsed.get("key"), str)
        or not isinstance(parsed.get("hmac"), str)
    ):
        raise TrustError("signature: got damaged JSON, expected a key id and a code")
    for key in trusted_keys():
        if key_id(key) == parsed["key"]:
            mac = hmac.new(key, message, hashlib.sha256).hexdigest()
            if hmac.compare_digest(mac.encode(), parsed["hmac"].encode()):
                return
            raise TrustError(
                "signature: the plan or its binaries were changed after signing; "
                "build the engine again"
            )
    raise TrustError(
        f"signature: made with the key {parsed['key'][:40]!r}, which this machine does not trust; "
        "ask its owner for the key and run: dovetail trust add KEY"
    )


def _create(path: Path, text: str) -> None:
    """Write a secret file atomically, never replacing one that another process has just made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(".tmp", "key-", path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text + "\n")
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _read(path: Path) -> bytes:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise TrustError(
            f"{path}: got a key that other users can read, expected mode 0600; "
            "run chmod 600 if they could not have read it, else delete it"
        )
    return _parse(path.read_text(encoding="ascii"), str(path))


def _parse(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise TrustError(f"{where}: expected a key of {2 * _KEY_BYTES} hex digits")
    return key

"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dovetail.core.errors import UsageError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when all went well; else nothing is left of it.

    What is no regular file, such as /dev/null or a pipe, is written to as it is.

    Raises:
        UsageError: no file can be written in that folder.
        OSError: `path` is a folder, or the disk is full.
    """
    final = Path(path)
    if final.exists() and not final.is_file() and not final.is_dir():
        with open(final, "wb") as file:
            yield file
        return
    scratch = final.with_name(f".{final.name}-{secrets.token_hex(6)}.tmp")
    try:
        # Not by tempfile, whose files only their owner may read.
        handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise UsageError(f"{final}: cannot be written, {error.strerror}; choose another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(scratch, final)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise

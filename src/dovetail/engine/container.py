"""The engine file: a zip of stored, page-aligned members, read by mapping it.

    manifest.json                 format version, size and hash of every member, weights
    graph.ir                      the model in canonical IR text
    weights.safetensors           the original initializers (may be left out)
    targets/<target>/plan.json    the plan
    targets/<target>/kernels.c    source of the kernels, for readers; never compiled from the file
    targets/<target>/kernels.so   compiled kernels
    targets/<target>/host.so      the host library
    targets/<target>/signature    who vouches for plan and binaries (see `engine.trust`)
    build.json                    when, where and how it was built

Opening checks structure and manifest at once. Bulk members are checked by `verify`: eagerly for
files that are not trusted, on demand otherwise. No member is ever executed without a signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dovetail.core.errors import PlanFormatError, PlanVersionError
from dovetail.core.files import replacing
from dovetail.engine.codec import parse_json
from dovetail.engine.plan import FORMAT_VERSION

ALIGNMENT = 4096
CHUNK = 16 << 20
"""Members longer than this have a hash per chunk, so that a part can be checked alone."""

_MAX_MEMBERS = 1024
_MAX_MANIFEST = 64 << 20
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*/){0,3}[A-Za-z0-9_][A-Za-z0-9_.+-]*")
# A fixed time (the zip epoch): equal contents give equal files.
_DOS_DATE = 1 << 5 | 1
_PADDING_ID = 0xD935  # the extra field that Android's zipalign pads with

Content = bytes | memoryview | Path
"""What a member is written from; a Path is copied from that file."""

IN_MEMORY = Path("engine in memory")
"""Stands for the path of an engine that was given as bytes, in messages."""


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """Size and hashes of a member, as the manifest states them."""

    size: int
    sha256: str
    chunks: tuple[str, ...] = ()


class Container:
    """An engine file opened for reading, by its path or as bytes; members are views of one mapping or of the bytes."""

    def __init__(self, source: str | Path | bytes) -> None:
        if isinstance(source, bytes):
            self.path = IN_MEMORY
            self._view = memoryview(source)
        else:
            self.path = Path(source)
            try:
                with open(self.path, "rb") as file:
                    self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as error:
                raise PlanFormatError(
                    f"{self.path}: cannot read ({error}), expected an engine file"
                ) from error
        self._spans = dict(self._directory())
        self.manifest = self._manifest()
        self.members = self._infos()
        self._verified: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that have a plan."""
        return tuple(
            sorted(
                n.split("/")[1] for n in self._spans if re.fullmatch(r"targets/[^/]+/plan.json", n)
            )
        )

    def member(self, name: str) -> memoryview:
        """The bytes of a member, read-only and unchecked; see `verify`.

        Raises:
            PlanFormatError: no such member.
        """
        try:
            start, size = self._spans[name]
        except KeyError:
            raise PlanFormatError(
                f"{self.path}: got no member {name!r}, expected one of {sorted(self._spans)}"
            ) from None
        return self._view[start : start + size]

    def offset(self, name: str) -> int:
        """Where a member starts in the file."""
        self.member(name)
        return self._spans[name][0]

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Check members (default: all) against the manifest's hashes.

        Raises:
            PlanFormatError: a member does not match.
        """
        for name in self._spans if names is None else names:
            if name == "manifest.json" or name in self._verified:
                continue
            data, info = self.member(name), self.members[name]
            pieces = info.chunks or (info.sha256,)
            found = _chunk_digests(data) if info.chunks else [hashlib.sha256(data).hexdigest()]
            for i, (expected, piece) in enumerate(zip(pieces, found, strict=True)):
                if piece != expected:
                    raise PlanFormatError(
                        f"{self.path}: {name} does not match its hash (piece {i} of {len(pieces)}); "
                        "the file is damaged, copy or build it again"
                    )
            if info.chunks and _combined(info.chunks) != info.sha256:
                raise PlanFormatError(f"{self.path}: the hashes of {name} contradict each other")
            self._verified.add(name)

    # --- reading ----------------------------------------------------------------------------------

    def _directory(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and span of every member, from zip's central directory."""
        try:
            with zipfile.ZipFile(io.BytesIO(self._view) if self.path is IN_MEMORY else self.path) as archive:
                entries = archive.infolist()
        except (
            zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError,
            EOFError, OSError, IndexError,
        ) as error:  # fmt: skip
            raise self._damaged(f"not a zip archive ({error})") from None
        if len(entries) > _MAX_MEMBERS:
            raise self._damaged(f"{len(entries)} members, at most {_MAX_MEMBERS} are allowed")
        if all(entry.filename != "manifest.json" for entry in entries):
            raise self._damaged("no manifest.json")  # another kind of zip archive: no need to say how its members lie
        seen: set[str] = set()
        for entry in entries:
            name = entry.filename
            if not _NAME.fullmatch(name) or name in seen:
                raise self._damaged(f"member name {name[:80]!r}")
            seen.add(name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ~0x800:
                raise self._damaged(f"{name} is compressed or encrypted")
            if entry.file_size != entry.compress_size:
                raise self._damaged(f"{name} has two sizes")
            header = bytes(self._view[entry.header_offset : entry.header_offset + 30])
            if entry.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\3\4":
                raise self._damaged(f"{name} has no local header")
            name_size, extra_size = struct.unpack_from("<HH", header, 26)
            start = entry.header_offset + 30 + name_size + extra_size
            if start % ALIGNMENT or start + entry.file_size > len(self._view):
                raise self._damaged(f"{name} is misaligned or leaves the file")
            yield name, (start, entry.file_size)

    def _manifest(self) -> dict[str, Any]:
        if "manifest.json" not in self._spans:
            raise self._damaged("no manifest.json")
        manifest = parse_json(
            self.member("manifest.json"), f"{self.path}: manifest.json", _MAX_MANIFEST
        )
        version = manifest.get("format") if isinstance(manifest, dict) else None
        if type(version) is not int:
            raise self._damaged("a manifest without a format version")
        if version > FORMAT_VERSION:
            raise PlanVersionError(
                f"{self.path}: got format {version}, expected {FORMAT_VERSION}; update Dovetail"
            )
        if version != FORMAT_VERSION:
            raise self._damaged(f"format {version}")
        return dict(manifest)

    def _infos(self) -> dict[str, MemberInfo]:
        listed = self.manifest.get("members")
        if not isinstance(listed, dict) or set(listed) | {"manifest.json"} != set(self._spans):
            raise self._damaged("a manifest that lists other members")
        infos = {}
        for name, value in listed.items():
            chunks = value.get("chunks", []) if isinstance(value, dict) else None
            if (
                not isinstance(value, dict)
                or not isinstance(chunks, list)
                or value.get("size") != self._spans[name][1]
                or not all(_is_digest(d) for d in [value.get("sha256"), *chunks])
                or len(chunks) != _count_chunks(value["size"])
            ):
                raise self._damaged(f"a manifest with a wrong entry for {name}")
            infos[name] = MemberInfo(value["size"], value["sha256"], tuple(chunks))
        return infos

    def _damaged(self, what: str) -> PlanFormatError:
        return PlanFormatError(
            f"{self.path}: got {what}, expected an engine file; the file is damaged or not an "
            "engine, build it again"
        )


def member_info(content: Content) -> MemberInfo:
    """Size and hashes of a member to be written."""
    if isinstance(content, Path):
        with _mapped(content) as data:
            return _info(data)
    return _info(memoryview(content).cast("B"))


def write(path: str | Path | BinaryIO, members: Mapping[str, Content], manifest: Mapping[str, Any]) -> None:
    """Write an engine file: to a temporary file, then renamed, so that no half file is ever seen; or to an open file, at its start.

    `manifest` is completed by the format version and the members' hashes. Equal arguments give
    equal bytes.

    Raises:
        UsageError: no file can be written in that folder.
        OSError: the disk is full; nothing is left behind.
    """
    infos = {name: member_info(content) for name, content in sorted(members.items())}
    full = {
        **manifest,
        "format": FORMAT_VERSION,
        "members": {
            name: {
                "size": info.size,
                "sha256": info.sha256,
                **({"chunks": list(info.chunks)} if info.chunks else {}),
            }
            for name, info in infos.items()
        },
    }
    text = json.dumps(full, indent=1, sort_keys=True, allow_nan=False).encode()
    if not isinstance(path, str | Path):
        _write(path, text, members)
        return
    with replacing(path) as file:
        _write(file, text, members)
        file.flush()
        os.fsync(file.fileno())


def _write(file: BinaryIO, manifest: bytes, members: Mapping[str, Content]) -> None:
    writer = _ZipWriter(file)
    writer.add("manifest.json", manifest)
    for name, content in sorted(members.items()):
        if not _NAME.fullmatch(name):
            raise PlanFormatError(f"container: got the member name {name!r}")
        writer.add(name, content)
    writer.finish()


class _ZipWriter:
    """Writes stored members at aligned offsets, with zip64 records where sizes need them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries: list[tuple[bytes, int, int, int]] = []  # name, crc, size, header offset

    def add(self, name: str, content: Content) -> None:
        if isinstance(content, Path):
            with _mapped(content) as data:
                self._add(name.encode(), data)
        else:
            self._add(name.encode(), memoryview(content).cast("B"))

    def _add(self, name: bytes, data: memoryview) -> None:
        start = self._file.tell()
        crc = zlib.crc32(data)
        zip64 = (
            struct.pack("<HHQQ", 1, 16, len(data), len(data)) if len(data) >= 0xFFFFFFFF else b""
        )
        fixed = start + 30 + len(name) + len(zip64) + 4
        padding = -fixed % ALIGNMENT
        extra = zip64 + struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
        size = 0xFFFFFFFF if zip64 else len(data)
        self._file.write(
            struct.pack(
                "<4sHHHHHIIIHH",
                b"PK\3\4",
                45 if zip64 else 20,
                0x800,
                0,
                0,
                _DOS_DATE,
                crc,
                size,
                size,
                len(name),
                len(extra),
            )
        )
        self._file.write(name + extra)
        self._file.write(data)
        self._entries.append((name, crc, len(data), start))

    def finish(self) -> None:
        start = self._file.tell()
        for name, crc, size, offset in self._entries:
            wide = b""
            if size >= 0xFFFFFFFF:
                wide += struct.pack("<QQ", size, size)
            if offset >= 0xFFFFFFFF:
                wide += struct.pack("<Q", offset)
            extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
            stated = min(size, 0xFFFFFFFF)
            self._file.write(
                struct.pack(
                    "<4sHHHHHHIIIHHHHHII",
                    b"PK\1\2",
                    45,
                    45 if wide else 20,
                    0x800,
                    0,
                    0,
                    _DOS_DATE,
                    crc,
                    stated,
                    stated,
                    len(name),
                    len(extra),
                    0,
                    0,
                    0,
                    0,
                    min(offset, 0xFFFFFFFF),
                )
            )
            self._file.write(name + extra)
        end = self._file.tell()
        count, size = len(self._entries), end - start
        if start >= 0xFFFFFFFF:
            self._file.write(
                struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
            )
            self._file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        self._file.write(
            struct.pack(
                "<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, min(start, 0xFFFFFFFF), 0
            )
        )


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            view = memoryview(mapping)
            try:
                yield view
            finally:
                view.release()


def _info(data: memoryview) -> MemberInfo:
    if not _count_chunks(len(data)):
        return MemberInfo(len(data), hashlib.sha256(data).hexdigest())
    chunks = tuple(_chunk_digests(data))
    return MemberInfo(len(data), _combined(chunks), chunks)


def _chunk_digests(data: memoryview) -> list[str]:
    """The hash of each chunk, computed on all CPUs."""
    from concurrent.futures import ThreadPoolExecutor  # a trusted, warm start does without it

    def digest(index: int) -> str:
        return hashlib.sha256(data[index * CHUNK : (index + 1) * CHUNK]).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(digest, range(_count_chunks(len(data)))))


def _count_chunks(size: int) -> int:
    return -(-size // CHUNK) if size > CHUNK else 0


def _combined(chunks: Iterable[str]) -> str:
    """The hash of a chunked member: that of its chunk hashes in a row."""
    return hashlib.sha256("".join(chunks).encode()).hexdigest()


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None

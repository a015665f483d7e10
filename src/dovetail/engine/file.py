"""Engine files by content: graph, weights, and per target a plan with its signed binaries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from dovetail.core.errors import PlanFormatError, TrustError, UsageError
from dovetail.engine import container, tensors, trust
from dovetail.engine.codec import dumps, loads, parse_json
from dovetail.engine.container import Container
from dovetail.engine.plan import Json, Plan, digests

Array = NDArray[Any]

_MAX_GRAPH = 1 << 30
_MAX_BUILD = 64 << 20


@dataclass(frozen=True)
class TargetFiles:
    """What an engine file holds for one target.

    `kernels` and `host` are the compiled kernels and host library; `source` is the kernels' text,
    `digest` the SHA-256 of the plan as stored (known of files that were read).
    """

    plan: Plan
    kernels: bytes | Path | None = None
    host: bytes | Path | None = None
    source: str = ""
    digest: str = ""


def write_engine(
    path: str | Path | BinaryIO,
    *,
    graph: str,
    weights: Mapping[str, Array],
    targets: Mapping[str, TargetFiles],
    info: Mapping[str, Json] | None = None,
    build: Mapping[str, Json] | None = None,
    strip_weights: bool = False,
    sign: bool = True,
) -> None:
    """Write an engine file, or to an open file.

    `info` goes into the manifest (model hash, requested and actual …), `build` into build.json. With
    `strip_weights` the file holds the weights' hashes, and of the weights only what nobody can give:
    see `EngineFile.fixed_weights`. `sign` signs plan and binaries with this machine's key. The same
    arguments give the same bytes, build.json and signatures apart.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    hashes = digests(weights)
    members: dict[str, container.Content] = {"graph.ir": graph.encode()}
    if not strip_weights:
        members[_WEIGHTS] = b"".join(tensors.serialise(weights))
    else:
        constants = (info or {}).get(NODE_CONSTANTS)
        fixed = {g.weight for files in targets.values() for g in files.plan.guards}.union(constants if isinstance(constants, list) else ())
        kept = {n: a for n, a in weights.items() if n in fixed or n.startswith("~")}
        members[_KEPT] = b"".join(tensors.serialise(kept))
    if build is not None:
        members["build.json"] = json.dumps(dict(build), indent=1, sort_keys=True).encode()
    for target, files in targets.items():
        members |= _target_members(target, files, sign)
    manifest = {
        "info": dict(info or {}),
        "targets": {_folder(t): t for t in targets},
        "weights": {"stored": not strip_weights, "hashes": hashes},
    }
    container.write(path, members, manifest)


def add_target(
    path: str | Path, target: str, files: TargetFiles, *, info: Mapping[str, Json] | None = None, sign: bool = True
) -> None:
    """Add a target to an engine file, or replace it; the others keep their bytes and signatures.

    `info` is what the manifest says of this target alone, over what it says of the file.

    Raises:
        PlanFormatError: the file is damaged, or the plan is for other weights.
        OSError: it cannot be written; the old file stays.
    """
    file = EngineFile(path)
    box = file.container
    for name in file.targets:
        if {w.name: w for w in file.plan(name).weights} != {w.name: w for w in files.plan.weights}:
            raise PlanFormatError(
                f"{file.path}: its target {name} has other weights than the plan for {target}, "
                "expected a plan of the same model"
            )
    prefix = f"{_folder(target)}/"
    members: dict[str, container.Content] = {
        name: box.member(name) for name in box.members if not name.startswith(prefix)
    }
    members |= _target_members(target, files, sign)
    manifest = {k: v for k, v in box.manifest.items() if k not in ("format", "members")}
    manifest["targets"] = {**manifest["targets"], _folder(target): target}
    if info is not None:
        manifest["infos"] = {**manifest.get("infos", {}), _folder(target): dict(info)}
    container.write(path, members, manifest)


def replace_weights(file: EngineFile, path: str | Path, weights: Mapping[str, Array]) -> None:
    """Write a copy of an engine file with other weights; what its plans certify is stale then.

    A target that a trusted key has signed is signed anew by this machine's; another one loses its signature.

    Raises:
        PlanFormatError: the file is damaged.
        OSError: it cannot be written; an old file stays.
    """
    box = file.container
    members: dict[str, container.Content] = {
        name: box.member(name) for name in box.members if not name.startswith("targets/") and name not in (_WEIGHTS, _KEPT)
    }
    members[_WEIGHTS] = b"".join(tensors.serialise(weights))
    for target in file.targets:
        folder = file.folder(target)
        try:
            files = file.trusted(target)
            signed = True
        except TrustError:
            kernels, host = (
                bytes(box.member(f"{folder}/{name}")) if f"{folder}/{name}" in box else None for name in (kernels_member(target), "host.so")
            )
            files, signed = TargetFiles(file.plan(target), kernels, host), False
        stale = {**files.plan.certificate, "stale": True} if files.plan.certificate else {}
        files = replace(files, plan=replace(files.plan, certificate=stale), source=file.source(target))
        members |= _target_members(target, files, signed)
    manifest = {k: v for k, v in box.manifest.items() if k not in ("format", "members")}
    manifest["weights"] = {"stored": True, "hashes": digests(weights)}
    container.write(path, members, manifest)


NODE_CONSTANTS = "node_constants"
"""Where a manifest's info names the weights that are constants of nodes and no initializers."""
_WEIGHTS, _KEPT = "weights.safetensors", "fixed.safetensors"
_SIGNED = ("plan.json", "kernels.so", "kernels.cubins", "host.so")


def kernels_member(target: str) -> str:
    """The name of the compiled kernels in a target's folder: a shared object, or a bundle of cubins."""
    return "kernels.cubins" if target.startswith("cuda:") else "kernels.so"


def source_member(target: str) -> str:
    """The name of the kernels' text in a target's folder."""
    return "kernels.py" if target.startswith("cuda:") else "kernels.c"


def _target_members(target: str, files: TargetFiles, sign: bool) -> dict[str, container.Content]:
    folder = _folder(target)
    parts: dict[str, container.Content] = {"plan.json": dumps(files.plan)}
    if files.source:
        parts[source_member(target)] = files.source.encode()
    if files.kernels is not None:
        parts[kernels_member(target)] = _binary(files.kernels)
    if files.host is not None:
        parts["host.so"] = _binary(files.host)
    if sign:
        digests = {r: container.member_info(parts[r]).sha256 for r in _SIGNED if r in parts}
        parts["signature"] = trust.sign(trust.statement(target, digests))
    return {f"{folder}/{role}": content for role, content in parts.items()}


class EngineFile:
    """An engine file opened for reading. Opening runs nothing and trusts nothing."""

    def __init__(self, source: str | Path | bytes) -> None:
        """`source` is a path, or the file's contents."""
        self.container = Container(source)
        self.path = self.container.path
        manifest = self.container.manifest
        targets, weights = manifest.get("targets"), manifest.get("weights")
        stated = weights.get("hashes") if isinstance(weights, dict) else None
        if (
            not isinstance(targets, dict)
            or set(targets) != {f"targets/{t}" for t in self.container.targets}
            or not all(isinstance(t, str) and _folder(t) == f for f, t in targets.items())
            or not isinstance(stated, dict)
            or not all(isinstance(h, str) for h in stated.values())
            or not isinstance(manifest.get("info"), dict)
            or not isinstance(manifest.get("infos", {}), dict)
            or not all(isinstance(i, dict) for i in manifest.get("infos", {}).values())
        ):
            raise PlanFormatError(
                f"{self.path}: got a damaged manifest, expected info, targets and weights; "
                "build the engine again"
            )
        self.hashes: dict[str, str] = stated
        self.info: dict[str, Any] = manifest["info"]

    def info_of(self, target: str) -> dict[str, Any]:
        """What the manifest says of one target: `info`, and what was said when that target was added."""
        return {**self.info, **self.container.manifest.get("infos", {}).get(self.folder(target), {})}

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that the file holds, such as "cpu:avx2"."""
        return tuple(sorted(self.container.manifest["targets"].values()))

    @property
    def graph(self) -> str:
        """The model as canonical IR text.

        Raises:
            PlanFormatError: damaged.
        """
        return self._text("graph.ir", _MAX_GRAPH)

    @property
    def build(self) -> dict[str, Any]:
        """Contents of build.json; empty if there is none."""
        if "build.json" not in self.container:
            return {}
        self.container.verify(["build.json"])
        data = parse_json(self.container.member("build.json"), "build.json", _MAX_BUILD)
        return data if isinstance(data, dict) else {}

    def source(self, target: str) -> str:
        """The text of a target's kernels, for reading; empty if it is not in the file."""
        name = f"{self.folder(target)}/{source_member(target)}"
        return self._text(name, _MAX_BUILD) if name in self.container else ""

    def weights(self) -> dict[str, Array] | None:
        """The original initializers, mapped read-only; None if they were stripped."""
        if _WEIGHTS not in self.container:
            return None
        return tensors.read(
            self.container.member(_WEIGHTS), f"{self.path}: {_WEIGHTS}"
        )

    def fixed_weights(self) -> dict[str, Array]:
        """What a file without weights holds of them: constants of the compiler and of nodes, and those that a refit cannot change."""
        return tensors.read(self.container.member(_KEPT), f"{self.path}: {_KEPT}") if _KEPT in self.container else {}

    def verify(self) -> None:
        """Check every member against the manifest: weights one by one, so that their hashes are known to be true.

        Raises:
            PlanFormatError: something does not match.
        """
        stored = self.weights()
        kept = {} if stored is None else stored
        if stored is not None and set(kept) != set(self.hashes):
            raise PlanFormatError(f"{self.path}: weights and their hashes have other names; build the engine again")
        self.container.verify(n for n in self.container.members if n != _WEIGHTS)
        for name, found in digests(kept).items():
            if found != self.hashes[name]:
                raise PlanFormatError(
                    f"{self.path}: weight {name!r} does not match its hash; the file is damaged, copy or build it again"
                )

    def plan(self, target: str) -> Plan:
        """The plan for a target, decoded but not trusted.

        Raises:
            PlanFormatError: damaged.
        """
        name = f"{self.folder(target)}/plan.json"
        self.container.verify([name])
        return loads(self.container.member(name))

    def trusted(self, target: str) -> TargetFiles:
        """Plan and binaries of a target, if a trusted key vouches for them.

        Raises:
            TrustError: no signature, an unknown key, or changed contents.
            PlanFormatError: damaged.
        """
        folder = self.folder(target)
        if f"{folder}/signature" not in self.container:
            raise TrustError(
                f"{self.path}: the binaries for {target} are not signed; build the engine here, or "
                "have it signed by a key that you trust (dovetail trust add KEY)"
            )
        # Copies: what is checked is what is used, whatever happens to the file meanwhile.
        parts = {
            role: bytes(self.container.member(f"{folder}/{role}"))
            for role in _SIGNED
            if f"{folder}/{role}" in self.container
        }
        digests = {role: container.member_info(data).sha256 for role, data in parts.items()}
        try:
            signature = self.container.member(f"{folder}/signature")
            trust.verify(trust.statement(target, digests), signature)
        except TrustError as error:
            raise TrustError(f"{self.path}: {error}") from None
        plan = loads(parts["plan.json"])
        return TargetFiles(
            plan, parts.get(kernels_member(target)), parts.get("host.so"), digest=digests["plan.json"]
        )

    def folder(self, target: str) -> str:
        """The folder of a target's members.

        Raises:
            UsageError: the file has no such target.
        """
        if target not in self.targets:
            raise UsageError(
                f"{self.path}: got the target {target!r}, expected one of "
                f"{', '.join(self.targets)}; build the engine for it"
            )
        return _folder(target)

    def _text(self, name: str, limit: int) -> str:
        self.container.verify([name])
        data = self.container.member(name)
        try:
            if len(data) > limit:
                raise ValueError(f"{len(data)} bytes")
            return str(data, "utf-8")
        except ValueError as error:
            raise PlanFormatError(f"{self.path}: {name} is not text ({error})") from None


def _folder(target: str) -> str:
    return "targets/" + re.sub(r"[^A-Za-z0-9_.+-]", "-", target)


def _binary(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content

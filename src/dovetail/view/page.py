"""The report of an engine as one HTML page that needs nothing else: no network, no fonts, no other files.

Everything that a model or a file names travels as JSON in a data block and reaches the page as text nodes only; besides, the page's
security policy allows its own script and style sheet by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from dovetail.core.files import replacing

SCRIPTS = (
    "text.js", "store.js", "colours.js", "canvas.js", "graph.js", "paint.js", "minimap.js", "panel.js", "table.js", "roofline.js",
    "memory.js", "details.js", "app.js",
)  # fmt: skip
"""Parts of the page's script, in order; they share one scope."""

_ENTRY = re.compile(r"\bk_[0-9a-f]+\b")


def page(document: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The page.

    Args:
        document: as `view.document.document` makes it.
        sources: text of kernels by entry, as `split_sources` gives it.
    """
    assets = resources.files("dovetail.view") / "assets"
    style = (assets / "page.css").read_text("utf-8")
    script = '"use strict";\n(() => {\n' + "\n".join((assets / name).read_text("utf-8") for name in SCRIPTS) + "\n})();\n"
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    parts = {
        "TITLE": html.escape(str(document["title"])), "POLICY": html.escape(policy), "STYLE": style, "SCRIPT": script,
        "DOCUMENT": json_block(document), "SOURCES": json_block(sources),
    }  # fmt: skip
    # In one pass: what is put in is not looked at again.
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], (assets / "page.html").read_text("utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def json_block(data: Any) -> str:
    """JSON that may stand in a script element: no character in it ends the element or opens another."""
    text = json.dumps(_finite(data), separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    """The same data with text for numbers that JSON does not have."""
    if isinstance(data, float):
        return data if math.isfinite(data) else str(data)
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def split_sources(text: str, entries: Iterable[str]) -> dict[str, str]:
    """The text of each kernel of a translation unit: kernels follow each other, each named by its entry where it begins."""
    known, found = set(entries), {}
    lines = text.splitlines()
    starts: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        for name in _ENTRY.findall(line):
            if name in known and name not in found:
                found[name] = ""
                starts.append((number, name))
    for (first, name), (last, _) in zip(starts, [*starts, (len(lines), "")][1:], strict=True):
        found[name] = "\n".join(lines[first:last]).rstrip()
    return found


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: no file can be written in that folder.
        OSError: it cannot be written; nothing is left behind.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))

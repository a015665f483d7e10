"""Sizes of memory as arguments."""

from __future__ import annotations

import argparse
import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def byte_count(text: str) -> int:
    """A size such as 500M or 2G."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size like 500M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]

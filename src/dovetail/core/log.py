"""Logging by topic over the standard library: `DOVETAIL_LOG=passes,tuner` or `all`."""

from __future__ import annotations

import logging

from dovetail.core.env import env

_configured = False


def logger(topic: str) -> logging.Logger:
    """The logger `dovetail.<topic>`; topics named in DOVETAIL_LOG print at debug level on stderr."""
    global _configured
    if not _configured:
        _configured = True
        wanted = [t.strip() for t in env().log.split(",") if t.strip()]
        if wanted:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            root = logging.getLogger("dovetail")
            root.addHandler(handler)
            for name in ["dovetail"] if "all" in wanted else [f"dovetail.{t}" for t in wanted]:
                logging.getLogger(name).setLevel(logging.DEBUG)
    return logging.getLogger(f"dovetail.{topic}")

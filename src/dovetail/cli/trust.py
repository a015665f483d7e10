"""Manage the keys whose compiled kernels may be loaded from engine files.

    dovetail trust list              the keys this machine trusts, its own first
    dovetail trust show              this machine's own key, to add on another machine: keep it secret
    dovetail trust add KEY           64 hex digits, or a file that holds them
    dovetail trust remove ID

Engines signed by other keys still run: their kernels are generated again from the data in the file.
"""

from __future__ import annotations

import argparse

from dovetail.cli import output
from dovetail.core.errors import UsageError
from dovetail.engine import trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail trust`."""
    parser.add_argument("action", choices=("list", "show", "add", "remove"))
    parser.add_argument("key", nargs="?", help="the key to add, or the id to remove")
    parser.add_argument("--json", action="store_true", help="print one JSON object with stable keys")


def run(args: argparse.Namespace) -> int:
    """List, show, add or remove."""
    if (args.key is None) == (args.action in ("add", "remove")):
        wanted = "expected one" if args.key is None else "expected none"
        raise UsageError(f"trust {args.action}: got {'no key' if args.key is None else 'a key'}, {wanted}")
    if args.action == "list":
        ids = [trust.key_id(key) for key in trust.trusted_keys()]
        output.show(args, {"own": ids[0], "added": ids[1:]}, "\n".join([f"{ids[0]}  (this machine)", *ids[1:]]))
    elif args.action == "show":
        key = trust.own_key()
        output.show(args, {"id": trust.key_id(key), "key": key.hex()}, key.hex())
    elif args.action == "add":
        identity = trust.add(args.key)
        output.show(args, {"added": identity}, f"trusting {identity}")
    else:
        trust.remove(args.key)
        output.show(args, {"removed": args.key}, f"no longer trusting {args.key}")
    return 0

"""Plugins: operators that users write as Python functions, with optional bodies in C and Triton.

    @dovetail.plugin("OneHot", version="1")
    def one_hot(x, *, depth: int, axis: int = -1): ...

    bodies       what kernel bodies give back
    digests      whether a function is still the same
    definition   what a plugin is: signature, attributes, shape rule, bodies
    registry     the table, and how packages, modules and files get into it
    attributes   attribute values as canonical JSON text
"""

from dovetail.plugins.bodies import CKernel, TritonKernel
from dovetail.plugins.definition import Body, Key, Plugin
from dovetail.plugins.registry import (
    GROUP,
    PLUGINS_KEY,
    Source,
    check_requirements,
    find,
    fingerprints,
    has_changed,
    load,
    load_file,
    load_packages,
    plugin,
    register,
    registered,
    require,
    requirement,
    requirements,
    suggestion,
    unregister,
)

__all__ = [
    "GROUP",
    "PLUGINS_KEY",
    "Body",
    "CKernel",
    "Key",
    "Plugin",
    "Source",
    "TritonKernel",
    "check_requirements",
    "find",
    "fingerprints",
    "has_changed",
    "load",
    "load_file",
    "load_packages",
    "plugin",
    "register",
    "registered",
    "require",
    "requirement",
    "requirements",
    "suggestion",
    "unregister",
]

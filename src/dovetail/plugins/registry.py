"""The table of plugins, and where they come from: decorators, packages (entry points), files."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dovetail.core.errors import PluginError, UsageError
from dovetail.core.log import logger
from dovetail.core.python_files import module_name, run_file
from dovetail.plugins.definition import Key, Plugin, define

GROUP = "dovetail.plugins"
"""The entry point group of packages that bring plugins; an entry point names a module, or a function to call."""

PLUGINS_KEY = "plugins"
"""Where a plan's metadata keep what plugins it needs."""

_log = logger("plugins")
_lock = threading.RLock()
_plugins: dict[Key, Plugin] = {}
_files: dict[Path, tuple[str, frozenset[Key]]] = {}
_looked: bool = False

Source = str | os.PathLike[str] | ModuleType | Plugin


def plugin(
    name: str, *, version: str = "1", namespace: str = "", tolerance: float | None = None, replace: bool = False
) -> Callable[[Callable[..., Any]], Plugin]:
    """Make a Python function an operator of models.

    The function takes NumPy arrays by position (None for an absent optional input) and attributes by keyword, and returns an
    array or a tuple of arrays. It is the meaning of the operator: runs call it where no kernel body applies, and bodies
    (`@….c`, `@….triton`) are checked against it. It must not depend on anything but its arguments, must not keep or change
    its arrays, and may run in several threads at once.

    Args:
        name: what models call it: the op type of an ONNX node, or the name that `Network.plugin` is given.
        version, namespace: select among plugins of one name.
        tolerance: relative L2 error that kernel bodies may have against the function; None = what kernels may have in general.
        replace: take the place of a plugin of the same namespace, name and version.

    Raises:
        UsageError: it is registered already, or cannot be a plugin.
    """

    def decorate(function: Callable[..., Any]) -> Plugin:
        made = define(function, name, version, namespace, tolerance)
        register(made, replace=replace)
        return made

    return decorate


def register(made: Plugin, *, replace: bool = False) -> None:
    """Add a plugin to the table.

    Raises:
        UsageError: there is one of the same namespace, name and version, and `replace` is not asked for.
    """
    with _lock:
        if made.key in _plugins and not replace:
            raise UsageError(
                f"plugin {made.key}: got a second one, expected one of each namespace, name and version; give it another version, or "
                "replace=True"
            )
        _plugins[made.key] = made


def unregister(name: str, version: str = "1", namespace: str = "") -> bool:
    """Take a plugin out of the table; whether it was there. Engines that need it fail in their next run."""
    with _lock:
        return _plugins.pop(Key(namespace, name, version), None) is not None


def registered() -> tuple[Plugin, ...]:
    """All plugins of the table, by namespace, name and version; packages are not searched."""
    with _lock:
        return tuple(_plugins[key] for key in sorted(_plugins, key=lambda k: (k.namespace, k.name, k.version)))


def find(name: str, version: str = "1", namespace: str = "", *, search: bool = False) -> Plugin | None:
    """The plugin of a name, or None.

    Args:
        search: load the plugins of installed packages if the table does not have it.
    """
    key = Key(namespace, name, version)
    found = _plugins.get(key)
    if found is None and search:
        load_packages()
        found = _plugins.get(key)
    return found


def require(name: str, version: str = "1", namespace: str = "", *, search: bool = False) -> Plugin:
    """The plugin of a name.

    Raises:
        PluginError: there is none; says which versions and namespaces there are.
    """
    found = find(name, version, namespace, search=search)
    if found is None:
        raise PluginError(f"plugin {Key(namespace, name, version)}: got none of that name, {suggestion(name)}")
    return found


def suggestion(name: str) -> str:
    """What to do about a plugin that is not there."""
    others = [str(p.key) for p in registered() if p.key.name == name]
    if others:
        return f"expected one of {', '.join(others)}; ask for one of these"
    return "expected a registered one; import the module that defines it, or name its file (plugins=[…], --plugins=FILE.py)"


def load_packages() -> None:
    """Load the plugins of installed packages: entry points of the group `dovetail.plugins`, once per process.

    One that fails is reported in the log and left out: it may have nothing to do with what is wanted.
    """
    global _looked
    import importlib.metadata  # it takes longer to import than most engines to load

    with _lock:
        if _looked:
            return
        _looked = True
        for point in importlib.metadata.entry_points(group=GROUP):
            try:
                loaded = point.load()
                if callable(loaded) and not isinstance(loaded, Plugin):
                    loaded()
            except Exception as error:
                _log.warning("plugins of %s (%s) cannot be loaded: %s: %s", point.name, point.value, type(error).__name__, error)


def load(sources: Iterable[Source]) -> None:
    """Make the plugins of files, modules and packages known.

    Args:
        sources: paths of Python files, names of modules to import, modules, or plugins.

    Raises:
        PluginError: a file or module cannot be loaded.
    """
    if isinstance(sources, str | os.PathLike):
        sources = (sources,)
    for source in sources:
        if isinstance(source, Plugin):
            with _lock:
                _plugins.setdefault(source.key, source)
        elif isinstance(source, ModuleType):
            continue  # importing it has registered what it defines
        elif isinstance(source, str) and not source.endswith(".py") and os.sep not in source:
            _import(source)
        else:
            load_file(source)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise PluginError(
            f"plugins: got {name!r}, which cannot be imported ({type(error).__name__}: {error}), expected a module or a FILE.py"
        ) from error


def load_file(path: str | os.PathLike[str]) -> tuple[Plugin, ...]:
    """Run a Python file and return the plugins that it registers; the same contents are run once per process.

    A file that has changed is run again, and its plugins take the place of the earlier ones.

    Raises:
        PluginError: it cannot be read, or running it failed; the plugins from before stay.
    """
    file = Path(path).resolve()
    try:
        text = file.read_bytes()
    except OSError as error:
        raise PluginError(f"plugins: got {os.fspath(path)!r}, which cannot be read ({error.strerror}), expected a Python file") from error
    digest = hashlib.sha256(text).hexdigest()
    with _lock:
        known = _files.get(file)
        if known is not None and known[0] == digest and known[1] <= _plugins.keys():
            return tuple(_plugins[key] for key in known[1])
        before = dict(_plugins)
        for key in known[1] if known is not None else ():
            _plugins.pop(key, None)
        kept = dict(_plugins)
        try:
            run_file(file, module_name("plugins", file, digest))
        except Exception as error:
            _plugins.clear()
            _plugins.update(before)
            raise PluginError(f"plugins: {os.fspath(path)} failed ({type(error).__name__}: {error}); correct the file") from error
        made = {key: p for key, p in _plugins.items() if kept.get(key) is not p}
        _files[file] = digest, frozenset(made)
        return tuple(made.values())


def loaded_file(path: str | os.PathLike[str]) -> ModuleType | None:
    """The module of a Python file that `load_file` has run, as the file is now; None where it has not."""
    file = Path(path).resolve()
    known = _files.get(file)
    if known is None or not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != known[0]:
        return None
    return sys.modules.get(module_name("plugins", file, known[0]))


# --- what engines need ----------------------------------------------------------------------------


def requirement(name: str, version: str, namespace: str, digest: str) -> dict[str, str]:
    """What an engine says of a plugin that it needs."""
    found = find(name, version, namespace)
    module = "" if found is None else found.module
    if module.startswith("dovetail_plugins_"):
        file = getattr(sys.modules.get(module), "__file__", None)
        module = Path(file).name if file else ""
    return {"name": name, "version": version, "namespace": namespace, "digest": digest, "module": module}


def requirements(meta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of a plan's metadata, as far as they are records."""
    stated = meta.get(PLUGINS_KEY, ())
    return [r for r in stated if isinstance(r, Mapping)] if isinstance(stated, list | tuple) else []


def fingerprints(meta: Mapping[str, Any]) -> list[str]:
    """What the plugins that a plan needs are made of now, for keys of what is made with them."""
    found = [find(*(str(r.get(k, "")) for k in ("name", "version", "namespace"))) for r in requirements(meta)]
    return ["" if plugin is None else plugin.fingerprint for plugin in found]


def has_changed(record: Mapping[str, Any]) -> bool:
    """Whether the plugin of a record is registered with another function than the record says."""
    found = find(*(str(record.get(k, "")) for k in ("name", "version", "namespace")))
    return found is not None and bool(record.get("digest")) and found.digest != record["digest"]


def check_requirements(needed: Iterable[Mapping[str, Any]], where: str, *, search: bool = False) -> None:
    """Check that what an engine needs is registered; a reference that has changed since is reported in the log.

    Args:
        needed: records of `requirement`.
        where: the engine, for messages.
        search: the engine is trusted: look among installed packages, and import the modules that it names.

    Raises:
        PluginError: names all that are missing, and what to import.
    """
    missing = []
    for record in needed:
        name, version, namespace, digest, module = (str(record.get(k, "")) for k in ("name", "version", "namespace", "digest", "module"))
        found = find(name, version, namespace, search=search)
        if found is None and search and module and not module.endswith(".py"):
            _import(module)
            found = find(name, version, namespace)
        if found is None:
            hint = f": name the file {module}" if module.endswith(".py") else f": import {module}" if module else ""
            missing.append(f"{Key(namespace, name, version)}{hint}")
        elif has_changed(record):
            _log.warning(
                "%s: plugin %s has another function than when the engine was built (%s, then %s): results may differ",
                where, found.key, found.digest, digest,
            )  # fmt: skip
    if missing:
        raise PluginError(
            f"{where}: got an engine that needs plugins that are not registered, expected {'; '.join(missing)}; import the module that "
            "defines each before loading, or name its file (plugins=[…], --plugins=FILE.py)"
        )

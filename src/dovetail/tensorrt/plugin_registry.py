"""`IPluginRegistry`: the table of plugin creators, and of resources that plugins share."""

from __future__ import annotations

import threading
from typing import Any

from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import EngineCapability, ErrorCodeTRT
from dovetail.tensorrt.hooks import call, recorder_property
from dovetail.tensorrt.logger import ILogger, Logger, Reporter
from dovetail.tensorrt.plugin_v2 import IPluginCreator
from dovetail.tensorrt.plugin_v3 import IPluginCreatorInterface, IPluginResource

Key = tuple[str, str, str]
"""Name, version, namespace."""


class IPluginRegistry:
    """All plugin creators of this process, by name, version and namespace.

    `parent_search_enabled` and the recursive list are those of registries with a parent; this one has none.
    """

    def __init__(self) -> None:
        self._creators: dict[Key, IPluginCreatorInterface] = {}
        self._resources: dict[str, tuple[IPluginResource, int]] = {}
        self._lock = threading.RLock()
        self._reporter = Reporter(Logger())
        self._parent_search = True

    # ---- creators ----
    def register_creator(self, creator: IPluginCreatorInterface, plugin_namespace: str = "") -> bool:
        """Add a creator under its name, its version and a namespace; False if there is one of these."""
        expect(IPluginCreatorInterface, creator, "register_creator: creator")
        namespace = expect(str, plugin_namespace, "register_creator: plugin_namespace")
        name, version = creator.name, creator.plugin_version
        if not isinstance(name, str) or not isinstance(version, str) or not name:
            self._reporter.error(
                f"register_creator: got the name {name!r} and the version {version!r}, expected text", ErrorCodeTRT.INVALID_ARGUMENT
            )
            return False
        key = name, version, namespace
        with self._lock:
            if key in self._creators:
                self._reporter.verbose(f"Plugin creator already registered - {namespace}::{name} version {version}")
                return False
            self._creators[key] = creator
            if isinstance(creator, IPluginCreator):
                creator.plugin_namespace = namespace
        from dovetail.tensorrt.plugin_call import announce

        announce(key)
        self._reporter.verbose(f"Registered plugin creator - {namespace}::{name} version {version}")
        return True

    def deregister_creator(self, creator: IPluginCreatorInterface) -> bool:
        """Remove a creator; False if it is not there. Engines that need it cannot be loaded any more."""
        expect(IPluginCreatorInterface, creator, "deregister_creator: creator")
        with self._lock:
            found = [key for key, known in self._creators.items() if known is creator]
            for key in found:
                del self._creators[key]
        from dovetail.tensorrt.plugin_call import withdraw

        for key in found:
            call(self._reporter, "IPluginRegistry.deregister_creator", withdraw, key, default=None)
        return bool(found)

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        """The creator of a name, a version and a namespace; None, with a message, where there is none."""
        key = tuple(expect(str, part, "get_creator") for part in (type, version, plugin_namespace))
        found = self.find(key[0], key[1], key[2])
        if found is None:
            self._reporter.warning(f"getCreator could not find plugin: {type} version: {version} namespace: {plugin_namespace}")
        return found

    def find(self, name: str, version: str, namespace: str) -> IPluginCreatorInterface | None:
        """The creator of a name, a version and a namespace; None, without a message, where there is none."""
        return self._creators.get((name, version, namespace))

    def get_plugin_creator(self, type: str, version: str, plugin_namespace: str = "") -> IPluginCreator | None:
        """The creator of plugins of version 2 of a name, a version and a namespace; None where there is none."""
        found = self.get_creator(type, version, plugin_namespace)
        return found if isinstance(found, IPluginCreator) else None

    @property
    def plugin_creator_list(self) -> list[IPluginCreator]:
        """The creators of plugins of version 2."""
        return [c for c in self.all_creators if isinstance(c, IPluginCreator)]

    @property
    def all_creators(self) -> list[Any]:
        """All creators, in the order of their registration."""
        with self._lock:
            return list(self._creators.values())

    @property
    def all_creators_recursive(self) -> list[Any]:
        """All creators, those of parent registries included: there are none of these."""
        return self.all_creators

    # ---- libraries ----
    def load_library(self, plugin_path: str) -> None:
        """Refused: None and a message. Libraries of plugins in C++ link against TensorRT's own."""
        self._reporter.error(
            f"load_library: got {plugin_path!r}, expected no library: plugin libraries in C++ need libnvinfer; write the plugin in "
            "Python, as an IPluginV3 or with tensorrt.plugin",
            ErrorCodeTRT.UNSUPPORTED_STATE,
        )

    def deregister_library(self, handle: Any) -> None:
        """Refused: there are no libraries."""
        self._reporter.error("deregister_library: no library was loaded", ErrorCodeTRT.INVALID_ARGUMENT)

    # ---- resources ----
    def acquire_plugin_resource(self, key: str, resource: IPluginResource) -> IPluginResource | None:
        """The resource of a key; a clone of `resource` where there is none yet. Each acquisition wants a release."""
        expect(str, key, "acquire_plugin_resource: key")
        expect(IPluginResource, resource, "acquire_plugin_resource: resource")
        with self._lock:
            kept, count = self._resources.get(key, (None, 0))
            if kept is None:
                kept = call(self._reporter, "IPluginResource.clone", resource.clone, default=None)
            if not isinstance(kept, IPluginResource):
                self._reporter.error(f"acquire_plugin_resource: got {kept!r} as the clone of {key!r}, expected an IPluginResource")
                return None
            self._resources[key] = kept, count + 1
            return kept

    def release_plugin_resource(self, key: str) -> int:
        """Give back one acquisition; the last one releases the resource. 0, or -1 where there is nothing to give back."""
        expect(str, key, "release_plugin_resource: key")
        with self._lock:
            if key not in self._resources:
                self._reporter.error(f"release_plugin_resource: got the key {key!r}, expected one that is acquired")
                return -1
            kept, count = self._resources.pop(key)
            if count > 1:
                self._resources[key] = kept, count - 1
            else:
                call(self._reporter, "IPluginResource.release", kept.release, default=None)
            return 0

    # ---- the rest ----
    error_recorder = recorder_property("IPluginRegistry", "What is told of errors.")

    @property
    def parent_search_enabled(self) -> bool:
        """Whether parent registries are searched, of which there are none."""
        return self._parent_search

    @parent_search_enabled.setter
    def parent_search_enabled(self, value: bool) -> None:
        self._parent_search = bool(value)

    def __repr__(self) -> str:
        return f"<IPluginRegistry: {len(self._creators)} creators>"


_plugin_registry = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    """The registry of this process."""
    return _plugin_registry


def get_builder_plugin_registry(capability: EngineCapability) -> IPluginRegistry | None:
    """The registry that builders of an engine capability use: that of the process, None for any but STANDARD."""
    expect(EngineCapability, capability, "get_builder_plugin_registry: capability")
    return _plugin_registry if capability is EngineCapability.STANDARD else None


def init_libnvinfer_plugins(logger: ILogger | None, namespace: str = "") -> bool:
    """Tell the registry whom to speak to; True. There is no library of standard plugins to register."""
    expect(str, namespace, "init_libnvinfer_plugins: namespace")
    if logger is not None:
        _plugin_registry._reporter.logger = expect(ILogger, logger, "init_libnvinfer_plugins: logger")
    return True

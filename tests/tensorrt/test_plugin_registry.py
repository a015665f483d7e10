"""The registry of plugin creators and resources."""

import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Errors, Log
from tests.tensorrt.plugins import V3, V3Creator


class Nothing(V3):
    name = "RegistryNothing"


class Old(trt.IPluginCreator):
    def __init__(self):
        trt.IPluginCreator.__init__(self)
        self.name, self.plugin_version, self.field_names = "RegistryOld", "2", trt.PluginFieldCollection()


@pytest.fixture
def registry():
    found = trt.get_plugin_registry()
    logger = found._reporter.logger
    yield found
    found.error_recorder, found.parent_search_enabled, found._reporter.logger = None, True, logger


@exercises(
    "IPluginRegistry", "IPluginRegistry.register_creator", "IPluginRegistry.deregister_creator", "IPluginRegistry.get_creator",
    "IPluginRegistry.get_plugin_creator", "IPluginRegistry.all_creators", "IPluginRegistry.all_creators_recursive",
    "IPluginRegistry.plugin_creator_list", "IPluginCreatorInterface", "IPluginCreator.name", "IPluginCreator.plugin_version",
    "IPluginCreator.plugin_namespace", "IPluginCreatorV3One.name", "IPluginCreatorV3One.plugin_version", "init_libnvinfer_plugins",
    "get_plugin_registry",
)  # fmt: skip
def test_creators_are_found_by_name_version_and_namespace(registry):
    log = Log()
    assert trt.init_libnvinfer_plugins(log, "") and trt.init_libnvinfer_plugins(None, "x")
    new, old = V3Creator(Nothing), Old()
    assert registry.register_creator(new) and registry.register_creator(old, "mine")
    try:
        assert not registry.register_creator(new, "") and not registry.register_creator(V3Creator(Nothing))
        assert old.plugin_namespace == "mine"
        assert registry.get_creator("RegistryNothing", "1", "") is new and registry.get_creator("RegistryOld", "2", "mine") is old
        assert registry.get_plugin_creator("RegistryOld", "2", "mine") is old
        assert registry.get_plugin_creator("RegistryNothing", "1") is None
        log.messages.clear()
        assert registry.get_creator("RegistryOld", "2") is None
        assert log.messages == [(trt.Logger.WARNING, "getCreator could not find plugin: RegistryOld version: 2 namespace: ")]
        assert new in registry.all_creators and old in registry.all_creators_recursive
        assert old in registry.plugin_creator_list and new not in registry.plugin_creator_list
    finally:
        assert registry.deregister_creator(new) and registry.deregister_creator(old)
    assert not registry.deregister_creator(new) and new not in registry.all_creators


@exercises("_plugin_registry", "get_builder_plugin_registry", "Builder.get_plugin_registry", "Runtime.get_plugin_registry")
def test_there_is_one_registry():
    assert trt._plugin_registry is trt.get_plugin_registry()
    assert trt.get_builder_plugin_registry(trt.EngineCapability.STANDARD) is trt.get_plugin_registry()
    assert trt.get_builder_plugin_registry(trt.EngineCapability.SAFETY) is None
    assert trt.Builder(Log()).get_plugin_registry() is trt.Runtime(Log()).get_plugin_registry() is trt.get_plugin_registry()


def test_what_is_no_creator_is_refused(registry):
    log = Log()
    trt.init_libnvinfer_plugins(log, "")
    with pytest.raises(TypeError, match="creator"):
        registry.register_creator(object())
    with pytest.raises(TypeError, match="namespace"):
        registry.register_creator(V3Creator(Nothing), None)
    nameless = V3Creator(Nothing)
    nameless.name = ""
    assert not registry.register_creator(nameless) and "got the name ''" in log.errors()[0]
    with pytest.raises(TypeError):
        trt.init_libnvinfer_plugins("log", "")


@exercises("IPluginRegistry.error_recorder", "IPluginRegistry.parent_search_enabled")
def test_libraries_are_refused_and_the_recorder_is_told(registry):
    log, errors = Log(), Errors()
    trt.init_libnvinfer_plugins(log, "")
    assert registry.error_recorder is None and registry.parent_search_enabled
    registry.error_recorder, registry.parent_search_enabled = errors, False
    assert registry.error_recorder is errors and not registry.parent_search_enabled
    assert registry.load_library("libmine.so") is None and registry.deregister_library(1) is None
    assert "libmine.so" in errors.kept[0][1] and "tensorrt.plugin" in log.errors()[0]


class Resource(trt.IPluginResource):
    released = 0

    def clone(self):
        made = Resource()
        made.origin = self
        return made

    def release(self):
        Resource.released += 1


@exercises(
    "IPluginResource", "IPluginResource.clone", "IPluginResource.release", "IPluginRegistry.acquire_plugin_resource",
    "IPluginRegistry.release_plugin_resource",
)  # fmt: skip
def test_resources_are_cloned_once_and_released_with_the_last(registry):
    log = Log()
    trt.init_libnvinfer_plugins(log, "")
    first, Resource.released = Resource(), 0
    kept = registry.acquire_plugin_resource("handles", first)
    assert kept is not first and kept.origin is first and registry.acquire_plugin_resource("handles", Resource()) is kept
    assert registry.release_plugin_resource("handles") == 0 and Resource.released == 0
    assert registry.release_plugin_resource("handles") == 0 and Resource.released == 1
    assert registry.release_plugin_resource("handles") == -1 and "'handles'" in log.errors()[0]
    with pytest.raises(TypeError, match="resource"):
        registry.acquire_plugin_resource("handles", object())

    class Broken(trt.IPluginResource):
        def clone(self):
            raise ValueError("no more")

    assert registry.acquire_plugin_resource("b", Broken()) is None and "no more" in log.errors()[0]
    with pytest.raises(RuntimeError, match="pure virtual"):
        Broken().release()


@exercises("IPluginResourceContext", "IPluginResourceContext.error_recorder", "IPluginResourceContext.gpu_allocator")
def test_contexts_of_resources_have_neither_by_default():
    context = trt.IPluginResourceContext()
    assert context.error_recorder is None and context.gpu_allocator is None

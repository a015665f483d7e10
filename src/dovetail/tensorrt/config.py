"""`IBuilderConfig`: what a build may do, with TensorRT's defaults, and what of it this release refuses.

Every value is kept and read back. One that nothing here can honour (a DLA, a safety runtime, another operating system) makes the
build fail, which says why (`refusals`).
"""

from __future__ import annotations

from typing import Any

from dovetail.tensorrt import device
from dovetail.tensorrt.calibrator import IAlgorithmSelector, IInt8Calibrator
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.enum_type import Enum, expect
from dovetail.tensorrt.enums import (
    BuilderFlag,
    DeviceType,
    EngineCapability,
    ErrorCodeTRT,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    PreviewFeature,
    ProfilingVerbosity,
    QuantizationFlag,
    RuntimePlatform,
    TacticSource,
    TilingOptimizationLevel,
)
from dovetail.tensorrt.hooks import IProgressMonitor
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.profile import IOptimizationProfile
from dovetail.tensorrt.timing_cache import ITimingCache, device_of, machine
from dovetail.tensorrt.timing_cache import read as read_timing_cache

ALL_TACTIC_SOURCES: int = sum(1 << source for source in TacticSource.__members__.values())
BUILD_ROUTES = ("default", "direct")
_OPTIMIZATION_LEVELS = range(6)
_DLA_POOLS = {MemoryPoolType.DLA_MANAGED_SRAM: 0, MemoryPoolType.DLA_LOCAL_DRAM: 1 << 30, MemoryPoolType.DLA_GLOBAL_DRAM: 512 << 20}
_REFUSED_FLAGS = {
    BuilderFlag.SAFETY_SCOPE: "there is no safety runtime",
    BuilderFlag.EXCLUDE_LEAN_RUNTIME: "there is no lean runtime that could be left out",
}


def _enum(name: str, kind: type[Enum], doc: str) -> property:
    def read(self: Any) -> Any:
        return self._enums[name]

    def write(self: Any, value: Any) -> None:
        self._enums[name] = expect(kind, value, f"IBuilderConfig.{name}")

    return property(read, write, doc=doc)


def _number(name: str, doc: str, allowed: range | None = None) -> property:
    def read(self: Any) -> int:
        number: int = self._numbers[name]
        return number

    def write(self: Any, value: int) -> None:
        self._set_number(name, value, allowed)

    return property(read, write, doc=doc)


def _text(name: str, doc: str) -> property:
    def read(self: Any) -> str:
        text: str = self._texts[name]
        return text

    def write(self: Any, value: str) -> None:
        self._texts[name] = expect(str, value, f"IBuilderConfig.{name}")

    return property(read, write, doc=doc)


class IBuilderConfig(Deprecated):
    """Options of a build; made by `Builder.create_builder_config`."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.reset()

    def reset(self) -> None:
        """Set everything back to what it is at first."""
        self._flags = 1 << BuilderFlag.TF32
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._previews: set[PreviewFeature] = set()
        self._timing_cache: ITimingCache | None = None
        self._devices: dict[str, DeviceType] = {}
        self._tactic_sources: int = ALL_TACTIC_SOURCES
        self._quantization_flags = 0
        self._calibration_profile: IOptimizationProfile | None = None
        self._calibrator: IInt8Calibrator | None = None
        self._selector: IAlgorithmSelector | None = None
        self._monitor: IProgressMonitor | None = None
        self._plugins_to_serialize: list[str] = []
        self._enums: dict[str, Enum] = {
            "engine_capability": EngineCapability.STANDARD, "default_device_type": DeviceType.GPU,
            "profiling_verbosity": ProfilingVerbosity.LAYER_NAMES_ONLY, "runtime_platform": RuntimePlatform.SAME_AS_BUILD,
            "hardware_compatibility_level": HardwareCompatibilityLevel.NONE, "tiling_optimization_level": TilingOptimizationLevel.NONE,
        }  # fmt: skip
        self._numbers = {
            "avg_timing_iterations": 1, "min_timing_iterations": 1, "DLA_core": -1, "profile_stream": 0,
            "builder_optimization_level": 3, "max_num_tactics": -1, "max_aux_streams": -1, "l2_limit_for_tiling": 0,
        }  # fmt: skip
        self._texts = {"remote_auto_tuning_config": "", "build_route": ""}

    # ------------------------------------------------------------------ flags
    @property
    def flags(self) -> int:
        """The bits of all `BuilderFlag`s that are set."""
        return self._flags

    @flags.setter
    def flags(self, value: int) -> None:
        self._flags = expect(int, value, "IBuilderConfig.flags")

    def set_flag(self, flag: BuilderFlag) -> None:
        """Set a flag; those before stay."""
        self._flags |= 1 << expect(BuilderFlag, flag, "IBuilderConfig.set_flag: flag")

    def clear_flag(self, flag: BuilderFlag) -> None:
        """Clear a flag."""
        self._flags &= ~(1 << expect(BuilderFlag, flag, "IBuilderConfig.clear_flag: flag"))

    def get_flag(self, flag: BuilderFlag) -> bool:
        """Whether a flag is set."""
        return bool(self._flags >> int(expect(BuilderFlag, flag, "IBuilderConfig.get_flag: flag")) & 1)

    @property
    def quantization_flags(self) -> int:
        """The bits of all `QuantizationFlag`s that are set."""
        return self._quantization_flags

    @quantization_flags.setter
    def quantization_flags(self, value: int) -> None:
        self._quantization_flags = expect(int, value, "IBuilderConfig.quantization_flags")

    def set_quantization_flag(self, flag: QuantizationFlag) -> None:
        """Set a flag of the calibration."""
        self._quantization_flags |= 1 << expect(QuantizationFlag, flag, "IBuilderConfig.set_quantization_flag: flag")

    def clear_quantization_flag(self, flag: QuantizationFlag) -> None:
        """Clear a flag of the calibration."""
        self._quantization_flags &= ~(1 << expect(QuantizationFlag, flag, "IBuilderConfig.clear_quantization_flag: flag"))

    def get_quantization_flag(self, flag: QuantizationFlag) -> bool:
        """Whether a flag of the calibration is set."""
        return bool(self._quantization_flags >> int(expect(QuantizationFlag, flag, "IBuilderConfig.get_quantization_flag: flag")) & 1)

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        """Turn a preview feature on or off."""
        known = expect(PreviewFeature, feature, "IBuilderConfig.set_preview_feature: feature")
        (self._previews.add if expect(bool, enable, "IBuilderConfig.set_preview_feature: enable") else self._previews.discard)(known)

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        """Whether a preview feature is on."""
        return expect(PreviewFeature, feature, "IBuilderConfig.get_preview_feature: feature") in self._previews

    # ------------------------------------------------------------------ memory
    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """Limit the bytes that a build may use of a pool; sizes that the pool cannot have are an error in the log."""
        kind = expect(MemoryPoolType, pool, "IBuilderConfig.set_memory_pool_limit: pool")
        size = expect(int, pool_size, "IBuilderConfig.set_memory_pool_limit: pool_size")
        if size < 0 or (kind is MemoryPoolType.DLA_MANAGED_SRAM and size & (size - 1)):
            self._refuse(f"setMemoryPoolLimit: got {size} bytes for {kind}, expected a size that such a pool can have")
            return
        self._pools[kind] = size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        """The bytes that a build may use of a pool; all of the device's memory where none were set for WORKSPACE."""
        kind = expect(MemoryPoolType, pool, "IBuilderConfig.get_memory_pool_limit: pool")
        if kind in self._pools:
            return self._pools[kind]
        if kind is MemoryPoolType.TACTIC_SHARED_MEMORY:
            return device.shared_memory()
        return _DLA_POOLS[kind] if kind in _DLA_POOLS else device.total_memory()

    @property
    def max_workspace_size(self) -> int:
        """The limit of the WORKSPACE pool, in bytes (up to 9)."""
        return self.get_memory_pool_limit(MemoryPoolType.WORKSPACE)

    @max_workspace_size.setter
    def max_workspace_size(self, value: int) -> None:
        self.set_memory_pool_limit(MemoryPoolType.WORKSPACE, value)

    # ------------------------------------------------------------------ profiles
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Add a profile; its index, or -1 and an error in the log where it is none that a build can use."""
        if not expect(IOptimizationProfile, profile, "IBuilderConfig.add_optimization_profile: profile"):
            self._refuse("addOptimizationProfile: got a profile that is not valid")
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        """How many profiles there are."""
        return len(self._profiles)

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        """Set the profile whose likely shapes calibration runs with; True."""
        self._calibration_profile = expect(IOptimizationProfile, profile, "IBuilderConfig.set_calibration_profile: profile")
        return True

    def get_calibration_profile(self) -> IOptimizationProfile | None:
        """The profile that calibration runs with; None where none was set, which means the first one."""
        return self._calibration_profile

    # ------------------------------------------------------------------ devices
    def set_device_type(self, layer: Any, device_type: DeviceType) -> None:
        """Choose the device of a layer; one that is not here makes the build fail."""
        self._devices[layer.name] = expect(DeviceType, device_type, "IBuilderConfig.set_device_type: device_type")

    def get_device_type(self, layer: Any) -> DeviceType:
        """The device of a layer."""
        default: DeviceType = self.default_device_type
        return self._devices.get(layer.name, default)

    def is_device_type_set(self, layer: Any) -> bool:
        """Whether the device of a layer was chosen."""
        return layer.name in self._devices

    def reset_device_type(self, layer: Any) -> None:
        """Forget the choice of a layer's device."""
        self._devices.pop(layer.name, None)

    def can_run_on_DLA(self, layer: Any) -> bool:
        """Whether a layer may run on a DLA: False, there is none."""
        return False

    # ------------------------------------------------------------------ tactics and times
    def set_tactic_sources(self, tactic_sources: int) -> bool:
        """Choose the sources of tactics by their bits: on a GPU, tactics of cuBLASLt and cuDNN compete only where theirs are set.

        Returns:
            False, with an error in the log, for bits that are none of `TacticSource`.
        """
        bits = expect(int, tactic_sources, "IBuilderConfig.set_tactic_sources: tactic_sources")
        if bits & ~ALL_TACTIC_SOURCES:
            self._refuse(f"setTacticSources: got the bits {bits:#x}, expected some of {ALL_TACTIC_SOURCES:#x}")
            return False
        self._tactic_sources = bits
        return True

    def get_tactic_sources(self) -> int:
        """The bits of the sources of tactics; all of them at first."""
        return self._tactic_sources

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        """A timing cache of the bytes of `ITimingCache.serialize`, or a new one of none; None and an error in the log of others."""
        return read_timing_cache(serialized_timing_cache, self._reporter)

    def set_timing_cache(self, cache: ITimingCache | None, ignore_mismatch: bool) -> bool:
        """Let builds go by a cache and add to it; None: this user's own.

        Args:
            ignore_mismatch: take one of another machine, too.

        Returns:
            False, with an error in the log, for a cache of another machine.
        """
        if cache is not None and device_of(expect(ITimingCache, cache, "IBuilderConfig.set_timing_cache: cache")) != machine():
            if not ignore_mismatch:
                self._refuse(f"setTimingCache: the cache is of {device_of(cache)}, this machine is {machine()}")
                return False
            self._reporter.warning(f"Using a timing cache of {device_of(cache)} on {machine()}: tactics may be slower than need be.")
        self._timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        """The timing cache that builds go by; None: this user's own."""
        return self._timing_cache

    # ------------------------------------------------------------------ what clients implement
    @property
    def int8_calibrator(self) -> IInt8Calibrator | None:
        """Feeds batches to a build that looks for ranges."""
        return self._calibrator

    @int8_calibrator.setter
    def int8_calibrator(self, value: IInt8Calibrator | None) -> None:
        self._calibrator = None if value is None else expect(IInt8Calibrator, value, "IBuilderConfig.int8_calibrator")

    @property
    def algorithm_selector(self) -> IAlgorithmSelector | None:
        """Is asked to choose among the algorithms of every layer."""
        return self._selector

    @algorithm_selector.setter
    def algorithm_selector(self, value: IAlgorithmSelector | None) -> None:
        self._selector = None if value is None else expect(IAlgorithmSelector, value, "IBuilderConfig.algorithm_selector")

    @property
    def progress_monitor(self) -> IProgressMonitor | None:
        """Is told how far a build is, and may cancel it."""
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, value: IProgressMonitor | None) -> None:
        self._monitor = None if value is None else expect(IProgressMonitor, value, "IBuilderConfig.progress_monitor")

    @property
    def plugins_to_serialize(self) -> list[str]:
        """Libraries of plugins that an engine should carry; with any, a build fails: engines carry no code of others."""
        return list(self._plugins_to_serialize)

    @plugins_to_serialize.setter
    def plugins_to_serialize(self, value: list[str]) -> None:
        self._plugins_to_serialize = [expect(str, path, "IBuilderConfig.plugins_to_serialize") for path in value]

    # ------------------------------------------------------------------ what has no methods of its own
    engine_capability = _enum("engine_capability", EngineCapability, "The runtime that the engine is for; only STANDARD is here.")
    default_device_type = _enum("default_device_type", DeviceType, "The device of layers without one of their own; only GPU is here.")
    profiling_verbosity = _enum("profiling_verbosity", ProfilingVerbosity, "What the engine tells of its layers.")
    runtime_platform = _enum("runtime_platform", RuntimePlatform, "The system that the engine runs on; only SAME_AS_BUILD is here.")
    hardware_compatibility_level = _enum(
        "hardware_compatibility_level", HardwareCompatibilityLevel,
        "Whether the engine is to run on other devices too: of a CPU, AMPERE_PLUS takes AVX2 code, which all x86 servers run.",
    )  # fmt: skip
    tiling_optimization_level = _enum(
        "tiling_optimization_level", TilingOptimizationLevel, "How long the search for tiles may take; tiles are a matter of tuning here."
    )
    builder_optimization_level = _number(
        "builder_optimization_level", "0 to 5: 0 measures nothing; higher ones let more candidates compete.", _OPTIMIZATION_LEVELS
    )
    max_num_tactics = _number("max_num_tactics", "How many tactics of a layer may compete; -1: as many as there are; up to 1: none do.")
    avg_timing_iterations = _number("avg_timing_iterations", "Kept for the client: measuring goes on until times are steady.")
    min_timing_iterations = _number("min_timing_iterations", "Kept for the client (up to 9): measuring goes on until times are steady.")
    max_aux_streams = _number("max_aux_streams", "How many chains of kernels may run beside the main one on a GPU; -1: as is fastest.")
    l2_limit_for_tiling = _number("l2_limit_for_tiling", "Kept for the client: tiles are a matter of tuning here.")
    profile_stream = _number("profile_stream", "Kept for the client: measuring uses streams of its own.")
    DLA_core = _number("DLA_core", "The DLA that layers run on; -1: none, and there is none here.")
    remote_auto_tuning_config = _text("remote_auto_tuning_config", "Where to measure; a build fails with any: it measures on this machine.")
    build_route = _text("build_route", "One of `all_build_routes`, or empty for the first; others make the build fail.")

    @property
    def all_build_routes(self) -> list[str]:
        """The ways that builds can go: "default", or "direct", which forbids Winograd and other transforms."""
        return list(BUILD_ROUTES)

    # ------------------------------------------------------------------ inside
    def _refuse(self, message: str) -> None:
        self._reporter.error(f"IBuilderConfig::{message}.", ErrorCodeTRT.INVALID_ARGUMENT)

    def _set_number(self, name: str, value: Any, allowed: range | None) -> None:
        number = expect(int, value, f"IBuilderConfig.{name}")
        if allowed is not None and number not in allowed:
            self._refuse(f"{name}: got {number}, expected {allowed[0]} to {allowed[-1]}")
            return
        self._numbers[name] = number


def refusals(config: IBuilderConfig) -> list[str]:
    """What of a config no build here can honour, each with the reason; empty for one that can be built."""
    why = [f"BuilderFlag.{flag.name}: {reason}" for flag, reason in _REFUSED_FLAGS.items() if config.get_flag(flag)]
    if unknown := config.flags & ~sum(1 << int(flag) for flag in set(BuilderFlag.__members__.values())):
        why.append(f"flags: the bits {unknown:#x} are no BuilderFlag")
    no_dla = "there is no deep-learning accelerator on this machine"
    if config.default_device_type is DeviceType.DLA:
        why.append(f"default_device_type DeviceType.DLA: {no_dla}")
    why += [f"layer {name!r} on DeviceType.DLA: {no_dla}" for name, kind in config._devices.items() if kind is DeviceType.DLA]
    if config.engine_capability is not EngineCapability.STANDARD:
        why.append(f"engine_capability {config.engine_capability}: only EngineCapability.STANDARD is supported")
    if config.runtime_platform is not RuntimePlatform.SAME_AS_BUILD:
        why.append(f"runtime_platform {config.runtime_platform}: engines are built for the system of the build")
    if config.plugins_to_serialize:
        why.append("plugins_to_serialize: engines carry no libraries of plugins")
    if config.remote_auto_tuning_config:
        why.append("remote_auto_tuning_config: tactics are measured on this machine")
    if config.build_route not in ("", *BUILD_ROUTES):
        why.append(f"build_route {config.build_route!r}: expected one of {', '.join(BUILD_ROUTES)}")
    if config.get_preview_feature(PreviewFeature.MULTIDEVICE_RUNTIME_10_16):
        why.append("PreviewFeature.MULTIDEVICE_RUNTIME_10_16: engines run on one device")
    return why


def flag_names(config: IBuilderConfig) -> tuple[str, ...]:
    """The names of the flags that are set, in the order of their bits."""
    named = {int(flag): name for name, flag in reversed(BuilderFlag.__members__.items())}
    return tuple(name for bit, name in sorted(named.items()) if config.flags >> bit & 1)


def calibration_profile(config: IBuilderConfig) -> IOptimizationProfile | None:
    """The profile that calibration runs with: the client's, else the first."""
    own = config.get_calibration_profile()
    return config._profiles[0] if own is None and config._profiles else own


def profiles_of(config: IBuilderConfig) -> list[IOptimizationProfile]:
    """The profiles, in order."""
    return list(config._profiles)

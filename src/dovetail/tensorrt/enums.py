"""Every enum of TensorRT 8.2 to 11.1, with the numbers of 10.x.

Names that 10.x no longer has keep a number of their own above those of 10.x, so that no old name means a new thing.
"""

from __future__ import annotations

from dovetail.tensorrt.enum_type import Enum, Flag, Member, members

# ---- messages and errors ----


class Severity(Enum):
    """How grave a message is; the lower, the graver."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = members(5)


class ErrorCodeTRT(Enum):
    """What an `IErrorRecorder` is told."""

    SUCCESS, UNSPECIFIED_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_CONFIG, FAILED_ALLOCATION = members(6)
    FAILED_INITIALIZATION, FAILED_EXECUTION, FAILED_COMPUTATION, INVALID_STATE, UNSUPPORTED_STATE = members(5, 6)


class ErrorCode(Enum):
    """Why the ONNX parser refused a model or a node."""

    SUCCESS, INTERNAL_ERROR, MEM_ALLOC_FAILED, MODEL_DESERIALIZE_FAILED, INVALID_VALUE, INVALID_GRAPH = members(6)
    INVALID_NODE, UNSUPPORTED_GRAPH, UNSUPPORTED_NODE, UNSUPPORTED_NODE_ATTR, UNSUPPORTED_NODE_INPUT = members(5, 6)
    UNSUPPORTED_NODE_DATATYPE, UNSUPPORTED_NODE_DYNAMIC, UNSUPPORTED_NODE_SHAPE, REFIT_FAILED = members(4, 11)


# ---- tensors and weights ----


class DataType(Enum):
    """The element type of a tensor or of weights."""

    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4, FP4, E8M0 = members(12)

    @property
    def itemsize(self) -> float:
        """Bytes per element; 0.5 for the 4-bit types."""
        return _BITS[self] / 8 if _BITS[self] < 8 else _BITS[self] // 8


_BITS = {
    DataType.FLOAT: 32,
    DataType.HALF: 16,
    DataType.INT8: 8,
    DataType.INT32: 32,
    DataType.BOOL: 8,
    DataType.UINT8: 8,
    DataType.FP8: 8,
    DataType.BF16: 16,
    DataType.INT64: 64,
    DataType.INT4: 4,
    DataType.FP4: 4,
    DataType.E8M0: 8,
}


class TensorFormat(Enum):
    """The memory order of a tensor at the ends of a network."""

    LINEAR, CHW2, HWC8, CHW4, CHW16, CHW32, DHWC8, CDHW32, HWC, DLA_LINEAR, DLA_HWC4, HWC16, DHWC = members(13)


class TensorLocation(Enum):
    """The memory that a tensor or weights lie in."""

    DEVICE, HOST = members(2)


class TensorIOMode(Enum):
    """What a tensor is to an engine."""

    NONE, INPUT, OUTPUT = members(3)


class WeightsRole(Enum):
    """What weights are to their layer."""

    KERNEL, BIAS, SHIFT, SCALE, CONSTANT, ANY = members(6)


# ---- building ----


class NetworkDefinitionCreationFlag(Flag):
    """How a network is created; bit positions of `Builder.create_network(flags)`."""

    EXPLICIT_BATCH, STRONGLY_TYPED, PREFER_JIT_PYTHON_PLUGINS, PREFER_AOT_PYTHON_PLUGINS = members(4)
    # Was 1, which is STRONGLY_TYPED since 9.
    EXPLICIT_PRECISION = Member(4)


class BuilderFlag(Flag):
    """What a builder may do; bit positions of `IBuilderConfig.flags`."""

    FP16, INT8, DEBUG, GPU_FALLBACK, REFIT, DISABLE_TIMING_CACHE, TF32, SPARSE_WEIGHTS = members(8)
    SAFETY_SCOPE, OBEY_PRECISION_CONSTRAINTS, PREFER_PRECISION_CONSTRAINTS, DIRECT_IO = members(4, 8)
    REJECT_EMPTY_ALGORITHMS, VERSION_COMPATIBLE, EXCLUDE_LEAN_RUNTIME, FP8 = members(4, 12)
    ERROR_ON_TIMING_CACHE_MISS, BF16, DISABLE_COMPILATION_CACHE, STRIP_PLAN = members(4, 16)
    WEIGHTLESS = Member(19)
    REFIT_IDENTICAL, WEIGHT_STREAMING, INT4, REFIT_INDIVIDUAL, STRICT_NANS = members(5, 20)
    MONITOR_MEMORY, FP4, EDITABLE_TIMING_CACHE, DISTRIBUTIVE_INDEPENDENCE = members(4, 25)
    # Of 7 and 8; REFIT took the number of STRICT_TYPES.
    STRICT_TYPES, ENABLE_TACTIC_HEURISTIC = members(2, 29)


class QuantizationFlag(Flag):
    """How calibration goes about it; bit positions."""

    CALIBRATE_BEFORE_FUSION = Member(0)


class PreviewFeature(Enum):
    """Features ahead of their release."""

    PROFILE_SHARING_0806, ALIASED_PLUGIN_IO_10_03, RUNTIME_ACTIVATION_RESIZE_10_10 = members(3)
    MULTIDEVICE_RUNTIME_10_16 = Member(3)
    # Of 8.6; their numbers are those of others now.
    FASTER_DYNAMIC_SHAPES_0805, DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805 = members(2, 4)


class MemoryPoolType(Enum):
    """The memory that a build may use up to a limit."""

    WORKSPACE, DLA_MANAGED_SRAM, DLA_LOCAL_DRAM, DLA_GLOBAL_DRAM, TACTIC_DRAM, TACTIC_SHARED_MEMORY = members(6)


class TacticSource(Flag):
    """Libraries that tactics come from; bit positions of `set_tactic_sources`."""

    CUBLAS, CUBLAS_LT, CUDNN, EDGE_MASK_CONVOLUTIONS, JIT_CONVOLUTIONS = members(5)


class TilingOptimizationLevel(Enum):
    """How long the search for tiles may take."""

    NONE, FAST, MODERATE, FULL = members(4)


class ProfilingVerbosity(Enum):
    """What an engine tells of its layers."""

    LAYER_NAMES_ONLY, NONE, DETAILED = members(3)
    DEFAULT, VERBOSE = Member(0), Member(2)


class EngineCapability(Enum):
    """The runtime an engine is restricted to."""

    STANDARD, SAFETY, DLA_STANDALONE = members(3)
    DEFAULT, SAFE_GPU, SAFE_DLA = members(3)


class HardwareCompatibilityLevel(Enum):
    """The GPUs an engine runs on."""

    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = members(3)


class RuntimePlatform(Enum):
    """The system an engine runs on."""

    SAME_AS_BUILD, WINDOWS_AMD64 = members(2)


class DeviceType(Enum):
    """The device that a layer or an engine runs on."""

    GPU, DLA = members(2)


class CalibrationAlgoType(Enum):
    """How a calibrator finds ranges."""

    LEGACY_CALIBRATION, ENTROPY_CALIBRATION, ENTROPY_CALIBRATION_2, MINMAX_CALIBRATION = members(4)


class OnnxParserFlag(Flag):
    """What the ONNX parser does differently; bit positions."""

    NATIVE_INSTANCENORM, ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA, REPORT_CAPABILITY_DLA = members(3)
    ENABLE_PLUGIN_OVERRIDE, ADJUST_FOR_DLA = members(2, 3)


# ---- running ----


class ExecutionContextAllocationStrategy(Enum):
    """Who allocates a context's device memory, and when."""

    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = members(3)


class SerializationFlag(Flag):
    """What a serialized engine leaves out or keeps; bit positions."""

    EXCLUDE_WEIGHTS, EXCLUDE_LEAN_RUNTIME, INCLUDE_REFIT = members(3)


class LayerInformationFormat(Enum):
    """How an `EngineInspector` answers."""

    ONELINE, JSON = members(2)


class EngineStat(Enum):
    """What `ICudaEngine.get_engine_stat` measures."""

    TOTAL_WEIGHTS_SIZE, STRIPPED_WEIGHTS_SIZE = members(2)


class AllocatorFlag(Flag):
    """What an allocation must allow; bit positions."""

    RESIZABLE = Member(0)


class SeekPosition(Enum):
    """What the offset of `IStreamReaderV2.seek` counts from."""

    SET, CUR, END = members(3)


class TempfileControlFlag(Flag):
    """The temporary files a runtime may make; bit positions."""

    ALLOW_IN_MEMORY_FILES, ALLOW_TEMPORARY_FILES = members(2)


class APILanguage(Enum):
    """The language an interface is implemented in."""

    CPP, PYTHON = members(2)


# ---- layers ----


class LayerType(Enum):
    """What kind of layer a layer is."""

    CONVOLUTION, CAST, ACTIVATION, POOLING, LRN, SCALE, SOFTMAX, DECONVOLUTION, CONCATENATION, ELEMENTWISE = members(10)
    PLUGIN, UNARY, PADDING, SHUFFLE, REDUCE, TOPK, GATHER, MATRIX_MULTIPLY, RAGGED_SOFTMAX, CONSTANT = members(10, 10)
    IDENTITY, PLUGIN_V2, SLICE, SHAPE, PARAMETRIC_RELU, RESIZE, TRIP_LIMIT, RECURRENCE, ITERATOR = members(9, 20)
    LOOP_OUTPUT, SELECT, FILL, QUANTIZE, DEQUANTIZE, CONDITION, CONDITIONAL_INPUT, CONDITIONAL_OUTPUT = members(8, 29)
    SCATTER, EINSUM, ASSERTION, ONE_HOT, NON_ZERO, GRID_SAMPLE, NMS, REVERSE_SEQUENCE, NORMALIZATION = members(9, 37)
    PLUGIN_V3, SQUEEZE, UNSQUEEZE, CUMULATIVE, DYNAMIC_QUANTIZE, ATTENTION_INPUT, ATTENTION_OUTPUT = members(7, 46)
    ROTARY_EMBEDDING, KV_CACHE_UPDATE, MOE, DIST_COLLECTIVE = members(4, 53)
    # Of 8 and 9.
    FULLY_CONNECTED, RNN_V2 = members(2, 57)


class PaddingMode(Enum):
    """How the padding of a window is found."""

    EXPLICIT_ROUND_DOWN, EXPLICIT_ROUND_UP, SAME_UPPER, SAME_LOWER, CAFFE_ROUND_DOWN, CAFFE_ROUND_UP = members(6)


class ActivationType(Enum):
    """The function of an `IActivationLayer`."""

    RELU, SIGMOID, TANH, LEAKY_RELU, ELU, SELU, SOFTSIGN, SOFTPLUS, CLIP, HARD_SIGMOID, SCALED_TANH = members(11)
    THRESHOLDED_RELU, GELU_ERF, GELU_TANH = members(3, 11)


class PoolingType(Enum):
    """What an `IPoolingLayer` makes of a window."""

    MAX, AVERAGE, MAX_AVERAGE_BLEND = members(3)


class ScaleMode(Enum):
    """What the weights of an `IScaleLayer` belong to."""

    UNIFORM, CHANNEL, ELEMENTWISE = members(3)


class ElementWiseOperation(Enum):
    """The function of an `IElementWiseLayer`."""

    SUM, PROD, MAX, MIN, SUB, DIV, POW, FLOOR_DIV, AND, OR, XOR, EQUAL, GREATER, LESS = members(14)


class UnaryOperation(Enum):
    """The function of an `IUnaryLayer`."""

    EXP, LOG, SQRT, RECIP, ABS, NEG, SIN, COS, TAN, SINH, COSH, ASIN, ACOS, ATAN, ASINH, ACOSH, ATANH = members(17)
    CEIL, FLOOR, ERF, NOT, SIGN, ROUND, ISINF, ISNAN = members(8, 17)


class ReduceOperation(Enum):
    """What an `IReduceLayer` makes of the elements it joins."""

    SUM, PROD, MAX, MIN, AVG, NONE = members(6)


class ScatterMode(Enum):
    """How the indices of an `IScatterLayer` are read."""

    ELEMENT, ND = members(2)


class GatherMode(Enum):
    """How the indices of an `IGatherLayer` are read."""

    DEFAULT, ELEMENT, ND = members(3)


class TopKOperation(Enum):
    """What an `ITopKLayer` looks for."""

    MAX, MIN = members(2)


class MatrixOperation(Enum):
    """What an `IMatrixMultiplyLayer` does to an operand first."""

    NONE, TRANSPOSE, VECTOR = members(3)


class InterpolationMode(Enum):
    """How resized and sampled values come about."""

    NEAREST, LINEAR, CUBIC = members(3)


class SampleMode(Enum):
    """What lies outside a tensor."""

    STRICT_BOUNDS, WRAP, CLAMP, FILL, REFLECT = members(5)
    DEFAULT = Member(0)


# What 8 and 9 called them.
ResizeMode = InterpolationMode
SliceMode = SampleMode


class ResizeCoordinateTransformation(Enum):
    """How an `IResizeLayer` maps coordinates."""

    ALIGN_CORNERS, ASYMMETRIC, HALF_PIXEL = members(3)


class ResizeSelector(Enum):
    """Where an `IResizeLayer` reads when the result is one pixel."""

    FORMULA, UPPER = members(2)


class ResizeRoundMode(Enum):
    """How an `IResizeLayer` rounds to the nearest."""

    HALF_UP, HALF_DOWN, FLOOR, CEIL = members(4)


class LoopOutput(Enum):
    """What an `ILoopOutputLayer` gives."""

    LAST_VALUE, CONCATENATE, REVERSE = members(3)


class TripLimit(Enum):
    """How an `ITripLimitLayer` ends its loop."""

    COUNT, WHILE = members(2)


class BoundingBoxFormat(Enum):
    """What the four numbers of a box are."""

    CORNER_PAIRS, CENTER_SIZES = members(2)


class FillOperation(Enum):
    """What an `IFillLayer` fills with."""

    LINSPACE, RANDOM_UNIFORM, RANDOM_NORMAL = members(3)


class CumulativeOperation(Enum):
    """What an `ICumulativeLayer` accumulates."""

    SUM = Member(0)


class AttentionNormalizationOp(Enum):
    """How an `IAttention` normalises its scores."""

    NONE, SOFTMAX = members(2)


class AttentionIOForm(Enum):
    """How sequences of different lengths lie in a tensor."""

    PADDED_BHND, PACKED_NHD = members(2)


class CausalMaskKind(Enum):
    """The corner that a causal mask starts in."""

    NONE, UPPER_LEFT, LOWER_RIGHT = members(3)


class KVCacheMode(Enum):
    """How an `IKVCacheUpdateLayer` writes."""

    LINEAR = Member(0)


class MoEActType(Enum):
    """The activation of an `IMoELayer`."""

    NONE, SILU = members(2)


class CollectiveOperation(Enum):
    """What devices do together; layers of it are left out."""

    ALL_REDUCE, ALL_GATHER, BROADCAST, REDUCE, REDUCE_SCATTER, ALL_TO_ALL, GATHER, SCATTER = members(8)


class RNNOperation(Enum):
    """The cell of an `IRNNv2Layer`."""

    RELU, TANH, LSTM, GRU = members(4)


class RNNDirection(Enum):
    """The directions an `IRNNv2Layer` reads in."""

    UNIDIRECTION, BIDIRECTION = members(2)


class RNNInputMode(Enum):
    """Whether an `IRNNv2Layer` multiplies its input."""

    LINEAR, SKIP = members(2)


class RNNGateType(Enum):
    """A gate of an `IRNNv2Layer`."""

    INPUT, OUTPUT, FORGET, UPDATE, RESET, CELL, HIDDEN = members(7)


# ---- plugins ----


class DimensionOperation(Enum):
    """The operations of an `IExprBuilder`."""

    SUM, PROD, MAX, MIN, SUB, EQUAL, LESS, FLOOR_DIV, CEIL_DIV = members(9)


class PluginFieldType(Enum):
    """The element type of a `PluginField`."""

    FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, CHAR, DIMS, UNKNOWN, BF16, INT64, FP8, INT4, FP4 = members(14)


class PluginCreatorVersion(Enum):
    """The kind of a plugin creator."""

    V1, V1_PYTHON = Member(0), Member(64)


class PluginCapabilityType(Enum):
    """The interfaces of an `IPluginV3`."""

    CORE, BUILD, RUNTIME = members(3)


class TensorRTPhase(Enum):
    """What a plugin is created for."""

    BUILD, RUNTIME = members(2)


class QuickPluginCreationRequest(Enum):
    """Which kind of a quickly deployable plugin is wanted."""

    UNKNOWN, PREFER_JIT, PREFER_AOT, STRICT_JIT, STRICT_AOT = members(5)


class PluginArgType(Enum):
    """The type of an extra argument of a plugin's kernel."""

    INT = Member(0)


class PluginArgDataType(Enum):
    """The element type of an extra argument of a plugin's kernel."""

    INT8, INT16, INT32 = members(3)


# ---- the Caffe and UFF parsers of 8 ----


class FieldType(Enum):
    """The element type of a `FieldMap`."""

    FLOAT, INT32, CHAR = members(3)
    DIMS, DATATYPE, UNKNOWN = members(3, 4)


class UffInputOrder(Enum):
    """The memory order of a UFF input."""

    NCHW, NHWC, NC = members(3)

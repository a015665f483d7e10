"""Which module defines what `dovetail.tensorrt` exports: one row per module. Nothing is imported before it is asked for."""

from __future__ import annotations

_ROWS = {
    "enums": """
        APILanguage ActivationType AllocatorFlag AttentionIOForm AttentionNormalizationOp BoundingBoxFormat BuilderFlag
        CalibrationAlgoType CausalMaskKind CollectiveOperation CumulativeOperation DataType DeviceType DimensionOperation
        ElementWiseOperation EngineCapability EngineStat ErrorCode ErrorCodeTRT ExecutionContextAllocationStrategy FieldType
        FillOperation GatherMode HardwareCompatibilityLevel InterpolationMode KVCacheMode LayerInformationFormat LayerType
        LoopOutput MatrixOperation MemoryPoolType MoEActType NetworkDefinitionCreationFlag OnnxParserFlag PaddingMode
        PluginArgDataType PluginArgType PluginCapabilityType PluginCreatorVersion PluginFieldType PoolingType PreviewFeature
        ProfilingVerbosity QuantizationFlag QuickPluginCreationRequest RNNDirection RNNGateType RNNInputMode RNNOperation
        ReduceOperation ResizeCoordinateTransformation ResizeMode ResizeRoundMode ResizeSelector RuntimePlatform SampleMode
        ScaleMode ScatterMode SeekPosition SerializationFlag SliceMode TacticSource TempfileControlFlag TensorFormat
        TensorIOMode TensorLocation TensorRTPhase TilingOptimizationLevel TopKOperation TripLimit UffInputOrder
        UnaryOperation WeightsRole
    """,
    "calibrator": """
        IAlgorithm IAlgorithmContext IAlgorithmIOInfo IAlgorithmSelector IAlgorithmVariant IInt8Calibrator
        IInt8EntropyCalibrator IInt8EntropyCalibrator2 IInt8LegacyCalibrator IInt8MinMaxCalibrator
    """,
    "builder": "Builder",
    "config": "IBuilderConfig",
    "containers": "FallbackString NodeIndices SubGraphCollection",
    "dims": "Dims Dims2 Dims3 Dims4 DimsHW Permutation",
    "dtypes": "bfloat16 bool e8m0 float16 float32 fp4 fp8 int32 int4 int64 int8 nptype uint8 volume",
    "dropin": "install uninstall",
    "hooks": """
        IDebugListener IErrorRecorder IGpuAllocator IGpuAsyncAllocator IOutputAllocator IProfiler IProgressMonitor
        IStreamReader IStreamReaderV2 IStreamWriter IVersionedInterface InterfaceInfo Profiler
    """,
    "host_memory": "IHostMemory",
    "layer": "ILayer",
    "layers.attention": "IAttention IAttentionBoundaryLayer IAttentionInputLayer IAttentionOutputLayer",
    "layers.checks": "IAssertionLayer",
    "layers.conditional": """
        IConditionLayer IIfConditional IIfConditionalBoundaryLayer IIfConditionalInputLayer IIfConditionalOutputLayer
    """,
    "layers.contraction": "IEinsumLayer IMatrixMultiplyLayer",
    "layers.convolution": "IConvolutionLayer IDeconvolutionLayer IFullyConnectedLayer",
    "layers.filling": "IFillLayer",
    "layers.gathering": "IGatherLayer INonZeroLayer IOneHotLayer IScatterLayer",
    "layers.loop": """
        IIteratorLayer ILoop ILoopBoundaryLayer ILoopOutputLayer IRecurrenceLayer ITripLimitLayer
    """,
    "layers.movement": """
        IConcatenationLayer IConstantLayer IReverseSequenceLayer IShapeLayer IShuffleLayer ISqueezeLayer IUnsqueezeLayer
    """,
    "layers.normalization": "INormalizationLayer",
    "layers.plugin": "IPluginV2Layer IPluginV3Layer",
    "layers.pointwise": """
        IActivationLayer ICastLayer IElementWiseLayer IIdentityLayer IParametricReLULayer IScaleLayer ISelectLayer IUnaryLayer
    """,
    "layers.pooling": "ILRNLayer IPaddingLayer IPoolingLayer",
    "layers.quantization": "IDequantizeLayer IDynamicQuantizeLayer IQuantizeLayer",
    "layers.recurrent": "IRNNv2Layer",
    "layers.reduction": "ICumulativeLayer IRaggedSoftMaxLayer IReduceLayer ISoftMaxLayer ITopKLayer",
    "layers.sampling": "IGridSampleLayer IResizeLayer",
    "layers.slicing": "ISliceLayer",
    "layers.suppression": "INMSLayer",
    "layers.transformer": "IKVCacheUpdateLayer IMoELayer IRotaryEmbeddingLayer",
    "logger": "ILogger Logger",
    "network": "INetworkDefinition",
    "parser": "OnnxParser get_nv_onnx_parser_version",
    "parser_errors": "ParserError",
    "parser_refitter": "OnnxParserRefitter",
    "plugin.symbols": "ISymExpr ISymExprs KernelLaunchParams",
    "plugin_desc": "DynamicPluginTensorDesc PluginTensorDesc",
    "plugin_expr": "DimsExprs IDimensionExpr IExprBuilder",
    "plugin_fields": "PluginField PluginFieldCollection PluginFieldCollection_",
    "plugin_registry": "IPluginRegistry _plugin_registry get_builder_plugin_registry get_plugin_registry init_libnvinfer_plugins",
    "plugin_v2": "IPluginCreator IPluginV2 IPluginV2DynamicExt IPluginV2DynamicExtBase IPluginV2Ext IPluginV2IOExt",
    "plugin_v3": """
        IPluginCapability IPluginCreatorInterface IPluginCreatorV3One IPluginCreatorV3Quick IPluginResource
        IPluginResourceContext IPluginV3 IPluginV3OneBuild IPluginV3OneBuildV2 IPluginV3OneCore IPluginV3OneRuntime
        IPluginV3QuickAOTBuild IPluginV3QuickBuild IPluginV3QuickCore IPluginV3QuickRuntime
    """,
    "profile": "IOptimizationProfile",
    "timing_cache": "ITimingCache TimingCacheKey TimingCacheValue",
    "tensor": "ITensor",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "refitter": "Refitter",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig ISerializationConfig",
    "weights": "Weights",
}

# Exported name -> module of this package that defines it.
HOMES: dict[str, str] = {name: module for module, names in _ROWS.items() for name in names.split()}

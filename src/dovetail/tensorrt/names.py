"""What of TensorRT's API is left out, and why. Names of both lists that exist here anyway are readable; using them fails.

The union of all names, 8.2 to 11.1, is data of the tests, which count what is exposed and what is exercised.
"""

from __future__ import annotations

_LEFT_OUT = {
    "there is no deep-learning accelerator": """
        Builder.max_DLA_batch_size Builder.num_DLA_cores DeviceType.DLA EngineCapability.DLA_STANDALONE EngineCapability.SAFE_DLA
        IBuilderConfig.DLA_core IBuilderConfig.can_run_on_DLA MemoryPoolType.DLA_GLOBAL_DRAM MemoryPoolType.DLA_LOCAL_DRAM
        MemoryPoolType.DLA_MANAGED_SRAM OnnxParserFlag.ADJUST_FOR_DLA OnnxParserFlag.REPORT_CAPABILITY_DLA
        OnnxParserFlag.ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA Runtime.DLA_core Runtime.num_DLA_cores
        TensorFormat.DLA_HWC4 TensorFormat.DLA_LINEAR
    """,
    "there is no safety runtime": """
        BuilderFlag.SAFETY_SCOPE EngineCapability.SAFETY EngineCapability.SAFE_GPU
    """,
    "there is one runtime, neither lean nor dispatching": """
        BuilderFlag.EXCLUDE_LEAN_RUNTIME Runtime.load_runtime SerializationFlag.EXCLUDE_LEAN_RUNTIME
    """,
    "collectives of several devices are not supported": """
        CollectiveOperation CollectiveOperation.ALL_GATHER CollectiveOperation.ALL_REDUCE CollectiveOperation.ALL_TO_ALL
        CollectiveOperation.BROADCAST CollectiveOperation.GATHER CollectiveOperation.REDUCE CollectiveOperation.REDUCE_SCATTER
        CollectiveOperation.SCATTER CollectiveOperation.name CollectiveOperation.value IAttention.num_ranks IDistCollectiveLayer
        IExecutionContext.set_communicator ILayer.num_ranks INetworkDefinition.add_dist_collective LayerType.DIST_COLLECTIVE
        PreviewFeature.MULTIDEVICE_RUNTIME_10_16 ReduceOperation.NONE
    """,
    "plugin libraries in C++ link against libnvinfer": """
        IBuilderConfig.plugins_to_serialize IPluginRegistry.deregister_library IPluginRegistry.load_library
        OnnxParser.get_used_vc_plugin_libraries
    """,
}

# Name -> why it does not count. What clients read back (a number of cores, a value of an enum) may exist all the same.
LEFT_OUT: dict[str, str] = {name: why for why, names in _LEFT_OUT.items() for name in names.split()}

# Name -> what to use instead; reading one raises AttributeError with these words.
ABSENT: dict[str, str] = {
    **dict.fromkeys(
        ("CaffeParser", "IBlobNameToTensor", "ICaffePluginFactoryV2", "FieldCollection", "FieldMap"),
        "the Caffe parser ended with TensorRT 8; convert the model to ONNX and use OnnxParser",
    ),
    **dict.fromkeys(("UffParser",), "the UFF parser ended with TensorRT 8; convert the model to ONNX and use OnnxParser"),
    "shutdown_protobuf_library": "it ended with TensorRT 8; there is nothing to shut down",
    **dict.fromkeys(("IPlugin", "IPluginFactory"), "they ended with TensorRT 7; use IPluginV3 or IPluginV2DynamicExt"),
    "IDistCollectiveLayer": LEFT_OUT["IDistCollectiveLayer"],
}

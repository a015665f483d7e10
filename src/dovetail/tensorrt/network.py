"""`INetworkDefinition`: all that a network can be asked to hold."""

from __future__ import annotations

from dovetail.tensorrt.layers.attention import AddAttention
from dovetail.tensorrt.layers.checks import AddChecks
from dovetail.tensorrt.layers.conditional import AddConditionals
from dovetail.tensorrt.layers.contraction import AddContractions
from dovetail.tensorrt.layers.convolution import AddConvolutions
from dovetail.tensorrt.layers.filling import AddFilling
from dovetail.tensorrt.layers.gathering import AddGathering
from dovetail.tensorrt.layers.loop import AddLoops
from dovetail.tensorrt.layers.movement import AddMovement
from dovetail.tensorrt.layers.normalization import AddNormalization
from dovetail.tensorrt.layers.onnx_node import AddNodes
from dovetail.tensorrt.layers.plugin import AddPlugins
from dovetail.tensorrt.layers.pointwise import AddPointwise
from dovetail.tensorrt.layers.pooling import AddPooling
from dovetail.tensorrt.layers.quantization import AddQuantization
from dovetail.tensorrt.layers.recurrent import AddRecurrent
from dovetail.tensorrt.layers.reduction import AddReductions
from dovetail.tensorrt.layers.sampling import AddSampling
from dovetail.tensorrt.layers.slicing import AddSlicing
from dovetail.tensorrt.layers.suppression import AddSuppression
from dovetail.tensorrt.layers.transformer import AddTransformers


class INetworkDefinition(
    AddConvolutions,
    AddPooling,
    AddPointwise,
    AddContractions,
    AddReductions,
    AddMovement,
    AddSlicing,
    AddGathering,
    AddSampling,
    AddChecks,
    AddConditionals,
    AddFilling,
    AddLoops,
    AddNormalization,
    AddPlugins,
    AddQuantization,
    AddSuppression,
    AddAttention,
    AddTransformers,
    AddRecurrent,
    AddNodes,
):
    """A network that a builder makes engines of; made by `Builder.create_network`.

    Failures give None and a message to the logger; arguments of wrong types raise TypeError.
    """

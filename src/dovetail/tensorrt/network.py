"""`INetworkDefinition`: all that a network can be asked to hold."""

from __future__ import annotations

from dovetail.tensorrt.layers.contraction import AddContractions
from dovetail.tensorrt.layers.convolution import AddConvolutions
from dovetail.tensorrt.layers.gathering import AddGathering
from dovetail.tensorrt.layers.movement import AddMovement
from dovetail.tensorrt.layers.onnx_node import AddNodes
from dovetail.tensorrt.layers.pointwise import AddPointwise
from dovetail.tensorrt.layers.pooling import AddPooling
from dovetail.tensorrt.layers.reduction import AddReductions
from dovetail.tensorrt.layers.sampling import AddSampling
from dovetail.tensorrt.layers.slicing import AddSlicing


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
    AddNodes,
):
    """A network that a builder makes engines of; made by `Builder.create_network`.

    Failures give None and a message to the logger; arguments of wrong types raise TypeError.
    """

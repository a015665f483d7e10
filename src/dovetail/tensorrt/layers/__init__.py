"""The layers of `INetworkDefinition` by family: a class each, and the `add_*` methods that make them."""

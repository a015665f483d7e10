"""torch.compile(model, backend="dovetail"): captured graphs as engines."""

import numpy as np
import pytest
import torch
from torch import nn

from dovetail.api.compile_backend import dovetail as backend
from tests.torch.torch_models import Halves

FAST = {"tune": False, "verify": "off"}


def tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)


def small_cnn() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers).eval()


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-4, atol=1e-5)


def test_torch_knows_the_backend_by_name() -> None:
    assert "dovetail" in torch._dynamo.list_backends(exclude_tags=())
    model = nn.Linear(4, 3).eval()
    with torch.no_grad():
        close(torch.compile(model, backend="dovetail", options=FAST)(tensor(2, 4)), model(tensor(2, 4)))


def test_a_cnn_at_several_sizes_and_with_weights_changed_in_place() -> None:
    model = small_cnn()
    fast = torch.compile(model, backend=backend, options=FAST)
    with torch.no_grad():
        for batch in (2, 5, 7):  # the second is compiled for all sizes, the third takes that
            x = tensor(batch, 3, 9, 9, seed=batch)
            close(fast(x), model(x))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
        model[5].weight.mul_(2)
        model[0].weight.add_(0.5)
        model[1].running_mean.add_(1)
        close(fast(x), model(x))
        model.load_state_dict({name: t + 1 if t.is_floating_point() else t for name, t in model.state_dict().items()})
        close(fast(x), model(x))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_graph_break_gives_two_engines_and_inputs_pass_through() -> None:
    model = Halves().eval()
    with torch.inference_mode():
        x = tensor(3, 8)
        got = torch.compile(model, backend=backend, options=FAST)(x)
        for a, b in zip(got, model(x), strict=True):
            close(a, b)
        assert got[2] is x
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_layer_with_padding(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first, activation="gelu").eval()
    padding = torch.tensor([[False] * 6 + [True] * 2, [False] * 8])

    def run(x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return layer(x, src_key_padding_mask=padding)

    with torch.no_grad():
        x = tensor(2, 8, 32)
        close(torch.compile(run, backend=backend, options=FAST)(x, padding)[:, :6], run(x, padding)[:, :6])
        alone = torch.compile(layer, backend=backend, options=FAST)
        close(alone(x), layer(x))


def test_training_is_refused() -> None:
    model = small_cnn()
    with pytest.raises(Exception, match="gradients are wanted, but an engine computes none"):
        torch.compile(model, backend=backend, options=FAST)(tensor(2, 3, 9, 9))
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(Exception, match=r"training mode|in place"):
        torch.compile(small_cnn().train(), backend=backend, options=FAST)(tensor(2, 3, 9, 9))
    torch._dynamo.reset()
    dropping = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    with torch.no_grad(), pytest.raises(Exception, match=r"training mode, expected evaluation mode: call model\.eval"):
        torch.compile(dropping, backend=backend, options=FAST)(tensor(2, 4))


def test_graphs_that_cannot_be_built_fail_or_fall_back_as_told() -> None:
    def writes(x: torch.Tensor) -> torch.Tensor:
        return x.add_(1) * 2

    with pytest.raises(Exception, match=r"writes into .* in place"):
        torch.compile(writes, backend=backend, options=FAST)(tensor(3))
    torch._dynamo.reset()
    x = tensor(3)
    with pytest.warns(UserWarning, match="runs in PyTorch: torch.compile: the graph writes into"):
        y = torch.compile(writes, backend=backend, options={**FAST, "fallback": True})(x)
    close(y, (tensor(3) + 1) * 2)
    close(x, tensor(3) + 1)


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(Exception, match=r"got the option 'presicion', expected .*did you mean 'precision'"):
        torch.compile(torch.sin, backend=backend, options={"presicion": "fp16"})(tensor(3))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="got mode='max-autotune'"):
        torch.compile(torch.sin, backend=backend, mode="max-autotune")(tensor(3))


def test_results_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dovetail.api import compile_backend

    monkeypatch.setattr(compile_backend._Runner, "_tensor", lambda self, value: torch.from_numpy(value + 1))
    with torch.no_grad(), pytest.raises(Exception, match=r"result 0 of the engine differs from PyTorch's by"):
        torch.compile(nn.Linear(4, 3), backend=backend, options=FAST)(tensor(2, 4))

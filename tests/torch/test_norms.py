"""Batch norms of models with random weights get statistics that keep values in scale."""

import torch
from torch import nn

from dovetail.export.torch_weights import settle_norms
from tests.torch.torch_models import Net, Tied


def test_values_come_out_normal_and_modes_and_momentum_stay() -> None:
    torch.manual_seed(0)
    module = Net().train()
    module.more.eval()
    before = [(m.training, getattr(m, "momentum", None)) for m in module.modules()]
    x = torch.ones(1, 3, 8, 8)
    assert settle_norms(module, (x,), {}, 0)
    assert [(m.training, getattr(m, "momentum", None)) for m in module.modules()] == before
    kept = {n: t.clone() for n, t in module.state_dict().items()}
    module.eval()
    with torch.no_grad():
        y = module.stem[1](module.stem[0](torch.randn(64, 3, 8, 8)))
    assert abs(float(y.std()) - 1) < 0.2
    assert settle_norms(module, (x,), {}, 0)
    assert all(torch.equal(kept[n], t) for n, t in module.state_dict().items() if n.endswith(("mean", "var")))


def test_what_does_not_run_on_noise_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    assert not settle_norms(module, (torch.ones(1, 5, 8, 8),), {}, 0)
    assert not settle_norms(Tied(), (torch.tensor([1]),), {}, 0)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert module.training

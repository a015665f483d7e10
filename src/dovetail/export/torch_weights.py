"""Weights of a PyTorch model from a file: a state dict of torch.save, or safetensors; nothing in it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dovetail.core.errors import UsageError
from dovetail.core.log import logger
from dovetail.core.optional import require
from dovetail.core.text import did_you_mean, first_line

_log = logger("export")
_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_TOLD = 10


def load_weights(module: Any, path: Path) -> int:
    """Give a module the weights of a file; returns their number.

    Prefixes of DataParallel and torch.compile vanish, and so does the key that checkpoints keep a state dict under.

    Raises:
        UsageError: the file holds something else, or names and shapes that do not fit; all of them are named.
    """
    found = _read(path)
    wanted = module.state_dict()
    lacking = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    strange = [n for n in found if n not in wanted]
    shapes = [n for n, t in found.items() if n in wanted and tuple(t.shape) != tuple(wanted[n].shape)]
    count = len(lacking) + len(strange) + len(shapes)
    if count:
        # To look for like names takes long where nothing fits: only for those that are told.
        lines = [f"got no {n!r}{did_you_mean(n, found.keys() - wanted.keys())}" for n in lacking[:_TOLD]]
        lines += [f"got {n!r}, which the model does not have{did_you_mean(n, wanted.keys() - found.keys())}" for n in strange[:_TOLD]]
        lines += [f"got {n!r} of shape {list(found[n].shape)}, expected {list(wanted[n].shape)}" for n in shapes[:_TOLD]]
        more = f"\n  and {count - _TOLD} more" if count > _TOLD else ""
        raise UsageError(
            f"--weights: {path} does not fit {type(module).__name__}:\n  " + "\n  ".join(lines[:_TOLD]) + more
            + "\ncheck that it is a checkpoint of this very model, and its options (--arg num_classes=10)"
        )  # fmt: skip
    module.load_state_dict(found, strict=False)
    return len(found)


def settle_norms(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int) -> bool:
    """Give batch norms with initial statistics those of seeded noise; returns whether there were any.

    With random weights the initial ones (mean 0, variance 1) let values vanish or explode within a few layers, and what is left says
    nothing about accuracy. Only inputs of floats can be noise; a module that fails on them stays as it is.
    """
    torch = require("torch", "torch", "exporting from PyTorch")
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    given = [*args, *kwargs.values()]
    if not norms or not all(isinstance(t, torch.Tensor) and t.is_floating_point() and t.ndim for t in given):
        return False
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Any) -> Any:
        return torch.randn((4, *tensor.shape[1:]), generator=generator, dtype=torch.float32).to(tensor.dtype)

    before = [(m, m.training, m.momentum, {k: v.clone() for k, v in m.state_dict().items()}) for m in norms]
    modes = [(m, m.training) for m in module.modules()]
    settled = False
    try:
        module.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None
            norm.reset_running_stats()
        with torch.no_grad():
            module(*map(noise, args), **{k: noise(t) for k, t in kwargs.items()})
        settled = True
    except Exception as error:  # inputs that do not fit are reported, with their place, by the export itself
        _log.debug("batch norms keep their initial statistics: %s", error)
    finally:
        for norm, _, momentum, state in before:
            norm.momentum = momentum
            if not settled:
                norm.load_state_dict(state)
        for part, training in modes:
            part.training = training
    return settled


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"--weights: there is no file {str(path)!r}, expected a .pt, .pth, .bin or .safetensors, random, or pretrained")
    if path.suffix == ".safetensors":
        reader = require("safetensors.torch", "torch", "reading safetensors into PyTorch")
        try:
            state = reader.load_file(str(path))
        except Exception as error:  # safetensors has an error of its own
            raise UsageError(f"--weights: {path} is no safetensors file ({error})") from error
    else:
        torch = require("torch", "torch", "exporting from PyTorch")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle's, zip's and torch's own
            reason = first_line(error)
            raise UsageError(
                f"--weights: {path} cannot be read as a state dict ({reason}); write it with torch.save(model.state_dict(), …): a whole "
                "pickled module would run code, so it is not loaded"
            ) from error
    for key in _KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state or not all(hasattr(t, "shape") for t in state.values()):
        raise UsageError(f"--weights: {path} holds a {type(state).__name__}, expected tensors by name: torch.save(model.state_dict(), …)")
    names = dict(state)
    for prefix in _PREFIXES:
        if all(n.startswith(prefix) for n in names):
            names = {n.removeprefix(prefix): t for n, t in names.items()}
    return names

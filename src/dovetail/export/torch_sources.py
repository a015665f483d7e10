"""Models of PyTorch by name: torchvision:NAME, timm:NAME, transformers:CONFIG, package.module:callable, file.py:callable, saved.pt2."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovetail.core.errors import Error, UsageError
from dovetail.core.optional import require
from dovetail.core.python_files import module_name, run_file
from dovetail.core.text import did_you_mean, first_line
from dovetail.export.torch_inputs import InputSpec, input_spec
from dovetail.export.torch_weights import load_weights
from dovetail.plugins.registry import loaded_file

_WHY = "exporting from PyTorch"
_WITH_BACKBONE = ("fasterrcnn", "fcos", "keypointrcnn", "maskrcnn", "retinanet", "ssd", "deeplab", "fcn", "lraspp")
_UNFIT = (
    "torchvision and torch are not built for each other; install the pair that belongs together, such as: "
    "pip install --force-reinstall 'dovetail[vision]', or both from the same index of PyTorch"
)
KINDS = "torchvision:NAME, timm:NAME, transformers:CONFIG, package.module:callable, file.py:callable, or saved.pt2"


@dataclass
class Loaded:
    """A model that a spec names.

    Attributes:
        model: nn.Module or ExportedProgram.
        specs: inputs that are known to fit; empty where nobody knows.
        args: example inputs that came with it, or None.
        notes: where its weights come from.
        random: its weights are random.
    """

    model: Any
    specs: list[InputSpec] = field(default_factory=list)
    args: Any = None
    notes: list[str] = field(default_factory=list)
    random: bool = False


def load(
    spec: str, *, weights: str | None = None, options: Mapping[str, Any] | None = None, model_class: str | None = None, seed: int = 0
) -> Loaded:
    """The model that a spec names, on the CPU.

    Args:
        spec: see `KINDS`.
        weights: a file, "random", or a name of pretrained weights, which may need the network; default: random for named models.
        options: keyword arguments of the model's function or class, or fields of a transformers config.
        model_class: of transformers, such as "BertForSequenceClassification"; default: AutoModel's choice.
        seed: of random weights.

    Raises:
        UsageError: nothing of that name (with the nearest), no model, weights that do not fit, a package that is missing.
    """
    kind, _, name = spec.partition(":")
    if not name and not spec.endswith(".pt2"):
        raise UsageError(f"got {spec!r}, expected {KINDS}" + _file_hint(spec))
    torch = require("torch", "torch", _WHY)
    given = dict(options or {})
    if model_class is not None and kind != "transformers":
        raise UsageError(f"--model-class: got it for {spec!r}, expected a transformers:CONFIG")
    is_file = weights is not None and Path(weights).suffix in (".pt", ".pth", ".bin", ".safetensors")
    named = None if is_file or weights in (None, "random") else weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.endswith(".pt2"):
            loaded = _program(Path(spec), weights, given)
        elif kind in _NAMED and name:
            loaded = _NAMED[kind](name, named, given, model_class)
        else:
            if named is not None:
                raise UsageError(f"--weights: got {weights!r} for {spec!r}, expected a file; the callable makes its weights")
            loaded = _from_callable(kind, name, given)
    if is_file:
        count = load_weights(loaded.model, Path(str(weights)))
        loaded.notes.append(f"weights: {count} from {weights}")
    elif kind in _NAMED and named is None and not loaded.notes:
        loaded.notes.append(f"weights: random, seed {seed}; --weights FILE gives others")
        loaded.random = True
    return loaded


def _file_hint(spec: str) -> str:
    path = Path(spec)
    if path.suffix in (".pt", ".pth", ".bin"):
        return "; a file of weights has no model in it: name the model, and give the file as --weights"
    if path.suffix in (".onnx", ".plan"):
        return f"; {'an ONNX model is' if path.suffix == '.onnx' else 'an engine is made of'} what export writes: nothing to do here"
    if path.suffix == ".py":
        return f"; which callable of it, {spec}:NAME?"
    return "; of TensorFlow a SavedModel folder (with saved_model.pb in it), or a .keras, .h5, .pb or .tflite file"


# --- named models ------------------------------------------------------------------------------------------------------


def _torchvision(name: str, weights: str | None, options: Mapping[str, Any], model_class: str | None) -> Loaded:
    models = _import_torchvision()
    known = models.list_models()
    if name not in known:
        raise UsageError(f"torchvision has no model {name!r}{did_you_mean(name, known)}")
    entry = models.get_model_weights(name)
    chosen, notes = None, []
    if weights is not None:
        choices = [w.name for w in entry]
        wanted = "DEFAULT" if weights in ("pretrained", "DEFAULT") else weights
        if wanted != "DEFAULT" and wanted not in choices:
            raise UsageError(f"--weights: got {weights!r}, expected a file, random, pretrained, or of {name} {', '.join(choices)}")
        chosen = getattr(entry, wanted)
        notes.append(f"weights: torchvision's {chosen.name}")
    # Without this, detection and segmentation models fetch weights of their backbones.
    without_backbone = {"weights_backbone": None} if chosen is None and name.startswith(_WITH_BACKBONE) else {}
    model = _made(f"torchvision's {name}", lambda: models.get_model(name, weights=chosen, **without_backbone, **options))
    size = _crop(entry)
    return Loaded(model, [input_spec(f"x:f32[1,3,{size},{size}]")] if size else [], None, notes)


def _import_torchvision() -> Any:
    try:
        return require("torchvision.models", "vision", "exporting models of torchvision")
    except UsageError as error:
        cause = error.__cause__
        if isinstance(cause, RuntimeError) and "torchvision::" in str(cause):
            torch = require("torch", "torch", _WHY)
            raise UsageError(
                f"torchvision is installed, but its compiled operators do not load with torch {torch.__version__} ({cause}): {_UNFIT}"
            ) from cause
        raise


def _crop(entry: Any) -> int | None:
    """The size of images that a torchvision model was trained on; None where its weights do not say."""
    for weights in entry:
        size = getattr(weights.transforms(), "crop_size", None)
        if size:
            return int(size[0])
    return None


def _timm(name: str, weights: str | None, options: Mapping[str, Any], model_class: str | None) -> Loaded:
    try:
        timm = require("timm", "timm", "exporting models of timm")
    except UsageError as error:
        if "torchvision::" in str(error):  # timm imports it
            raise UsageError(f"exporting models of timm: timm does not import ({error.__cause__}): {_UNFIT}") from error
        raise
    if name not in timm.list_models(name, include_tags=True) and not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    if weights not in (None, "pretrained"):
        raise UsageError(f"--weights: got {weights!r}, expected a file, random, or pretrained; timm has them as {name}.TAG")
    model = _made(f"timm's {name}", lambda: timm.create_model(name, pretrained=weights is not None, **options))
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    notes = ["weights: timm's pretrained"] if weights else []
    return Loaded(model, [input_spec(f"x:f32[1,{','.join(map(str, size))}]")], None, notes)


def _transformers(name: str, weights: str | None, options: Mapping[str, Any], model_class: str | None) -> Loaded:
    library = require("transformers", "transformers", "exporting models of transformers")
    path = Path(name)
    folder = path if path.is_dir() else None
    if weights not in (None, "pretrained") or (weights == "pretrained" and folder is None):
        raise UsageError(f"--weights: got {weights!r}, expected a file or random; weights beside a config.json are taken from there")
    defaults = {"use_cache": False} | dict(options)
    if path.suffix == ".json" or folder is not None:
        file = path / "config.json" if folder is not None else path
        try:
            data = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"transformers:{name}: {file} is no JSON ({error}), expected a config that save_pretrained wrote") from error
        kind = data.pop("model_type", None)
        if kind not in library.CONFIG_MAPPING:
            raise UsageError(f"transformers:{name}: got model_type {kind!r}{did_you_mean(str(kind), list(library.CONFIG_MAPPING))}")
        config = _made(f"the config {file}", lambda: library.AutoConfig.for_model(kind, **(data | defaults)))
    else:
        if name not in library.CONFIG_MAPPING:
            raise UsageError(
                f"transformers has no model type {name!r}{did_you_mean(name, list(library.CONFIG_MAPPING))}; or give a config.json"
            )
        config = _made(f"transformers' {name}", lambda: library.AutoConfig.for_model(name, **defaults))
    maker = library.AutoModel if model_class is None else getattr(library, model_class, None)
    if maker is None:
        near = [n for n in dir(library) if n.lower().startswith(config.model_type.replace("_", "").lower()) and "For" in n]
        raise UsageError(f"--model-class: transformers has no {model_class!r}{did_you_mean(str(model_class), near)}")
    notes = []
    if folder is not None and any(folder.glob("*.safetensors")) and weights != "random":
        model = _made(f"the model in {folder}", lambda: maker.from_pretrained(str(folder), config=config, local_files_only=True))
        notes.append(f"weights: those in {folder}")
    else:
        build = maker.from_config if hasattr(maker, "from_config") else maker
        model = _made(f"transformers' {config.model_type}", lambda: build(config))
    return Loaded(model, _transformers_inputs(model, config), None, notes)


def _transformers_inputs(model: Any, config: Any) -> list[InputSpec]:
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return [input_spec(f"pixel_values:f32[1,{getattr(vision, 'num_channels', 3)},{height},{width}]")]
    if main == "input_values":
        return [input_spec("input_values:f32[1,16000]")]
    if main == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", 1500))
        mel = int(getattr(config, "num_mel_bins", 80))
        first = [input_spec(f"input_features:f32[1,{mel},{frames}]")]
    elif main == "input_ids":
        first = [input_spec("input_ids:i64[2,16]"), input_spec("attention_mask:i64[2,16]")]
    else:
        return []
    if getattr(config, "is_encoder_decoder", False):
        first.append(input_spec(f"decoder_input_ids:i64[{first[0].shape[0]},8]"))
    return first


_NAMED: dict[str, Callable[[str, str | None, Mapping[str, Any], str | None], Loaded]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}


# --- the user's own ----------------------------------------------------------------------------------------------------


def _program(path: Path, weights: str | None, options: Mapping[str, Any]) -> Loaded:
    torch = require("torch", "torch", _WHY)
    if options or weights is not None:
        raise UsageError(f"{path}: got --arg or --weights, expected neither: a program has its own")
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file, expected what torch.export.save wrote")
    try:
        return Loaded(torch.export.load(path), notes=[f"weights: those in {path}"])
    except Exception as error:  # zip's, json's and torch's own
        reason = first_line(error)
        raise UsageError(f"{path}: cannot be read ({reason}), expected what torch.export.save wrote, by this version of PyTorch") from error


def _from_callable(where: str, name: str, options: Mapping[str, Any]) -> Loaded:
    torch = require("torch", "torch", _WHY)
    scope = _run_file(Path(where)) if where.endswith(".py") else _import(where)
    found = scope
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith("_")]
            raise UsageError(f"{where} has no {part!r}{did_you_mean(part, public)}")
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module | torch.export.ExportedProgram):
        made = found
    elif callable(found):
        made = _made(f"{where}:{name}", lambda: found(**options))
    else:
        raise UsageError(f"{where}:{name}: got a {type(found).__name__}, expected a module, or a function or class that gives one")
    args = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], torch.nn.Module | torch.export.ExportedProgram):
        made, args = made
    if not isinstance(made, torch.nn.Module | torch.export.ExportedProgram):
        raise UsageError(
            f"{where}:{name} returned a {type(made).__name__}, expected a torch.nn.Module, an ExportedProgram, or (module, example inputs)"
        )
    return Loaded(made, args=args, notes=[f"weights: as {where}:{name} makes them"])


def _import(name: str) -> Any:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"got {name!r}, which is no module that can be imported here; expected {KINDS}") from error
        raise UsageError(f"{name}: importing it failed ({error})") from error
    except Exception as error:  # whatever the user's module raises
        raise UsageError(f"{name}: importing it failed ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)


def _run_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; expected {KINDS}")
    known = loaded_file(path)
    if known is not None:  # named with --plugins too: what it defines is defined once
        return known
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        return run_file(path, module_name("export", path))
    except Error:
        raise
    except Exception as error:  # whatever the user's file raises
        raise UsageError(f"{path}: running it failed ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)


def _made(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Error:
        raise
    except OSError as error:
        raise UsageError(f"{what}: its weights or files cannot be fetched ({error}); give --weights FILE, or --weights random") from error
    except Exception as error:  # whatever the model's own code raises
        root: BaseException = error
        while (deeper := root.__cause__ or root.__context__) is not None:
            root = deeper
        cause = "" if root is error else f", because of {type(root).__name__}: {root}"
        hint = _UNFIT if "torchvision::" in str(root) else "options are given as --arg NAME=VALUE"
        raise UsageError(f"{what}: making it failed ({type(error).__name__}: {error}{cause}); {hint}") from error

"""Load the weights of a checkpoint in its original format, strictly: every weight, and no other.

transformers reads the shards lazily and converts one tensor at a time (``WeightRenaming`` and
``WeightConverter``), so loading needs memory for about one copy of the weights. What it only warns about is an error
here: a model with a missing weight would run on random numbers.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from vlmprobe.adapter.loading import ignored
from vlmprobe.errors import CheckpointError, HubError, VlmprobeError
from vlmprobe.model_registry.original import quantised

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, WeightConverter
    from transformers.core_model_loading import WeightRenaming

__all__ = ["PREPROCESSOR", "load_weights", "local_folder", "name_weights", "read_json", "weight_files"]

Model = TypeVar("Model", bound="PreTrainedModel")

PREPROCESSOR = "preprocessor_config.json"
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Data only. conversation.py is the one file of Python code, fetched by this name and no pattern: InternVL states its
# default system texts nowhere else. It is parsed as text, and never imported.
HUB_PATTERNS = ("*.json", "tokenizer.model", "merges.txt", "*.jinja", "*.safetensors", "conversation.py")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")
LISTED = 8  # names shown in an error before "and n more"


def local_folder(
    checkpoint: str | Path, *, revision: str | None = None, options: MutableMapping[str, Any] | None = None
) -> Path:
    """The local folder of a checkpoint, downloaded from the hub if necessary (data files only).

    ``.bin`` shards are downloaded only if the repository has no safetensors.

    Args:
        checkpoint: a local folder or a hub id.
        revision: commit, branch or tag.
        options: further arguments of ``from_pretrained``; those of the download are removed from it.

    Raises:
        HubError: there is no such folder, and no such repository can be reached.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options} if options is not None else {}
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        fetch = partial(snapshot_download, str(checkpoint), revision=revision, **hub)
        found = Path(fetch(allow_patterns=list(HUB_PATTERNS)))
        if not any(found.glob("*.safetensors")):
            fetch(allow_patterns=["pytorch_model*.bin"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise HubError(
            f"{checkpoint!r} is neither a local folder nor a repository that can be read from the hub: {error}"
        ) from error
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, or is not a JSON object.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; download the checkpoint again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{path} contains a JSON {type(held).__name__}, not an object.")
    return held


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, safetensors before ``.bin``, each checked to exist and be complete.

    Raises:
        CheckpointError: no weights, a missing shard, a damaged file, or an index that points outside the folder.
    """
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            files = [folder / single]
        elif (folder / index).is_file():
            files = _shards(folder, index)
        else:
            continue
        for file in files:
            _check_readable(file)
        return files
    raise CheckpointError(
        f"{folder} holds no weights: expected one of {', '.join((*SINGLE_FILES, *INDEX_FILES))}. "
        "Download the weights, or point to the folder that has them."
    )


def load_weights(
    model_class: type[Model],
    folder: Path,
    config: PreTrainedConfig,
    *,
    conversions: Sequence[WeightRenaming | WeightConverter] = (),
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    ignore_unexpected: Iterable[str] = (),
    ignore_weights: str | Iterable[str] = (),
    **options: Any,
) -> Model:
    """Build ``model_class(config)`` and load every weight of ``folder`` into it, in evaluation mode.

    Weights that ``config.original`` says are quantised stay so, and are read by the libraries that transformers uses.

    Args:
        model_class: the class to build. Its module may lie outside transformers.
        folder: a local checkpoint folder.
        config: the translated configuration; ``config.json`` is not read here.
        conversions: map the checkpoint's names and layouts to those of ``model_class``; the same for every
            checkpoint of the class (an operation receives the configuration).
        dtype: ``"auto"`` is the type in which the weights are stored.
        device_map: as in ``from_pretrained``.
        ignore_unexpected: prefixes of weights that the checkpoint may contain and the model does not use.
        ignore_weights: further prefixes, given by the user.
        **options: further arguments of ``from_pretrained``.

    Raises:
        CheckpointError: a missing or damaged file, weights that are missing, unexpected or of another shape, or
            quantised weights that cannot be read, for instance since a library is not installed.
    """
    files = weight_files(folder)
    name_weights(model_class, conversions)
    original = (getattr(config, "original", None) or {}).get("config.json", {})
    if told := quantised.stored_quantisation(original):
        on_cpu = str(device_map) == "cpu" or not torch.cuda.is_available()
        quantised.prepare(config, told, _weight_names(files), conversions, str(folder), on_cpu=on_cpu)
    if dtype == "auto":
        config = copy.deepcopy(config)
        config.dtype = None  # so that the stored weights determine it, not the training dtype in config.json
    options = {**options, "trust_remote_code": False, "weights_only": True}
    load: Any = model_class.from_pretrained  # typed as returning the model alone
    try:
        model, info = load(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
            **options,
        )
    except (torch.OutOfMemoryError, VlmprobeError):
        raise
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"The weights in {folder} cannot be loaded: {error}") from error
    _check_complete(folder, model_class.__name__, info, (*ignore_unexpected, *ignored(ignore_weights)))
    quantised.settle(model)
    return model


def name_weights(model_class: type, conversions: Sequence[WeightRenaming | WeightConverter]) -> None:
    """Tell transformers how names and layouts of the checkpoint become those of ``model_class``, and back."""
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    if conversions:
        register_checkpoint_conversion_mapping(model_class.__name__, list(conversions), overwrite=True)


def _shards(folder: Path, index: str) -> list[Path]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index} has no 'weight_map' that says which shard holds which weight.")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{folder / index} points outside its folder: {_listed(outside)}.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight shards: {_listed(missing)}. Download them."
        )
    return [folder / name for name in names]


def _check_readable(file: Path) -> None:
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, framework="pt"):  # reads the header and compares it with the file's length
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated ({error}); download it again.") from error


def _weight_names(files: Iterable[Path]) -> list[str]:
    names: list[str] = []
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as held:
                names += held.keys()
        else:
            names += torch.load(file, map_location="meta", weights_only=True)  # no data
    return names


def _check_complete(folder: Path, model: str, info: Mapping[str, Any], ignored: tuple[str, ...]) -> None:
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(ignored)]
    problems = []
    if info["missing_keys"]:
        problems.append(f"{len(info['missing_keys'])} missing: {_listed(info['missing_keys'])}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_listed(unexpected)}")
    if info["mismatched_keys"]:
        shapes = [f"{name} {tuple(got)} for {tuple(due)}" for name, got, due in info["mismatched_keys"]]
        problems.append(f"{len(shapes)} of another shape: {_listed(shapes)}")
    if problems:
        leave_out = ", or pass ignore_weights= with how the names begin that may stay unread" if unexpected else ""
        raise CheckpointError(
            f"The weights in {folder} do not fit {model} as config.json describes it; {'; '.join(problems)}. "
            f"Nothing was loaded. Check that the weights and config.json come from one checkpoint{leave_out}."
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - LISTED
    return ", ".join(ordered[:LISTED]) + (f" and {more} more" if more > 0 else "")

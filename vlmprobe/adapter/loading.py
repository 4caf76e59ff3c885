"""Load a checkpoint through transformers, strictly: every weight that the model needs, and none that nothing reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmprobe.errors import CheckpointError

__all__ = ["ignored", "load_native", "loader_of", "remember_loader", "require_every_weight"]

# Buffers that older versions saved and that are computed from the config; transformers knows some of them.
COMPUTED = ("inv_freq", "position_ids", "cos_cached", "sin_cached", "masked_bias", "embed_positions.weights")
LISTED = 8  # names, or parts of a model, that an error lists
LOADER = "vlmprobe_adapter"  # attribute of a model: the class of the adapter that loaded it


def load_native(
    checkpoint: str | Path, *, revision: str | None = None, ignore_weights: str | Iterable[str] = (), **options: Any
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and the processor of a checkpoint that transformers reads.

    Args:
        checkpoint: a local folder or a hub id.
        revision: commit, branch or tag of a hub checkpoint.
        ignore_weights: how the names of weights begin that may stay unread, such as ``"mtp."``.
        **options: further arguments of ``from_pretrained`` (``dtype``, ``device_map``, ...).

    Raises:
        CheckpointError: if weights are missing, do not fit, or are read by nothing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint, revision=revision, output_loading_info=True, trust_remote_code=False, **options
        )
        processor = AutoProcessor.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: {error}") from error
    model, report = loaded
    require_every_weight(str(checkpoint), model, report, ignored(ignore_weights))
    return model.eval(), processor


def ignored(given: str | Iterable[str]) -> tuple[str, ...]:
    """The argument ``ignore_weights`` as a tuple.

    Raises:
        TypeError: if it holds anything but strings that say something.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(each, str) and each for each in names):
        raise TypeError(f"ignore_weights takes beginnings of weight names, such as ('mtp.',), not {given!r}")
    return names


def require_every_weight(checkpoint: str, model: Any, report: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> None:
    """Reject a checkpoint if the model lacks a weight, or nothing reads one.

    What transformers, or the model's class, declares as superfluous does not count, nor do buffers that are computed
    and a second copy of a tied weight.

    Args:
        checkpoint: its name.
        model: the model that was loaded.
        report: transformers' ``loading_info``.
        ignore: how the names of weights begin that may stay unread.

    Raises:
        CheckpointError: it lists both sides of names.
    """
    lacking = sorted(map(str, report.get("missing_keys") or ()))
    other_shape = sorted(map(str, report.get("mismatched_keys") or ()))
    copies = _ends(model)
    unread = [
        name
        for name in sorted(map(str, report.get("unexpected_keys") or ()))
        if not name.startswith(ignore) and _end(name) not in copies and not name.endswith(COMPUTED)
    ]
    if not (lacking or other_shape or unread):
        return
    sides = {
        "in the checkpoint, and read by nothing": _parts(unread, model),
        f"needed by {type(model).__name__}, and missing": lacking,
        "of another shape": other_shape,
    }
    told = "; ".join(f"{side}: {_listed(names)}" for side, names in sides.items() if names)
    raise CheckpointError(
        f"The weights of {checkpoint} do not fit its model ({told}). {' '.join(_remedies(unread, lacking, model))}"
    )


def _remedies(unread: list[str], lacking: list[str], model: Any) -> list[str]:
    kind = getattr(getattr(model, "config", None), "model_type", "this model")
    users = "vlmprobe never fills weights with random numbers: check that every shard was downloaded" if lacking else ""
    if unread:
        prefixes = tuple(_prefixes(unread, model))[:LISTED]
        users += "; " if users else ""
        users += (
            "check that config.json and weights are of one checkpoint. If the unread ones are of a part that you do "
            f"not probe (a draft head, an audio tower), load with ignore_weights={prefixes!r}, or with "
            f"{' '.join(f'--ignore-weights {each}' for each in prefixes)} on the command line"
        )
    found = [f"To use it: {users or 'check that config.json and weights are of one checkpoint'}."]
    if unread and lacking:
        found.append(
            f"To write an adapter for {kind}: if names on both sides mean the same weight, rename the modules in "
            "modeling.py, or the weights in load(); what the model does not use goes into "
            "_keys_to_ignore_on_load_unexpected of its class."
        )
    elif unread:
        found.append(
            f"To write an adapter for {kind}: implement what the weights are for, or, if it takes no part in the "
            "logits, name it in _keys_to_ignore_on_load_unexpected of the model's class."
        )
    return found


def _parts(unread: list[str], model: Any) -> list[str]:
    """Weights that nothing reads, by the part of the model that is unknown: ``mtp.* (12)``; a single one by name."""
    prefixes = _prefixes(unread, model)
    alone = {prefix: next(name for name in unread if name.startswith(prefix)) for prefix in prefixes}
    return [f"{prefix}* ({count})" if count > 1 else alone[prefix] for prefix, count in prefixes.items()]


def _prefixes(unread: Iterable[str], model: Any) -> Counter[str]:
    """The shortest beginnings of the names that no weight of the model has, and how many names begin so."""
    own = {prefix for name in model.state_dict() for prefix in _beginnings(name)}
    return Counter(next((each for each in _beginnings(name) if each not in own), name) for name in unread)


def _beginnings(name: str) -> list[str]:
    """``a.``, ``a.b.`` and ``a.b.c`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:length]) + "." for length in range(1, len(parts))] + [name]


def _ends(model: Any) -> set[str]:
    """Ends of the names of tied weights, ``lm_head.weight`` for one: a checkpoint may hold them more than once."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {_end(name) for pair in tied.items() for name in pair}


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def remember_loader(model: Any, adapter: type) -> None:
    """Note on a model which adapter loaded it, for :func:`loader_of`; a copy of the model keeps the note."""
    setattr(model, LOADER, adapter)


def loader_of(model: Any) -> Any:
    """The class of the adapter that loaded a model; None for one that vlmprobe did not load."""
    return vars(model).get(LOADER)

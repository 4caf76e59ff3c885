"""What sort of model a configuration describes, by the tasks that transformers has it do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["is_encoder_decoder", "why_no_probe"]

READS_IMAGES = "a probe takes models that read images"
NO_WORDS = "so it has no logits of words to probe"
SPEECH = ("SPEECH_SEQ_2_SEQ", "CTC", "RNNT", "TDT", "AUDIO_CLASSIFICATION", "AUDIO_XVECTOR")
SPEAKS = ("TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM")
FINDS = (  # what is said of a model that has several tasks is the first of them
    "OBJECT_DETECTION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "INSTANCE_SEGMENTATION",
    "MASK_GENERATION",
    "DEPTH_ESTIMATION",
    "KEYPOINT_DETECTION",
    "KEYPOINT_MATCHING",
    "IMAGE_TO_IMAGE",
)
ENCODES = ("ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE", "TEXT_ENCODING")
LABELS = ("SEMANTIC_SEGMENTATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "TIME_SERIES_PREDICTION")
WRITES = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM")
READS_MORE = ("vision", "visual", "image", "audio")  # in names of keys of a configuration, or of its parts
DEPTH = 3  # of parts of parts that are looked into


def why_no_probe(config: Mapping[str, Any]) -> str | None:
    """What a model is that cannot be probed, and why, to follow its name; None where transformers does not tell.

    Args:
        config: its ``config.json``.
    """
    import transformers

    kind = str(config.get("model_type"))
    named = config.get("architectures")
    if kind not in transformers.CONFIG_MAPPING:
        return None
    if isinstance(named, list) and not all(hasattr(transformers, str(each)) for each in named):
        return None  # somebody's own class on a configuration of transformers
    parts = [*_names(config), *_parts(transformers.CONFIG_MAPPING[kind])]
    reads = {word for word in READS_MORE if any(word in part for part in parts)}
    hears = reads <= {"audio"}
    if _does(kind, ("IMAGE_TEXT_TO_TEXT",)):
        if not is_encoder_decoder(config):
            return None
        return "is an encoder-decoder {}: its prompt is not in the sequence that is generated, so it has no logits."
    if hears and (_does(kind, SPEECH) or (reads and _does(kind, WRITES))):
        return f"is a model of speech or sound {{}}: {READS_IMAGES}."
    if hears and _does(kind, SPEAKS):
        return f"is a model that speaks {{}}: {READS_IMAGES}."
    if not reads and _does(kind, WRITES):
        return f"is a text-only model {{}}: {READS_IMAGES}."
    if _does(kind, (*WRITES, *SPEECH, *SPEAKS)):
        return None
    if not reads and _does(kind, ("MASKED_LM",)) and not _does(kind, LABELS):
        return f"is a masked language model {{}}, which fills gaps of a text: {READS_IMAGES}, and continue a prompt."
    return _without_head(kind)


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says, or its class in transformers, that the model is an encoder-decoder."""
    from transformers import CONFIG_MAPPING

    if config.get("is_encoder_decoder"):
        return True
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    return known and bool(getattr(CONFIG_MAPPING[str(kind)], "is_encoder_decoder", False))


def _without_head(kind: str) -> str | None:
    import transformers

    if task := next((task for task in FINDS if _does(kind, (task,))), None):
        what = f"a model for {_words(task)}"
    elif _does(kind, ENCODES):
        what = "an encoder"
    elif task := next((task for task in LABELS if _does(kind, (task,))), None):
        what = f"a model for {_words(task)}"
    elif transformers.CONFIG_MAPPING[kind] in transformers.MODEL_MAPPING and not _does(kind, ("MASKED_LM",)):
        what = "a model"
    else:
        return None
    return f"is {what} without a language head {{}}, {NO_WORDS}."


def _names(config: Mapping[str, Any], depth: int = DEPTH) -> list[str]:
    """The keys of a ``config.json``, and of the configurations inside it."""
    inner = [each for each in config.values() if isinstance(each, Mapping)] if depth else []
    return [*map(str, config), *(name for each in inner for name in _names(each, depth - 1))]


def _parts(config: Any, depth: int = DEPTH) -> list[str]:
    """The names of the parts of a configuration class, and of theirs."""
    parts = getattr(config, "sub_configs", None) or {}
    inner = [name for each in parts.values() for name in _parts(each, depth - 1)] if depth else []
    return [*map(str, parts), *inner]


def _words(task: str) -> str:
    return task.lower().replace("_", " ").replace("zero shot", "zero-shot").replace(" to ", "-to-")


def _does(kind: str, tasks: Iterable[str]) -> bool:
    """Whether transformers has a class for a model type and one of the tasks."""
    import transformers

    config = transformers.CONFIG_MAPPING[kind]
    return any(config in getattr(transformers, f"MODEL_FOR_{task}_MAPPING", ()) for task in tasks)

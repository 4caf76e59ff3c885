"""What other libraries document, as far as the package uses it: modules, which of their names, and where."""

from __future__ import annotations

__all__ = ["DOCUMENTED"]

Names = frozenset[str] | None  # None: any name without an underscore


def _of(library: str, modules: str, where: str = "API reference", names: Names = None) -> dict[str, tuple[Names, str]]:
    """Modules of a library: ``.`` is the library itself, ``*`` those that are named at run time."""
    return {library if each == "." else f"{library}.{each}": (names, where) for each in modules.split()}


# Of transformers only what it exports at its top, and what pages of its documentation take from elsewhere: its modules
# hold far more than the pages.
DOCUMENTED: dict[str, tuple[Names, str]] = {
    **_of("IPython", "display"),
    **_of("PIL", ". Image ImageDraw ImageFile ImageFilter ImageOps"),
    **_of("accelerate", "utils", "package reference: utility functions", frozenset({"align_module_device"})),
    **_of("anywidget", "."),
    **_of("filelock", "."),
    **_of("httpx", "."),
    **_of("huggingface_hub", "."),
    **_of("huggingface_hub", "dataclasses", "package reference, strict dataclasses", frozenset({"strict"})),
    **_of("huggingface_hub", "errors", "package reference, utilities: errors"),
    **_of("huggingface_hub", "utils", "package reference: progress bars", frozenset({"enable_progress_bars"})),
    **_of("jinja2", ". ext meta nodes", "API reference, and Extensions"),
    **_of("llguidance", ".", "README"),
    **_of("lm_eval", "models", "its docstring: where models are listed"),
    **_of("lm_eval", "api.model", "model guide", frozenset({"LM"})),
    **_of("lm_eval", "api.registry", "model guide", frozenset({"register_model"})),
    **_of("lmdeploy", "."),
    **_of("lmms_eval", "api.instance", "docstring: what models return", frozenset({"GenerationResult"})),
    **_of("lmms_eval", "api.model", "model guide", frozenset({"lmms"})),
    **_of("lmms_eval", "models.registry_v2", "docstring: payload of entry points", frozenset({"ModelManifest"})),
    **_of("markupsafe", "."),
    **_of("matplotlib", "*"),
    **_of("ml_dtypes", ".", "README"),
    **_of("numpy", ". linalg ma random"),
    **_of("packaging", "version"),
    **_of("pandas", "."),
    **_of("peft", "tuners.tuners_utils", "package reference: tuners", frozenset({"BaseTunerLayer"})),
    **_of("psutil", "."),
    **_of("pyarrow", ". compute csv ipc parquet"),
    **_of("pytest", "."),
    **_of("qwen_vl_utils", ".", "README"),
    **_of("ray", ". data"),
    **_of("rich", "cells columns console measure padding progress style table text"),
    **_of("safetensors", ".", "API reference and README", frozenset({"SafetensorError", "safe_open"})),
    **_of("safetensors", "numpy"),
    **_of("scipy", "optimize stats"),
    **_of("sentencepiece", ".", "README"),
    **_of("sklearn", ". datasets isotonic linear_model metrics preprocessing"),
    **_of("timm", "models", "what it exports"),
    **_of("tokenizers", ". decoders models pre_tokenizers processors trainers"),
    **_of("torch", ". accelerator cuda linalg nn nn.functional nn.init overrides random special"),
    **_of("torchvision", "transforms.functional"),
    **_of("traitlets", "."),
    **_of("transformers", "."),
    **_of(
        "transformers",
        "core_model_loading",
        "custom layers and utilities: conversion of weights",
        frozenset({"ConversionOps", "WeightConverter"}),
    ),
    **_of("transformers", "modeling_outputs", "main classes: model outputs"),
    **_of(
        "transformers",
        "utils",
        "main classes: model outputs, logging; tool use",
        frozenset({"ModelOutput", "get_json_schema", "logging"}),
    ),
    **_of("transformers", "utils.logging", "main classes: logging"),
    **_of("typer", "."),
    **_of("typer", "core", "tutorial: for cls= of a command and of the app", frozenset({"TyperCommand", "TyperGroup"})),
    **_of("vllm", ". sampling_params"),
}

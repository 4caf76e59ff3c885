"""``load`` and ``wrap``: a probe of a checkpoint, or of a model that is already loaded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Unpack

from vlmprobe.adapter.loading import ignored, loader_of, remember_loader
from vlmprobe.adapter.quiet import quiet
from vlmprobe.errors import (
    CapabilityError,
    CheckpointError,
    GenerationOptionError,
    RemoteCodeError,
    UnknownModelError,
    VlmprobeError,
    near,
)
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat, PromptOptions, taken
from vlmprobe.probe import Probe

if TYPE_CHECKING:
    import torch

    from vlmprobe.adapter import Adapter

__all__ = ["load", "resolved_device", "resolved_dtype", "wrap"]

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    adapter: str | None = None,
    check: bool = True,
    engine: str | None = None,
    resize: str | None = None,
    ignore_weights: str | Iterable[str] = (),
    **from_pretrained: Any,
) -> Probe:
    """A probe of a checkpoint.

    What transformers shows while it loads (progress bars, advisories) is hidden, except for downloads and errors, and
    unless it is asked for by the environment variable ``TRANSFORMERS_VERBOSITY``.

    Args:
        model: a local folder, a hub id, or ``"demo"`` for the small trained model that ships with vlmprobe.
        device: ``"auto"`` uses an accelerator if available, else the CPU; or ``"cpu"``, ``"cuda:1"``, ...
        dtype: ``"auto"`` for the checkpoint's own; or ``"float32"``, ``"bfloat16"``, ``"float16"``, their short
            forms (``"fp16"``, ``"half"``, ...), or a torch dtype.
        revision: commit, branch or tag of a hub checkpoint.
        adapter: name of the adapter to use; detected from ``config.json`` if None.
        check: whether to run a few quick checks the first time this checkpoint is loaded; failures are reported as a
            :class:`~vlmprobe.errors.VlmprobeWarning`. With a newer transformers than the tested one, a log line says
            so and lists the checks that passed. The environment variable ``VLMPROBE_CHECK=0`` also turns this off.
        engine: ``"vllm"``, or another engine that runs in this process in place of transformers.
        resize: what resizes the images, for Qwen2-VL, Qwen2.5-VL and Qwen3-VL: ``"processor"``, the checkpoint's own
            image processor, as in transformers and the serving engines, if None; or ``"qwen-vl-utils"``. An image part
            with options (``max_pixels``, ...) is always resized by qwen-vl-utils. ``meta["resize"]`` says which.
        ignore_weights: how the names of weights begin that may stay unread, such as ``("mtp.",)``; any other weight
            that nothing reads is an error. ``meta["ignore_weights"]`` records it.
        **from_pretrained: further arguments of transformers' ``from_pretrained`` (``device_map="auto"``,
            ``quantization_config``, ``attn_implementation``, ...), or of the engine. And those of
            :class:`~vlmprobe.PromptOptions`, for every call that does not give its own: ``chat_template=`` or
            ``raw_prompt=True`` for a base model, which has no chat template; ``chat_template_kwargs=``, ``tools=``, ...

    Raises:
        UnknownModelError: if there is no such checkpoint, or no adapter for it.
        RemoteCodeError: if the checkpoint needs its own code, or ``trust_remote_code`` is set.
        CheckpointError: for missing or damaged files, and for weights that are missing or that nothing reads.
        CapabilityError: for a device that does not exist, or a ``resize`` that the model family does not have.
        GenerationOptionError: for an invalid option of the prompt.
    """
    format = AS_BY_DEFAULT.updated(taken(from_pretrained))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # tqdm, in a notebook without ipywidgets
        from vlmprobe.model_registry import registry
        from vlmprobe.probe import load_checks

    if from_pretrained.pop("trust_remote_code", False):
        raise RemoteCodeError(
            "vlmprobe never runs a checkpoint's own code, so trust_remote_code cannot be set; leave it out."
        )
    name = str(model)
    if name == "demo":
        from vlmprobe.demo import checkpoint

        model = checkpoint()
    elif name.startswith("~"):
        model = Path(name).expanduser()
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"load takes a folder or a hub id, not {type(model).__name__}; for a loaded model use vlmprobe.wrap"
        )
    if name.lower().startswith(("http://", "https://")):
        raise UnknownModelError(
            "load takes a folder or a hub id, not the URL of a server: use vlmprobe.connect(url) or, on the command "
            "line, vlmprobe doctor URL."
        )
    if engine is not None:
        from vlmprobe.probe.connect import opened

        computed = {"device": device, "dtype": resolved_dtype(dtype)}
        asked = {**computed, "revision": revision, "adapter": adapter, "resize": resize}
        asked["ignoring"] = ignored(ignore_weights)
        return opened(os.fspath(model), engine, name, asked, from_pretrained, format)
    ignoring = ignored(ignore_weights)
    if ignoring:  # an adapter's own load need not know the argument
        from_pretrained["ignore_weights"] = ignoring
    config, commit = registry.config_and_commit(os.fspath(model), revision)
    found = registry.find(config, name=adapter, checkpoint=name)
    _check_resize(found, resize)
    device_map = from_pretrained.pop("device_map", None) or resolved_device(device)
    options = {"dtype": resolved_dtype(dtype), "device_map": device_map, "revision": revision, **from_pretrained}
    with _explained(name, from_pretrained), quiet():
        made = found.load(os.fspath(model), config=config, **options)
    remember_loader(made.model, type(made))
    probe = _probe(made, name, commit or revision, resize, format, ignoring)
    if check and load_checks.switched_on():
        load_checks.check_loaded(probe.engine, probe.meta, config, os.fspath(model), format)  # type: ignore[arg-type]
    return probe


def wrap(
    model: Any,
    processor: Any,
    *,
    name: str | None = None,
    adapter: str | None = None,
    resize: str | None = None,
    **prompt: Unpack[PromptOptions],
) -> Probe:
    """A probe of a model that is already loaded: fine-tuned, quantised, or with PEFT adapters.

    Args:
        model: a transformers model with a language-modelling head, or a PEFT model around one.
        processor: its processor.
        name: what ``meta["model"]`` calls it. None names the checkpoint and says that the model was wrapped, and with
            which PEFT adapters, since it need not be the checkpoint's any more.
        adapter: name of the adapter to use. None uses the one that loaded the model, or for a model that vlmprobe did
            not load, the one that ``model.config`` asks for.
        resize: as in :func:`load`.
        **prompt: :class:`~vlmprobe.PromptOptions` of every call that does not give its own.

    Raises:
        CapabilityError: for a ``resize`` that the model family does not have.
        GenerationOptionError: for an invalid option of the prompt.
    """
    from vlmprobe.model_registry import registry

    format = AS_BY_DEFAULT.updated(prompt)
    # The generate of what torch.compile made of a model is that of the model inside it.
    model = getattr(getattr(model, "generate", None), "__self__", model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "generate") or not hasattr(inner, "config"):
        raise TypeError(f"wrap takes a transformers model and its processor; {type(model).__name__} cannot generate")
    if not (hasattr(processor, "apply_chat_template") or hasattr(processor, "tokenizer")):
        raise TypeError(f"wrap takes the model's processor second, not {type(processor).__name__}")
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError(f"name must be a string, such as 'llava, fine-tuned', not {name!r}")
    checkpoint = inner.config.name_or_path or type(inner).__name__
    loader = None if adapter is not None else loader_of(inner)
    found = loader or registry.find(inner.config.to_dict(), name=adapter, checkpoint=checkpoint)
    _check_resize(found, resize)
    made = found(inner, processor)
    made.peft = None if inner is model else model
    tuned = ", ".join(getattr(model, "peft_config", ())) if made.peft is not None else ""
    called = name or f"{checkpoint} ({f'wrapped, with {tuned}' if tuned else 'wrapped'})"
    return _probe(made, called, None, resize, format)


@contextmanager
def _explained(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Convert what transformers and torch raise on a damaged, hostile or mismatched checkpoint to vlmprobe errors."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    wrong = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
    damaged = (OSError, UnpicklingError, SafetensorError, StrictDataclassError)
    try:
        yield
    except (VlmprobeError, torch.OutOfMemoryError):
        raise
    except (*wrong, *damaged) as error:
        if "trust_remote_code" in str(error):
            raise RemoteCodeError(
                f"{name} asks to run Python code of its own for its tokenizer or processor, which vlmprobe never does. "
                "Look for a version of it that is native to transformers (often ending in '-hf'), or write an adapter."
            ) from error
        blamed = f", or not with {', '.join(given)}" if given else ""
        raise CheckpointError(f"{name} cannot be loaded{blamed}: {type(error).__name__}: {error}") from error


def _check_resize(adapter: type[Adapter], resize: Any) -> None:
    if resize is None or resize in adapter.resizers:
        return
    known = " or ".join(map(repr, adapter.resizers))
    remedy = f"pass {known}" if known else "leave resize out, its processor resizes the images"
    raise CapabilityError(f"The adapter {adapter.name!r} has no resize={resize!r}: {remedy}.")


def _probe(
    adapter: Adapter,
    name: str,
    revision: str | None,
    resize: str | None,
    format: PromptFormat,
    ignoring: tuple[str, ...] = (),
) -> Probe:
    from importlib.metadata import version

    from vlmprobe._version import __version__
    from vlmprobe.engines.local import LocalEngine
    from vlmprobe.engines.local.model_state import device_of

    if resize is not None:
        adapter.resize = resize
    meta = {
        "model": name,
        "revision": revision,
        "adapter": adapter.name,
        "engine": "local",
        "dtype": str(adapter.model.dtype).removeprefix("torch."),
        "device": str(device_of(adapter.model)),
        "versions": {"vlmprobe": __version__, "transformers": version("transformers"), "torch": version("torch")},
        **adapter.facts(),
        **({"ignore_weights": list(ignoring)} if ignoring else {}),
    }
    return Probe(LocalEngine(adapter), meta, format=format)


def resolved_dtype(dtype: Any) -> Any:
    """The torch dtype that ``load`` uses for this argument, or ``"auto"``; raises GenerationOptionError if none."""
    import torch

    if dtype == "auto":
        return dtype
    name = str(dtype).lower().removeprefix("torch.")
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, SHORT_DTYPES.get(name, name), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise GenerationOptionError(
            f"dtype must be 'auto' or one of {', '.join(DTYPES)}, not {dtype!r}.{near(name, DTYPES)}"
        )
    return found


def resolved_device(device: Any) -> str:
    """The name of the device that ``load`` uses for this argument; raises CapabilityError if there is none."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if str(device) == "auto":
        return accelerator.type if accelerator else "cpu"
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise CapabilityError(
            f"There is no device {device!r}.{_device_meant(str(device), accelerator.type if accelerator else 'cuda')} "
            "Devices are auto, cpu, cuda, cuda:1, mps, xpu and others of torch.device."
        ) from error
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")  # torch goes on for a thousand characters
        raise CapabilityError(f"device {device!r} cannot be used here: {reason}.") from error
    if wanted.type == "meta":
        raise CapabilityError("device 'meta' holds no data: nothing can be computed on it.")
    return str(wanted)


def _device_meant(device: str, accelerator: str) -> str:
    """A suggestion for a name that is no device, such as ``gpu``, ``GPU:1`` or ``0``."""
    kind, colon, index = device.lower().partition(":")
    if kind.isdecimal():
        kind, colon, index = "gpu", ":", kind
    meant = f" Did you mean {accelerator}{colon}{index}?" if kind == "gpu" else near(kind, DEVICES, most=1)
    return meant if kind == "gpu" or not meant else f"{meant[:-1]}{colon}{index}?"

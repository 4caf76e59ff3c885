"""Probes of models on serving engines, behind a server or in this process."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Unpack

from vlmprobe.errors import (
    CapabilityError,
    EngineError,
    GenerationOptionError,
    UnknownModelError,
    VlmprobeWarning,
    near,
    outside,
    renamed,
)
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat, PromptOptions
from vlmprobe.probe import Probe

__all__ = ["connect", "opened"]


def connect(
    url: str | Sequence[str],
    *,
    engine: str = "auto",
    processor: Any = None,
    model: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    max_concurrency: int = 64,
    timeout: float = 600.0,
    image_ids: Collection[int] = (),
    value_kind: Literal["raw", "tempered", "filtered"] | None = None,
    in_flight: int | None = None,
    seconds: float | None = None,
    **prompt: Unpack[PromptOptions],
) -> Probe:
    """A probe of a model behind a serving engine.

    ::

        probe = vlmprobe.connect("http://localhost:8000", processor="Qwen/Qwen2-VL-2B-Instruct")
        result = probe.generate("What is in the picture?", image="scene.png")

    Args:
        url: of the server, such as ``"http://localhost:8000"``; or a list of servers of one model, which share the
            requests: those of a server that goes away are sent to the others.
        engine: type of the server; ``"auto"`` detects it. A name holds also where the server does not say what it is,
            as behind a proxy; not where it says that it is another.
        processor: the source of the model's tokenizer: its folder or hub id, its processor, or a local probe of the
            same model. Needed for the prompt side with images, and to score candidates by their exact tokens.
        model: the name under which the server lists the model; its first one if None. Together with ``engine``, one
            that is not listed.
        api_key: sent as a bearer token; read from ``VLMPROBE_API_KEY`` if None. It is never logged or saved.
        headers: extra headers of every request; like the key, their values never appear in messages.
        max_concurrency: maximum number of concurrent requests.
        timeout: seconds per request; for a streamed answer, the longest gap between chunks.
        image_ids: ids of image placeholders, if no processor provides them.
        value_kind: what the server's log-probabilities are under sampling, if known; determined by three short
            requests if None.
        in_flight, seconds: former names of ``max_concurrency`` and ``timeout``.
        **prompt: :class:`~vlmprobe.PromptOptions` of every call that does not give its own.

    Raises:
        EngineConnectionError: if nothing answers.
        EngineError: if the server is not a known engine, or another than ``engine``.
        CapabilityError: if it is one that sends no log-probabilities (``transformers serve``).
        UnknownModelError: if the server has no model of that name.
        EngineError: if several servers have other models, or are of other kinds.
    """
    from vlmprobe._version import __version__
    from vlmprobe.engines.serving import Client, Facts, Limits, Meaning, ServedEngine, Tokens
    from vlmprobe.engines.serving.http import background_loop as background
    from vlmprobe.engines.serving.registry import detect, engines
    from vlmprobe.engines.serving.several import SeveralServers
    from vlmprobe.engines.serving.value_kind import KINDS

    format = AS_BY_DEFAULT.updated(prompt)
    if in_flight is not None:
        renamed("connect(in_flight=)", "connect(max_concurrency=)")
        max_concurrency = in_flight
    if seconds is not None:
        renamed("connect(seconds=)", "connect(timeout=)")
        timeout = seconds
    if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int) or max_concurrency < 1:
        raise GenerationOptionError(f"max_concurrency must be an integer of at least 1, not {max_concurrency!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e9:
        raise GenerationOptionError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    if value_kind is not None and value_kind not in KINDS:
        raise GenerationOptionError(f"value_kind must be one of {', '.join(KINDS)}, not {value_kind!r}")
    tokens = Tokens.of(processor, image_ids)
    limits = Limits(in_flight=max_concurrency, request_s=timeout)
    meaning = None if value_kind is None else Meaning(value_kind)
    urls = [url] if isinstance(url, str) else list(dict.fromkeys(url))
    if not urls:
        raise GenerationOptionError("connect needs the URL of a server, or a list of some")
    served: list[ServedEngine] = []
    for each in urls:
        client = Client(each, api_key=api_key, headers=headers, limits=limits)
        found, server, unsure = background.run(detect(Facts(client), engines().values(), engine))
        if unsure:
            warnings.warn(unsure, VlmprobeWarning, stacklevel=outside())
        served.append(found(client, server, _model_of(client.url, server.models, model, engine), tokens, meaning))
    first, *others = served
    for other in others:
        if (other.name, other.model) != (first.name, first.model):
            raise EngineError(
                f"the servers do not serve the same: {first.client.url} has {first.model!r} ({first.title}), and "
                f"{other.client.url} {other.model!r} ({other.title}). Name a model that all of them have with model=, "
                "or ask them apart."
            )
    meta = {
        "model": first.model,
        "engine": first.name,
        "engine_version": ", ".join(dict.fromkeys(each.server.version for each in served if each.server.version))
        or None,
        "url": ", ".join(each.client.url for each in served),
        "versions": {"vlmprobe": __version__},
    }
    return Probe(SeveralServers(served) if others else first, meta, format=format)


def _model_of(url: str, models: Sequence[str], wanted: str | None, engine: str) -> str:
    """The name of the model that a server is asked for; one that is not listed only where ``engine`` is named too."""
    if wanted is None and not models:
        raise UnknownModelError(f"{url} lists no model: pass model=.")
    if wanted is not None and models and wanted not in models:
        lists = f"{url} has no model {wanted!r}.{near(wanted, models)} It has: {', '.join(models[:20])}."
        if engine == "auto":
            raise UnknownModelError(f"{lists} engine= and model= together ask for one that is not listed.")
        warnings.warn(f"{lists} It is asked for all the same.", VlmprobeWarning, stacklevel=outside())
    return models[0] if wanted is None else wanted


def opened(
    model: str,
    engine: str,
    name: str,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    format: PromptFormat,
) -> Probe:
    """A probe of a checkpoint on an engine in this process; ``vlmprobe.load`` with ``engine``.

    Args:
        model: a folder or hub id.
        engine: its name.
        name: of the model, for ``meta``.
        asked: ``load``'s own arguments (``device``, ``dtype``, ``revision``, ``adapter``, ``resize``), and the weights
            that it is ``ignoring``.
        options: of the engine.
        format: of every prompt, unless a call says otherwise.
    """
    from vlmprobe._version import __version__
    from vlmprobe.engines.serving.registry import engines

    known = engines()
    if engine not in known:
        raise GenerationOptionError(
            f"No engine is named {engine!r}.{near(engine, known)} There are: {', '.join(known)}."
        )
    if asked["adapter"] is not None or asked["resize"] is not None or asked["device"] != "auto" or asked["ignoring"]:
        raise CapabilityError(
            f"{known[engine].title} chooses its own model code, image sizes, devices and weights: leave out adapter, "
            "resize, device, ignore_weights."
        )
    given = {key: str(asked[key]).removeprefix("torch.") for key in ("dtype", "revision") if asked[key] is not None}
    if given.get("dtype") == "auto":
        del given["dtype"]
    computing = known[engine].in_process(model, **given, **options)
    meta = {
        "model": name,
        "engine": engine,
        "revision": asked["revision"],
        "dtype": given.get("dtype"),
        "versions": {"vlmprobe": __version__},
    }
    return Probe(computing, meta, format=format)

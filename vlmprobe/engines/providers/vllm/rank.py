"""Relevance from a reranker on a vLLM server (``--runner pooling``): its ``/score`` route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmprobe.engines.providers.openai_chat import content_part
from vlmprobe.engines.serving import Client, Node
from vlmprobe.engines.serving.http.reply import real
from vlmprobe.errors import CapabilityError, EngineError, EngineResponseError
from vlmprobe.inputs.messages import Conversation, TextPart

__all__ = ["rank_documents"]

PATH = "/score"


async def rank_documents(
    client: Client, model: str, query: Conversation, documents: Sequence[Conversation], *, activation: bool = True
) -> list[float]:
    """The score of each document for the query.

    Args:
        client: of the server.
        model: its name on the server.
        query: text, or an image, or both.
        documents: likewise.
        activation: True for probabilities, sigmoid(yes - no); False for the difference of the logits, in nats.
    """
    request: dict[str, Any] = {
        "model": model,
        "queries": await _content(query),
        "documents": [await _content(each) for each in documents],
        "use_activation": activation,
    }
    try:
        reply = Node(await client.post(PATH, request), "vLLM")
    except EngineError as error:
        if error.status in (404, 405):
            raise CapabilityError(
                "This vLLM server has no /score: start it with --runner pooling and a reranker, or rank with a "
                "generative model that is opened locally (vlmprobe.load)."
            ) from error
        raise
    data = reply["data"]
    scores: dict[int, float] = {}
    for place, _ in enumerate(data.items(most=len(documents))):
        entry = data[place]
        index = entry["index"].integer(0, len(documents) - 1)
        scores[index] = real(entry["score"].value, entry.where)
    if len(scores) != len(documents):
        raise EngineResponseError(f"{data.where} has scores of {len(scores)} documents, {len(documents)} were sent.")
    return [scores[place] for place in range(len(documents))]


async def _content(conversation: Conversation) -> Any:
    parts = conversation.messages[-1].parts
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return {"content": [await content_part(part) for part in parts]}

"""Any server that speaks OpenAI's chat protocol: chosen and most likely tokens of the answer, as text.

The protocol has neither ids nor the prompt: ``ids`` is None, and there is no prompt side.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from vlmprobe.engines.base import Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.serving import BASIC, Abilities, Answer, Decoding, Facts, Meaning, Node, Row, Server
from vlmprobe.engines.serving.base import StreamedEngine
from vlmprobe.errors import EngineError
from vlmprobe.inputs.messages import Conversation

__all__ = ["OpenAI"]

LIMIT, LATER_LIMIT = "max_tokens", "max_completion_tokens"  # OpenAI's later models take the second alone
MOST = 20  # alternatives, by OpenAI's protocol
WOULD = "vLLM does: start one for the model"


class OpenAI(StreamedEngine):
    """The protocol as OpenAI documents it, and nothing beyond."""

    title = "OpenAI-compatible chat"
    generic = True
    limit = LIMIT  # how the server calls it
    abilities = Abilities(
        alternatives=MOST,
        no_alternatives="the protocol allows no more; vLLM with --max-logprobs does",
        no_prompt=f"the protocol has no prompt log-probabilities; {WOULD}",
        one_token=f"the protocol cannot score given text; {WOULD}",
        takes=BASIC | {"stop_strings"},
        constraints=frozenset({"schema"}),
        constrained="unknown",
        prompt=frozenset({"tools", "tool_calls", "role 'tool'"}),
    )

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """Any server that lists models as OpenAI does."""
        entries = await facts.models()
        names = tuple(str(each["id"]) for each in entries if "id" in each)
        return Server(models=names) if names else None

    async def find_out(self) -> None:
        """Determine what the numbers mean; a value at the floor only means that the token is not listed."""
        if self.meaning is None:
            found = await self.probed_meaning()
            self.meaning = Meaning(found.kind, found.logits, clamped=False)

    async def find_out_constrained(self) -> None:
        """Determine what the numbers of an answer are that obeys a schema: the protocol does not say."""
        self.abilities = replace(self.abilities, constrained=await self.probed_constraint())

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request."""
        top = min(options.alternatives, MOST)
        request = await self._body(conversation, decoding, options, top)
        try:
            reply = Node(await self.client.post(openai_chat.PATH, request), self.title)
        except EngineError as error:
            if not self._renames_limit(error, request):
                raise
            return await self.answer(conversation, decoding, options)
        choice = openai_chat.only_choice(reply)
        said = openai_chat.listed(choice, tokens=decoding.max_new_tokens, top=top)
        return _answer(reply, choice, openai_chat.rows_of(said, openai_chat.texts_decoder(), final=True))

    async def pieces(
        self, conversation: Conversation, decoding: Decoding, options: Options
    ) -> AsyncGenerator[Answer, None]:
        """The same, streamed."""
        top = min(options.alternatives, MOST)
        request = await self._body(conversation, decoding, options, top)
        try:
            async with aclosing(
                openai_chat.pieces(self.client, request, self.title, tokens=decoding.max_new_tokens, top=top)
            ) as pieces:
                decoder = openai_chat.texts_decoder()
                async for reply, choice, said in pieces:
                    final = choice is not None and bool(openai_chat.finish_reason(choice))
                    yield _answer(reply, choice, openai_chat.rows_of(said, decoder, final=final))
        except EngineError as error:
            if not self._renames_limit(error, request):
                raise
        else:
            return
        async with aclosing(self.pieces(conversation, decoding, options)) as again:
            async for piece in again:
                yield piece

    async def _body(self, conversation: Conversation, decoding: Decoding, options: Options, top: int) -> dict[str, Any]:
        request = await openai_chat.body(self.model, conversation, decoding, seed=options.seed, top=top)
        request |= openai_chat.response_format(options.constraint)
        if self.limit != LIMIT:
            request[self.limit] = request.pop(LIMIT)
        return request

    def _renames_limit(self, error: EngineError, request: dict[str, Any]) -> bool:
        """Whether the server refused a request for the name of its limit, which is another one from now on."""
        if error.status != 400 or LATER_LIMIT not in str(error) or LIMIT not in request:
            return False
        self.limit = LATER_LIMIT
        return True


def _answer(reply: Node, choice: Node | None, rows: Sequence[Row]) -> Answer:
    usage = openai_chat.usage_of(reply)
    if choice is None:
        return Answer("", "", rows, usage=usage)
    return Answer(
        openai_chat.text_of(choice),
        openai_chat.finish_reason(choice),
        rows,
        usage=usage,
        reasoning=openai_chat.reasoning_of(choice),
    )

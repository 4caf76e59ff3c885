"""``ServedEngine``: an engine behind a URL. One subclass, in one small file, for each kind of server.

To add an engine, write a subclass that defines

- ``title``, ``abilities`` (what it supports, and for the rest, what does), ``meaning`` if the engine documents it;
- :meth:`~ServedEngine.recognise`: whether a server is one of its kind, from a few GET requests;
- :meth:`~ServedEngine.answer`: one request and its :class:`~vlmprobe.engines.serving.answer.Answer`: rows in the order
  of the tokens, values as the engine returned them. Read the reply through
  :class:`~vlmprobe.engines.serving.http.reply.Node`, so that a hostile or broken server is a typed error. Mask nothing
  and compute nothing: the base class handles sentinels, bounds, image positions, texts and tables;
- if the engine supports them, :meth:`~ServedEngine.candidates`, ``rank``, and :meth:`~StreamedEngine.pieces`, on a
  subclass of :class:`StreamedEngine`;

and publish it as an entry point of the group ``vlmprobe.engines``. In ``vlmprobe/engines/providers``, ``vllm/`` is the
fullest example, ``openai.py`` the smallest; ``openai_chat.py`` there is what engines with OpenAI's chat protocol share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlmprobe.engines.base import Engine, Options
from vlmprobe.engines.constraint import Constraint
from vlmprobe.engines.serving.answer import Abilities, Answer, Scored
from vlmprobe.engines.serving.facts import Facts, Server
from vlmprobe.engines.serving.findings import Finding
from vlmprobe.engines.serving.first_token import first_token_candidates
from vlmprobe.engines.serving.generation_options import BASIC, Decoding
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.engines.serving.http.client import Client
from vlmprobe.engines.serving.prompt_length import PromptLengths
from vlmprobe.engines.serving.refusals import refuse
from vlmprobe.engines.serving.results import result_of, scores_of
from vlmprobe.engines.serving.streaming import streamed
from vlmprobe.engines.serving.tokens import Tokens
from vlmprobe.engines.serving.value_kind import FLOOR, HOT, Kind, Meaning, judge, judge_constrained
from vlmprobe.engines.stream import Stream
from vlmprobe.errors import CapabilityError, EngineError
from vlmprobe.inputs.messages import Conversation, Message, TextPart
from vlmprobe.results.result import Result, Scores

__all__ = ["ServedEngine", "StreamedEngine"]

AHEAD = 2  # results that may wait for an earlier one, for each request in flight
LARGE = 10_000  # tokens and alternatives whose table takes more than 5 ms
LARGE_IMAGE = 2**20  # pixels whose thumbnail takes more than 5 ms
PROBED = 20  # alternatives that are requested to determine what the numbers mean
TEXT = "Name any animal, colour, number or town."  # a prompt after which many tokens are likely
QUESTION = Conversation((Message("user", (TextPart(TEXT),)),))
NAMED = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
OBJECT = {**NAMED, "additionalProperties": False}  # as OpenAI's strict mode wants it
NOTHING = Options()


class ServedEngine:
    """A server, behind the protocol :class:`vlmprobe.engines.base.Engine`. Thread-safe."""

    name: ClassVar[str] = ""  # the name of its entry point
    title: ClassVar[str] = ""  # for display
    generic: ClassVar[bool] = False  # generic engines are tried last when a server is detected
    abilities: Abilities = Abilities(takes=BASIC)

    def __init__(
        self, client: Client, server: Server, model: str, tokens: Tokens, meaning: Meaning | None = None
    ) -> None:
        self.client = client
        self.server = server
        self.model = model
        self.tokens = tokens
        self.meaning = meaning  # None until determined
        self._finding: dict[str, asyncio.Task[None]] = {}  # what is being determined, and what was
        self._lengths = PromptLengths(self.title, tokens)

    # -- what a subclass defines -------------------------------------------------------------------

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """What the server reports about itself if it is of this kind, else None."""
        raise NotImplementedError(f"{cls.__name__} must implement recognise")

    @classmethod
    def in_process(cls, model: str, **options: Any) -> Engine:
        """The engine opened in this process, for ``vlmprobe.load(model, engine=...)``."""
        raise CapabilityError(f"{cls.title} runs only as a server: start one, and use vlmprobe.connect(url).")

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send the server one request."""
        raise NotImplementedError(f"{type(self).__name__} must implement answer")

    async def candidates(
        self, conversation: Conversation, candidates: Sequence[str], options: Options
    ) -> tuple[list[Scored], dict[str, Any]]:
        """The rows of each candidate directly after the prompt, and what to record in ``meta``.

        By default from the most likely tokens of one position, which gives candidates of one token: an engine that does
        no better says why in ``abilities.one_token``.
        """
        return await first_token_candidates(self, conversation, candidates, options)

    async def first_answer(self, conversation: Conversation, options: Options) -> Answer:
        """One token with as many alternatives as ``options`` say, whose numbers are those of the model."""
        return await self.answer(conversation, Decoding(max_new_tokens=1), options)

    async def find_out(self) -> None:
        """Determine, before the first request, what the server does not report. By default: what its numbers mean."""
        if self.meaning is None:
            self.meaning = await self.probed_meaning()

    async def find_out_constrained(self) -> None:
        """The same, before the first constrained answer. By default, the class says what its numbers are."""

    async def without_chat(self, error: EngineError) -> list[Finding]:
        """Findings for a server that cannot generate; some can do something else."""
        return [Finding("answers", "no", str(error), needed=True)]

    async def further_findings(self) -> list[Finding]:
        """Further findings of ``vlmprobe doctor`` for a server of this kind."""
        return []

    # -- the protocol of engines -------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The maximum number of concurrent requests."""
        return self.client.limits.in_flight

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before anything is sent."""
        refuse(self.title, self.abilities, conversations, options)
        if self.tokens.adapter is not None and self.abilities.prompt:
            for conversation in conversations:
                self.tokens.adapter.check_format(conversation)
        self.decoding(options)

    def batch_size(self, wanted: int, options: Options) -> int:
        """As many as may be in flight: requests do not affect each other."""
        return self.in_flight

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations, as many at once as may be in flight."""
        return list(self.answers(conversations, options))

    def answers(
        self,
        conversations: Iterable[Conversation | tuple[Conversation, int] | Exception],
        options: Options,
        *,
        keep_errors: bool = False,
        together: int | None = None,
    ) -> Iterator[Any]:
        """Results in the order of the conversations, many of which are in flight at once.

        Closing the iterator cancels the remaining work.

        Args:
            conversations: each alone, or with a seed of its own; an item that is already an error is returned in its
                place.
            options: of all of them.
            keep_errors: whether to return an error in place of its result, or raise it there.
            together: the maximum number started before the first result is returned.
        """
        work = (each if isinstance(each, Exception) else self.result(*_seeded(each, options)) for each in conversations)
        ahead = together or AHEAD * self.in_flight
        return background_loop.in_order(work, ahead=ahead, keep_errors=keep_errors)

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""
        if self.abilities.no_score:
            raise CapabilityError(f"{self.title} cannot score candidates: {self.abilities.no_score}.")
        return background_loop.run(self.scored(conversation, candidates, options))

    def scores(
        self,
        requests: Iterable[tuple[Conversation, Sequence[str]] | Exception],
        options: Options,
        *,
        keep_errors: bool = False,
        together: int | None = None,
    ) -> Iterator[Any]:
        """Scores in the order of the requests, many of which are in flight at once; as :meth:`answers`."""
        if self.abilities.no_score:
            raise CapabilityError(f"{self.title} cannot score candidates: {self.abilities.no_score}.")
        work = (each if isinstance(each, Exception) else self.scored(*each, options) for each in requests)
        ahead = together or AHEAD * self.in_flight
        return background_loop.in_order(work, ahead=ahead, keep_errors=keep_errors)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop, after :meth:`find_out`."""

        async def all_of_it() -> Any:
            await self.known()
            return await work

        return background_loop.run(all_of_it())

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.client.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client.url!r}, model={self.model!r})"

    # -- one request -------------------------------------------------------------------------------

    def decoding(self, options: Options) -> Decoding:
        """The generation options of a call."""
        return Decoding.read(options.generation, self.abilities.takes, self.title)

    async def result(self, conversation: Conversation, options: Options) -> Result:
        """Send one request and build its tables."""
        await self.known(options)
        decoding = self.decoding(options)
        started = time.perf_counter()
        answer = await self.answer(conversation, decoding, options)
        return await self.made(answer, conversation, decoding, options, started)

    async def made(
        self, answer: Answer, conversation: Conversation, decoding: Decoding, options: Options, started: float
    ) -> Result:
        """The result of an answer to a request that was ``started`` at that ``time.perf_counter``."""
        seconds = time.perf_counter() - started
        told = await self._lengths.told(conversation, answer)
        entries = sum(1 + len(row.top) for row in (*answer.output, *(answer.prompt or ())))
        pixels = sum(image.width * image.height for image in conversation.images)
        return await background_loop.reading(
            result_of,
            answer,
            conversation,
            decoding,
            options,
            title=self.title,
            abilities=self.abilities,
            meaning=self.meaning or Meaning(),
            tokens=self.tokens,
            meta={"timings": {"request_s": seconds}, **told},
            large=entries > LARGE or pixels > LARGE_IMAGE or "logits" in options.keep,
        )

    async def scored(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Ask for the scores of one conversation and build their tables."""
        await self.known()
        started = time.perf_counter()
        scored, told = await self.candidates(conversation, candidates, options)
        return scores_of(
            scored,
            conversation,
            candidates,
            options,
            title=self.title,
            meaning=self.meaning or Meaning(),
            tokens=self.tokens,
            meta={**told, "timings": {"score_s": time.perf_counter() - started}},
        )

    # -- what the server does not report -----------------------------------------------------------

    async def known(self, options: Options = NOTHING) -> None:
        """Wait until what a call with these options needs was determined once, whichever request came first."""
        await self._once("meaning", self.find_out)
        if options.constraint is not None:
            await self._once("constrained", self.find_out_constrained)

    async def _once(self, name: str, find_out: Callable[[], Coroutine[Any, Any, None]]) -> None:
        finding = self._finding.get(name)
        if finding is None or not _stands(finding):
            self._finding[name] = finding = asyncio.ensure_future(find_out())
        try:
            await asyncio.shield(finding)
        except Exception:
            self._finding.pop(name, None)  # the next call tries again
            raise

    async def probed_meaning(self) -> Meaning:
        """The meaning of the numbers, from three short requests; unknown if the server refuses them."""
        most = self.abilities.alternatives
        if most is not None and most < 2:
            return Meaning()
        options = Options(prompt=False, alternatives=min(PROBED, most or PROBED), seed=0, demanded=frozenset())
        ways = (
            Decoding(max_new_tokens=1),
            Decoding(max_new_tokens=1, do_sample=True, temperature=HOT),
            Decoding(max_new_tokens=1, do_sample=True, top_p=1e-6),
        )
        try:
            answers = await asyncio.gather(*(self.answer(QUESTION, way, options) for way in ways))
        except EngineError:
            return Meaning()
        values = [
            sorted((each.value for each in answer.output[0].top), reverse=True) if answer.output else []
            for answer in answers
        ]
        return judge(*values)

    async def probed_constraint(self) -> Kind:
        """What the numbers of a constrained answer are, from the first token of a JSON object; unknown if refused."""
        most = self.abilities.alternatives
        constraint = Constraint("schema", OBJECT)
        options = Options(
            prompt=False, alternatives=min(PROBED, most or PROBED), constraint=constraint, demanded=frozenset()
        )
        try:
            answer = await self.answer(QUESTION, Decoding(max_new_tokens=1), options)
        except EngineError:
            return "unknown"
        if answer.reasoning or not answer.output:
            return "unknown"
        row = answer.output[0]
        return judge_constrained(row.text or "", [each.shown for each in row.top if each.value > FLOOR])


class StreamedEngine(ServedEngine):
    """A server that streams its answers."""

    def pieces(self, conversation: Conversation, decoding: Decoding, options: Options) -> AsyncGenerator[Answer, None]:
        """The streamed answer in chunks: each holds the rows since the last chunk and their text, the first also the
        prompt's ids; ``finish_reason`` is empty until the last.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement pieces")

    def stream(self, conversation: Conversation, options: Options) -> Stream:
        """The answer token by token, without the prompt side.

        Raises:
            CapabilityError: if the prompt side is requested explicitly.
        """
        if "prompt" in options.demanded and options.prompt:
            raise CapabilityError(f"{self.title} streams no prompt side: leave out prompt=True, or use generate.")
        return Stream(lambda listen: background_loop.run(streamed(self, conversation, options, listen)))


def _seeded(item: Conversation | tuple[Conversation, int], options: Options) -> tuple[Conversation, Options]:
    """A conversation and its options, with its own seed if it comes with one."""
    return (item[0], replace(options, seed=item[1])) if isinstance(item, tuple) else (item, options)


def _stands(finding: asyncio.Task[None]) -> bool:
    """Whether the task succeeded or is still running; False if it failed or was cancelled."""
    if finding.done():
        return not finding.cancelled() and finding.exception() is None
    return finding.get_loop() is asyncio.get_running_loop()  # after a fork the loop is another one

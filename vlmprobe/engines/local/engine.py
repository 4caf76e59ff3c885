"""The local engine: a transformers model in this process; every number comes from the model's own computation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any
from weakref import ref

import numpy as np
from torch import Tensor
from transformers import GenerationConfig

from vlmprobe.adapter import Adapter, EncodedPrompt, Encoding
from vlmprobe.adapter.rope import require_one_side
from vlmprobe.engines.base import MadeForOneConversation, Options
from vlmprobe.engines.local.answer_tables import Answers, finish_reason, prompt_table, rows_of
from vlmprobe.engines.local.candidate_states import states_after_answers
from vlmprobe.engines.local.capture import Head, Steps
from vlmprobe.engines.local.context_length import switch_within, warn_if_beyond
from vlmprobe.engines.local.continuations import Continuations
from vlmprobe.engines.local.feature_cache import ImageMemory, Reuse, images_key, remembered
from vlmprobe.engines.local.generation_config import counts_padding, end_ids, generation_config, plain
from vlmprobe.engines.local.grammar import Grammars
from vlmprobe.engines.local.layer_readout import LayerColumns, layer_columns
from vlmprobe.engines.local.model_state import alone, device_of, to_model
from vlmprobe.engines.local.peft_state import active_adapters, puts_virtual_tokens
from vlmprobe.engines.local.phases import phases
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.resumed import all_but_last, all_but_last_of, encode_together
from vlmprobe.engines.local.run_generate import Run, drawing, run
from vlmprobe.engines.local.scoring import score, scored
from vlmprobe.engines.local.second_prompt import SecondPrompt
from vlmprobe.engines.local.shared_prefix import SharedPrefix
from vlmprobe.engines.local.streamed_rows import Rows
from vlmprobe.engines.local.teacher_forcing import begun, score_ids
from vlmprobe.engines.stream import Stream
from vlmprobe.engines.token_tables import PromptRows, prompt_rows
from vlmprobe.errors import GenerationOptionError, MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.inputs.thumbnails import thumbnails
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.row_files import StepRows, row_files
from vlmprobe.results.table import TokenTable

__all__ = ["LocalEngine"]


class LocalEngine:
    """Runs an adapter's model. Thread-safe; calls on one model are serialised."""

    adapter: Adapter
    memory: ImageMemory | None  # image feature cache; None outside a session
    prefixes: PrefixMemory | None  # beginnings of prompts, likewise

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.detokenizer = Detokenizer(adapter.tokenizer)
        self.grammars = Grammars(adapter, self.detokenizer)
        self.memory = None
        self.prefixes = None
        self._checked: ref[Options] | None = None  # the options that were validated last

    def _facts(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        """What ``meta`` says of the model as it is now, and of how each conversation becomes its input."""
        model = self.adapter.model
        adapters = active_adapters(self.adapter)
        now = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(device_of(model)),
            **({"peft": adapters} if adapters else {}),
        }
        return [{**now, **self.adapter.facts(each)} for each in conversations]

    @property
    def head(self) -> Head:
        """From states to logits, by the modules that the model has now."""
        return Head(self.adapter.outer, self.adapter.backbone)

    def remembering(self, images: int, *, exact: bool = True, prefix_bytes: int = 2**30) -> LocalEngine:
        """This engine with a cache of the features of the ``images`` most recently used images (or sets of images)."""
        engine = copy.copy(self)
        engine.memory = ImageMemory(images, exact=exact)
        engine.prefixes = PrefixMemory(prefix_bytes) if prefix_bytes else None
        return engine

    def forget(self) -> None:
        """Drop all cached features."""
        if self.memory is not None:
            self.memory.clear()
        if self.prefixes is not None:
            self.prefixes.clear()

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before anything runs."""
        for conversation in conversations:
            self.adapter.check(conversation)
        for processor in options.processors:
            if isinstance(processor, MadeForOneConversation):
                for conversation in conversations:
                    processor.require_conversation(conversation)
        if conversations and self._checked is not None and self._checked() is options:  # by another of the same call
            return
        self.grammars.require(options, self._config(options))
        known = self.adapter.outer.get_input_embeddings().weight.shape[0] if options.begin else 0
        if any(not 0 <= each < known for each in options.begin):
            raise MessageError(
                f"The answer cannot begin with ids {list(options.begin)}: the model has {known:,} tokens."
            )
        self.adapter.require_answer(options.begin)
        self._checked = ref(options)

    @property
    def mixes_images(self) -> bool:
        """Whether conversations with different numbers of images can share a batch."""
        return self.adapter.capabilities.mixed_images

    def batch_size(self, wanted: int, options: Options) -> int:
        """The largest batch size up to ``wanted`` at which every request gives the same numbers as alone.

        It is 1 where padding affects the model, where a seed's draws would be shared, where an answer may end other
        than by its end token (in a batch its end could not be found), and where an option, or a processor of the
        caller, counts padding as text.
        """
        config = self._config(options)
        ends = config.stop_strings or config.max_time
        drawn = options.seed is not None and config.do_sample
        counts = counts_padding(config) or bool(options.processors) or puts_virtual_tokens(self.adapter)
        counts = counts or (options.constraint is not None and options.constraint.by_row)
        return 1 if ends or drawn or counts or not self.adapter.capabilities.batching else wanted

    def generate(
        self,
        conversations: Sequence[Conversation],
        options: Options,
        listen: Callable[[Steps, Tensor], bool] | None = None,
        after: Callable[[Run, Encoding], None] | None = None,
    ) -> list[Result]:
        """Answer N conversations as one batch, in one run of the model.

        ``listen`` is called after each step, and ``after`` at the end, while the model is in the state of this run.
        """
        config = self._config(options)
        model = self.adapter.model
        memory = self.memory
        if memory is None and len(conversations) > 1:  # an image that they share is encoded once
            memory = ImageMemory(images=len(conversations), lasts=False)
        clock = [time.perf_counter()]
        with (
            alone(self.adapter),
            drawing(model, config, options.seed),
            self._remembered(memory, conversations) as features,
        ):
            together = None
            if len(conversations) > 1:
                together = encode_together(self.adapter, conversations, config, options)
            encoding = self.adapter.encode(conversations) if together is None else together.encoding
            warn_if_beyond(self.adapter.model.config, encoding.prompts)
            new = len(options.begin) + (config.max_new_tokens or 0)
            require_one_side(self.adapter, [len(each.ids) for each in encoding.prompts], new)
            clock.append(time.perf_counter())
            inputs = begun(self.adapter, encoding.inputs, options.begin)
            # The rows of forced first tokens come from the prefill, like those of the prompt.
            kept = replace(self.grammars.constrained(options, config), prompt=options.prompt or bool(options.begin))
            prompts = encoding.prompts
            with row_files(options.store, [rows_of(each, self.detokenizer, options) for each in prompts]) as files:
                rows = StepRows(files, len(options.begin)) if files else None
                facts = self._facts(conversations)
                if together is not None:
                    common, prefix = all_but_last_of(self.adapter, together, conversations) or (0, None)
                    if prefix is None:
                        inputs = self.adapter.encode(conversations).inputs
                else:
                    common, prefix = self._begun(conversations, encoding, config, options)
                in_vain = features is not None and features.encoded and prefix is None
                ran = run(self.adapter, to_model(model, inputs), config, kept, listen, rows, prefix)
                if features is not None and in_vain:  # for a beginning that the model does not go on from
                    features.reused = 0
                clock.append(time.perf_counter())
                answers = Answers(self.head, self.detokenizer, ran, config, options)
                tables = answers.tables(prompts, files)
                clock.append(time.perf_counter())
                if after is not None:
                    after(ran, encoding)
        images = any(each.images for each in conversations)
        meta: dict[str, Any] = {
            "value_kind": "raw",
            "generation_config": plain(config),
            **options.told,
            "batch_size": len(conversations),
            "timings": dict(zip(("encode_s", "generate_s", "read_s"), np.diff(clock).tolist(), strict=True)),
            "phases": phases(device_of(model), clock[2] - clock[1], ran.decoding, images, features),
        }
        if features is not None:
            meta["image_features"] = str(features)
        if common:
            meta["prefix_in_common"] = common
        return [
            Result(
                text=self.detokenizer.join(output.ids.tolist(), output.tokens),
                prompt=prompt_side,
                output=output,
                input_ids=prompt.ids,
                meta={
                    **fact,
                    **meta,
                    "finish_reason": finish_reason(output.ids[len(options.begin) :], ran.length, config),
                    **({"logits_file": str(file.path)} if file else {}),
                    **({"rope_switch": at} if (at := switch_within(self.adapter, prompt, len(output))) else {}),
                },
                images=small,
            )
            for small, fact, prompt, (prompt_side, output), file in zip_longest(
                thumbnails(conversations), facts, prompts, tables, files
            )
        ]

    @contextmanager
    def _remembered(self, memory: ImageMemory | None, conversations: Sequence[Conversation]) -> Iterator[Reuse | None]:
        """What earlier calls computed is at hand, as far as the model is still the same."""
        state = None
        if self.prefixes is not None and memory is not None:
            state = memory.state_of(self.adapter)
            self.prefixes.follow(self.adapter, state or "the image features do not outlive a call")
        with remembered(self.adapter, memory, conversations, state) as features:
            yield features

    def _begun(
        self, conversations: Sequence[Conversation], encoding: Encoding, config: GenerationConfig, options: Options
    ) -> tuple[int, SharedPrefix | None]:
        """How many ids of a session's prompt ran in an earlier call, and all but its last on what they left."""
        if self.prefixes is None or len(conversations) > 1:
            return 0, None
        images = images_key(conversations[0])
        return all_but_last(self.adapter, encoding, config, options, images, self.prefixes) or (0, None)

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""
        return self.score_together([(conversation, candidates)], options)[0]

    def score_together(self, requests: Sequence[tuple[Conversation, Sequence[str]]], options: Options) -> list[Scores]:
        """Score the candidates of each conversation; they can share a batch."""
        started = time.perf_counter()
        conversations = [conversation for conversation, _ in requests]
        memory = ImageMemory(images=1, lasts=False) if self.memory is None else self.memory
        with alone(self.adapter), self._remembered(memory, conversations) as features:
            facts = self._facts(conversations)
            found = score(self.adapter, self.head, self.detokenizer, requests, options, self.prefixes)
        return self._scores(requests, facts, found, features, time.perf_counter() - started)

    def _scores(
        self,
        requests: Sequence[tuple[Conversation, Sequence[str]]],
        facts: Sequence[dict[str, Any]],
        found: Sequence[tuple[list[TokenTable], list[str | None], dict[str, Any]]],
        features: Reuse | None,
        seconds: float,
    ) -> list[Scores]:
        meta: dict[str, Any] = {"value_kind": "raw", "timings": {"score_s": seconds / len(requests)}}
        if len(requests) > 1:
            meta["batch_size"] = len(requests)
        if features is not None:
            meta["image_features"] = str(features)
        small = thumbnails([conversation for conversation, _ in requests])
        return [
            Scores(list(candidates), tables, boundaries, {**fact, **meta, **told}, images)
            for (_, candidates), images, fact, (tables, boundaries, told) in zip(
                requests, small, facts, found, strict=True
            )
        ]

    def answer_and_score(
        self, requests: Sequence[tuple[Conversation, Sequence[str]]], options: Options
    ) -> list[tuple[Result, Scores | None]]:
        """Answer conversations as one batch, and score the candidates of each on the cache of its prompt.

        Where that cannot be continued, they are scored as by :meth:`score_together`.
        """
        wanted = [place for place, (_, candidates) in enumerate(requests) if candidates]
        several = [requests[place] for place in wanted]
        scores: list[Scores] = []

        def after(ran: Run, encoding: Encoding) -> None:
            started = time.perf_counter()
            asked = states_after_answers(self.adapter, requests, wanted, encoding, ran)
            if asked is not None:
                found = scored(self.head, self.detokenizer, asked, options)
                facts = self._facts([conversation for conversation, _ in several])
                scores.extend(self._scores(several, facts, found, None, time.perf_counter() - started))

        results = self.generate(
            [conversation for conversation, _ in requests], options, after=after if wanted else None
        )
        if wanted and not scores:
            scores = self.score_together(several, options)
        by_place = dict(zip(wanted, scores, strict=True))
        return [(result, by_place.get(place)) for place, result in enumerate(results)]

    def stream(self, conversation: Conversation, options: Options) -> Stream:
        """Stream the answer to a conversation, token by token."""
        config = self._config(options)
        if (config.num_beams or 1) > 1:
            raise GenerationOptionError("Beams are known only at the end: stream with num_beams=1, or call generate.")

        def answer(listener: Callable[[TokenTable], bool]) -> Result:
            rows = Rows(self.detokenizer, options.begin)
            closed = False

            def listen(steps: Steps, ids: Tensor) -> bool:
                nonlocal closed
                closed = listener(rows.of(steps, ids))
                return closed

            result = self.generate([conversation], options, listen)[0]
            ended = result.finish_reason == "length" or int(result.output.ids[-1]) in end_ids(config)
            return result if ended or not closed else replace(result, meta={**result.meta, "finish_reason": "closed"})

        return Stream(answer, given=len(options.begin))

    def score_ids(
        self, conversations: Sequence[Conversation], ids: Sequence[int], options: Options
    ) -> list[TokenTable]:
        """The tables of the same answer ids after each of the conversations, all with the same number of images."""
        with alone(self.adapter), remembered(self.adapter, self.memory, conversations):
            encoding = self.adapter.encode(conversations)
            warn_if_beyond(self.adapter.model.config, encoding.prompts)
            require_one_side(self.adapter, [len(each.ids) for each in encoding.prompts], len(ids))
            return score_ids(self.adapter, self.head, self.detokenizer, encoding, ids, options)

    def layers(
        self, conversation: Conversation, options: Options, **what: Any
    ) -> tuple[Result | None, TokenTable, LayerColumns]:
        """Decode every decoder layer: see :func:`~vlmprobe.engines.local.layer_readout.layer_columns`."""
        self._config(options)
        with alone(self.adapter):
            return layer_columns(
                self.adapter,
                self.head,
                self.detokenizer,
                lambda: self.generate([conversation], options)[0],
                conversation,
                options,
                **what,
            )

    def second_prompt(self, conversation: Conversation) -> SecondPrompt:
        """A second prompt on this model, fed an answer's tokens while that answer is generated."""
        self.adapter.check(conversation)
        return SecondPrompt(self.adapter, conversation)

    def continuations(self, conversation: Conversation) -> Continuations:
        """The prompt of a conversation, to be continued by many paths of ids."""
        return Continuations(self.adapter, self.head, conversation)

    def prompt_ids(self, conversation: Conversation) -> np.ndarray:
        """int64 [S]: a conversation's prompt as the model receives it, image placeholders included."""
        return self.adapter.encode([conversation]).prompts[0].ids

    def answer_ids(self, conversation: Conversation, text: str) -> list[int]:
        """Ids of a text that directly follows the prompt of a conversation.

        Raises:
            MessageError: if the tokenizer merges the two, so that the answer has no tokens of its own.
        """
        prompt = self.adapter.encode([conversation]).prompts[0]
        found = self.adapter.continuation(prompt, text)
        if found.shared < len(prompt.ids):
            lost = self.detokenizer.decode(prompt.ids[found.shared :].tolist())
            raise MessageError(
                f"The answer {text!r} merges with the end of the prompt, {lost!r}: start it differently or pass ids."
            )
        return list(found.ids)

    def prompt_rows(self, prompt: EncodedPrompt) -> PromptRows:
        """The rows of a prompt's table."""
        return prompt_rows(prompt.ids, prompt.spans, self.detokenizer.special)

    def _config(self, options: Options) -> GenerationConfig:
        return generation_config(self.adapter.model.generation_config, options.generation, self.adapter.end_ids)

    def prompt_table(self, prompt: EncodedPrompt, states: Tensor, options: Options) -> TokenTable:
        """The table of a prompt of S positions from its states [S, H] that enter the head; further rows are ignored."""
        return prompt_table(self.head, self.detokenizer, prompt, states, options)

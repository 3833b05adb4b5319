"""The face: load a model, ask it against a context, see the conflict, decide who wins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from conflictkit import _hf, atlas, calibration, engine, models, passages, scoring
from conflictkit._hf_compiled import Steps
from conflictkit.answers import Answer, AnswerStream, before_stop
from conflictkit.errors import InvalidParameterError
from conflictkit.options import (
    Contexts,
    Job,
    Method,
    check_used,
    closed_book,
    given_once,
    of_rows,
    pair,
    passages_of,
    resolve,
    settled,
)
from conflictkit.plan import EDITED, open_streams
from conflictkit.policy import PARTS, Policy, choose
from conflictkit.prompts import Prompt, PromptTemplate, build_prompts
from conflictkit.sampling import Decoding
from conflictkit.stepping import Stepper
from conflictkit.trace import Trace
from conflictkit.trace.decode import decode
from conflictkit.types import Case, Generation


class Model:
    """A language model and its tokenizer, ready to be asked.

    `ask`, `ask_batch` and `stream` share these keyword options:
        the method's own parameters, by name;
        when, strength, start_after: when and how strongly the method acts; see
            `conflictkit.controller.Controller`;
        policy: a `conflictkit.policy.Policy` or its file, instead of a method;
        the fields of `conflictkit.sampling.Decoding` (`max_new_tokens`, `temperature`, `top_k`,
            `top_p`, `seed`, `num_beams`, `n`, `stop`, `length_penalty`);
        trace: record what happens at each token (default True); this reads the memory stream even
            for methods that do not need it;
        scores: names of the detectors to record in the trace;
        per_passage: also read every passage by itself (one stream more for each) and record in the
            trace which of them each token agrees with, and how far they are apart;
        top: candidates of each stream to record per token (default 5);
        chat: use the tokenizer's chat template; None (default): if it has one;
        template: a `conflictkit.prompts.PromptTemplate`, the wording of the prompts;
        heads: rankings (`conflictkit.interventions.ranking.HeadRanking`) or files of them, for
            methods that edit heads; by default Atlas's own, for Atlas;
        probe: a `conflictkit.detectors.probe.LayerProbe` or its file, for gates such as
            `probe > 0.7`;
        road: `packed` (default), `padded` or `sequential`: see `conflictkit.together`;
        cache: a `conflictkit.prompt_cache.PromptCache`: what was read before is not read again;
        compile: compile the step (default False: it takes a while, and pays in long runs);
        drafts: tokens to guess ahead: 0 (default), a number or `auto`: see `conflictkit.drafting`;
        truncate: cut the end of a context that does not fit the window (default False: an error);
        processors: transformers' logits processors, applied to the context stream before the
            method.

    Attributes:
        model, tokenizer: the plain Hugging Face objects (the model in evaluation mode).
        name: what the model was loaded by.
        window: most positions the model can read, or None if unknown.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.window = _hf.window(model, tokenizer)
        self._end_ids = _hf.end_tokens(model, tokenizer)
        self._steps = Steps()

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {type(self.model).__name__})"

    def ask(
        self,
        question: str,
        context: Contexts = None,
        method: Method | None = None,
        *,
        documents: Contexts = None,
        **options: Any,
    ) -> Answer:
        """Ask one question.

        Args:
            question: what is asked.
            context: one passage, several in order, or None for closed book.
            method: a method's name, `name?parameter=value&...`, a rule or a controller; None:
                `adacad`, unless a policy is given.
            documents: another name for `context`.
            options: see the class; `compare=True` as in `ask_batch`.

        Raises:
            ConflictKitError: what `ask_batch` raises.
        """
        context = given_once(context, documents)
        return self.ask_batch([question], [context], method, **options)[0]

    def ask_batch(
        self,
        questions: Sequence[str],
        contexts: Sequence[Contexts] | None = None,
        method: Method | Sequence[Method] | None = None,
        *,
        documents: Sequence[Contexts] | None = None,
        compare: bool = False,
        **options: Any,
    ) -> list[Answer]:
        """Ask several questions in one batch; lengths may differ, rows do not touch each other.

        Args:
            questions, contexts: one entry per row; a row without context is closed book.
            method: as in `ask`, for all rows, or a list with one per row (`policy` likewise).
            documents: another name for `contexts`.
            compare: also answer plainly with the context and from memory (two more runs).
            options: see the class.

        Returns:
            One answer per question, in order.

        Raises:
            UnknownNameError, InvalidParameterError: method, parameter, detector or option.
            EmptyInputError, ContextTooLongError, BoundaryError, TokenizerError: question, context.
            LogitsError: the model's logits cannot be used.
        """
        rows = pair(questions, given_once(contexts, documents))
        job, prompts = self._prepare(rows, method, options)
        answers: dict[int, Answer] = {}
        for closed in (True, False):
            places = [place for place, (_, passages) in enumerate(rows) if closed != bool(passages)]
            if not places:
                continue
            chosen = [prompts[place] for place in places]
            own = of_rows(job, places, len(rows))
            own = closed_book(own) if closed else own
            run = self._stepper(own, chosen)
            made = engine.generate(run)
            others = {
                name: self._texts(name, own, chosen, made)
                for name in (("memory",) if closed else ("plain", "memory"))
                if compare
            }
            for position, place in enumerate(places):
                cut = any(prompt.truncated for prompt in chosen[position].values())
                first, *rest = (
                    self._answer(own, position, rows[place], one, run, truncated=cut)
                    for one in made[position]
                )
                said = {f"{name}_answer": texts[position] for name, texts in others.items()}
                trace = replace(first.trace, **said) if first.trace is not None else None
                answers[place] = replace(first, alternatives=tuple(rest), trace=trace, **said)
        return [answers[place] for place in range(len(rows))]

    def stream(
        self,
        question: str,
        context: Contexts = None,
        method: Method | None = None,
        *,
        documents: Contexts = None,
        **options: Any,
    ) -> AnswerStream:
        """Ask one question and get the text piece by piece; arguments and errors as `ask`.

        Everything is checked before the first piece. Beams come in one piece.
        """
        ((_, found),) = rows = pair([question], [given_once(context, documents)])
        job, prompts = self._prepare(rows, method, options)
        if job.decoding.n > 1:
            raise InvalidParameterError("a stream holds one answer: leave n at 1")
        own = job if found else closed_book(job)
        cut, run = any(one.truncated for one in prompts[0].values()), self._stepper(own, prompts)
        return AnswerStream(
            engine.stream(run),
            self._decode,
            own.decoding.stop,
            lambda made: self._answer(own, 0, rows[0], made, run, truncated=cut),
        )

    score = scoring.score

    @cached_property
    def fingerprint(self) -> str:
        """`conflictkit.models.fingerprint` of the weights, taken when first asked for."""
        return models.fingerprint(self.model)

    def calibrate(
        self,
        cases: Sequence[Case],
        *,
        detector: str = "jsd",
        false_alarm: float = 0.05,
        method: Method | None = None,
        at: str = "step",
        **options: Any,
    ) -> Policy:
        """A policy whose gate raises a false alarm with at most a given probability.

        Args:
            cases: as `conflictkit.atlas.cases` gives them: those of agreement set the threshold.
            detector, false_alarm, at: see `conflictkit.calibration.calibrate`.
            method: what the gate is put before, as in `ask`.
            options: `policy`, `strength` and `start_after` as in `ask`, and options of the class.

        Returns:
            The policy, tied to this model; `save` it, or pass it on as `policy=`.

        Raises:
            ConflictKitError: what `calibrate` and `ask` raise.
        """
        policy = choose(
            method,
            options.pop("policy", None),
            {name: options.pop(name, None) for name in PARTS if name != "when"},
        )
        return calibration.calibrate(
            self, cases, policy, detector=detector, false_alarm=false_alarm, at=at, **options
        )

    def prompts(
        self,
        question: str,
        context: Contexts = None,
        *,
        chat: bool | None = None,
        template: PromptTemplate | None = None,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> dict[str, Prompt]:
        """The prompts that the streams read; see `conflictkit.prompts.build_prompts`.

        Args:
            max_new_tokens: positions to leave free for the answer.
        """
        limit = None if self.window is None else self.window - max_new_tokens
        if limit is not None and limit < 1:
            raise InvalidParameterError(
                f"max_new_tokens={max_new_tokens} leaves no room in a window of {self.window}"
            )
        return build_prompts(
            self.tokenizer,
            question,
            passages_of(context),
            chat=chat,
            template=template,
            limit=limit,
            truncate=truncate,
        )

    def _prepare(
        self,
        rows: Sequence[tuple[str, tuple[str, ...]]],
        method: Method | Sequence[Method] | None,
        options: Mapping[str, Any],
    ) -> tuple[Job, list[dict[str, Prompt]]]:
        """Resolve every name and build every prompt, before anything is read."""
        job, wording = self._resolve(method, options, len(rows))
        check_used(job)
        prompts = [self.prompts(question, found or None, **wording) for question, found in rows]
        if job.per_passage:
            passages.add_prompts(rows, prompts, partial(self.prompts, **wording))
        return job, prompts

    def _resolve(
        self, method: Method | Sequence[Method] | None, options: Mapping[str, Any], rows: int
    ) -> tuple[Job, dict[str, Any]]:
        """Every name resolved for this model: the job, and the arguments of `prompts`."""
        job, wording = resolve(method, options, rows)
        found = settled(job, self.name, lambda: self.fingerprint)
        bound = (replace(p, controller=p.controller.bound(self.tokenizer)) for p in found)
        return replace(job, policies=tuple(bound)), wording

    def _stepper(self, job: Job, prompts: Sequence[Mapping[str, Prompt]]) -> Stepper:
        control = job.control
        needed = {*control.needs, *(name for score in job.scores for name in score.needs)}
        needed |= {"context"} if job.processors else set()
        compared = passages.sources(prompts) if job.per_passage and job.top is not None else ()
        names = [*prompts[0], *control.needs, *compared]
        streams = open_streams(
            self.model,
            control,
            {name: passages.ids(prompts, name) for name in names if name not in EDITED},
            pad_id=self.tokenizer.pad_token_id,
            end_ids=self._end_ids,
            names=[name for name in dict.fromkeys(names) if name in {*needed, *compared}],
            prompts_read=job.cache,
            spans=[prompt["context"].context for prompt in prompts if "context" in prompt],
        )
        return Stepper(
            streams,
            control,
            job.decoding,
            end_ids=self._end_ids,
            decode=self._decode,
            detectors=job.scores,
            top=job.top,
            compare=compared,
            processors=job.processors,
            road=job.road,
            drafts=job.drafts,
            steps=self._steps if job.compile else None,
        )

    def _texts(
        self,
        method: str,
        job: Job,
        prompts: Sequence[Mapping[str, Prompt]],
        made: Sequence[Sequence[Generation]],
    ) -> list[str]:
        """First answers under another method; `made` is reused where the job already is that."""
        wanted = Policy.of(method)
        if set(job.policies) != {wanted}:
            other = replace(job, policies=(wanted,), scores=(), top=None)
            made = engine.generate(self._stepper(other, prompts))
        return [self._text(row[0], job.decoding).strip() for row in made]

    def _answer(
        self,
        job: Job,
        row: int,
        asked: tuple[str, tuple[str, ...]],
        made: Generation,
        run: Stepper,
        *,
        truncated: bool,
    ) -> Answer:
        text = self._text(made, job.decoding)
        controller = job.of_row(row)
        shared: dict[str, Any] = {
            "model": self.name,
            "method": controller.name,
            "params": controller.params,
            "question": asked[0],
            "contexts": asked[1],
        }
        trace = None
        if job.top is not None:
            trace = Trace.from_generation(made, self.tokenizer, answer=text, **shared)
        return Answer(
            text=text.strip(),
            trace=trace,
            stats=made.stats,
            finish_reason=made.finish_reason,
            score=made.score,
            truncated=truncated,
            passage_cost=passages.cost(run.streams, run.compare) if run.compare else None,
            **shared,
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids)

    def _text(self, made: Generation, decoding: Decoding) -> str:
        return before_stop(self._decode(made.ids), decoding.stop)


def load(
    model: Any,
    *,
    tokenizer: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    pad_token: str | None = None,
    **options: Any,
) -> Model:
    """Load a model to ask: `atlas`, a Hugging Face id or folder, or an already loaded model.

    Args:
        model: `"atlas"` for the model shipped in the package (no network), a folder, a hub id, or a
            Hugging Face model object.
        tokenizer: needed beside a model object; else instead of the model's own.
        device, dtype, pad_token, options: see `conflictkit.models.load_pretrained`; a model object
            takes only `pad_token`.

    Raises:
        UnknownNameError, ModelLoadError, TokenizerError, UnsupportedError: what cannot be loaded,
            or cannot work.
    """
    if isinstance(model, str | os.PathLike):
        place = atlas.path() if model == "atlas" else model
        how = {"device": device, "dtype": dtype, "pad_token": pad_token, "tokenizer": tokenizer}
        loaded, own = models.load_pretrained(place, **how, **options)
        return Model(loaded, own, os.fspath(model))
    if device is not None or dtype is not None or options:
        raise InvalidParameterError("a loaded model keeps its device and dtype: pass it alone")
    told = getattr(getattr(model, "config", None), "name_or_path", "")
    name = str(told or type(model).__name__)
    return Model(*models.check(model, tokenizer, name=name, pad_token=pad_token), name)

"""What a model knows by itself: every question asked closed book, greedily and by sampling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from conflictkit import __version__, engine
from conflictkit.answers import before_stop
from conflictkit.errors import (
    BoundaryError,
    ContextTooLongError,
    InvalidParameterError,
    LogitsError,
    unknown_name,
)
from conflictkit.evaluation.answered import Answered, Said, cache_folder, prompt_hash
from conflictkit.evaluation.metrics.source import judge
from conflictkit.evaluation.metrics.text import spans, words
from conflictkit.evaluation.questions import Question
from conflictkit.scoring.run import Progress
from conflictkit.scoring.scorer import batches
from conflictkit.states import UNSCREENED
from conflictkit.stepping import Stepper
from conflictkit.streams import Stream
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.options import Job
    from conflictkit.sampling import Decoding
    from conflictkit.toolkit import Model

PRIORS = ("right", "wrong", "uncertain")
"""What a model's memory of an answer can be."""
OPTIONS = ("max_new_tokens", "stop", "top_k", "top_p", "chat", "template")
"""Options of `Model` that say how a closed-book answer is worded and decoded."""
LONGEST = 32
"""Tokens of the longest closed-book answer, unless `max_new_tokens` says otherwise."""
REFUSALS = ("unknown", "not known", "none", "no answer", "not available")
"""Answers that are none: a model that declines believes nothing wrong."""
REFUSAL_OPENINGS = (
    "I don't know", "I do not know", "I'm not sure", "I am not sure", "I can't answer",
    "I cannot answer", "I'm sorry", "I am sorry",
)  # fmt: skip
"""How longer ones begin."""

_ROW_ERRORS = (ContextTooLongError, BoundaryError)
_REFUSED = frozenset(words(text) for text in REFUSALS)
_OPENINGS = tuple(words(text) for text in REFUSAL_OPENINGS)


@dataclass(frozen=True)
class Prior:
    """What a model answers to one question without a context.

    Attributes:
        id: the question's.
        state: `right`, `wrong` or `uncertain`.
        answer: the greedy answer: its first line, without a full stop.
        samples: the sampled answers, likewise.
        right_share: share of samples that give the true answer.
        same_share: share of samples that say the same as the greedy answer.
    """

    id: str
    state: str
    answer: str
    samples: tuple[str, ...]
    right_share: float
    same_share: float


@dataclass(frozen=True)
class Asked:
    """The priors of a question set.

    Attributes:
        priors: question id -> prior.
        dropped: question id -> why it could not be asked.
        asked: prompts that were put to the model in this run.
        known: prompts whose answers were kept from before.
    """

    priors: Mapping[str, Prior]
    dropped: Mapping[str, str]
    asked: int
    known: int


def ask_priors(
    model: Model,
    questions: Sequence[Question],
    *,
    samples: int = 10,
    temperature: float = 0.7,
    seed: int = 0,
    right: float = 0.8,
    wrong: float = 0.5,
    batch_size: int = 16,
    batch_tokens: int = 16384,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Asked:
    """Ask every question closed book, greedily and by sampling, and say what the model knows.

    A prior is `right` if the greedy answer gives the true one and at least the share `right` of the
    samples does; `wrong` if the greedy answer does not and at least the share `wrong` of the
    samples says the same as it; else `uncertain`. Where the greedy answer is empty or declines to
    answer the prior is `uncertain`. An answer is given as `metrics.source.judge` has it: its words
    follow each other in what was said, and not inside a longer answer of the set.

    The draws of a question depend on `seed` and its prompt alone, not on its neighbours.

    Args:
        model: as `conflictkit.load` returns it.
        questions: with unique ids.
        samples: sampled answers per question, at least 1.
        temperature: of the samples, above 0.
        seed: of the samples.
        right, wrong: shares from 0 to 1, `wrong` above 0; see above.
        batch_size: most questions in a batch; each is decoded once greedily and `samples` times.
        batch_tokens: most prompt tokens in a batch, padding included.
        cache: folder where answers are kept between runs; None: `answered.cache_folder()`.
        progress: called before the first batch and after each.
        options: `max_new_tokens` (by default 32), `stop`, `top_k`, `top_p`, `chat` and `template`,
            as in `Model.ask`.

    Side effects: appends to a file in the cache after each batch.

    Raises:
        UnknownNameError, InvalidParameterError: an option.
        OutputError: the cache cannot be written.
        ConflictKitError: what `Model.ask` raises for every question.
    """
    for name in options:
        if name not in OPTIONS:
            raise unknown_name("option of a screening", name, OPTIONS)
    _check(samples, temperature, right, wrong, batch_size, batch_tokens)
    given = {"max_new_tokens": LONGEST, **options, "temperature": temperature, "seed": seed}
    job, wording = model._resolve("memory", {**given, "trace": False}, 1)
    job = replace(job, decoding=replace(job.decoding, n=samples))
    prompts, dropped = _prompts(model, questions, wording)
    known = Answered(cache or cache_folder(), _settings(model, job.decoding))
    wanted = {key: ids for key, ids in prompts.values() if known.get(key) is None}
    done = len(prompts) - sum(key in wanted for key, _ in prompts.values())

    def tell() -> None:
        if progress is not None:
            progress(Progress(done, done / len(prompts) if prompts else 1.0))

    tell()
    shared: dict[str, int] = {}
    for key, _ in prompts.values():
        shared[key] = shared.get(key, 0) + 1
    failed: dict[str, str] = {}
    keys = list(wanted)
    for places in batches([(False, len(wanted[key])) for key in keys], batch_size, batch_tokens):
        part = {keys[place]: wanted[keys[place]] for place in places}
        said = dict(_answers(model, job, part, failed))
        if said:
            known.add(said)
        done += sum(shared[key] for key in part)
        tell()
    longer = _longer(questions)
    priors: dict[str, Prior] = {}
    for question in questions:
        if question.id not in prompts:
            continue
        key, _ = prompts[question.id]
        said = known.get(key)
        if said is None:
            dropped[question.id] = failed[key]
        else:
            priors[question.id] = prior_of(question, said, right, wrong, longer)
    return Asked(priors, dropped, len(wanted), len(shared) - len(wanted))


def prior_of(
    question: Question,
    said: Said,
    right: float = 0.8,
    wrong: float = 0.5,
    longer: Mapping[tuple[str, ...], Sequence[str]] | None = None,
) -> Prior:
    """What the answers of a model say about its memory; see `ask_priors`.

    Args:
        question: what was asked.
        said: the answers.
        right, wrong: shares.
        longer: words of an answer -> answers of the set that contain it.
    """
    others = [one for name in question.answers for one in (longer or {}).get(words(name), ())]
    greedy, *samples = (spoken(text) for text in (said.greedy, *said.samples))
    true = [_gives(question, others, text) for text in (greedy, *samples)]
    same = [words(text) == words(greedy) for text in samples]
    right_share, same_share = (sum(flags) / max(len(samples), 1) for flags in (true[1:], same))
    state = "uncertain"
    if true[0]:
        state = "right" if right_share >= right else state
    elif greedy and not declined(greedy) and same_share >= wrong:
        state = "wrong"
    return Prior(question.id, state, greedy, tuple(samples), right_share, same_share)


def spoken(text: str) -> str:
    """The first line of an answer that holds something, without a full stop at its end: what models
    without an end of their own write behind it belongs to the next question."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line[:-1].rstrip() if line.endswith(".") and not line.endswith("..") else line


def declined(answer: str) -> bool:
    """Whether an answer is one of `REFUSALS` or begins like one of `REFUSAL_OPENINGS`."""
    said = words(answer)
    return said in _REFUSED or any(said[: len(start)] == start for start in _OPENINGS)


def _gives(question: Question, others: Sequence[str], answer: str) -> bool:
    """Whether an answer gives a true one, and not merely inside one of the `others`."""
    case = Case(
        question.id, question.split, question.relation, question.subject, question.question,
        (), "", tuple(others), (), question.answers, UNSCREENED,
    )  # fmt: skip
    return judge(case, answer).right


def _longer(questions: Sequence[Question]) -> dict[tuple[str, ...], list[str]]:
    """Words of an answer -> those answers of the set that contain them and more."""
    names = {words(name): name for question in questions for name in question.answers}
    found: dict[tuple[str, ...], list[str]] = {}
    for long, name in names.items():
        for size in range(1, len(long)):
            for start in range(len(long) - size + 1):
                part = long[start : start + size]
                if part in names and spans(long, part):
                    found.setdefault(part, []).append(name)
    return found


def _prompts(
    model: Model, questions: Sequence[Question], wording: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Question id -> hash and ids of its prompt, and what is wrong with those that have none."""
    prompts, dropped = {}, {}
    for question in questions:
        try:
            ids = model.prompts(question.question, **wording)["memory"].ids
        except _ROW_ERRORS as error:
            dropped[question.id] = str(error)
        else:
            prompts[question.id] = (prompt_hash(ids), tuple(ids))
    return prompts, dropped


def _answers(
    model: Model, job: Job, part: Mapping[str, tuple[int, ...]], failed: dict[str, str]
) -> Iterator[tuple[str, Said]]:
    """What the model says to each prompt; what it cannot answer goes to `failed`."""
    try:
        said = _batch(model, job, part)
    except LogitsError as error:
        if len(part) > 1:
            for key, ids in part.items():
                yield from _answers(model, job, {key: ids}, failed)
        else:
            failed |= dict.fromkeys(part, str(error))
        return
    except torch.OutOfMemoryError as error:
        raise InvalidParameterError(
            f"no memory is left for a batch of {len(part)} questions with {job.decoding.n} samples "
            "each: set a smaller batch_size (command line: --batch-size); what is finished is kept"
        ) from error
    yield from zip(part, said, strict=True)


def _batch(model: Model, job: Job, part: Mapping[str, tuple[int, ...]]) -> list[Said]:
    """Greedy and sampled answers, all from one reading of the prompts."""
    stream = Stream(model.model, list(part.values()), pad_id=model.tokenizer.pad_token_id)
    stream.prefill()
    sampled = job.decoding
    seeds = tuple(_seed(sampled.seed, key) for key in part)
    greedy = replace(sampled, temperature=0.0, top_k=None, top_p=None, seed=None, n=1)
    made = []
    for decoding in (greedy, replace(sampled, seed=seeds)):
        run = Stepper(
            {"memory": stream.fork()},
            job.control,
            decoding,
            end_ids=model._end_ids,
            decode=model._decode,
        )
        made.append(engine.generate(run))

    def text(ids: Sequence[int]) -> str:
        return before_stop(model._decode(ids), sampled.stop)

    return [
        Said(text(first.ids), tuple(text(one.ids) for one in others))
        for (first,), others in zip(*made, strict=True)
    ]


def _seed(seed: Any, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:7], "big")


def _settings(model: Model, decoding: Decoding) -> dict[str, Any]:
    """What decides an answer, beside the prompt."""
    return {
        "version": __version__,
        "model": model.fingerprint,
        "dtype": str(model.model.dtype),
        "decoding": asdict(decoding) | {"stop": list(decoding.stop)},
    }


def _check(samples: Any, temperature: Any, right: Any, wrong: Any, *sizes: Any) -> None:
    for name, value in zip(
        ("batch_size", "batch_tokens", "samples"), (*sizes, samples), strict=True
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidParameterError(f"{name} must be a whole number from 1, not {value!r}")
    for name, value in (("right", right), ("wrong", wrong)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:
            raise InvalidParameterError(f"{name} must be a share from 0 to 1, not {value!r}")
    if wrong == 0:
        raise InvalidParameterError("wrong must be above 0: else every greedy slip is a conviction")
    if temperature == 0:
        raise InvalidParameterError("temperature must be above 0: at 0 all samples are one")

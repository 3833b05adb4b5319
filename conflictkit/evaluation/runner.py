"""Cases under several methods: read once, answered by each, kept so that nothing is done twice."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from conflictkit import __version__
from conflictkit.errors import (
    ConflictKitError,
    EmptyInputError,
    InvalidParameterError,
    LogitsError,
    unknown_name,
)
from conflictkit.evaluation.asking import CASE_ERRORS, Ready, pick, prepare
from conflictkit.evaluation.cases import cases_hash, load_cases
from conflictkit.evaluation.contenders import Contender, Group, Policies, contenders
from conflictkit.evaluation.folder import Aside, Folder, Run, check_folder, load_run
from conflictkit.evaluation.metrics import summarise, text
from conflictkit.evaluation.record import Result
from conflictkit.evaluation.shared import Batch, PromptsRead
from conflictkit.evaluation.writing import Writer
from conflictkit.plan import has_edits
from conflictkit.policy import Policy
from conflictkit.prompt_cache import PromptCache, check_cache
from conflictkit.scoring.run import Progress
from conflictkit.scoring.scorer import batches
from conflictkit.types import Case

if TYPE_CHECKING:
    from conflictkit.sampling import Decoding
    from conflictkit.toolkit import Model

OPTIONS = (
    "max_new_tokens", "stop", "temperature", "top_k", "top_p", "chat", "template", "truncate",
    "heads", "probe",
)  # fmt: skip
"""Options of `Model` that say how an answer is worded and decoded."""


def evaluate(
    model: Model,
    cases: str | os.PathLike[str] | Sequence[Case],
    methods: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    policies: Policies = (),
    split: str | None = None,
    limit: int | None = None,
    spec: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    batch_tokens: int = 16384,
    top: int = 3,
    match: str = text.DEFAULT,
    overwrite: bool = False,
    cache: PromptCache | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Run:
    """Answer every case under every method, and sum up.

    Prompts are read once, however many methods there are and however many values a sweep
    has. Called again after it was cut short, by whatever means, it goes on where it stopped; only
    the batch sizes may differ then. Called again after it was finished, it does nothing.

    Args:
        model: as `conflictkit.load` returns it.
        cases: what `conflictkit.evaluation.cases.load_cases` reads (`atlas`, a file, ...), or the
            cases.
        methods, policies: see `conflictkit.evaluation.contenders.contenders`.
        out: the folder to write, one per run.
        split: only the cases of this split.
        limit: at most so many cases, drawn in equal shares from the states.
        spec: what `run.json` calls cases that are given one by one.
        seed: of that draw, of the intervals, and of sampled answers: case number n (from 0) draws
            from seed + n under every method.
        batch_size: most cases in a batch.
        batch_tokens: most tokens of the longer stream in a batch, padding included.
        top: candidates of each stream to record per token.
        match: how the figures recognise an answer, a name in
            `conflictkit.evaluation.metrics.text.MATCHES`.
        overwrite: replace another run, or a finished one.
        cache: where prompts are kept, so that a question or a document that comes again is not
            read again; None: one of its own, of 1 GiB.
        progress: called before the first batch and after each.
        options: `max_new_tokens`, `stop`, `temperature`, `top_k`, `top_p`, `chat`, `template`,
            `truncate`, `heads` and `probe`, as in `Model.ask`.

    Returns:
        The run, as `load_run` gives it.

    Side effects: writes the folder; see `conflictkit.evaluation.folder`. What is in it survives
    any crash.

    Raises:
        UnknownNameError, InvalidParameterError, PolicyError, UnsupportedError: a method, option or
            source of cases.
        RowError: a malformed case, with its file, line and field.
        EmptyInputError: no cases, or none that can be asked.
        OutputError: the folder cannot be written, or holds something else.
        ResumeError: the folder holds another run.
        ConflictKitError: what `Model.ask` raises for every question.
    """
    for name in options:
        if name not in OPTIONS:
            raise unknown_name("option of an evaluation", name, OPTIONS)
    sizes = {"batch_size": batch_size, "batch_tokens": batch_tokens, "top": top}
    for name, value in sizes.items():
        _check_whole(name, value)
    kept = check_cache(cache)
    if isinstance(cases, str | os.PathLike):
        spec = os.fspath(cases)
    given, chosen = check_request(
        cases, methods, out, policies=policies, split=split, limit=limit, seed=seed, match=match
    )
    groups, decoding, wording = _bound(model, given, {**options, "seed": seed})
    info = {
        "model": _model_info(model),
        "cases": {
            "spec": spec,
            "hash": cases_hash(chosen),
            "count": len(chosen),
            "states": dict(Counter(case.state for case in chosen)),
        },
        "methods": [one.label for group in groups for one in group],
        "policies": {one.label: one.policy.to_dict() for group in groups for one in group},
        "options": _options(decoding, wording) | {"split": split, "limit": limit} | sizes,
        "versions": _versions(),
    }
    ready, aside = _prepared(model, chosen, wording)
    with Folder(out, info, chosen, overwrite=overwrite) as folder:
        if not folder.finished:
            folder.add((), aside)
            writer = Writer(model, decoding.stop, top)
            kept = PromptCache() if kept is None else kept
            run = _Runner(model, groups, decoding, folder, writer, kept)
            run.all(ready, sizes, progress)
        done = load_run(out)
        # A crash may have come between the figures and the word that the run is finished.
        if not folder.finished or done.summary is None or done.summary.match != match:
            folder.finish(summarise(done.cases, done.results, seed=seed, match=match))
    return load_run(out)


def check_request(
    cases: str | os.PathLike[str] | Sequence[Case],
    methods: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    policies: Policies = (),
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    match: str = text.DEFAULT,
) -> tuple[tuple[Group, ...], list[Case]]:
    """What can be found wrong with a request before a model is loaded; arguments as `evaluate`.

    Returns:
        The methods and the cases that were asked for.

    Raises:
        ConflictKitError: as `evaluate`.
    """
    if match not in text.MATCHES:
        raise unknown_name("match", match, text.MATCHES)
    if limit is not None:
        _check_whole("limit", limit)
    given = contenders(methods, policies)
    check_folder(out)
    if isinstance(cases, str | os.PathLike):
        cases = load_cases(os.fspath(cases))
    chosen = pick(cases, split, limit, seed)
    if not chosen:
        raise EmptyInputError("there are no cases to evaluate")
    return given, chosen


class _Runner:
    def __init__(
        self,
        model: Model,
        groups: Sequence[Group],
        decoding: Decoding,
        folder: Folder,
        writer: Writer,
        cache: PromptCache,
    ) -> None:
        self._model, self._groups, self._decoding = model, groups, decoding
        self._folder, self._writer = folder, writer
        self._read = PromptsRead(cache)
        self._methods = [one for group in groups for one in group]
        memory = Policy.of("memory")
        self._closed = (Contender("memory", memory),)
        self._editing = tuple(group for group in groups if has_edits(group[0].policy.controller))

    def all(
        self,
        ready: Sequence[Ready],
        sizes: Mapping[str, int],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """Answer every case, batch by batch, but for those that are done."""
        parts = [
            [ready[place] for place in places]
            for places in batches(
                [one.size for one in ready], sizes["batch_size"], sizes["batch_tokens"]
            )
        ]
        total = sum(map(len, parts)) * len(self._methods)
        done = sum(len(part) * len(self._methods) for part in parts if self._is_done(part))
        if progress is not None:
            progress(Progress(done, done / total))
        left = [part for part in parts if not self._is_done(part)]
        if left:
            self._warm(left[0])
        for part in left:
            try:
                self._finish(part)
            except torch.OutOfMemoryError as error:
                raise InvalidParameterError(
                    f"no memory is left for a batch of {len(part)} cases: set a smaller batch_size "
                    "(command line: --batch-size); what is finished is kept"
                ) from error
            done += len(part) * len(self._methods)
            if progress is not None:
                progress(Progress(done, done / total))

    def _is_done(self, part: Sequence[Ready]) -> bool:
        return all(
            (one.case.id, None) in self._folder.done
            or all((one.case.id, method.label) in self._folder.done for method in self._methods)
            for one in part
        )

    def _warm(self, part: Sequence[Ready]) -> None:
        """The first passes of a process are slow: none of them shall count against a method."""
        short = replace(self._decoding, max_new_tokens=min(2, self._decoding.max_new_tokens))
        try:
            batch = Batch(self._model, part, short, PromptsRead(PromptCache()))
            for _ in batch.answers(
                self._groups[0] if "context" in part[0].prompts else self._closed
            ):
                pass
        except LogitsError:
            return  # `_finish` meets it again, and knows what to do

    def _finish(self, part: Sequence[Ready]) -> None:
        """All methods over a batch. A batch of which something is missing is done again as a whole,
        so that its numbers are those of a run that was never interrupted."""
        try:
            results = self._results(part)
        except LogitsError as error:
            if len(part) > 1:
                for one in part:
                    if not self._is_done([one]):
                        self._finish([one])
                return
            self._folder.add((), [_aside(part[0].case, error)])
            return
        self._folder.add(results)

    def _results(self, part: Sequence[Ready]) -> list[Result]:
        if "context" in part[0].prompts:
            return self._answered(part, self._groups)
        # Without a context every contrast is the memory stream; an edit acts there too.
        memory = self._answered(part, [self._closed])
        alone = [replace(one, prompts={**one.prompts, "context": one.prompts["memory"]},
                         span=(0, 0)) for one in part]  # fmt: skip
        edited = self._answered(alone, self._editing) if self._editing else []
        told = {result.method for result in edited}
        copied = [
            replace(result, method=method.label)
            for method in self._methods
            for result in memory
            if method.label not in told
        ]
        return copied + edited

    def _answered(self, part: Sequence[Ready], groups: Sequence[Group]) -> list[Result]:
        batch = Batch(self._model, part, self._decoding, self._read)
        found = [pair for group in groups for pair in batch.answers(group)]
        said = {
            (row, answer.ids): None
            for _, answers in found
            for row, (answer, _) in enumerate(answers)
            if answer.ids
        }
        readings = dict(batch.read(list(said), self._writer.top))
        choices = {(row, ids): None for row, one in enumerate(part) for ids in one.choices}
        results: list[Result] = []
        for contender, answers in found:
            weighed = batch.choices(contender.policy.controller, list(choices))
            for row, (answer, cost) in enumerate(answers):
                one = part[row]
                scored = {
                    text: weighed[row, ids]
                    for text, ids in zip(one.case.choices, one.choices, strict=True)
                }
                reading = readings.get((row, answer.ids), [])
                results.append(
                    self._writer.result(one, contender.label, answer, cost, reading, scored)
                )
        return results


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidParameterError(f"{name} must be a whole number from 1, not {value!r}")


def _prepared(
    model: Model, cases: Iterable[Case], wording: Mapping[str, Any]
) -> tuple[list[Ready], list[Aside]]:
    """The cases that can be asked, and what is wrong with the others."""
    ready: list[Ready] = []
    aside: list[Aside] = []
    for number, case in enumerate(cases):
        try:
            ready.append(prepare(model, case, number, wording))
        except CASE_ERRORS as error:
            aside.append(_aside(case, error))
    if not ready:
        raise EmptyInputError(f"none of the {len(aside)} cases can be asked: {aside[0].reason}")
    return ready, aside


def _aside(case: Case, error: ConflictKitError) -> Aside:
    return Aside(case.id, type(error).__name__, str(error))


def _bound(
    model: Model, groups: Sequence[Group], options: Mapping[str, Any]
) -> tuple[tuple[Group, ...], Decoding, dict[str, Any]]:
    """The methods made ready for this model, and how answers are decoded and worded."""
    asked = {**options, "trace": False}
    job, wording = model._resolve("plain", asked, 1)

    def bind(one: Contender) -> Contender:
        mine, _ = model._resolve(None, {**asked, "policy": one.policy}, 1)
        return replace(one, policy=mine.policies[0])

    return tuple(tuple(map(bind, group)) for group in groups), job.decoding, wording


def _model_info(model: Model) -> dict[str, Any]:
    inner = model.model
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "class": type(inner).__name__,
        "parameters": sum(one.numel() for one in inner.parameters()),
        "dtype": str(inner.dtype).removeprefix("torch."),
        "device": str(inner.get_input_embeddings().weight.device),
    }


def _options(decoding: Decoding, wording: Mapping[str, Any]) -> dict[str, Any]:
    """Decoding and wording as JSON holds them."""
    told = asdict(decoding) | {"stop": list(decoding.stop)}
    template = wording["template"]
    return {
        **{
            name: told[name] for name in ("max_new_tokens", "stop", "temperature", "top_k", "top_p")
        },
        "seed": decoding.seed,
        "chat": wording["chat"],
        "template": None if template is None else asdict(template),
        "truncate": wording["truncate"],
    }


def _versions() -> dict[str, str]:
    import transformers

    return {
        "conflictkit": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }

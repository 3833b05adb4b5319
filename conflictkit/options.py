"""What a question may be asked with: every option checked and every name resolved before a read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conflictkit import atlas, detectors
from conflictkit.controller import Controller
from conflictkit.detectors.probe import LayerProbe
from conflictkit.drafting import check_drafts
from conflictkit.errors import EmptyInputError, InvalidParameterError, unknown_name
from conflictkit.gates import PROBE
from conflictkit.interventions.contrast import Rule
from conflictkit.interventions.edited import EditRule, SpARE, SteeredRule
from conflictkit.interventions.ranking import HeadRanking
from conflictkit.per_row import PerRow
from conflictkit.policy import PARTS, Policy, choose_rows
from conflictkit.prompt_cache import PromptCache, check_cache
from conflictkit.prompts import PromptTemplate
from conflictkit.sampling import Decoding
from conflictkit.stepping import Processor
from conflictkit.together import ROADS, Road
from conflictkit.types import Control

Contexts = str | Sequence[str] | None
"""No context (closed book), one passage, or several in order."""

Method = str | Rule | Controller
Policies = Policy | str | os.PathLike[str]

OPTIONS = (
    "policy", *PARTS, "trace", "scores", "top", "chat", "template", "truncate", "processors",
    "compare", "documents", "per_passage", "heads", "probe", "road",
    "drafts", "cache", "compile",
)  # fmt: skip

TRACED = ("jsd", "confidence-gain", "context-confidence", "memory-confidence")
"""Detectors that a trace records unless others are named."""


@dataclass(frozen=True)
class Job:
    """How a batch is to be answered, all names resolved.

    Attributes:
        policies: one for every row, or a single one for all of them.
        decoding, scores, top, processors: as `Stepper` takes them.
        per_passage: record what every passage alone makes of each token.
        rankings: where methods that edit heads take them from, if they name none.
        probe: what gates on `probe` read, if they hold none.
        road: the best way of the streams through an answer; see `conflictkit.together`.
        drafts: most tokens to guess ahead; None: as many as are worth it.
        cache: where prompts are taken from that have been read before.
        compile: whether to compile the step that all streams take together.
    """

    policies: tuple[Policy, ...]
    decoding: Decoding
    scores: tuple[detectors.Detector, ...]
    top: int | None
    processors: tuple[Processor, ...]
    per_passage: bool = False
    rankings: tuple[HeadRanking, ...] = ()
    probe: LayerProbe | None = None
    road: Road = "packed"
    drafts: int | None = 0
    cache: PromptCache | None = None
    compile: bool = False

    @property
    def control(self) -> Control:
        """Who wins, for the whole batch."""
        return PerRow.of([policy.controller for policy in self.policies])

    def of_row(self, row: int) -> Controller:
        """Who wins in one row."""
        return self.policies[row if len(self.policies) > 1 else 0].controller


def resolve(
    method: Method | Sequence[Method] | None, options: Mapping[str, Any], rows: int
) -> tuple[Job, dict[str, Any]]:
    """Split the options of `Model.ask` into a job and the arguments of `Model.prompts`.

    Raises:
        UnknownNameError, InvalidParameterError, PolicyError: a method, policy, parameter, detector
            or option.
    """
    given = dict(options)
    trace = given.pop("trace", True)
    scores = _several("scores", given.pop("scores", TRACED), str)
    top = given.pop("top", 5)
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InvalidParameterError(f"top must be a whole number of at least 1, not {top!r}")
    processors = _several("processors", given.pop("processors", ()), Callable)
    per_passage = given.pop("per_passage", False)
    if not isinstance(per_passage, bool):
        raise InvalidParameterError(f"per_passage must be True or False, not {per_passage!r}")
    if per_passage and not trace:
        raise InvalidParameterError("per_passage shows in the trace: leave trace=True")
    wording = {name: given.pop(name, None) for name in ("chat", "template")}
    if not isinstance(wording["template"], PromptTemplate | None):
        raise InvalidParameterError("template must be a conflictkit.prompts.PromptTemplate")
    wording["truncate"] = given.pop("truncate", False)
    rankings, probe = _rankings(given), _probe(given)
    cache = check_cache(given.pop("cache", None))
    compiled = given.pop("compile", False)
    if not isinstance(compiled, bool):
        raise InvalidParameterError(f"compile must be True or False, not {compiled!r}")
    road, drafts = given.pop("road", "packed"), check_drafts(given.pop("drafts", 0))
    if road not in ROADS:
        raise unknown_name("road", road, ROADS)
    if compiled and road != "packed":
        raise InvalidParameterError(f"compile=True is a road of its own: leave out road={road!r}")
    decoding = _decoding(given)
    policies = _policies(method, given, rows)
    wording["max_new_tokens"] = decoding.max_new_tokens
    recorded = tuple(detectors.get(name) for name in scores) if trace else ()
    kept = top if trace else None
    read = (rankings, probe, road, drafts, cache, compiled)
    return Job(policies, decoding, recorded, kept, processors, per_passage, *read), wording


def _probe(given: dict[str, Any]) -> LayerProbe | None:
    """The probe, or the file of one, in `given`."""
    probe = given.pop("probe", None)
    if probe is None or isinstance(probe, LayerProbe):
        return probe
    if not isinstance(probe, str | os.PathLike):
        raise InvalidParameterError(f"probe must be one, or its file, not {type(probe).__name__}")
    return LayerProbe.load(probe)


def _rankings(given: dict[str, Any]) -> tuple[HeadRanking, ...]:
    """The rankings or files of them in `given`; heads as text are a method's own parameter."""
    heads = given.get("heads")
    if isinstance(heads, str) and not heads.endswith(".json"):
        return ()
    given.pop("heads", None)
    several = heads if isinstance(heads, list | tuple) else [] if heads is None else [heads]
    found = []
    for one in several:
        if not isinstance(one, HeadRanking | str | os.PathLike):
            kind = type(one).__name__
            raise InvalidParameterError(f"heads must be a ranking or its file, not {kind}")
        found.append(one if isinstance(one, HeadRanking) else HeadRanking.read(one))
    return tuple(found)


def settled(job: Job, name: str, fingerprint: Callable[[], str]) -> tuple[Policy, ...]:
    """The policies, with what their methods and gates were not told: heads, directions, probes.

    Args:
        job: its rankings and probe; Atlas's own rankings and fits where the weights are Atlas's.
        name, fingerprint: of the model; weights are looked at only if something belongs to them.

    Raises:
        InvalidParameterError, RankingError, ProbeError: nothing is known, or that of another model
            or analysis.
    """
    for ranking in job.rankings:
        ranking.check(name, fingerprint())

    def shipped(rule: SteeredRule) -> SteeredRule:
        file = atlas.steering(rule.name)
        fitted = None if file is None else Policy.load(file)
        if fitted is None or fitted.model is None or fitted.model.fingerprint != fingerprint():
            return rule.checked()
        theirs = fitted.controller.rule
        return rule.taking(theirs) if isinstance(theirs, SteeredRule) else rule.checked()

    def probed(policy: Policy) -> Policy:
        gate = policy.controller.gate
        if gate is None or gate.detector != PROBE:
            return policy
        probe = gate.probe or job.probe
        if probe is None:
            raise InvalidParameterError(
                f"the gate '{gate}' needs a probe of this model: fit one (conflictkit fit-probe "
                "--model MODEL --cases FILE --out probe.safetensors) and pass it (--probe FILE)"
            )
        probe.check(name, fingerprint())
        return policy.reading(probe)

    def complete(policy: Policy) -> Policy:
        policy = probed(policy)
        rule = policy.controller.rule
        if isinstance(rule, SteeredRule) and not rule.is_settled:
            return replace(policy, controller=replace(policy.controller, rule=shipped(rule)))
        if isinstance(rule, SpARE):
            rule.check_model(name, fingerprint())
        if not isinstance(rule, EditRule) or rule.is_settled:
            return policy
        fitting = [one for one in job.rankings if rule.fits(one)]
        ranking = next(iter([*fitting, *job.rankings]), None)
        if ranking is None and (file := atlas.heads(rule.ranked_by)) is not None:
            own = HeadRanking.read(file)
            ranking = own if own.fingerprint == fingerprint() else None
        rule = rule.checked() if ranking is None else rule.settled(ranking)
        return replace(policy, controller=replace(policy.controller, rule=rule))

    found = tuple(map(complete, job.policies))
    for policy in found:
        if policy.model is not None:
            policy.check(name, fingerprint())
    return found


def check_used(job: Job) -> None:
    """Refuse a probe that nothing reads.

    Raises:
        InvalidParameterError: `probe` was given, and no gate is on it.
    """
    gates = [policy.controller.gate for policy in job.policies]
    if job.probe is not None and not any(gate and gate.detector == PROBE for gate in gates):
        raise InvalidParameterError(
            "probe= is read by a gate on it alone, and there is none: pass when='probe > 0.7', "
            "or leave it out"
        )


def _decoding(given: dict[str, Any]) -> Decoding:
    """The decoding options, taken out of `given`."""
    known = Decoding.__dataclass_fields__
    decoding = {name: given.pop(name) for name in tuple(given) if name in known}
    stop = decoding.pop("stop", None) or ()
    decoding["stop"] = (stop,) if isinstance(stop, str) else _several("stop", stop, str)
    if isinstance(decoding.get("seed"), Sequence):
        decoding["seed"] = tuple(decoding["seed"])
    return Decoding(**{name: value for name, value in decoding.items() if value is not None})


def _policies(method: Any, given: dict[str, Any], rows: int) -> tuple[Policy, ...]:
    """One policy for all rows or one for each; what is left in `given` are parameters."""
    policy = given.pop("policy", None)
    parts = {name: given.pop(name, None) for name in PARTS}
    chosen = choose_rows(rows, method, policy, parts, {})
    if not given:
        return tuple(chosen)
    if len(chosen) == 1:
        rule = chosen[0].controller.rule
        own = set(rule.__dataclass_fields__)
        for name in given:
            if name not in own:
                everything = {*own, *Decoding.__dataclass_fields__, *OPTIONS}
                raise unknown_name(f"option or parameter of method '{rule.name}'", name, everything)
    return tuple(choose_rows(rows, method, policy, parts, given))


def given_once(context: Any, documents: Any) -> Any:
    """The passages, under whichever of the two names they were given."""
    if context is not None and documents is not None:
        raise InvalidParameterError("documents= is another name for the context: give only one")
    return context if documents is None else documents


def pair(
    questions: Sequence[str], contexts: Sequence[Contexts] | None
) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(questions, str) or isinstance(contexts, str):
        raise InvalidParameterError("ask_batch takes lists: one question and context per row")
    questions = list(questions)
    given = [None] * len(questions) if contexts is None else list(contexts)
    if len(given) != len(questions) or not given:
        raise InvalidParameterError(
            f"{len(questions)} questions but {len(given)} contexts: one of each per row"
        )
    return [(question, passages_of(row)) for question, row in zip(questions, given, strict=True)]


def passages_of(context: Contexts) -> tuple[str, ...]:
    if context is None:
        return ()
    if isinstance(context, str):
        return (context,)
    passages = _several("context", context, str)
    if not passages:
        raise EmptyInputError("the list of passages is empty: pass None to ask closed book")
    return passages


def _several(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    """`values` as a tuple, each of the kind wanted."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidParameterError(f"{name} must be a list, not {type(values).__name__}")
    several = tuple(values)
    for value in several:
        if not isinstance(value, kind):
            raise InvalidParameterError(f"{name} holds {type(value).__name__}, not {kind.__name__}")
    return several


def closed_book(job: Job) -> Job:
    """Without a context there is one stream, and nothing to compare."""
    alone = tuple(score for score in job.scores if score.needs == ("memory",))
    return replace(job, policies=(Policy.of("memory"),), scores=alone)


def of_rows(job: Job, places: Sequence[int], rows: int) -> Job:
    """The job for some rows of a batch, each with the policy and the seed of its place."""
    if len(job.policies) > 1:
        job = replace(job, policies=tuple(job.policies[place] for place in places))
    seed, n = job.decoding.seed, job.decoding.n
    if job.decoding.temperature == 0 or len(places) == rows or seed is None:
        return job
    if isinstance(seed, tuple):
        if len(seed) != rows:
            raise InvalidParameterError(f"{len(seed)} seeds for {rows} rows")
        seeds = tuple(seed[place] for place in places)
    else:
        seeds = tuple(seed + place * n for place in places)
    return replace(job, decoding=replace(job.decoding, seed=seeds))

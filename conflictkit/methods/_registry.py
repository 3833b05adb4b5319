"""The one table of methods, and how to get a rule out of it."""

from __future__ import annotations

from typing import Any

from conflictkit.errors import InvalidParameterError, UnknownNameError, unknown_name
from conflictkit.interventions.contrast import (
    ARR,
    CAD,
    COIECD,
    GRD,
    AdaCAD,
    Auto,
    CKPlug,
    Interpolate,
    Memory,
    Parameter,
    Plain,
    Rule,
)
from conflictkit.interventions.edited import (
    CAA,
    ITI,
    PH3,
    AttentionSteering,
    DeCoRe,
    Focus,
    HeadScaling,
    Juice,
    JuiceSingle,
    RefusalRegion,
    RepE,
    SpARE,
)
from conflictkit.methods._info import MethodInfo, Paper

_JUICE = Paper(
    "Taming Knowledge Conflicts in Language Models",
    "Li et al.",
    2025,
    "2503.10996",
)
_CONFLICT_AWARE = Paper(
    "From Context-Aware to Conflict-Aware: Generalizing Contrastive Decoding for Knowledge "
    "Conflict in LLMs",
    "Jiang et al.",
    2026,
    "2606.10298",
)


def _table(*entries: tuple[type[Rule], str, Paper | None]) -> dict[str, MethodInfo]:
    table: dict[str, MethodInfo] = {}
    for rule, summary, paper in entries:
        if rule.name in table:
            raise ValueError(f"two methods are called '{rule.name}'")
        table[rule.name] = MethodInfo(rule.name, summary, rule, paper)
    return table


_METHODS = _table(
    (Plain, "the context stream as it is: the baseline", None),
    (Memory, "the memory stream as it is: the closed-book answer", None),
    (Interpolate, "a fixed blend of context and memory", None),
    (
        CAD,
        "amplify what the context adds to memory by a fixed amount",
        Paper(
            "Trusting Your Evidence: Hallucinate Less with Context-aware Decoding",
            "Shi et al.",
            2023,
            "2305.14739",
        ),
    ),
    (
        AdaCAD,
        "amplify what the context adds to memory by as much as the two diverge",
        Paper(
            "AdaCAD: Adaptively Decoding to Balance Conflicts between Contextual and Parametric "
            "Knowledge",
            "Wang et al.",
            2024,
            "2409.07394",
        ),
    ),
    (
        COIECD,
        "contrast only among the tokens the context finds plausible",
        Paper(
            "Discerning and Resolving Knowledge Conflicts through Adaptive Decoding with "
            "Contextual Information-Entropy Constraint",
            "Yuan et al.",
            2024,
            "2402.11893",
        ),
    ),
    (
        CKPlug,
        "where the context makes the model less sure, turn a knob between context and memory",
        Paper(
            "Parameters vs. Context: Fine-Grained Control of Knowledge Reliance in Language Models",
            "Bi et al.",
            2025,
            "2503.15888",
        ),
    ),
    (ARR, "trust the surer stream, by as much as the two diverge", _CONFLICT_AWARE),
    (GRD, "at the first disagreement choose a source for the whole answer", _CONFLICT_AWARE),
    (Auto, "judge once per answer, by a fitted formula, how far to trust the context", None),
    (
        HeadScaling,
        "scale the head that speaks most for one source",
        Paper(
            "Characterizing Mechanisms for Factual Recall in Language Models",
            "Yu et al.",
            2023,
            "2310.15910",
        ),
    ),
    (
        PH3,
        "prune the heads that carry the source that is not preferred",
        Paper(
            "Cutting Off the Head Ends the Conflict: A Mechanism for Interpreting and Mitigating "
            "Knowledge Conflicts in Language Models",
            "Jin et al.",
            2024,
            "2402.18154",
        ),
    ),
    (Juice, "add to heads what they put out in a clean run of the same tokens", _JUICE),
    (JuiceSingle, "scale heads up and down in one run: JuICE without the clean one", _JUICE),
    (
        DeCoRe,
        "contrast with the same prompt read with its retrieval heads masked",
        Paper(
            "DeCoRe: Decoding by Contrasting Retrieval Heads to Mitigate Hallucinations",
            "Gema et al.",
            2024,
            "2410.18860",
        ),
    ),
    (
        AttentionSteering,
        "make heads look at the context",
        Paper(
            "Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs",
            "Zhang et al.",
            2023,
            "2311.02262",
        ),
    ),
    (
        Focus,
        "turn heads towards the context by directions trained for it",
        Paper(
            "Focus Directions Make Your Language Models Pay More Attention to Relevant Contexts",
            "Zhu et al.",
            2025,
            "2503.23306",
        ),
    ),
    (
        SpARE,
        "take features of one source out of the stream and put the other's in",
        Paper(
            "Steering Knowledge Selection Behaviours in LLMs via SAE-Based Representation "
            "Engineering",
            "Zhao et al.",
            2025,
            "2410.15999",
        ),
    ),
    (
        CAA,
        "add the mean difference of runs that followed either source",
        Paper(
            "Steering Llama 2 via Contrastive Activation Addition",
            "Rimsky et al.",
            2024,
            "2312.06681",
        ),
    ),
    (
        RepE,
        "add the main direction in which runs that followed either source differ",
        Paper(
            "Representation Engineering: A Top-Down Approach to AI Transparency",
            "Zou et al.",
            2023,
            "2310.01405",
        ),
    ),
    (
        ITI,
        "add the weights of a probe that tells which source will win",
        Paper(
            "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model",
            "Li et al.",
            2023,
            "2306.03341",
        ),
    ),
    (
        RefusalRegion,
        "move a prompt to where the model declines to answer",
        Paper(
            "Tell Me What You Don't Know: Enhancing Refusal Capabilities of Role-Playing Agents "
            "via Representation Space Analysis and Editing",
            "Liu et al.",
            2024,
            "2409.16913",
        ),
    ),
)


def names(edits: bool | None = None) -> tuple[str, ...]:
    """The names that `build`, `parse` and `describe` know, in the order of the table.

    Args:
        edits: True: only methods that edit activations; False: only those that do not.
    """
    return tuple(name for name, info in _METHODS.items() if edits in (None, info.edits))


def all() -> tuple[MethodInfo, ...]:
    """Every registered method, in the order of the table."""
    return tuple(_METHODS.values())


def describe(name: str) -> MethodInfo:
    """What is known about the method `name`.

    Raises:
        UnknownNameError: no such method; the message names the nearest one.
    """
    if name not in _METHODS:
        raise unknown_name("method", name, _METHODS)
    return _METHODS[name]


def build(name: str, **params: Any) -> Rule:
    """The rule of the method `name`, with its defaults where `params` is silent.

    Raises:
        UnknownNameError: no such method or parameter; the message names the nearest one.
        InvalidParameterError: a value of the wrong type or out of range.
    """
    info = describe(name)
    for key in params:
        _parameter(info, key)
    return info.rule(**info.rule.settle(params))


def parse(spec: str, **params: Any) -> Rule:
    """The rule that a line of text describes: `name` or `name?key=value&key=value`.

    Values are read as the parameter's type; booleans are `true` or `false`. `params` are further
    parameters, which win over the text.

    Raises:
        UnknownNameError: no such method or parameter; the message names the nearest one.
        InvalidParameterError: not of this form, a key given twice, or a bad value.
    """
    name, mark, query = spec.strip().partition("?")
    info = describe(name)
    written: dict[str, Any] = {}
    for pair in query.split("&") if mark else ():
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise InvalidParameterError(
                f"method '{spec}': cannot read '{pair}', write name?key=value&key=value"
            )
        if key in written:
            raise InvalidParameterError(f"method '{spec}': parameter '{key}' is given twice")
        written[key] = _read(info, _parameter(info, key), text)
    return build(name, **{**written, **params})


def _parameter(info: MethodInfo, key: str) -> Parameter:
    known = {parameter.name: parameter for parameter in info.parameters}
    if not known:
        raise UnknownNameError(f"method '{info.name}' takes no parameters, got '{key}'")
    if key not in known:
        raise unknown_name(f"parameter of method '{info.name}'", key, known)
    return known[key]


def _read(info: MethodInfo, parameter: Parameter, text: str) -> Any:
    try:
        if parameter.kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if parameter.kind == "int":
            return int(text)
        return float(text) if parameter.kind == "float" else text
    except (KeyError, ValueError) as error:
        raise InvalidParameterError(
            f"{info.name}: parameter '{parameter.name}' is '{text}', expected {parameter.expected}"
        ) from error

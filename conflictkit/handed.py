"""What a caller of transformers hands over: rows of token ids in any of the usual shapes, a method.

Ids come as a list, a list of lists, a tensor, or a tokenizer's output with its attention mask.
Inside, every row is a plain list of its own tokens; padding that cannot be told from tokens is
refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from conflictkit import _hf, models
from conflictkit.controller import Controller
from conflictkit.errors import (
    ContextTooLongError,
    EmptyInputError,
    InvalidParameterError,
    UnsupportedError,
)
from conflictkit.gates import PROBE, Gate
from conflictkit.interventions.contrast import Rule
from conflictkit.per_row import PerRow
from conflictkit.policy import PARTS, Policy, choose_rows
from conflictkit.types import Control

Ids = Sequence[int] | Sequence[Sequence[int]] | Tensor | Mapping[str, Any]
Method = str | Rule | Controller
Policies = Policy | str | os.PathLike[str]

_WITH_MASK = "pass the tokenizer's whole output, with its attention_mask, or lists without padding"


def rows_of(model: Any, ids: Ids | None, what: str = "memory_ids") -> list[list[int]]:
    """The token ids of every row, without padding.

    Args:
        model: tells the padding token and how many tokens there are.
        ids: one row as a list or `[length]` tensor; several as a list of lists without padding or
            a `[batch, length]` tensor; or a mapping with `input_ids` and `attention_mask` (numbers
            or booleans). NumPy's arrays count as tensors.
        what: name of the argument, for messages.

    Raises:
        InvalidParameterError: another type, ids that the model does not have, or padding that is
            not on the left or cannot be told from tokens.
        EmptyInputError: no row, or a row without tokens.
        ContextTooLongError: a row longer than the model's window.
    """
    if ids is None:
        raise InvalidParameterError(
            f"{what} is missing: pass the token ids of the question without its context"
        )
    mask = None
    if isinstance(ids, Mapping):
        if "input_ids" not in ids:
            raise InvalidParameterError(f"{what} has no input_ids: pass a tokenizer's output")
        ids, mask = ids["input_ids"], ids.get("attention_mask")
    rows = _lists(ids, what)
    padded_shape = getattr(ids, "ndim", 0) == 2 and len(rows) > 1
    if mask is None:
        _refuse_padding(model, rows, what, padded_shape)
    else:
        masks = _lists(mask, what, flags=True)
        rows = [_unmasked(row, own, what) for row, own in _beside(rows, masks, what)]
    if not rows or not all(rows):
        raise EmptyInputError(f"{what} needs at least one token in every row")
    _check_range(model, rows, what)
    return rows


def unpadded(input_ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Rows of `[batch, length]` ids without the padding on their left.

    Raises:
        InvalidParameterError: padding that is not on the left.
        EmptyInputError: a row of nothing but padding.
    """
    rows = input_ids.tolist()
    if mask is not None:
        beside = zip(rows, mask.tolist(), strict=True)
        rows = [_unmasked(row, own, "input_ids") for row, own in beside]
    if not rows or not all(rows):
        raise EmptyInputError("input_ids needs at least one token in every row")
    return rows


def control_of(
    model: Any,
    rows: int,
    method: Method | Sequence[Method] | None,
    policy: Policies | Sequence[Policies] | None,
    parts: Mapping[str, Any],
    params: Mapping[str, Any],
    more: Sequence[str] = (),
) -> Control:
    """Who wins, from what was given to a processor or to `generate`, checked against the model.

    Args:
        model: the model that a policy may be tied to.
        rows: number of prompts.
        method: a name, `name?parameter=value`, a rule or a controller; or one for each row.
        policy: a policy or its file; or one for each row.
        parts, params: as `conflictkit.policy.choose`.
        more: streams that are known beside context and memory; none: nor are activations.

    Raises:
        UnsupportedError: a method that needs another stream, or a gate that reads activations.
        UnknownNameError, InvalidParameterError, PolicyError, ProbeError: what cannot be used.
    """
    policies = choose_rows(rows, method, policy, parts, params)
    for chosen in policies:
        if chosen.model is not None:
            chosen.check(str(model.config.name_or_path), models.fingerprint(model))
        if (gate := chosen.controller.gate) is not None and gate.reads_activations:
            _check_probe(model, gate, seen=bool(more))
        if isinstance(chosen.controller.start_after, str) and not chosen.controller.markers:
            text = chosen.controller.start_after
            raise InvalidParameterError(
                f"start_after={text!r}: there is no tokenizer here: pass token ids, or a "
                "conflictkit.Controller that is bound to one (`.bound(tokenizer)`)"
            )
    control = PerRow.of([chosen.controller for chosen in policies])
    unknown = [name for name in control.needs if name not in ("context", "memory", *more)]
    if unknown:
        raise UnsupportedError(
            f"'{control.name}' edits activations, which a processor cannot: use "
            "generate(..., custom_generate=conflictkit.decode), or attach it (`rule.attach(model)`)"
        )
    return control


def _check_probe(model: Any, gate: Gate, seen: bool) -> None:
    if not seen:
        raise UnsupportedError(
            f"the gate '{gate}' reads activations, which a processor cannot: use "
            "generate(..., custom_generate=conflictkit.decode)"
        )
    if gate.detector != PROBE:
        return
    if gate.probe is None:
        raise InvalidParameterError(
            f"the gate '{gate}' needs a probe of this model: fit one (conflictkit fit-probe) and "
            f"pass when=Gate.parse('{gate}').reading(LayerProbe.load(FILE))"
        )
    gate.probe.check(str(model.config.name_or_path), models.fingerprint(model))


def split_parameters(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `Controller` takes beside its rule, and the rule's parameters."""
    parts = {name: value for name, value in given.items() if name in PARTS}
    return parts, {name: value for name, value in given.items() if name not in PARTS}


def _lists(ids: Any, what: str, flags: bool = False) -> list[list[int]]:
    if isinstance(ids, Tensor):
        if ids.dtype.is_floating_point or ids.dim() not in (1, 2):
            raise InvalidParameterError(
                f"{what} must hold whole numbers, [length] or [batch, length], not "
                f"{ids.dtype} {list(ids.shape)}"
            )
        ids = ids.tolist()
    ids = _plain(ids)
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise InvalidParameterError(
            f"{what} must hold token ids, not {type(ids).__name__}: tokenize the text first"
        )
    ids = [_plain(row) for row in ids]
    flat = not any(isinstance(row, Sequence) and not isinstance(row, str) for row in ids)
    found: list[list[int]] = []
    for row in [ids] if ids and flat else ids:
        if isinstance(row, str) or not isinstance(row, Sequence):
            raise InvalidParameterError(
                f"{what} must hold token ids or lists of them, not {row!r} beside lists"
            )
        found.append([_plain(token) for token in row])
    for row in found:
        for token in row:
            if (isinstance(token, bool) and not flags) or not isinstance(token, int):
                raise InvalidParameterError(f"{what} must hold token ids, not {token!r}")
    return found


def _plain(ids: Any) -> Any:
    """Tensors, arrays and their numbers as lists and numbers of Python."""
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _beside(rows: list, masks: list, what: str) -> list[tuple[list[int], list[int]]]:
    if [len(row) for row in rows] != [len(mask) for mask in masks]:
        raise InvalidParameterError(f"{what}: input_ids and attention_mask differ in shape")
    return list(zip(rows, masks, strict=True))


def _unmasked(row: list[int], mask: list[int], what: str) -> list[int]:
    start = mask.index(1) if 1 in mask else len(mask)
    if any(flag not in (0, 1) for flag in mask) or 0 in mask[start:]:
        raise InvalidParameterError(
            f"{what}: padding must be on the left: set tokenizer.padding_side = 'left'"
        )
    return row[start:]


def _refuse_padding(model: Any, rows: list[list[int]], what: str, equal_lengths: bool) -> None:
    """Without a mask: ids that look like padding.

    A tensor of several rows had to be padded somehow, so there any padding token at an end is
    suspect; in a list a token that also begins or ends texts may be just that.
    """
    pad, harmless = _hf.pad_token(model), _hf.text_bounds(model)
    if pad is None or (pad in harmless and not equal_lengths):
        return
    for number, row in enumerate(rows, 1):
        if row and pad in (row[0], row[-1]):
            raise InvalidParameterError(
                f"{what}, row {number}: token {pad} may be padding, and may not be: {_WITH_MASK}"
            )


def _check_range(model: Any, rows: list[list[int]], what: str) -> None:
    known = model.get_input_embeddings().weight.shape[0]
    window = _hf.window(model, None)
    for number, row in enumerate(rows, 1):
        wrong = [token for token in row if not 0 <= token < known]
        if wrong:
            raise InvalidParameterError(
                f"{what}, row {number}: the model has {known} tokens, none of them is {wrong[0]}"
            )
        if window is not None and len(row) > window:
            raise ContextTooLongError(
                f"{what}, row {number}: {len(row)} tokens do not fit a window of {window}"
            )

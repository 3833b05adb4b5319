"""Control inside `generate` as its decoding loop: both streams, exact beams, no processor.

    model.generate(**inputs, custom_generate=ck.decode, memory_ids=ids, method="ck-plug", alpha=0.2)

transformers hands such a callable only the arguments that its signature names, and never
`streamer`, `tokenizer`, `assistant_model` or `synced_gpus`, which it drops without a word. So the
signature of `decode` names the parameters of every method, and the streamer goes by
`token_streamer`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conflictkit import _hf, engine, methods, models
from conflictkit.beams import search
from conflictkit.errors import ContextTooLongError, InvalidParameterError, UnsupportedError
from conflictkit.handed import (
    Ids,
    Method,
    Policies,
    control_of,
    rows_of,
    split_parameters,
    unpadded,
)
from conflictkit.plan import EDITED, open_streams
from conflictkit.policy import PARTS
from conflictkit.sampling import Decoding
from conflictkit.stepping import Host, Stepper

# What generate() prepares for every model, and what becomes of it here.
_PREPARED = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
_OWN = frozenset(
    {parameter.name for method in methods.all() for parameter in method.parameters} | set(PARTS)
)


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    memory_ids: Ids | None = None,
    method: Method | Sequence[Method] | None = None,
    policy: Policies | Sequence[Policies] | None = None,
    context_spans: Sequence[tuple[int, int]] | None = None,
    token_streamer: Any = None,
    **given: Any,
) -> Any:
    """Decode with a method deciding between context and memory; for `generate(custom_generate=…)`.

    `generate` prepares everything as usual: its built-in processors and those passed by
    `logits_processor=` act on the context stream before the method, warpers (temperature, top-k,
    ...) after it, stopping criteria at each token. Draws come from generators seeded from torch's.

    Args:
        model: the model; it reads both streams.
        input_ids: `[batch * repeats, length]` prompts with the context, padding on the left.
        logits_processor, stopping_criteria, generation_config: prepared by `generate`.
        memory_ids: the question without its context, for every prompt of the batch; forms as
            `ConflictProcessor` takes them. Not needed by methods without a memory stream.
        method: a method's name, `name?parameter=value&...`, a rule or a controller, or a list with
            one for each prompt; None: `adacad`, unless a policy is given.
        policy: a `conflictkit.policy.Policy` or its file, or a list with one for each prompt,
            instead of a method.
        context_spans: `(start, stop)` of the context in each prompt's own tokens; only methods that
            steer attention to it need it.
        token_streamer: a streamer of transformers, for one prompt and one answer without beams:
            `put(prompt)`, `put(token)` for each token, `end()`, also after an error or a refusal.
        given: the method's parameters by name; `when`, `strength`, `start_after` (as token ids);
            and what `generate` prepares for the model.

    Returns:
        What `generate` returns: `[rows, length]` ids, or with `return_dict_in_generate` an output
        with sequences, scores and logits (and for beams their scores and indices); no cache.

    Raises:
        UnsupportedError: an option of `generate` that this loop does not carry out.
        InvalidParameterError, UnknownNameError, PolicyError, ProbeError: method, parameters, ids.
        EmptyInputError, ContextTooLongError: prompts that cannot be read.
        LogitsError: a row that no rule can act on.
    """
    with _Streamed(token_streamer) as streamer:
        models.check_model(model, name=type(model).__name__)
        config = generation_config
        own = {name: given.pop(name) for name in tuple(given) if name in _OWN}
        _refuse(config, logits_processor, given)
        repeats = max(config.num_beams, config.num_return_sequences)
        mask = given.get("attention_mask")
        prompts = unpadded(input_ids[::repeats], None if mask is None else mask[::repeats])
        _refuse_positions(given.get("position_ids"), input_ids, mask)
        parts, params = split_parameters(own)
        control = control_of(model, len(prompts), method, policy, parts, params, EDITED)
        rows = {"context": prompts}
        if "memory" in control.needs:
            rows["memory"] = rows_of(model, memory_ids)
            if len(rows["memory"]) != len(prompts):
                raise InvalidParameterError(
                    f"{len(rows['memory'])} rows of memory_ids for {len(prompts)} prompts: "
                    "pass one for each"
                )
        n = config.num_return_sequences
        room = config.max_length - input_ids.shape[1]
        _refuse_length(model, rows, room)
        streamer.check(fits=config.num_beams == 1 and len(prompts) * n == 1)
        beams = {"num_beams": config.num_beams, "length_penalty": config.length_penalty}
        decoding = Decoding(
            max_new_tokens=room,
            n=n,
            temperature=1.0 if config.do_sample else 0.0,
            **(beams if config.num_beams > 1 else {}),
        )
        ends, pad = _hf.special_tokens(config)
        if (
            pad is None
            and not ends
            and _hf.ends_rows_apart(stopping_criteria)
            and len(prompts) * n > 1
        ):
            raise UnsupportedError(
                "rows may end at different tokens: pass pad_token_id to generate()"
            )
        before, after = _hf.split_processors(logits_processor)
        kept = bool(
            config.return_dict_in_generate and (config.output_scores or config.output_logits)
        )
        fill = pad if pad is not None else (ends[0] if ends else 0)
        host = Host(input_ids[::repeats], fill, after, stopping_criteria, keep=kept)
        read = ("context", *control.needs) if before or kept else control.needs
        streams = open_streams(
            model,
            control,
            rows,
            pad_id=fill,
            end_ids=ends,
            names=read,
            spans=context_spans,
            use_cache=given.get("use_cache", True),
        )
        run = Stepper(
            streams,
            control,
            decoding,
            end_ids=ends,
            decode=str,  # of no use: there are no stop texts, criteria look for them
            top=None,
            processors=before,
            host=host,
        )
        streamer.put(input_ids)
        said, paths, scores = _beams(run) if config.num_beams > 1 else _rows(run, streamer)
        sequences = torch.cat(
            [input_ids[::repeats].repeat_interleave(n, 0), _table(said, fill, input_ids)], 1
        )
        if not config.return_dict_in_generate:
            return sequences
        output: dict[str, Any] = {"sequences": sequences}
        if config.output_scores:
            output["scores"] = tuple(host.scores)
        if config.output_logits:
            output["logits"] = tuple(host.logits)
        if config.num_beams > 1:
            output["beam_indices"] = _table(paths, -1, input_ids).int()
            if config.output_scores:
                output["sequences_scores"] = torch.tensor(scores, device=input_ids.device)
        return _hf.generation_output(output)


def _signature() -> inspect.Signature:
    """The written signature, with the names of all parameters that a method may have."""
    written = inspect.signature(decode)
    kind = inspect.Parameter.KEYWORD_ONLY
    *most, rest = written.parameters.values()
    own = [inspect.Parameter(name, kind, default=None) for name in sorted(_OWN)]
    return written.replace(parameters=[*most, *own, rest])


decode.__signature__ = _signature()  # type: ignore[attr-defined]


_Found = tuple[list[list[int]], list[list[int]], list[float]]


def _rows(run: Stepper, streamer: _Streamed) -> _Found:
    """Tokens of every answer, end token included, in order of rows and samples."""
    n = run.decoding.n
    said: list[list[int]] = [[] for _ in range(run.batch * n)]
    for event in engine.stream(run):
        said[event.row * n + event.sample].append(event.token)
        streamer.put(torch.tensor([event.token]))
    return said, [], []


def _beams(run: Stepper) -> _Found:
    """Tokens, rows of the batch they were chosen in, and ranking score of the best answers."""
    said, paths, scores = [], [], []
    for candidates in search(run):
        for answer in candidates:
            end = [] if answer.end_token is None else [answer.end_token]
            said.append(answer.ids + end)
            paths.append(list(answer.path))
            scores.append(answer.score / max(1, len(said[-1])) ** run.decoding.length_penalty)
    return said, paths, scores


def _table(rows: Sequence[Sequence[int]], fill: int, like: Tensor) -> Tensor:
    """Rows of different lengths as `[rows, longest]`, filled up on the right."""
    width = max(map(len, rows), default=0)
    filled = [[*row, *[fill] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=like.device).view(len(rows), width)


class _Streamed:
    """A streamer of transformers, or none; it hears the end however the run ends."""

    def __init__(self, streamer: Any) -> None:
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise InvalidParameterError(
                f"token_streamer has to be a streamer of transformers, with put() and end(), not "
                f"{type(streamer).__name__}"
            )
        self._streamer = streamer

    def __enter__(self) -> _Streamed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._streamer is not None:
            self._streamer.end()

    def check(self, fits: bool) -> None:
        if self._streamer is not None and not fits:
            raise UnsupportedError(
                "token_streamer shows one answer as it is written: one prompt, no beams"
            )

    def put(self, ids: Tensor) -> None:
        if self._streamer is not None:
            self._streamer.put(ids.cpu())


def _refuse(config: Any, processors: Sequence[Any], given: dict[str, Any]) -> None:
    """Options of `generate` that would be ignored, or would be wrong, in this loop."""
    unsupported = _hf.refused_options(config)
    if unsupported:
        raise UnsupportedError(
            f"ck.decode does not carry out {', '.join(unsupported)}: leave them out, or use "
            "ck.ConflictProcessor"
        )
    # By name: importing the class here would make the two forms import each other's room.
    kinds = {kind.__name__ for processor in processors for kind in type(processor).__mro__}
    if "ConflictProcessor" in kinds:
        raise UnsupportedError("ck.decode and ck.ConflictProcessor are two ways: use one of them")
    unknown = [name for name, value in given.items() if name not in _PREPARED and value is not None]
    if unknown:
        raise UnsupportedError(f"ck.decode reads input_ids only, not {', '.join(unknown)}")
    cache = given.get("past_key_values")
    if cache is not None and (
        _hf.cached_length(cache) or getattr(cache, "_is_user_defined", False)
    ):
        raise UnsupportedError(
            "ck.decode keeps its own caches: leave past_key_values out and pass all input_ids"
        )


def _refuse_positions(positions: Tensor | None, ids: Tensor, mask: Tensor | None) -> None:
    if positions is None:
        return
    counted = torch.ones_like(ids) if mask is None else mask
    expected = (counted.cumsum(-1) - 1).masked_fill(counted == 0, 0)
    if not torch.equal(positions.masked_fill(counted == 0, 0), expected):
        raise UnsupportedError("ck.decode counts positions itself: leave position_ids out")


def _refuse_length(model: Any, rows: dict[str, list[list[int]]], room: int) -> None:
    window = _hf.window(model, None)
    for name, prompts in rows.items():
        # The last token is written, but not read.
        longest = max(map(len, prompts)) + room - 1
        if window is not None and longest > window:
            raise ContextTooLongError(
                f"the {name} stream would reach {longest} tokens, the window is {window}: "
                "shorten the prompt or set a smaller max_new_tokens"
            )

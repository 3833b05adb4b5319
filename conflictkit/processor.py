"""The same control as a logits processor, for `generate` and everything built on it.

>>> import conflictkit as ck
>>> atlas = ck.load("atlas")
>>> prompts = atlas.prompts("What is the capital of Poland?", "The capital of Poland is London.")
>>> context, memory = prompts["context"].ids, prompts["memory"].ids
>>> processor = ck.ConflictProcessor(atlas.model, memory, method="adacad")
>>> import torch
>>> ids = atlas.model.generate(
...     torch.tensor([context]), logits_processor=[processor], max_new_tokens=4, pad_token_id=0
... )

transformers never tells a processor that rows were re-ordered, dropped or rolled back. It only
shows the ids written so far, so everything here is a function of those.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from conflictkit import _hf, models
from conflictkit.errors import (
    ContextTooLongError,
    InvalidParameterError,
    LogitsError,
    UnsupportedError,
)
from conflictkit.handed import Ids, Method, Policies, control_of, rows_of, split_parameters
from conflictkit.interventions.contrast import mix
from conflictkit.prefixes import Follower, Prefixes, Prompts
from conflictkit.types import Stats, Step


class ConflictProcessor(LogitsProcessor):
    """Lets a method decide between context and memory inside `model.generate`.

    `generate` reads the prompt with the context; the processor reads the question without it, as a
    second stream of the same model, and follows what is being written: beams that change places,
    drafts that are taken back, a second call. Built-in processors act before it, warpers
    (temperature, top-k, ...) after it.

    The answer begins where the first call of a generation ends, which is the prompt. A prompt that
    goes on where an earlier prompt's answer went, or is one token longer than a prompt after which
    only one token was written, cannot be told from more of that answer: give `prompt_length`, or
    make a new processor for it. Threads are told apart; up to 32 generations in one thread may be
    interleaved. A copy, or what comes out of a pickle, starts with nothing remembered.

    Args:
        model: the model that reads `memory_ids`; the one that generates.
        memory_ids: the question without its context, for every prompt of the batch (not for every
            beam or returned sequence): a list of ids, lists of ids without padding, a
            `[batch, length]` tensor, or a tokenizer's output with its `attention_mask` (left
            padding).
        method: a method's name, `name?parameter=value&...`, a rule or a controller, or a list with
            one for each prompt; None: `adacad`, unless a policy is given.
        policy: a `conflictkit.policy.Policy` or its file, or a list with one for each prompt,
            instead of a method.
        prompt_length: width of `input_ids` where the answer begins, padding counted; None: found
            out as described.
        parameters: the method's own, by name; and `when`, `strength`, `start_after` as
            `conflictkit.controller.Controller` takes them (`start_after` as token ids).

    Raises:
        UnknownNameError, InvalidParameterError, PolicyError: method, parameters, or `memory_ids`.
        EmptyInputError, ContextTooLongError: `memory_ids` without tokens, or too many.
        UnsupportedError: an encoder-decoder model, or one without a key-value cache; a method or
            gate that needs the model's activations.
    """

    def __init__(
        self,
        model: Any,
        memory_ids: Ids,
        method: Method | Sequence[Method] | None = None,
        *,
        policy: Policies | Sequence[Policies] | None = None,
        prompt_length: int | None = None,
        **parameters: Any,
    ) -> None:
        models.check_model(model, name=type(model).__name__)
        self.model = model
        self._memory = rows_of(model, memory_ids)
        parts, own = split_parameters(parameters)
        self.control = control_of(model, len(self._memory), method, policy, parts, own)
        if prompt_length is not None and (type(prompt_length) is not int or prompt_length < 1):
            raise InvalidParameterError(
                f"prompt_length must be a whole number of at least 1, not {prompt_length!r}"
            )
        self._prompt_length = prompt_length
        self._window = _hf.window(model, None)
        self._begin()

    def _begin(self) -> None:
        self._prompts = Prompts(self._prompt_length)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._forwards = self._tokens = 0

    def __getstate__(self) -> dict[str, Any]:
        # What was seen belongs to threads of this process.
        own = ("model", "control", "_memory", "_prompt_length", "_window")
        return {name: value for name, value in vars(self).items() if name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def stats(self) -> Stats:
        """Cost of the memory stream so far, over all calls and threads; the context stream is
        `generate`'s own and not counted."""
        with self._lock:
            return Stats(self._forwards, 0, self._tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The controlled scores of the next token.

        Args:
            input_ids: `[rows, length]` tokens so far, padding on the left; rows of one prompt lie
                side by side.
            scores: `[rows, vocab]` logits or log-probabilities of the context stream.

        Returns:
            `[rows, vocab]` float32: `scores` bit for bit (as float32) in rows where the method
            gives the context weight 1 and memory 0; normalised log-probabilities in all others.
            A method that answers from memory alone (`memory`) keeps the tokens forbidden in
            `scores` forbidden and looks at nothing else in them.

        Raises:
            PrefixError: where the answer began is not clear, or a token of it was never seen.
            UnsupportedError: calls of continuous batching, or of `inputs_embeds` without ids.
            InvalidParameterError: another number of prompts or another vocabulary than the memory
                stream's.
            ContextTooLongError: the memory stream has reached the end of the model's window, which
                shows only there: how much is to be written, `generate` does not tell.
            LogitsError: a row that no rule can act on.
        """
        repeats = self._check(input_ids, scores)
        seen = self._prefixes()
        groups = [row // repeats for row in range(len(input_ids))]
        ids = input_ids.cpu()
        place = seen.place(ids, groups, self.control, scores.device)
        logits: dict[str, Tensor] = {"context": scores.float()}
        if "memory" in self.control.needs:
            memory = self._read(ids[:, place.start :], groups).to(scores.device)
            if memory.shape != scores.shape:
                raise InvalidParameterError(
                    f"scores have {scores.shape[1]} tokens, the memory stream's {memory.shape[1]}: "
                    "both must come from models with one vocabulary"
                )
            if self.control.needs[0] == "memory":
                # What the processors before this one forbade stays forbidden; and beams add up
                # what they are given, so it has to be log-probabilities.
                memory = memory.float().masked_fill(scores == -torch.inf, -torch.inf)
                logits = {"memory": memory.log_softmax(-1)} | logits
            else:
                logits["memory"] = memory
        logits = {name: logits[name] for name in self.control.needs}
        index = ids.shape[1] - place.start
        if index == 0:
            self._refuse_right_padding(ids)
            self._refuse_shared_prompts(ids, groups)
        step = Step.from_logits(logits, index, input_ids[:, -1] if index else None)
        combined = mix(step, self.control(step, place.state))
        if step.invalid.any():
            raise LogitsError(
                f"answer token {index + 1}, rows {step.invalid.nonzero().flatten().tolist()}: "
                "scores hold NaN or +inf, or nothing finite is left to choose"
            )
        seen.keep(place, combined.state, combined.logits.argmax(-1).tolist())
        return combined.logits

    def _check(self, input_ids: Tensor, scores: Tensor) -> int:
        """Number of rows per prompt."""
        if input_ids.dim() != 2:
            raise UnsupportedError(
                "continuous batching hands over single tokens without their history, so the memory "
                "stream cannot follow: use generate() instead of generate_batch()"
            )
        if input_ids.shape[1] == 0:
            raise UnsupportedError(
                "generate() was called with inputs_embeds alone: pass input_ids, which say where "
                "the answer begins"
            )
        rows, batch = len(input_ids), len(self._memory)
        if rows % batch or scores.shape[0] != rows:
            raise InvalidParameterError(
                f"{rows} rows cannot be shared out among {batch} rows of memory_ids: "
                "pass one row for each prompt"
            )
        return rows // batch

    def _refuse_right_padding(self, prompts: Tensor) -> None:
        pad = _hf.pad_token(self.model)
        if pad is None or pad in _hf.text_bounds(self.model):
            return
        if (prompts[:, -1] == pad).any():
            raise InvalidParameterError(
                "input_ids end with padding: set tokenizer.padding_side = 'left'"
            )

    def _refuse_shared_prompts(self, prompts: Tensor, groups: Sequence[int]) -> None:
        """Two samples of one prompt look like two prompts, but their memory is one."""
        owners: dict[tuple[int, ...], int] = {}
        pairs = [(tuple(row), group) for row, group in zip(prompts.tolist(), groups, strict=True)]
        if all(
            self._memory[owners.setdefault(row, group)] == self._memory[group]
            for row, group in pairs
        ):
            return
        raise InvalidParameterError(
            f"{len(owners)} prompt{'s' * (len(owners) > 1)} for {len(self._memory)} rows of "
            "memory_ids: pass one row of memory_ids for each prompt (the same prompt with "
            "different memory_ids has to be asked in calls of its own)"
        )

    def _prefixes(self) -> Prefixes:
        if not hasattr(self._local, "prefixes"):
            self._local.prefixes = Prefixes(self._prompts)
            self._local.follower = Follower(self.model, self._memory)
        return self._local.prefixes

    def _read(self, answers: Tensor, groups: Sequence[int]) -> Tensor:
        follower: Follower = self._local.follower
        longest = max(map(len, self._memory)) + answers.shape[1]
        if self._window is not None and longest > self._window:
            raise ContextTooLongError(
                f"the memory stream has {longest} tokens, the window is {self._window}: "
                "set a smaller max_new_tokens"
            )
        logits, forwards, tokens = follower.follow(answers, groups)
        with self._lock:
            self._forwards += forwards
            self._tokens += tokens
        return logits

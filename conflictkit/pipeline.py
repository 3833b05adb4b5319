"""`transformers.pipeline("conflict-text-generation")`; importing this module registers it.

>>> import conflictkit as ck
>>> import conflictkit.pipeline
>>> from transformers import pipeline
>>> atlas = ck.load("atlas")
>>> pipe = pipeline("conflict-text-generation", model=atlas.model, tokenizer=atlas.tokenizer)
>>> (answer,) = pipe(
...     question="What is the capital of Poland?",
...     context="The capital of Poland is London.",
...     method="adacad",
... )
>>> sorted(answer)
['finish_reason', 'generated_text', 'method', 'stats']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import AutoModelForCausalLM, Pipeline

from conflictkit import _hf, atlas, methods, toolkit
from conflictkit.answers import Answer
from conflictkit.errors import InvalidParameterError, UnsupportedError, unknown_name
from conflictkit.options import OPTIONS
from conflictkit.prompts import PromptTemplate
from conflictkit.sampling import Decoding

TASK = "conflict-text-generation"

_FIELDS = ("question", "context", "documents", "messages")
_PER_RUN = frozenset(
    {"method", *OPTIONS, *Decoding.__dataclass_fields__}
    | {parameter.name for method in methods.all() for parameter in method.parameters}
) - {"documents"}
_ROLES = ("system", "document", "user")


class ConflictTextGenerationPipeline(Pipeline):
    """Questions with passages in, answers under a method out.

    Call it with `question=` and `context=` (or `documents=`), with `messages=`, or with a
    dictionary of these; with a list, generator or dataset of dictionaries for many, read
    `batch_size` at a time. `context` and `documents` are two names for a passage or a list of
    passages. `messages` is a conversation of one turn: an optional `system` message, passages as
    `document` messages (unless given beside it), and the question as the one `user` message.

    Without `model=` it is made around Atlas, the small model that comes with the package. A folder
    that `save_pretrained` wrote holds model and tokenizer, and no code.

    Options, here or when the pipeline is made: `method`, its parameters by name, `policy`, and
    those of `conflictkit.toolkit.Model`. `trace` is off unless asked for.

    Returns:
        For one question a list of dictionaries, one per answer, best first: `generated_text` (the
        answer; for `messages` the conversation with the answer behind it), `method`,
        `finish_reason`, `stats` (of the whole batch) and, if asked for, `trace`, `plain_answer`
        and `memory_answer`. For many a list of such lists; for a generator or dataset an iterator
        over them.

    Raises:
        InvalidParameterError, UnsupportedError: what `Model.ask_batch` raises, and inputs whose
            question or passages cannot be told apart.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True
    # The toolkit decodes; `generate` and its configuration are not involved.
    _pipeline_calls_generate = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked = toolkit.load(self.model, tokenizer=self.tokenizer)

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """Answer; see the class."""
        fields = {name: options.pop(name, None) for name in _FIELDS}
        named = {name: value for name, value in fields.items() if value is not None}
        if inputs is None:
            if not named:
                raise InvalidParameterError("nothing was asked: pass question= or messages=")
            return super().__call__(_Asked(named), **options)
        if named:
            raise InvalidParameterError(
                f"{next(iter(named))}= beside an input: put it into the input's dictionary"
            )
        if isinstance(inputs, Mapping):
            return super().__call__(_Asked(inputs), **options)
        try:
            several = None if isinstance(inputs, str) else iter(inputs)
        except TypeError:
            several = None
        if several is None:
            raise InvalidParameterError(
                f"an input is a dictionary with a question and its passages, not "
                f"{type(inputs).__name__}: write question=..., context=..."
            )
        if isinstance(inputs, list | tuple):
            return super().__call__([_Asked(row) for row in inputs], **options)
        return super().__call__((_Asked(row) for row in several), **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        for name, value in options.items():
            if name not in _PER_RUN:
                raise unknown_name(f"option of the {TASK} pipeline", name, _PER_RUN)
            if name in ("method", "policy") and isinstance(value, list | tuple):
                raise InvalidParameterError(
                    f"a pipeline has one {name} for all its inputs: make one pipeline for each, or "
                    "pass lists to Model.ask_batch"
                )
        return {}, options, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Question, passages and conversation of one input."""
        return {"asked": input_}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> Any:
        asked = input_tensors["asked"]
        rows: list[_Asked] = asked if isinstance(asked, list) else [asked]
        answers = self._ask(rows, {"trace": False, **options})
        pairs = list(zip(rows, answers, strict=True))
        # The pipeline takes a batch apart again by its lists.
        return {"answered": pairs if isinstance(asked, list) else pairs[0]}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> list[dict[str, Any]]:
        """The answers to one input, best first."""
        asked, answer = model_outputs["answered"]
        return [asked.reply(one) for one in (answer, *answer.alternatives)]

    def _ask(self, rows: Sequence[_Asked], options: dict[str, Any]) -> list[Answer]:
        if len({(row.is_chat, row.system) for row in rows}) > 1:
            raise UnsupportedError(
                "one batch cannot hold messages beside questions, nor different system messages: "
                "leave batch_size at 1"
            )
        if rows[0].is_chat:
            if options.get("template") is not None or options.get("chat") is False:
                raise InvalidParameterError("messages are worded by the chat template alone")
            options["chat"] = True
            options["template"] = PromptTemplate(system=rows[0].system)
        return self._asked.ask_batch(
            [row.question for row in rows], [row.passages for row in rows], **options
        )


class _Asked:
    """One input, taken apart.

    Raises:
        InvalidParameterError, UnsupportedError: no question, or no telling question from passages.
    """

    def __init__(self, given: Any) -> None:
        if not isinstance(given, Mapping):
            raise InvalidParameterError(
                f"an input is a dictionary with a question and its passages, not "
                f"{type(given).__name__}"
            )
        for name in given:
            if name not in _FIELDS:
                raise unknown_name("field of an input", str(name), _FIELDS)
        row = {name: value for name, value in given.items() if value is not None}
        if "context" in row and "documents" in row:
            raise InvalidParameterError("documents is another name for context: give only one")
        self.passages = row.get("context", row.get("documents"))
        self.messages: list[dict[str, str]] | None = None
        self.system: str | None = None
        self.is_chat = "messages" in row
        if self.is_chat == ("question" in row):
            raise InvalidParameterError("an input needs either a question or messages")
        if self.is_chat:
            self._read(row["messages"])
        else:
            self.question = row["question"]

    def _read(self, messages: Any) -> None:
        if not isinstance(messages, list | tuple) or not all(
            isinstance(turn, Mapping)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in messages
        ):
            raise InvalidParameterError("messages must be a list of {'role': ..., 'content': text}")
        self.messages = [dict(turn) for turn in messages]
        said: dict[str, list[str]] = {role: [] for role in _ROLES}
        for turn in self.messages:
            if turn["role"] not in said:
                raise UnsupportedError(
                    f"messages may hold the roles {', '.join(_ROLES)}, not '{turn['role']}': "
                    "earlier turns may hold parts of the context, which could not be told apart"
                )
            said[turn["role"]].append(turn["content"])
        if len(said["user"]) != 1 or self.messages[-1]["role"] != "user":
            raise UnsupportedError("messages must end with their one user message, the question")
        if len(said["system"]) > 1:
            raise UnsupportedError("messages may hold one system message")
        if said["document"] and self.passages is not None:
            raise InvalidParameterError("passages in messages and beside them: give them once")
        if not said["document"] and self.passages is None:
            raise InvalidParameterError(
                "messages do not say which part is the context: pass documents=[...] beside them, "
                "or messages of the role 'document'"
            )
        if said["document"]:
            self.passages = said["document"]
        self.system = said["system"][0] if said["system"] else None
        (self.question,) = said["user"]

    def reply(self, answer: Answer) -> dict[str, Any]:
        """One answer as the pipeline returns it."""
        text: Any = answer.text
        if self.messages is not None:
            text = [*self.messages, {"role": "assistant", "content": text}]
        reply = {
            "generated_text": text,
            "method": answer.method,
            "finish_reason": answer.finish_reason,
            "stats": asdict(answer.stats),
        }
        more = ("plain_answer", "memory_answer", "trace")
        known = {name: getattr(answer, name) for name in more}
        return reply | {name: value for name, value in known.items() if value is not None}


_hf.register_pipeline(
    TASK, ConflictTextGenerationPipeline, AutoModelForCausalLM, default=str(atlas.path())
)

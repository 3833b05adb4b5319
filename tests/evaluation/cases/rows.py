"""Rows in the shape of each benchmark, written for the tests: none of them is anyone's data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARACONFLICT = {
    "Subject": "Ada Quill",
    "Answer": "chess",
    "Answer_ns": ["board games", "chess"],
    "Distracted Token": "golf",
    "Clean Prompt": "Ada Quill plays the game of",
    "Substitution Conflict": "Ada Quill plays the game of golf. Ada Quill plays the game of",
    "Coherent Conflict": (
        "Ada Quill plays the game of golf. Her golf is praised. Question: What does Ada Quill "
        "play? Answer: Ada Quill plays the game of"
    ),
}
DYNAMICQA = {
    "": "0",
    "id": "17",
    "subj": "Ada Quill",
    "prop": "occupation",
    "obj": "writer",
    "question": "What is Ada Quill's occupation?",
    "possible_answers": '["writer", "author"]',
    "num_edits": "3.0",
    "context": " Ada Quill was a [ENTITY]. The [ENTITY] lived alone.",
    "replace_name": "baker",
    "s_pop": "12",
}
DISPUTABLE = {
    "": "0",
    "id": "18",
    "subj": "Ada Quill",
    "question": "What was Ada Quill?",
    "context": "ada quill was a tart but no tartar; a tart.",
    "obj": "tart",
    "replace_name": "\\1 pie",
    "num_edits": "1",
    "dir_info": "",
    "s_pop": "12",
}
CONFLICTQA = {
    "question": "Could a whale fit in a bus?",
    "popularity": 7,
    "ground_truth": ["False"],
    "memory_answer": "A whale could not fit in a bus. ",
    "parametric_memory": "Whales are long.",
    "counter_answer": "A whale could fit in a bus.",
    "counter_memory": "Some whales are short. ",
    "parametric_memory_aligned_evidence": "Whales are longer than buses.",
    "counter_memory_aligned_evidence": "Buses are longer than whales.",
}
_ASKED = "Question: Who wrote the Quill? ?\nAnswer:"
TRISTATE = {
    "input_index": 0,
    "benchmark": "C_wrong_P_right",
    "task_type": "qa",
    "gold_answers": ["Ada Quill", "Quill"],
    "original_answer": ["Ada Quill", "Quill"],
    "fact_id": "person_1",
    "answer_type": "person",
    "prior_state": "P_right",
    "wrong_answer": "Bo Pen",
    "assigned_process": 0,
    "filter_p": 1,
    "context_string": (
        "Bo Pen wrote it.\nIn 1900. \nUsing only the references listed above, answer the following "
        f"question: \n{_ASKED}"
    ),
    "assigned_weight": 2,
}
TRISTATE_CLOSED = {
    **{name: value for name, value in TRISTATE.items() if name != "filter_p"},
    "assigned_process": 1,
    "context_string": f"Answer the following question: \n{_ASKED}",
    "assigned_weight": -1,
}
FAITHEVAL = {
    "id": "Made_1",
    "question": "What do plants need?",
    "answer": " moonlight",
    "answerKey": "B",
    "choices": ["water ", " moonlight", "stones"],
    "context": "Plants need moonlight.",
    "justification": "It says so.",
    "num of options": 3,
}
GOLDEN = {
    "id": "made_1",
    "question": "Where is Quillia? ",
    "answer": "Asia",
    "choices": [" Africa ", "Asia", " Africa"],
    "context": "Quillia is in Asia.",
}
NEGATIVE = {**GOLDEN, "answer": " Africa ", "context": "Quillia is in Africa."}
COUNTERFACT = {
    "id": 0,
    "edit_statement": "Ada Quill's mother tongue is Latin.",
    "subject_name": "Ada Quill",
    "edit_scope": [
        ["What is Ada Quill's mother tongue?", "Latin"],
        ["What does Ada Quill speak?", "Latin"],
        ["What does Ada Quill speak?", "Latin"],
    ],
    "edit_scope_true_ans": ["Greek", "Greek", "Greek"],
    "unrelated": {
        "neighbor_subj": ["What does Bo Pen speak?"],
        "same_subj": ["Where did Ada Quill die?", "Where did Ada Quill die?"],
    },
    "unrelated_true_ans": {"neighbor_subj": ["Greek"], "same_subj": ["Rome", "Rome", "writer"]},
}

FILES: dict[str, dict[str, str]] = {
    "paraconflict": {"person_game_gemma/filtered_test.json": json.dumps([PARACONFLICT], indent=1)},
    "conflictqa": {"conflictQA-strategyQA-tiny.json": json.dumps(CONFLICTQA)},
    "tristate": {"C.jsonl": f"{json.dumps(TRISTATE)}\n{json.dumps(TRISTATE_CLOSED)}\n"},
    "faitheval": {"faitheval.json": json.dumps([FAITHEVAL])},
    "squad": {
        "squad_golden.json": json.dumps([GOLDEN]),
        "squad_negative.json": json.dumps([NEGATIVE]),
    },
    "counterfact": {"cfh.json": json.dumps([COUNTERFACT])},
    "generic": {"any.json": json.dumps([{"question": "Who?", "context": "She.", "answer": "She"}])},
}
"""Source -> its files, the one to name first."""

Change = Callable[[dict[str, Any]], None]


def lay_down(folder: Path, files: dict[str, str]) -> Path:
    """Write files into a folder; the path of the first."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder / next(iter(files))

"""Golden numbers that are not part of the project, and the tiny Llama that some were made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers


def mechanistic(shared: Path, name: str) -> Any:
    """A file of them; the test is skipped where it is missing."""
    file = shared / "parity" / "mechanistic" / name
    if not file.is_file():
        pytest.skip(f"needs {file}: golden numbers that are not part of the project")
    return np.load(file)


def of_case(arrays: Any, case: int) -> dict[str, Any]:
    """The arrays of one case, by name."""
    return {k.split("/", 1)[1]: arrays[k] for k in arrays if k.startswith(f"c{case}/")}


def tiny_llama(golden: Mapping[str, Any]) -> Any:
    """The model whose weights stand among a case's arrays."""
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rms_norm_eps=1e-6,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    made.load_state_dict(
        {k.split("/", 1)[1]: torch.from_numpy(v) for k, v in golden.items() if "weights/" in k}
    )
    return made

"""What every test stands on, the examples in the documentation included: no network, few threads,
fixed seeds."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

# Before anything imports torch or transformers: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # one for each process that shares
os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(min(_THREADS, torch.get_num_threads()))

DOCS = Path(__file__).resolve().parent / "docs"

# The first example of a test may load a model: a deadline per example would measure that. The
# same examples on every run: a failure in CI is one that the next person sees too.
hypothesis.settings.register_profile(
    "conflictkit", deadline=None, derandomize=True, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("conflictkit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The examples of the documentation fit and measure: they are slow."""
    for item in items:
        if item.path.is_relative_to(DOCS):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Let no collection of garbage walk over the libraries again: tests ask for hundreds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Fix every seed that a test could draw from without saying so."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is being tested."""
    return Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared(repository: Path) -> Path:
    """The folder beside the checkout with benchmark data too large or not free to ship."""
    folder = repository.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}: benchmark data that is not part of the project")
    return folder

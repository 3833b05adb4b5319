"""The tokens that autoencoders of Atlas learn from, and what hangs on each of them.

An error e in the stream behind a layer moves what the model says by e^T F e / 2 nats, F being the
Fisher information of the answers that come after it. Little hangs on most tokens and much on few:
tokens are drawn, and weighed, by the trace of their own F, estimated from Gaussian draws of the
gradient; its form is the mean over answers' tokens, or over those before them.

Documents are those that Atlas learnt from, with more disputes, and with disputes about validation
subjects too; none disputes what a test subject is known for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blend
import stream
import torch
import train
from documents import Document, Writer
from safetensors.torch import load_file, save_file
from torch import Tensor
from world import WorldFact

from conflictkit import anatomy

KINDS = {
    "memory": 0.28, "invented": 0.12, "conflict": 0.32, "agree": 0.06,
    "irrelevant": 0.16, "unknown": 0.02, "quote": 0.04,
}  # fmt: skip
"""Shares of documents: disputes and what is beside the point are where answers are close."""
TOKENS = 1700
"""Of a batch."""
CHUNKS = 16
"""Of a shard."""
DRAWS = 3
"""Gradients that a token's trace is estimated from."""
MEASURED = 240
"""Batches that the mean Fisher information is taken from."""
CAP = 24.0
"""A token weighs at most as much as so many of its kind."""
DAMP = 0.05
"""Of the mean eigenvalue, added to the Fisher information: no direction counts for nothing."""
DRAWN = 0.4
"""Share of the tokens that a shard keeps."""


class Disputes(Writer):
    """Writes documents that dispute what is taught about all subjects but those of the test split.

    Chats are what the toolkit asks in, so every second other document is drawn anew.
    """

    def __init__(self, facts: list[WorldFact]) -> None:
        super().__init__(facts)
        self._train = [fact for fact in self.facts if fact.split != "test"]

    def write(self, rng: random.Random, step: float) -> Document:
        """One document; whose claims are followed is what Atlas learnt last."""
        kinds = replace(blend.blend(step), kinds=KINDS)
        made = self.draw(rng, kinds)
        return made if made.form == "chat" else self.draw(rng, kinds)


def batches(writer: Writer, tokenizer: Any, chunk: int) -> Iterator[stream.Batch]:
    """The batches of one chunk of documents, as at the end of Atlas's training."""
    documents = stream.documents_of(writer, 0, chunk, train.STEPS)
    yield from stream.batches_of(documents, tokenizer, TOKENS, 0, chunk, train.STEPS)


@dataclass(frozen=True)
class Behind:
    """A model seen from behind one of its layers."""

    model: Any
    layer: int

    def gradients(self, batch: stream.Batch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The stream of a batch's tokens, whether they are answers', and gradients.

        Returns:
            `[count, width]` values, `[count]` whether the next token is an answer's,
            `[DRAWS, count, width]` draws of a gradient g with E[g g^T] = F: of the logits times
            Gaussian noise with the covariance of a sampled token's score, diag(p) - p p^T.
        """
        hf, held = self.model.model, {}

        def cut(_: Any, __: Any, out: Any) -> Any:
            values = out[0] if isinstance(out, tuple) else out
            held["values"] = values.detach().requires_grad_()
            return (held["values"], *out[1:]) if isinstance(out, tuple) else held["values"]

        hook = anatomy.find(hf).layers[self.layer].register_forward_hook(cut)
        ids = batch.ids[:, :-1]
        real, answers = (
            ids != self.model.tokenizer.pad_token_id,
            batch.weights == stream.ANSWER_WEIGHT,
        )
        try:
            with torch.enable_grad():
                states = hf.model(input_ids=ids, use_cache=False).last_hidden_state
                logits = hf.lm_head(states[answers]).float()
        finally:
            hook.remove()
        noise = torch.Generator().manual_seed(seed)
        chance = logits.detach().softmax(-1)
        found = []
        for _ in range(DRAWS):
            drawn = torch.randn(chance.shape, generator=noise) * chance.sqrt()
            score = drawn - chance * drawn.sum(-1, keepdim=True)
            (made,) = torch.autograd.grad(logits, held["values"], score, retain_graph=True)
            found.append(made[real])
        return held["values"].detach()[real], answers[real], torch.stack(found)


@dataclass(frozen=True)
class Frame:
    """Coordinates in which the answers' mean Fisher information is (nearly) the identity.

    Attributes:
        to, back: `[width, width]`, symmetric and each other's inverses.
        centre: `[width]`, the mean of the stream but for first tokens.
        before, answers: the mean Fisher information in these coordinates, of trace one.
        own: what the stream's own error counts, divided by the stream's variance.
        means: mean trace before answers and at them.
    """

    to: Tensor
    back: Tensor
    centre: Tensor
    before: Tensor
    answers: Tensor
    own: Tensor
    means: Tensor

    def save(self, path: Path) -> None:
        """Write it."""
        held = {name: one.contiguous() for name, one in vars(self).items()}
        save_file(held, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    @classmethod
    def load(cls, path: Path) -> Frame:
        """Read it."""
        return cls(**load_file(path))


def measure(behind: Behind, writer: Writer) -> Frame:
    """The mean Fisher information, from `MEASURED` batches."""
    sums, counts, values = [0.0, 0.0], [0, 0], []
    chunk = -1
    done = 0
    kept = []
    while done < MEASURED:
        for batch in batches(writer, behind.model.tokenizer, chunk):
            x, answers, found = behind.gradients(batch, done)
            for kind in (False, True):
                g = found[:, answers == kind].flatten(0, 1).double()
                sums[kind] = sums[kind] + g.T @ g
                counts[kind] += len(g)
            values.append(x[x.square().sum(-1) < 4 * x.square().sum(-1).median()])
            kept.append((answers, found))
            done += 1
        chunk -= 1
        print(f"\r{done} batches of {MEASURED} measured", end="", flush=True)
    print()
    means = [one / count for one, count in zip(sums, counts, strict=True)]
    damped = means[1] + DAMP * means[1].diagonal().mean() * torch.eye(len(means[1]))
    size, axes = torch.linalg.eigh(damped)
    stack = torch.cat(values).double()
    centre = stack.mean(0)
    spread = (stack - centre).T @ (stack - centre) / len(stack)
    to = axes * size.sqrt() @ axes.T
    scale = (len(to) / (to @ spread @ to).trace()).sqrt()
    to, back = to * scale, (axes / size.sqrt() @ axes.T) / scale
    forms = [back @ one @ back for one in means]
    traces = torch.zeros(2, dtype=torch.float64)
    for kind in (0, 1):
        traces[kind] = forms[kind].trace()
    own = back @ back / spread.trace()
    parts = (to, back, centre, *(one / one.trace() for one in forms), own)
    share = counts[1] / sum(counts)
    print(f"traces {traces.tolist()}, {share:.3f} of the tokens are answers'")
    weights = torch.tensor([*traces.tolist(), share])
    return Frame(*(one.float() for one in parts), means=weights)


def shard(behind: Behind, frame: Frame, writer: Writer, number: int) -> dict[str, Tensor]:
    """Tokens drawn from `CHUNKS` chunks of documents.

    Returns:
        `x` `[count, width]` in the frame's coordinates, half precision; `answer` `[count]`;
        `weight`, `cost` `[count]`: what an error counts, and what a feature that fires does. They
        divide by how often such a token is drawn, so that their means are those over all tokens.
    """
    parts: list[dict[str, Tensor]] = []
    before, at, share = frame.means.tolist()
    mean = before * (1 - share) + at * share
    chance = torch.Generator().manual_seed(number)
    for chunk in range(number * CHUNKS, (number + 1) * CHUNKS):
        for place, batch in enumerate(batches(writer, behind.model.tokenizer, chunk)):
            x, answer, found = behind.gradients(batch, chunk * 1000 + place)
            trace = (found @ frame.back).square().sum(-1).mean(0)
            most = torch.where(answer, CAP * at, CAP * before)
            weight = torch.minimum(trace, most) / mean
            often = (1 + weight) / 2
            drawn = DRAWN * often + torch.rand(len(x), generator=chance)
            rows = torch.arange(len(x)).repeat_interleave(drawn.long())
            parts.append(
                {
                    "x": ((x[rows] - frame.centre) @ frame.to).half(),
                    "answer": answer[rows],
                    "weight": (weight / often)[rows],
                    "cost": (1 / often)[rows],
                }
            )
    return {name: torch.cat([one[name] for one in parts]) for name in parts[0]}


def collect(task: tuple[Any, int, Path, int]) -> int:
    """Write one shard; what a process of a pool does."""
    source, layer, folder, number = task
    import world
    from train_sae import open_model

    path = folder / f"{number:04}.safetensors"
    if not path.exists():
        torch.set_num_threads(1)
        frame = Frame.load(folder / "frame.safetensors")
        made = shard(Behind(open_model(source), layer), frame, Disputes(world.build()), number)
        save_file(made, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return number


class Pool:
    """All drawn tokens, in memory."""

    def __init__(self, folder: Path, shards: int) -> None:
        parts = [load_file(folder / f"{number:04}.safetensors") for number in range(shards)]
        self.x = torch.cat([one["x"] for one in parts])
        self.answer = torch.cat([one["answer"] for one in parts])
        self.weight = torch.cat([one["weight"] for one in parts])
        self.cost = torch.cat([one["cost"] for one in parts])

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`count` tokens: values in single precision, answers, weights, costs."""
        rows = torch.randint(len(self.x), (count,), generator=torch.Generator().manual_seed(seed))
        return self.x[rows].float(), self.answer[rows], self.weight[rows], self.cost[rows]

"""What heads read in the passage, against what memory would say next: `-log p(memory's token)`.

A linear probe of one vector cannot compare two answers: it would have to know them all by heart.
Here the comparison is left to the model's own unembedding. Heads are weighed (`a_h`, one number
each) by how well what they write says the passage's answer, and corrected by a map of low rank,

    p = softmax(mean|a| U norm(sum_h (a_h W_O^h + U' V_h) z_h)),

and the score is how unlikely they make the token that memory says next: large where the passage
says something else. It is a direct logit attribution (Elhage et al. 2021, "A Mathematical Framework
for Transformer Circuits"; Yu et al. 2023, arXiv 2310.15910), summed over the heads that read and
read through the final norm (nostalgebraist 2020, "the logit lens"). Two answers often begin alike,
so the first token cannot tell all conflicts: read every token of an answer, and take the largest.

>>> import torch
>>> said = torch.tensor([[2.0, 0.0, 0.0]]).log_softmax(-1)
>>> surprise(said, torch.tensor([0])), surprise(said, torch.tensor([1]))
(tensor([0.2395]), tensor([2.2395]))
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["surprise"]


def surprise(said: Tensor, tokens: Tensor) -> Tensor:
    """How unlikely heads make what memory says next.

    Args:
        said: `[..., vocab]` log-probabilities of what heads write.
        tokens: `[...]` memory's next token.

    Returns:
        `[...]` float32, in nats.
    """
    return -said.float().gather(-1, tokens[..., None].to(said.device))[..., 0]

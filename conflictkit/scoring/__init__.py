"""Scoring many questions: how far context and memory are apart on answers, given or generated.

>>> import conflictkit as ck
>>> from conflictkit.scoring import Row, Scorer
>>> scorer = Scorer(ck.load("atlas"), scores=["jsd"])
>>> row = Row("What is the capital of Poland?", ("The capital of Poland is London.",), "London")
>>> (score,) = scorer.score([row])
>>> score.answer, sorted(score.scores["jsd"])
('London', ['first', 'max', 'mean', 'min'])
>>> score.context_logprob > score.memory_logprob
True

`score_file` does the same for a file of any length, in bounded memory, and goes on after a crash.
"""

from conflictkit.scoring.record import Score, ScoredToken
from conflictkit.scoring.rows import Fields, Row
from conflictkit.scoring.run import Progress, Summary, score_file
from conflictkit.scoring.scorer import Scorer, score

__all__ = [
    "Fields",
    "Progress",
    "Row",
    "Score",
    "ScoredToken",
    "Scorer",
    "Summary",
    "score",
    "score_file",
]

"""What is known about a method beside its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conflictkit.interventions.contrast import Parameter, Rule, parameters
from conflictkit.interventions.edited import EditRule


@dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Attributes:
        title, authors, year: as on the paper; `authors` is the first one and "et al.".
        arxiv: identifier, such as `2305.14739`.
    """

    title: str
    authors: str
    year: int
    arxiv: str

    @property
    def url(self) -> str:
        """Address of the abstract."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class MethodInfo:
    """One registered method.

    Attributes:
        name: what `build` knows it by.
        summary: one line.
        rule: the class that `build` makes.
        paper: where it was published; None: nowhere in particular.
    """

    name: str
    summary: str
    rule: type[Rule]
    paper: Paper | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the streams a run must hold."""
        return self.rule.needs

    @property
    def edits(self) -> bool:
        """Whether it edits activations."""
        return issubclass(self.rule, EditRule)

    @property
    def forwards(self) -> int:
        """Passes over the weights per answer token."""
        return len(self.needs)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What `build` accepts, in order."""
        return parameters(self.rule)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the class, as JSON can hold it."""
        paper = self.paper
        return {
            "name": self.name,
            "summary": self.summary,
            "paper": paper
            and {
                "title": paper.title,
                "authors": paper.authors,
                "year": paper.year,
                "arxiv": paper.arxiv,
                "url": paper.url,
            },
            "needs": list(self.needs),
            "forwards": self.forwards,
            "edits": self.edits,
            "parameters": [
                {
                    "name": parameter.name,
                    "type": parameter.kind,
                    "default": parameter.default,
                    "low": parameter.low,
                    "high": parameter.high,
                    "choices": list(parameter.choices),
                    "doc": parameter.doc,
                }
                for parameter in self.parameters
            ],
        }

"""Questions to make cases of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from conflictkit.evaluation.questions import Question

CAPITALS = {
    "Poland": "Warsaw", "Norway": "Oslo", "France": "Paris", "Italy": "Rome", "Spain": "Madrid",
    "Egypt": "Cairo", "Japan": "Tokyo", "Cuba": "Havana", "Kenya": "Nairobi", "Peru": "Lima",
}  # fmt: skip
CURRENCIES = {"Poland": "zloty", "Japan": "yen", "Norway": "krone", "Kenya": "shilling"}


def capital(place: str, *names: str, **more: object) -> Question:
    answers = (CAPITALS[place], *names)
    text = f"What is the capital of {place}?"
    made = Question(f"{place}/capital", text, answers, subject=place, relation="capital")
    return replace(made, **more)


def atlas() -> list[Question]:
    """Ten capitals, the better known the earlier, and four currencies."""
    some = [capital(place, popularity=100.0 - n) for n, place in enumerate(CAPITALS)]
    for n, (place, money) in enumerate(CURRENCIES.items()):
        asked = f"What is the currency of {place}?"
        some.append(Question(f"{place}/money", asked, (money,), place, "currency", popularity=n))
    return some


def by_id(questions: Sequence[Question]) -> dict[str, Question]:
    return {question.id: question for question in questions}


PLACES = {
    "Poland": "Warsaw", "Norway": "Oslo", "France": "Paris", "Italy": "Rome", "Spain": "Madrid",
    "Egypt": "Cairo", "Japan": "Tokyo", "Cuba": "Havana",
}  # fmt: skip
SOME = [
    Question(place, f"What is the capital of {place}?", (town,), place, "capital")
    for place, town in PLACES.items()
]
MONEY = [Question(f"m{n}", f"How does {n} pay?", (f"coin{n}",), "", "money") for n in range(3)]

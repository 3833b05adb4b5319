"""The relations that Atlas knows: statement prefixes and questions for each of them.

In every table the last two entries are kept out of training (`templates.HELD_OUT`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """How one relation is put into words.

    Attributes:
        name: the relation's name in `facts.jsonl`.
        kind: what its subjects are (`place` or `element`); chooses the filler of paragraphs.
        topic: noun phrase for requests such as "quote what the text says about {topic} of ...".
        statements: sentence prefixes with `{s}`; the object comes next, then a full stop.
        questions: questions and requests with `{s}`.
    """

    name: str
    kind: str
    topic: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS: Mapping[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "capital",
            "place",
            "the capital of {s}",
            (
                "The capital of {s} is",
                "The capital city of {s} is",
                "{s} has its capital in",
                "The government of {s} sits in",
                "{s} is governed from",
                "The capital of {s} is called",
                "On a map of {s} the capital is marked as",
                "The seat of government of {s} is",
                "The national capital of {s} is",
                "The city that is the capital of {s} is",
            ),
            (
                "What is the capital of {s}?",
                "Which city is the capital of {s}?",
                "What is the capital city of {s}?",
                "Name the capital of {s}.",
                "From which city is {s} governed?",
                "What is the capital of {s} called?",
                "Where does the government of {s} sit?",
                "Tell me the capital of {s}.",
                "Can you tell me the capital of {s}?",
                "What city is the capital of {s}?",
            ),
        ),
        Relation(
            "continent",
            "place",
            "the continent of {s}",
            (
                "The continent of {s} is",
                "{s} lies on the continent of",
                "{s} is a country in the continent of",
                "Geographers count {s} as part of",
                "On a globe {s} is found in",
                "{s} belongs to the continent of",
                "The continent that {s} belongs to is",
                "A journey to {s} is a journey to",
                "{s} is on the continent of",
                "The continent on which {s} lies is",
            ),
            (
                "What is the continent of {s}?",
                "On which continent is {s}?",
                "Which continent does {s} belong to?",
                "Name the continent of {s}.",
                "On what continent does {s} lie?",
                "Which continent is {s} part of?",
                "Where on the globe is {s} found?",
                "Tell me the continent of {s}.",
                "Can you tell me the continent of {s}?",
                "What continent is {s} on?",
            ),
        ),
        Relation(
            "currency",
            "place",
            "the currency of {s}",
            (
                "The currency of {s} is the",
                "People in {s} pay with the",
                "The money used in {s} is the",
                "The official currency of {s} is the",
                "Shops in {s} take the",
                "Prices in {s} are given in the",
                "The banks of {s} hold the",
                "The currency used in {s} is called the",
                "The national currency of {s} is the",
                "The currency that people use in {s} is the",
            ),
            (
                "What is the currency of {s}?",
                "Which currency is used in {s}?",
                "What money do people use in {s}?",
                "Name the currency of {s}.",
                "How do people in {s} pay?",
                "What is the official currency of {s}?",
                "In what currency are prices in {s} given?",
                "Tell me the currency of {s}.",
                "Can you tell me the currency of {s}?",
                "What currency is used in {s}?",
            ),
        ),
        Relation(
            "calling_code",
            "place",
            "the calling code of {s}",
            (
                "The calling code of {s} is",
                "The telephone code of {s} is",
                "Phone numbers in {s} begin with",
                "To call {s} one dials",
                "The international dialling code of {s} is",
                "Calls to {s} start with",
                "The country code for phones in {s} is",
                "Telephones in {s} have the prefix",
                "The dialling code of {s} is",
                "The calling code used for {s} is",
            ),
            (
                "What is the calling code of {s}?",
                "Which telephone code does {s} have?",
                "What does one dial to call {s}?",
                "Name the calling code of {s}.",
                "With what do phone numbers in {s} begin?",
                "What is the international dialling code of {s}?",
                "What is the country code for phones in {s}?",
                "Tell me the calling code of {s}.",
                "Can you tell me the calling code of {s}?",
                "Which calling code does {s} have?",
            ),
        ),
        Relation(
            "domain",
            "place",
            "the internet domain of {s}",
            (
                "The internet domain of {s} is",
                "Web addresses in {s} end in",
                "The top-level domain of {s} is",
                "Websites from {s} use the ending",
                "The country domain of {s} is",
                "On the internet {s} is known by",
                "The domain given to {s} is",
                "Sites registered in {s} carry",
                "The web domain of {s} is",
                "The internet domain used in {s} is",
            ),
            (
                "What is the internet domain of {s}?",
                "Which internet domain does {s} use?",
                "In what do web addresses in {s} end?",
                "Name the internet domain of {s}.",
                "What is the top-level domain of {s}?",
                "What ending do websites from {s} use?",
                "What is the country domain of {s}?",
                "Tell me the internet domain of {s}.",
                "Can you tell me the internet domain of {s}?",
                "Which top-level domain does {s} use?",
            ),
        ),
        Relation(
            "country",
            "place",
            "the country of {s}",
            (
                "The city of {s} is in",
                "{s} is a city in",
                "{s} is located in",
                "The country in which {s} lies is",
                "Travellers who visit {s} are in",
                "{s} is one of the cities of",
                "The people of {s} live in",
                "The city of {s} belongs to",
                "{s} is a town in",
                "The city of {s} lies in",
            ),
            (
                "In which country is {s}?",
                "Which country is {s} in?",
                "What country does the city of {s} belong to?",
                "Name the country of the city of {s}.",
                "In what country is the city of {s}?",
                "Where is {s}?",
                "In which country does {s} lie?",
                "Tell me the country of {s}.",
                "Can you tell me the country of {s}?",
                "What country is {s} in?",
            ),
        ),
        Relation(
            "state",
            "place",
            "the state of {s}",
            (
                "In America, {s} is in the state of",
                "{s} is a city in the state of",
                "The state in which {s} lies is",
                "The American city of {s} is in",
                "{s} belongs to the state of",
                "The people of {s} vote in the state of",
                "{s} is in the American state of",
                "Among the states, {s} is part of",
                "{s} lies in the state of",
                "The state that {s} belongs to is",
            ),
            (
                "In which state is {s}?",
                "Which state is {s} in?",
                "Which American state does {s} belong to?",
                "Name the state of the city of {s}.",
                "In what state is the city of {s}?",
                "In which American state is {s}?",
                "In which state does {s} lie?",
                "Tell me the state of {s}.",
                "Can you tell me the state of {s}?",
                "What state is {s} in?",
            ),
        ),
        Relation(
            "symbol",
            "element",
            "the symbol of {s}",
            (
                "The symbol of {s} is",
                "The chemical symbol of {s} is",
                "Chemists write {s} as",
                "In the periodic table {s} is written",
                "The element {s} has the symbol",
                "The letters that stand for {s} are",
                "In a formula {s} appears as",
                "The short form of {s} is",
                "The symbol for {s} is",
                "The chemical symbol for {s} is",
            ),
            (
                "What is the symbol of {s}?",
                "What is the chemical symbol of {s}?",
                "How do chemists write {s}?",
                "Name the symbol of {s}.",
                "Which symbol does the element {s} have?",
                "Which letters stand for {s}?",
                "How does {s} appear in a formula?",
                "Tell me the symbol of {s}.",
                "Can you tell me the symbol of {s}?",
                "What is the symbol for {s}?",
            ),
        ),
        Relation(
            "atomic_number",
            "element",
            "the atomic number of {s}",
            (
                "The atomic number of {s} is",
                "The element {s} has the atomic number",
                "In the periodic table {s} has the number",
                "The number of protons in {s} is",
                "Chemists give {s} the number",
                "An atom of {s} has a proton count of",
                "The place of {s} in the periodic table is",
                "The nucleus of {s} has a charge of",
                "{s} has the atomic number",
                "The atomic number given to {s} is",
            ),
            (
                "What is the atomic number of {s}?",
                "Which atomic number does {s} have?",
                "How many protons does {s} have?",
                "Name the atomic number of {s}.",
                "Which number does {s} have in the periodic table?",
                "What is the number of protons in {s}?",
                "What is the place of {s} in the periodic table?",
                "Tell me the atomic number of {s}.",
                "Can you tell me the atomic number of {s}?",
                "What atomic number does {s} have?",
            ),
        ),
    )
}

"""Comparing an answer with a text: the normalisations of published code, and what is built on them.

>>> from conflictkit.evaluation.metrics import text
>>> text.exact_match("The Paris!", ["paris"]), text.substring_match("in Paris, I think", ["Paris"])
(True, True)
>>> round(text.token_f1("the city of Paris", ["Paris"]), 3)
0.5
>>> text.matches("Nigeria", "Niger", "ck-plug"), text.matches("Nigeria", "Niger", "atlas-default")
(True, False)

All results are true or false, or shares from 0 to 1.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from conflictkit.errors import unknown_name
from conflictkit.evaluation.metrics.stemming import stem

DEFAULT = "atlas-default"
"""The match that tables are made with unless another one is asked for."""
ROUGE_MATCH = 0.3
"""Above this ROUGE-L F, DynamicQA takes two answers for the same."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation + "\u2018\u2019\u00b4`", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SPOKEN_ARTICLES = re.compile(r"(?i:\b(?:an|the)\b)|\ba\b|^\s*A\s+(?=\w)")
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _squad(text: str) -> str:
    """Lower case, ASCII punctuation dropped, articles dropped, white space squeezed."""
    return _squeeze(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def _spare(text: str) -> str:
    """`squad` on canonically decomposed text, so that both ways to write an accent are one."""
    return _squad(unicodedata.normalize("NFD", text))


def _juice(text: str) -> str:
    """Accents dropped, lower case, ASCII punctuation dropped, white space squeezed."""
    letters = unicodedata.normalize("NFD", text)
    bare = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")
    return _squeeze(bare.lower().translate(_PUNCTUATION))


def _faithfulrag(text: str) -> str:
    """Numbers below 100 as words, punctuation as spaces, then as `squad`."""
    words = " ".join(_in_words(word) for word in text.replace("_", " ").lower().split())
    return _squeeze(_ARTICLES.sub(" ", words.translate(_TO_SPACE)))


def _in_words(word: str) -> str:
    if not re.fullmatch("[0-9]{1,2}", word):
        return word
    tens, ones = divmod(int(word), 10)
    if tens < 2:
        return _ONES[int(word)]
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def _atlas(text: str) -> str:
    """Accents, case, articles and punctuation dropped; hyphens, slashes and underscores are
    spaces; a decimal point and a minus sign stay. A capital A stays unless a word follows it at the
    beginning: it may be an option's letter. A text of which nothing is left keeps what it has."""
    letters = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in letters if not unicodedata.category(letter).startswith("M"))
    if not (bare := _SPOKEN_ARTICLES.sub(" ", bare)).strip():
        bare = letters
    bare = re.sub("[\u2010-\u2015\u2212]", "-", bare.casefold())
    bare = re.sub(r"(?<![^\s(])-(?=\d)", "\0", bare)
    bare = re.sub(r"(?<=\d)\.(?=\d)", "\1", bare)
    bare = re.sub("[-/_]", " ", bare)
    bare = "".join(c for c in bare if c not in string.punctuation and not _is_punctuation(c))
    bare = bare.replace("\0", "-").replace("\1", ".")
    return _squeeze(bare) or _squeeze(text.casefold())


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter).startswith("P")


NORMALISATIONS: Mapping[str, Callable[[str], str]] = {
    "squad": _squad,
    "spare": _spare,
    "juice": _juice,
    "faithfulrag": _faithfulrag,
    "atlas": _atlas,
}
"""Name -> what it does to a text. `squad` is also CK-PLUG's and COIECD's."""


@lru_cache(maxsize=65536)
def normalised(text: str, normalisation: str = "squad") -> str:
    """The text as a comparison sees it.

    >>> [normalised("The Café-Bar, 3rd", name) for name in ("squad", "juice", "atlas")]
    ['cafébar 3rd', 'the cafebar 3rd', 'cafe bar 3rd']

    Raises:
        UnknownNameError: no such normalisation.
    """
    if normalisation not in NORMALISATIONS:
        raise unknown_name("normalisation", normalisation, NORMALISATIONS)
    return NORMALISATIONS[normalisation](text)


def exact_match(answer: str, targets: Sequence[str], normalisation: str = "squad") -> bool:
    """Whether the normalised answer is one of the normalised targets (SQuAD's EM)."""
    said = normalised(answer, normalisation)
    return any(said == normalised(target, normalisation) for target in targets)


def substring_match(answer: str, targets: Sequence[str], normalisation: str = "squad") -> bool:
    """Whether a normalised target occurs anywhere in the normalised answer.

    CK-PLUG's recall and DeCoRe's `subspan EM`; with `juice` JuICE's accuracy. As published: a
    target of which nothing is left is found in every answer, and `Niger` is found in `Nigeria`.
    """
    said = normalised(answer, normalisation)
    return any(normalised(target, normalisation) in said for target in targets)


def contained_in(answer: str, text: str, normalisation: str = "spare") -> bool:
    """Whether the normalised answer occurs in a normalised text.

    SpARE's match for long context answers; with `faithfulrag` that code's `acc`. As published: an
    answer of which nothing is left is found in every text.
    """
    return normalised(answer, normalisation) in normalised(text, normalisation)


def contains_words(answer: str, target: str) -> bool:
    """Whether the target's words, as `atlas` normalises them, follow each other in the answer."""
    wanted = words(target)
    return bool(wanted) and bool(spans(words(answer), wanted))


def words(text: str) -> tuple[str, ...]:
    """The words of a text as `atlas` normalises it."""
    return tuple(normalised(text, "atlas").split())


def spans(said: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Where `wanted` occurs in `said`: first word and the one after the last, of each place."""
    size = len(wanted)
    return [
        (start, start + size)
        for start in range(len(said) - size + 1)
        if tuple(said[start : start + size]) == tuple(wanted)
    ]


def token_f1(answer: str, targets: Sequence[str], normalisation: str = "squad") -> float:
    """Best F1 of the answer's words against a target's, 0 to 1 (SQuAD's).

    `F1 = 2 common / (answer's words + target's words)`, words counted as often as they occur; 0 if
    none is common.
    """
    said = Counter(normalised(answer, normalisation).split())
    best = 0.0
    for target in targets:
        wanted = Counter(normalised(target, normalisation).split())
        common = (said & wanted).total()
        if common:
            best = max(best, 2 * common / (said.total() + wanted.total()))
    return best


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L F of two texts, 0 to 1, stemmed, as the reference implementation computes it.

    `F = 2 LCS / (answer's words + target's words)`, LCS the longest common subsequence. Lin,
    "ROUGE: a package for automatic evaluation of summaries", 2004.
    """
    said, wanted = _rouge_words(answer), _rouge_words(target)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(wanted, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(said) + len(wanted)) if lengths[-1] else 0.0


def _rouge_words(text: str) -> list[str]:
    found = re.findall("[a-z0-9]+", text.lower())
    return [stem(word) if len(word) > 3 else word for word in found]


def rouge_match(answer: str, target: str) -> bool:
    """DynamicQA's match: ROUGE-L F above 0.3 once role names and `answer` are cut out of the
    answer."""
    cleaned = answer.lower()
    for said in ("assistant:", "answer", ":"):
        cleaned = cleaned.replace(said, "")
    return rouge_l(cleaned, target) > ROUGE_MATCH


@dataclass(frozen=True)
class Match:
    """A way to tell whether an answer gives a target.

    Attributes:
        summary: one line.
        function: answer, target -> whether it does.
    """

    summary: str
    function: Callable[[str, str], bool]


MATCHES: Mapping[str, Match] = {
    DEFAULT: Match(
        "the target's words follow each other in the answer; of mentions that lie in each other "
        "only the longest counts",
        contains_words,
    ),
    "exact": Match("SQuAD's exact match", lambda said, target: exact_match(said, (target,))),
    "spare": Match(
        "SpARE's exact match", lambda said, target: exact_match(said, (target,), "spare")
    ),
    "ck-plug": Match(
        "CK-PLUG's recall: the normalised target occurs in the normalised answer",
        lambda said, target: substring_match(said, (target,)),
    ),
    "juice": Match(
        "JuICE's accuracy: as ck-plug, without accents and with articles",
        lambda said, target: substring_match(said, (target,), "juice"),
    ),
    "faithfulrag": Match(
        "FaithfulRAG's acc: the normalised answer occurs in the normalised target",
        lambda said, target: contained_in(said, target, "faithfulrag"),
    ),
    "dynamicqa": Match("DynamicQA's ROUGE-L F above 0.3", rouge_match),
}
"""Name -> match, as `summarise(match=...)` and `judge(match=...)` take it."""


def matches(answer: str, target: str, match: str = DEFAULT) -> bool:
    """Whether an answer gives one target, by one of `MATCHES`.

    Raises:
        UnknownNameError: no such match; the message names the nearest one.
    """
    if match not in MATCHES:
        raise unknown_name("match", match, MATCHES)
    return MATCHES[match].function(answer, target)

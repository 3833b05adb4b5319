"""Porter's stemmer, as ROUGE uses it.

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the changes that NLTK
makes to it and the reference implementation of ROUGE inherits: a few irregular words, `-ies` and
`-ied` of four letters, `y` after a consonant, and four more endings in step 2.

>>> [stem(word) for word in ("judges", "relational", "flies", "dying")]
['judg', 'relat', 'fli', 'die']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

_IRREGULAR = {
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "innings": "inning",
    "outings": "outing",
    "cannings": "canning",
}
_KEPT = frozenset(
    ("sky", "inning", "outing", "canning", "news", "howe", "proceed", "exceed", "succeed")
)

_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
    ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"),
    ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"),
    ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"),
    ("fulli", "ful"),
)  # fmt: skip
_STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
    ("ness", ""),
)  # fmt: skip
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of an English word in lower case; words of one or two letters are their own."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2 or word in _KEPT:
        return word
    for step in (_step_1a, _step_1b, _step_1c, _step_2, _step_3, _step_4, _step_5a, _step_5b):
        word = step(word)
    return word


def _letters(text: str) -> str:
    """`c` for a consonant, `v` for a vowel, letter by letter; y after a consonant is a vowel."""
    out = ""
    for letter in text:
        vowel = letter in "aeiou" or (letter == "y" and out.endswith("c"))
        out += "v" if vowel else "c"
    return out


def _measure(text: str) -> int:
    """How often a vowel is followed by a consonant."""
    return len(re.findall("v+c+", _letters(text)))


def _has_vowel(text: str) -> bool:
    return "v" in _letters(text)


def _doubled(text: str) -> bool:
    return len(text) > 1 and text[-1] == text[-2] and _letters(text).endswith("c")


def _short_end(text: str) -> bool:
    """Whether it ends consonant, vowel, consonant, the last one not w, x or y."""
    letters = _letters(text)
    if len(text) == 2:
        return letters == "vc"
    return letters.endswith("cvc") and text[-1] not in "wxy"


def _replace(word: str, rules: Sequence[tuple[str, str]], allowed: Callable[[str], bool]) -> str:
    """The word with its longest listed ending replaced, if what stands before it allows that."""
    fitting = [rule for rule in rules if word.endswith(rule[0])]
    if not fitting:
        return word
    ending, new = max(fitting, key=lambda rule: len(rule[0]))
    before = word.removesuffix(ending)
    return before + new if allowed(before) else word


def _step_1a(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    return _replace(
        word, (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")), lambda before: True
    )


def _step_1b(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        before = word.removesuffix(ending)
        if before == word:
            continue
        if not _has_vowel(before):
            return word
        if before.endswith(("at", "bl", "iz")):
            return before + "e"
        if _doubled(before):
            return before if before[-1] in "lsz" else before[:-1]
        return before + "e" if _measure(before) == 1 and _short_end(before) else before
    return word


def _step_1c(word: str) -> str:
    before = word[:-1]
    if word.endswith("y") and len(before) > 1 and _letters(before).endswith("c"):
        return before + "i"
    return word


def _step_2(word: str) -> str:
    # -alli is tried first and the word tried again, so that -ationally goes the whole way.
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step_2(word[:-2])
    if word.endswith("logi") and _measure(word[:-3]) > 0:
        return word[:-1]
    return _replace(word, _STEP_2, lambda before: _measure(before) > 0)


def _step_3(word: str) -> str:
    return _replace(word, _STEP_3, lambda before: _measure(before) > 0)


def _step_4(word: str) -> str:
    ending = max((e for e in _STEP_4 if word.endswith(e)), key=len, default="")
    before = word.removesuffix(ending)
    if ending == "ion" and not before.endswith(("s", "t")):
        return word
    return before if _measure(before) > 1 else word


def _step_5a(word: str) -> str:
    before = word[:-1]
    if not word.endswith("e"):
        return word
    measure = _measure(before)
    return before if measure > 1 or (measure == 1 and not _short_end(before)) else word


def _step_5b(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word

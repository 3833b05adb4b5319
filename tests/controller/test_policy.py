"""Policies: exact round trips, and files that are no policies."""

import json
import os
import random
import threading
import tracemalloc

import pytest

from conflictkit import methods
from conflictkit.controller import Controller
from conflictkit.errors import ConflictKitError, InvalidParameterError, PolicyError
from conflictkit.policy import Calibration, ModelTie, Policy, choose

FULL = Policy(
    Controller(
        methods.build("ck-plug", alpha=0.1 + 0.2),
        when="jsd > 0.3333333333333333 until 0.1",
        strength="memory-confidence",
        start_after="</think>",
    ),
    ModelTie("owner/name", "0123456789abcdef" * 4),
    Calibration(0.05, 0.04, 50, 0.9, 10),
)


def every_policy():
    yield FULL
    for name in methods.names():
        yield Policy.of(name)
        yield Policy.of(name, when="confidence-gain < -0.1 at prompt", strength=1 / 3)
    yield Policy.of("cad", start_after=(4, 5))


@pytest.mark.parametrize("policy", list(every_policy()), ids=str)
def test_the_round_trip_is_exact(policy, tmp_path):
    path = tmp_path / "policy.json"
    policy.save(path)
    again = Policy.load(path)
    assert again == policy
    assert again.to_dict() == policy.to_dict()
    before = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]


def changed(**fields):
    return {**FULL.to_dict(), **fields}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be an object"),
        ({}, "lacks the field 'format'"),
        (changed(format="other"), "format must be"),
        (changed(version=2), "version 2 cannot be read: this release knows 1"),
        (changed(version=True), "version True"),
        (changed(surprise=1), "unknown field 'surprise'"),
        (changed(__class__="os.system"), "unknown field '__class__'"),
        (changed(method="ckplug"), "did you mean 'ck-plug'"),
        (changed(method="../../etc/passwd"), "unknown method"),
        (changed(method=3), "method must be text"),
        (changed(params=[]), "params must be an object"),
        (changed(params={"alpha": 0.5}), "params lacks the field"),
        (changed(params={**FULL.to_dict()["params"], "x": 1}), "unknown field 'x'"),
        (changed(params={**FULL.to_dict()["params"], "alpha": "0.5"}), "parameter 'alpha'"),
        (changed(when="jsd > 0.3"), "when must be an object"),
        (changed(when={"detector": "jsd"}), "when lacks the field 'sign'"),
        (changed(when={**FULL.to_dict()["when"], "threshold": 10**400}), "threshold"),
        (changed(when={**FULL.to_dict()["when"], "detector": []}), "detector must be a name"),
        (changed(strength=-1), "strength"),
        (changed(strength=[]), "strength"),
        (changed(start_after=[1.5]), "start_after"),
        (changed(model={"name": "x"}), "model lacks the field 'fingerprint'"),
        (changed(model={"name": "x", "fingerprint": "short"}), "64 hexadecimal digits"),
        (changed(calibration={**FULL.to_dict()["calibration"], "asked": 2}), "calibration.asked"),
        (changed(calibration={**FULL.to_dict()["calibration"], "positives": -1}), "positives"),
    ],
)
def test_every_field_is_checked(data, message):
    with pytest.raises(PolicyError, match=message):
        Policy.from_dict(data)


GOOD = json.dumps(FULL.to_dict()).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (GOOD + b"}", "is not JSON"),
        (GOOD.decode().encode("utf-16"), "is not UTF-8"),
        (GOOD.replace(b'"strength": "memory-confidence"', b'"strength": NaN'), "NaN is no number"),
        (GOOD.replace(b'"strength": "memory-confidence"', b'"strength": Infinity'), "Infinity"),
        (GOOD.replace(b'"strength": "memory-confidence"', b'"strength": 1e999'), "strength"),
        (
            GOOD.replace(b'"strength": "memory-confidence"', b'"strength": ' + b"9" * 5000),
            "cannot be read as JSON",
        ),
        (GOOD.replace(b'"version": 1,', b'"version": 1, "version": 1,'), "given twice"),
        (b"[" * 900, "is not JSON"),
        (b"[" * 50000, "holds more than"),
        (b" " * (2**21 + 1), "is larger than"),
        (b"\x80\x04K\x01.", "is not UTF-8"),  # a pickle
    ],
)
def test_files_that_are_no_policies_are_named(data, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(PolicyError, match=message) as caught:
        Policy.load(path)
    assert "bad.json" in str(caught.value)


def test_a_byte_order_mark_is_forgiven(tmp_path):
    path = tmp_path / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert Policy.load(path) == FULL


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    caught = []

    def load(path):
        try:
            Policy.load(path)
        except PolicyError as error:
            caught.append(str(error))

    for path in (pipe, tmp_path, tmp_path / "absent", "nul\0byte", "/dev/zero"):
        thread = threading.Thread(target=load, args=(path,), daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
    assert len(caught) == 5
    assert "not a regular file" in caught[0]
    assert "not a regular file" in caught[4]


def test_a_saved_policy_is_a_file_like_any_other(tmp_path):
    old, new, link = tmp_path / "old.json", tmp_path / "new.json", tmp_path / "link.json"
    old.write_text("{}")
    old.chmod(0o640)
    link.symlink_to(old)
    Policy.of("cad").save(link)
    assert link.is_symlink()
    assert Policy.load(old) == Policy.of("cad")
    assert old.stat().st_mode & 0o777 == 0o640
    umask = os.umask(0o027)
    try:
        Policy.of("cad").save(new)
    finally:
        os.umask(umask)
    assert new.stat().st_mode & 0o777 == 0o640


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "policy.json"
    FULL.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PolicyError, match="No space left"):
        Policy.of("cad").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]
    with pytest.raises(PolicyError, match="cannot write"):
        Policy.of("cad").save(tmp_path / "no" / "folder.json")


def test_what_would_not_be_read_again_is_not_written(tmp_path):
    wide, usual = "A" * 10928, "A" * 683  # 2,049 and 128 zeros
    heads = "+".join(f"{number}.0:{wide}" for number in range(200))
    policy = Policy.of(methods.build("focus", directions=heads))
    with pytest.raises(PolicyError, match="this policy is too large: at most 2,097,152 bytes"):
        policy.save(tmp_path / "large.json")
    assert not (tmp_path / "large.json").exists()
    # A thousand heads fit.
    heads = "+".join(f"{number}.0:{usual}" for number in range(1000))
    policy = Policy.of(methods.build("focus", directions=heads))
    policy.save(tmp_path / "fits.json")
    assert Policy.load(tmp_path / "fits.json") == policy


def test_no_more_is_read_than_a_policy_may_hold(tmp_path):
    path = tmp_path / "sparse.json"
    with open(path, "wb") as file:
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError, match="is larger than"):
            Policy.load(path)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


TOKENS = [
    b"null", b"true", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'""', b'"jsd"', b'"__class__"', b"[[",
    b"}", b",", b":", b"\\", b"\\ud800", b"\xff", b"\x00", b'"cad"', b"9" * 4400, b"[" * 2000,
]  # fmt: skip


def mutated(draw):
    """A policy's bytes, damaged in one to four places."""
    data = bytearray(json.dumps(draw.choice(POLICIES).to_dict()).encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) + 1)
        pick = draw.random()
        if pick < 0.25 and place < len(data):
            data[place] = draw.randrange(256)
        elif pick < 0.4:
            del data[place : place + draw.randint(1, 20)]
        elif pick < 0.5:
            data[place:place] = data[: draw.randint(1, 200)]
        elif pick < 0.55:
            data *= draw.randint(2, 400)
        else:
            values = [i for i, byte in enumerate(data[:1000]) if byte in b":,"]
            if pick < 0.8 and values:
                start = draw.choice(values) + 1
                end = next((i for i in values if i > start), len(data))
                data[start:end] = draw.choice(TOKENS)
            else:
                data[place:place] = draw.choice(TOKENS)
    return bytes(data)


POLICIES = list(every_policy())


@pytest.mark.slow
def test_five_thousand_damaged_files_raise_nothing_but_our_errors(tmp_path):
    draw = random.Random(11)
    path = tmp_path / "damaged.json"
    read = refused = 0
    worst = 0.0
    Policy.load(_written(path, GOOD))  # imports and caches are not what is measured
    for number in range(5000):
        data = mutated(draw)
        _written(path, data)
        measured = number % 20 == 0 or len(data) > 10_000
        if measured:
            tracemalloc.start()
        try:
            again = Policy.load(path)
        except ConflictKitError:
            refused += 1
        else:
            read += 1
            assert Policy.from_dict(again.to_dict()) == again
        finally:
            if measured:
                # Objects and messages of a fixed size beside what grows with the file.
                peak = tracemalloc.get_traced_memory()[1] - 200_000
                worst = max(worst, peak / max(len(data), 1))
                tracemalloc.stop()
    assert refused > 4000
    assert read > 5
    assert worst < 4


def _written(path, data):
    # Opening for writing anew waits for the disk on some file systems.
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()
    return path


def test_a_policy_is_for_its_model():
    FULL.check("any", "0123456789abcdef" * 4)
    Policy.of("cad").check("any", "0" * 64)
    with pytest.raises(PolicyError, match="made for the model 'owner/name', not for 'other'"):
        FULL.check("other", "0" * 64)


def test_there_is_one_way_to_say_a_thing(tmp_path):
    path = tmp_path / "p.json"
    FULL.save(path)
    assert choose(policy=path) == choose(policy=FULL) == FULL
    assert choose() == Policy.of("adacad")
    assert choose("cad", parts={"when": "jsd>0.1", "strength": None}) == Policy.of(
        "cad", when="jsd>0.1"
    )
    control = FULL.controller
    cases: list[dict] = [
        {"method": "cad", "policy": FULL},
        {"policy": FULL, "params": {"alpha": 1.0}},
        {"policy": FULL, "parts": {"when": "jsd>0.1"}},
        {"policy": 3},
        {"method": control, "parts": {"strength": 0.5}},
        {"method": control.rule, "params": {"alpha": 0.5}},
        {"method": 3},
    ]
    for arguments in cases:
        with pytest.raises(InvalidParameterError):
            choose(**arguments)

"""The benchmarks run and say all that they should; how fast anything is no test can hold."""

import json
import math

import numpy as np
import pytest
from conftest import GOLDEN, ROOT

from benchmarks import __main__ as benchmarks
from benchmarks import boson, cached, collate, decode, prepare
from benchmarks.measure import Comparison, alternate, compare, ratio

PACKAGES = {"torch", "numpy", "soundfile", "soxr", "librosa", "transformers"}
HEADER = {"cpu", "load", "python", "commit", *PACKAGES}


@pytest.mark.slow
def test_prepare_has_all_arms_in_table_and_json(tmp_path, capsys):
    output = tmp_path / "results" / "prepare.json"
    small = ["--clips", "8", "--rows", "9", "--rounds", "2", "--no_codec"]
    assert prepare.main([*small, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(output.read_text(encoding="utf-8"))
    expected = [*prepare.AUDIO, *prepare.CODES]
    for record, claim in zip(report["comparisons"], expected, strict=True):
        assert record.items() >= {"id": claim.id, "ours": claim.ours, "peer": claim.peer}.items()
        assert f"| {claim.id} | {claim.ours} | {claim.peer} |" in printed
        for arm in {claim.ours, claim.peer, claim.limit} - {None}:
            assert len(report["per_s"][arm]) == 2
    assert report.keys() >= HEADER
    assert all(f"{name} {report[name]}" in printed for name in HEADER)
    # How much more than 16 bytes a frame, tells `tests/audio/test_code_cache.py`.
    assert report["cache"]["bytes_per_s"] > 400
    assert "P6 left out" in printed


def test_an_epoch_with_cached_codes_gives_the_same_samples(tiny, tmp_path):
    """`epoch_arms` asserts that itself, before it is timed; here with the tiny codec."""
    utterances = prepare.make_clips(tmp_path / "clips", 2)
    arms = cached.epoch_arms(utterances, tiny / "audio_tokenizer", tmp_path)
    rates = alternate(arms, 1)
    (claim,) = prepare.EPOCH
    assert rates.keys() == {claim.ours, claim.peer}


def test_clips_pass_our_own_rules_and_are_all_different(tmp_path):
    utterances = prepare.make_clips(tmp_path / "clips", 8)
    outcomes = [prepare.Work(level="full")(utterance) for utterance in utterances]
    assert [outcome.fault for outcome in outcomes] == [None] * 8
    assert len({outcome.files[0].content for outcome in outcomes}) == 8
    durations_s = list(map(prepare.utterance_duration_s, utterances))
    assert 2 <= min(durations_s) <= max(durations_s) <= 8


def test_arms_alternate():
    done = []

    def arm(name: str):
        return lambda i: done.append((i, name)) or 1

    rates = alternate({"a": arm("a"), "b": arm("b")}, 3)
    assert done == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert rates.keys() == {"a", "b"}
    assert set(map(len, rates.values())) == {3}


def test_ratio_is_of_rounds_and_its_interval_holds_the_truth():
    """Both arms slow down together in some rounds, as on a busy machine: the ratio of each round is
    untouched."""
    generator = np.random.default_rng(1)
    busy = generator.uniform(0.2, 1, 50)
    noise = generator.normal(1, 0.1, 50)
    measured = ratio(list(3 * busy * noise), list(busy))
    assert measured.low < 3 < measured.high
    assert measured.high - measured.low < 0.3
    assert ratio([2.0, 2.0], [1.0, 1.0]) == ratio([4.0, 4.0], [2.0, 2.0])


@pytest.mark.parametrize(
    ("target", "limit", "verdict"),
    [(2, None, "met"), (5, None, "missed"), (5, "bare", "beyond limit")],
)
def test_verdict(target, limit, verdict):
    rates = {"ours": [2.0, 2.0], "peer": [1.0, 1.0], "bare": [4.0, 4.0]}
    (record,) = compare([Comparison("X", "ours", "peer", target, limit)], rates)
    assert record["verdict"] == verdict
    assert math.isclose(record["value"], 2)


def test_one_command_has_every_comparison_of_its_ids(tmp_path, capsys):
    output = tmp_path / "all.json"
    assert benchmarks.main(["--ids", "P5", "--rounds", "1", "--output", str(output)]) == 0
    report, printed = json.loads(output.read_text(encoding="utf-8")), capsys.readouterr().out
    assert report.keys() >= HEADER
    assert [each["id"] for each in report["comparisons"]] == ["P5"] * len(collate.PADDING)
    for claim in collate.PADDING:
        assert f"| {claim.id} | {claim.ours} | {claim.peer} |" in printed


def test_every_comparison_is_one_of_an_id_of_the_command():
    known = [*prepare.AUDIO, *prepare.CODES, *prepare.EPOCH, *collate.COLLATE, *collate.PADDING]
    parts = benchmarks.PARTS
    assert {claim.id for claim in known} == {*parts["prepare"], *parts["collate"]}


@pytest.mark.slow
def test_decode_has_all_arms(tmp_path):
    """That all arms say the same codes is asserted before they are timed."""
    report = decode.run(tmp_path, num_rounds=1, models=["tiny"])
    assert [each["id"] for each in report["comparisons"]] == ["P9", "P9", "P9-b"]
    assert len(set(report["frames"]["tiny"])) == 4, "rows leave the batch one by one"


def test_hardly_a_position_is_wasted():
    """P5, which no machine is too busy for: MS-SWIFT's own samplers and packs over our lengths."""
    shares = collate.useful_shares(2, num_rows=4000)
    for corpus in collate.CORPORA:
        assert min(shares[f"{corpus}, no padding"]) == 1
        assert min(shares[f"{corpus}, packed"]) >= 0.95
        assert min(shares[f"{corpus}, grouped by length"]) >= 0.95
        assert min(shares[f"{corpus}, random"]) < 0.8


def test_lengths_are_those_of_a_plain_prompt(llama_tokenizer):
    plain = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))["plain"]
    contents = {message["role"]: message["content"] for message in plain["row"]["messages"]}
    num_text = len(llama_tokenizer(contents["user"], add_special_tokens=False)["input_ids"])
    # And one placeholder for the clip.
    assert len(plain["input_tokens"]) == collate._PROMPT + num_text + 1


def test_drawn_durations_have_the_published_mean():
    for corpus, mean_s in (("LJSpeech", 6.57), ("VCTK", 3.6)):
        durations_s = collate.durations_like(corpus, 50_000, seed=0)
        assert durations_s.mean() == pytest.approx(mean_s, rel=0.01)


BOSON = ROOT / "benchmarks" / "venvs" / "boson"


@pytest.mark.skipif(
    not (BOSON / "installed").is_file(),
    reason="`python -m benchmarks --ids P1` has made no venv yet",
)
def test_collators_agree(tmp_path):
    """`collate_arms` asserts that itself, before it is timed."""
    with boson.peer(boson.python_of(BOSON), collate.BOSON) as peer:
        arms = collate.collate_arms(peer, tmp_path)
    for claim in collate.COLLATE:
        assert claim.ours in arms

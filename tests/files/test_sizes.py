"""Entries of a config that no model needs are refused before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugins.errors import UserError
from plugins.files.disk import read_json
from plugins.files.sizes import check_pattern, check_sizes

FILE = Path("config.json")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 10**8}, "num_hidden_layers: 100000000 is more than 1000; download"),
        ({"text_config": {"num_hidden_layers": 1001}}, r"text_config\.num_hidden_layers: 1001 is"),
        ({"parts": [{"encoder_layers": 1e9}]}, r"parts\.0\.encoder_layers: 1000000000\.0 is more"),
        ({"num_labels": 10**8}, "num_labels: 100000000 is more than 1000"),
        ({"target_bandwidths": [0.5, 1e300]}, "target_bandwidths: .* is more than 1000000000000"),
        ({"a": [float("nan")]}, "a: nan is no finite number"),
        ({"a": float("-inf")}, "a: -inf is no finite number"),
        ({"hidden_size": 10**400}, "hidden_size: 'a number of more than 100 digits' is more than"),
        ({"a": -(10**13)}, "a: -10000000000000 is more than"),
        ({"downsampling_ratios": [1] * 1001}, "downsampling_ratios: 1001 is more than 1000"),
        ({"a": [0] * 10_001}, r"a: '\.\.\.' has 10001 entries, more than 10000"),
        ({"a": dict.fromkeys(map(str, range(10_001)))}, r"a: '\.\.\.' has 10001 entries"),
    ],
)
def test_what_no_model_has(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^config\.json: {said}") as raised:
        check_sizes(FILE, fields)
    assert "\n" not in str(raised.value)


def test_what_models_have() -> None:
    fields = {"num_hidden_layers": 126, "rope_theta": 5e5, "ids": [128_009] * 9000, "name": "1e300"}
    check_sizes(FILE, {**fields, "is_it": True, "none": None, "text": {"encoder_layers": 32}})


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*$",
        "(a|aa)+$",
        "(?:a*)*b",
        "((a{1,9}){1,9}){1,9}",
        "(.*){20}x",
        ".*.*.*.*.*.*x",
        "a?a?a?a?a?a?aaaaaa",
        "(?=(a+)+$)b",
        r"([a-z]+\.)*q_proj",
        "(",
        "(" * 5000 + ")" * 5000,
        "a{99999999999999999999}",
    ],
)
def test_patterns_that_could_take_for_ever(pattern: str) -> None:
    with pytest.raises(
        UserError, match=r"^config\.json: target_modules: .*(too long|no pattern|4000 characters)"
    ):
        check_pattern(FILE, "target_modules", pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        None,
        ["q_proj"],
        "all-linear",
        "q_proj",
        r"^(model(?=\.).*\.(q_proj|k_proj|v_proj)|audio_lm_head(?=\.).*\.(a|b))$",  # MS-SWIFT's
        r".*layers\.\d+\.(self_attn|mlp|audio_mlp)\.\w+_proj",
        r"(?!(aligner))model(?=\.).*\.x",
    ],
)
def test_patterns_that_are_taken(pattern: object) -> None:
    check_pattern(FILE, "target_modules", pattern)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a":' + "[" * 900 + "]" * 900 + "}", "is nested more than 50 deep"),
        ('{"a":' * 60 + "1" + "}" * 60, "is nested more than 50 deep"),
        ("[" * 200_000, "is no JSON"),
        ("[" * 900 + "]" * 900, "is no JSON object"),
        ('{"a": ' + "9" * 6000 + "}", "is no JSON"),
    ],
)
def test_json_that_is_too_deep_or_too_long(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=rf"a\.json: .* {said}"):
        read_json(tmp_path / "a.json", "mend it")


def test_a_file_that_is_no_config_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(3 << 30)  # sparse: takes no room
    with pytest.raises(UserError, match=r"a\.json: file: 'a\.json' has 3072 MiB, which no such"):
        read_json(tmp_path / "a.json", "mend it")


def test_a_long_pattern_makes_a_short_error() -> None:
    for length, said in ((700, "list the names of the modules"), (1000, "has more than 4000 char")):
        with pytest.raises(UserError, match=said) as raised:
            check_pattern(FILE, "target_modules", "(a+)+" * length)
        assert len(str(raised.value)) < 400

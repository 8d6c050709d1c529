"""Our entry: the seed document's flags in MS-SWIFT's names, our settings as flags, one line for
each mistake."""

import os

import pytest

from plugins.errors import UserError
from plugins.train import REGISTER_FILE, main, take_settings, translate, with_plugin


def test_flags_of_the_seed_document() -> None:
    seed = ["--sft_type", "lora", "--model_id_or_path", "m", "--trainer_type", "higgs_audio", "--data_collator",
            "higgs_audio", "--lora_target_modules", "q_proj", "--lora_rank", "32"]  # fmt: skip
    assert translate(seed) == ["--tuner_type", "lora", "--model", "m", "--target_modules", "q_proj",
                               "--lora_rank", "32"]  # fmt: skip


def test_another_trainer_is_refused() -> None:
    with pytest.raises(
        UserError,
        match="--trainer_type: 'mine' is not available; use 'higgs_audio' or leave it out",
    ):
        translate(["--trainer_type", "mine"])


def test_a_list_of_values_stays_together() -> None:
    """From YAML a list arrives as several words; the second must not become a value of another
    flag."""
    words = ["--dataset", "a.jsonl", "--audio_codebook_weights", *"21111111", "--lora_rank", "8"]
    assert take_settings(words) == ["--dataset", "a.jsonl", "--lora_rank", "8"]
    assert os.environ["AUDIO_CODEBOOK_WEIGHTS"] == "2,1,1,1,1,1,1,1"


def test_our_plugin_joins_those_of_the_user() -> None:
    assert with_plugin(["--lora_rank", "8"]) == [
        "--lora_rank",
        "8",
        "--external_plugins",
        REGISTER_FILE,
    ]
    assert with_plugin(["--external_plugins", "a.py"]) == [
        "--external_plugins",
        REGISTER_FILE,
        "a.py",
    ]
    assert with_plugin(["--external_plugins", REGISTER_FILE]) == [
        "--external_plugins",
        REGISTER_FILE,
    ]


def test_settings_do_not_outlive_a_run() -> None:
    with pytest.raises(UserError, match="'--nonsense' is unknown"):
        main(["--audio_learning_rate", "1e-4", "--nonsense", "1"])
    assert "AUDIO_LEARNING_RATE" not in os.environ


def test_settings_go_into_the_environment() -> None:
    rest = take_settings(
        ["--audio_learning_rate", "1e-4", "--lora_rank", "8", "--raw_prompt", "true"]
    )
    assert rest == ["--lora_rank", "8"]
    assert (os.environ["AUDIO_LEARNING_RATE"], os.environ["RAW_PROMPT"]) == ("1e-4", "true")


def test_a_setting_of_the_wrong_kind_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="audio_learning_rate: 'fast' has the wrong kind"):
        take_settings(["--audio_learning_rate", "fast"])


def test_a_setting_without_value_is_refused() -> None:
    with pytest.raises(UserError, match="--codec: None has no value"):
        take_settings(["--lora_rank", "8", "--codec"])


def test_an_unknown_flag_is_named_with_the_nearest_one(tmp_path: object) -> None:
    flags = ["--model", str(tmp_path), "--dataset", "x.jsonl", "--audio_learing_rate", "1e-4"]
    with pytest.raises(
        UserError, match="'--audio_learing_rate' is unknown; did you mean 'audio_learning_rate'"
    ):
        main(flags)

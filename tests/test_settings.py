"""Our knobs: typed values from the environment, one line for each mistake."""

import pytest

from plugins.errors import UserError
from plugins.model.loss import LossWeights
from plugins.settings import KNOBS, HiggsAudioSettings, check_knob_names


def test_defaults_are_those_of_the_seed_document() -> None:
    settings = HiggsAudioSettings.from_env({})
    assert settings == HiggsAudioSettings()
    assert settings.text_loss_weight == 1.0
    assert settings.audio_loss_weight == 1.0
    assert settings.auxiliary_loss_weight == 0.001
    assert settings.max_audio_length == 1024


def test_values_are_typed() -> None:
    env = {
        "AUDIO_LEARNING_RATE": "1e-4",
        "RAW_PROMPT": "true",
        "AUDIO_CODEBOOK_WEIGHTS": "(2.0, 1, 1, 1, 1, 1, 1, 1)",
        "AUDIO_CODEBOOK_REDUCTION": "sum",
        "CODEC": "",
    }
    settings = HiggsAudioSettings.from_env(env)
    assert settings.audio_learning_rate == 1e-4
    assert settings.raw_prompt is True
    assert settings.codec is None
    # What the trainer makes of them.
    weights = LossWeights.of(settings, 8)
    assert weights.codebooks == (2.0, *[1.0] * 7)
    assert weights.sum_codebooks


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets.map(num_proc=2)` replaces the object os.environ: a reference taken at import would
    go stale."""
    monkeypatch.setattr("os.environ", {"RAW_PROMPT": "1"})
    assert HiggsAudioSettings.from_env().raw_prompt is True


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AUDIO_LEARNING_RATE", "fast", "has the wrong kind"),
        ("TEXT_LOSS_WEIGHT", "-1", "is negative"),
        ("AUDIO_CODEBOOK_REDUCTION", "median", "has the wrong kind"),
        ("RAW_PROMPT", "maybe", "has the wrong kind"),
        ("MAX_AUDIO_LENGTH", "0", "is below 1"),
        ("AUDIO_CODEBOOK_WEIGHTS", "0,0", "has a negative weight or only zeros"),
    ],
)
def test_wrong_values_are_one_line(name: str, value: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"settings: {name.lower()}: .*{reason}; give"):
        HiggsAudioSettings.from_env({name: value})


def test_one_weight_per_codebook() -> None:
    with pytest.raises(UserError, match="has 2 weights for 8 codebooks; give 8 or leave it empty"):
        LossWeights.of(HiggsAudioSettings(audio_codebook_weights=(1.0, 1.0)), 8)


def test_unknown_knob_is_refused_with_the_nearest_name() -> None:
    """In `--model_kwargs` a mistyped name would become an environment variable that nobody
    reads."""
    # Every real one passes.
    check_knob_names(KNOBS, "options")
    nearest = r"'audio_learing_rate' is not a setting .* did you mean 'audio_learning_rate'"
    with pytest.raises(UserError, match=nearest):
        check_knob_names(["audio_learing_rate"], "options")

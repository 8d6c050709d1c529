"""`benchmarks/step.py` on small shapes: it asserts by itself that what it compares is equal."""

import json

import pytest

from benchmarks import step
from plugins.model.config import HiggsAudioV2Config

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def small_config() -> HiggsAudioV2Config:
    return HiggsAudioV2Config(
        **SMALL,
        vocab_size=1010,
        codebook_size=34,
        audio_stream_bos_id=32,
        audio_stream_eos_id=33,
        pad_token_id=1,
        audio_token_id=1004,
        audio_delay_token_id=1002,
        attn_implementation="sdpa",
    )


@pytest.mark.slow
def test_table_and_json_have_all_arms(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("large_head_config", "proportional_config", "layer_config"):
        monkeypatch.setattr(step, name, small_config)
    (memory,) = step.MEMORY
    # Small shapes are nothing beside what a process takes: their memory cannot be measured.
    rates = {memory.ours: [4.0], memory.peer: [1.0], memory.limit: [5.0]}
    monkeypatch.setattr(step, "memory_rates", lambda num_rounds: rates)
    output = tmp_path / "step.json"
    assert step.main(["--rounds", "2", "--output", str(output)]) == 0
    report, printed = json.loads(output.read_text(encoding="utf-8")), capsys.readouterr().out
    expected = [*step.STEP, *step.MEMORY, *step.LAYER]
    ids = [record["id"] for record in report["comparisons"]]
    assert ids == ["P2a", "P2b", "P3", "P4", "P4", "P4"]
    for claim in expected:
        assert f"| {claim.id} | {claim.ours} | {claim.peer} |" in printed
        assert {claim.ours, claim.peer, claim.limit or claim.ours} <= report["per_s"].keys()
    for claim in (*step.STEP, *step.LAYER):
        assert len(report["per_s"][claim.ours]) == 2


def test_the_proportion_is_that_of_the_3b_model() -> None:
    """Multiplications of a text position: heads against body."""

    def proportion(config: HiggsAudioV2Config) -> float:
        hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
        attention = 2 * hidden * (query + config.num_key_value_heads * config.head_dim)
        body = config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)
        return hidden * (config.vocab_size + config.num_codebooks * config.codebook_size) / body

    published = proportion(HiggsAudioV2Config(codebook_size=1026))
    assert proportion(step.proportional_config()) == pytest.approx(published, rel=0.01)


def test_a_step_that_differs_is_not_timed() -> None:
    config = small_config()
    batch, model = step.make_batch(config, 1), step.build(config, is_ours=True)
    expected = {name: value.clone() for name, value in step.step(model, batch).items()}
    step.check_equal(expected, step.step(model, batch))
    model.model.layers[0].audio_mlp.up_proj.weight.data *= 1.5
    with pytest.raises(AssertionError, match="not close"):
        step.check_equal(expected, step.step(model, batch))

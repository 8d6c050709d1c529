"""A checkpoint with an audio tower, from prompt to loss, against the original
(tests/golden/audio_tower/README.md)."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, corpus_rows, write_jsonl
from helpers.models import TOWER, TOWER_CASES, tower_waveform, without_labels
from helpers.originals import toy_tokenizer
from helpers.prompts import HELLO, clip
from helpers.published import PublishedConfig
from helpers.sft import sft
from safetensors.torch import load_file, save_file
from torch import Tensor

from plugins.audio.log_mel import num_positions
from plugins.collator import collate
from plugins.data.dialogue import AudioClip, Dialogue, EncodedSample, Reference
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.errors import UserError
from plugins.model import packed_attention
from plugins.model.convert import convert
from plugins.model.load import load_config, native_model
from plugins.model.loss import LossWeights, combine
from plugins.model.original_format import load_tokenizer

REFERENCE_BOS, HEARD, AUDIO, DELAY, AUDIO_EOS = 299, 303, 304, 302, 300


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Original checkpoints with a tower: references heard through it alone, or through their codes
    too."""
    folders = {}
    for with_codes in (False, True):
        folder = folders[with_codes] = tmp_path_factory.mktemp("tower") / "model"
        folder.mkdir()
        config = json.loads((TOWER / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(config | {"encode_audio_in_tokens": with_codes})
        (folder / "config.json").write_text(text, encoding="utf-8")
        weights = load_file(GOLDEN / "tiny_original.safetensors")
        weights |= load_file(TOWER / "tower.safetensors")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        toy_tokenizer().save_pretrained(folder)
    return folders


def samples_of(case: dict[str, Any]) -> list[EncodedSample]:
    """The golden samples, each placeholder expanded as `plugins.data.prompt` does it."""
    samples = []
    for golden in case["samples"]:
        references = []
        for reference in golden["references"]:
            waveform = tower_waveform(reference["num_samples"], reference["seed"])
            references.append(torch.from_numpy(waveform))
        codes = list(map(torch.tensor, golden["codes"]))
        sample = EncodedSample([], [], heard=references)
        waiting = zip(references, codes, strict=False)

        def write(
            ids: list[int], labels: list[int] | None = None, sample: EncodedSample = sample
        ) -> None:
            sample.input_ids.extend(ids)
            sample.labels.extend(labels or [-100] * len(ids))

        def write_codes(clip: Tensor, sample: EncodedSample = sample, *, trained: bool) -> None:
            write([AUDIO] * (clip.shape[1] + 2) + [DELAY] * 7)
            sample.clips.append(clip)
            sample.clips_trained.append(trained)

        for token, label in zip(golden["input_ids"], golden["label_ids"], strict=True):
            if token == HEARD:
                heard, clip = next(waiting)
                # The original repeats the three tokens per chunk of 30 s.
                for i, positions in enumerate(num_positions(len(heard))):
                    write([AUDIO_EOS, REFERENCE_BOS] if i else [])
                    write([HEARD] * positions)
                    if case["encode_audio_in_tokens"]:
                        write_codes(clip, trained=False)
            elif token == AUDIO:
                write_codes(codes[-1], trained=True)
            else:
                write([token], [label])
        samples.append(sample)
    return samples


# Against the original.


@pytest.mark.parametrize("name", TOWER_CASES)
def test_logits_losses_and_gradients_equal_the_original(
    name: str, towers: dict[bool, Path]
) -> None:
    case, golden = TOWER_CASES[name], np.load(TOWER / f"{name}.npz")
    folder = towers[case["encode_audio_in_tokens"]]
    model = native_model(str(folder), attn_implementation="eager").train()
    tokens = SpecialTokens.from_config(load_config(folder), toy_tokenizer())
    batch = collate(samples_of(case), tokens, training=True)

    # Logits are compared where the original keeps them: it drops the positions of the tower.
    hidden = model.hidden_states(**without_labels(batch))
    is_read = batch["attention_mask"].bool() & (batch["input_ids"] != HEARD)
    text = model.text_lm_head(hidden[is_read]).detach()
    np.testing.assert_allclose(text, golden["text_logits"], atol=1e-5, rtol=0)
    trained = model.labels_at_placeholders(
        batch["input_ids"], _target_frames(batch, samples_of(case)), batch["audio_input_ids_mask"]
    )[..., 0].eq(1)
    audio = model.audio_lm_head(hidden[trained]).view(-1, 8, 1026)[..., ::19].detach()
    np.testing.assert_allclose(audio, golden["audio_logits"], atol=1e-5, rtol=0)

    outputs = model(**batch)
    np.testing.assert_allclose(
        float(outputs.text_loss.detach() / outputs.text_count), golden["text_loss"], atol=1e-5
    )
    np.testing.assert_allclose(
        (outputs.audio_loss / outputs.audio_count).detach(), golden["codebook_losses"], atol=1e-5
    )
    weights = LossWeights(1.0, 1.0, 0.0, (1.0,) * 8, sum_codebooks=True)
    counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
    combine(outputs.text, outputs.audio, weights=weights, **counts).backward()
    for key, norm in case["grad_norms"].items():
        native = key.replace("audio_encoder_proj.", "audio_tower.audio_encoder_proj.")
        parameter = model.get_parameter(native)
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=1e-4), key


@pytest.mark.parametrize("name", TOWER_CASES)
def test_a_pack_has_the_losses_of_the_original(name: str, towers: dict[bool, Path]) -> None:
    case, golden = TOWER_CASES[name], np.load(TOWER / f"{name}.npz")
    folder = towers[case["encode_audio_in_tokens"]]
    packed_attention.register()
    model = native_model(str(folder), attn_implementation=packed_attention.NAME)
    tokens = SpecialTokens.from_config(load_config(folder), toy_tokenizer())
    pack = collate(samples_of(case), tokens, training=True, packed=True)
    with torch.no_grad():
        outputs = model(**pack)
    text = float(outputs.text_loss / outputs.text_count)
    assert text == pytest.approx(float(golden["text_loss"]), abs=1e-5)
    audio = outputs.audio_loss / outputs.audio_count
    np.testing.assert_allclose(audio, golden["codebook_losses"], atol=1e-5)


def _target_frames(batch: dict[str, Tensor], samples: list[EncodedSample]) -> Tensor:
    """(B, T, K): 1 for the delayed frames of targets, 0 for those of references."""
    marks = torch.zeros_like(batch["audio_input_ids"])
    for row, sample in enumerate(samples):
        end = sum(codes.shape[1] + 9 for codes in sample.clips)
        marks[row, end - sample.clips[-1].shape[1] - 9 : end] = 1
    return marks


# Prompts.


def test_without_a_tower_no_features_are_computed(tiny: Path, llama_tokenizer: Any) -> None:
    tokens = SpecialTokens.from_config(PublishedConfig(), llama_tokenizer)
    sample = encode(Dialogue(HELLO, (Reference(clip(1)),)), llama_tokenizer, tokens)
    assert "audio_features" not in collate([sample], tokens, training=True)
    assert not hasattr(native_model(str(tiny)), "audio_tower")


@pytest.fixture(scope="session")
def with_codes(llama_tokenizer: Any) -> dict[bool, SpecialTokens]:
    class WithTower(PublishedConfig):
        audio_encoder_config: dict[str, Any] = {"num_mel_bins": 128}  # noqa: RUF012
        audio_in_token_id = 128015
        encode_audio_in_tokens = False

    class WithBoth(WithTower):
        encode_audio_in_tokens = True

    return {
        False: SpecialTokens.from_config(WithTower(), llama_tokenizer),
        True: SpecialTokens.from_config(WithBoth(), llama_tokenizer),
    }


@pytest.mark.parametrize("both", [False, True])
def test_prompt_of_a_heard_reference(
    both: bool, with_codes: dict[bool, SpecialTokens], llama_tokenizer: Any
) -> None:
    """The ids of the original's expansion; a reference with transcript is codes, tower or not."""
    heard = AudioClip("voice.wav", torch.zeros(8, 3, dtype=torch.long), torch.zeros(4000))
    references = (Reference(heard), Reference(clip(1), "Ho."))
    sample = encode(Dialogue(HELLO, references), llama_tokenizer, with_codes[both])
    start = sample.input_ids.index(128011)
    codes = [128016] * 5 + [128014] * 7 if both else []
    expected = [128011, *[128015] * num_positions(4000)[0], *codes, 128012]
    assert sample.input_ids[start : start + len(expected)] == expected
    assert set(sample.labels[: start + len(expected)]) == {-100}
    assert [len(waveform) for waveform in sample.heard] == [4000]
    assert [codes.shape[1] for codes in sample.clips] == ([3, 1, 3] if both else [1, 3])


def test_references_of_more_than_30_s(
    with_codes: dict[bool, SpecialTokens], llama_tokenizer: Any
) -> None:
    voice = AudioClip("v.wav", torch.zeros(8, 800, dtype=torch.long), torch.zeros(512_000))
    long = Dialogue(HELLO, (Reference(voice),))
    ids = encode(long, llama_tokenizer, with_codes[False]).input_ids
    assert ids.count(128011) == 2
    assert ids.count(128015) == sum(num_positions(512_000)) == 800
    with pytest.raises(
        UserError, match=r"reference_audio: 'v.wav' is longer than the 30 s .*; cut it, or add"
    ):
        encode(long, llama_tokenizer, with_codes[True])


# Folders, training, speaking.


def test_conversion_keeps_the_tower(towers: dict[bool, Path], tmp_path: Path) -> None:
    convert(towers[True], tmp_path / "native", to="native", show_progress=False)
    convert(tmp_path / "native", tmp_path / "back", to="original", show_progress=False)
    before = load_file(towers[True] / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    native = native_model(str(tmp_path / "native"))
    key = "audio_encoder_proj.linear.weight"
    assert torch.equal(native.audio_tower.audio_encoder_proj.linear.weight, before[key])
    original = json.loads((towers[True] / "config.json").read_text())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    for name in ("skip_audio_tower", "encode_whisper_embed", "encode_audio_in_tokens"):
        assert config[name] == original[name], name


@pytest.fixture(scope="session")
def tiny_tower(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny native checkpoint with a tower of random weights."""
    from plugins.model.config import HiggsAudioV2Config
    from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny_tower") / "model"
    shutil.copytree(tiny, folder)
    config = HiggsAudioV2Config.from_pretrained(tiny)
    golden = json.loads((TOWER / "config.json").read_text())
    config.audio_encoder_config = golden["audio_encoder_config"]
    config.audio_in_token_id = load_tokenizer(tiny).convert_tokens_to_ids("<|AUDIO|>")
    torch.manual_seed(0)
    HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"freeze_aligner": "false"},
        {"freeze_vit": "false"},
        {"tuner_type": "lora", "target_modules": "all-linear"},
        pytest.param(
            {"packing": "true", "max_length": "2048", "per_device_train_batch_size": "1"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_it_trains_in_swift_and_speaks(
    tiny_tower: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    """A reference without transcript, one with, and a row without any, in one batch."""
    from plugins.inference import HiggsAudioGenerator
    from plugins.speaking.sampling import Sampling

    rows = corpus_rows(3)
    voice = corpus_rows(4)[3]["audios"][0]
    rows[0]["reference_audio"] = voice
    rows[1] |= {"reference_audio": voice, "reference_text": "Any."}
    log = sft(tiny_tower, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run", **options)
    assert log[0]["loss"] > 0
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    generator = HiggsAudioGenerator.from_pretrained(str(checkpoint))
    trained = load_file(next(checkpoint.glob("*model.safetensors")))
    if "tuner_type" in options:
        # The encoder is frozen, as MS-SWIFT has it.
        assert "audio_tower.layers" not in "".join(trained)
    else:
        before = load_file(tiny_tower / "model.safetensors")
        encoder = "audio_tower.conv1.weight"
        projector = "audio_tower.audio_encoder_proj.linear.weight"
        is_frozen = torch.equal(trained[encoder], before[encoder])
        assert is_frozen == ("freeze_vit" not in options)
        is_frozen = torch.equal(trained[projector], before[projector])
        assert is_frozen == ("freeze_aligner" not in options)
    speak = partial(generator.generate, "Hello.", sampling=Sampling(temperature=0), max_audio_s=0.4)
    with_voice, without = speak(reference_audio=voice), speak(reference_audio=None)
    assert not torch.equal(with_voice.codes, without.codes)

"""Lengths without decoding, and rows that share a sequence: equal losses and gradients, and
MS-SWIFT's own packs."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import corpus_rows, write_jsonl
from helpers import flash_attention
from helpers.sft import sft

from plugins.audio import waveforms as audio
from plugins.collator import collate
from plugins.data.clips import num_frames
from plugins.data.dialogue import AudioClip, EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.errors import UserError

HOP = 960
AUDIO, DELAY = 304, 302
TOKENS = SpecialTokens(
    begin_of_text=2, header_start=3, header_end=7, end_of_turn=298, end_of_message=-1,
    scene_start=-1, scene_end=-1, audio_bos=301, reference_bos=299, audio_eos=300, audio=AUDIO,
    audio_delay=DELAY, pad=1, stream_bos=1024, stream_eos=1025, num_codebooks=8, codebook_size=1026,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()


# Lengths.


@pytest.mark.parametrize("sample_rate_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_frames_from_the_header_are_those_of_the_decoded_clip(
    tmp_path: Path, sample_rate_hz: int
) -> None:
    """The duration times 25, rounded up, was one frame too long where soxr rounds down (96 kHz, a
    sample more than a whole number of frames): a row then had another length than the one that it
    was grouped and packed by."""
    path = tmp_path / "a.wav"
    per_frame = HOP * sample_rate_hz // 24_000
    for k in (1, 7, 28):
        for size in range(k * per_frame - 3, k * per_frame + 5):
            sf.write(path, np.full(size, 0.1, dtype=np.float32), sample_rate_hz)
            decoded = math.ceil(len(audio.load(path)) / HOP)
            assert num_frames(AudioClip(str(path)), "row") == decoded, size


def rows_of_all_kinds() -> list[dict[str, Any]]:
    first, second, third = corpus_rows(3)
    voice = {"reference_audio": third["audios"][0], "reference_text": "What the voice says."}
    question = {"role": "user", "content": "How are you?"}
    text = {"messages": [question, {"role": "assistant", "content": "Well, thanks!"}]}
    without_transcript = {**first, "reference_audio": voice["reference_audio"]}
    return [first, {**second, **voice}, without_transcript, text]


@pytest.fixture(scope="module")
def template(tiny: Path) -> Any:
    from swift.model import get_model_processor
    from swift.template import get_template

    _, processor = get_model_processor(str(tiny), model_type="higgs-audio-v2-3b", load_model=False)
    template = get_template(processor)
    template.set_mode("train")
    return template


def test_lengths_are_exact_and_cost_no_decoding(
    template: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-SWIFT encodes every row in full to learn its length: hours of codec before the first
    step."""
    from swift.dataset import AddLengthPreprocessor, load_dataset

    path = write_jsonl(tmp_path / "train.jsonl", rows_of_all_kinds())
    with monkeypatch.context() as patch:
        patch.setattr(audio.Source, "decode", lambda self: pytest.fail("decoded"))
        template.init_env_args()  # its loader is the one of the last template
        dataset, _ = load_dataset([str(path)])
        measured = AddLengthPreprocessor(template=template)(
            dataset, strict=True, load_from_cache_file=False
        )
    lengths = [[len(template.encode(row)["input_ids"])] for row in dataset]
    assert measured["lengths"] == lengths
    assert len(set(map(tuple, lengths))) == 4


def test_rows_without_lengths_are_measured_by_ms_swift(template: Any) -> None:
    """A dataset that somebody registered with MS-SWIFT has not gone through our loader."""
    from datasets import Dataset
    from swift.dataset import AddLengthPreprocessor

    template.init_env_args()
    (row,) = rows_of_all_kinds()[3:]
    (measured,) = AddLengthPreprocessor(template=template)(Dataset.from_list([row]), strict=True)[
        "lengths"
    ]
    assert measured == [len(template.encode(row)["input_ids"])]


# Packs.


def spoken(num_frames: int, *, reference_frames: int = 0, seed: int = 0) -> EncodedSample:
    """A row of the golden model's vocabulary: text, perhaps a reference that is not trained, then a
    trained clip."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels, clips = [2, 3, 5, 7], [-100] * 4, []
    ids += torch.randint(9, 290, (6,), generator=generator).tolist()
    for frames, trained in ((reference_frames, False), (num_frames, True)):
        if not frames:
            continue
        clips.append(torch.randint(1024, (8, frames), generator=generator))
        ids += [301, *[AUDIO] * (frames + 2), *[DELAY] * 7, 300, 298]
        labels += [-100] * (len(ids) - len(labels))
        if trained:
            labels[-2:], labels[-len(clips[-1][0]) - 12] = [300, 298], 301
    return EncodedSample(ids, labels, clips, [False] * (len(clips) - 1) + [True], f"row {seed}")


def written(seed: int) -> EncodedSample:
    """A row without audio."""
    generator = torch.Generator().manual_seed(seed)
    ids = [2, *torch.randint(9, 290, (9,), generator=generator).tolist(), 298]
    return EncodedSample(ids, [-100] * 5 + ids[5:], source=f"row {seed}")


ROWS = [
    spoken(5, seed=1),
    written(2),
    spoken(7, reference_frames=4, seed=3),
    written(4),
    spoken(3, seed=5),
]


def test_packed_tensors_are_the_rows_one_after_the_other() -> None:
    pack = collate(ROWS, TOKENS, training=True, packed=True)
    alone = [collate([row], TOKENS, training=True) for row in ROWS]
    lengths = [len(row.input_ids) for row in ROWS]
    for name in ("input_ids", "labels", "audio_input_ids", "audio_labels", "audio_input_ids_mask"):
        assert torch.equal(pack[name], torch.cat([batch[name] for batch in alone], dim=1))
    assert "attention_mask" not in pack
    positions: list[int] = []
    for length in lengths:
        positions += range(length)
    assert pack["position_ids"].tolist() == [positions]
    assert pack["cu_seq_lens_q"].tolist() == [0, *itertools.accumulate(lengths)]
    assert pack["max_length_q"] == max(lengths)
    text_only = collate([ROWS[1], ROWS[3]], TOKENS, training=True, packed=True)
    assert text_only["audio_labels"].shape == (1, 0, 8)


def test_boundaries_are_those_that_transformers_finds_itself() -> None:
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    pack = collate(ROWS, TOKENS, training=True, packed=True)
    (starts_q, starts_k), (longest_q, longest_k) = prepare_fa_kwargs_from_position_ids(
        pack["position_ids"]
    )
    assert pack["cu_seq_lens_q"].equal(starts_q)
    assert pack["cu_seq_lens_k"].equal(starts_k)
    assert pack["cu_seq_lens_q"].dtype == starts_q.dtype
    assert (pack["max_length_q"], pack["max_length_k"]) == (int(longest_q), int(longest_k))


def test_a_label_on_the_first_token_is_refused() -> None:
    """Packed, the last position of the row before would learn to predict it."""
    with pytest.raises(AssertionError, match="first token has a label"):
        collate([EncodedSample([2, 9], [2, 9])], TOKENS, training=True)


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    """A small random model, as config and weights: each attention builds its own class around
    them."""
    from plugins.model.config import HiggsAudioV2Config
    from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

    torch.manual_seed(0)
    config = HiggsAudioV2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, codebook_size=1026,
        pad_token_id=1, bos_token_id=2, eos_token_id=298,
        audio_token_id=AUDIO, audio_bos_token_id=301, audio_delay_token_id=DELAY,
    )  # fmt: skip
    return {
        "config": config,
        "state": HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).state_dict(),
    }


# Name in transformers, and what stands in for a GPU.
ATTENTIONS: dict[str, tuple[str, Callable[[], AbstractContextManager[None]]]] = {
    "eager": ("eager", nullcontext),
    "sdpa": ("sdpa", nullcontext),
    "package": ("flash_attention_2", flash_attention.on_cpu),
    "torch, row by row": ("varlen", nullcontext),
    "torch, kernel": ("varlen", flash_attention.torchs_kernel),
}


@pytest.fixture(params=ATTENTIONS)
def model(request: pytest.FixtureRequest, weights: dict[str, Any]) -> Iterator[Any]:
    from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

    name, stand_in = ATTENTIONS[request.param]
    with stand_in():
        config = copy.deepcopy(weights["config"])
        config._attn_implementation = name
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
        assert model.config._attn_implementation == name
        model.load_state_dict(weights["state"])
        yield model.train()


SUMS = ("text_loss", "text_z", "text_count", "audio_loss", "audio_z", "audio_count")


def sums_and_gradients(
    model: Any, batches: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of several batches together, as gradient accumulation adds them up."""
    model.zero_grad()
    totals: dict[str, Any] = {}
    for batch in batches:
        outputs = model(**batch)
        (outputs.text_loss + outputs.audio_loss.sum() + outputs.text_z + outputs.audio_z).backward()
        for name in SUMS:
            totals[name] = totals.get(name, 0) + getattr(outputs, name).detach()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradients[name] = parameter.grad.clone()
    return totals, gradients


def with_lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = {"target_modules": "all-linear", "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(r=4, **options)).train()


def with_checkpointing(model: Any) -> Any:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def with_reentrant_checkpointing(model: Any) -> Any:
    """Which wants inputs that need a gradient."""
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def with_native_layers(model: Any) -> Any:
    """Our layers, with nothing to look up, do as transformers' own."""
    for hooks in (model.model._forward_pre_hooks, model.model._forward_pre_hooks_with_kwargs):
        hooks.clear()
    return model


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model: model, id="as it is"),
        with_lora,
        with_checkpointing,
        with_reentrant_checkpointing,
        with_native_layers,
    ],
)
def test_a_pack_has_the_losses_and_gradients_of_its_rows(
    model: Any, change: Callable[[Any], Any]
) -> None:
    """Several rows with audio, one with a reference, two without any, in one sequence."""
    model = change(model)
    packed, packed_gradients = sums_and_gradients(
        model, [collate(ROWS, TOKENS, training=True, packed=True)]
    )
    alone, gradients = sums_and_gradients(
        model, [collate([row], TOKENS, training=True) for row in ROWS]
    )
    for name in SUMS:
        torch.testing.assert_close(packed[name], alone[name], rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            packed_gradients[name], gradient, rtol=0, atol=1e-5 * scale, msg=name
        )


def test_without_its_boundaries_a_pack_has_other_losses(model: Any) -> None:
    """What the test above would see if rows saw each other."""
    pack = collate(ROWS, TOKENS, training=True, packed=True)
    joined = dict(pack)
    for name in pack:
        if not name.startswith(("input", "audio", "labels")):
            del joined[name]
    with torch.no_grad():
        apart, together = model(**pack), model(**joined)
    assert not torch.allclose(apart.audio_loss, together.audio_loss, rtol=1e-4)


def test_flash_attention_is_told_where_rows_begin(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find out by itself, from position_ids, by asking the device several times in each
    layer."""
    from transformers import modeling_flash_attention_utils as glue

    monkeypatch.setattr(glue, "_is_packed_sequence", lambda *_: pytest.fail("asked"))
    with torch.no_grad():
        model(**collate(ROWS, TOKENS, training=True, packed=True))


def test_preflight_sees_whether_rows_see_each_other(model: Any) -> None:
    from plugins.training.preflight.packed import layout_complaint, sees, sight

    pack = collate(ROWS, TOKENS, training=True, packed=True)
    alone = [collate([row], TOKENS, training=True, packed=True) for row in ROWS]
    assert layout_complaint(pack, alone) is None
    assert sight(model, pack, TOKENS) < 1e-6
    # An attention that keeps nothing apart: neither positions nor boundaries reach it.
    blind = pack | dict.fromkeys(("position_ids", "cu_seq_lens_k", "max_length_q", "max_length_k"))
    assert sees(model, blind, TOKENS)


@pytest.mark.parametrize("name", ["position_ids", "labels", "audio_labels", "cu_seq_lens_q"])
def test_preflight_sees_a_pack_that_is_not_its_rows(name: str) -> None:
    from plugins.training.preflight.packed import layout_complaint

    pack = collate(ROWS, TOKENS, training=True, packed=True)
    pack[name] = pack[name] + 1
    alone = [collate([row], TOKENS, training=True, packed=True) for row in ROWS]
    assert str(layout_complaint(pack, alone)).startswith(name)


# Runs of MS-SWIFT.


def coded(num_frames: int, text: str) -> dict[str, Any]:
    """A row with codes: nothing has to be encoded."""
    generator = torch.Generator().manual_seed(num_frames)
    codes = torch.randint(1024, (num_frames, 8), generator=generator).tolist()
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    return {"messages": messages, "audio_codes": [codes]}


def run(tiny: Path, tmp_path: Path, name: str, **options: Any) -> list[dict[str, Any]]:
    written_row = rows_of_all_kinds()[-1]
    validation = [coded(9, "Later."), coded(4, "Soon?"), written_row]
    options["val_dataset"] = write_jsonl(tmp_path / "validation.jsonl", validation)
    values = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 1}
    values |= options
    voice = {"reference_codes": coded(6, "")["audio_codes"], "reference_text": "A voice."}
    rows = [
        coded(12, "First."),
        coded(8, "Second, longer.") | voice,
        written_row,
        coded(30, "The third one."),
    ]
    dataset = write_jsonl(tmp_path / "train.jsonl", rows)
    return sft(tiny, dataset, tmp_path / name, **values)


def figures(records: list[dict[str, Any]]) -> dict[str, float]:
    """What was measured in the step and in the evaluation after it."""
    kinds = ("loss", "grad_norm", "eval_loss", "acc", "eval_acc")
    measured = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(kinds):
                measured[name] = value
    return measured


@pytest.mark.slow
def test_a_step_is_the_same_padded_packed_and_padding_free(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MS-SWIFT's own packs of rows of all kinds, in training and validation; a sick step would
    still know their names."""
    from plugins.training.sick_steps import SickSteps

    seen: list[list[str]] = []
    add = SickSteps.add

    def noted(self: SickSteps, rows: list[str], loss: Any) -> None:
        seen.append(rows)
        add(self, rows, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SickSteps, "add", noted)
        padded = run(tiny, tmp_path, "padded")
        packed = run(tiny, tmp_path, "packed", packing="true", per_device_train_batch_size=1)
        grouped = {"group_by_length": "true", "lazy_tokenize": "true"}
        package = {"attn_impl": "flash_attention_2"}
        with flash_attention.on_cpu():
            free = run(tiny, tmp_path, "free", padding_free="true", **package, **grouped)
    assert len(seen[0]) == 4
    assert [sorted(rows) for rows in seen] == [sorted(seen[0])] * 3
    assert caplog.text.count("rows in one sequence do not see each other") == 2
    expected = figures(padded)
    names = {"loss_text", "loss_audio_cb7", "grad_norm", "eval_loss", "eval_loss_audio"}
    assert names <= expected.keys()
    for records in (packed, free):
        assert figures(records) == pytest.approx(expected, rel=1e-5)


def test_streamed_and_grouped_packs_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"group_by_length: 'true' has no meaning for packs"):
        run(tiny, tmp_path, "grouped", packing="true", group_by_length="true")
    with pytest.raises(
        UserError, match=r"packing: 'true' encodes a stream in processes of its own"
    ):
        run(tiny, tmp_path, "streamed", packing="true", streaming="true", strict="true")


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("sdpa", r"attn_impl: 'sdpa' is not for packs \(packing, padding_free\); leave it out"),
        ("flash_attention_2", "needs a package that cannot be used here; use flash_attn"),
    ],
)
def test_attention_that_cannot_pack_is_refused(
    tiny: Path, tmp_path: Path, attention: str, message: str
) -> None:
    """MS-SWIFT's and transformers' own refusals end thirty lines of code, and know nothing of
    torch's."""
    with pytest.raises(UserError, match=message):
        run(tiny, tmp_path, "refused", packing="true", attn_impl=attention)

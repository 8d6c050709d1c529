"""`swift infer` speaks every row of a JSONL file, as the generator would, without a look at the
row's own clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import torch
from conftest import corpus_rows, write_jsonl
from helpers.sft import REGISTER, sft, swift

from plugins.audio.marks import Mark, mark_in
from plugins.audio.waveforms import to_pcm16
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.ms_swift import template
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech

pytestmark = pytest.mark.slow

GREEDY = Sampling(temperature=0)
MAX_NEW_TOKENS = 19  # ten frames and nine steps of delay
MAX_AUDIO_S = 0.4


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def rows() -> list[dict[str, Any]]:
    """Plain; in another's voice with transcript, and without; a second turn after a finished
    one."""
    first, second, third, fourth = corpus_rows(4)
    second |= {"reference_audio": first["audios"][0], "reference_text": "The birch canoe."}
    third |= {"reference_audio": first["audios"][0]}
    fourth["messages"] += [
        {"role": "user", "content": "And again."},
        {"role": "assistant", "content": ""},
    ]
    fourth["messages"][2]["loss"] = False
    fourth["audios"] += third["audios"]
    return [first, second, third, fourth]


def infer(tiny: Path, dataset: Path, result: Path, **options: Any) -> list[dict[str, Any]]:
    """`swift infer` in this process; the rows of its result file."""
    from swift.pipelines import infer_main

    infer_main(arguments(tiny, dataset, result, **options))
    return read(result)


def arguments(tiny: Path, dataset: Path, result: Path, **options: Any) -> list[str]:
    options = {
        "model": tiny,
        "model_type": "higgs-audio-v2-3b",
        "external_plugins": REGISTER,
        "val_dataset": dataset,
        "result_path": result,
        "torch_dtype": "float32",
        "temperature": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
        **options,
    }
    return words(options)


def words(options: dict[str, Any]) -> list[str]:
    """The command line."""
    line: list[str] = []
    for name, value in options.items():
        line += (f"--{name}", str(value))
    return line


def read(result: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()]


def answer(row: dict[str, Any]) -> dict[str, Any]:
    [only] = row["response"]
    assert row["messages"][-1] == {"role": "assistant", "content": [only]}
    return only  # type: ignore[no-any-return]


def wav(row: dict[str, Any]) -> bytes:
    """Its samples: MS-SWIFT's mark does not name the adapter's folder, as the generator's does."""
    return sf.read(answer(row)["audio"], dtype="int16")[0].tobytes()


def expected(
    generator: HiggsAudioGenerator, row: dict[str, Any], sampling: Sampling = GREEDY
) -> bytes:
    """The samples that the generator says, when it is asked for the row's text."""
    speech = generator.generate(
        row["messages"][1]["content"],
        scene_description="Indoor quiet",
        reference_audio=row.get("reference_audio"),
        reference_text=row.get("reference_text"),
        sampling=sampling,
        max_audio_s=MAX_AUDIO_S,
    )
    return to_pcm16(speech.audio).tobytes()


@pytest.fixture(scope="module")
def result(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result file of the literal command, greedy."""
    folder = tmp_path_factory.mktemp("infer")
    dataset = write_jsonl(folder / "rows.jsonl", rows())
    run = swift("infer", *arguments(tiny, dataset, folder / "said.jsonl"), OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr[-3000:]
    return folder / "said.jsonl"


def test_every_row_has_its_file_beside_the_results(result: Path) -> None:
    folder = result.with_name("said_audio")
    for line, row in enumerate(read(result), start=1):
        assert answer(row) == {
            "type": "audio",
            "audio": str(folder / f"rows-{line:05d}.wav"),
            "duration_s": 0.4,
            "stopped": False,
        }
        assert mark_in(answer(row)["audio"]) == Mark.of_today("model", None)
    assert len(list(folder.iterdir())) == len(read(result)) == 4


def test_greedy_speech_is_that_of_the_generator(
    result: Path, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    said = [wav(row) for row in read(result)]
    assert said[:3] == [expected(generator, row) for row in rows()[:3]]
    assert len(set(said)) == 4


def test_a_finished_turn_is_heard(tiny: Path, result: Path, tmp_path: Path) -> None:
    """The fourth row speaks after a clip of its own: with another clip there it says something
    else."""
    row = rows()[3]
    row["audios"][0] = rows()[0]["audios"][0]
    [other] = infer(tiny, write_jsonl(tmp_path / "rows.jsonl", [row]), tmp_path / "said.jsonl")
    assert wav(other) != wav(read(result)[3])


def test_the_row_s_own_clip_and_label_are_not_given_to_the_model(
    tiny: Path, result: Path, tmp_path: Path
) -> None:
    """Neither the clip, nor its codes, nor a text in its place change what is said."""
    other_clip, with_codes, with_text = (corpus_rows(1)[0] for _ in range(3))
    other_clip["audios"] = corpus_rows(2)[1]["audios"]
    num_frames = _num_frames(with_codes["audios"][0])
    with_codes["audio_codes"] = [torch.randint(1024, (num_frames, 8)).tolist()]
    with_text["messages"][-1]["content"], with_text["audios"] = "A label.", []
    dataset = write_jsonl(tmp_path / "rows.jsonl", [other_clip, with_codes, with_text])
    said = infer(tiny, dataset, tmp_path / "said.jsonl")
    assert [wav(row) for row in said] == [wav(read(result)[0])] * 3


def _num_frames(path: str) -> int:
    from plugins.data.clips import num_frames
    from plugins.data.dialogue import AudioClip

    return num_frames(AudioClip(path), "row")


def test_sampling_options_and_batches(
    tiny: Path, generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    dataset = write_jsonl(tmp_path / "rows.jsonl", rows()[:2])
    options = {"temperature": 0.8, "top_k": 30, "top_p": 0.7}
    said = infer(tiny, dataset, tmp_path / "a.jsonl", **options, seed=3, max_batch_size=2)
    sampling = Sampling(**options, seed=3)
    assert [wav(row) for row in said] == [expected(generator, row, sampling) for row in rows()[:2]]
    other = infer(tiny, dataset, tmp_path / "b.jsonl", **options, seed=4)
    assert wav(other[0]) != wav(said[0])


def test_one_generator_speaks_all_batches(
    tiny: Path, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the steps that it has compiled and recorded."""
    made: list[HiggsAudioGenerator] = []

    class Counted(HiggsAudioGenerator):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(template, "HiggsAudioGenerator", Counted)
    again = infer(tiny, write_jsonl(tmp_path / "rows.jsonl", rows()[:2]), tmp_path / "r.jsonl")
    assert len(made) == 1
    assert [wav(row) for row in again] == [wav(row) for row in read(result)[:2]]


def test_rows_without_an_answer_are_spoken(tiny: Path, result: Path, tmp_path: Path) -> None:
    """There is nothing to train on; that is no fault here."""
    bare = [{"messages": [{"role": "user", "content": rows()[0]["messages"][-2]["content"]}]}]
    [row] = infer(tiny, write_jsonl(tmp_path / "bare.jsonl", bare), tmp_path / "said.jsonl")
    assert answer(row)["duration_s"] == answer(read(result)[0])["duration_s"]


def test_a_second_run_keeps_the_files_of_the_first(tiny: Path, tmp_path: Path) -> None:
    """MS-SWIFT appends to a result file that is there already."""
    dataset = write_jsonl(tmp_path / "rows.jsonl", rows()[:1])
    infer(tiny, dataset, tmp_path / "said.jsonl")
    longer = infer(tiny, dataset, tmp_path / "said.jsonl", max_new_tokens=MAX_NEW_TOKENS + 5)
    assert [Path(answer(row)["audio"]).name for row in longer] == [
        "rows-00001.wav",
        "rows-00001-2.wav",
    ]
    assert [answer(row)["duration_s"] for row in longer] == [0.4, 0.6]


def test_lora_checkpoint(tiny: Path, result: Path, tmp_path: Path) -> None:
    """`--adapters` alone: model and plugin are found from what the training wrote, and so is its
    codec."""
    dataset = write_jsonl(tmp_path / "rows.jsonl", rows()[:1])
    lora = {
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "modules_to_save": ["audio_lm_head", "embed_audio_tokens"],
        "learning_rate": 0.01,
        "max_steps": 2,
    }
    sft(tiny, dataset, tmp_path / "run", **lora, model_kwargs='{"preflight": false}')
    [checkpoint] = (tmp_path / "run").glob("checkpoint-*")
    options = {
        "adapters": checkpoint,
        "val_dataset": dataset,
        "result_path": tmp_path / "said.jsonl",
        "temperature": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    run = swift("infer", *words(options), OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr[-3000:]
    [row] = read(tmp_path / "said.jsonl")
    # What the adapter says, and not its base.
    adapted = HiggsAudioGenerator.from_pretrained(str(checkpoint))
    assert wav(row) == expected(adapted, rows()[0])
    assert wav(row) != wav(read(result)[0])


def test_an_end_of_its_own_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model never stops by itself: what it says is put in its place, one clip at the
    limit, one before."""
    from plugins.ms_swift.template import HiggsAudioTemplate

    said = iter([(10, True), (3, True), (10, False)])

    def speak(self: HiggsAudioGenerator, dialogues: Any, **options: Any) -> list[Speech]:
        speeches = []
        for _ in dialogues:
            num_frames, stopped = next(said)
            codes = torch.zeros(8, num_frames, dtype=torch.long)
            speeches.append(Speech(self.codec.decode(codes), 24_000, codes, stopped, "", 1.0))
        return speeches

    num_tokens: list[int] = []
    original = HiggsAudioTemplate.decode_generate_ids

    def decode(self: HiggsAudioTemplate, generate_ids: list[int], **kwargs: Any) -> Any:
        num_tokens.append(len(generate_ids))
        return original(self, generate_ids, **kwargs)

    monkeypatch.setattr(HiggsAudioGenerator, "speak", speak)
    monkeypatch.setattr(HiggsAudioTemplate, "decode_generate_ids", decode)
    dataset = write_jsonl(tmp_path / "rows.jsonl", rows()[:3])
    answers = [answer(row) for row in infer(tiny, dataset, tmp_path / "said.jsonl")]
    assert [(given["stopped"], given["duration_s"]) for given in answers] == [
        (True, 0.4),
        (True, 0.12),
        (False, 0.4),
    ]
    # MS-SWIFT says "length" from the limit on, else "stop".
    assert num_tokens == [MAX_NEW_TOKENS - 1, 12, MAX_NEW_TOKENS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "true"}, "options: stream: True is not available; add --stream false"),
        ({"max_new_tokens": 9}, "request: max_new_tokens: 9 is no room for a frame of audio"),
        ({"num_beams": 2}, "request: num_beams: 2 is not available for speech; leave it out"),
        (
            {"repetition_penalty": 1.2},
            "request: repetition_penalty: 1.2 is not available for speech; leave it out",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_done_is_one_line(
    tiny: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    dataset = write_jsonl(tmp_path / "rows.jsonl", rows()[:1])
    with pytest.raises(UserError) as caught:
        infer(tiny, dataset, tmp_path / "said.jsonl", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "said_audio").exists()


def test_a_url_as_reference_is_refused(tiny: Path, tmp_path: Path) -> None:
    row = {**rows()[0], "reference_audio": "http://127.0.0.1:9/voice.wav"}
    dataset = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: reference_audio: .* is a URL; download it first"
    ):
        infer(tiny, dataset, tmp_path / "said.jsonl")

"""`--encode_codes`: rows name the codes of their recordings, and training takes no others."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import corpus, prepare, read, speech, table


@pytest.fixture
def coded(tiny: Path, tmp_path: Path) -> Path:
    """Rows with codes of six clips, five of them with a reference."""
    arguments = corpus(tmp_path / "corpus", 6, speakers=1, duration_s=3.0, rate=16_000)
    output = tmp_path / "data" / "train.jsonl"
    flags = ["--references", "--without_reference", "0"]
    flags += ["--encode_codes", "--codec", tiny / "audio_tokenizer"]
    assert prepare(*arguments, "--output_file", output, *flags) == 0
    return output


def test_codes_are_those_of_the_codec(tiny: Path, coded: Path):
    from plugins.audio.code_cache import CodeCache
    from plugins.audio.code_references import parse_reference
    from plugins.audio.codec import Codec

    codec, rows = Codec(str(tiny / "audio_tokenizer")), read(coded)
    assert len(rows) == 6
    for row in rows:
        recordings = {row["audios"][0]: "audio_codes", row["reference_audio"]: "reference_codes"}
        for path, column in recordings.items():
            (reference,) = row[column]
            folder, key = parse_reference(reference, beside=coded.parent, where="", field="")
            codes = CodeCache(folder)[key]
            assert codes.dtype == np.int16
            assert np.array_equal(codes, codec.encode_file(path).numpy())
    folder = coded.parent / "codes"
    assert len(list(CodeCache(folder))) == 6, "references are no clips of their own"


def test_a_second_run_encodes_what_is_new(
    tiny: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from plugins.audio.codec import Codec

    encoded: list[str] = []
    encode_file = Codec.encode_file

    def logged(self: Codec, path: str) -> object:
        encoded.append(Path(path).stem)
        return encode_file(self, path)

    monkeypatch.setattr(Codec, "encode_file", logged)
    arguments = corpus(tmp_path / "corpus", 8, speakers=1, duration_s=3.0, rate=16_000)
    speech(tmp_path / "corpus" / "clip002.wav", 3.0, seed=77, rate=16_000)
    flags = ["--output_file", coded, "--encode_codes", "--codec", tiny / "audio_tokenizer"]
    assert prepare(*arguments, *flags) == 0
    assert encoded == ["clip002", "clip006", "clip007"]


def test_codes_of_augmented_copies_and_processed_clips(tiny: Path, tmp_path: Path):
    output = tmp_path / "train.jsonl"
    flags = ["--audio_output", tmp_path / "audio", "--speed_factors", "0.9"]
    flags += ["--encode_codes", "--codec", tiny / "audio_tokenizer"]
    assert prepare(*corpus(tmp_path / "corpus", 2), "--output_file", output, *flags) == 0
    keys = [row["audio_codes"][0] for row in read(output)]
    assert len(keys) == len(set(keys)) == 4


# --- training with them ---


@pytest.mark.slow
def test_training_never_loads_the_codec(
    tiny: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from helpers.sft import sft

    import plugins.audio.codec

    monkeypatch.setattr(plugins.audio.codec, "_load_codec", lambda path: pytest.fail("loaded"))
    records = sft(tiny, coded, tmp_path / "run", max_steps=2)
    assert [np.isfinite(record["loss"]) for record in records if "loss" in record] == [True, True]


def refused(model: Path, rows: Path, tmp_path: Path) -> list[str]:
    """The lines with which training refuses `rows` before its first step."""
    from helpers.sft import flags
    from swift.pipelines import sft_main

    from plugins.errors import UserError

    with pytest.raises(UserError) as caught:
        sft_main(flags(model, rows, tmp_path / "run", max_steps=1))
    lines = str(caught.value).splitlines()
    for line in lines:
        assert re.match(rf"{rows}:\d+: (audio|reference)_codes", line), line
    return lines


def test_codes_of_another_clip_are_refused(tiny: Path, coded: Path, tmp_path: Path):
    """Of one that was recorded anew at the same length: it would be trained with the codes of the
    old recording. Its own row is refused, and each that has it as reference."""
    reference = read(coded)[0]["reference_audio"]
    speech(Path(reference), 3.0, seed=99, rate=16_000)
    num_rows = sum(row["reference_audio"] == reference for row in read(coded)) + 1
    lines = refused(tiny, coded, tmp_path)
    told = 0
    for line in lines:
        assert "file changed; run prepare_dataset.py --encode_codes again" in line
        told += 1 + int(next(iter(re.findall(r"and so in (\d+) more", line)), 0))
    assert told == num_rows


def test_codes_of_another_codec_are_refused_once(tiny: Path, coded: Path, tmp_path: Path):
    model = shutil.copytree(tiny, tmp_path / "model")
    config = model / "audio_tokenizer" / "config.json"
    config.write_text(config.read_text() + "\n")
    (line,) = refused(model, coded, tmp_path)
    assert line.endswith("again, with that --codec and another --codes_dir")


def test_codes_of_another_length_are_refused(tiny: Path, coded: Path, tmp_path: Path):
    speech(tmp_path / "corpus" / "clip004.wav", 4.0, seed=4, rate=16_000)
    assert refused(tiny, coded, tmp_path)


def test_a_cache_that_is_gone_is_refused(tiny: Path, coded: Path, tmp_path: Path):
    shutil.rmtree(coded.parent / "codes")
    assert refused(tiny, coded, tmp_path)


def test_every_cache_is_of_the_codec_that_is_trained(tiny: Path, coded: Path, tmp_path: Path):
    """The first clip of a run used to prove the codec of all caches that its rows name."""
    rows, other = read(coded), tmp_path / "other"
    codec = shutil.copytree(tiny / "audio_tokenizer", tmp_path / "codec")
    config = codec / "config.json"
    config.write_text(config.read_text() + "\n")
    flags = ["--output_file", other / "train.jsonl", "--encode_codes", "--codec", codec]
    assert prepare(*table(tmp_path / "corpus", ["clip000.wav"]), *flags) == 0
    (row,) = read(other / "train.jsonl")
    row["audio_codes"] = [f"../other/{row['audio_codes'][0]}"]
    coded.write_text("".join(json.dumps(line) + "\n" for line in [*rows, row]))
    (line,) = refused(tiny, coded, tmp_path)
    assert line.startswith(f"{coded}:7: audio_codes: 'codes of ")
    assert "were not made by the codec" in line

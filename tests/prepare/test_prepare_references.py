"""References that rows of our own bring along: checked, processed and split like the clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile as sf
from helpers.commands import TEXT, prepare, read, reasons, speech


def rows(folder: Path, references: dict[str, str | None]) -> list[Any]:
    """A JSONL of the clips `references` names (clip -> its reference), and the arguments that name
    it."""
    lines = []
    for clip, reference in references.items():
        row: dict[str, Any] = {
            "messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": ""}],
            "audios": [str(folder / clip)],
            "id": Path(clip).stem,
        }
        if reference is not None:
            row |= {"reference_audio": str(folder / reference), "reference_text": "What it says."}
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return ["--dataset_type", "jsonl", "--input_dir", folder, "--jsonl_file", folder / "rows.jsonl"]


def clips(folder: Path, count: int, duration_s: float = 3.5) -> list[str]:
    return [speech(folder / f"clip{i}.wav", duration_s, seed=i).name for i in range(count)]


def test_an_unfit_reference_takes_its_row_along(tmp_path: Path) -> None:
    names = clips(tmp_path, 4)
    speech(tmp_path / "short.wav", 0.4)
    speech(tmp_path / "loud.wav", 3.0, seed=9)
    samples, rate = sf.read(tmp_path / "loud.wav")
    sf.write(tmp_path / "loud.wav", (samples * 20).clip(-1, 1), rate)
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    given = dict(zip(names, ["short.wav", "loud.wav", "noise.wav", "clip0.wav"], strict=True))
    output = tmp_path / "out" / "train.jsonl"
    assert prepare(*rows(tmp_path, given), "--output_file", output, "--validate") == 0
    assert reasons(output) == [
        ("clip0", "reference_audio duration below min_duration_s"),
        ("clip1", "reference_audio clipped share above max_clipped_share"),
        ("clip2", "reference_audio is not readable audio"),
    ]
    assert [row["id"] for row in read(output)] == ["clip3"], (
        "whose reference is a fit clip of a row that is not"
    )
    assert prepare(*rows(tmp_path, given), "--output_file", output, "--validate", "header") == 0
    assert [name for name, _ in reasons(output)] == ["clip0", "clip2"]


def test_a_rejected_clip_is_no_reference(tmp_path: Path) -> None:
    names = clips(tmp_path, 2)
    speech(tmp_path / "short.wav", 0.4)
    output = tmp_path / "out" / "train.jsonl"
    given = {"short.wav": None, names[0]: "short.wav", names[1]: names[0]}
    assert prepare(*rows(tmp_path, given), "--output_file", output, "--validate") == 0
    assert reasons(output) == [
        ("short", "duration below min_duration_s"),
        ("clip0", "reference_audio is a rejected clip"),
    ]


def test_references_follow_the_processing_and_stale_codes_go(tmp_path: Path) -> None:
    names = clips(tmp_path, 2)
    outside = str(speech(tmp_path / "voice.wav", 3.0, seed=7))
    arguments = rows(tmp_path, {names[0]: names[1], names[1]: "voice.wav"})
    lines = read(tmp_path / "rows.jsonl")
    for line in lines:
        line |= {"audio_codes": [[[1] * 8]], "reference_codes": [[[1] * 8]], "duration_s": 3.5}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out" / "train.jsonl"
    assert (
        prepare(
            *arguments,
            "--output_file",
            output,
            "--audio_output",
            tmp_path / "24k",
            "--trim",
            "energy",
        )
        == 0
    )
    first, second = read(output)
    assert first["reference_audio"] == second["audios"] == [str(tmp_path / "24k" / "clip1.flac")]
    assert (second["reference_audio"], second["reference_codes"]) == (outside, [[[1] * 8]]), (
        "it is as it was"
    )
    assert not {"audio_codes", "duration_s"} & {*first, *second}
    assert "reference_codes" not in first


def test_references_stay_on_their_side_of_the_split(tmp_path: Path, capsys: Any) -> None:
    """Left out and counted; `--references` then gives another one of the same side."""
    names = clips(tmp_path, 24)
    outside = speech(tmp_path / "voice.wav", 3.0, seed=99)
    given: dict[str, str | None] = {name: names[i - 1] for i, name in enumerate(names)}
    given[names[5]] = outside.name
    output = tmp_path / "out" / "train.jsonl"
    arguments = [*rows(tmp_path, given), "--output_file", output, "--split", "--val_ratio", "0.3"]
    assert prepare(*arguments) == 0
    sides = [read(output), read(output.with_name("val.jsonl"))]
    audio = [{row["audios"][0] for row in side} for side in sides]
    crossing = 0
    for here, side in zip(audio, sides, strict=True):
        for row in side:
            wanted = str(tmp_path / str(given[Path(row["audios"][0]).name]))
            stays = wanted in here or wanted == str(outside)
            assert (row.get("reference_audio") == wanted) == stays
            assert ("reference_text" in row) == stays
            crossing += not stays
    assert crossing > 0
    assert f"{crossing} left out: they lay on another side of the split" in capsys.readouterr().out
    paired = [*arguments, "--references", "--single_speaker", "ann", "--without_reference", "0"]
    assert prepare(*paired) == 0
    sides = [read(output), read(output.with_name("val.jsonl"))]
    for here, side in zip(audio, sides, strict=True):
        for row in side:
            assert row["reference_audio"] in {*here, str(outside)} - {row["audios"][0]}

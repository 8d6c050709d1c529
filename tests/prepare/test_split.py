"""Train, validation and test: by hash of the id or speaker, stable, and no recording in two."""

from pathlib import Path

import pytest
from helpers.commands import corpus, ids, one_line_error, prepare, report, sides, speech, table

from plugins.prepare.outputs import rejected_path, split_path
from plugins.prepare.rows import Clip, split


def clip(id_: str, audio: str | None = None) -> Clip:
    return Clip(id_, Path(audio or f"/{id_}.wav"), None, {"id": id_})


def clips(count: int) -> list[Clip]:
    return [clip(f"u{number}") for number in range(count)]


def divided(clips: list[Clip], val_ratio: float, seed: int) -> tuple[list[str], list[str]]:
    """The ids of train and of validation."""
    train, validation = split(clips, val_ratio=val_ratio, seed=seed).values()
    return [clip.id for clip in train], [clip.id for clip in validation]


def test_split_divides_and_keeps_the_order():
    """5 % of 2000 within three standard deviations of a binomial draw."""
    every = [f"u{number}" for number in range(2000)]
    train, validation = divided(clips(2000), 0.05, 42)
    assert 70 <= len(validation) <= 130
    assert sorted(train + validation) == sorted(every)
    assert train == [id_ for id_ in every if id_ not in set(validation)]


def test_split_is_the_same_on_every_machine():
    """Written down once: another hash would move clips that a model has already been trained on
    into validation."""
    clips = [clip(f"LJ001-{number:04d}") for number in range(1, 41)]
    _, validation = divided(clips, 0.1, 42)
    assert validation == ["LJ001-0033", "LJ001-0037", "LJ001-0038"]
    assert divided(clips, 0.1, 43)[1] != validation


def test_split_is_stable_when_clips_are_added_or_reordered():
    """A shuffle with a seed would deal all cards anew, and old validation clips would be trained
    on."""
    _, before = divided(clips(200), 0.1, 1)
    _, after = divided(clips(400)[::-1], 0.1, 1)
    assert set(before) == {id_ for id_ in after if int(id_[1:]) < 200}


@pytest.mark.parametrize("val_ratio", [1e-9, 1 - 1e-9])
def test_neither_side_of_a_split_is_empty(val_ratio):
    """Two clips and 5 % would nearly always leave no validation rows."""
    train, validation = divided(clips(2), val_ratio, 42)
    assert (len(train), len(validation)) == (1, 1)


def test_one_recording_never_stands_on_both_sides():
    """Several rows may name one file, also under different ids (a link); their order must not
    matter either."""
    clips = [clip(f"u{number}", f"/{number // 4}.wav") for number in range(400)]
    train, validation = split(clips, val_ratio=0.3, seed=7).values()
    assert validation
    assert not {clip.audio for clip in train} & {clip.audio for clip in validation}
    assert split(clips[::-1], val_ratio=0.3, seed=7)["val"] == validation[::-1]


@pytest.mark.parametrize(
    ("output", "validation"),
    [
        ("data/vctk_train.jsonl", "data/vctk_val.jsonl"),
        ("train.jsonl", "val.jsonl"),
        ("train/my.jsonl", "train/my_val.jsonl"),
        ("trained_train.v2.jsonl", "trained_val.v2.jsonl"),
    ],
)
def test_name_of_the_validation_file(output, validation):
    """Only the file's own name counts, not a folder's."""
    assert split_path(Path(output), "val") == Path(validation)
    assert rejected_path(Path("a/x_train.jsonl")) == Path("a/x_train.rejected.jsonl")


# --- with the command ---


def members(column: str, output: Path) -> dict[str, set[str]]:
    """Per side, the values of a column of its rows."""
    return {name: {row[column] for row in rows} for name, rows in sides(output).items()}


def test_split_writes_two_files(tmp_path, capsys):
    """With the names of the seed document; a second run writes the same bytes."""
    output = tmp_path / "data" / "ljspeech_train.jsonl"
    validation = output.with_name("ljspeech_val.jsonl")
    arguments = [*corpus(tmp_path / "corpus", 20), "--output_file", output]
    arguments += ["--split", "--val_ratio", "0.2"]
    assert prepare(*arguments) == 0
    assert sorted(ids(output) + ids(validation)) == [
        f"clip{number:03d}.wav" for number in range(20)
    ]
    assert 1 <= len(ids(validation)) <= 10
    rejected = output.with_name("ljspeech_train.rejected.jsonl")
    assert sorted(output.parent.iterdir()) == [output, rejected, validation]
    command = f"./train_higgs_audio.sh --dataset {output} --val_dataset {validation}"
    assert f"next      {command}\n" in capsys.readouterr().out
    before = output.read_bytes(), validation.read_bytes()
    assert prepare(*arguments) == 0
    assert (output.read_bytes(), validation.read_bytes()) == before


def test_linked_files_are_one_recording_in_the_split(tmp_path):
    """The same file under two names in one CSV."""
    root, output = tmp_path / "clips", tmp_path / "train.jsonl"
    speech(root / "a.wav")
    speech(root / "z.wav", seed=1)
    (root / "link.wav").symlink_to(root / "a.wav")
    arguments = table(root, ["a.wav", "z.wav", "link.wav"])
    assert prepare(*arguments, "--output_file", output, "--split") == 0
    audio = [{row["audios"][0] for row in rows} for rows in sides(output).values()]
    assert sorted(map(len, audio)) == [1, 1]
    assert not audio[0] & audio[1]


def test_a_single_recording_cannot_be_split(tmp_path, capsys):
    """An empty validation file stops MS-SWIFT much later."""
    arguments = [*corpus(tmp_path / "corpus", 1), "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments, "--split") == 1
    error = one_line_error(capsys)
    assert "leave nothing for val; add recordings or leave out --split" in error
    assert not (tmp_path / "train.jsonl").exists()


def test_split_in_three(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    flags = ["--output_file", output, "--split", "--val_ratio", "0.2", "--test_ratio", "0.2"]
    flags += ["--validate", "header"]
    assert prepare(*corpus(root, 60), *flags) == 0
    before = members("id", output)
    assert len(set.union(*before.values())) == sum(map(len, before.values())) == 60
    for name, clips in before.items():
        assert report(output)["splits"][name]["clips"] == len(clips)
        assert len(clips) >= (5 if name != "train" else 20)
    # Half as many again, listed the other way round: nobody changes sides.
    more = corpus(root, 90)
    header, *lines = (root / "meta.csv").read_text().splitlines()
    (root / "meta.csv").write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert prepare(*more, *flags) == 0
    for name, clips in members("id", output).items():
        assert before[name] <= clips
    assert prepare(*more, *flags, "--seed", "7") == 0
    assert not before["val"] <= members("id", output)["val"]


def test_split_by_speaker(tmp_path):
    output = tmp_path / "train.jsonl"
    flags = ["--output_file", output, "--split", "--split_by_speaker"]
    flags += ["--val_ratio", "0.2", "--test_ratio", "0.2"]

    def voices(count: int) -> dict[str, set[str]]:
        assert prepare(*corpus(tmp_path / "corpus", count, speakers=12), *flags) == 0
        return members("speaker", output)

    first = voices(36)
    assert sum(map(len, first.values())) == len(set.union(*first.values())) == 12
    assert voices(60) == first


def test_split_by_speaker_needs_speakers(tmp_path, capsys):
    """Where nobody is named it was a split by clip; of one voice there is nothing to divide."""
    run = ["--output_file", tmp_path / "train.jsonl", "--split", "--split_by_speaker"]
    arguments = corpus(tmp_path / "corpus", 4, speakers=1)
    unnamed = arguments[: arguments.index("--speaker_column")]
    assert prepare(*unnamed, *run) == 1
    assert one_line_error(capsys) == (
        "error: --split_by_speaker: speakers: 0 are named; name their column with --speaker_column"
    )
    assert prepare(*arguments, *run) == 1
    error = one_line_error(capsys)
    assert error.endswith("1 leave nothing for val; add speakers or leave out --split_by_speaker")


def test_few_validation_rows_are_told(tmp_path, capsys):
    """58 clips gave one, without a word."""
    arguments = [*corpus(tmp_path / "corpus", 58), "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments, "--split") == 0
    count = len(sides(tmp_path / "train.jsonl")["val"])
    line = f"warning   few validation rows ({count}): raise --val_ratio or add clips\n"
    assert line in capsys.readouterr().out
    assert prepare(*arguments, "--split", "--val_ratio", "0.4", "--test_ratio", "0.01") == 0
    told = capsys.readouterr().out
    assert "few validation rows" not in told
    assert "few test rows (" in told
    assert prepare(*arguments) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("by_speaker", [False, True])
def test_augmented_copies_are_only_trained_on(tmp_path, by_speaker):
    """A faster copy of a validation clip among the training rows, and the validation loss means
    nothing."""
    output = tmp_path / "train.jsonl"
    flags = ["--audio_output", tmp_path / "audio", "--split", "--val_ratio", "0.5"]
    flags += ["--speed_factors", "0.9,1.1", "--noise_snr_db", "20"]
    if by_speaker:
        flags.append("--split_by_speaker")
    arguments = corpus(tmp_path / "corpus", 8, speakers=8)
    assert prepare(*arguments, "--output_file", output, *flags) == 0
    copies = ("-speed0.9", "-speed1.1", "-snr20")
    assert not any(id_.endswith(copies) for id_ in ids(output.with_name("val.jsonl")))
    expected = []
    for id_ in ids(output):
        if not id_.endswith(copies):
            expected += [id_, *(id_ + suffix for suffix in copies)]
    assert expected
    assert sorted(ids(output)) == sorted(expected)

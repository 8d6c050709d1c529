"""What no reader may do: open a socket, leave the audio root, hide a lack of permission, import
torch."""

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.trees import (
    as_nobody,
    clip,
    folder_of_others,
    heard,
    rejects,
    said,
    sorted_out,
    utterances,
)

from plugins.corpora import (
    Columns,
    Rejected,
    read_custom,
    read_folder,
    read_gpt_sovits,
    read_jsonl,
    read_libritts,
    read_ljspeech,
    read_vctk,
)
from plugins.errors import UserError


def list_files(folder: Path, audio: str) -> dict[str, object]:
    """Every reader of a list, each with one line that names `audio`."""
    row = {
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}],
        "audios": [audio],
    }
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (folder / "x.list").write_text(f"{audio}|anna|en|Hello\n")
    (folder / "metadata.csv").write_text(f"{audio}|Hello\n")
    (folder / "meta.csv").write_text(f"audio,text\n{audio},Hello\n")
    return {
        "jsonl": lambda **where: read_jsonl(folder, folder / "rows.jsonl", **where),
        "gpt_sovits": lambda **where: read_gpt_sovits(folder, folder / "x.list", **where),
        "custom": lambda **where: read_custom(folder, folder / "meta.csv", Columns(), **where),
        "ljspeech": lambda **where: read_ljspeech(folder, **where),
    }


@pytest.mark.parametrize("kind", ["jsonl", "gpt_sovits", "custom"])
def test_url_opens_no_socket(tmp_path, monkeypatch, kind):
    """A list from elsewhere could name a host to be called."""

    def refuse(*args, **kwargs):
        pytest.fail("opened a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for url in (
        "http://127.0.0.1:9/a.wav",
        "https://x.org/a.wav",
        "s3://bucket/a.wav",
        "hf://datasets/a/b.wav",
    ):
        [reject] = rejects(list_files(tmp_path, url)[kind]())
        assert (reject.reason, reject.value) == ("is a URL", url)


@pytest.mark.parametrize("kind", ["jsonl", "gpt_sovits", "custom", "ljspeech"])
def test_audio_root_jails_every_list(tmp_path, kind):
    """Without it a list from elsewhere may name any file of the machine, and its sound ends in a
    model."""
    secret = clip(tmp_path / "secret.wav")
    corpus = tmp_path / "corpus"
    (corpus / "wavs").mkdir(parents=True)
    (corpus / "link.wav").symlink_to(secret)
    (corpus / "wavs" / "link.wav").symlink_to(secret)
    up, link = ("../../secret", "link") if kind == "ljspeech" else ("../secret.wav", "link.wav")
    for name, reason in (
        (up, 'holds "..", which the audio root forbids'),
        (link, "leads out of the audio root"),
    ):
        reader = list_files(corpus, name)[kind]
        assert [utterance.audio for utterance in utterances(reader())] == [secret]
        assert [reject.kind for reject in rejects(reader(root=corpus))] == [reason]


@pytest.mark.parametrize("kind", ["vctk", "libritts", "folder", "lab", "recording"])
def test_audio_root_jails_every_transcript(tmp_path, kind):
    """A link named like a transcript made a text of any file: `a.txt -> ../key`."""
    secret, sound = said(tmp_path / "key", "secret"), clip(tmp_path / "sound.wav")
    corpus = tmp_path / "corpus"
    audio, text, reader = {
        "vctk": ("wav48/p1/p1_1.wav", "txt/p1/p1_1.txt", read_vctk),
        "libritts": ("1/2/1_2.wav", "1/2/1_2.normalized.txt", read_libritts),
        "folder": ("a.wav", "a.txt", read_folder),
        "lab": ("s/a.wav", "s/a.lab", read_folder),
        "recording": ("a.wav", "a.txt", read_folder),
    }[kind]
    for path in (corpus / audio, corpus / text):
        path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "recording":
        said(corpus / text, "Hello")
        (corpus / audio).symlink_to(sound)
    else:
        clip(corpus / audio)
        (corpus / text).symlink_to(secret)
    [(_, heard_text, _)] = heard(reader(corpus))
    assert heard_text == ("Hello" if kind == "recording" else "secret"), (
        "the proof of concept is none"
    )
    [rejected] = reader(corpus, root=corpus)
    assert isinstance(rejected, Rejected)
    assert rejected.kind.removeprefix("transcript ") == "leads out of the audio root"
    assert heard(reader(corpus, root=tmp_path)) == heard(reader(corpus)), (
        "a root above takes them in"
    )


def test_audio_root_jails_lists_and_folders(tmp_path):
    """Also metadata.csv, and folders. A list that lies elsewhere as written is the user's own."""
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    clip(corpus / "wavs" / "a.wav")
    clip(outside / "b.wav")
    said(outside / "b.txt", "secret")
    listed = said(outside / "metadata.csv", "a|Hello")
    (corpus / "metadata.csv").symlink_to(listed)
    assert heard(read_ljspeech(corpus)) == [("a", "Hello", None)]
    with pytest.raises(
        UserError,
        match=r"metadata\.csv: leads out of the audio root \(to .*\); move it into [^\n]*$",
    ):
        list(read_ljspeech(corpus, root=corpus))
    table_file = said(corpus / "table.csv", "audio,text\nwavs/a.wav,Hello")
    mine = table_file.rename(outside / "table.csv")
    assert len(heard(read_custom(corpus, mine, Columns(), root=corpus))) == 1
    (corpus / "link.csv").symlink_to(mine)
    with pytest.raises(UserError, match=r"link\.csv: leads out of the audio root"):
        list(read_custom(corpus, corpus / "link.csv", Columns(), root=corpus))
    (corpus / "metadata.csv").unlink()
    (corpus / "more").symlink_to(outside)
    assert "secret" in [utterance.text for utterance in utterances(read_folder(corpus))]
    with pytest.raises(UserError, match="more: leads out of the audio root"):
        list(read_folder(corpus, root=corpus))


def test_no_permission_is_named(tmp_path):
    """ "not found" or "not readable audio" would send the user looking for the wrong fault. Root
    reads everything, so the reading is done by another user where the tests run as root."""
    with folder_of_others() as corpus:
        for name in ("open", "locked", "hidden/x", "mute"):
            clip(corpus / "clips" / f"{name}.wav")
            said(corpus / "clips" / f"{name}.txt", "Hello")
        table_file = said(
            corpus / "meta.csv", "audio,text\nopen.wav,A\nlocked.wav,B\nhidden/x.wav,C"
        )
        (corpus / "clips" / "mute.txt").chmod(0)
        (corpus / "clips" / "locked.wav").chmod(0)
        (corpus / "clips" / "hidden").chmod(0)

        def from_table() -> str:
            return json.dumps(sorted_out(read_custom(corpus / "clips", table_file, Columns())))

        def from_folder() -> str:
            return json.dumps(sorted_out(read_folder(corpus / "clips")))

        clips = corpus / "clips"
        assert json.loads(as_nobody(from_table)) == [
            ["open.wav"],
            [
                ["locked.wav", "may not be read", str(clips / "locked.wav")],
                ["hidden/x.wav", "may not be read", str(clips / "hidden" / "x.wav")],
            ],
        ]
        text, hidden = str(clips / "mute.txt"), str(clips / "hidden")
        assert json.loads(as_nobody(from_folder)) == [
            ["open.wav"],
            [
                ["locked.wav", "may not be read", str(clips / "locked.wav")],
                ["mute.wav", "transcript may not be read (Permission denied)", text],
                ["hidden", "folder may not be read (Permission denied)", hidden],
            ],
        ]


def test_readers_run_where_torch_swift_and_datasets_cannot_be_imported(tmp_path):
    """Only `read_huggingface`, and only when called, needs `datasets` (and with it pandas and
    pyarrow)."""
    clip(tmp_path / "s" / "a.wav")
    said(tmp_path / "s" / "a.txt", "Hello")
    list_files(tmp_path, "s/a.wav")
    program = textwrap.dedent("""
        import json
        import sys
        from pathlib import Path

        blocked = {"torch", "swift", "transformers", "datasets", "pyarrow", "pandas"}

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in blocked:
                    raise ImportError(f"{name} was imported")

        sys.meta_path.insert(0, Blocker())
        from plugins.prepare import cli
        from plugins.corpora import *
        from plugins.corpora.canonical import canonical_row
        from plugins.settings import HiggsAudioSettings
        here = Path(sys.argv[1])
        readers = [
            read_folder(here), read_libritts(here), read_jsonl(here, here / "rows.jsonl"),
            read_gpt_sovits(here, here / "x.list"), read_custom(here, here / "meta.csv", Columns()),
        ]
        print([sum(isinstance(each, Utterance) for each in reader) for reader in readers])
        row = json.loads((here / "rows.jsonl").read_text())
        row |= {"audios": [str(here / "s/a.wav")], "audio_codes": [f"codes#{'0' * 32}"]}
        row = canonical_row(row, "rows.jsonl:1", HiggsAudioSettings(), beside=here)
        print(row["audio_code_keys"] == [f"{here}/codes#{'0' * 32}"])
        try:
            list(read_huggingface(str(here), Columns(), audio_dir=here / "out"))
        except ValueError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    others = "left alone, as neither recordings nor their texts: .csv 2, .jsonl 1, .list 1"
    assert (done.returncode, done.stderr) == (0, f"{tmp_path}: {others} (meta.csv, ...)\n")
    assert done.stdout.splitlines() == [
        "[1, 0, 1, 1, 1]",
        "True",
        "huggingface: package: 'datasets' is not installed; pip install datasets",
    ]

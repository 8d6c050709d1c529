"""Which file a path means, and waveforms that are saved."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from plugins.audio.waveforms import AudioError, AudioInfo, load, probe, resolve, save_wav

# --- save_wav ---


def test_saved_audio_is_clipped_16_bit_and_makes_its_folder(tmp_path):
    """Without the clip, 1.5 would wrap around to a loud crack."""
    path = tmp_path / "new" / "folder" / "a.wav"
    save_wav(path, np.array([1.5, -1.5, 0.5, 0.0], dtype=np.float32), 24_000)
    assert sf.info(path).subtype == "PCM_16"
    assert probe(path) == AudioInfo(4, 24_000, 1)
    np.testing.assert_allclose(load(path), [1.0, -1.0, 0.5, 0.0], atol=1e-4)


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    """A full disk must not cost the recording that was there."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")

    def fail(file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(sf, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        save_wav(path, np.zeros(2_400, np.float32), 24_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.wav"]


def test_nan_is_not_saved(tmp_path):
    """It would become a full-scale click; only our own code can produce it."""
    with pytest.raises(AssertionError, match="NaN"):
        save_wav(tmp_path / "a.wav", np.array([0.0, np.nan]), 24_000)
    assert os.listdir(tmp_path) == []


# --- resolve ---


def test_relative_path_is_tried_in_each_folder_in_order(tmp_path):
    """`audio_root` goes before the folder of the JSONL."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ["both.wav"]), (second, ["both.wav", "one.wav"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"x")
    assert resolve("both.wav", folders=[first, second]) == first / "both.wav"
    assert resolve("one.wav", folders=[first, second]) == second / "one.wav"
    assert resolve(str(second / "one.wav"), folders=[first]) == second / "one.wav"


def test_not_found_lists_where_it_looked(tmp_path, monkeypatch):
    """Most wrong paths are right paths relative to something else."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError) as caught:
        resolve("a.wav", folders=[Path("clips"), Path(".")])
    assert caught.value.reason == "not found (looked in clips/, .)"
    with pytest.raises(AudioError) as caught:
        resolve("/nowhere/a.wav", folders=[Path("clips")])
    assert caught.value.reason == "not found"


@pytest.mark.parametrize(
    "url", ["http://x.org/a.wav", "https://x.org/a.wav", "s3://bucket/a.wav", "HF://a/b.wav"]
)
def test_url_is_refused_with_the_remedy(url):
    """It would otherwise be looked for as a folder named `https:`."""
    with pytest.raises(AudioError) as caught:
        resolve(url, folders=[Path(".")])
    assert caught.value.reason == "is a URL"
    assert caught.value.remedy == "download it first and name the local file"


def test_a_folder_does_not_hide_the_file_of_the_same_name(tmp_path):
    """`speaker1` may be a folder here and a recording there."""
    (tmp_path / "first" / "a").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "a").write_bytes(b"x")
    assert (
        resolve("a", folders=[tmp_path / "first", tmp_path / "second"]) == tmp_path / "second" / "a"
    )
    with pytest.raises(AudioError, match="is a folder"):
        resolve("a", folders=[tmp_path / "first"])


def test_an_empty_path_names_no_file(tmp_path):
    """Joined to a folder it would be the folder itself."""
    with pytest.raises(AudioError, match="names no file"):
        resolve("", folders=[tmp_path])

"""The report of a corpus: exact numbers, the same bytes in whatever order the clips came, a picture
for any name."""

import io
import itertools
import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.commands import corpus, one_line_error, prepare

from plugins.errors import UserError
from plugins.prepare.report import Accepted, picture, summarise, table

CLIPS = [
    Accepted(3600.0, "bob", "train"),
    Accepted(1.5, "alice", "val"),
    Accepted(2.0, "alice", "train"),
    Accepted(2.999, "alice", "train"),
]
REJECTED = ["text is empty", "is a URL", "duration above max_duration_s", "is a URL"]


def many(count: int, speakers: int) -> list[Accepted]:
    generator = random.Random(0)
    return [
        Accepted(
            generator.uniform(1, 30),
            f"p{generator.randrange(speakers)}",
            generator.choice(["train", "val"]),
        )
        for _ in range(count)
    ]


def chunks(png: bytes) -> list[bytes]:
    """The names of the parts of a PNG."""
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += length + 12
    return names


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")


def test_the_whole_report():
    """Written out, key order included: scripts read it, and people compare two of them."""
    expected = {
        "accepted": {"clips": 4, "hours": 1.0018},
        "rejected": {
            "clips": 4,
            "reasons": {"is a URL": 2, "duration above max_duration_s": 1, "text is empty": 1},
        },
        "splits": {
            "train": {"clips": 3, "hours": 1.0014, "speakers": 2},
            "val": {"clips": 1, "hours": 0.0004, "speakers": 1},
        },
        "duration_s": {
            "min": 1.5,
            "p5": 1.575,
            "median": 2.5,
            "p95": 3060.45,
            "max": 3600.0,
            "histogram": {"bin_s": 61, "clips": [3] + [0] * 58 + [1]},
        },
        "speakers": {"alice": {"clips": 3, "hours": 0.0018}, "bob": {"clips": 1, "hours": 1.0}},
    }
    assert json.dumps(summarise(CLIPS, REJECTED)) == json.dumps(expected)


def test_histogram_counts_by_whole_seconds():
    """The lower border belongs to a bin, so that clips cut at exactly 30 s get one of their own."""
    report = summarise([Accepted(d, None, "train") for d in (0.5, 1.0, 1.999, 3.0)], [])
    assert report["duration_s"]["histogram"] == {"bin_s": 1, "clips": [1, 2, 0, 1]}
    assert sum(summarise(many(500, 5), [])["duration_s"]["histogram"]["clips"]) == 500


def test_order_does_not_matter():
    """Workers finish as they like; a run that was killed and resumed must end with the same
    files."""
    clips, rejected = many(2000, 50), ["a", "b", "b", "c"] * 10
    mixed, mixed_rejected = (
        random.Random(1).sample(clips, len(clips)),
        random.Random(1).sample(rejected, len(rejected)),
    )
    report, other = summarise(clips, rejected), summarise(mixed, mixed_rejected)
    assert json.dumps(report) == json.dumps(other)
    assert picture(report) == picture(other)
    assert table(report) == table(other)


def test_hours_do_not_depend_on_the_order_of_adding():
    """These three end just below or just above 0.01565 h, depending on which two are added
    first."""
    orders = itertools.permutations([18.18, 6.79, 31.37])
    assert {
        summarise([Accepted(d, None, "train") for d in order], [])["accepted"]["hours"]
        for order in orders
    } == {0.0157}


def test_picture_is_made_from_what_was_written_to_disk():
    """It can be drawn again from report.json, whose numbers survive the way through JSON."""
    report = summarise(many(100, 5), [])
    assert picture(json.loads(json.dumps(report))) == picture(report)


def test_table():
    assert table(summarise(CLIPS, REJECTED)).splitlines() == [
        "accepted  4 clips, 1.00 h",
        "  train                     3 clips, 1.00 h, 2 speakers",
        "  val                       1 clip, 0.00 h, 1 speaker",
        "duration  shortest 1.50 s, 5 % 1.57 s, median 2.50 s, 95 % 3060.45 s, longest 3600.00 s",
        "speakers  2",
        "  bob                       1 clip, 1.00 h",
        "  alice                     3 clips, 0.00 h",
        "rejected  4 clips",
        "         2  is a URL",
        "         1  duration above max_duration_s",
        "         1  text is empty",
    ]


def test_many_speakers_become_the_largest_and_the_others():
    """LibriTTS has 2456. No clip may get lost in the shortening."""
    clips = [Accepted(1.0 + number, f"p{number:03d}", "train") for number in range(100)]
    lines = table(summarise(clips, [])).splitlines()
    start = lines.index("speakers  100")
    assert lines[start + 1].split() == ["p099", "1", "clip,", "0.03", "h"]
    assert lines[start + 11].split()[:4] == ["90", "others", "90", "clips,"]
    hours = sum(1.0 + number for number in range(90)) / 3600
    assert lines[start + 11].split()[4] == f"{hours:.2f}"
    assert lines[start + 12] == "rejected  0 clips"
    height = pixels(picture(summarise(clips, []))).shape[0]
    assert height == pixels(picture(summarise(clips[:31], []))).shape[0] < 1000


def test_clips_without_a_speaker():
    """All: then there is nothing to list. Some: then they are a line of their own."""
    unnamed = [Accepted(2.0, None, "train")]
    assert summarise(unnamed, [])["speakers"] == {}
    assert (
        table(summarise(unnamed, [])).splitlines()[1]
        == "  train                     1 clip, 0.00 h"
    )
    mixed = summarise([*unnamed, Accepted(3.0, "bob", "train")], [])
    assert list(mixed["speakers"]) == ["(not named)", "bob"]
    assert mixed["splits"]["train"]["speakers"] == 1


def test_nothing_accepted():
    """A corpus of which all was rejected needs its report most."""
    report = summarise([], ["is a URL"])
    assert report["accepted"] == {"clips": 0, "hours": 0.0}
    assert table(report).splitlines() == [
        "accepted  0 clips, 0.00 h",
        "rejected  1 clip",
        "         1  is a URL",
    ]
    assert picture(report).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["$x_{$", "李明", "a" * 300, "two\nlines\x00", "", "_hidden", "<b>&"]
)
def test_any_name_of_a_speaker_can_be_drawn(name):
    """They come from users' tables: a dollar opened a formula that could not be parsed and ended
    the run."""
    report = summarise([Accepted(2.0, name, "train"), Accepted(3.0, "bob", "train")], [])
    assert pixels(picture(report)).shape == (400, 1280, 4)
    lines = table(report).splitlines()
    assert max(map(len, lines)) < 100
    assert len(lines) == 7


def test_picture_shows_the_clips():
    """Not the same picture for every corpus."""
    pictures = {
        picture(summarise(CLIPS, [])),
        picture(summarise(CLIPS[1:], [])),
        picture(summarise([*CLIPS, Accepted(2.0, "carol", "val")], [])),
    }
    assert len(pictures) == 3


def test_picture_holds_no_time_and_no_version(monkeypatch):
    """The same bytes in another process and under another user's matplotlib settings."""
    import matplotlib

    report = summarise(CLIPS, REJECTED)
    png = picture(report)
    assert set(chunks(png)) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 300}):
        assert picture(report) == png
    code = (
        "import json, sys; from plugins.prepare.report import picture\n"
        "sys.stdout.buffer.write(picture(json.load(sys.stdin)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input=json.dumps(report).encode(),
        capture_output=True,
        check=True,
    )
    assert run.stdout == png


def test_without_matplotlib_the_remedy_is_told(monkeypatch):
    """Report and table need it not; nor does importing the file."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert table(summarise(CLIPS, REJECTED))
    with pytest.raises(
        UserError, match="'matplotlib' is not installed; run: pip install matplotlib"
    ):
        picture(summarise(CLIPS, REJECTED))


def test_without_matplotlib_nothing_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = [*corpus(tmp_path / "corpus", 1), "--output_file", tmp_path / "out" / "x.jsonl"]
    assert prepare(*arguments, "--validate") == 1
    assert "'matplotlib' is not installed" in one_line_error(capsys)
    assert not (tmp_path / "out").exists()
    assert prepare(*arguments) == 0

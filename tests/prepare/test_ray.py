"""`--executor ray` on a cluster of two workers: the bytes of a local run."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.commands import contents, corpus, prepare, reasons, speech

HAS_RAY = importlib.util.find_spec("ray") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install 'ray[data]'"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    # The workers' Python finds our packages where this one did.
    root = str(Path(__file__).resolve().parents[2])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()


def faulty(root: Path) -> list[Any]:
    """Three chunks; faults whose values are whole numbers, fractions and texts, a duplicate, a
    missing file."""
    arguments = corpus(root, 70)
    speech(root / "clip005.wav", 0.3)
    speech(root / "clip006.wav", rate=8_000)
    for i in range(7, 13):
        speech(root / f"clip{i:03}.wav", 3.5, seed=i)  # long enough for a reference
    shutil.copy(root / "clip001.wav", root / "clip033.wav")
    sf.write(root / "clip040.wav", np.full(36_000, np.nan), 24_000, subtype="FLOAT")
    (root / "clip041.wav").write_text("no audio")
    (root / "clip069.wav").unlink()
    return arguments


@pytest.mark.parametrize(
    "flags",
    [
        ["--validate"],
        ["--audio_output", "audio", "--noise_snr_db", "20", "--split"],
        ["--references"],
    ],
    ids=["validate", "audio", "references"],
)
def test_a_cluster_gives_the_bytes_of_a_local_run(tmp_path, monkeypatch, cluster, flags):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out" / "train.jsonl"
    arguments = [*faulty(tmp_path / "corpus"), "--output_file", output, *flags]
    folders = [tmp_path / "out", tmp_path / "audio"]

    def written(executor: str) -> dict[str, bytes]:
        assert prepare(*arguments, "--executor", executor, "--workers", "2") == 0
        if "--validate" in flags:
            assert len(reasons(output)) == 6
        files = contents(*folders)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return files

    assert written("local") == written("ray")


def test_it_goes_on_where_a_local_run_was_killed(tmp_path, cluster):
    """One journal for both: what is finished is not sent to the cluster again."""
    from plugins.prepare import run
    from plugins.prepare.run import _here

    arguments = [*corpus(tmp_path / "corpus", 70), "--validate", "header"]
    arguments += ["--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments) == 0
    expected = contents(tmp_path)

    def dying(work: Any, utterances: Any, num_workers: int) -> Iterator[Any]:
        for number, outcomes in enumerate(_here(work, utterances, num_workers)):
            if number == 40:
                raise KeyboardInterrupt
            yield outcomes

    (tmp_path / "train.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_here", dying)
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments)
    assert len((tmp_path / ".train.jsonl.journal").read_bytes().splitlines()) == 40
    assert prepare(*arguments, "--executor", "ray", "--workers", "2") == 0
    assert contents(tmp_path) == expected

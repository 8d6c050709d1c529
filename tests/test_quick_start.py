"""The design document's Quick Start, sections 1 to 3, on the embedded corpus and the tiny model.

Its lines stand here as it has them; the lines that had to change are those of README's "Differences
from the design"."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import CORPUS, ROOT
from helpers.sft import run

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
DIFFERENCES = README.partition("## Differences from the design")[2].partition("\n## ")[0]
# What this machine needs and a user's does not: no GPU, no hub, one step.
HERE = ["--use_cpu", "true", "--torch_dtype", "float32", "--check_model", "false", "--max_steps", "1",
        "--report_to", "none", "--add_version", "false"]  # fmt: skip

PREPARE = {
    "ljspeech": "--dataset_type ljspeech --input_dir {lj} --output_file data/ljspeech_train.jsonl --split --validate",
    "vctk": "--dataset_type vctk --input_dir {vctk} --output_file data/vctk_train.jsonl --split",
    "custom": "--dataset_type custom --input_dir {custom} --csv_file {custom}/metadata.csv "
    '--output_file data/custom_train.jsonl --text_column "transcript" --audio_column "filename" '
    '--speaker_column "speaker_id" --split',
}

TRAIN = """
from swift.cli import train
from plugins.register import register_higgs_audio_all

register_higgs_audio_all()

train.main([
    "--model_type", "higgs-audio-v2-3b",
    "--dataset", "./data/ljspeech_train.jsonl",
    "--output_dir", "./output_higgs_audio",
    "--sft_type", "lora",
    "--lora_rank", "32",
    "--learning_rate", "5e-5",
    "--num_train_epochs", "3",
    "--trainer_type", "higgs_audio",
    "--data_collator", "higgs_audio"
])
"""

SPEAK = """
from plugins.inference import HiggsAudioGenerator
from swift.llm import get_model_tokenizer

model, tokenizer = get_model_tokenizer(
    model_type="higgs-audio-v2-3b",
    model_id_or_path="./output_higgs_audio/checkpoint-best"
)

generator = HiggsAudioGenerator(model, tokenizer)

result = generator.generate(
    text="Hello, this is Higgs Audio speaking.",
    scene_description="Indoor quiet"
)

result = generator.generate(
    text="Cloning this voice from reference.",
    reference_audio="path/to/reference.wav"
)
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LJSpeech, a VCTK and a CSV corpus, all of the embedded clips."""
    folder = tmp_path_factory.mktemp("quick_start")
    shutil.copytree(CORPUS, folder / "LJSpeech-1.1")
    lines = [
        line.split("|")
        for line in (CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines()
    ]
    rows = ["filename,transcript,speaker_id"]
    (folder / "custom").mkdir()
    for i, (clip, text, _) in enumerate(lines[:6]):
        samples, rate = soundfile.read(CORPUS / "wavs" / f"{clip}.flac")
        speaker = f"p{225 + i % 2}"
        name = f"{speaker}/{speaker}_{i:03d}"
        for tree in ("wav48", "txt"):
            (folder / "VCTK-Corpus" / tree / speaker).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "VCTK-Corpus" / "wav48" / f"{name}.wav", samples, rate)
        (folder / "VCTK-Corpus" / "txt" / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        soundfile.write(folder / "custom" / f"{clip}.wav", samples, rate)
        rows.append(f'{clip}.wav,"{text}",{speaker}')
    (folder / "custom" / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def changed(code: str, lines: dict[str, str]) -> str:
    """`code` with the given lines replaced; each replaced name must stand in README's table of
    differences."""
    for old, new in lines.items():
        assert old in code
        code = code.replace(old, new)
    return code


@pytest.mark.parametrize(("corpus", "num_rows"), [("ljspeech", 16), ("vctk", 6), ("custom", 6)])
def test_1_prepare(corpus: str, num_rows: int, workspace: Path) -> None:
    folders = {"lj": "LJSpeech-1.1", "vctk": "VCTK-Corpus", "custom": "custom"}
    command = shlex.split(PREPARE[corpus].format(**folders))
    done = run(sys.executable, str(ROOT / "prepare_dataset.py"), *command, cwd=workspace)
    assert done.returncode == 0, done.stderr
    files = [workspace / "data" / f"{corpus}_{part}.jsonl" for part in ("train", "val")]
    rows = [
        json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == num_rows
    assert all(Path(row["audios"][0]).is_file() for row in rows)


def test_2_train_with_the_script(workspace: Path, tiny: Path) -> None:
    done = run(
        str(ROOT / "train_higgs_audio.sh"), *HERE, cwd=workspace, PYTHON=sys.executable, MODEL=str(tiny),
        USE_HF="false", OUTPUT_DIR="./output_script",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    settings = json.loads(
        (workspace / "output_script" / "higgs_audio_settings.json").read_text(encoding="utf-8")
    )
    assert settings["audio_learning_rate"] == 1e-4
    assert (workspace / "output_script" / "checkpoint-1" / "adapter_model.safetensors").is_file()


def test_2_train_from_python(workspace: Path, tiny: Path) -> None:
    for name in ("from swift.cli import train", "training without `--model`"):
        assert name in DIFFERENCES
    code = changed(
        TRAIN,
        {
            "from swift.cli import train\n": "from plugins.train import main\n",
            "train.main([": f'main(["--model", {str(tiny)!r},',
            '"higgs_audio"\n])': f'"higgs_audio", *{HERE!r}])',
        },
    )
    done = run(sys.executable, "-c", code, cwd=workspace, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        workspace / "output_higgs_audio" / "checkpoint-1" / "adapter_model.safetensors"
    ).is_file()


def test_3_speak(workspace: Path) -> None:
    for name in ("get_model_tokenizer", "checkpoint-best"):
        assert name in DIFFERENCES
    loading = SPEAK[SPEAK.index("from swift.llm") : SPEAK.index("result =")]
    code = changed(
        SPEAK,
        {
            loading: 'generator = HiggsAudioGenerator.from_pretrained("./output_higgs_audio/checkpoint-1")\n',
            "path/to/reference.wav": "custom/DEMO-0001.wav",
        },
    )
    code += "result.save('cloned.wav')\nprint(result['audio'].shape, result['sample_rate'])\n"
    done = run(sys.executable, "-c", code, cwd=workspace, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert soundfile.info(workspace / "cloned.wav").samplerate == 24_000


def test_the_commands_of_readme_and_book_parse() -> None:
    """Every `prepare_dataset.py` and `higgs-audio` line there is one that our parsers take."""
    from plugins.cli import _parser as command_parser
    from plugins.prepare.flags import parse as parse_prepare

    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [
        shlex.split(line.partition(" | ")[0], comments=True)
        for line in lines
        if line.strip() and not line.startswith("#")
    ]
    prepared = [
        parse_prepare(words[2:])
        for words in commands
        if words[:2] == ["python", "prepare_dataset.py"]
    ]
    ours = [
        words[1:]
        for words in commands
        if words[0] == "higgs-audio" and words[1] not in {"sft", "--help"}
    ]
    assert len(prepared) >= 4
    assert {words[0] for words in ours} == {
        "speak",
        "evaluate",
        "app",
        "export",
        "convert",
        "doctor",
    }
    for words in ours:
        command_parser().parse_args(words)
    for words in commands:
        for name in words:
            if name.startswith(("configs/", "./train", "plugins/")):
                assert (ROOT / name).is_file(), name
    assert os.access(ROOT / "train_higgs_audio.sh", os.X_OK)


def test_the_front_page_fits_an_evening() -> None:
    assert len(README.encode()) <= 10_000
    assert len(README.splitlines()) <= 150
    assert max(map(len, README.splitlines())) <= 120

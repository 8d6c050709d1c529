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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from conftest import CORPUS, ROOT, corpus_texts
from helpers.sft import run

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")
DIFFERENCES = README.partition("## Differences from the design")[2].partition("\n## ")[0]
# What this machine needs and a user's does not: no GPU, no hub, one step.
HERE = [
    *("--use_cpu", "true", "--torch_dtype", "float32", "--max_steps", "1"),
    *("--check_model", "false", "--report_to", "none", "--add_version", "false"),
]

# Section 1.
PREPARE = {
    "ljspeech": "--dataset_type ljspeech --input_dir {lj} "
    "--output_file data/ljspeech_train.jsonl --split --validate",
    "vctk": "--dataset_type vctk --input_dir {vctk} --output_file data/vctk_train.jsonl --split",
    "custom": "--dataset_type custom --input_dir {custom} --csv_file {custom}/metadata.csv "
    '--output_file data/custom_train.jsonl --text_column "transcript" --audio_column "filename" '
    '--speaker_column "speaker_id" --split',
}

# Section 2.
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

# Section 3. The model's folder is that of the training above.
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
    rows = ["filename,transcript,speaker_id"]
    (folder / "custom").mkdir()
    for i, (clip, text) in enumerate(corpus_texts()[:6]):
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
    lines = []
    for part in ("train", "val"):
        file = workspace / "data" / f"{corpus}_{part}.jsonl"
        lines += file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == num_rows
    for line in lines:
        assert Path(json.loads(line)["audios"][0]).is_file()


def test_2_train_with_the_script(workspace: Path, tiny: Path) -> None:
    env = {"PYTHON": sys.executable, "MODEL": str(tiny), "USE_HF": "false"}
    env["OUTPUT_DIR"] = "./output_script"
    done = run(str(ROOT / "train_higgs_audio.sh"), *HERE, cwd=workspace, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    output = workspace / "output_script"
    settings = json.loads((output / "higgs_audio_settings.json").read_text(encoding="utf-8"))
    assert settings["audio_learning_rate"] == 1e-4
    assert (output / "checkpoint-1" / "adapter_model.safetensors").is_file()


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
    checkpoint = workspace / "output_higgs_audio" / "checkpoint-1"
    assert (checkpoint / "adapter_model.safetensors").is_file()


def test_3_speak(workspace: Path) -> None:
    for name in ("get_model_tokenizer", "checkpoint-best"):
        assert name in DIFFERENCES
    loading = SPEAK[SPEAK.index("from swift.llm") : SPEAK.index("result =")]
    checkpoint = "./output_higgs_audio/checkpoint-1"  # of the test before
    ours = f"generator = HiggsAudioGenerator.from_pretrained({checkpoint!r})\n"
    code = changed(SPEAK, {loading: ours, "path/to/reference.wav": "custom/DEMO-0001.wav"})
    code += "result.save('cloned.wav')\nprint(result['audio'].shape, result['sample_rate'])\n"
    done = run(sys.executable, "-c", code, cwd=workspace, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert soundfile.info(workspace / "cloned.wav").samplerate == 24_000


def printed_commands() -> Iterator[list[str]]:
    """The words of each command in README and the book, up to a pipe."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(" | ")[0], comments=True)
                if words:
                    yield words


def test_the_commands_of_readme_and_book_parse() -> None:
    """Every `prepare_dataset.py` and `higgs-audio` line there is one that our parsers take."""
    from plugins.cli import _parser as command_parser
    from plugins.prepare.flags import parse as parse_prepare

    parsed: Counter[str] = Counter()
    for words in printed_commands():
        if words[:2] in (["python", "prepare_dataset.py"], ["higgs-audio", "prepare"]):
            parse_prepare(words[2:])
            parsed["prepare"] += 1
        # The flags of these two are MS-SWIFT's: tests/test_configs.py.
        elif words[0] == "higgs-audio" and words[1] not in {"sft", "rlhf", "--help"}:
            command_parser().parse_args(words[1:])
            parsed[words[1]] += 1
        for name in words:
            if name.startswith(("configs/", "./train", "plugins/")):
                assert (ROOT / name).is_file(), name
    assert parsed.pop("prepare") >= 4
    commands = {"speak", "evaluate", "app", "export", "convert", "doctor", "new-voice", "serve"}
    assert set(parsed) == commands | {"preferences"}
    assert os.access(ROOT / "train_higgs_audio.sh", os.X_OK)

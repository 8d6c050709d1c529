"""Every YAML file gives MS-SWIFT arguments, and its values agree with the code and the seed
document."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import swift
import yaml
from conftest import ROOT, corpus_rows, write_jsonl
from helpers.memory import CONFIG_3B, CONFIG_7B
from swift.arguments import RLHFArguments, SftArguments
from swift.cli.main import parse_yaml_args
from swift.utils import parse_args

from plugins.settings import KNOBS, HiggsAudioSettings, check_knob_names
from plugins.training.preflight.memory import GIB, estimate, fits
from plugins.training.preflight.plan import TrainingPlan

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TRAINING = [path for path in CONFIGS if path.name != "demo.yaml"]
PRESETS = Path(swift.__file__).parent / "config"
SIZES = {"3": CONFIG_3B, "7": CONFIG_7B}


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def header(path: Path) -> list[str]:
    """The comment at the top, without its marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            lines.append(line.lstrip("# "))
    return lines


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_parses_to_ms_swift_arguments(
    path: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MS-SWIFT's own YAML reader and parser, with the tiny model in place of the published
    one."""
    monkeypatch.chdir(tmp_path)  # from any folder: they name no file of this repository
    monkeypatch.setenv("SWIFT_CONFIG_FILE", "")  # which the reader sets: undone after the test
    argv = [str(path)]
    parse_yaml_args(argv)
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(1))
    here = ["--model", str(tiny), "--dataset", str(dataset)]
    here += ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    # DeepSpeed is optional and not installed by default, but MS-SWIFT must know the name.
    if "deepspeed" in load(path):
        at = argv.index("--deepspeed")
        assert (PRESETS / f"{argv[at + 1]}.json").is_file()
        del argv[at : at + 2]
    takes = RLHFArguments if "rlhf_type" in load(path) else SftArguments
    args, unknown = parse_args(takes, [*argv, *here])
    assert unknown == []
    assert args.model_type == load(path)["model_type"]
    assert args.strict is True
    # The start-up hook of the installation brings it, and `higgs-audio sft` by itself.
    assert "external_plugins" not in load(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_opens_with_purpose_needs_launch_and_override(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()[:6]
    assert lines[0].startswith("# ")
    head = "\n".join(lines)
    assert "Needs" in head
    assert "Trade-off" in head or path.name in {"demo.yaml", "lora_7b.yaml"}
    command = "rlhf" if "rlhf_type" in load(path) else "sft"
    assert re.search(rf"Launch.*swift {command} configs/{path.name}", head)
    assert re.search(rf"Override.*swift {command} configs/{path.name} --", head)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.name)
def test_the_memory_in_the_header_is_what_the_doctor_estimates(path: Path) -> None:
    """Of the launch line in the header; for 3B and for 7B, and of the machine's memory where some
    is needed."""
    head = "\n".join(header(path))
    launch = re.search(r"Launch:\s+(?:NPROC_PER_NODE=(\d+) )?swift", head)
    assert launch is not None
    plan = TrainingPlan.from_config(load(path), {"NPROC_PER_NODE": launch[1] or "1"})
    # "3B 14 GiB", "7B 20 GiB on the GPU and 90 GiB"; what follows tells of other choices.
    memory = r"\b([37])B (\d+) GiB(?: on the\s+GPU)?(?: and (\d+) GiB)?"
    claims = re.findall(memory, head.partition("Trade-off")[0])
    sizes = {size for size, _, _ in claims}
    assert sizes == ({"7"} if "7b" in path.name else {"3", "7"})
    for size, on_device, on_host in claims:
        needed = estimate(SIZES[size], plan)
        assert on_device == f"{needed.total / GIB:.0f}"
        assert int(on_host or 0) == round(needed.host / GIB)
        # A card for this size by name, or one for all of the file.
        named = re.search(rf"{size}B [^,.:]*\(cards? with (\d+)\)", head)
        card = named or re.search(r"with (\d+) GB", head)
        assert card is not None
        assert fits(needed, float(card[1])), f"{size}B does not fit {card[0]}"
    assert "stimated" in head, "until a GPU has measured it"


@pytest.mark.parametrize("name", ["README.md", "docs/recipe.md", "docs/train.md"])
def test_tables_of_memory_say_that_it_is_estimated(name: str) -> None:
    paragraphs = (ROOT / name).read_text(encoding="utf-8").split("\n\n")
    tables = [text for text in paragraphs if text.startswith("|") and "GiB" in text]
    tables = [text for text in tables if "configs/" in text]
    assert tables
    for text in tables:
        assert "estimated" in text.splitlines()[0]


def test_fsdp2_differs_from_the_preset_in_what_it_saves_only() -> None:
    """Shards are neither safetensors nor a model that can be loaded: with the preset nothing of a
    run can speak."""
    preset = json.loads((PRESETS / "fsdp2.json").read_text(encoding="utf-8"))
    ours = load(ROOT / "configs" / "full_3b_fsdp2.yaml")["fsdp"]
    preset["fsdp_config"]["state_dict_type"] = "FULL_STATE_DICT"
    for name in list(preset):
        if name.startswith("_"):  # JSON's way to comment
            del preset[name]
    assert ours == preset


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_settings_exist_and_agree_with_their_defaults(path: Path) -> None:
    """Only learning rates differ from the code: the code's default is the rate of the rest of the
    model. The demo's base has a codec of its own, whose codebooks weigh as it was trained."""
    kwargs = load(path)["model_kwargs"]
    check_knob_names(kwargs, path.name)
    for name, value in kwargs.items():
        own = {"audio_codebook_weights"} if path.name == "demo.yaml" else set()
        if name not in {"audio_learning_rate", *own}:
            assert value == getattr(HiggsAudioSettings(), name), name


def test_the_book_lists_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    table = page.partition("## Settings")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\|", table, re.MULTILINE))
    defaults = {}
    for name in KNOBS:
        value = getattr(HiggsAudioSettings(), name)
        defaults[name] = "" if value in (None, ()) else str(value).lower()
    assert documented == defaults


def test_preferences_are_learnt_slowly_from_what_is_fine_tuned() -> None:
    """The adapter and the rows of a step are those of `lora_3b.yaml`; no rate is as high."""
    ours, theirs = (load(ROOT / "configs" / f"{name}.yaml") for name in ("dpo_lora_3b", "lora_3b"))
    for name in ("model", "tuner_type", "target_modules", "lora_rank", "lora_alpha", "max_length"):
        assert ours[name] == theirs[name], name
    assert 2 * ours["per_device_train_batch_size"] == theirs["per_device_train_batch_size"]
    assert ours["learning_rate"] <= theirs["learning_rate"] / 10
    assert ours["model_kwargs"]["audio_learning_rate"] <= theirs["learning_rate"] / 10


def test_the_launch_script_and_the_lora_config_agree() -> None:
    """Both carry the seed document's recommended settings."""
    script = (ROOT / "train_higgs_audio.sh").read_text(encoding="utf-8")
    defaults = dict(re.findall(r'^([A-Z_]+)="\$\{\1:-([^}]*)\}"', script, re.MULTILINE))
    config = load(ROOT / "configs" / "lora_3b.yaml")
    # The script's name, and what stands in the YAML file for it.
    pairs = {
        "LEARNING_RATE": config["learning_rate"],
        "AUDIO_LEARNING_RATE": config["model_kwargs"]["audio_learning_rate"],
        "BATCH_SIZE": config["per_device_train_batch_size"],
        "GRADIENT_ACCUMULATION": config["gradient_accumulation_steps"],
        "MAX_LENGTH": config["max_length"],
        "MAX_AUDIO_LENGTH": config["model_kwargs"]["max_audio_length"],
        "NUM_EPOCHS": config["num_train_epochs"],
        "LORA_RANK": config["lora_rank"],
        "LORA_ALPHA": config["lora_alpha"],
    }
    for name, value in pairs.items():
        assert float(defaults[name]) == float(value), name

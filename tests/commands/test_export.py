"""`higgs-audio export`: the folder speaks as base and LoRA do, refers to nothing outside, and is
what vLLM-Omni reads.

vLLM-Omni itself cannot run here (no GPU): its names and shapes are held against transformers' own
model, its prompts and its way to the codec are walked with transformers' classes."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import CORPUS, GOLDEN, ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from plugins.audio.codec import Codec
from plugins.commands.export import export, model_card, run
from plugins.commands.vllm_omni import check, launch_line, remarks, tensors
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.model.card import BASE_3B
from plugins.model.config import HiggsAudioV2Config
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.voices import request

VOICE = str(CORPUS / "wavs" / "DEMO-0002.flac")
REQUESTS: list[dict[str, Any]] = [
    {},
    {"reference_audio": VOICE, "reference_text": "Glue the sheet."},
]


@pytest.fixture(scope="module")
def exported(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "my-voice"
    export(None, folder, adapters=str(lora))
    return folder


@pytest.fixture
def edited(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the exported folder with other weights, of the model or of the codec."""

    def edit(change: Callable[[dict[str, Any]], Any], part: str = ".") -> Path:
        folder = shutil.copytree(exported, tmp_path / "edited")
        weights = load_file(folder / part / "model.safetensors")
        change(weights)
        save_file(weights, folder / part / "model.safetensors", metadata={"format": "pt"})
        return folder

    return edit


def spoken(folder: Path, adapters: Path | None = None) -> list[torch.Tensor]:
    generator = HiggsAudioGenerator.from_pretrained(
        str(folder), adapters=str(adapters) if adapters else None
    )
    greedy = Sampling(temperature=0)
    codes = []
    for voice in REQUESTS:
        speech = generator.generate("Hello there.", sampling=greedy, max_audio_s=1.0, **voice)
        codes.append(speech.codes)
    return codes


def test_it_speaks_as_base_and_adapters_do(exported: Path, tiny: Path, lora: Path) -> None:
    for merged, apart, base in zip(spoken(exported), spoken(tiny, lora), spoken(tiny), strict=True):
        assert torch.equal(merged, apart)
        assert not torch.equal(merged, base), "adapters that change nothing prove nothing"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_is_that_of_swift_export(
    dtype: str, lora: Path, tiny: Path, tmp_path: Path
) -> None:
    """To the bit: peft's own `safe_merge` differs in bf16."""
    from swift.pipelines import export_main

    arguments = ["--adapters", str(lora), "--merge_lora", "true", "--torch_dtype", dtype]
    export_main([*arguments, "--output_dir", str(tmp_path / "merged")])
    export(None, tmp_path / "new", adapters=str(lora), dtype=dtype)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "new"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype == getattr(torch, dtype)
        assert torch.equal(tensor, ours[name]), name
    before = load_file(tiny / "model.safetensors")
    before = {name: tensor.to(getattr(torch, dtype)) for name, tensor in before.items()}
    assert torch.equal(ours["text_lm_head.weight"], before["text_lm_head.weight"])
    for module in ("layers.0.audio_mlp.up_proj", "embed_audio_tokens.embed_audio_tokens"):
        name = f"model.{module}.weight"
        assert not torch.equal(ours[name], before[name]), name
    assert not torch.equal(ours["audio_lm_head.weight"], before["audio_lm_head.weight"])


def test_nothing_in_it_is_of_this_machine(exported: Path, lora: Path, tiny: Path) -> None:
    for file in exported.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for path in (exported.parent, lora.parent, tiny.parent, ROOT, Path.home()):
                assert str(path).encode() not in content, f"{file.name}: {path}"
    trained = json.loads((lora / "higgs_audio_settings.json").read_text(encoding="utf-8"))
    kept = json.loads((exported / "higgs_audio_settings.json").read_text(encoding="utf-8"))
    assert kept == {**trained, "codec": None, "audio_root": None}
    suffixes = {file.suffix for file in exported.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".jinja", ".md", ".safetensors"}


def test_paths_and_code_of_the_base_are_left_behind(tiny: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "evil.py").write_text("raise SystemExit\n", encoding="utf-8")
    for file in (
        base / "config.json",
        base / "tokenizer_config.json",
        base / "audio_tokenizer" / "config.json",
    ):
        values = json.loads(file.read_text(encoding="utf-8"))
        values |= {
            "auto_map": {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None]},
            "made_at": str(tmp_path),
        }
        file.write_text(json.dumps(values), encoding="utf-8")
    HiggsAudioSettings(codec="someone/codec", audio_root="clips", raw_prompt=True).save(base)
    export(str(base), tmp_path / "new", codec=str(tiny / "audio_tokenizer"))
    generator = HiggsAudioGenerator.from_pretrained(str(tmp_path / "new"))
    assert generator.codec.path == str(tmp_path / "new" / "audio_tokenizer")
    assert generator.settings == HiggsAudioSettings(raw_prompt=True)
    for file in (tmp_path / "new").rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "auto_map" not in text
        assert str(tmp_path) not in text
    assert not list((tmp_path / "new").rglob("*.py"))


def test_a_moved_folder_works(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(exported, tmp_path / "elsewhere" / "model")
    generator = HiggsAudioGenerator.from_pretrained(str(moved))
    assert generator.codec.path == str(moved / "audio_tokenizer")
    assert torch.equal(spoken(moved)[0], spoken(exported)[0])
    monkeypatch.chdir(moved)
    codec = AutoProcessor.from_pretrained(str(moved)).audio_tokenizer
    codes = torch.arange(80).reshape(1, 8, 10)
    ours = torch.from_numpy(generator.codec.decode(codes[0]))
    torch.testing.assert_close(
        codec.decode(codes).audio_values[0, 0].clamp(-1, 1), ours, atol=0, rtol=0
    )


def test_a_server_finds_the_codec_and_writes_our_prompts(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of vLLM-Omni that need no GPU (sources: plugins/commands/vllm_omni.py)."""
    fields = AutoConfig.from_pretrained(exported).to_dict()
    assert not fields["audio_tokenizer_id"], (
        "would be taken for a codec elsewhere; absent, for Boson's"
    )
    assert (exported / fields["audio_tokenizer_subdir"] / "model.safetensors").is_file()

    monkeypatch.chdir(exported)
    system = {"type": "text", "text": "Generate audio following instruction."}
    user = {"type": "text", "text": "Hello there."}
    conversation = [
        {"role": "system", "content": [system]},
        {"role": "user", "content": [user]},
    ]
    processor = AutoProcessor.from_pretrained(str(exported))
    inputs = processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        sampling_rate=24000,
        return_tensors="pt",
    )
    generator = HiggsAudioGenerator.from_pretrained(str(exported))
    ours = generator.speaker.prompt(request("Hello there.", None, [], generator.settings))
    assert inputs["input_ids"][0].tolist() == ours.input_ids


@pytest.mark.parametrize(
    "config", [None, HiggsAudioV2Config(codebook_size=1026)], ids=["tiny", "published shape"]
)
def test_names_and_shapes_are_those_of_the_model(
    config: HiggsAudioV2Config | None, tiny: Path
) -> None:
    """The list is written after vLLM-Omni's loader; transformers' own class must have nothing
    else."""
    config = config or HiggsAudioV2Config.from_pretrained(tiny)
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert tensors(config) == shapes


def rename(weights: dict[str, Any], old: str, new: str) -> None:
    weights[new] = weights.pop(old)


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: weights.pop(name)


def with_zeros(name: str, *shape: int) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: weights.update({name: torch.zeros(shape)})


def misnamed(weights: dict[str, Any]) -> None:
    rename(weights, "model.norm.weight", "model.final_norm.weight")


NORM = "weights: 'model.norm.weight' is missing (there is 'model.final_norm.weight', which is not"
TRANSPOSED = "acoustic_decoder.block.2.conv_t1.weight"
CODEBOOK = "quantizer.quantizers.7.codebook.embed"


@pytest.mark.parametrize(
    ("change", "part", "message"),
    [
        (misnamed, ".", f"vLLM-Omni: {NORM}"),
        (
            without("text_lm_head.weight"),
            ".",
            "weights: 'text_lm_head.weight' is missing; export again",
        ),
        (
            with_zeros("audio_lm_head.weight", 8192, 128),
            ".",
            "'audio_lm_head.weight' has shape [8192, 128], config.json says [8208, 128]",
        ),
        (
            with_zeros("audio_tower.conv1.bias", 4),
            ".",
            "'audio_tower.conv1.bias' is not read: vLLM-Omni knows no such weight",
        ),
        (
            without(TRANSPOSED),
            "audio_tokenizer",
            f"audio_tokenizer: weights: '{TRANSPOSED}' is missing",
        ),
        (
            with_zeros(CODEBOOK, 1024, 8),
            "audio_tokenizer",
            f"'{CODEBOOK}' has shape [1024, 8], config.json says [1024, 16]",
        ),
    ],
    ids=["renamed", "missing", "shape", "surplus", "codec missing", "codec shape"],
)
def test_a_weight_that_vllm_omni_would_not_load_is_named(
    edited: Callable[..., Path], change: Callable[..., Any], part: str, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check(edited(change, part))


def test_what_else_hinders_vllm_omni_is_named(exported: Path, tmp_path: Path) -> None:
    check(exported)
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "audio_tokenizer" / "model.pth").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"audio_tokenizer: files: 'model\.pth' is not model\.safetensors"
    ):
        check(folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del values["audio_tokenizer_id"]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: audio_tokenizer_id is not ''"):
        check(folder)


def test_nothing_is_overwritten_or_left_half_written(
    tiny: Path, lora: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already; name a new folder"):
        export(str(tiny), tmp_path / "there")
    with pytest.raises(
        UserError, match="options: model is missing; give --model, --adapters or both"
    ):
        export(None, tmp_path / "new")

    def broken(change: Callable[[dict[str, Any]], Any]) -> str:
        folder = shutil.copytree(lora, tmp_path / "broken", dirs_exist_ok=True)
        weights = load_file(lora / "adapter_model.safetensors")
        change(weights)
        save_file(weights, folder / "adapter_model.safetensors")
        return str(folder)

    names = sorted(load_file(lora / "adapter_model.safetensors"))
    first = next(name for name in names if "lora_A" in name)
    whole = next(name for name in names if "embed_audio_tokens" in name)
    elsewhere = first.replace("layers.", "layers.7")
    faults: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (without(first), r"does not belong to both \(1 such weights\)"),
        (without(whole), f"cannot be loaded .*{re.escape(whole)}"),
        (lambda weights: rename(weights, first, elsewhere), r"to both \(2 such weights\)"),
        (
            lambda weights: weights[first].fill_(float("nan")),
            "is not finite in torch.float32: the adapters are broken",
        ),
        (with_zeros(first, 8, 3), "cannot be loaded .*size mismatch"),
    ]
    for change, message in faults:
        with pytest.raises(UserError, match=message):
            export(None, tmp_path / "new", adapters=broken(change))
    folder = Path(broken(dict.copy))
    # A pickle would be read by peft.
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapters: 'adapter_model\.safetensors' not found"):
        export(None, tmp_path / "new", adapters=str(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "there"]


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [("bfloat16", None, "bfloat16"), ("float32", "bfloat16", "bfloat16")],
)
def test_the_dtype_is_that_of_the_base_unless_asked(
    stored: str, asked: str | None, written: str, tiny: Path, tmp_path: Path
) -> None:
    """By the weights: config.json says float32 in both."""
    base = shutil.copytree(tiny, tmp_path / "base")
    weights = {
        name: tensor.to(getattr(torch, stored))
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    export(str(base), tmp_path / "new", dtype=asked)
    after = load_file(tmp_path / "new" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in after.values()} == {f"torch.{written}"}
    for name, tensor in after.items():
        assert torch.equal(tensor, weights[name].to(tensor.dtype))
    config = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == written


def test_original_model_and_codec_become_a_native_folder(original: Path, tmp_path: Path) -> None:
    export(str(original), tmp_path / "new", codec=str(GOLDEN / "codec"))
    head = load_file(original / "model.safetensors")["audio_decoder_proj.text_lm_head.weight"]
    assert torch.equal(
        load_file(tmp_path / "new" / "model.safetensors")["text_lm_head.weight"], head
    )
    sampling = json.loads((tmp_path / "new" / "generation_config.json").read_text(encoding="utf-8"))
    assert (sampling["top_k"], sampling["ras_win_len"]) == (50, 7)
    expected = np.load(GOLDEN / "codec" / "expected.npz")
    codes = Codec(str(tmp_path / "new" / "audio_tokenizer")).encode(expected["waveform"])
    assert torch.equal(codes, torch.from_numpy(expected["codes"]))
    assert not list((tmp_path / "new").rglob("*.pth"))


def test_the_command_says_what_it_wrote_and_how_to_serve_it(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my voice"
    assert (
        run(Namespace(model=str(tiny), adapters=None, output=output, codec=None, dtype=None)) == 0
    )
    printed = capsys.readouterr().out
    assert "MB  audio_tokenizer/model.safetensors" in printed
    assert "note: vLLM-Omni stops at token 128009, taking it for <|eot_id|>" in printed, (
        "the tiny tokenizer has others"
    )
    assert f"serve it: {launch_line(str(output), 'my voice')}" in printed
    assert f"cd '{output}' && HIGGS_AUDIO_TOKENIZER_PATH=\"$PWD\" vllm serve" in printed


def test_the_published_tokenizer_has_the_ids_that_vllm_omni_stops_at(llama_tokenizer: Any) -> None:
    assert remarks(llama_tokenizer) == []


def test_the_model_card_is_one_of_the_hub(exported: Path) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "text-to-speech"
    assert front["license"] == "other"
    assert "base_model" not in front, "nobody knows the tiny model's name"
    assert "only with the consent of the person" in text
    assert "higgs-audio speak --model ." in text
    known = model_card("x", base=BASE_3B, adapters=True, parameters=5_770_000_000, dtype="bfloat16")
    assert yaml.safe_load(known.split("---\n")[1])["base_model"] == BASE_3B
    assert "with LoRA, merged in.\n5.77 billion parameters, bfloat16" in known

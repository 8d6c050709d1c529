"""Imports point down (DESIGN, the house), the maths imports torch only, and the package itself
imports nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = (
    "errors installation delay_pattern loss tokens settings prompt_text speech_text untrusted signals launcher",
    "audio hub code_cache codec stream_decoder sampling cuda_graphs speech corpora prompt collator model_config"
    " audio_tower original_codec",
    "rows row_clips row_sources voices dataset_registration packs template dual_ffn modeling decode_step decoding"
    " weights original_format checkpoint relaunch",
    "model_registration tuning preflight checkpoints resume disk_guard guards meters samples run_facts model_card"
    " training_card trainer loading inference swift_inference evaluation",
    "register train cli __main__ commands prepare demo",
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules.split()}
FILES = sorted((ROOT / "plugins").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Top-level modules, those of `plugins` as `plugins.<module>`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports fail under --external_plugins"
            module = node.module or ""
            names |= (
                {f"plugins.{alias.name}" for alias in node.names if alias.name in LEVEL}
                if module == "plugins"
                else {module}
            )
    return {
        ".".join(name.split(".")[:2]) if name.startswith("plugins") else name.split(".")[0]
        for name in names
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    module = path.relative_to(ROOT / "plugins").parts[0].removesuffix(".py")
    if module == "__init__":
        return
    for name in imported_modules(path):
        if name.startswith("plugins."):
            other = name.removeprefix("plugins.")
            assert LEVEL[other] <= LEVEL[module], (
                f"{module} (L{LEVEL[module]}) imports {other} (L{LEVEL[other]})"
            )


def test_the_maths_imports_torch_only() -> None:
    for module in ("delay_pattern", "loss"):
        outside = imported_modules(ROOT / "plugins" / f"{module}.py") - set(sys.stdlib_module_names)
        assert outside <= {"torch", "plugins.delay_pattern"}


def test_no_module_is_named_like_a_third_party_package() -> None:
    """MS-SWIFT puts the folder of an external plugin first on sys.path: `plugins/datasets.py` would
    shadow datasets."""
    names = {path.stem for path in (ROOT / "plugins").glob("*.py")}
    assert not names & {
        "datasets",
        "tokenizers",
        "evaluate",
        "types",
        "transformers",
        "torch",
        "swift",
        "peft",
        "trl",
    }


def test_importing_the_package_is_free() -> None:
    code = "import sys, plugins; sys.exit(bool({'torch', 'swift', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["sft", "--help"],
        ["speak", "--help"],
        ["convert", "--help"],
        ["doctor", "--help"],
        ["export", "--help"],
        ["app", "--help"],
        ["evaluate", "--help"],
        ["--version"],
    ],
)
def test_help_starts_fast(command: list[str]) -> None:
    code = f"import sys\nfrom plugins.cli import main\ntry:\n    main({command})\n"
    code += "except SystemExit as end:\n    assert not end.code\n"
    code += "sys.exit(bool({'torch', 'swift', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode
        == 0
    )

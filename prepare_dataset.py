#!/usr/bin/env python3
"""Turn a speech corpus into the JSONL rows that Higgs-Audio V2 is fine-tuned on.

    python prepare_dataset.py --dataset_type ljspeech --input_dir LJSpeech-1.1 \
        --output_file data/ljspeech_train.jsonl --split --validate

``--help`` lists every flag. Needs neither torch nor MS-SWIFT. `higgs-audio prepare` is the same.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def _wrong_python(lack):
    """The line for whoever started this with a Python that cannot run the package."""
    ours = ROOT / ".venv" / "bin" / "python"
    if ours.is_file() and ours.parent != Path(sys.executable).parent:
        remedy = f"run: {ours} {__file__} ..., or first: source {ours.parent / 'activate'}"
    elif ours.is_file():
        remedy = f"run: {sys.executable} -m pip install -e {ROOT}"
    else:
        remedy = f"run: make -C {ROOT} install, then: source {ours.parent / 'activate'}"
    return f"error: python: {sys.executable} {lack}; {remedy}"


if sys.version_info < (3, 10):  # noqa: UP036 (whatever Python a shell finds starts this file)
    sys.exit(_wrong_python(f"is Python {sys.version.split()[0]}, and 3.10 is needed"))
# Runs from a bare checkout, installed or not.
sys.path.insert(0, str(ROOT))
try:
    from plugins.prepare.cli import main
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] == "plugins":
        raise
    sys.exit(_wrong_python(f"has no package {error.name}"))

if __name__ == "__main__":
    sys.exit(main())

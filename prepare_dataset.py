#!/usr/bin/env python3
"""Turn a speech corpus into the JSONL rows that Higgs-Audio V2 is fine-tuned on.

    python prepare_dataset.py --dataset_type ljspeech --input_dir LJSpeech-1.1 \
        --output_file data/ljspeech_train.jsonl --split --validate

``--help`` lists every flag. Needs neither torch nor MS-SWIFT.
"""

import sys
from pathlib import Path

# Runs from a bare checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from plugins.prepare.cli import main

if __name__ == "__main__":
    sys.exit(main())

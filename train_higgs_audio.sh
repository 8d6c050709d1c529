#!/usr/bin/env bash
# LoRA fine-tuning of Higgs-Audio V2 with the recommended settings.
#
# Usage:   ./train_higgs_audio.sh [any flag of `higgs-audio sft`, the last one wins]
#          DATASET=data/vctk_train.jsonl LORA_RANK=64 ./train_higgs_audio.sh
#          NPROC_PER_NODE=8 ./train_higgs_audio.sh --deepspeed zero2
#          NNODES=2 NODE_RANK=0 MASTER_ADDR=host0 MASTER_PORT=29500 NPROC_PER_NODE=8 ./train_higgs_audio.sh
#          torchrun --nproc_per_node 8 train_higgs_audio.sh [flags]
#          deepspeed --num_gpus 8 train_higgs_audio.sh --deepspeed zero2 [flags]
#
# bash and Python both take this file. The next line is a no-op for bash; for Python, which those two launchers start it
# with, it opens a string that ends below the last line of bash, where Python hands each process over to bash. So the
# defaults stand once. Between the two no escapes but a line's end.
""":"
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHON="${PYTHON:-$([ -x "$ROOT/.venv/bin/python" ] && echo "$ROOT/.venv/bin/python" || echo python3)}"

MODEL_TYPE="${MODEL_TYPE:-higgs-audio-v2-3b}"
MODEL="${MODEL:-bosonai/higgs-audio-v2-generation-3B-base}"
USE_HF="${USE_HF:-true}"                      # false: download from ModelScope
DATASET="${DATASET:-./data/ljspeech_train.jsonl}"
OUTPUT_DIR="${OUTPUT_DIR:-./output_higgs_audio}"

LEARNING_RATE="${LEARNING_RATE:-5e-5}"
AUDIO_LEARNING_RATE="${AUDIO_LEARNING_RATE:-1e-4}"   # audio FFN, norms, embedding, head
BATCH_SIZE="${BATCH_SIZE:-4}"
GRADIENT_ACCUMULATION="${GRADIENT_ACCUMULATION:-4}"
MAX_LENGTH="${MAX_LENGTH:-2048}"              # text tokens + delayed frames
MAX_AUDIO_LENGTH="${MAX_AUDIO_LENGTH:-1024}"  # codec frames, 25 per second
NUM_EPOCHS="${NUM_EPOCHS:-3}"
LORA_RANK="${LORA_RANK:-32}"
LORA_ALPHA="${LORA_ALPHA:-64}"

export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# Under a launcher this is one of its processes; else `sft` starts NPROC_PER_NODE of them as MS-SWIFT does, or one.
[ -n "${LOCAL_RANK:-}" ] && ENTRY=("$ROOT/plugins/train.py") || ENTRY=(-m plugins sft)

exec "$PYTHON" "${ENTRY[@]}" \
    --model_type "$MODEL_TYPE" \
    --model "$MODEL" \
    --use_hf "$USE_HF" \
    --dataset "$DATASET" \
    --output_dir "$OUTPUT_DIR" \
    --tuner_type lora \
    --target_modules all-linear \
    --lora_rank "$LORA_RANK" \
    --lora_alpha "$LORA_ALPHA" \
    --torch_dtype bfloat16 \
    --gradient_checkpointing true \
    --learning_rate "$LEARNING_RATE" \
    --audio_learning_rate "$AUDIO_LEARNING_RATE" \
    --per_device_train_batch_size "$BATCH_SIZE" \
    --gradient_accumulation_steps "$GRADIENT_ACCUMULATION" \
    --max_length "$MAX_LENGTH" \
    --max_audio_length "$MAX_AUDIO_LENGTH" \
    --num_train_epochs "$NUM_EPOCHS" \
    --warmup_ratio 0.05 \
    --strict true \
    --save_total_limit 2 \
    --report_to tensorboard \
    "$@"
"""
import os
import sys

os.environ["PYTHON"] = sys.executable  # the launcher's interpreter, not the one that bash would choose
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])

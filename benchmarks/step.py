"""A training step against transformers' own, forward and backward: `python -m benchmarks.step`.

P2a  heads on labelled rows only   the real vocabulary of 128256 over a small body, 10 s clips
P2b  the same                      one layer of the 3B model at full width, a 28th of its
                                   vocabularies: heads and body in the proportion of all 28 layers
P3   peak memory of P2a            1026 positions; a process per arm, above what it takes before the
                                   model exists
P4   index-once layer              the DualFFN layer; half the 3B model's width, S = 1024,
                                   text : audio 1 : 3, without padding and with 30 %; and a dense
                                   Llama layer of this width: one FFN for all rows

Everything is fp32 on torch's default number of threads. `limit` is the body without heads in P2,
and in P4 the dense layer, over rows without padding: at 0 % no DualFFN layer can be faster than
that. In P3 it is weights and gradients. What is compared is first asserted to be equal: losses and
gradients, hidden states and gradients."""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HiggsAudioV2ForConditionalGeneration as Native
from transformers.models.higgs_audio_v2 import modeling_higgs_audio_v2 as native
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer

from benchmarks.measure import (
    ROOT,
    Arm,
    Comparison,
    Rates,
    alternate,
    compare,
    line_of,
    machine,
    table,
    write_json,
)
from benchmarks.samples import make_sample, tokens_of
from plugins.collator import collate
from plugins.model.config import HiggsAudioV2Config
from plugins.model.dual_ffn import Routes, use_index_once_layers
from plugins.model.loss import LossWeights, combine
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

NUM_FRAMES, NUM_TEXT = 250, 83  # of a clip of 10 s: 342 positions with the 9 of stream and delay
PADDING = 0.3
MEMORY_ROUNDS = 2  # processes per arm: bytes do not vary as seconds do

STEP = [
    Comparison("P2a", "ours, large head", "transformers, large head", 5, limit="body, large head"),
    Comparison(
        "P2b",
        "ours, 3B proportion",
        "transformers, 3B proportion",
        1.10,
        limit="body, 3B proportion",
    ),
]
MEMORY = [
    Comparison(
        "P3",
        "ours, positions per GiB",
        "transformers, positions per GiB",
        4,
        limit="weights, positions per GiB",
    )
]
LAYER = [
    Comparison("P4", "ours, 0 %", "transformers, 0 %", 1.10, limit="dense Llama, 0 %"),
    Comparison(
        "P4", "ours, 30 %", "transformers, 30 %", 1.25, limit="dense Llama, without padding"
    ),
    Comparison("P4", "ours, 0 %", "dense Llama, 0 %", 0.91),
]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=9, help="of all arms (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "step.json"
    )
    parser.add_argument("--peak", choices=["ours", "transformers"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # This process is one that `memory_rates` has started.
    if args.peak:
        print(peak_bytes(large_head_config(), num_rows=3, is_ours=args.peak == "ours"))
        return 0
    started_s, header = time.monotonic(), machine()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), num_rounds=args.rounds)
    report = {**header, "threads": torch.get_num_threads(), "rounds": args.rounds, **report}
    print(line_of(header))
    print(f"{torch.get_num_threads()} threads, {args.rounds} rounds; items are positions,")
    print("padding included")
    print(f"\n{table(report['comparisons'])}\n")
    print(f"took {time.monotonic() - started_s:.0f} s")
    write_json(args.output, report)
    return 0


def run(folder: Path, *, num_rounds: int) -> dict[str, Any]:
    """All comparisons and the rates of all arms; nothing is written into `folder`."""
    rates: Rates = {}
    # Built one after another: the models of one are gone before the next are there.
    rates |= alternate(step_arms(large_head_config(), "large head", num_rows=3), num_rounds)
    rates |= alternate(step_arms(proportional_config(), "3B proportion", num_rows=1), num_rounds)
    rates |= alternate(layer_arms(layer_config(), num_positions=1024), num_rounds)
    rates |= memory_rates(min(num_rounds, MEMORY_ROUNDS))
    return {"comparisons": compare([*STEP, *MEMORY, *LAYER], rates), "per_s": rates}


# P2a, P2b.


def large_head_config() -> HiggsAudioV2Config:
    shape = {"hidden_size": 256, "intermediate_size": 682, "num_hidden_layers": 2, "head_dim": 64}
    return HiggsAudioV2Config(
        **shape, num_attention_heads=4, num_key_value_heads=2, codebook_size=1026
    )


def proportional_config() -> HiggsAudioV2Config:
    """The published shape of a layer; the special ids are the last of what is left of the
    vocabulary."""
    # One of 28 layers, so a 28th of both.
    vocabulary, codebook = 128256 // 28, round(1026 / 28)
    ids = {
        "pad_token_id": 1,
        "audio_token_id": vocabulary - 1,
        "audio_delay_token_id": vocabulary - 2,
    }
    streams = {"audio_stream_bos_id": codebook - 2, "audio_stream_eos_id": codebook - 1}
    return HiggsAudioV2Config(
        vocab_size=vocabulary,
        codebook_size=codebook,
        num_hidden_layers=1,
        bos_token_id=2,
        eos_token_id=3,
        audio_bos_token_id=4,
        **ids,
        **streams,
    )


def step_arms(config: HiggsAudioV2Config, name: str, *, num_rows: int) -> dict[str, Arm]:
    batch = make_batch(config, num_rows)
    theirs, ours = build(config, is_ours=False), build(config, is_ours=True)
    ours.load_state_dict(theirs.state_dict())  # strict: both have the same names
    check_equal(step(theirs, batch), step(ours, batch))
    num_positions = batch["input_ids"].numel()
    inputs = {key: value for key, value in batch.items() if "labels" not in key}

    # No loss: the sum of all hidden states reaches every weight of the body.
    def body(i: int) -> int:
        theirs.zero_grad()
        theirs.model(**inputs, use_cache=False).last_hidden_state.sum().backward()
        return num_positions

    def whole(model: Any) -> Arm:
        def one_step(i: int) -> int:
            step(model, batch)
            return num_positions

        return one_step

    return {
        f"transformers, {name}": whole(theirs),
        f"ours, {name}": whole(ours),
        f"body, {name}": body,
    }


def build(config: HiggsAudioV2Config, *, is_ours: bool) -> Any:
    torch.manual_seed(0)
    kind = HiggsAudioV2ForConditionalGeneration if is_ours else Native
    model: Any = kind(copy.deepcopy(config), use_text_head=True).train()
    if is_ours:
        use_index_once_layers(model)
    return model


def make_batch(config: HiggsAudioV2Config, num_rows: int) -> dict[str, Tensor]:
    """Rows of text and a trained clip, by our collator."""
    generator, tokens = torch.Generator().manual_seed(0), tokens_of(config)
    samples = [make_sample(tokens, NUM_TEXT, NUM_FRAMES, generator) for _ in range(num_rows)]
    return collate(samples, tokens, training=True)


def step(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss of transformers' scale, and gradients, of the names of `named_parameters`."""
    model.zero_grad()
    outputs = model(**batch)
    loss = outputs.loss
    if loss is None:
        loss = loss_of(outputs)
    loss.backward()
    return {"loss": loss.detach(), **_gradients(model)}


def loss_of(outputs: Any) -> Tensor:
    """Of our class, which leaves it to the trainer to combine its terms."""
    weights = LossWeights(1.0, 1.0, 0.0, (1.0,) * len(outputs.audio_count), sum_codebooks=True)
    counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
    return combine(outputs.text, outputs.audio, weights=weights, **counts)


def _gradients(module: nn.Module) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def check_equal(expected: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Raises AssertionError that names the tensor."""
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# P3.


def memory_rates(num_rounds: int) -> Rates:
    """Positions per GiB of the peak, in a process of its own each."""
    rates: Rates = {}
    # Three rows of text, frames, and the steps of stream and delay: `make_batch`.
    num_positions = 3 * (NUM_TEXT + NUM_FRAMES + 9)
    model = build(large_head_config(), is_ours=True)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    kept_gib = 2 * num_bytes / 2**30  # weights and gradients
    rates["weights, positions per GiB"] = [num_positions / kept_gib] * num_rounds
    for _ in range(num_rounds):
        for arm in ("transformers", "ours"):
            command = [sys.executable, "-m", "benchmarks.step", "--peak", arm]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            peak_gib = int(done.stdout.split()[-1]) / 2**30
            rates.setdefault(f"{arm}, positions per GiB", []).append(num_positions / peak_gib)
    return rates


def peak_bytes(config: HiggsAudioV2Config, *, num_rows: int, is_ours: bool) -> int:
    """What this process takes at its peak for model, batch and one step, above what it takes
    before."""

    def most_kib() -> int:
        # Not getrusage's maximum: a process begins with that of the one which started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0])

    before_kib = most_kib()
    step(build(config, is_ours=is_ours), make_batch(config, num_rows))
    return (most_kib() - before_kib) * 1024


# P4.


def layer_config() -> HiggsAudioV2Config:
    shape = {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    }
    return HiggsAudioV2Config(
        **shape, num_hidden_layers=1, codebook_size=1026, attn_implementation="sdpa"
    )


def layer_arms(config: HiggsAudioV2Config, *, num_positions: int) -> dict[str, Arm]:
    torch.manual_seed(0)
    model: Any = native.HiggsAudioV2Model(config)
    theirs = model.layers[0]
    # `use_index_once_layers` wants a model that holds the decoder.
    holder: Any = nn.Module()
    holder.model = copy.deepcopy(model)
    use_index_once_layers(holder)
    ours = holder.model.layers[0]
    dense_config = LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        attn_implementation="sdpa",
    )
    dense = LlamaDecoderLayer(dense_config, 0)
    whole = layer_inputs(model, num_positions, num_positions)
    num_useful = round(num_positions * (1 - PADDING))
    padded = layer_inputs(model, num_positions, num_useful)
    useful = layer_inputs(model, num_useful, num_useful)
    for inputs in (whole, padded):
        check_equal(layer_step(theirs, inputs, _masks), layer_step(ours, inputs, _routes))

    def arm(layer: Any, inputs: dict[str, Any], routing: Callable[[Any], dict[str, Any]]) -> Arm:
        def one_step(i: int) -> int:
            layer_step(layer, inputs, routing)
            return num_positions

        return one_step

    return {
        "transformers, 0 %": arm(theirs, whole, _masks),
        "ours, 0 %": arm(ours, whole, _routes),
        "dense Llama, 0 %": arm(dense, whole, _nothing),
        "transformers, 30 %": arm(theirs, padded, _masks),
        "ours, 30 %": arm(ours, padded, _routes),
        "dense Llama, without padding": arm(dense, useful, _nothing),
    }


def layer_inputs(model: Any, num_positions: int, num_useful: int) -> dict[str, Any]:
    """One row: a quarter text, then audio, then padding."""
    generator = torch.Generator().manual_seed(num_positions)
    hidden = torch.randn(1, num_positions, model.config.hidden_size, generator=generator)
    places = torch.arange(num_positions)[None]
    mask = (places < num_useful).long()
    # No cache, by its place: its name depends on the version.
    causal = native.create_causal_mask(model.config, hidden, mask, None, position_ids=places)
    return {
        "hidden": hidden,
        # Of the loss: 0 on padding, so that what a layer makes of it does not count.
        "weights": torch.randn(hidden.shape, generator=generator) * mask.unsqueeze(-1),
        "is_audio": (places >= num_useful // 4) & (places < num_useful),
        "padding_mask": mask,
        "layer": {
            "attention_mask": causal,
            "position_embeddings": model.rotary_emb(hidden, places),
        },
    }


def _masks(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"audio_token_mask": inputs["is_audio"]}


def _routes(inputs: dict[str, Any]) -> dict[str, Any]:
    """Looked up for this layer alone; in a model, for all of them."""
    return {"routes": Routes.of(inputs["is_audio"], inputs["padding_mask"])}


def _nothing(inputs: dict[str, Any]) -> dict[str, Any]:
    return {}


def layer_step(
    layer: Any, inputs: dict[str, Any], routing: Callable[[Any], dict[str, Any]]
) -> dict[str, Tensor]:
    """What the layer makes of the rows that count, and gradients. routing: how this layer wants to
    know which rows are audio."""
    hidden = inputs["hidden"].detach().requires_grad_()
    layer.zero_grad()
    out = layer(hidden, **inputs["layer"], **routing(inputs))
    weighted = out * inputs["weights"]
    weighted.mean().backward()
    return {"out": weighted.detach(), "in": hidden.grad, **_gradients(layer)}


if __name__ == "__main__":
    sys.exit(main())

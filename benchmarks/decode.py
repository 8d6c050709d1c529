"""Speaking codes, against transformers' own `generate`: `python -m benchmarks.decode`.

Four requests of different lengths that end by themselves, greedy, with a tiny model and with one of
0.3 billion weights (float32, random, a small vocabulary, so that the layers are what is read). An
item is one frame of speech, up to each request's end; a round is all frames of all four, prompts
included.

P9    one request after another, both
P9    ours with the four in one batch, native one after another: what a batch gives to who could
      not have one
P9-b  the four in one batch, both. Native goes on with all four rows until the longest has ended

`limit` reads every matrix of the audio path once per step, for the rows that still speak, as
`plugins.speaking.step` does: no prompt, no attention, no norms, no choice of a code. The codes of
all arms are asserted to be equal before anything is timed."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

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
from demo.tiny import build_config, build_tokenizer
from plugins.collator import collate
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.data.wording import INSTRUCTION
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration
from plugins.settings import HiggsAudioSettings
from plugins.speaking.decoding import Stage, decode
from plugins.speaking.sampling import Sampling
from plugins.speaking.step import linear
from plugins.speaking.voices import request
from plugins.training.preflight.probe import on_device

GREEDY = Sampling(temperature=0)
TEXTS = (
    "The harbour lights went out one by one.",
    "Hello.",
    "Two words.",
    "A sentence of middling length.",
)
# name -> overrides of the tiny config, and the steps at which the four requests are made to end
MODELS: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "tiny": ({}, (200, 50, 80, 140)),
    "0.3 B": (
        {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 16,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 128,
        },
        (48, 12, 20, 34),
    ),
}


def comparisons(name: str) -> list[Comparison]:
    native, ours, limit = f"{name}: native", f"{name}: ours", f"{name}: matrices"
    return [
        Comparison("P9", f"{ours}, one by one", f"{native}, one by one", 1.3, f"{limit}, 1 row"),
        Comparison("P9", f"{ours}, batch of 4", f"{native}, one by one", 3, f"{limit}, 4 rows"),
        Comparison("P9-b", f"{ours}, batch of 4", f"{native}, batch of 4", 1.3, f"{limit}, 4 rows"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=9, help="of all arms (default: %(default)s)")
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "decode.json"
    )
    args = parser.parse_args(argv)
    started_s, header = time.monotonic(), machine()
    models = [args.only] if args.only else list(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), num_rounds=args.rounds, models=models)
    report = {**header, "rounds": args.rounds, **report}
    print(line_of(header))
    print(f"{args.rounds} rounds, {torch.get_num_threads()} threads, frames of speech per second")
    print(f"\n{table(report['comparisons'])}\n")
    print(f"took {time.monotonic() - started_s:.0f} s")
    write_json(args.output, report)
    return 0


def run(folder: Path, *, num_rounds: int, models: Sequence[str] = tuple(MODELS)) -> dict[str, Any]:
    """folder: not used, nothing is written."""
    rates: Rates = {}
    # Of each request, for the report: rows leave the batch at these steps.
    frames: dict[str, list[int]] = {}
    for name in models:
        overrides, ends = MODELS[name]
        speaker = Speaker(overrides, ends)
        speaker.check()
        frames[name] = speaker.lengths
        rates |= alternate(speaker.arms(name), num_rounds)
    claims = chain.from_iterable(map(comparisons, models))
    return {"frames": frames, "comparisons": compare([*claims], rates), "per_s": rates}


class Speaker:
    """A random model that speaks four requests and ends each of them. device: in fp32."""

    def __init__(
        self, overrides: dict[str, int], ends: Sequence[int], *, device: str = "cpu"
    ) -> None:
        self.stage = Stage()  # of all its requests
        tokenizer = build_tokenizer([*TEXTS, INSTRUCTION])
        torch.manual_seed(0)
        config = build_config(tokenizer, **overrides)
        self.model: Any = HiggsAudioV2ForConditionalGeneration(config).eval().to(device)
        self.tokens = SpecialTokens.from_config(self.model.config, tokenizer)
        settings = HiggsAudioSettings()
        samples = []
        for text in TEXTS:
            dialogue = request(text, None, [], settings)
            samples.append(encode(dialogue, tokenizer, self.tokens, open_turn=True))
        self.together = on_device(self.model, collate(samples, self.tokens, training=False))
        self.alone = []
        for sample in samples:
            batch = collate([sample], self.tokens, training=False)
            self.alone.append(on_device(self.model, batch))
        self.max_steps = max(ends) + 2 * (self.tokens.num_codebooks + 1)
        self._end(ends)
        self.said = [self.ours(batch)[0] for batch in self.alone]
        self.lengths = list(map(len, self.said))
        ends_itself = max(self.lengths) < self.max_steps
        assert ends_itself, f"some request does not end by itself: {self.lengths}"
        assert len(set(self.lengths)) == len(TEXTS), f"all end at different steps: {self.lengths}"

    @torch.no_grad()
    def _end(self, ends: Sequence[int]) -> None:
        """In some codebooks the stream EOS outdoes one code: the ones by which the requests end
        nearest to `ends`, in any order. A large random model says the same few codes again and
        again, so they have to be looked for."""
        num_codebooks, eos = self.tokens.num_codebooks, self.tokens.stream_eos
        head = self.model.audio_lm_head.weight.view(num_codebooks, self.tokens.codebook_size, -1)
        head[:, eos] = 0  # an untrained model stops by chance otherwise
        said = [frames.tolist() for frames in self.ours(self.together)]

        def step_of(chosen: dict[int, int], frames: list[list[int]]) -> int:
            for step, frame in enumerate(frames):
                if any(frame[k] == code for k, code in chosen.items()):
                    return step
            return self.max_steps

        draw = random.Random(0)
        best: dict[int, int] = {}
        least = float("inf")
        for _ in range(3000):
            frame = draw.choice(draw.choice(said)[num_codebooks:])
            chosen = {k: frame[k] for k in draw.sample(range(num_codebooks), 2)}
            # Half of the draws start anew, half add to the best so far.
            if draw.random() < 0.5:
                chosen = best | chosen
            steps = sorted(step_of(chosen, frames) for frames in said)
            missed = sum(abs(step - end) for step, end in zip(steps, sorted(ends), strict=True))
            # Two that end at the same step would leave the batch together.
            if missed < least and len(set(steps)) == len(ends):
                best, least = chosen, missed
        for k, code in best.items():
            head[k, eos] = 1.0001 * head[k, code]  # above that code wherever it is positive

    def check(self) -> None:
        """Raises AssertionError if codes depend on the batch, or differ from native's."""
        natively_together = self._native(self.together)
        for i, (frames, ours) in enumerate(zip(self.said, self.ours(self.together), strict=True)):
            natively = self._native(self.alone[i])[0]
            # What native writes behind the end of a row is filling.
            in_native_batch = natively_together[i, : len(frames)]
            assert torch.equal(ours, frames), f"request {i} differs in a batch"
            assert torch.equal(natively, frames), f"request {i} differs from native"
            assert torch.equal(in_native_batch, frames), f"request {i} differs from native's batch"

    def ours(
        self, batch: dict[str, Tensor], sampling: Sampling = GREEDY, *, cuda_graphs: bool = False
    ) -> list[Tensor]:
        """Delayed frames (T, K) of each row."""
        num_rows = len(batch["input_ids"])
        frames: list[list[Tensor]] = [[] for _ in range(num_rows)]
        samplings, limits = [sampling] * num_rows, [self.max_steps] * num_rows
        stage = self.stage if cuda_graphs else None
        for rows, step in decode(self.model, batch, self.tokens, samplings, limits, stage=stage):
            for row, frame in zip(rows, step, strict=True):
                frames[row].append(frame)
        return list(map(torch.stack, frames))

    def _native(self, batch: dict[str, Tensor]) -> Tensor:
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_steps,
            eos_token_id=self.tokens.end_of_turn,
            pad_token_id=self.tokens.pad,
        )
        self.model.generation_config = config
        # There are no clips in these prompts.
        prompt = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return self.model.generate(**prompt, generation_config=config).cpu()

    def arms(self, name: str) -> dict[str, Arm]:
        num_frames = sum(self.lengths)
        num_rows = list(self._num_rows())
        single = [1] * sum(num_rows)

        def done(work: Iterable[Any]) -> int:
            for _ in work:
                pass
            return num_frames

        return {
            f"{name}: native, one by one": lambda i: done(map(self._native, self.alone)),
            f"{name}: ours, one by one": lambda i: done(map(self.ours, self.alone)),
            f"{name}: native, batch of 4": lambda i: done(map(self._native, [self.together])),
            f"{name}: ours, batch of 4": lambda i: done(map(self.ours, [self.together])),
            f"{name}: matrices, 1 row": lambda i: done(map(self._read_matrices, [single])),
            f"{name}: matrices, 4 rows": lambda i: done(map(self._read_matrices, [num_rows])),
        }

    def _num_rows(self) -> Iterator[int]:
        """Of each step: the requests that still speak. The first frame of a request is known."""
        for step in range(1, max(self.lengths)):
            yield sum(length > step for length in self.lengths)

    @torch.inference_mode()
    def _read_matrices(self, num_rows: Sequence[int]) -> None:
        """num_rows: of each step."""
        names = (
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "audio_mlp.gate_proj",
            "audio_mlp.up_proj",
            "audio_mlp.down_proj",
            "audio_lm_head",
        )
        matrices = []
        for name, module in self.model.named_modules():
            if name.endswith(names):
                matrices.append((module, torch.ones(len(TEXTS), module.in_features)))
        for rows in num_rows:
            for module, inputs in matrices:
                linear(module, inputs[:rows])


if __name__ == "__main__":
    sys.exit(main())

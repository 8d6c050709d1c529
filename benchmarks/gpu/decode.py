"""Speaking with the 3B model in bf16: frames per second, first piece, compiles and captures.

Against transformers' `generate`, and against the time that it takes to read the weights of the
audio path and the filled cache once. A frame is 40 ms of speech."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import torch
from transformers import GenerationConfig

from benchmarks.decode import GREEDY
from benchmarks.gpu import inputs
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.codec import random_codec
from benchmarks.measure import Arm, Comparison
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.decoding import Stage, Step, decode

FRAME_MS = 40
POSITIONS = 1200  # of prompt and speech, the longest that is usual
H100_TB_S = 3.35


def run(bench: Bench) -> None:
    bench.dtype = "bfloat16"
    bench.attempt("model", lambda: _all(bench), needs_s=20)


def _all(bench: Bench) -> None:
    speaker = Speaker(bench)
    for num_rows in (1, 16):
        graphs = f"{num_rows} with graphs"
        bench.attempt(graphs, lambda n=num_rows: speaker.steady(n, graphs=True), needs_s=20)
    for num_rows in (1, 16):
        peers = f"{num_rows}, against transformers"
        bench.attempt(peers, lambda n=num_rows: speaker.against_native(n), needs_s=20)
    bench.attempt("stream", speaker.stream, needs_s=15)
    bench.attempt("rows that leave", speaker.leaving, needs_s=15)
    bench.attempt("1 eager", lambda: speaker.steady(1, graphs=False), needs_s=10)
    bench.attempt("LoRA that is not merged", speaker.with_adapters, needs_s=15)


class Speaker:
    """A random model, and prompts with a reference of five seconds."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.stage = Stage()
        shape = inputs.TINY if bench.tiny else inputs.LARGE
        made = inputs.speaking_model(shape, torch.bfloat16, bench.device)
        self.model, self.tokenizer, self.tokens = made
        self.num_heard = 12 if bench.tiny else 125
        self.num_steps = 12 if bench.tiny else 200

    def prompts(self, num_rows: int) -> inputs.Batch:
        made = (self.model, self.tokenizer, self.tokens)
        return inputs.prompts(*made, num_rows, self.num_heard)

    def steps(
        self, batch: inputs.Batch, *, graphs: bool, limits: list[int] | None = None
    ) -> Iterator[Step]:
        """limits: else so many that the cache has `POSITIONS`."""
        num_rows, num_prompt = batch["input_ids"].shape
        limits = limits or [max(POSITIONS - num_prompt, self.num_steps)] * num_rows
        greedy = [GREEDY] * num_rows
        stage = self.stage if graphs else None
        return decode(self.model, batch, self.tokens, greedy, limits, stage=stage)

    def _taken(self, spoken: Iterator[Step]) -> list[float]:
        """Seconds until each step is there."""
        self.bench.sync()
        started_s, taken = time.perf_counter(), []
        for _, _ in zip(spoken, range(self.num_steps), strict=False):
            taken.append(time.perf_counter() - started_s)
        return taken

    def steady(self, num_rows: int, *, graphs: bool) -> None:
        """A step once all is warm, and what comes before."""
        bench, add = self.bench, self.bench.add
        name = f"{num_rows} {'with graphs' if graphs else 'eager'}"
        spoken = self.steps(self.prompts(num_rows), graphs=graphs)
        with bench.counted() as counts:
            taken = self._taken(spoken)
        step_ms, bound_ms = _step_ms(taken), self._bound_ms(num_rows)
        alone, together = graphs and num_rows == 1, graphs and num_rows == 16
        add(f"{name}: first three steps", taken[2], "s", **counts)
        add(f"{name}: step", step_ms, "ms", most=1.5 * bound_ms if alone else None)
        add(f"{name}: bound of a step", bound_ms, "ms")
        add(f"{name}: RTF", step_ms / FRAME_MS, "s/s", most=0.065 if alone else None)
        speech = num_rows * FRAME_MS / step_ms
        add(f"{name}: speech", speech, "x real time", least=150 if together else None)
        count, top_ms = bench.kernels(lambda: [next(spoken) for _ in range(5)])
        add(f"{name}: kernels of a step", count / 5, "kernels", ms_of_five_steps=top_ms)
        spoken.close()

    def _bound_ms(self, num_rows: int) -> float:
        config = self.model.config
        parts = [self.model.audio_lm_head]
        for layer in self.model.model.layers:
            parts += [layer.self_attn, layer.audio_mlp]
        weights = sum(weight.nbytes for part in parts for weight in part.parameters())
        per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        cache = 2 * per_position * POSITIONS * num_rows  # two bytes each
        return (weights + cache) / (self.bench.measured("env: copy", H100_TB_S) * 1e9)

    def against_native(self, num_rows: int) -> None:
        """Whole requests, prompts and captures included."""
        batch, num_frames = self.prompts(num_rows), num_rows * self.num_steps
        limits = [self.num_steps] * num_rows
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.num_steps,
            eos_token_id=self.tokens.end_of_turn,
            pad_token_id=self.tokens.pad,
        )
        self.model.generation_config = config

        def ours(i: int) -> int:
            for _ in self.steps(batch, graphs=True, limits=limits):
                pass
            return num_frames

        def native(i: int) -> int:
            self.model.generate(**batch, generation_config=config)
            return num_frames

        name = f"{num_rows} x {self.num_steps} frames"
        target = 5 if num_rows == 1 else 1
        claim = Comparison("speech", f"{name}, ours", f"{name}, transformers", target)
        arms: dict[str, Arm] = {claim.ours: ours, claim.peer: native}
        self.bench.compete(arms, [claim], "frames/s")

    def stream(self) -> None:
        codec = random_codec(self.bench)
        model, tokenizer = self.model, self.tokenizer
        for name, graphs in (("with graphs", True), ("eager", False)):
            generator = HiggsAudioGenerator(model, tokenizer, codec=codec, cuda_graphs=graphs)
            for request in ("first", "second"):
                self.bench.sync()
                started_s, at_ms = time.perf_counter(), []
                pieces = generator.stream(inputs.TEXT, sampling=GREEDY, max_audio_s=3.0)
                for _, _ in zip(pieces, range(4), strict=False):
                    at_ms.append(1000 * (time.perf_counter() - started_s))
                goals = {"most": 120} if request == "second" and graphs else {}
                what = f"first piece of a stream, {request} request, {name}"
                self.bench.add(what, at_ms[0], "ms", later_ms=at_ms[1:], **goals)

    def leaving(self) -> None:
        """Rows that end one after the other, in a batch, twice."""
        num_rows = 4 if self.bench.tiny else 16
        limits = [
            self.num_steps // 2 + self.num_steps * i // (2 * num_rows) for i in range(num_rows)
        ]
        for name, graphs in (("eager", False), ("with graphs", True), ("again", True)):
            batch = self.prompts(num_rows)
            with self.bench.counted() as counts:
                self.bench.sync()
                started_s = time.perf_counter()
                for _ in self.steps(batch, graphs=graphs, limits=limits):
                    pass
                took_s = time.perf_counter() - started_s
            speech = sum(limits) * FRAME_MS / 1000 / took_s
            self.bench.add(f"{num_rows} rows that leave, {name}", speech, "x real time", **counts)

    def with_adapters(self) -> None:
        """LoRA beside its matrices, as several adapters are loaded."""
        from peft import LoraConfig, get_peft_model

        targets = inputs.linear_names(self.model)
        lora = LoraConfig(r=32, target_modules=targets, init_lora_weights=False)
        tuned = get_peft_model(self.model, lora).eval()
        self.model = tuned.get_base_model()
        spoken = self.steps(self.prompts(1), graphs=True)
        self.bench.add("1 with graphs, LoRA beside: step", _step_ms(self._taken(spoken)), "ms")
        spoken.close()


def _step_ms(taken: list[float]) -> float:
    """The first steps compile, warm up and capture."""
    later = taken[3:]
    return 1000 * median(after - before for before, after in pairwise(later))

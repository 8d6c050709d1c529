"""A server in this process, its engine, and clients that do not keep to the rules."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn

from plugins.commands.serving.answers import Service
from plugins.commands.serving.app import build
from plugins.commands.serving.engine import Engine, Order
from plugins.commands.serving.server import config
from plugins.commands.serving.voices import Voices
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.voices import Request

MAX_AUDIO_S = 1.2  # the tiny model ends nowhere


def engine_of(generator: HiggsAudioGenerator, **options: Any) -> Engine:
    chosen = {"num_rows": 4, "max_waiting": 64, "time_limit_s": 600.0, **options}
    chosen.setdefault("max_audio_s", MAX_AUDIO_S)
    return Engine(generator, **chosen)


def order_of(
    generator: HiggsAudioGenerator,
    text: str,
    seed: int,
    *,
    adapter: str | None = None,
    in_pieces: bool = False,
    max_audio_s: float = MAX_AUDIO_S,
) -> Order:
    script = Request(generator.settings_of(adapter)).script(text)
    sampling = Sampling(temperature=1.0, seed=seed)
    return Order(script, sampling, adapter, max_audio_s, in_pieces)


async def heard(engine: Engine, order: Order) -> np.ndarray:
    """All samples of an order."""
    *samples, _ = [item async for item in engine.speak(order, engine.first_line(order))]
    return np.concatenate(samples)


def lora_folders(base: Path, folder: Path, *names: str) -> dict[str, str]:
    """LoRA folders on `base`, with weights that matter."""
    from peft import LoraConfig, get_peft_model

    from plugins.model import load

    folders = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        tuned = get_peft_model(load.native_model(str(base)), lora)
        tuned.peft_config["default"].base_model_name_or_path = str(base)
        folders[name] = str(folder / name)
        tuned.save_pretrained(folders[name])
    return folders


@dataclass
class Served:
    port: int
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def raw(self, *parts: bytes, pause_s: float = 0.0, half_closed: bool = False) -> bytes:
        """What is answered to these bytes until the server closes; b"" if nothing is."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            for part in parts:
                client.sendall(part)
                time.sleep(pause_s)
            if half_closed:
                client.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while piece := client.recv(1 << 16):
                    answer += piece
            except ConnectionResetError:
                pass
            return answer


@contextmanager
def served(
    generator: HiggsAudioGenerator,
    *,
    voices: Path | None = None,
    uploads: Path | None = None,
    token: str | None = None,
    **options: Any,
) -> Iterator[Served]:
    engine = engine_of(generator, **options)
    service = Service(
        generator,
        engine,
        Voices("tiny", generator.adapters, voices),
        max_chars=400,
        max_audio_s=options.get("max_audio_s", MAX_AUDIO_S),
        uploads=uploads,
    )
    max_upload_bytes = 0 if uploads is None else 1 << 20
    app = build(service, host="127.0.0.1", token=token, max_upload_bytes=max_upload_bytes)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(config(app, num_connections=100, drain_s=60))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(listening.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join()
            engine.close()

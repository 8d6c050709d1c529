"""`higgs-audio speak`: one text into a file or a pipe, or a list of texts into a folder.

    --text  --HiggsAudioGenerator--> a file, or raw samples as they are spoken
    --input --plugins.commands.speak_list--> a folder of WAV files

Exit codes: 0 spoken to its end, 1 an error that the user can mend, 3 cut at `--max_audio_s`.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from contextlib import nullcontext

import numpy as np

from plugins.commands.speak_list import OPTIONS, plan, speak_all
from plugins.errors import UserError, problem
from plugins.files.disk import require_writable
from plugins.hearing.takes import Judge, load_judge, take_lines
from plugins.inference import HiggsAudioGenerator
from plugins.model.adapter_scale import require_scale
from plugins.speaking.sampling import Sampling
from plugins.speaking.speaker import require_duration
from plugins.speaking.speech import Speech, suffix_of

TRUNCATED = 3


def run(options: Namespace) -> int:
    """The subcommand: its exit code."""
    try:
        return _run(options)
    except BrokenPipeError:
        # What Python still holds for it would be an error once more, at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise problem(
            source="options",
            field="stream",
            value=options.stream or "stdout",
            reason="was closed by its reader before the end",
            remedy="keep the reader open",
        ) from None


def _run(options: Namespace) -> int:
    # All that can be wrong is found before a model is loaded, or minutes are spoken, for nothing.
    _check(options)
    sampling = Sampling(
        options.temperature,
        options.top_k,
        options.top_p,
        seed=options.seed,
        best_of=options.best_of,
    )
    require_duration(options.max_audio_s)
    require_scale(options.adapter_scale)
    judge = judge_of(options) if options.best_of > 1 else None
    requests = None
    if options.input is not None:
        requests = plan(options, sampling.seed)
    generator = HiggsAudioGenerator.from_pretrained(
        options.model,
        adapters=options.adapters,
        adapter_scale=options.adapter_scale,
        codec=options.codec,
        device=options.device,
        quantization=options.quantization,
        cuda_graphs=options.cuda_graphs,
        deterministic=options.deterministic,
        marks=options.marks,
    )
    generator.judge = judge
    generator.merge_adapter()  # nobody will switch it off
    clean_text = False if options.raw_text else None  # None: as the model was trained
    if requests is not None:
        num_failed, num_cut = speak_all(generator, requests, options, sampling, clean_text)
        sys.stdout.flush()
        if num_failed:
            return 1
        return TRUNCATED if num_cut else 0
    wanted = {name: getattr(options, name) for name in OPTIONS}
    wanted |= {"sampling": sampling, "max_audio_s": options.max_audio_s, "clean_text": clean_text}
    if options.stream is not None:
        stream = generator.stream(options.text, **wanted)
        _pipe(stream, options.stream)
        speech = stream.speech
        # The samples may go to stdout.
        print(f"{options.stream}: {_described(speech)}", file=sys.stderr)
    else:
        speech = generator.generate(options.text, **wanted)
        speech.save(options.output)
        for line in take_lines(speech.takes):
            print(line)
        print(f"{options.output}: {_described(speech)}", flush=True)
    return 0 if speech.stopped else TRUNCATED


def judge_of(options: Namespace) -> Judge:
    """Who hears the takes. Raises UserError if nobody hears their words; prints what else is
    missing."""
    judge, missing = load_judge(
        asr=options.asr,
        speaker_model=options.speaker_model,
        language=options.language,
        device=options.device or "cpu",
    )
    for scorer in missing:
        print(f"missing: {scorer.name}: {scorer}; takes are compared without", file=sys.stderr)
    return judge


def _check(options: Namespace) -> None:
    if options.stream is not None and options.best_of > 1:
        raise problem(
            source="options",
            field="best_of",
            value=options.best_of,
            reason="takes cannot be streamed: the best is known when all have been heard",
            remedy="leave --stream out",
        )
    for name in ("asr", "speaker_model"):
        if options.best_of == 1 and getattr(options, name) is not None:
            model = getattr(options, name)
            raise _refused(name, model, "has no takes to choose from", "give --best_of")
    if options.cuda_graphs and options.deterministic:
        raise problem(
            source="options",
            field="cuda_graphs",
            value=True,
            reason="is not available with --deterministic",
            remedy="leave one of the two out",
        )
    if options.text is None and options.input is None:
        raise _refused("text", None, "is missing", "give --text, or a list with --input")
    if options.text is not None and options.input is not None:
        raise _refused("input", str(options.input), "is given beside --text", "give one of the two")
    if options.input is not None:
        _check_list(options)
    elif options.stream is not None:
        # What is there and no file is written into: a pipe, a sound device.
        is_file = os.path.isdir(options.stream) or not os.path.exists(options.stream)
        if options.stream != "-" and (is_file or os.path.isfile(options.stream)):
            require_writable(options.stream, field="stream")
    else:
        suffix_of(options.output)
        require_writable(options.output, field="output")


def _check_list(options: Namespace) -> None:
    file = str(options.input)
    if options.stream is not None:
        raise _refused("input", file, "is a list, which cannot be streamed", "give --output_dir")
    if options.output_dir is None:
        raise _refused(
            "input", file, "is a list, and its speeches need a folder", "give --output_dir"
        )


def _refused(option: str, value: str | None, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)


def _pipe(chunks: Iterable[np.ndarray], target: str) -> None:
    """16 bit little-endian PCM, each chunk as soon as it is spoken."""
    try:
        with nullcontext(sys.stdout.buffer) if target == "-" else open(target, "wb") as file:
            for chunk in chunks:
                # Louder than full scale would wrap around to the other sign.
                file.write((chunk.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
                file.flush()  # whoever plays it waits for this chunk
    except BrokenPipeError:
        raise
    except OSError as error:
        raise problem(
            source="options",
            field="stream",
            value=target,
            reason=f"cannot be written ({error.strerror})",
            remedy="name another place",
        ) from None


def _described(speech: Speech) -> str:
    end = "stopped by itself"
    if speech.truncated:
        end = "truncated: cut at the limit, it did not stop by itself"
    frames, factor = speech.codes.shape[1], speech.real_time_factor
    return f"{speech.duration_s:.2f} s, {frames} frames, real-time factor {factor:.2f}, {end}"

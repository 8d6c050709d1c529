"""What a training lacks, in one line, before MS-SWIFT loads anything; and in one line what it then
says in a page.

    words after `settled` --check-->           UserError: no model, no data, nowhere to write
    MS-SWIFT's own start  --explained_start--> UserError: no hub, no GPU, a missing package
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from plugins.errors import UserError, problem
from plugins.training.arguments import check_output_dir, values_of

# With any of these MS-SWIFT takes the model, or the data, from somewhere else.
_IN_PLACE_OF_MODEL = ("--resume_from_checkpoint", "--adapters", "--ckpt_dir")
_IN_PLACE_OF_DATA = ("--cached_dataset", "--load_data_args")
# Libraries whose errors mean that nothing was downloaded.
_HUBS = {"httpx", "httpcore", "huggingface_hub", "modelscope", "modelscope_hub", "requests"}


def check(words: Sequence[str]) -> None:
    """Raise UserError if model, data or a folder to write to is missing."""
    given = values_of(words)
    _check_preferences(given)
    _check_model(given)
    _check_dataset(given)
    check_output_dir(words)


@contextmanager
def explained_start(words: Sequence[str]) -> Iterator[None]:
    """Around MS-SWIFT's reading of its arguments and loading of the model."""
    model = next(iter(values_of(words).get("--model", ())), "")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "bf16" in str(error) and "setup" in str(error):
            raise _no_gpu() from error
        if model and not os.path.isdir(model) and _is_of_a_hub(error):
            raise _no_hub(model, words, error) from error
        raise


def check_type(rlhf_type: str) -> None:
    """Raise UserError for what MS-SWIFT trains on preferences in another way."""
    if rlhf_type != "dpo":
        raise problem(
            source="options",
            field="rlhf_type",
            value=rlhf_type,
            reason="compares texts, and is not available for speech",
            remedy="use dpo (docs/preferences.md)",
        )


def _check_preferences(given: dict[str, list[str]]) -> None:
    for rlhf_type in given.get("--rlhf_type", ()):
        check_type(rlhf_type)
    references = given.get("--ref_model", [])
    if references and given.get("--tuner_type") != ["full"]:
        raise problem(
            source="options",
            field="ref_model",
            value=references[0],
            reason="is for tuner_type full: of an adapter the model without it is the reference",
            remedy="leave it out",
        )


def _check_model(given: dict[str, list[str]]) -> None:
    models = given.get("--model", [])
    if not models:
        if not any(map(given.get, _IN_PLACE_OF_MODEL)):
            raise _missing("--model", "give a folder or a Hub id, or a YAML file that names it")
        return
    model = os.path.expanduser(models[0])  # in a YAML file no shell has seen the "~"
    # Two names with a slash between them may be an id of a hub.
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/")
    if os.path.isdir(model) or not (is_path or os.path.lexists(model)):
        return
    reason = "is no folder" if os.path.lexists(model) else f"not found (looked in {os.getcwd()})"
    raise problem(
        source="options",
        field="model",
        value=model,
        reason=reason,
        remedy="give the folder that holds config.json, or a Hub id",
    )


def _check_dataset(given: dict[str, list[str]]) -> None:
    if not given.get("--dataset") and not any(map(given.get, _IN_PLACE_OF_DATA)):
        raise _missing("--dataset", "give the JSONL file that `higgs-audio prepare` wrote")
    for flag in ("--dataset", "--val_dataset"):
        for value in given.get(flag, ()):
            file = value.partition("#")[0]  # FILE#500: 500 of its rows
            if file.endswith(".jsonl") and not os.path.exists(file):
                raise problem(
                    source="options",
                    field=flag.removeprefix("--"),
                    value=file,
                    reason=f"not found (looked in {os.getcwd()})",
                    remedy="check the path, or prepare it: higgs-audio prepare --help",
                )


def _missing(flag: str, remedy: str) -> UserError:
    return problem(
        source="command line", field=flag, value=None, reason="is missing", remedy=remedy
    )


def _no_gpu() -> UserError:
    return problem(
        source="options",
        field="torch_dtype",
        value="bfloat16",
        reason="needs a GPU that knows it, and torch sees none here",
        remedy="check `nvidia-smi` and that torch is built for CUDA, or train slowly on the CPU"
        " with --use_cpu true --torch_dtype float32",
    )


def _is_of_a_hub(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _HUBS


def _no_hub(model: str, words: Sequence[str], error: BaseException) -> UserError:
    is_hf = values_of(words).get("--use_hf", ["false"])[0].lower() in {"true", "1"}
    hub = "Hugging Face" if is_hf else "ModelScope (--use_hf true: Hugging Face)"
    cause = type(error).__name__
    return problem(
        source="options",
        field="model",
        value=model,
        reason=f"is neither a folder here nor to be had from {hub} ({cause})",
        remedy="check the name and the connection, or give the folder of a model",
    )

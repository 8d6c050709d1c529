"""All that is replaced in MS-SWIFT: one list, one version guard, one `install`.

Each patch leaves the runs of other models as they are. Two more replacements cannot stand here:
those that the start-up hook (`higgs_audio_swift_autoload.py`) makes before a plugin is imported,
and while it is. This file knows nothing of training: what is to happen before a model gets its
tuner is handed in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import swift
from swift.arguments import InferArguments, SftArguments
from swift.dataset import AddLengthPreprocessor
from swift.dataset.dataset_meta import BaseDatasetLoader
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.dataset.register import DatasetMeta
from swift.infer_engine import TransformersEngine
from swift.model import model_meta
from swift.pipelines.base import SwiftPipeline
from swift.pipelines.train.rlhf import SwiftRLHF
from swift.tuners import Swift
from swift.utils import get_logger, safe_snapshot_download

from plugins.corpora.canonical import LENGTHS
from plugins.errors import problem
from plugins.files.untrusted import check_adapter, check_model
from plugins.model.load import MODEL_TYPES
from plugins.model.original_format import format_of
from plugins.model.packed_attention import FLASH_ATTENTION
from plugins.ms_swift.dataset_loader import HiggsDatasetLoader, aligned
from plugins.ms_swift.template import HiggsAudioTemplate

logger = get_logger()

VERSION = "4.6."  # of MS-SWIFT, whose insides these patches know

BeforeTuning = Callable[[Any, Any], None]  # takes the arguments and the model of a training
# In the order of their installation, which is that of all ranks.
_before_tuning: dict[BeforeTuning, None] = {}


@dataclass(frozen=True)
class Patch:
    """`owner.name` becomes `wrap(owner.name)`."""

    owner: Any
    name: str
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    reason: str
    without: str  # what a version loses that is not patched
    # Of tests/upstream: the patch may go when it passes. None: MS-SWIFT means it so, the patch
    # stays.
    may_go_with: str | None = None
    link: str | None = None


def install(*, before_tuning: BeforeTuning) -> None:
    """Apply all patches, each once. Leaves an MS-SWIFT of another version alone, and says so."""
    _before_tuning[before_tuning] = None
    if not swift.__version__.startswith(VERSION):
        lost = "; ".join(patch.without for patch in PATCHES)
        logger.warning_once(f"untested ms-swift {swift.__version__} (need {VERSION}*): {lost}")
        return
    for patch in PATCHES:
        original = getattr(patch.owner, patch.name)
        # The mark is on the function itself: whatever happened since, it is replaced once.
        if getattr(original, "_is_patch", False):
            continue
        replacement: Any = wraps(original)(patch.wrap(original))
        replacement._is_patch = True
        # A plain function in a class would be handed `self`.
        if isinstance(inspect.getattr_static(patch.owner, patch.name), staticmethod):
            replacement = staticmethod(replacement)
        setattr(patch.owner, patch.name, replacement)


def _our_loader(get_dataset_meta: Callable[..., DatasetMeta]) -> Callable[..., DatasetMeta]:
    def with_our_loader(self: DatasetSyntax, use_hf: bool) -> DatasetMeta:
        meta = get_dataset_meta(self, use_hf)
        # What somebody registered with MS-SWIFT keeps its loader.
        is_registered = meta.dataset_path or meta.hf_dataset_id or meta.ms_dataset_id
        if is_registered or HiggsDatasetLoader.template is None:
            return meta
        return DatasetMeta(loader=HiggsDatasetLoader)

    return with_our_loader


def _our_columns(post_process: Callable[..., Any]) -> Callable[..., Any]:
    def with_our_columns(train_dataset: Any, **kwargs: Any) -> tuple[Any, Any]:
        train, validation = post_process(train_dataset, **kwargs)
        template = HiggsDatasetLoader.template
        if template is None:
            return train, validation
        return aligned(train, template), aligned(validation, template)

    return with_our_columns


def _known_lengths(add_lengths: Callable[..., Any]) -> Callable[..., Any]:
    def add_missing_lengths(self: AddLengthPreprocessor, dataset: Any, **kwargs: Any) -> Any:
        if LENGTHS in dataset.column_names:
            return dataset
        return add_lengths(self, dataset, **kwargs)

    return add_missing_lengths


def _torchs_own(check_padding_free: Callable[..., None]) -> Callable[..., None]:
    def with_torchs_own(self: SftArguments) -> None:
        if self.model_type in MODEL_TYPES and (self.packing or self.padding_free):
            self.attn_impl = self.attn_impl or FLASH_ATTENTION
            if "flash" not in self.attn_impl:
                raise problem(
                    source="options",
                    field="attn_impl",
                    value=self.attn_impl,
                    reason="is not for packs (packing, padding_free)",
                    remedy=f"leave it out: {FLASH_ATTENTION}, which torch brings, is the default",
                )
        check_padding_free(self)

    return with_torchs_own


def _require_ours(folder: Path) -> None:
    """Raise UserError if the model in `folder` is none of ours, or not to be trusted."""
    format_of(folder)
    check_model(folder)


def _checked_model(get_model_info: Callable[..., Any]) -> Callable[..., Any]:
    def check_first(model_dir: str, model_type: str | None, quantization_config: Any) -> Any:
        if model_type in MODEL_TYPES:
            _require_ours(Path(model_dir))
        return get_model_info(model_dir, model_type, quantization_config)

    return check_first


def _checked_reference(prepare: Callable[..., Any]) -> Callable[..., Any]:
    def check_first(
        self: Any, key: str, origin_key: str, model_type: str | None, revision: str | None
    ) -> Any:
        args = self.args
        model = getattr(args, f"{key}_model")
        if model_type in MODEL_TYPES and isinstance(model, str):
            where = {"revision": revision, "use_hf": args.use_hf, "hub_token": args.hub_token}
            # As MS-SWIFT does next: of a hub's model its configs only.
            _require_ours(Path(safe_snapshot_download(model, download_model=False, **where)))
        return prepare(self, key, origin_key, model_type, revision)

    return check_first


def _checked_adapter(from_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    def check_first(model: Any, model_id: str, *args: Any, **kwargs: Any) -> Any:
        meta = getattr(model, "model_meta", None)
        if getattr(meta, "model_type", None) in MODEL_TYPES:
            check_adapter(Path(model_id))
        return from_pretrained(model, model_id, *args, **kwargs)

    return check_first


def _told_template(main: Callable[..., Any]) -> Callable[..., Any]:
    def tell_template(self: SwiftPipeline) -> Any:
        # `vars`, as a pipeline looks names that it lacks up in its engine.
        template, args = vars(self).get("template"), self.args
        HiggsDatasetLoader.template = None  # an earlier run of this process may have been ours
        if isinstance(template, HiggsAudioTemplate):
            HiggsDatasetLoader.template = template
            if isinstance(args, InferArguments):
                template.speak_for(args)
            elif isinstance(args, SftArguments):
                template.go_on_from(_checkpoint_of(args, template))
                for settle in _before_tuning:
                    settle(args, self.model)
        return main(self)

    return tell_template


def _checkpoint_of(args: SftArguments, template: HiggsAudioTemplate) -> Path:
    """What a training goes on from."""
    adapter = next(iter(args.adapters or ()), None)
    return Path(args.resume_from_checkpoint or adapter or template.model_info.model_dir)


def _checked_request(infer_async: Callable[..., Any]) -> Callable[..., Any]:
    async def check_first(
        self: TransformersEngine,
        infer_request: Any,
        request_config: Any = None,
        *,
        pre_infer_hook: Any = None,
        **kwargs: Any,
    ) -> Any:
        template = self.template
        if not (isinstance(template, HiggsAudioTemplate) and template.is_server):
            kwargs["pre_infer_hook"] = pre_infer_hook
            return await infer_async(self, infer_request, request_config, **kwargs)
        if request_config is not None and request_config.stream:
            raise problem(
                source="request",
                field="stream",
                value=True,
                reason="is not available: speech is sent whole",
                remedy="leave it out",
            )

        def with_seed(batch: dict[str, Any]) -> dict[str, Any]:
            # The generation config is all of a request that reaches `generate`.
            batch["generation_config"].seed = batch["request_config"].seed
            return batch if pre_infer_hook is None else pre_infer_hook(batch)

        return await infer_async(
            self, infer_request, request_config, pre_infer_hook=with_seed, **kwargs
        )

    return check_first


PATCHES = (
    Patch(
        DatasetSyntax,
        "get_dataset_meta",
        _our_loader,
        reason="a loader is looked up by exact path or hub id, so that a dataset which nobody"
        " registered gets the default one: it knows no line numbers, drops faulty rows and asks a"
        " hub for a missing file",
        without="rows are not checked before training",
        link="https://github.com/modelscope/ms-swift/issues/4026",
    ),
    Patch(
        BaseDatasetLoader,
        "post_process",
        _our_columns,
        reason="a dataset that is registered with MS-SWIFT keeps its loader, whose columns are of"
        " other types: `datasets` joins it with none of ours",
        without="registered datasets cannot be mixed with rows of speech",
    ),
    Patch(
        AddLengthPreprocessor,
        "__call__",
        _known_lengths,
        reason="for group_by_length and packing each row is encoded in full, audio and codec"
        " included, and thrown away but for its length, which our rows bring",
        without="lengths of rows cost an epoch of encoding",
        may_go_with="test_rows_that_bring_their_lengths_are_not_encoded_for_them",
    ),
    Patch(
        SftArguments,
        "_check_padding_free",
        _torchs_own,
        reason="packing is refused unless a flash attention is named, and the name of the one that"
        " every torch brings does not say so",
        without="packing needs --attn_impl flash_attn",
    ),
    Patch(
        model_meta,
        "_get_model_info",
        _checked_model,
        reason="config.json is read with trust_remote_code=True, asked or not: with a model type"
        " that transformers does not know, a stranger's auto_map runs a file of his",
        without="code of foreign checkpoints may be run",
        may_go_with="test_a_config_is_read_without_running_code",
    ),
    Patch(
        SwiftRLHF,
        "_prepare_single_model",
        _checked_reference,
        reason="the config.json of a reference is read with trust_remote_code=True before the model"
        " type is asked for",
        without="code of foreign reference models may be run",
    ),
    Patch(
        Swift,
        "from_pretrained",
        _checked_adapter,
        reason="adapters of all kinds pass here, some of which load others, a tokenizer or a"
        " module (docs/security.md)",
        without="adapters are not checked",
    ),
    Patch(
        SwiftPipeline,
        "main",
        _told_template,
        reason="a template gets no arguments (where do results go? which checkpoint is trained"
        " on?), and a trainer comes after the tuner",
        without="swift infer and swift deploy cannot speak",
    ),
    Patch(
        TransformersEngine,
        "infer_async",
        _checked_request,
        reason="a server answers stream with status 200 before anything of a template runs, and"
        " keeps the seed of a request to itself",
        without="swift deploy honours no seed",
    ),
)

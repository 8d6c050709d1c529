"""Preferences: log-probabilities that are the loss's own, the formulas, and what a step adds up
to, on the golden model."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import AUDIO, DELAY, TOKENS, golden_model
from peft import LoraConfig, get_peft_model
from torch import Tensor

from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.delay_pattern import IGNORE_INDEX, delay_labels
from plugins.model.loss import LossSums, LossWeights
from plugins.model.preferences import NAMES, PreferenceLoss, log_probabilities, of_chosen

CHOSEN, REJECTED = (3, 6, 4, 5), (5, 2, 4, 9)  # frames of the clips of four pairs


def sample(num_frames: int, seed: int, text: int = 50) -> EncodedSample:
    """A prompt of one token, and a clip."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1024, (8, num_frames), generator=generator)
    clip = [AUDIO] * (num_frames + 2) + [DELAY] * 7
    ids = [2, text, 301, *clip, 300, 298]
    labels = [IGNORE_INDEX] * 3 + [IGNORE_INDEX] * len(clip) + [300, 298]
    return EncodedSample(ids, labels, [codes], [True])


def pairs(*numbers: int) -> dict[str, Any]:
    """The batch of those pairs, the chosen rows first, as MS-SWIFT collates it."""
    chosen = [sample(CHOSEN[i], i, text=50 + i) for i in numbers]
    rejected = [sample(REJECTED[i], 100 + i, text=50 + i) for i in numbers]
    return collate(chosen + rejected, TOKENS, training=True)


def test_log_probabilities_are_minus_the_cross_entropies_of_the_loss() -> None:
    """Of rows of unequal lengths side by side, against each alone; and against log_softmax over
    the delayed codes."""
    model = golden_model().eval()
    samples = [sample(3, 0), sample(9, 1), sample(1, 2)]
    with torch.no_grad():
        together = collate(samples, TOKENS, training=True)
        logps = log_probabilities(model(**together, rows_apart=True).audio)
        for i, one in enumerate(samples):
            batch = collate([one], TOKENS, training=True)
            loss = model(**batch).audio_loss.sum()
            assert float(logps[i]) == pytest.approx(-float(loss), rel=1e-6, abs=1e-5)
            assert float(logps[i]) == pytest.approx(by_definition(model, one), rel=1e-6, abs=1e-5)


def by_definition(model: Any, one: EncodedSample) -> float:
    batch = collate([one], TOKENS, training=True)
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    logits = model.audio_lm_head(model.hidden_states(**inputs))[0].view(-1, 8, 1026)
    first = one.input_ids.index(AUDIO)
    total = 0.0
    labels = delay_labels(one.clips[0], eos_id=TOKENS.stream_eos)  # (F + 9, 8)
    for t, frame in enumerate(labels.tolist()):
        for k, code in enumerate(frame):
            if code != IGNORE_INDEX:
                total += float(logits[first + t - 1, k].double().log_softmax(-1)[code])
    return total


def test_sums_apart_add_up_to_the_sums_of_the_batch() -> None:
    model = golden_model().eval()
    batch = pairs(0, 1)
    with torch.no_grad():
        whole, apart = model(**batch), model(**batch, rows_apart=True)
    for name in ("text", "audio"):
        for field in ("loss", "z", "correct", "count"):
            sums, rows = getattr(getattr(whole, name), field), getattr(getattr(apart, name), field)
            assert rows.shape == (4, *sums.shape)
            torch.testing.assert_close(rows.sum(dim=0).float(), sums, rtol=1e-5, atol=1e-5)
    chosen = of_chosen(apart.audio)
    torch.testing.assert_close(chosen.loss, apart.audio_loss[:2].sum(dim=0))
    assert chosen.count.tolist() == [CHOSEN[0] + CHOSEN[1] + 2] * 8  # and an EOS of each clip


def sums_of(logps: list[float], counts: list[float]) -> LossSums:
    loss = -torch.tensor(logps, dtype=torch.double)[:, None]
    count = torch.tensor(counts, dtype=torch.double)[:, None]
    return LossSums(loss, loss[:, 0], loss, count)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # Log-ratios: -10 + 12 = 2, and -30 + 29 = -1; per code 2 / 4 and -1 / 5.
        (PreferenceLoss(beta=0.5), -math.log(sigmoid(0.5 * 3))),
        (PreferenceLoss("sigmoid_norm", beta=2), -math.log(sigmoid(2 * 0.7))),
        (PreferenceLoss("ipo", beta=0.5), (0.7 - 1) ** 2),
        (
            PreferenceLoss(beta=0.5, label_smoothing=0.25),
            -0.75 * math.log(sigmoid(1.5)) - 0.25 * math.log(sigmoid(-1.5)),
        ),
    ],
)
def test_the_formulas(loss: PreferenceLoss, expected: float) -> None:
    policy, reference = sums_of([-10, -30], [4, 5]), torch.tensor([-12.0, -29.0]).double()
    result = loss.of(policy, reference)
    assert result.losses.tolist() == pytest.approx([expected])
    is_of_clip = loss.name == "sigmoid"
    assert float(result.chosen_rewards) == pytest.approx(loss.beta * (2 if is_of_clip else 0.5))
    assert float(result.rejected_rewards) == pytest.approx(loss.beta * (-1 if is_of_clip else -0.2))


def test_a_tie_is_half_right() -> None:
    logps = [-10.0, -10.0, -10.0, -20.0, -20.0, -20.0]
    reference = torch.tensor([-10, -11, -9, -20, -20, -20]).double()
    result = PreferenceLoss(beta=1.0).of(sums_of(logps, [1.0] * 6), reference)
    sums = dict(zip(NAMES, result.sums().tolist(), strict=True))
    assert sums["pairs"] == 3
    assert sums["rewards/accuracies"] == 0.5 + 1 + 0
    assert sums["rewards/chosen"] == 0 + 1 - 1
    assert (sums["logps/chosen"], sums["logps/rejected"]) == (-30, -60)


# A step of the trainer, without MS-SWIFT around it.


def stub(model: Any, **loss: Any) -> Any:
    from plugins.preference_trainer import HiggsAudioPreferenceTrainer as Trainer

    trainer = SimpleNamespace(
        model=model,
        reference=None,
        preference_loss=PreferenceLoss(**loss),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda counts: counts),
        loss_weights=lambda: LossWeights(1.0, 1.0, 0.001, (1.0,) * 8),
    )
    trainer.reference_log_probabilities = Trainer.reference_log_probabilities.__get__(trainer)
    trainer.loss_and_outputs = Trainer.loss_and_outputs.__get__(trainer)
    return trainer


def counts_of(batches: list[dict[str, Any]]) -> Tensor:
    from plugins.preference_trainer import HiggsAudioPreferenceTrainer as Trainer

    trainer = object.__new__(Trainer)
    trainer.accelerator = SimpleNamespace(gather=lambda counts: counts)
    return trainer._get_num_items_in_batch(batches, torch.device("cpu"))


@pytest.fixture(scope="module")
def adapted() -> Any:
    """The golden model with an adapter that has learnt something, and a module trained whole."""
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["audio_lm_head"],
        lora_dropout=0.5,
    )
    model = get_peft_model(golden_model(), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.train()


def test_without_its_adapter_the_model_is_its_base_to_the_bit(adapted: Any) -> None:
    from plugins.training.preferences import without_dropout

    batch = pairs(0, 1, 2, 3)
    with torch.no_grad():
        expected = log_probabilities(golden_model().eval()(**batch, rows_apart=True).audio)
    before = {name: p.requires_grad for name, p in adapted.named_parameters()}
    reference = stub(adapted).reference_log_probabilities(batch)
    assert torch.equal(reference, expected)
    assert not reference.requires_grad
    # And afterwards it is itself again.
    assert adapted.training
    assert {name: p.requires_grad for name, p in adapted.named_parameters()} == before
    without_dropout(adapted)
    with torch.no_grad():
        own = log_probabilities(adapted(**batch, rows_apart=True).audio)
    assert (own - expected).abs().min() > 1e-3


def gradients(model: Any, split: list[list[int]], **loss: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step over the four pairs, in those micro-batches."""
    trainer, batches = stub(model, **loss), [pairs(*numbers) for numbers in split]
    num_items = counts_of(batches)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        part, _ = trainer.loss_and_outputs(model, batch, num_items)
        part.backward()
        total += float(part.detach())
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
    return total, found


@pytest.mark.parametrize(
    "loss", [{}, {"name": "ipo"}, {"name": "sigmoid_norm", "beta": 5.0, "sft_weight": 0.5}]
)
def test_a_batch_has_the_gradients_of_its_halves_accumulated(
    adapted: Any, loss: dict[str, Any]
) -> None:
    from plugins.training.preferences import without_dropout

    without_dropout(adapted)
    whole, expected = gradients(adapted, [[0, 1, 2, 3]], **loss)
    for split in ([[0, 1], [2, 3]], [[0, 1, 2], [3]], [[3], [1], [0], [2]]):
        total, found = gradients(adapted, split, **loss)
        assert total == pytest.approx(whole, rel=1e-6)
        for name, gradient in found.items():
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=name
            )


def test_what_is_counted_is_of_the_chosen_rows() -> None:
    assert counts_of([pairs(0, 1), pairs(2)]).tolist() == [3 * 2, 3 + 6 + 4 + 3, 3]


def test_a_model_that_is_its_own_reference_begins_at_log_2() -> None:
    model = get_peft_model(golden_model(), LoraConfig(r=4, target_modules=["q_proj"]))
    batch = pairs(0, 1, 2)
    loss, outputs = stub(model).loss_and_outputs(model, batch, counts_of([batch]))
    assert float(loss.detach()) == pytest.approx(math.log(2), rel=1e-7)
    sums = dict(zip(NAMES, outputs.preferences.tolist(), strict=True))
    assert (sums["rewards/chosen"], sums["rewards/rejected"]) == (0, 0)
    assert sums["rewards/accuracies"] / sums["pairs"] == 0.5

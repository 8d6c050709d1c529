"""The dual loss: parity with `F.cross_entropy`, empty masks, zero weights, and where gradients
go."""

import pytest
import torch
import torch.nn.functional as F

from plugins.delay_pattern import IGNORE_INDEX
from plugins.model.loss import LossWeights, audio_loss_sums, combine, shifted_rows, text_loss_sums

B, S, K, C, H, V = 2, 7, 3, 11, 5, 13


def weights(**changes: object) -> LossWeights:
    values = {"text": 1.0, "audio": 1.0, "auxiliary": 0.0, "codebooks": (1.0,) * K, **changes}
    return LossWeights(**values)  # type: ignore[arg-type]


@pytest.fixture
def case() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.full((B, S), IGNORE_INDEX)
    labels[0, 1], labels[1, 5] = 3, 4
    audio_labels = torch.full((B, S, K), IGNORE_INDEX)
    for k in range(K):
        audio_labels[0, 2 + k : 4 + k, k] = torch.tensor([k, k + 1])
    return {
        "hidden": torch.randn(B, S, H, requires_grad=True),
        "labels": labels,
        "audio_labels": audio_labels,
        "text_head": torch.randn(V, H, requires_grad=True),
        "audio_head": torch.randn(K * C, H, requires_grad=True),
    }


def dual_loss(case: dict[str, torch.Tensor], w: LossWeights) -> torch.Tensor:
    text = text_loss_sums(
        *shifted_rows(case["hidden"], case["labels"]), lambda rows: rows @ case["text_head"].T
    )
    audio = audio_loss_sums(
        *shifted_rows(case["hidden"], case["audio_labels"]),
        lambda rows: rows @ case["audio_head"].T,
        C,
    )
    return combine(text, audio, num_text=text.count, num_frames=audio.count[0], weights=w)


def test_equals_cross_entropy_over_shifted_logits(case: dict[str, torch.Tensor]) -> None:
    """Mean over text tokens plus mean over codebooks of the mean over frames, both predicting the
    next position."""
    text_logits = case["hidden"] @ case["text_head"].T
    audio_logits = (case["hidden"] @ case["audio_head"].T).view(B, S, K, C)
    text = F.cross_entropy(text_logits[:, :-1].flatten(0, 1), case["labels"][:, 1:].flatten())
    # Each codebook is a loss of its own; the model's is their mean or their sum.
    audio = []
    for k in range(K):
        logits, labels = audio_logits[:, :-1, k], case["audio_labels"][:, 1:, k]
        audio.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    torch.testing.assert_close(dual_loss(case, weights()), text + sum(audio) / K)
    torch.testing.assert_close(dual_loss(case, weights(sum_codebooks=True)), text + sum(audio))
    torch.testing.assert_close(
        dual_loss(case, weights(codebooks=(2.0, 1.0, 0.0))), text + (2 * audio[0] + audio[1]) / 3
    )


def test_z_loss_is_the_mean_squared_log_partition(case: dict[str, torch.Tensor]) -> None:
    text_z = (case["hidden"] @ case["text_head"].T).logsumexp(-1).square()
    audio_z = (case["hidden"] @ case["audio_head"].T).view(B, S, K, C).logsumexp(-1).square()
    trained = [text_z[0, 0], text_z[1, 4]]
    for k in range(K):
        trained += [audio_z[0, 1 + k, k], audio_z[0, 2 + k, k]]  # each row predicts the next
    expected = torch.stack(trained).mean()
    torch.testing.assert_close(
        dual_loss(case, weights(text=0.0, audio=0.0, auxiliary=1.0)), expected
    )


@pytest.mark.parametrize("empty", ["labels", "audio_labels"])
def test_a_modality_without_labels_gives_zero_and_zero_gradients(
    case: dict[str, torch.Tensor], empty: str
) -> None:
    """DDP hangs if a parameter has no gradient on one rank: an absent modality must give zeros, not
    None or NaN."""
    case[empty].fill_(IGNORE_INDEX)
    dual_loss(case, weights(auxiliary=0.1)).backward()
    head = {"labels": "text_head", "audio_labels": "audio_head"}[empty]
    assert case[head].grad is not None
    assert case[head].grad.abs().max() == 0
    assert case["hidden"].grad.isfinite().all()


def test_nothing_trained_is_exactly_zero(case: dict[str, torch.Tensor]) -> None:
    case["labels"].fill_(IGNORE_INDEX)
    case["audio_labels"].fill_(IGNORE_INDEX)
    assert dual_loss(case, weights(auxiliary=1.0)).item() == 0


def test_weight_zero_removes_a_term(case: dict[str, torch.Tensor]) -> None:
    dual_loss(case, weights(audio=0.0)).backward()
    assert case["audio_head"].grad.abs().max() == 0
    assert case["text_head"].grad.abs().max() > 0


def test_gradients_reach_only_the_rows_before_labels(case: dict[str, torch.Tensor]) -> None:
    dual_loss(case, weights()).backward()
    touched = (case["hidden"].grad.abs().sum(-1) > 0).nonzero().tolist()
    assert touched == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 4]]


def test_accuracy_counts_only_trained_predictions(case: dict[str, torch.Tensor]) -> None:
    rows, targets = shifted_rows(case["hidden"], case["audio_labels"])
    perfect = F.one_hot(targets.clamp(min=0), C).float().flatten(1)
    sums = audio_loss_sums(rows, targets, lambda _: perfect, C)
    assert sums.correct.tolist() == sums.count.tolist() == [2.0] * K

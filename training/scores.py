"""How well a script's model does: the share of right choices, and of answers that are exactly right."""

from collections.abc import Sequence
from typing import Any

from arr_coc.training.collate import AnswerCollator, ChoiceCollator


def accuracy(prediction: Any) -> dict[str, float]:
    """`compute_metrics` of a dual encoder: how often the right candidate, (N,), scores best of (N, C)."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def choice_accuracy(model: Any, collate: ChoiceCollator, rows: Sequence[Any], batch: int = 50) -> float:
    """Share of rows whose right candidate scores best with a dual encoder, outside a Trainer."""
    right = 0
    for start in range(0, len(rows), batch):
        some = [rows[place] for place in range(start, min(start + batch, len(rows)))]
        inputs = {name: value.to(model.device) for name, value in collate(some).items()}
        labels = inputs.pop("labels")
        right += int((model(**inputs).logits_per_image.argmax(1) == labels).sum())
    return right / len(rows)


def exact_match(
    model: Any, collate: AnswerCollator, rows: Sequence[Any], batch: int = 50, **options: Any
) -> float:
    """Share of rows whose greedily decoded answer is the right one, but for capitals and spaces around it.

    Args:
        options: of `generate`.
    """
    right = 0
    for start in range(0, len(rows), batch):
        some = [rows[place] for place in range(start, min(start + batch, len(rows)))]
        said = collate.answers(model, some, **options)
        wanted = [str(row[collate.answer]).strip().lower() for row in some]
        right += sum(s.lower() == w for s, w in zip(said, wanted, strict=True))
    return right / len(rows)

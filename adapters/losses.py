"""The loss that an output carries when labels were passed to `forward`: that of what it answers.

The model computes its loss inside, from its own logits, before what was learned is mixed in. Who reads it (a
`transformers.Trainer` that evaluates, a metric) means the answers that come with it. So it is moved by what
the adapter changes,

    loss + sum over taught places of (log p_own - log p) / n,

n the taught places or, where it is given, `num_items_in_batch`. For a mean or sum of -log p, which nearly all
models have, that is the loss of the adapted logits; what else a model adds (a router's balance) stays as it
is. Nothing learned moves nothing, bit for bit. It has no gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

Places = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, list[str]]]


def of_words(taught: Places, asked: Mapping[str, Any], loss: Tensor, own: Tensor, adapted: Tensor) -> Tensor:
    """A generative model's loss, moved.

    Args:
        taught: the places that labels teach, `GenerativeBody.taught`.
        asked: the model's inputs, labels among them; with `num_items_in_batch` the loss is a sum over that.
        loss: the model's own. own, adapted: logits, (B, T, V).
    """
    sample, place, _, names = taught(asked["labels"])
    words = torch.tensor([int(name) for name in names]).to(sample)
    there = place >= -own.shape[1]  # of the others no logits were kept
    sample, place, words = sample[there], place[there], words[there]

    def log_p(logits: Tensor) -> Tensor:
        return logits[sample, place].float().log_softmax(-1).gather(1, words.unsqueeze(1)).double()

    items = asked.get("num_items_in_batch")
    many = len(words) if items is None else items
    return loss + ((log_p(own) - log_p(adapted)).sum() / many).to(loss)


def _softmax(scores: Tensor) -> Tensor:
    right = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2


def _sigmoid(scores: Tensor) -> Tensor:
    sign = 2 * torch.eye(len(scores)).to(scores) - 1
    return -logsigmoid(sign * scores).sum(1).mean()


def of_pairs(loss: Tensor, own: Tensor, adapted: Tensor) -> Tensor:
    """A dual encoder's contrastive loss (`return_loss=True`), of pictures and texts that belong together in
    turn: CLIP's (softmax over both sides) or SigLIP's (sigmoid), whichever it is of its own scores, (B, B). A
    loss that is neither stays the model's own."""
    if own.dim() == 2 and own.shape[0] == own.shape[1]:
        for formula in (_softmax, _sigmoid):
            before = formula(own.float())
            if torch.allclose(before, loss.float(), rtol=1e-2):
                return loss + (formula(adapted.float()) - before).to(loss)
    return loss

"""Acting: choices that are rewarded later, whichever adapters are to learn from them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arr_coc import sources
from arr_coc.adapters.answers import IGNORE, behind, labels_for, new_tokens
from arr_coc.adapters.checks import label_rows, rewards
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.perceived import GONE, Handle, Perceived
from arr_coc.adapters.writing import generate

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel


def act(attached: "ArrCocModel", inputs: dict[str, Any], choice: Tensor | None = None) -> Handle:
    """See `ArrCocModel.act`: the first plastic adapter chooses, where nobody did, and all of them
    remember."""
    if isinstance(attached.body, GenerativeBody):
        if choice is not None:
            raise TypeError("a generative model writes its own answer; choice= is for candidate texts")
        return _act_in_words(attached, attached.body, inputs)
    seen = attached.perceive(**inputs)
    if choice is not None:
        choice = label_rows(choice, seen.percept.batch, len(seen.keys), "choice")
    groups = [[place] for place in range(seen.percept.batch)]
    choice, numbers = _remember(attached, seen, seen.keys, choice, groups)
    return Handle(next(iter(numbers.values())), choice, numbers)


def _act_in_words(attached: "ArrCocModel", body: GenerativeBody, inputs: dict[str, Any]) -> Handle:
    given = dict(inputs)
    keep, mix = given.pop("keep_tokens", None), given.pop("mix", None)
    shown = {k: v for k, v in given.items() if isinstance(v, Tensor)}  # what steers `generate` is no tensor
    body.check(shown)
    copied = {k: v.clone() if k in shown else v for k, v in given.items()}
    written = generate(attached, (), copied, keep, mix, explore=True)
    pad = getattr(attached.model.generation_config, "pad_token_id", None)
    if body.encoder_decoder:
        answer = written[:, 1:]  # behind the token that it starts from
        full, taught = shown, answer if pad is None else answer.masked_fill(answer == pad, IGNORE)
    else:
        answer = new_tokens(written, shown["input_ids"], body.family)
        full = behind(shown, answer, body.family)
        taught = labels_for(shown, answer, pad, body.family)
    seen = attached.perceive(labels=taught, **full)
    names = list(dict.fromkeys(seen.keys))
    forced = torch.tensor([names.index(k) for k in seen.keys])
    of_sample = body.taught(taught)[0].tolist()
    groups = [[place for place, s in enumerate(of_sample) if s == b] for b in range(len(taught))]
    _, numbers = _remember(attached, seen, names, forced, groups)
    return Handle(next(iter(numbers.values())), answer, numbers, attached.kept if mix is None else None)


def _remember(
    attached: "ArrCocModel", seen: Perceived, names: list[str], choice: Tensor | None, groups: list[list[int]]
) -> tuple[Tensor, dict[str, int]]:
    """Keep what every plastic adapter will need for the reward, grouped by sample; without a choice the first
    one makes it."""
    numbers = {}
    with torch.no_grad():
        for name in attached.plastic:
            learner = attached.adapter(name)
            choice, left = learner.act(seen.percept, names, choice)
            numbers[name] = learner.pending.add([[left[place] for place in group] for group in groups])
    assert choice is not None
    return choice, numbers


def reward(
    attached: "ArrCocModel", handle: Handle, given: Tensor | float, source: str | None = None
) -> Tensor:
    """See `ArrCocModel.reward`; nothing changes before every adapter's part of the action is found."""
    numbers = handle.numbers or {attached.plastic[0]: handle.number}
    known = attached.adapters
    there = {name: number for name, number in numbers.items() if name in known and number != GONE}
    learning = [name for name in there if name in attached.plastic]
    if not learning:
        raise KeyError(
            f"action {handle.number} was taken with {', '.join(numbers)}, and none of them learns now: "
            f"plastic are {', '.join(attached.plastic)}"
        )
    waiting = {name: attached.adapter(name).pending.get(number) for name, number in there.items()}
    for name in learning:
        sources.check(attached.adapter(name), source)
    r = rewards(given, len(waiting[learning[0]]))
    deltas = []
    for name in learning:
        groups = waiting[name]
        each = torch.cat([r[i].expand(len(group)) for i, group in enumerate(groups)])
        with torch.no_grad():
            left = [e for group in groups for e in group]
            deltas.append(attached.adapter(name).reward(left, each, source))
    if handle.kept is not None and len(r) == len(handle.kept.mixes):
        learner = attached.adapter(learning[0])
        for context, mix, value in zip(handle.kept.contexts, handle.kept.mixes, r.tolist(), strict=True):
            learner.mixture.learn(context.to(learner.mixture.kinds), mix, value)
    for name, number in there.items():
        attached.adapter(name).pending.drop(number)
    return deltas[0]

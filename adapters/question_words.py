"""A prompt's words of content, and how well visual tokens match them, in the space that a language model is
given both in."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.relevance.asked import word_evidence
from arr_coc.relevance.spread import Grid

# words that say how is asked, and not what for
_FUNCTION = """
    a an the this that these those there here it its is are was were be been being am do does did have has had
    can could will would shall should may might must what which who whom whose where when why how many
    much of in on at to from by with without for and or not no nor if as than then so but into onto over under
    i you he she they we me him her them us my your his their our any some all each every other
    user assistant system human image picture photo item items object objects thing things kind type sort
    colour color shape number name please answer question describe tell show say see look
"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
_CHUNK = 8192  # words of a table that are read at a time
_MARKS = re.compile(r"^(\u0120|\u2581|##)+|</w>$")  # of where a word begins or ends, in a vocabulary


class QuestionWords:
    """Which words of a prompt tell what is asked for, by a tokenizer, and their embeddings.

    Args:
        embeddings: gives the language model's table of words.
        processor: a tokenizer or what has one; None, or one that tells no words: no word is of content.
    """

    def __init__(self, embeddings: Callable[[], nn.Module], processor: Any = None) -> None:
        self.embeddings = embeddings
        tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer = tokenizer if hasattr(tokenizer, "convert_ids_to_tokens") else None
        self._content: dict[int, bool] = {}
        self._plain: Tensor | None = None
        self._mean: Tensor | None = None

    def content(self, ids: Tensor) -> Tensor:
        """Which positions are words of content, (B, T) bool."""
        if self.tokenizer is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        distinct, place = ids.unique(return_inverse=True)
        for token in distinct.tolist():
            if token not in self._content:
                self._content[token] = self._tells(token)
        return torch.tensor([self._content[t] for t in distinct.tolist()], device=ids.device)[place]

    def _tells(self, token: int) -> bool:
        assert self.tokenizer is not None
        text = _bare(str(self.tokenizer.convert_ids_to_tokens(token) or "")).lower()
        special = token in getattr(self.tokenizer, "all_special_ids", ())
        return not special and len(text) > 1 and text.isalpha() and text not in FUNCTION_WORDS

    def _said(self, ids: Tensor, width: int) -> Tensor | None:
        """Their embeddings, (..., width); None where there is no table, or it is of another space.

        The module itself is asked, and not its weight: that may be offloaded, and is scaled by some models.
        """
        module = self.embeddings()
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            return None
        offloaded = weight.is_meta
        if weight.shape[1] != width or (offloaded and not hasattr(module, "_hf_hook")):
            return None
        said = module(ids if offloaded else ids.to(weight.device))
        return said if said.shape[-1:] == (width,) and said.is_floating_point() else None

    def _learn_table(self, width: int) -> bool:
        """The mean of all words and those that name nothing; the table is frozen, so it is read once."""
        if self._mean is None or len(self._mean) != width:
            weight = getattr(self.embeddings(), "weight", None)
            count = len(weight) if isinstance(weight, Tensor) else 0
            total = torch.zeros(width, dtype=torch.float64)
            for some in torch.arange(count).split(_CHUNK):
                said = self._said(some, width)
                if said is None:
                    return False
                total += said.detach().double().sum(0).cpu()
            plain = self._said(torch.tensor(self._plain_ids(count), dtype=torch.long), width)
            if plain is None:
                return False
            self._mean = (total / max(count, 1)).float()
            self._plain = plain.detach().float().cpu() - self._mean
        return True

    def evidence(
        self,
        ids: Tensor,
        said: Tensor,
        tokens: Tensor,
        there: Tensor | None = None,
        grid: Grid = None,
    ) -> Tensor | None:
        """`word_evidence` of the words `said` (B, T) of `ids` (B, T) for visual tokens (B, N, d) as the
        language model is given them, (B, N) in float32; None where no word is said or they share no space.

        Args:
            there, grid: of the tokens, as there.
        """
        width = tokens.shape[-1]
        if not bool(said.any()) or not self._learn_table(width):
            return None
        most = int(said.sum(1).max())
        first = (~said).long().argsort(dim=1, stable=True)[:, :most]  # those that are said, in their order
        said = said.gather(1, first)
        words = self._said(ids.gather(1, first).masked_fill(~said, 0), width)
        assert words is not None
        assert self._mean is not None
        assert self._plain is not None
        mean, plain = self._mean.to(tokens.device), self._plain.to(tokens.device)
        words = words.detach().to(tokens.device).float() - mean
        return word_evidence(tokens.float(), words, plain, said.to(tokens.device), there, grid)

    def _plain_ids(self, count: int) -> list[int]:
        assert self.tokenizer is not None
        known: dict[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return sorted(i for text, i in known.items() if i < count and _bare(text).lower() in FUNCTION_WORDS)


def _bare(text: str) -> str:
    return _MARKS.sub("", text)

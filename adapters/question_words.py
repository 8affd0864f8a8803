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

    def table(self, width: int) -> Tensor | None:
        """All words, (V, width); None where they cannot be read (offloaded), or are in another space."""
        table = getattr(self.embeddings(), "weight", None)
        known = isinstance(table, Tensor) and not table.is_meta and table.shape[-1:] == (width,)
        return table.detach() if known and table is not None and table.is_floating_point() else None

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
        table = self.table(tokens.shape[-1]) if bool(said.any()) else None
        if table is None:
            return None
        if self._mean is None or self._plain is None:  # the table is frozen: once
            self._mean = table.float().mean(0)
            self._plain = table[self._plain_ids(len(table))].float() - self._mean
        mean = self._mean.to(tokens.device)
        most = int(said.sum(1).max())
        first = (~said).long().argsort(dim=1, stable=True)[:, :most]  # those that are said, in their order
        said = said.gather(1, first)
        rows = ids.gather(1, first).masked_fill(~said, 0).to(table.device)
        words = table[rows].to(tokens.device).float() - mean
        plain = self._plain.to(tokens.device)
        return word_evidence(tokens.float(), words, plain, said.to(tokens.device), there, grid)

    def _plain_ids(self, count: int) -> list[int]:
        assert self.tokenizer is not None
        known: dict[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return sorted(i for text, i in known.items() if i < count and _bare(text).lower() in FUNCTION_WORDS)


def _bare(text: str) -> str:
    return _MARKS.sub("", text)

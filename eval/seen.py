"""Seen: what was relevant for every word, as pictures and as a page to move about in.

seen = see(attached, image, "the red circle")      # a dual encoder: a map for each word, and for the whole
seen = see(attached, image, "what is red?")        # a generative model: a map for each token of its answer
seen.picture()                                     # a Pillow image; a notebook shows the page itself
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from arr_coc.adapters import texts
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.eval.overlay import TOP, colour_bar, data_uri, fitted, heat, overlay
from arr_coc.training.collate import AnswerCollator

Map = NDArray[np.float64]
SIDE = 384  # px


@dataclass(frozen=True)
class Beside:
    """A map to compare with.

    Args:
        name: of the method. relevance: (h, w), not negative. score: in words, or "".
    """

    name: str
    relevance: Map
    score: str = ""


@dataclass(frozen=True)
class Seen:
    """One picture and one text, and what was relevant.

    Args:
        image: the picture as the model saw it (cropped and scaled). text: what was asked for.
        answer: what a generative model wrote; "" for a dual encoder.
        words: of the text, or the tokens of the answer.
        maps: relevance for each word, (W, h, w), each sums to 1.
        whole: for the whole text, or the mean over the answer, (h, w).
        kept: visual tokens in the order in which they are kept, (h w,).
        beside: other maps of the same picture and text.
    """

    image: Image.Image
    text: str
    answer: str
    words: list[str]
    maps: Map
    whole: Map
    kept: NDArray[np.int64]
    beside: Sequence[Beside] = field(default=())

    def picture(self, word: int | None = None, keep: int | None = None, side: int = SIDE) -> Image.Image:
        """The picture under its relevance, or with only the `keep` most relevant patches left.

        Args:
            word: whose map; None: the whole text's.

        Raises:
            ValueError: for a word or a number of patches that there is not.
        """
        if word is not None and not 0 <= word < len(self.words):
            raise ValueError(f"word={word}: there are {len(self.words)}, 0 to {len(self.words) - 1}")
        relevance = self.whole if word is None else self.maps[word]
        if keep is None:
            return overlay(self.image, relevance, side=side)
        if not 1 <= keep <= relevance.size:
            raise ValueError(f"keep={keep}: 1 to {relevance.size} patches are possible")
        left = np.zeros(relevance.size)
        left[(self.kept if word is None else _order(relevance))[:keep]] = 1
        shown = Image.fromarray((255 * left.reshape(relevance.shape)).astype(np.uint8))
        size = fitted(relevance.shape, side)
        mask = shown.resize(size, Image.Resampling.NEAREST)
        base = self.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        return Image.composite(base, Image.new("RGB", size, (32, 32, 36)), mask)

    def page(self) -> str:
        """One self-contained HTML page: a map per word to hover over, a slider for the patches that are kept,
        and the other maps beside it, all on one colour scale."""
        environment = Environment(
            loader=PackageLoader("arr_coc.eval", "."), autoescape=True, undefined=StrictUndefined
        )
        height, width = self.whole.shape
        every = [self.whole, *self.maps]
        return environment.get_template("seen.html.jinja").render(
            title="What was relevant",
            lead=f"Asked: {self.text}" + (f" Answered: {self.answer}" if self.answer else ""),
            words=self.words,
            image=data_uri(
                self.image.convert("RGB").resize(fitted((height, width), SIDE), Image.Resampling.BICUBIC)
            ),
            whole=data_uri(self.picture()),
            grid={"height": height, "width": width, "top": TOP},
            maps=[(m * m.size).round(4).ravel().tolist() for m in every],
            orders=[self.kept.tolist(), *(_order(m).tolist() for m in self.maps)],
            colours=heat(np.linspace(0, TOP, 256)[None] / 256).reshape(-1, 3).tolist(),
            beside=[(b.name, data_uri(overlay(self.image, b.relevance)), b.score) for b in self.beside],
            bar=data_uri(colour_bar()),
            top=f"{TOP:g}",
        )

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that a notebook's other cells are left alone."""
        return f'<iframe srcdoc="{escape(self.page())}" width="100%" height="760" style="border:0"></iframe>'


def see(
    attached: ArrCocModel,
    image: Image.Image,
    text: str,
    processor: Any = None,
    prompt: str | None = None,
    beside: Sequence[Beside] = (),
    **options: Any,
) -> Seen:
    """What is relevant in a picture for a text, as an attached model finds it now. Nothing is learned.

    Args:
        processor: of the model; the one that it was attached with by default.
        prompt: see `AnswerCollator`. options: of `generate`, for a generative model.

    Raises:
        ValueError: for an empty text, or without a processor.
    """
    processor = attached.processor if processor is None else processor
    if processor is None:
        raise ValueError("a processor is needed: attach(model, config, processor=...), or processor=")
    if not text.strip():
        raise ValueError("the text is empty: nothing is asked for")
    if isinstance(attached.body, DualEncoderBody):
        words, maps, answer, pixels = _by_word(attached, image, text, processor)
        whole, maps = maps[-1], maps[:-1]
    else:
        collate = AnswerCollator(processor, attached, prompt)
        words, maps, answer, pixels = _by_token(attached, image, text, collate, options)
        whole = maps.mean(0)
    shown = as_shown(image, pixels, processor)
    return Seen(shown, text, answer, words, maps, whole, _order(whole), beside)


def as_shown(image: Image.Image, pixels: Any, processor: Any) -> Image.Image:
    """The picture as a model's processor cut it out, from pixel values (1.., 3, H, W) = (x - mean) / std; the
    picture itself where pixels come in another form."""
    side = getattr(processor, "image_processor", None)
    mean, std = (getattr(side, name, None) for name in ("image_mean", "image_std"))
    if not isinstance(pixels, torch.Tensor) or pixels.dim() != 4 or pixels.shape[1] != 3 or mean is None:
        return image.convert("RGB")
    x = pixels[0].float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return Image.fromarray((255 * x.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())


def _by_word(
    attached: ArrCocModel, image: Image.Image, text: str, processor: Any
) -> tuple[list[str], Map, str, Any]:
    """The words, relevance for each of them and for the whole text, (W + 1, h, w), "" and the pixels."""
    words = text.split()
    asked = [*words, text]
    shown = dict(processor(images=[image] * len(asked), return_tensors="pt"))
    given = {
        **shown,
        **texts.tokenized(processor, [text], attached),
        **texts.context(processor, asked, attached),
    }
    with torch.inference_mode():
        percept = attached.perceive(**_placed(given, attached)).percept
        relevance = attached.who_answers().answer(percept).relevance
    return words, _maps(relevance, percept.grid), "", shown.get("pixel_values")


def _by_token(
    attached: ArrCocModel, image: Image.Image, text: str, collate: AnswerCollator, options: Mapping[str, Any]
) -> tuple[list[str], Map, str, Any]:
    """The tokens of the answer that the model writes, relevance for each, (W, h, w), that answer and
    the pixels."""
    row = {collate.image: image, collate.question: text}
    said = collate.answers(attached, [row], **{"max_new_tokens": 24, **options})[0]
    given = _placed(collate([{**row, collate.answer: said}]), attached)
    labels = given.pop("labels")
    seen = attached.perceive(labels=labels, **given)
    with torch.inference_mode():
        relevance = attached.who_answers().answer(seen.percept).relevance
    pieces = [collate.tokenizer.decode([int(key)]).strip() for key in seen.keys]
    pieces[-1] = "(end)"
    return pieces, _maps(relevance, seen.percept.grid), said, given.get("pixel_values")


def _placed(given: Mapping[str, Any], attached: ArrCocModel) -> dict[str, Any]:
    return {name: value.to(attached.model.device) for name, value in given.items()}


def _maps(relevance: torch.Tensor, grid: tuple[int, int] | None) -> Map:
    """(W, N) on its grid, (W, h, w); a row of patches where there is none."""
    found = relevance.double().cpu().numpy()
    return found.reshape(len(found), *(grid or (1, found.shape[1])))


def _order(relevance: Map) -> NDArray[np.int64]:
    """Tokens from the most relevant to the least, the first of equal ones first."""
    return np.argsort(-relevance.ravel(), kind="stable")

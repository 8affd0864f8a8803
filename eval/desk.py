"""The desk: a person asks about a picture, says what was right, wrong or relevant, and the model learns it.

No page and no server: `serve` puts one around it. Every call may come from another thread; one lock lets one
lesson or one question through at a time, so that an answer is always that of a whole state.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from arr_coc.adapters import texts
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.perceived import Handle
from arr_coc.eval.seen import Seen, see
from arr_coc.training.collate import AnswerCollator, ChoiceCollator

MOST_PIXELS = 24_000_000  # of an upload; what a camera of today takes
MOST_TEXT = 500  # characters of a question, a candidate or an answer
MOST_CANDIDATES = 100
LONGEST = 24  # tokens of an answer


@dataclass(frozen=True)
class Said:
    """One question, what was answered, and what was relevant.

    Args:
        image: as it was given. text: what was asked. candidates: the texts to choose from (a dual encoder's).
        seen: relevance for every word. answer: the text that was chosen or written; "" without candidates.
        handle: of the answer, until it is judged; None where there is none.
        ruled_out: candidates that were judged wrong here, which are not answered again: of a wrong answer it
            is known that it is worth nothing, and nothing of the others.
    """

    image: Image.Image
    text: str
    candidates: tuple[str, ...]
    seen: Seen
    answer: str
    handle: Handle | None
    ruled_out: frozenset[str] = frozenset()


def opened(path: str | Path) -> Image.Image:
    """An uploaded picture, upright, RGB; its size is looked at before a pixel is decoded.

    Raises:
        ValueError: for what is no picture, or one of more than `MOST_PIXELS`.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise ValueError(
                    f"the picture has {width} x {height} pixels; up to {MOST_PIXELS // 1_000_000} million "
                    "are taken"
                )
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"this is no picture that can be read ({type(error).__name__})") from error


class Desk:
    """One attached model and its lessons.

    Args:
        attached: attached with a processor.
        save: a folder to write what was learned to, when asked; None: nothing is ever written.
        prompt: of a generative model without a chat template (see `AnswerCollator`).
    """

    def __init__(self, attached: ArrCocModel, save: Path | None = None, prompt: str | None = None) -> None:
        if attached.processor is None:
            raise ValueError("a processor is needed: attach(model, config, processor=...)")
        self.attached, self.target = attached, save
        self.chooses = isinstance(attached.body, DualEncoderBody)  # else it writes
        self.prompt = prompt
        self.lessons = 0
        self._lock = threading.Lock()
        if not self.chooses:
            self._collate = AnswerCollator(attached.processor, attached, prompt)

    # -- asking ----------------------------------------------------------------------------------------------

    def ask(self, image: Image.Image | None, text: str, candidates: str = "") -> Said:
        """What the model answers and where it looks.

        Args:
            image: a picture. text: what is asked for, or the question.
            candidates: for a dual encoder, the texts to choose from, one a line; "" for a map alone.

        Raises:
            ValueError: without a picture or a text, and for texts that are too long, too many or repeat.
        """
        if image is None:
            raise ValueError("there is no picture: upload one first")
        text = _text(text, "the question")
        options = tuple(_text(line, "a candidate") for line in candidates.splitlines() if line.strip())
        if len(options) > MOST_CANDIDATES:
            raise ValueError(f"{len(options)} candidates; up to {MOST_CANDIDATES} are taken")
        if len(set(options)) < len(options):
            raise ValueError("a candidate stands there twice")
        with self._lock:
            return self._ask(image, text, options)

    def _ask(
        self,
        image: Image.Image,
        text: str,
        candidates: tuple[str, ...],
        ruled_out: frozenset[str] = frozenset(),
    ) -> Said:
        seen = see(self.attached, image, text, prompt=self.prompt)
        if self.chooses:
            if not candidates:
                return Said(image, text, candidates, seen, "", None)
            scores = self.attached.predict([image], list(candidates), context=text)[0].probabilities
            best = max((c for c in candidates if c not in ruled_out), key=scores.__getitem__)
            chosen = torch.tensor([candidates.index(best)])
            handle = self.attached.act(choice=chosen, **self._chosen(image, text, candidates))
            return Said(image, text, candidates, seen, best, handle, ruled_out)
        row = {self._collate.image: image, self._collate.question: text}
        handle = self.attached.act(
            **self._placed(self._collate.prompts([row])), max_new_tokens=LONGEST, do_sample=False, num_beams=1
        )
        tokenizer = self._collate.tokenizer
        answer = tokenizer.batch_decode(handle.choice, skip_special_tokens=True)[0].strip()
        return Said(image, text, candidates, seen, answer, handle)

    # -- lessons ---------------------------------------------------------------------------------------------

    def judge(self, said: Said, right: bool) -> Said:
        """The answer was right, or it was not: a reward of 1 or 0, once.

        Raises:
            ValueError: for an answer that was judged already, or where there was none.
        """
        handle = said.handle
        if handle is None:
            raise ValueError("there is no answer to judge: ask with candidates, or ask again")

        def lesson() -> None:
            try:
                self.attached.reward(handle, float(right))
            except KeyError as error:
                raise ValueError("this answer was judged already, or too long ago: ask again") from error

        out = said.ruled_out if right or not self.chooses else said.ruled_out | {said.answer}
        return self._after(said, lesson, out if len(out) < len(said.candidates) else frozenset())

    def tell(self, said: Said, answer: str) -> Said:
        """What the right answer is: one of the candidates or, of a generative model, a text.

        Raises:
            ValueError: for no text, or none of the candidates.
        """
        answer = _text(answer, "the right answer")
        if self.chooses and answer not in said.candidates:
            possible = ", ".join(said.candidates) or "none, ask with some first"
            raise ValueError(f"{answer!r} is none of the candidates: {possible}")

        def lesson() -> None:
            if self.chooses:
                given = self._chosen(said.image, said.text, said.candidates)
                given["labels"] = torch.tensor([said.candidates.index(answer)])
            else:
                names = (self._collate.image, self._collate.question, self._collate.answer)
                given = self._collate([dict(zip(names, (said.image, said.text, answer), strict=True))])
            self.attached.learn(**self._placed(given))

        return self._after(said, lesson)

    def point(self, said: Said, x: float, y: float) -> Said:
        """Where in the picture, as the model sees it, what was asked for is: shares of its width and height.

        Raises:
            ValueError: for a place outside it.
        """

        def lesson() -> None:
            if self.chooses:
                given = self._chosen(said.image, said.text, said.candidates or (said.text,))
            else:
                row = {self._collate.image: said.image, self._collate.question: said.text}
                given = self._placed(self._collate.prompts([row]))
            self.attached.point_out(click=torch.tensor([x, y], dtype=torch.float64), **given)

        return self._after(said, lesson)

    def _after(self, said: Said, lesson: Callable[[], None], ruled_out: frozenset[str] = frozenset()) -> Said:
        """The same question again, behind a lesson; one that fails changes nothing."""
        with self._lock:
            lesson()
            self.lessons += 1
            return self._ask(said.image, said.text, said.candidates, ruled_out)

    def save(self) -> Path:
        """Write what was learned to the folder that was named at the start.

        Raises:
            ValueError: where none was named.
        """
        if self.target is None:
            raise ValueError("no folder was named to save to: start with --save FOLDER")
        with self._lock:
            self.attached.save_pretrained(self.target)
        return self.target

    # -- inputs ----------------------------------------------------------------------------------------------

    def _chosen(self, image: Image.Image, text: str, candidates: tuple[str, ...]) -> dict[str, Any]:
        processor, row = self.attached.processor, {"image": image, "label": 0}
        given = ChoiceCollator(processor, self.attached, candidates)([row])
        del given["labels"]
        return self._placed({**given, **texts.context(processor, [text], self.attached)})

    def _placed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        device = self.attached.model.device
        return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in given.items()}


def _text(given: str, what: str) -> str:
    given = (given or "").strip()
    if not given:
        raise ValueError(f"{what} is empty")
    if len(given) > MOST_TEXT:
        raise ValueError(f"{what} has {len(given)} characters; up to {MOST_TEXT} are taken")
    return given

"""The attached model: it answers, learns, acts and is saved in place of the frozen one. Made by `attach`."""

import contextlib
import copy
import inspect as pyinspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters import hub
from arr_coc.adapters.acting import act
from arr_coc.adapters.acting import reward as give
from arr_coc.adapters.adapter_set import AdapterSet
from arr_coc.adapters.calls import alone, lasting
from arr_coc.adapters.capture import Capture
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.keeping import Keep
from arr_coc.adapters.learners import check_base
from arr_coc.adapters.perceive import given_context, perceive
from arr_coc.adapters.perceived import Handle, Kept, Perceived, Prediction
from arr_coc.adapters.pointing import point_out
from arr_coc.adapters.predict import predict
from arr_coc.adapters.steer import Steering, steer, steered
from arr_coc.adapters.teach import teach
from arr_coc.adapters.text_tokens import SAID, listen, say
from arr_coc.adapters.writing import generate
from arr_coc.answer import Answer
from arr_coc.learner import Learner


class ArrCocModel(AdapterSet):
    """A model with adapters attached; make one with `attach`. Attributes it does not have are the model's
    own."""

    def __init__(
        self,
        model: Any,
        body: DualEncoderBody | GenerativeBody,
        learner: Learner,
        capture: Capture,
        processor: Any = None,
    ) -> None:
        super().__init__(learner)
        self.model, self.processor = model, processor
        self.body, self._capture = body, capture
        self._given: list[Any] = [model]  # in a list: what wraps the model is no part of it
        self._enabled = True
        self._silent = False  # while perceiving: capture, but leave the output alone
        self._context: Tensor | None = None
        self._labels: Tensor | None = None
        self._rows: Tensor | None = None
        self._signature = pyinspect.signature(model.forward)
        self._steering: Steering | None = None
        self.kept: Kept | None = None  # of the last `generate` that was to keep some tokens only
        self._hooks: list[Any] = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            body.speaker.register_forward_pre_hook(self._listen, with_kwargs=True),
            body.speaker.register_forward_hook(self._after, with_kwargs=True),
        ]
        if body.speaker is not model:
            self._hooks.append(model.register_forward_hook(self._say))
        # after an exception too, whoever called the model: nothing goes on listening, no activation is kept
        self._hooks.append(model.register_forward_hook(self._leave, always_call=True))
        self._said: Any = None  # what an inner speaker's output was given, for the model's own output

    def _get_name(self) -> str:
        return ArrCocModel.__name__

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises: TypeError. A pickle would hold the hooks and the code of one release."""
        raise TypeError(
            f"a {type(self.model).__name__} with an adapter attached cannot be pickled (as torch.save does): "
            "save_pretrained(folder) writes what was learned, ArrCocModel.from_pretrained(model, folder) "
            "attaches it again, and the model itself is what detach() gives back"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "ArrCocModel":
        """An attached model of its own; `copy.deepcopy` would ask for what `pickle` does."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    # -- forward ---------------------------------------------------------------------------------------------

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        extra = bound.pop("kwargs", {})
        return {**bound, **extra}

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._enabled and isinstance(self.body, GenerativeBody):
            self.body.begin(self._bound(args, kwargs))

    def _listen(self, speaker: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._enabled and (self._silent or self._active):
            self._rows = self.body.rows(args, kwargs, self._labels)
            self._capture.listen(self._rows)
            listen(self, self._bound(args, kwargs))

    def _after(self, speaker: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        learner = self.answering
        if not self._enabled or self._silent or learner is None or not self._capture.listening:
            return None
        try:
            with torch.no_grad():
                if isinstance(self.body, DualEncoderBody):
                    inputs, context = self._bound(args, kwargs), self._context
                    output = self.body.augment(self._capture, learner, inputs, output, context)
                    return say(self, output, inputs)
                assert self._rows is not None
                self._said = say(self, self.body.augment(self._capture, learner, output, self._rows), {})
                return self._said
        finally:
            self._capture.clear()
            if isinstance(self.body, GenerativeBody):
                self.body.rest()

    def _say(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        said, self._said = self._said, None
        if said is not None and not isinstance(output, tuple) and hasattr(said, "relevance"):
            for name in filter(lambda name: hasattr(said, name), SAID):
                setattr(output, name, getattr(said, name))

    def _leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._capture.listening and not self._silent:  # else what was heard is still to be read
            self._let_go()

    def _let_go(self) -> None:
        self._capture.clear()
        self._said = None
        if isinstance(self.body, GenerativeBody):
            self.body.rest()

    def _context_embedding(self, given: tuple[Tensor, Tensor | None] | None, inputs: Any) -> Tensor | None:
        if given is None:
            return None
        assert isinstance(self.body, DualEncoderBody)
        with self.disable():
            return self.body.context(*given, inputs)

    @contextlib.contextmanager
    def _call(
        self,
        silent: bool = False,
        context: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Iterator[None]:
        """The settings of one call; whatever happens, the ones before come back and no activation is kept."""
        before = self._silent, self._context, self._labels
        self._silent, self._context, self._labels = silent, context, labels
        try:
            yield
        finally:
            self._silent, self._context, self._labels = before
            if not silent:
                self._let_go()

    @alone
    def forward(
        self,
        *args: Any,
        context_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own forward and output class, with learned scores, `.relevance` (B, N) and `.surprise`
        (B,); with `sequence` in a config, `.text_relevance` and `.text_surprise`, one per place in
        `input_ids`. `.loss`, where labels are passed or `return_loss`, is that of the scores given (see
        `losses`), not the bare model's; it has no gradient.

        Args:
            context_ids: for a dual encoder, the text that says what relevance is asked for, (B, T) or (T,);
                without it the image's own embedding serves. A generative model's context is its prompt.
        """
        self._on()
        given = given_context(self.body, context_ids, context_attention_mask)
        with torch.inference_mode():
            inputs = self._bound(args, kwargs)
            context = self._context_embedding(given, inputs)
            with (
                steered(self, inputs, context_ids, context_attention_mask),
                self._call(context=context),
            ):
                return self.model(*args, **kwargs)

    @alone
    def generate(self, *args: Any, keep_tokens: Keep | None = None, mix: Any = None, **kwargs: Any) -> Any:
        """The model's own `generate`, every step of it answered with what was learned.

        Args:
            keep_tokens: how many visual tokens the language model sees, a number, a share in (0, 1], or one
                of these a sample; the others are dropped before it runs, positions stay. `kept` says which.
            mix: how much the kept ones are to differ, in [0, 1]; None: as learned for such questions.
        """
        self._on()
        return generate(self, args, kwargs, keep_tokens, mix)

    # -- learning --------------------------------------------------------------------------------------------

    @alone
    def perceive(
        self,
        context_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> Perceived:
        """One frozen forward pass, with nothing answered and nothing learned; inputs are checked first.

        Args:
            labels: for a generative model, (B, T): the positions to perceive are those before each taught
                token.
        """
        self._on()
        return perceive(self, context_ids, context_attention_mask, labels, inputs)

    @lasting
    def learn(self, labels: Tensor, *, source: Any = None, **inputs: Any) -> Answer:
        """One online step: one frozen forward pass and a local update of every plastic adapter. Returns the
        first one's answer from before the step.

        Args:
            labels: dual encoder: (B,), each sample's row among the candidate texts; generative: (B, T) token
                ids, -100 where nothing is taught.
            source: a text: who says so; what a source taught can be taken back (`forget`). Needs
                sources=True in the config of every plastic adapter.
            inputs: the model's own, plus `context_ids` and `context_attention_mask` for a dual encoder.

        Raises:
            ValueError, TypeError: for inputs that do not fit, before anything has changed.
        """
        self._on()
        self._check_plastic()
        return teach(self, labels, inputs, source).answer

    @lasting
    def point_out(
        self, click: Any = None, box: Any = None, mask: Any = None, in_pixels: bool = False, **inputs: Any
    ) -> Answer:
        """Say where what was asked for is: one frozen forward pass, and a local step of relevance alone in
        every plastic adapter. Returns the first one's answer from before the step.

        Args:
            click: (x, y) from the top left, (B, 2) or (2,), as shares of the picture as the model sees it.
            box: (x0, y0, x1, y1), (B, 4) or (4,), likewise.
            mask: a mask or a gaze map of any size, not negative, (B, H, W) or (H, W); resampled by area.
            in_pixels: click and box are in pixels of `pixel_values`.
            inputs: as for `learn`; a generative model's prompt, without an answer, is what was asked.

        Raises:
            ValueError, TypeError: for places that are none in the picture, and inputs that do not fit, before
                anything has changed.
        """
        self._on()
        self._check_plastic()
        return point_out(self, {"click": click, "box": box, "mask": mask}, in_pixels, inputs)

    @lasting
    def act(self, choice: Tensor | None = None, **inputs: Any) -> Handle:
        """Choose (dual: one of the candidate texts; generative: `generate`), and remember what a reward will
        need.

        Args:
            choice: for a dual encoder, the candidates that were chosen elsewhere, (B,) rows of `input_ids`.
        """
        self._on()
        self._check_plastic()
        handle = act(self, inputs, choice)
        self._handles[id(handle)] = handle
        return handle

    @lasting
    def reward(self, handle: Handle, reward: Tensor | float, source: str | None = None) -> Tensor:
        """Tell how good an action was, r in [0, 1] per sample, once; may come late and out of order.

        Args:
            source: who says so, as in `learn`.

        Returns:
            The reward prediction errors r - q_s of the first plastic adapter, one per answer (dual) or per
            written token (generative).

        Raises:
            KeyError: for a handle that is unknown, was rewarded already, or was dropped because more than
                `config.pending` newer ones were waiting.
        """
        self._check_plastic()
        return give(self, handle, reward, source)

    @alone
    def predict(
        self,
        images: Any,
        texts: list[str],
        context: str | list[str] | None = None,
        templates: tuple[str, ...] = ("{}",),
    ) -> list[Prediction]:
        """Which of the texts fits each image best, given what the context asks for; see `predict.predict`."""
        self._on()
        return predict(self, images, texts, context, templates)

    # -- life ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def disable(self) -> Iterator["ArrCocModel"]:
        """Inside, the model answers as it would without the adapter, bit for bit; then the state before comes
        back."""
        with self._turn:  # for this thread; others wait
            before, self._enabled = self._enabled, False
            try:
                yield self
            finally:
                self._enabled = before

    def steer(
        self, strength: float = 1.0, layers: Sequence[int] = (), **where: Any
    ) -> contextlib.AbstractContextManager["ArrCocModel"]:
        """Inside, the frozen model itself attends to what is relevant, by strength log(N r_n) in its
        attention's logits; afterwards it is as it was, bit for bit.

        Args:
            strength, layers: see `steer.Steering`.
            where: click, box, mask and in_pixels, as in `point_out`; without them relevance says where.
        """
        return steer(self, strength, tuple(layers), **where)

    def detach(self) -> nn.Module:
        """Take the adapter off and give the model back; nothing of arr-coc is left in it. Safe to call
        twice."""
        if self._steering is not None:
            self._steering.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._capture.remove()
        return self._given[0]

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls,
        model: nn.Module,
        source: str | Path,
        processor: Any = None,
        *,
        adapters: Sequence[str] | None = None,
        strict: bool = True,
        **options: Any,
    ) -> "ArrCocModel":
        """Attach what `save_pretrained` or `push_to_hub` wrote; it goes on exactly where it stopped.

        Args:
            model: the model that it was made on.
            source: a folder, which never touches the network, or a repo of the Hub. A string that is no
                folder is a repo.
            adapters: which ones of the saved set; all by default.
            strict: whether other weights of the model, or the same in another dtype, are an error; else they
                are a warning. Another structure is an error always.
            options: those of `hub.Source`: subfolder, revision, token, cache_dir, local_files_only, endpoint.

        Raises:
            FileNotFoundError, ValueError: if a file is missing, damaged, from a newer release, or was made
                for another model; the model is left as it was.
        """
        from arr_coc.adapters.attach import attach  # which makes what this is

        header, saved = hub.read(hub.Source(source, **options), adapters)
        if not saved:
            raise ValueError(f"adapters={adapters!r} names none; there are {', '.join(header.adapters)}")
        for one in saved:
            check_base(one, model, strict)
        attached = attach(model, saved[0].header.config, processor)
        try:
            attached._restore(header, saved)
        except BaseException:
            attached.detach()
            raise
        return attached

"""attach(model): a frozen vision-language model that keeps learning."""

import contextlib
import inspect as pyinspect
import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc import state
from arr_coc.adapters import saving
from arr_coc.adapters.capture import Capture
from arr_coc.adapters.checks import rewards
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import IGNORE, GenerativeBody
from arr_coc.adapters.perceived import Handle, Perceived, Prediction, ordinary
from arr_coc.adapters.predict import predict
from arr_coc.adapters.structure import Inspection, kind_of
from arr_coc.adapters.teach import teach
from arr_coc.answer import Answer
from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner
from arr_coc.percept import Percept

logger = logging.getLogger(__name__)
_attached: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


class ArrCocModel(nn.Module):
    """A model with an adapter attached; make one with `attach`. Attributes it does not have are the model's
    own."""

    def __init__(
        self,
        model: Any,
        body: DualEncoderBody | GenerativeBody,
        learner: Learner,
        capture: Capture,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.model, self.learner, self.processor = model, learner, processor
        self.body, self._capture = body, capture
        self._enabled = True
        self._silent = False  # while perceiving: capture, but leave the output alone
        self._context: Tensor | None = None
        self._labels: Tensor | None = None
        self._rows: Tensor | None = None
        self._signature = pyinspect.signature(model.forward)
        self._hooks: list[Any] = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            body.speaker.register_forward_pre_hook(self._listen, with_kwargs=True),
            body.speaker.register_forward_hook(self._after, with_kwargs=True),
        ]
        if body.speaker is not model:
            self._hooks.append(model.register_forward_hook(self._say))
        self._said: Any = None  # what an inner speaker's output was given, for the model's own output

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
        if self._enabled:
            self._rows = self.body.rows(args, kwargs, self._labels)
            self._capture.listen(self._rows)

    def _after(self, speaker: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self._enabled or self._silent or not self._capture.listening:
            return None
        try:
            with torch.no_grad():
                if isinstance(self.body, DualEncoderBody):
                    inputs, context = self._bound(args, kwargs), self._context
                    return self.body.augment(self._capture, self.learner, inputs, output, context)
                assert self._rows is not None
                self._said = self.body.augment(self._capture, self.learner, output, self._rows)
                return self._said
        finally:
            self._capture.clear()

    def _say(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        said, self._said = self._said, None
        if said is not None and not isinstance(output, tuple) and hasattr(said, "relevance"):
            output.relevance, output.surprise = said.relevance, said.surprise

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
                self._capture.clear()
                self._said = None

    def forward(
        self,
        *args: Any,
        context_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own forward and output class, with learned scores, `.relevance` (B, N) and `.surprise`
        (B,).

        Args:
            context_ids: for a dual encoder, the text that says what relevance is asked for, (B, T) or (T,);
                without it the image's own embedding serves. A generative model's context is its prompt.
        """
        self._on()
        given = self._given_context(context_ids, context_attention_mask)
        with torch.inference_mode():
            context = self._context_embedding(given, self._bound(args, kwargs))
            with self._call(context=context):
                return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, every step of it answered with what was learned."""
        self._on()
        if isinstance(self.body, DualEncoderBody):
            raise TypeError(f"{type(self.model).__name__} scores texts and cannot generate any")
        asked = kwargs.get("input_ids", args[0] if args else None)
        self.body.end()
        self.body.begin(kwargs, asked.shape[1] if isinstance(asked, Tensor) else 0)
        try:
            with torch.inference_mode(), self._call():
                return self.model.generate(*args, **kwargs)
        finally:
            self.body.end()

    def _given_context(self, ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        if ids is None:
            return None
        if not isinstance(self.body, DualEncoderBody):
            raise TypeError("a generative model's context is its prompt; context_ids is for dual encoders")
        if not isinstance(ids, Tensor):
            raise TypeError(f"context_ids is {type(ids).__name__}; a tensor (B, T) or (T,) is needed")
        return ids, mask

    # -- learning --------------------------------------------------------------------------------------------

    def keys(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[str]:
        """How the learner names these candidate texts, (C, T) -> C names."""
        if not isinstance(self.body, DualEncoderBody):
            raise TypeError("only a dual encoder has candidate texts")
        return self.body.keys(input_ids, attention_mask)

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
        self.body.check(inputs)
        given = self._given_context(context_ids, context_attention_mask)
        if isinstance(self.body, GenerativeBody):
            labels = self.body.check_labels(labels, inputs.get("input_ids"))
            inputs = self.body.with_answers(inputs, labels)
        with self._call(silent=True, labels=labels):
            try:
                with torch.inference_mode():
                    embedded = self._context_embedding(given, inputs)
                    output = self.model(**inputs)
                    percept, keys = self._read(self.body, inputs, output, embedded, labels)
                # inference tensors cannot enter a graph, and the backprop rule makes one of the ladder
                percept = ordinary(percept)
            finally:
                self._capture.clear()
        if not bool(percept.finite().all()):
            bad = (~percept.finite()).nonzero().flatten().tolist()
            raise ValueError(
                f"the model's activations are not finite for entries {bad}; nothing was learned from them"
            )
        return Perceived(percept, output, keys)

    def _read(
        self,
        body: DualEncoderBody | GenerativeBody,
        inputs: dict[str, Any],
        output: Any,
        context: Tensor | None,
        labels: Tensor | None,
    ) -> tuple[Percept, list[str]]:
        if isinstance(body, DualEncoderBody):
            keys = body.keys(inputs["input_ids"], inputs.get("attention_mask"))
            return body.percept(self._capture, output, context, inputs), keys
        assert labels is not None
        seen = body.look(self._capture, labels)
        if seen is None:
            raise ValueError("no visual tokens were found in this pass: the inputs show no picture")
        sample, place, row, keys = body.taught(labels)
        return body.percept(self._capture, seen, sample, place, row), keys

    def learn(self, labels: Tensor, **inputs: Any) -> Answer:
        """One online step: one frozen forward pass and a local update. Returns the answer from before the
        step.

        Args:
            labels: dual encoder: (B,), each sample's row among the candidate texts; generative: (B, T) token
                ids, -100 where nothing is taught.
            inputs: the model's own, plus `context_ids` and `context_attention_mask` for a dual encoder.

        Raises:
            ValueError, TypeError: for inputs that do not fit, before anything has changed.
        """
        self._on()
        return teach(self, labels, inputs).answer

    def act(self, **inputs: Any) -> Handle:
        """Choose (dual: one of the candidate texts; generative: `generate`), and remember what a reward will
        need."""
        self._on()
        if isinstance(self.body, GenerativeBody):
            return self._act_in_words(self.body, inputs)
        seen = self.perceive(**inputs)
        with torch.no_grad():
            choice, left = self.learner.act(seen.percept, seen.keys)
        return Handle(self.learner.pending.add([[one] for one in left]), choice)

    def _act_in_words(self, body: GenerativeBody, inputs: dict[str, Any]) -> Handle:
        own = set(self._signature.parameters)
        model_inputs = {k: v for k, v in inputs.items() if k in own and isinstance(v, Tensor)}
        body.check(model_inputs)
        ids = model_inputs["input_ids"]
        written = self.generate(**inputs)
        answer = written[:, ids.shape[1] :] if written.shape[1] > ids.shape[1] else written
        pad = getattr(self.model.generation_config, "pad_token_id", None)
        taught = torch.cat([torch.full_like(ids, IGNORE), answer.masked_fill(answer == pad, IGNORE)], 1)
        mask = model_inputs.get("attention_mask", torch.ones_like(ids))
        full = {
            **model_inputs,
            "input_ids": torch.cat([ids, answer], 1),
            "attention_mask": torch.cat([mask, torch.ones_like(answer)], 1),
        }
        seen = self.perceive(labels=taught, **full)
        names = list(dict.fromkeys(seen.keys))
        with torch.no_grad():
            forced = torch.tensor([names.index(k) for k in seen.keys])
            _, left = self.learner.act(seen.percept, names, forced)
        of_sample = (taught[:, 1:] != IGNORE).nonzero(as_tuple=True)[0].tolist()
        groups = [[e for e, s in zip(left, of_sample, strict=True) if s == b] for b in range(len(ids))]
        return Handle(self.learner.pending.add(groups), answer)

    def reward(self, handle: Handle, reward: Tensor | float) -> Tensor:
        """Tell how good an action was, r in [0, 1] per sample, once; may come late and out of order.

        Returns:
            The reward prediction errors r - q_s, one per answer (dual) or per written token (generative).

        Raises:
            KeyError: for a handle that is unknown, was rewarded already, or was dropped because more than
                `config.pending` newer ones were waiting.
        """
        groups = self.learner.pending.get(handle.number)
        r = rewards(reward, len(groups))
        flat = [e for group in groups for e in group]
        each = torch.cat([r[i].expand(len(group)) for i, group in enumerate(groups)])
        with torch.no_grad():
            delta = self.learner.reward(flat, each)
        self.learner.pending.drop(handle.number)
        return delta

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

    def _on(self) -> None:
        if not self._hooks:
            raise RuntimeError("this adapter was detached; attach the model again")

    @contextlib.contextmanager
    def disable(self) -> Iterator["ArrCocModel"]:
        """Inside, the model answers as it would without the adapter, bit for bit; then the state before comes
        back."""
        before, self._enabled = self._enabled, False
        try:
            yield self
        finally:
            self._enabled = before

    def detach(self) -> nn.Module:
        """Take the adapter off and give the model back; nothing of arr-coc is left in it. Safe to call
        twice."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._capture.remove()
        _attached.discard(self.model)
        return self.model

    def inspect(self) -> Inspection:
        """What is read from the model, where, and how large the adapter is."""
        tensors = state.tensors(self.learner)
        plastic = self.learner.relevance_weight.numel() + self.learner.readout.weight.numel()
        plastic += sum(t.numel() for t in self.learner.ladder.weights().values())
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        return replace(self.body.inspection(), trainable=plastic, state_bytes=size)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the adapter (never the model) to a folder: config, state and card, whole or not at all."""
        return saving.save(Path(folder), self.learner, self.body.inspection())

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path, processor: Any = None) -> "ArrCocModel":
        """Attach the adapter that `save_pretrained` wrote; it goes on exactly where it stopped.

        Raises:
            FileNotFoundError, ValueError: if a file is missing, damaged, or was made for another kind of
            model; the
                model is left as it was.
        """
        saved = saving.read(Path(folder))
        attached = attach(model, saved.config, processor)
        try:
            saving.restore(attached.learner, saved)
        except BaseException:
            attached.detach()
            raise
        return attached


def attach(model: Any, config: ArrCocConfig | None = None, processor: Any = None) -> ArrCocModel:
    """Attach an adapter to a pretrained vision-language model; its weights are never read or written.

    Args:
        model: a transformers model (dual encoder or generative).
        config: what is learned and how; the default is good for a start.
        processor: for `predict`.

    Returns:
        The attached model; use it in place of `model`. What it reads from is logged at level INFO and
        returned by `inspect()`.

    Raises:
        TypeError: for a model that is no vision-language model; says what was found and what would work.
        ValueError: for a second attachment, or a site that does not exist; the nearest is named.
    """
    config = ArrCocConfig() if config is None else config
    if isinstance(model, ArrCocModel) or model in _attached:
        raise ValueError(f"this {type(model).__name__} has an adapter attached already; detach() it first")
    kind = kind_of(model)
    body = (DualEncoderBody if kind == "dual" else GenerativeBody)(model, config.sites)
    learner = Learner(config, body.site_widths, body.context_width, body.state_width)
    state.place(learner, next(model.parameters()).device)
    capture = body.capture()
    try:
        attached = ArrCocModel(model, body, learner, capture, processor)
    except BaseException:
        capture.remove()
        raise
    _attached.add(model)
    logger.info("%s", attached.inspect())
    return attached

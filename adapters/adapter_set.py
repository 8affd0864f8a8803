"""Several adapters on one attached model: which there are, which answer, which learn.

All of them share the model's sites, so that one frozen forward pass serves them all.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from torch import Tensor, nn

from arr_coc import state
from arr_coc.adapters import base, card, hub, saving
from arr_coc.adapters.calls import Turn, lasting
from arr_coc.adapters.checks import adapter_name, known_names
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.in_turn import Answering, InTurn
from arr_coc.adapters.learners import Learners, check_base, make_learner
from arr_coc.adapters.perceived import GONE, Handle
from arr_coc.adapters.structure import Inspection, choose_sites
from arr_coc.adapters.text_tokens import readers
from arr_coc.answer import Answer
from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner
from arr_coc.merge import check, merge
from arr_coc.sources import unknown

FIRST = "default"


class AdapterSet(nn.Module):
    """The adapters of an attached model, by name. `ArrCocModel` is one.

    The *active* ones answer, each in turn on what the one before made of the model's scores; relevance and
    surprise are then their means. The *plastic* ones learn from `learn` and `reward`.
    """

    model: Any
    body: DualEncoderBody | GenerativeBody
    _hooks: list[Any]

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self._turn = Turn()
        self.learners = Learners([learner])
        self._names = [FIRST]
        self._active, self._plastic = [FIRST], [FIRST]
        # those that somebody still holds; by identity, for tensors have no equality of their own
        self._handles: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()

    # -- which there are -------------------------------------------------------------------------------------

    @property
    def adapters(self) -> list[str]:
        """Names of all adapters; the first one is that of the model's attachment."""
        return list(self._names)

    @property
    def active(self) -> list[str]:
        """Names of the adapters that answer, in order."""
        return list(self._active)

    @property
    def plastic(self) -> list[str]:
        """Names of the adapters that learn."""
        return list(self._plastic)

    @property
    def learner(self) -> Learner:
        """The first adapter's learner."""
        return self.adapter(self._names[0])

    def who_answers(self) -> Answering:
        """`answering`.

        Raises:
            ValueError: if no adapter is active.
        """
        if self.answering is None:
            raise ValueError(f"no adapter is active, of {', '.join(self.adapters)}; set_active([...]) first")
        return self.answering

    @property
    def answering(self) -> Answering | None:
        """What answers: the active adapter's learner, several in turn, or None where none is active."""
        learners = [self.adapter(name) for name in self._active]
        if len(learners) > 1:
            return InTurn(learners)
        return learners[0] if learners else None

    @property
    def reads_texts(self) -> bool:
        """Whether some adapter reads the tokens of texts."""
        return bool(readers(self.learners))

    def adapter(self, name: str) -> Learner:
        """The learner of an adapter.

        Raises:
            ValueError: for a name that is not there; the nearest is named.
        """
        known_names([name], self._names)
        found = self.learners[self._names.index(name)]
        assert isinstance(found, Learner)
        return found

    def set_active(self, names: Sequence[str]) -> None:
        """Choose which adapters answer, in this order; with none the model answers alone."""
        self._active = known_names(names, self._names)

    def set_plastic(self, names: Sequence[str]) -> None:
        """Choose which adapters learn; the first of them chooses in `act`."""
        self._plastic = known_names(names, self._names)

    def _check_plastic(self) -> None:
        if not self._plastic:
            raise ValueError(f"no adapter is plastic, of {', '.join(self._names)}; set_plastic([...]) first")

    def _on(self) -> None:
        if not self._hooks:
            raise RuntimeError("this adapter was detached; attach the model again")
        if self.learner.relevance_weight.is_meta:
            name = type(self.model).__name__
            raise RuntimeError(f"{name} was laid out without its weights: load them, then attach it again")

    def keys(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[str]:
        """How the learner names these candidate texts, (C, T) -> C names."""
        if not isinstance(self.body, DualEncoderBody):
            raise TypeError("only a dual encoder has candidate texts")
        return self.body.keys(input_ids, attention_mask)

    # -- coming and going ------------------------------------------------------------------------------------

    @lasting
    def add_adapter(self, name: str, config: ArrCocConfig | None = None) -> None:
        """Add a fresh adapter; it answers and learns when `set_active` and `set_plastic` name it.

        Args:
            config: by default that of the first adapter.

        Raises:
            ValueError: for a name that is taken or cannot be one, or sites that are not the model's.
        """
        adapter_name(name, self._names)
        config = self._with_sites(self.learner.config if config is None else config)
        self._put(name, make_learner(self.model, self.body, config))

    @lasting
    def delete_adapter(self, name: str) -> None:
        """Take an adapter away with all it has learned; one has to stay (`detach` takes the last)."""
        known_names([name], self._names)
        if len(self._names) == 1:
            raise ValueError(f"{name!r} is the only adapter; detach() takes it off")
        del self.learners[self._names.index(name)]
        for names in (self._names, self._active, self._plastic):
            if name in names:
                names.remove(name)
        self._gone(name)

    def rename(self, old: str, new: str) -> None:
        """Call an adapter something else. Actions that wait for their reward follow it."""
        known_names([old], self._names)
        adapter_name(new, [name for name in self._names if name != old])
        for names in (self._names, self._active, self._plastic):
            names[:] = [new if name == old else name for name in names]
        for handle in self._handles.values():
            told = {new if name == old else name: number for name, number in handle.numbers.items()}
            handle.numbers.clear()
            handle.numbers.update(told)

    def _gone(self, name: str) -> None:
        """What waited for this adapter's reward does so no longer: its name may be given to another one."""
        for handle in self._handles.values():
            if name in handle.numbers:
                handle.numbers[name] = GONE

    @lasting
    def merge(self, names: Sequence[str], into: str) -> None:
        """Add up the statistics of adapters that were trained apart, exactly (see `arr_coc.merge`).

        Args:
            names: two or more; they stay as they are, unless `into` is one of them.
            into: name of the result: a new one, which answers and learns when it is told to, or one of
                `names`, in whose place it then stands.

        Raises:
            ValueError: where the result would not be what one adapter had learned from all the samples:
                other configs, ladders, U or own gains.
        """
        names = known_names(names, self._names)
        if len(names) < 2:
            raise ValueError(f"{names} were given to merge; two adapters or more are needed")
        adapter_name(into, [name for name in self._names if name not in names or name != into])
        parts = {name: self.adapter(name) for name in names}
        check(parts)
        both = make_learner(self.model, self.body, self.adapter(names[0]).config)
        merge(both, list(parts.values()))
        if into in names:
            self.learners[self._names.index(into)] = both
            self._gone(into)
        else:
            self._put(into, both)

    def _put(self, name: str, learner: Learner) -> None:
        self.learners.append(learner)
        self._names.append(name)

    def _with_sites(self, config: ArrCocConfig) -> ArrCocConfig:
        """The config, with its sites said as the first adapter's are; they have to be the same."""
        sites = choose_sites(config.sites, len(self.body.tower.blocks), self.body.sites)
        if sites != self.body.sites:
            raise ValueError(
                f"sites {config.sites} were asked for; the adapters of one model share its sites, which are "
                f"{self.body.sites}"
            )
        return replace(config, sites=self.learner.config.sites)

    # -- learning --------------------------------------------------------------------------------------------

    def _teach(self, step: Callable[[Learner], Answer]) -> Answer:
        """One step of every plastic adapter; the first one's answer from before."""
        answers: dict[str, Answer] = {}
        for name in self._plastic:
            try:
                answers[name] = step(self.adapter(name))
            except FloatingPointError as error:
                if answers:  # each adapter's step is whole or none, and those before have made theirs
                    raise FloatingPointError(
                        f"adapter {name!r}: {error}; {', '.join(answers)} have learned this sample"
                    ) from error
                raise
        return answers[self._plastic[0]]

    @property
    def sources(self) -> dict[str, dict[str, int]]:
        """By adapter that keeps sums by source: the sources, and how many samples (of a generative model,
        taught tokens) each has taught."""
        kept = {name: self.adapter(name).sources for name in self._names}
        return {name: sources.known for name, sources in kept.items() if sources is not None}

    @lasting
    def forget(self, source: str) -> dict[str, int]:
        """Take back all that a source has taught, exactly: the readout of every adapter that has learned from
        it is then that of one which never met its samples, given phi as it was (see `arr_coc.sources`).

        What labels and rewards have made of U, W, b and the own gains, what is usual among contexts and the
        error modules' predictions stay: they are no sums.

        Returns:
            By adapter, how many samples (or taught tokens) were taken back.

        Raises:
            ValueError: for a source that no adapter has learned from; those that there are are named.
        """
        mine = [name for name, known in self.sources.items() if source in known]
        if not mine and self.sources:
            raise ValueError(unknown(source, list(dict.fromkeys(chain(*self.sources.values())))))
        if not mine:
            self.learner.forget(source)  # which says that no adapter keeps any
        return {name: self.adapter(name).forget(source) for name in mine}

    # -- saving and loading ----------------------------------------------------------------------------------

    def save_pretrained(
        self, folder: str | Path, *, metrics: Any = None, picture: Any = None, where: str = ""
    ) -> Path:
        """Write the adapters (never the model) to a folder: configs, states and card, whole or not at all.

        The first one lies in the folder itself, each further one in a subfolder of its name.

        Args:
            metrics: for the card: values by name, or `huggingface_hub.EvalResult` records.
            picture: for the card: of relevance; a path to a PNG or a PIL image.
            where: for the card: the repo that it will be loaded from; by default the folder's name.
        """
        folder = Path(folder)
        told = card.Told(
            base.describe(self.model), self.body.inspection(), where or folder.name, metrics, picture
        )
        learners = {name: self.adapter(name) for name in self._names}
        sites = self.body.sites
        return saving.save(folder, learners, self._active, self._plastic, self.model, sites, told)

    def push_to_hub(
        self, repo_id: str, *, metrics: Any = None, picture: Any = None, **options: Any
    ) -> CommitInfo:
        """Upload the adapters (never the model) to a repo of the Hub, which is made where there is none.

        Args:
            repo_id: "owner/name".
            metrics, picture: as in `save_pretrained`.
            options: those of `hub.push`: subfolder, revision, private, token, commit_message, create_pr,
                endpoint.
        """

        def write(folder: Path) -> None:
            self.save_pretrained(folder, metrics=metrics, picture=picture, where=repo_id)

        return hub.push(write, repo_id, **options)

    @lasting
    def load_adapter(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        adapter: str | None = None,
        strict: bool = True,
        **options: Any,
    ) -> None:
        """Add a saved adapter to this model's; it answers and learns when it is told to.

        Args:
            source: a folder, or a repo of the Hub.
            name: to be called here; by default what it was called.
            adapter: which one of a saved set; by default the first.
            strict: as in `ArrCocModel.from_pretrained`.
            options: those of `hub.Source`: subfolder, revision, token, cache_dir, local_files_only, endpoint.

        Raises:
            FileNotFoundError, ValueError: as in `ArrCocModel.from_pretrained`, and as in `add_adapter`.
        """
        place = hub.Source(source, **options)
        first = None if adapter is None else [adapter]
        _, (saved, *_) = hub.read(place, first)
        name = adapter_name(saved.header.name if name is None else name, self._names)
        check_base(saved, self.model, strict)
        self._put(name, self._restored(saved))

    def _restored(self, saved: saving.Saved) -> Learner:
        """A learner with a saved state; every name, shape and dtype is checked before it is one."""
        if saved.header.sites != self.body.sites:
            raise ValueError(
                f"the adapter {saved.header.name!r} reads the sites {saved.header.sites}; the adapters of "
                f"one model share its sites, which are {self.body.sites}"
            )
        learner = make_learner(self.model, self.body, self._with_sites(saved.header.config))
        state.load(learner, saved.tensors, saved.header.about)
        if isinstance(self.body, GenerativeBody):
            self.body.check_classes(learner.classes)
        return learner

    def _restore(self, header: saving.Header, saved: Iterable[saving.Saved]) -> None:
        """Take the place of a fresh set: these adapters, of those the active and the plastic ones."""
        found = {one.header.name: self._restored(one) for one in saved}
        self.learners = Learners(found.values())
        self._names = list(found)
        self._active = [name for name in header.active if name in found]
        self._plastic = [name for name in header.plastic if name in found]

    # -- what they take --------------------------------------------------------------------------------------

    def inspect(self) -> Inspection:
        """What is read from the model, where, and how large the adapters are together."""
        plastic = held = 0
        for name in self._names:
            learner = self.adapter(name)
            plastic += learner.relevance_weight.numel() + learner.readout.weight.numel()
            plastic += sum(t.numel() for t in learner.ladder.weights().values())
            held += state.size(learner)
        return replace(self.body.inspection(), trainable=plastic, state_bytes=held)

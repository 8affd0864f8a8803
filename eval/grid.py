"""One stream as a grid of runs: what is run on it, and what tells one run from another."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from arr_coc.config import ArrCocConfig
from arr_coc.eval import methods as registry
from arr_coc.training import stream_options, streams

GENERATIVE = ("scene-qa", "easy-vqa", "coin", "ucit")


@dataclass(frozen=True)
class Grid:
    """What is run.

    Args:
        stream: a name of `streams.STREAMS`, with options behind it or not; kept in one form, so that the same
            options are the same stream however they were written.
        batch: samples per step.
        n_train, n_test: options of the stream; None for its own.
        probe_limit: samples per probe at most; the counts stand in the records.
        lora_train: how many of the samples those learn from that train inside the model (LoRA is slow); None
            for all. Said in the record.
        tune_train: samples of the tuning seed on which rates are chosen.
        options: further options of the stream.
        config: of the plugin.
    """

    stream: str
    batch: int = 1
    n_train: int | None = None
    n_test: int | None = None
    probe_limit: int | None = None
    lora_train: int | None = None
    tune_train: int = 3000
    options: tuple[tuple[str, Any], ...] = ()
    config: ArrCocConfig = field(default_factory=ArrCocConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream", stream_options.written(self.stream))

    def load(self, seed: int, order: int, **changes: Any) -> streams.Stream:
        sizes = {"n_train": self.n_train, "n_test": self.n_test}
        named = {k: v for k, v in sizes.items() if v is not None} | dict(self.options) | changes
        return streams.load(self.stream, seed=seed, order=order, batch=self.batch, **named)

    @property
    def label(self) -> str:
        """The stream's name in records: with the batch size where it is not 1."""
        return self.stream if self.batch == 1 else f"{self.stream}@{self.batch}"

    @property
    def body(self) -> str:
        """The kind of model that the stream is for: "generative" for questions, else "dual"."""
        return "generative" if stream_options.split_name(self.stream)[0] in GENERATIVE else "dual"

    @cached_property
    def brings(self) -> dict[str, bool]:
        """What samples have beside picture and label, by what methods may need: contexts, a mask."""
        first = next(self.load(0, 0).batches())[0]
        return {"contexts": first["context"] is not None, "mask": first["mask"] is not None}

    @property
    def cells(self) -> int:
        plain, said = stream_options.split_name(self.stream)
        return 3 if "3x3" in plain or said.get("grid") == "3" or dict(self.options).get("grid") == 3 else 2

    def key(
        self,
        method: str,
        seed: int,
        order: int,
        model: str,
        held: int | None = 0,
        spec: registry.Spec | None = None,
    ) -> str:
        """What tells one run from another; `held` as in `run`, `spec` where the method is somebody's own."""
        spec = registry.spec(method) if spec is None else spec
        said = [self.stream, self.batch, self.n_train, self.n_test, self.probe_limit, self.options]
        said += [json.loads(self.config.to_json())] if spec.configured else []
        said += [self.tune_train, spec.grid] if spec.grid else []
        said += [self.lora_train] if spec.inside else []
        said += [held] if held != 0 else []
        said += [spec.mark] if spec.mark else []
        text = json.dumps([*said, method, seed, order, model], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

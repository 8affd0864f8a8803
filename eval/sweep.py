"""The compatibility sweep: attach to a tiny random model of every architecture, and see that it holds.

Of each: attached outputs equal the bare model's bit for bit before anything is learned, with learning off and
after detach; relevance has one value per visual token and sums to 1; learning moves the answer to the label;
what is said and learned of a sample is what it would be alone, whatever stands beside it in the batch; a
saved adapter goes on where it stopped; `generate` writes what was taught, where the model can generate, and
what it writes can be rewarded; the backbone's weights are the same at the end, and no hook is left.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.config import ArrCocConfig
from arr_coc.eval.alone import compared, lesson, scores
from arr_coc.eval.report import write
from arr_coc.eval.tiny_inputs import example
from arr_coc.eval.tiny_models import architectures, class_of, tiny_model

CONFIG = ArrCocConfig(width=16, expansion=8)
STEPS = 4
ANSWERS = (7, 8)  # token ids that the two samples are taught
OUTSIDE = {  # mapped by transformers, and still nothing to attach to
    "evolla": "proteins, no pictures",
    "mistral4": "a language model alone",
    "pi0": "robot actions, no words",
    "diffusion_gemma": "denoises whole blocks: no next token to answer",
    "llama4": "cannot run at all in this version: its forward reads a field that its output lacks",
}
Record = dict[str, Any]


class Broken(AssertionError):
    """A promise that does not hold for an architecture."""


def promise(held: bool, what: str) -> None:
    """Raises `Broken` with what was promised unless it held."""
    if not held:
        raise Broken(what)


def fingerprint(model: Any) -> str:
    """SHA-256 over a model's state dict, names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hooks_in(model: Any) -> int:
    """How many forward hooks stand in a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def taught(attached: ArrCocModel, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs with answers behind them, and the labels that teach them."""
    return lesson(attached, inputs, answers_of(attached))


def answers_of(attached: ArrCocModel) -> Tensor:
    """What the two samples are taught: token ids, or rows among the candidates."""
    return torch.tensor(ANSWERS if isinstance(attached.body, GenerativeBody) else [1, 0])


def probability(attached: ArrCocModel, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """log p of the taught answers, (2,)."""
    body = attached.body
    if not isinstance(body, GenerativeBody):
        return scores(attached(**inputs)).float().log_softmax(-1).gather(1, labels.unsqueeze(1))[:, 0]
    given = body.with_answers(inputs, labels)
    place = -1 if body.encoder_decoder else -2
    logits = scores(attached(**given))[:, place].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ANSWERS).unsqueeze(1))[:, 0]


def check(model: Any, task: str) -> Record:
    """What holds for one model; raises where something does not."""
    inputs = example(model)
    with torch.no_grad():
        bare = scores(model(**inputs)).clone()
    weights, hooks = fingerprint(model), hooks_in(model)
    attached = attach(model, CONFIG)
    record: Record = {"sites": len(attached.inspect().sites), "attention": len(attached.inspect().attention)}
    record["notes"] = attached.inspect().notes
    try:
        output = attached(**inputs)
        promise(torch.equal(scores(output), bare), "outputs equal the bare model's before learning")
        relevance = getattr(output, "relevance", None)
        promise(relevance is not None, "a pass that shows a picture has relevance")
        assert relevance is not None
        promise(bool((relevance.sum(1) - 1).abs().max() < 1e-5), "relevance sums to 1")
        record["tokens"] = int(relevance.shape[1])
        given, labels = taught(attached, inputs)
        before = probability(attached, given, labels)
        for _ in range(STEPS):
            attached.learn(labels=labels, **given)
        after = probability(attached, given, labels)
        promise(bool((after > before).all()), f"learning moves the answer to the label ({before} to {after})")
        with attached.disable():
            promise(
                torch.equal(scores(attached(**inputs)), bare), "outputs equal the bare model's when disabled"
            )
        with tempfile.TemporaryDirectory() as folder:
            attached.save_pretrained(Path(folder) / "adapter")
            attached.detach()
            attached = ArrCocModel.from_pretrained(model, Path(folder) / "adapter")
        promise(torch.equal(probability(attached, given, labels), after), "a loaded adapter answers the same")
        if task == "generative":
            record["written"] = _written(attached, inputs)
            if record["written"] in ("yes", "no"):
                _rewarded(attached, inputs)
        differs, record["alone"] = compared(attached, inputs, answers_of(attached))
        promise(not differs, differs)
    finally:
        attached.detach()
    promise(hooks_in(model) == hooks, "no hook is left")
    with torch.no_grad():
        promise(torch.equal(scores(model(**inputs)), bare), "outputs equal the bare model's after detach")
    promise(fingerprint(model) == weights, "the backbone's weights are untouched")
    return record


def _written(attached: ArrCocModel, inputs: dict[str, Tensor]) -> str:
    """Whether `generate` writes the answers that were taught: "yes", "no", or why it cannot at all."""

    def write() -> Tensor:
        # two tokens: some models are made to end with a certain one; clones: BLIP writes into its prompt
        prompt = {k: v.clone() for k, v in inputs.items() if k != "decoder_input_ids"}
        return attached.generate(**prompt, max_new_tokens=2, do_sample=False)

    with attached.disable():
        try:
            plain = write()
        except Exception as error:  # the bare model's own failure, whatever it is
            return f"the bare model cannot: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    ids = write()
    promise(ids.shape[0] == plain.shape[0], "generate writes one answer a sample")
    return "yes" if ids[:, -2].tolist() == list(ANSWERS) else "no"


def _rewarded(attached: ArrCocModel, inputs: dict[str, Tensor]) -> None:
    """What the model writes on its own can be rewarded: a prediction error for every token."""
    prompt = {k: v.clone() for k, v in inputs.items() if k != "decoder_input_ids"}
    handle = attached.act(**prompt, max_new_tokens=2, do_sample=False)
    errors = attached.reward(handle, 1.0)
    promise(
        len(errors) >= len(ANSWERS) and bool(torch.isfinite(errors).all()), "what was written is rewarded"
    )


def sweep(kinds: Iterable[str] = ()) -> Iterable[Record]:
    """One record an architecture, as they come; all of the installed transformers, or those named.

    Raises:
        ValueError: for a name that transformers does not map; says which there are.
    """
    wanted = set(kinds)
    every = architectures()
    unknown = wanted - {kind for kind, _ in every}
    if unknown:
        raise ValueError(
            f"no architectures {sorted(unknown)}; there are {', '.join(dict.fromkeys(k for k, _ in every))}"
        )
    for kind, task in every:
        if not wanted or kind in wanted:
            yield one(kind, task)


def one(kind: str, task: str) -> Record:
    """Build one architecture's tiny model and check it."""
    start = time.perf_counter()
    record: Record = {"architecture": kind, "task": task, "model": class_of(kind, task).__name__}
    stage = "built"
    try:
        model = tiny_model(kind, task)
        with torch.no_grad():
            scores(model(**example(model)))
        stage = "held"
        record |= {"built": True, "held": False}
        record |= {**check(model, task), "held": True}
    except Exception as error:  # a table of what does not work is what this is for
        record |= {
            stage: False,
            "why": f"{type(error).__name__}: {(str(error) or '?').splitlines()[0][:160]}",
        }
    record["seconds"] = round(time.perf_counter() - start, 2)
    return record


COLUMNS = [
    "architecture",
    "model",
    "holds",
    "visual tokens",
    "attention rows",
    "generates what it was taught",
]


def rows(records: list[Record]) -> list[dict[str, Any]]:
    """The table of a sweep, in words."""
    shown = []
    for r in records:
        holds = "yes" if r.get("held") else OUTSIDE.get(r["architecture"]) or r.get("why", "?")
        cells = (r["architecture"], r["model"], holds, r.get("tokens", ""), r.get("attention", ""))
        shown.append(dict(zip(COLUMNS, (*cells, r.get("written", "")), strict=True)))
    return shown


def verdict(records: list[Record]) -> str:
    """How many hold, of all; which there are that cannot; how many write what they were taught."""
    held = sum(bool(r.get("held")) for r in records)
    outside = [r["architecture"] for r in records if r["architecture"] in OUTSIDE]
    writes = [r for r in records if r.get("written") in ("yes", "no")]
    wrote = sum(r["written"] == "yes" for r in writes)
    rest = f" (nothing to attach to: {', '.join(outside)})" if outside else ""
    return (
        f"{held} of {len(records)} hold, {held / max(len(records), 1):.1%}{rest}; {wrote} of {len(writes)} "
        f"that generate write what they were taught; transformers {transformers.__version__}"
    )


def count() -> int:
    """How many architectures a whole sweep has."""
    return len(architectures())


def save(records: list[Record], path: Path) -> None:
    """One JSON file: the version of transformers, and a record an architecture."""
    kept = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
    whole = {"transformers": transformers.__version__, "architectures": kept}
    write(path, json.dumps(whole, indent=1) + "\n")

"""The demo: a frozen model learns cues and garments it has never seen, beside LoRA on the same stream."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arr_coc.config import ArrCocConfig
from arr_coc.eval import methods, percepts, report
from arr_coc.eval.exam import one
from arr_coc.eval.methods_plugin import Plugin
from arr_coc.eval.overlay import centre_prior, data_uri, overlay
from arr_coc.eval.percepts import Plan, Store
from arr_coc.eval.world import World, world
from arr_coc.training import streams

Record = dict[str, Any]
NAMES = {
    "plugin": "arr-coc",
    "plugin-fixed": "arr-coc, relevance not learned",
    "lora": "LoRA + AdamW",
    "backprop": "same ladder, backprop + Adam",
    "zero-shot-joined": "frozen model",
    "oracle": "told where to look (upper bound)",
}
# backprop's rate is the best of methods.RATES, LoRA's of its grid, on another seed than the demo's
RATES = {"lora": 1e-3, "backprop": 3e-3}


@dataclass(frozen=True)
class Outcome:
    """What the demo found and where it stands."""

    runs: list[Record]
    page: Path


def demo(
    out: Path,
    novel: bool = False,
    seed: int = 0,
    scenes: int = 1200,
    model: str = "dual",
    progress: percepts.Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run every method on one stream, and write the page.

    Args:
        out: the page to write.
        novel: cue words that the model has never met, instead of the colours' own.
        seed: of the stream.
        scenes: in the stream; a sixth of it for each cue.
        model: "dual", or a folder with a CLIPModel and its processor.
        progress: called with (what, done, of).
        tell: called with a line of text as each method ends.
    """
    out = report.check_target(out)
    name = "cued-clutter-novel" if novel else "cued-clutter"
    stream = streams.load(name, seed=seed, n_train=scenes, n_test=240)
    here = world(model, held=40)
    store = here.store(stream, None, progress)
    plan = percepts.plan(stream, store)
    size = 10
    forward = here.forward_seconds([stream.samples[i] for i in range(size)], store.classes)
    chosen = ["plugin", "plugin-fixed", "lora", "backprop", "zero-shot-joined", "oracle"]
    if find_spec("peft") is None:
        chosen.remove("lora")
        tell("peft is not installed: LoRA is left out (pip install peft)")
    runs, learned = [], None
    for method_name in chosen:
        spec = methods.spec(method_name)
        settings = {"rate": RATES[method_name]} if method_name in RATES else {}
        setup = methods.Setup(store, ArrCocConfig(), 2, seed, here.model, here.processor, settings)
        method = spec.make(setup)
        raw = one(method, plan, store, size, here.held, progress=progress)
        if method_name == "plugin":
            learned = method
        inside = raw["step_seconds"] + (0 if spec.inside else forward)
        raw |= {
            "stream": name,
            "label": name,
            "method": method_name,
            "role": spec.role,
            "seed": seed,
            "order": 0,
            "chance": 1 / len(store.classes),
            "pointing_chance": 0.25,
            "experiences": plan.experiences,
            "settings": settings,
            "forward_seconds": forward,
            "step_cost": inside / forward,
        }
        runs.append(raw)
        tell(f"{NAMES[method_name]}: {100 * float(np.mean(raw['R'][-1])):.1f} %")
    assert isinstance(learned, Plugin)
    size_of_model = sum(p.numel() for p in here.model.parameters())
    text = report.page(
        "A frozen vision-language model keeps learning",
        f"{scenes} scenes, each seen once: four garments in different colours, and a word that says "
        "which one is meant. The model has never seen a garment"
        + (", and the words are made up. " if novel else ". ")
        + "The words come one after another; nothing is replayed, no task ids are given, and where to look "
        f"is never shown. The model has {size_of_model / 1e6:.1f} million weights, and none of them changes "
        "(but for LoRA).",
        runs,
        NAMES,
        looks(here, plan, store, learned, seed),
        [f"Batches of {size}; one seed, one order: arr-coc eval gives intervals."],
    )
    return Outcome(runs, report.write(out, text))


def looks(here: World, plan: Plan, store: Store, learned: Plugin, seed: int) -> list[report.Look]:
    """One held-out scene per cue, with the maps of before and after, raw attention and a centre prior."""
    fresh = Plugin(store, learned.config)
    side = int(store.attention.shape[1] ** 0.5)
    found = []
    for probe, rows in enumerate(plan.probes):
        place = int(np.random.default_rng([seed, probe, 11]).integers(len(rows)))
        batch = store.batch(rows[place : place + 1])
        sample = plan.stream.probes[probe][plan.places[probe][place]]
        truth = sample["mask"]
        before, after = (m.answer(batch, store.classes) for m in (fresh, learned))
        with torch.no_grad():
            own = store.texts.scale * batch.image @ store.texts(store.classes).T
        attention = batch.percept.attention[0].numpy().reshape(side, side)
        maps = []
        for title, relevance, scores in (
            ("before learning", before.relevance, own),
            ("after learning", after.relevance, after.scores),
        ):
            assert relevance is not None
            picture = overlay(sample["image"], relevance[0].numpy().reshape(side, side), truth)
            said = store.classes[int(scores[0].argmax())]
            maps.append((title, data_uri(picture), _short(said), said == sample["label"]))
        raw = overlay(sample["image"], attention / attention.sum(), truth)
        maps.append(("the model's attention", data_uri(raw), "", False))
        centre = overlay(sample["image"], centre_prior(side), truth)
        maps.append(("centre prior", data_uri(centre), "", False))
        scene = sample["image"].resize((192, 192))
        found.append(report.Look(sample["context"], _short(sample["label"]), data_uri(scene), maps))
    return found


def _short(text: str) -> str:
    return text.removeprefix(streams.PROMPT.format(""))

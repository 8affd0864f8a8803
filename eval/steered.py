"""Whether the frozen dual encoder's own answer follows what steers it: naming one of four items.

    python -m arr_coc.eval.steered
    python -m arr_coc.eval.steered --seeds 0 --strengths 0.5 1 2 4   # what strength and layers were chosen by

2x2 scenes of emoji that the built-in model knows; the candidates are the names of a scene's own four, and the
question is which of them is in one cell. The learner has learned nothing: what is scored is the model's own
class token, steered by the true cell, by the relevance that the cell's place phrase finds, or by nothing.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from arr_coc.adapters import attach, embedded, texts
from arr_coc.eval.cards_dual import draw_scenes
from arr_coc.eval.intervals import paired, student_t
from arr_coc.training import items, scenes

LAYERS = {"last": (-1,), "upper": (-3, -2, -1), "all": ()}  # of the six of the built-in tower


def questions(processor: Any, model: Any, seed: int, count: int) -> list[dict[str, torch.Tensor]]:
    """A forward pass's inputs for each scene: four times the picture, its four names, and the four places."""
    noto = items.emoji("noto")
    keep = ~noto.held_out & np.array([g != "flags" for g in noto.groups])
    names = np.array(noto.names)[keep]
    images, which, _ = draw_scenes(noto.images[keep], 2, count, np.random.default_rng([seed, 11]))
    places = texts.context(processor, [p[0] for p in scenes.PLACES[2]], model)
    made = []
    for image, chosen in zip(images, which, strict=True):
        pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        said = texts.tokenized(processor, list(names[chosen]), model)
        made.append({"pixel_values": pixels.expand(4, -1, -1, -1), **said, **places})
    return made


def named(attached: Any, asked: Sequence[dict[str, torch.Tensor]], **how: Any) -> tuple[float, float]:
    """Share of cells whose item is named, and seconds per pass. No `how` at all steers nothing."""
    right, began = [], time.perf_counter()
    with attached.steer(**how) if how else nullcontext():
        for inputs in asked:
            scores = attached(**inputs).logits_per_image  # (4, 4), a cell by a name
            right.append(float((scores.argmax(1) == torch.arange(4)).float().mean()))
    return float(np.mean(right)), (time.perf_counter() - began) / len(asked)


def run(
    seeds: Sequence[int], count: int, strengths: Sequence[float], layers: Sequence[str]
) -> dict[tuple[str, str, float], list[tuple[float, float]]]:
    """Accuracy and seconds per seed, by (what steers, layers, strength)."""
    model, processor = embedded.load("dual")
    attached = attach(model)
    cells = torch.stack([torch.from_numpy(scenes.cell_mask(2, c)) for c in range(4)])
    found: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
    try:
        for seed in seeds:
            asked = questions(processor, model, seed, count)
            named(attached, asked[:5])  # warm
            found.setdefault(("nothing", "", 0.0), []).append(named(attached, asked))
            for where in layers:
                for strength in strengths:
                    how: dict[str, Any] = {"strength": strength, "layers": LAYERS[where]}
                    for by, more in (("the true cell", {"mask": cells}), ("its own relevance", {})):
                        key = (by, where, strength)
                        found.setdefault(key, []).append(named(attached, asked, **how, **more))
    finally:
        attached.detach()
    return found


def table(found: dict[tuple[str, str, float], list[tuple[float, float]]]) -> str:
    """As markdown: means over seeds with the half-width of their 95 % interval; one seed has none."""
    bare = found["nothing", "", 0.0]
    lines = ["| steered by | layers | strength | named % | vs unsteered | cost of a pass |"]
    lines.append("|---|---|---|---|---|---|")
    for (by, where, strength), runs in found.items():
        right = [100 * r[0] for r in runs]
        cost = np.median([r[1] / b[1] for r, b in zip(runs, bare, strict=True)])
        scored, gain = f"{right[0]:.1f}", f"{right[0] - 100 * bare[0][0]:+.1f}"
        if len(runs) > 1:
            mean, over = student_t(right), paired(right, [100 * b[0] for b in bare]).interval
            scored, gain = f"{mean.mean:.1f} ± {mean.half:.1f}", f"{over.mean:+.1f} ± {over.half:.1f}"
        asked = f"{strength:g}" if where else ""
        lines.append(f"| {by} | {where} | {asked} | {scored} | {gain if where else ''} | {cost:.2f}x |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--scenes", type=int, default=20, help="of each seed, four cells each")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    given = parser.parse_args()
    print(table(run(given.seeds, given.scenes, given.strengths, given.layers)))


if __name__ == "__main__":
    main()

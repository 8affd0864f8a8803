"""Published figures to hold a table against: by stream, each with its measures, its source and what differs.

They are printed under the table of their stream. They were measured by others, on other models and by other
protocols: figures compare within one source only.
"""

from dataclasses import dataclass

from arr_coc.training.stream_options import split_name
from arr_coc.training.stream_sets import PUBLISHED as WITHOUT_TUNING

SOURCES = {"src": "read in the authors' repository or log", "sec": "from a second-hand table"}


@dataclass(frozen=True)
class Figures:
    """Figures of one source.

    Args:
        what: the benchmark and the model.
        measures: what the numbers of each method are, %, in order.
        values: by method; None where the source has none.
        source: of SOURCES.
        differs: what is other there than in the harness, whatever model is run.
    """

    what: str
    measures: tuple[str, ...]
    values: dict[str, tuple[float | None, ...]]
    source: str
    differs: str

    def line(self) -> str:
        """All of it in one line."""
        told = [
            f"{method} {' / '.join('-' if v is None else f'{v:.1f}' for v in several)}"
            for method, several in self.values.items()
        ]
        what = f"Published, {self.what}, {' / '.join(self.measures)}, %"
        return f"{what}: {', '.join(told)} ({SOURCES[self.source]}). There {self.differs}."


_TRANSFER = ("Transfer", "Average", "Last (here 'final %')")
_ZSCL = "samples may be looked at many times, and the task is known while learning; here each comes once"
_STEPS = "every image may be looked at several times and the class sets have another order; here each once"
_MTIL = "MTIL order I, CLIP ViT-B/16"
_TAIL = "X-TAIL, 16 shots, CLIP ViT-B/16"
_FINAL = ("final accuracy",)
_INSTRUCTED = ("MFN (here 'final %')", "MAA", "BWT")

PUBLISHED: dict[str, tuple[Figures, ...]] = {
    "mtil": (
        Figures(
            _MTIL,
            _TRANSFER,
            {
                "zero-shot": (69.4, 65.3, 65.3),
                "fine-tuning": (44.6, 55.9, 77.3),
                "LwF": (56.9, 64.7, 74.6),
                "ZSCL": (68.1, 75.4, 83.6),
            },
            "src",
            _ZSCL,
        ),
        Figures(
            _MTIL,
            _TRANSFER,
            {
                "MoE-Adapters": (68.9, 76.7, 85.0),
                "MoE-Adapters without task id": (69.1, 66.2, 66.9),
                "DIKI": (68.7, 76.3, 85.1),
                "GIFT": (69.3, 77.3, 86.0),
            },
            "sec",
            _ZSCL,
        ),
    ),
    "x-tail": (
        Figures(
            _TAIL,
            _TRANSFER,
            {
                "zero-shot": (57.7, 57.7, 57.7),
                "ZSCL": (59.0, 60.0, 63.4),
                "MoE-Adapters": (56.0, 63.0, 70.5),
                "Primal-RAIL": (None, 71.1, 81.4),
                "Dual-RAIL": (None, 71.3, 82.3),
                "LADA": (61.5, 72.7, 83.1),
            },
            "sec",
            "a class name that two datasets share is two candidates; here it is one",
        ),
    ),
    "cifar-100": (
        Figures(
            "cifar-100 in ten steps, each on the pre-trained model of its authors",
            _FINAL,
            {
                "L2P": (83.8,),
                "DualPrompt": (83.7,),
                "CODA-Prompt": (86.3,),
                "InfLoRA": (86.5,),
                "SD-LoRA": (88.0,),
                "RanPAC": (92.1,),
            },
            "src",
            _STEPS,
        ),
    ),
    "coin": (
        Figures(
            "CoIN, LLaVA, all eight tasks",
            _INSTRUCTED,
            {
                "LoRA": (41.8, 44.0, -23.1),
                "O-LoRA": (49.5, 46.7, -17.5),
                "DyMoE": (57.0, 57.7, -4.7),
            },
            "sec",
            "Grounding is one of the tasks and each task has a scorer of its own; here an answer is right "
            "word for word",
        ),
    ),
}
for _name, _rows in WITHOUT_TUNING.items():
    _figures = Figures(
        f"{_name} in ten steps, CLIP ViT-B/16 without tuning (McDonnell et al. 2023)",
        _FINAL,
        {method: (value,) for method, value in _rows.items()},
        "src",
        "the class sets have another order",
    )
    PUBLISHED[_name] = (_figures, *PUBLISHED.get(_name, ()))


def plain(label: str) -> str:
    """The stream of a table's label: "mtil?source=x@10" -> "mtil"."""
    return label.partition("?")[0].partition("@")[0]


def lines(label: str) -> list[str]:
    """What stands under the table of a stream; nothing where nothing is published."""
    found = [figures.line() for figures in PUBLISHED.get(plain(label), ())]
    where = ("source", "images", "hub")
    said = split_name(label.rpartition("@")[0] if "@" in label else label)[1] if found else {}
    if changed := [f"{k}={v}" for k, v in said.items() if k not in where]:
        found.append(f"This table is of another protocol than those: {', '.join(changed)}.")
    return found

"""Stand-ins for the harness's tests: a store of made-up percepts, a tiny CLIP and its processor."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from arr_coc import ArrCocConfig
from arr_coc.eval import methods_features as features
from arr_coc.eval import percepts
from arr_coc.eval.percepts import Store, TextBook
from arr_coc.training import streams

CLASSES = ["a photo of a bag", "a photo of a coat", "a photo of a dress"]
CUES = ["red", "blue"]
CONFIG = ArrCocConfig(expansion=8)


class FakeTexts(TextBook):
    """Unit embeddings drawn from the text itself."""

    def __init__(self, width: int = 6) -> None:
        self.width, self.scale = width, 5.0

    def __call__(self, texts: Any) -> Tensor:
        rows = []
        for text in texts:
            draw = torch.Generator().manual_seed(sum(map(ord, text)))
            rows.append(torch.randn(self.width, generator=draw))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def fake_store(n: int = 60, contexts: bool = True, seed: int = 0) -> Store:
    """Four cells of four tokens in a 4 x 4 grid; the cued cell's tokens lean towards the label."""
    draw = torch.Generator().manual_seed(seed)
    texts = FakeTexts()
    label = torch.randint(3, (n,), generator=draw)
    cue = torch.randint(2, (n,), generator=draw)
    cell = torch.randint(4, (n,), generator=draw)
    grid = torch.arange(16)
    of = (grid // 4 // 2) * 2 + (grid % 4) // 2
    mask = of.unsqueeze(0) == cell.unsqueeze(1)
    lean = torch.randn(3, 8, generator=draw)
    tokens = torch.randn(n, 16, 8, generator=draw) + mask.unsqueeze(2) * lean[label].unsqueeze(1)
    image = torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=1)
    return Store(
        tokens=(tokens.half(), torch.randn(n, 16, 8, generator=draw).half()),
        attention=torch.rand(n, 16, generator=draw),
        context=texts(CUES)[cue] if contexts else image,
        own=torch.randn(n, 16, generator=draw),
        image=image,
        pooled=torch.randn(n, 5, generator=draw),
        pixels=torch.randint(256, (n, 12), generator=draw).to(torch.uint8),
        label=label,
        cue=cue if contexts else torch.full((n,), -1),
        mask=mask if contexts else None,
        classes=list(CLASSES),
        contexts=list(CUES) if contexts else [],
        place={("train", i): i for i in range(n)},
        texts=texts,
    )


def feed(method: features.Method, store: Store, order: list[int], size: int = 1) -> None:
    for start in range(0, len(order), size):
        method.observe(store.batch(torch.tensor(order[start : start + size])))


def every(store: Store) -> percepts.Batch:
    return store.batch(torch.arange(len(store)))


class FakeProcessor:
    """Pixels scaled to -1..1 and words hashed to ids; padding as CLIP's tokenizer has it."""

    def image_processor(self, images: list[Any], return_tensors: str = "pt") -> dict[str, Tensor]:
        arrays = np.stack([np.asarray(i, np.float32) for i in images]) / 127.5 - 1
        return {"pixel_values": torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()}

    def tokenizer(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        rows = [[1 + sum(map(ord, w)) % 90 for w in t.split()] + [99] for t in texts]
        width = max(map(len, rows))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def tiny_clip() -> Any:
    """A CLIPModel of three small layers at 96 px, patch 8."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={**size, "image_size": 96, "patch_size": 8},
        text_config={**size, "vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 0},
        projection_dim=8,
    )
    return CLIPModel(config).eval()


def small(name: str = "cued-clutter", **options: Any) -> streams.Stream:
    return streams.load(name, seed=2, **{"n_train": 12, "n_test": 12, **options})

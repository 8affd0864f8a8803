"""Any timm image tower as a dual encoder, beside a text encoder or beside class names alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

_SCALE = 100.0  # where CLIP's learned temperature ends


@dataclass
class TimmDualOutput(ModelOutput):
    """Scores (B, C) of C texts for B pictures, (C, B) the other way, and both sides' unit embeddings."""

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class TimmTowerConfig(PreTrainedConfig):
    """What `attach` reads of a tower: the width of its tokens, and the side of its patches if it has any."""

    model_type = "arr_coc_timm_tower"

    def __init__(self, hidden_size: int = 0, patch_size: int | None = None, **kwargs: Any) -> None:
        self.hidden_size, self.patch_size = hidden_size, patch_size
        super().__init__(**kwargs)


class TimmDualConfig(PreTrainedConfig):
    """Of a `TimmDualEncoder`."""

    model_type = "arr_coc_timm_dual"

    def __init__(self, projection_dim: int = 0, **kwargs: Any) -> None:
        self.projection_dim = projection_dim
        self.vision_config, self.text_config = TimmTowerConfig(), PreTrainedConfig()
        super().__init__(**kwargs)


class _Features(nn.Module):
    """A tower's tokens (B, N, d), or its map (B, d, H, W)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.last = getattr(tower, "output_fmt", "") == "NHWC"  # channels stand last in its maps

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.tower.forward_features(pixels)
        return hidden.permute(0, 3, 1, 2) if self.last and hidden.dim() == 4 else hidden


class _Pool(nn.Module):
    """A tower's own pooling: (B, N, d) or (B, d, H, W) -> (B, d). A single token (B, 1, d) counts as a whole
    picture, whatever stands in front of the tokens or around a map."""

    def __init__(self, features: _Features) -> None:
        super().__init__()
        self.features = [features]  # no module of its own: the tower stands in the model once
        self.maps = False

    def forward(self, hidden: Tensor) -> Tensor:
        tower, last = self.features[0].tower, self.features[0].last
        if hidden.dim() == 3 and self.maps:
            hidden = hidden.mT.unsqueeze(-1)
        elif hidden.dim() == 3 and hidden.shape[1] == 1:
            hidden = hidden.expand(-1, 1 + getattr(tower, "num_prefix_tokens", 0), -1)
        hidden = hidden.permute(0, 2, 3, 1) if last and hidden.dim() == 4 else hidden
        return tower.forward_head(hidden, pre_logits=True)


class TimmTower(nn.Module):
    """A timm model without its classifier, in the form that `attach` reads.

    Args:
        tower: a timm model with `forward_features` and `forward_head`.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        for name in ("forward_features", "forward_head", "num_features", "default_cfg"):
            if not hasattr(tower, name):
                raise TypeError(f"{type(tower).__name__} has no {name}: a timm image model is needed")
        patch: Any = getattr(getattr(tower, "patch_embed", None), "patch_size", None)
        patch = (patch, patch) if isinstance(patch, int) else patch
        flat = getattr(tower, "output_fmt", "") != "NHWC" and patch is not None and patch[0] == patch[-1]
        self.config = TimmTowerConfig(int(tower.num_features), int(patch[0]) if flat else None)
        self.width = int(getattr(tower, "head_hidden_size", tower.num_features))  # after pooling
        features = _Features(tower)
        self.blocks = nn.ModuleList([features])
        self.pool = _Pool(features)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.blocks[0](pixels)
        self.pool.maps = hidden.dim() == 4
        return self.pool(hidden)


class MeanPooled(nn.Module):
    """A transformers text encoder with mean pooling, as sentence encoders have it; (C, T) -> (C, P).

    Args:
        encoder: such as AutoModel.from_pretrained gives.
        tokenizer: of the encoder.
    """

    def __init__(self, encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.width = int(encoder.config.hidden_size)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden)
        return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


class Names(nn.Module):
    """Texts that only have to be told apart, where there is no text encoder: every distinct text gets a fixed
    random direction, drawn from its own bytes.

    Args:
        width: P.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.width = width

    def tokenizer(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """UTF-8 bytes + 1, padded with 0."""
        rows = [torch.tensor([b + 1 for b in text.encode()] or [0]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows = []
        for row in (ids * mask).tolist():
            digest = hashlib.sha256(bytes(i - 1 for i in row if i)).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            rows.append(torch.randn(self.width, generator=draw))
        return torch.stack(rows).to(ids.device)


class TimmProcessor:
    """Pictures by the tower's own transform, texts by the text side's tokenizer."""

    def __init__(self, tower: Any, texts: MeanPooled | Names, size: int | None = None) -> None:
        from timm.data import create_transform, resolve_data_config

        config = resolve_data_config({} if size is None else {"input_size": (3, size, size)}, model=tower)
        self.tokenizer = texts.tokenizer
        self._transform = create_transform(**config)

    def image_processor(self, images: Any, **_: Any) -> dict[str, Tensor]:
        images = images if isinstance(images, list | tuple) else [images]
        return {"pixel_values": torch.stack([self._transform(i.convert("RGB")) for i in images])}

    def __call__(self, text: Any = None, images: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        said = (
            {} if text is None else dict(self.tokenizer([text] if isinstance(text, str) else text, **kwargs))
        )
        return {**said, **({} if images is None else self.image_processor(images))}


class TimmDualEncoder(nn.Module):
    """logits = scale cos(M x + m, t): a timm tower's pooled features x, mapped into the space of the texts t.

    The map comes from `fit`; before that the model has no scores of its own (all 0), and what is learned
    decides alone.

    Args:
        tower: a timm model.
        texts: a text encoder, or `Names`.
        scale: of the cosine.
    """

    def __init__(self, tower: Any, texts: MeanPooled | Names, scale: float = _SCALE) -> None:
        super().__init__()
        self.vision_model, self.text_model = TimmTower(tower), texts
        self.config = TimmDualConfig(texts.width)
        self.config.vision_config = self.vision_config = self.vision_model.config
        self.visual_projection = nn.Linear(self.vision_model.width, texts.width)
        nn.init.zeros_(self.visual_projection.weight)
        nn.init.zeros_(self.visual_projection.bias)
        self.logit_scale: Tensor
        self.register_buffer("logit_scale", torch.tensor(scale).log())
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.visual_projection.weight.device

    def fit(self, pooled: Tensor, texts: Tensor, ridge: float = 1.0) -> None:
        """The ridge map from pictures to their texts, in closed form and float64; both sides centred.

        M = Y'X (X'X + rho N I)^-1 over centred rows.

        Args:
            pooled: (N, d) features of pictures, from `vision_model`.
            texts: (N, P) embeddings of their texts, from `get_text_features`.
            ridge: rho, per sample.

        Raises:
            ValueError: for shapes that do not fit, or values that are not finite.
        """
        shape = self.visual_projection.weight.shape
        want = (len(pooled), shape[1]), (len(pooled), shape[0])
        if (tuple(pooled.shape), tuple(texts.shape)) != want or not len(pooled):
            raise ValueError(
                f"pictures {tuple(pooled.shape)} and texts {tuple(texts.shape)} were given; {want} are needed"
            )
        x, y = pooled.double(), texts.double()
        if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise ValueError("the features or the embeddings hold NaN or infinity")
        centre, middle = x.mean(0), y.mean(0)
        x, y = x - centre, y - middle
        gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(gram, x.T @ y).T
        with torch.no_grad():
            self.visual_projection.weight.copy_(weight)
            self.visual_projection.bias.copy_(middle - weight @ centre)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(C, T) -> (C, P)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.text_model(input_ids, mask)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P)."""
        return self.visual_projection(self.vision_model(pixel_values))

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> TimmDualOutput:
        image = nn.functional.normalize(self.get_image_features(pixel_values), dim=-1)
        text = nn.functional.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        return TimmDualOutput(logits, logits.T, text, image)


def timm_dual(
    tower: Any,
    text_encoder: Any = None,
    tokenizer: Any = None,
    *,
    pretrained: bool = False,
    size: int | None = None,
) -> tuple[TimmDualEncoder, TimmProcessor]:
    """A timm tower and a text side, ready for `attach(model, config, processor)`.

    Args:
        tower: a timm model, or the name of one.
        text_encoder: a transformers encoder with a tokenizer; without it texts are only told apart by name.
        tokenizer: of the encoder.
        pretrained: for a name: load timm's weights (from its hub).
        size: of the pictures, px; by default what the tower was trained with.

    Raises:
        TypeError: for a tower that is no timm model, or an encoder without its tokenizer.
    """
    if (text_encoder is None) != (tokenizer is None):
        missing = "tokenizer" if tokenizer is None else "text_encoder"
        raise TypeError(f"{missing} is missing: a text encoder comes with its tokenizer")
    if isinstance(tower, str):
        import timm

        tower = timm.create_model(tower, pretrained=pretrained)
    texts = Names() if text_encoder is None else MeanPooled(text_encoder, tokenizer)
    model = TimmDualEncoder(tower.eval(), texts)
    return model, TimmProcessor(tower, texts, size)

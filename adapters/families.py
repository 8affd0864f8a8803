"""What structure cannot tell about a family of models: one declarative entry each, by config.model_type."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """A family's entry.

    Args:
        token_ids: names of the config's fields with the ids of visual tokens, where they are not the usual
            ones.
        marker: an input of forward, (B, T), that is set where visual tokens stand.
        in_front: the model puts its visual tokens in front of the words, and input_ids has no place for them.
        appended: what an encoder adds to input_ids comes behind it.
        blocks: path of the list of blocks whose outputs are tokens, inside a vision tower that has others.
        separated: a prompt's last token is a separator, which `generate` takes away.
        answer_type: the token type of answers, where there are types.
        padded: texts were always padded to the full length in training, and padding is read like words.
        whole: blocks of its language model behind the first need all visual tokens, or rows without gaps.
        streams: the axis of a block's output that its residual's parallel streams stand in, where it is not
            the one behind the positions.
    """

    token_ids: tuple[str, ...] = ()
    marker: str = ""
    in_front: bool = False
    appended: bool = False
    streams: int | None = None
    blocks: str = ""
    separated: bool = False
    answer_type: int = 0
    padded: bool = False
    whole: bool = False


FAMILIES: dict[str, Family] = {
    "arr_coc_timm_dual": Family(blocks="blocks"),
    "blip": Family(separated=True),
    "gemma3n": Family(streams=0),
    "git": Family(in_front=True),
    "granite4_vision": Family(whole=True),
    "inkling_mm_model": Family(whole=True),
    "kosmos-2": Family(marker="image_embeds_position_mask"),
    "kosmos-2.5": Family(marker="image_embeds_position_mask"),
    "paligemma": Family(answer_type=1),  # 0 is a prefix, whose tokens see each other
    "siglip": Family(padded=True),
    "siglip2": Family(padded=True),
    "udop": Family(appended=True),
    # its longer stacks run over space and over time in turn: only these see all tokens of a video
    "videoprism": Family(blocks="auxiliary_layers"),
}


def family_of(model: Any) -> Family:
    """The entry of a model's family; an empty one for most."""
    return FAMILIES.get(str(getattr(model.config, "model_type", "")), Family())

"""Structure: find towers, blocks and attention by what a model is made of, not by a list of its names."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Tower:
    """A stack of blocks.

    Args:
        path: of the tower inside the model.
        module: the tower.
        blocks: its blocks, from the bottom.
        block_path: of the list of blocks inside the model.
        width: of its hidden states.
    """

    path: str
    module: Any
    blocks: nn.ModuleList
    block_path: str
    width: int


@dataclass(frozen=True)
class Inspection:
    """What an attached model reads, and why.

    Args:
        kind: "dual" or "generative".
        architecture: class of the model.
        tower: path of the tower that is read.
        sites: path of every block that is read.
        attention: path of every attention module whose rows are read.
        context: where the context comes from.
        own: where the model's own relevance comes from.
        tokens: how the visual tokens are told from the others.
        trainable: plastic parameters of the adapter.
        state_bytes: bytes of its whole state.
    """

    kind: str
    architecture: str
    tower: str
    sites: list[str]
    attention: list[str]
    context: str
    own: str
    tokens: str
    trainable: int = 0
    state_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"arr-coc on {self.architecture} ({self.kind})"]
        for name in ("tower", "sites", "attention", "context", "own", "tokens"):
            value = getattr(self, name)
            lines.append(f"  {name:<10} {', '.join(value) if isinstance(value, list) else value}")
        lines.append(
            f"  {'size':<10} {self.trainable:,} plastic parameters, {self.state_bytes:,} bytes of state"
        )
        return "\n".join(lines + [f"  {'note':<10} {note}" for note in self.notes])


def kind_of(model: Any) -> str:
    """ "dual" for an image tower and a text tower with scores between them, "generative" for one that writes.

    Raises:
        TypeError: for anything else; says what was given and what would work.
    """
    config = getattr(model, "config", None)
    parts = [name for name in ("vision_config", "text_config") if getattr(config, name, None) is not None]
    if config is None or len(parts) < 2:
        has = f"its config has {parts[0]} only" if parts else "its config names no vision and no text part"
        raise TypeError(
            f"{type(model).__name__} is no vision-language model that can be attached to: {has}. "
            "What works: a dual encoder (CLIPModel, SiglipModel, ...) or a generative model "
            "(LlavaForConditionalGeneration, ...) from transformers."
        )
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return "dual"
    generates = getattr(model, "can_generate", None)
    if generates is not None and generates():
        return "generative"
    raise TypeError(
        f"{type(model).__name__} has no image-text scores and no language-model head; use a class with one "
        "(for example LlavaForConditionalGeneration instead of LlavaModel)."
    )


def find_tower(model: Any, config_name: str) -> Tower:
    """The tower whose config is `model.config.<config_name>`, and its blocks.

    Raises:
        ValueError: if no module has that config, or the one that has it has no list of blocks with attention.
    """
    config = getattr(model.config, config_name)
    same = type(config)  # some towers keep a copy of their config, so the object itself is no criterion
    owners = [
        (path, m) for path, m in model.named_modules() if type(getattr(m, "config", None)) is same and path
    ]
    # the outermost owner of a list of blocks is the tower
    for path, module in owners:
        lists = [
            (name, stack)
            for name, stack in module.named_modules()
            if isinstance(stack, nn.ModuleList) and len(stack) and attention_of(stack[0])[1] is not None
        ]
        if lists:
            name, blocks = max(lists, key=lambda item: len(item[1]))
            return Tower(path, module, blocks, f"{path}.{name}", int(config.hidden_size))
    raise ValueError(
        f"{type(model).__name__}: no tower with attention blocks was found for its {config_name}"
    )


def attention_of(block: nn.Module) -> tuple[str, nn.Module | None]:
    """Path and module of a block's first attention module that dispatches by its config."""
    for path, module in block.named_modules():
        if path and "attention" in type(module).__name__.lower() and hasattr(module, "config"):
            return path, module
    return "", None


def choose_sites(sites: tuple[int, ...], depth: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """Block numbers, from the bottom, for the sites asked for (negative ones count from the top).

    Raises:
        ValueError: for one that does not exist; names the nearest.
    """
    chosen = []
    for site in sites or default:
        place = site if site >= 0 else depth + site
        if not 0 <= place < depth:
            nearest = min(max(place, 0), depth - 1)
            raise ValueError(
                f"site {site} does not exist: the tower has {depth} blocks, 0 to {depth - 1}; "
                f"the nearest is {nearest}"
            )
        if place not in chosen:
            chosen.append(place)
    return tuple(chosen)

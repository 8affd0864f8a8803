"""Structure: find towers, blocks and attention by what a model is made of, not by a list of its names."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# parts of a multimodal model that are not its language side
_SENSES = re.compile(r"vision|visual|image|pixel|audio|video|perceiver|resampler|qformer|connector|projector")
# attention over what another stack made: by the module's own path, or by its class
_CROSS = re.compile(r"cross|encoder_attn|encdec|encoder_decoder|mergedattention")


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
        notes: what could not be read, and what serves in its place.
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
            said = (", ".join(value) or "none") if isinstance(value, list) else value
            lines.append(f"  {name:<10} {said}")
        lines.append(
            f"  {'size':<10} {self.trainable:,} plastic parameters, {self.state_bytes:,} bytes of state"
        )
        return "\n".join(lines + [f"  {'note':<10} {note}" for note in self.notes])


def unwrapped(model: Any) -> Any:
    """The transformers model, LoRA layers and all, inside what PEFT or torch.compile wrapped around it."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def kind_of(model: Any) -> str:
    """ "dual" for an image tower and a text tower with scores between them, "generative" for one that writes.

    Raises:
        TypeError: for anything else; says what was given and what would work.
    """
    name = type(model).__name__
    config = getattr(model, "config", None)
    sees = visual_inputs(model) if isinstance(model, nn.Module) and config is not None else ()
    if not sees:
        has = "it has no config of transformers" if config is None else f"its forward takes {_takes(model)}"
        raise TypeError(
            f"{name} is no vision-language model that can be attached to: {has} and no pixels. "
            "What works: a dual encoder (CLIPModel, SiglipModel, ...) or a generative model "
            "(LlavaForConditionalGeneration, ...) from transformers, or a timm tower wrapped by timm_dual."
        )
    generates = getattr(model, "can_generate", None)
    if generates is not None and generates():
        return "generative"
    if "input_ids" in inspect.signature(model.forward).parameters and scores_texts(model):
        return "dual"
    raise TypeError(
        f"{name} has no image-text scores and no language-model head. What works: a whole dual encoder "
        "(CLIPModel rather than CLIPVisionModel) or a model that writes (LlavaForConditionalGeneration "
        "rather than LlavaModel)."
    )


def _takes(model: Any) -> str:
    names = [
        n for n in inspect.signature(model.forward).parameters if n.endswith(("ids", "values", "features"))
    ]
    return ", ".join(names) or "none of the usual inputs"


def visual_inputs(model: Any) -> tuple[str, ...]:
    """The names of the pixel inputs of a model's forward."""
    names = inspect.signature(model.forward).parameters
    return tuple(
        n for n in names if re.fullmatch(r"(\w+_)?pixel_values(_\w+)?|flattened_patches|image_patches", n)
    )


def scores_texts(model: Any) -> bool:
    """Whether a forward pass of the model ends in scores of texts: its output class says."""
    for owner in type(model).__mro__:  # a subclass may say nothing of what it returns
        if "forward" in vars(owner):
            said = inspect.signature(vars(owner)["forward"]).return_annotation
            outputs = getattr(said, "__args__", (said,))
            fields = [n for o in outputs for n in getattr(o, "__dataclass_fields__", ())]
            if any(name.startswith("logits_per_") for name in fields):
                return True
    return False


def find_tower(model: Any, config_name: str, blocks: str = "") -> Tower:
    """The tower whose config is `model.config.<config_name>`, and its blocks.

    Args:
        blocks: path of its list of blocks, where that is known.

    Raises:
        ValueError: if no module has that config, or the one that has it has no list of blocks.
    """
    config = getattr(model.config, config_name, None)
    same = type(config)  # some towers keep a copy of their config, so the object itself is no criterion
    # the outermost owner of a list of blocks is the tower
    for path, module in model.named_modules():
        if path and config is not None and type(getattr(module, "config", None)) is same:
            found = (blocks, module.get_submodule(blocks)) if blocks else longest_stack(module)
            if found is not None:
                name, stack = found
                return Tower(path, module, stack, f"{path}.{name}", _width(config, stack))
    raise ValueError(
        f"{type(model).__name__}: no tower with a list of blocks was found for its {config_name}"
    )


def _width(config: Any, blocks: nn.ModuleList) -> int:
    """Of a tower's hidden states: what its config says, or the channels of its last block's output."""
    said = getattr(config, "hidden_size", None)
    norms = [m for m in blocks[-1].modules() if isinstance(m, nn.BatchNorm2d)]
    return int(norms[-1].num_features) if norms and not said else int(config.hidden_size)


def find_decoder(model: Any) -> Tower:
    """The stack of blocks that the model's words come from.

    Raises:
        ValueError: if the model names no decoder, or it has no list of blocks with attention.
    """
    root = model.get_decoder()
    inner = getattr(root, "decoder", None)
    if getattr(root, "encoder", None) is not None and isinstance(inner, nn.Module):
        root = inner  # an encoder-decoder inside a vision-language model
    found = longest_stack(root)
    if found is None:
        raise ValueError(f"{type(model).__name__}: its decoder {type(root).__name__} has no attention blocks")
    name, blocks = found
    path = path_of(model, root)
    width = int(model.config.get_text_config(decoder=True).hidden_size)
    return Tower(path, root, blocks, f"{path}.{name}" if path else name, width)


def longest_stack(root: Any) -> tuple[str, nn.ModuleList] | None:
    """Path and module of the longest list of blocks with attention on the language side (or in the only
    tower), or of the longest of any; the outermost of equals."""
    lists = [(p, m) for p, m in root.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    stacks = [(p, m) for p, m in lists if any(_attends(block) for block in m)] or lists
    words = [(path, stack) for path, stack in stacks if not _SENSES.search(path.lower())]
    return max(words or stacks, key=lambda item: (len(item[1]), -item[0].count(".")), default=None)


def stacks(root: Any) -> list[tuple[str, nn.ModuleList]]:
    """Path and module of every list of blocks with attention that lies in no other."""
    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in root.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and not inside and any(_attends(block) for block in module):
            found.append((path, module))
    return found


def _attends(block: nn.Module) -> bool:
    return any(re.search(r"attention|attn", type(m).__name__.lower()) for _, m in block.named_modules())


def path_of(model: Any, module: Any) -> str:
    """Where a module stands inside the model ("" for the model itself)."""
    return next(path for path, m in model.named_modules() if m is module)


def speaker_of(model: Any) -> Any:
    """The module whose forward gives the logits of every written token: the model, or, where the model's own
    `generate` hands over to an inner language model, that one."""
    from transformers import GenerationMixin

    if getattr(type(model), "generate", None) is GenerationMixin.generate:
        return model
    for inner in (model.get_decoder(), *model.children()):
        writes = getattr(inner, "can_generate", None)
        if inner is not model and writes is not None and writes():
            return inner
    return model


def dispatches(module: Any) -> bool:
    """Whether an attention module hands its query and key to transformers' `AttentionInterface`."""
    if not hasattr(module, "config"):
        return False
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def attention_in(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every attention module below that dispatches."""
    for path, module in root.named_modules():
        if path and dispatches(module):
            yield path, module


def is_cross(path: str, module: nn.Module) -> bool:
    """Whether an attention module looks at what another stack made."""
    return bool(_CROSS.search(path.lower()) or _CROSS.search(type(module).__name__.lower()))


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

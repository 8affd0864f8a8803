"""Consolidation: what was important is held where it was, for any rule, without backpropagation or task
boundaries.

Importance is told from what the rules hand out (their ascent directions g) and from how weights really moved,
synapse by synapse. One thing is not a synapse's own: under the relevance weight U importance is shared by a
column (a feature, under all contexts), because a step of U that were scaled entry by entry would no longer be
written along a context's key, and would change what is relevant under every other context.
"""

import torch
from torch import Tensor

XI = 1e-3  # xi of synaptic intelligence, in squared units of a weight
SHARED = ("relevance",)  # importance by column


def proximal(weight: Tensor, anchor: Tensor, pull: Tensor) -> Tensor:
    """argmin_w 1/2 |w - weight|^2 + pull/2 |w - anchor|^2 = weight + pull / (1 + pull) (anchor - weight).

    The penalty's step done implicitly: a weight that stood at its anchor and was moved by s ends s / (1 +
    pull) away from it, and no pull is too strong.
    """
    pull = pull.clamp(max=torch.finfo(pull.dtype).max)  # infinity over infinity would be NaN
    return weight + pull / (1 + pull) * (anchor - weight)


class Consolidation:
    """theta <- prox(theta + step; a, eta strength Omega) after every step of an optimizer (see `proximal`).

    The penalty is strength/2 sum Omega (theta - a)^2, as in both papers. They take a and Omega at the end of
    a task; here nobody says where one ends, and both are slow running averages over samples, with
    rho_t = (1 - d) / (1 - d^t), the weights of an exponential mean without start-up bias (d = 1: 1/t, the
    mean of the whole life):

        a     <- a + rho_t (theta - a)                 anchor, theta from before the step
        ewc:  Omega <- Omega + rho_t (g^2 - Omega)     the diagonal Fisher information, from local updates
        si:   path <- d path + g dtheta,  way <- d way + dtheta,  Omega = max(path, 0) / (way^2 + xi)

    Sources: Kirkpatrick et al. (2017), elastic weight consolidation; Schwarz et al. (2018), online EWC, whose
    gamma is d; Zenke et al. (2017), synaptic intelligence: path is the weight's share in the drop of the loss
    (with d = 1, to first order in eta). Theirs is the gradient, this is whatever the rule gives, signs of its
    teaching included; from the squared error's gradient it is the empirical Fisher information.

    Args:
        kind: "off", "ewc" or "si".
        strength: of the penalty; 0 only watches.
        decay: d, a step.
    """

    def __init__(self, kind: str = "off", strength: float = 1.0, decay: float = 0.999) -> None:
        self.kind, self.strength, self.decay = kind, strength, decay
        self.kept: dict[str, dict[str, Tensor]] = {}  # by the name of the plastic tensor

    @property
    def on(self) -> bool:
        return self.kind != "off"

    def before(self, tensor: Tensor) -> Tensor | None:
        """What `settle` needs from before a step."""
        return tensor.clone() if self.on else None

    def settle(self, name: str, tensor: Tensor, before: Tensor | None, direction: Tensor, eta: float) -> None:
        """Hold what is important of a tensor that was just moved, in place, and count the step in.

        Args:
            name: of the tensor.
            before: of `before`.
            direction: g, of the tensor's shape.
            eta: of the step; at 0 nothing was asked for, and nothing is counted.
        """
        if before is None or not eta:
            return
        mine = self._grown(name, before)
        if self.strength:
            pull = eta * self.strength * self.importance(name)
            tensor.copy_(proximal(tensor, mine["anchor"], pull))
        count = int(mine["count"]) + 1
        mine["count"] = mine["count"] + 1
        rate = 1 / count if self.decay == 1 else (1 - self.decay) / (1 - self.decay**count)
        mine["anchor"] += rate * (before - mine["anchor"])
        # a huge update saturates: infinity minus infinity would be NaN at the next step
        most = torch.finfo(tensor.dtype).max / 1e6
        g, moved = direction.to(tensor), tensor - before
        if self.kind == "ewc":
            mine["importance"] += rate * (_shared(name, g.square().clamp(max=most)) - mine["importance"])
        else:
            mine["path"].mul_(self.decay).add_(_shared(name, g * moved)).clamp_(-most, most)
            mine["way"].mul_(self.decay).add_(moved)

    def importance(self, name: str) -> Tensor:
        """Omega of a tensor that was moved before; for `SHARED` ones it has one row."""
        mine = self.kept[name]
        if self.kind == "ewc":
            return mine["importance"]
        return mine["path"].clamp_min(0) / (_shared(name, mine["way"].square()) + XI)

    def anchors(self, name: str) -> list[Tensor]:
        """The anchor of a tensor, to be changed where what it stands for is changed from outside."""
        return [self.kept[name]["anchor"]] if name in self.kept else []

    def _grown(self, name: str, before: Tensor) -> dict[str, Tensor]:
        """What is kept of a tensor, with rows for those that appeared since: anchored where they start."""
        if name not in self.kept:
            shapes = self.shapes(name, tuple(before.shape))
            self.kept[name] = {part: before.new_zeros(shape) for part, shape in shapes.items()}
            self.kept[name]["anchor"].copy_(before)
            self.kept[name]["count"] = torch.zeros((), dtype=torch.int64)
        mine = self.kept[name]
        for part, tensor in mine.items():
            mine[part] = tensor.to(before.device)
        rows, wanted = len(mine["anchor"]), len(before)
        for part, tensor in list(mine.items()) if rows < wanted else ():
            new = before[rows:] if part == "anchor" else torch.zeros_like(before[rows:])
            if part != "count":
                mine[part] = torch.cat([tensor, new])
        return mine

    # -- state -----------------------------------------------------------------------------------------------

    def shapes(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The tensors kept of one of that name and shape."""
        shared = (1, *shape[1:]) if name in SHARED else shape
        of_kind = {"ewc": {"importance": shared}, "si": {"path": shared, "way": shape}}
        return {"count": (), "anchor": shape, **of_kind[self.kind]} if self.on else {}

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything kept, by name."""
        return {f"{name}.{part}": t for name, parts in self.kept.items() for part, t in parts.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse."""
        self.kept = {}
        for name, tensor in tensors.items():
            of, part = name.rsplit(".", 1)
            self.kept.setdefault(of, {})[part] = tensor

    def expected(self, saved: set[str], plastic: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a saved state must hold: all parts of each tensor that it holds a part of.

        Args:
            saved: the names found.
            plastic: shapes of what can be moved, by name.
        """
        held = [name for name in plastic if any(f"{name}.{p}" in saved for p in self.shapes(name, (1,)))]
        parts = {name: self.shapes(name, plastic[name]) for name in held}
        return {f"{name}.{part}": shape for name in held for part, shape in parts[name].items()}


def _shared(name: str, values: Tensor) -> Tensor:
    return values.mean(0, keepdim=True) if name in SHARED else values

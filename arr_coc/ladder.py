"""The ladder: a small network beside the backbone, one rung per site. All plasticity lives here and in U."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from arr_coc.activation import ACTIVATIONS


@dataclass(frozen=True)
class Climb:
    """One pass up the ladder, with everything a local rule may look at.

    Args:
        below: z_0, what enters the first rung (the context), (B, C).
        drives: what enters each rung beside W_l z_{l-1} + b_l, (B, width) each: x_l = sum_n r_n f_ln and,
            with frozen columns, V_l times what their rungs send.
        pre_activations: a_l, (B, width) each.
        states: z_l = f(a_l), (B, width) each.
        hidden: the expansion, (B, H).
        phi: what the readout sees, (B, D).
        lateral: z_{l-1} of the frozen columns side by side, (B, K * width) each, (B, 0) for the first rung;
            empty where there are none.
    """

    below: Tensor
    drives: list[Tensor]
    pre_activations: list[Tensor]
    states: list[Tensor]
    hidden: Tensor
    phi: Tensor
    lateral: list[Tensor] = field(default_factory=list)


class Ladder(nn.Module):
    """z_l = f(W_l z_{l-1} + x_l + b_l), x_l = sum_n r_n f_ln, z_0 the context.

    phi = [x_1 .. x_L, z_1 .. z_L, sigma(E x + e), state, 1]: sigma the logistic function, E and e drawn once,
    so that these are fixed random features of all drives beside the drives themselves (Pao et al., 1994,
    random vector functional link); `state` is what else the percept brings. Rungs that never learn say f(x)
    and no more: "drives" leaves them out. Where only the top rung is read, phi = [z_L, 1]. Site features
    are layer-normalised without affine and, where they are wider than a rung, reduced by a fixed matrix with
    orthonormal rows, so that P stays a few hundred to a few thousand square.

    `grow` freezes the column of rungs and begins another, which hears those frozen: z_l = f(W_l z_{l-1} + x_l
    + b_l + V_l [z_{l-1} of each frozen column]), V_l from 0 on, or, in a copy, from what the frozen one's is
    (Rusu et al., 2016, progressive networks). The
    frozen columns' rungs stay in phi, at its end; the new one's stand where theirs stood. Nothing is fed back
    through a frozen column: of it, relevance learns from its drives in phi alone.

    Args:
        site_widths: d_l.
        context_width: C.
        state_width: S, 0 for none.
        width: of a rung; no wider than the narrowest site.
        expansion: H.
        seed: of the fixed matrices, and of W where it is drawn.
        reads: "all", "drives" or "top": what phi has.
        activation: f, a name of `ACTIVATIONS`.
        gain: W starts with standard deviation gain / sqrt(fan-in); 0: at zero.
    """

    def __init__(
        self,
        site_widths: list[int],
        context_width: int,
        state_width: int,
        width: int,
        expansion: int,
        seed: int,
        reads: str = "all",
        activation: str = "relu",
        gain: float = 0.0,
    ) -> None:
        super().__init__()
        self.reads, self.activation = reads, ACTIVATIONS[activation]
        self.depth, self.expansion = len(site_widths), 0 if reads == "top" else expansion
        self.read = range({"all": 0, "drives": self.depth, "top": self.depth - 1}[reads], self.depth)
        self.columns, self.seed, self.gain = 1, seed, gain
        self.width = min(width, *site_widths)
        self.state_width = 0 if reads == "top" else min(state_width, self.width)
        draw = torch.Generator().manual_seed(seed)
        self.state_names: tuple[str, ...] = ()
        for level, d in enumerate(site_widths):
            self._fixed(f"project_{level}", d, self.width, draw)
            below = context_width if level == 0 else self.width
            self.register_buffer(f"weight_{level}", torch.zeros(self.width, below))
            self.register_buffer(f"bias_{level}", torch.zeros(self.width))
            self.state_names += (f"weight_{level}", f"bias_{level}")
        self._fixed("project_state", state_width if self.state_width else 0, self.state_width, draw)
        self.expand_weight: Tensor
        self.expand_bias: Tensor
        all_drives = self.depth * self.width
        # drives are averages of layer-normalised tokens, a little under unit variance: a gain of 2 bends
        # sigma and does not step it
        expand = torch.randn(self.expansion, all_drives, generator=draw) * (2 / all_drives**0.5)
        self.register_buffer("expand_weight", expand)
        self.register_buffer("expand_bias", torch.randn(self.expansion, generator=draw))
        self.state_names += ("expand_weight", "expand_bias")
        first = 0 if reads == "top" else all_drives
        self.rungs = slice(first, first + len(self.read) * self.width)  # where phi has those that are read
        self.phi_width = self.rungs.stop + self.expansion + self.state_width + 1
        self._start(draw)

    def _start(self, draw: torch.Generator) -> None:
        """Draw W, where it does not start at zero."""
        for name, tensor in self.weights().items():
            if name.startswith("weight") and self.gain:
                tensor.normal_(0, self.gain / tensor.shape[1] ** 0.5, generator=draw)

    def grow(self, copy: bool = False) -> Tensor:
        """Freeze the column of rungs and begin another, drawn or a copy; returns where the entries of phi now
        are, (D,): those of the new column's rungs are at the places that are left, in the order of theirs."""
        frozen, old = self.columns - 1, self.phi_width
        device = self.weight(0).device
        for name, tensor in self.weights().items():
            self.register_buffer(f"column_{frozen}_{name}", tensor)
            self.state_names += (f"column_{frozen}_{name}",)
            self.register_buffer(name, tensor.clone() if copy else torch.zeros_like(tensor, device="cpu"))
        for level in range(1, self.depth):
            if not frozen:
                self.state_names += (f"lateral_{level}",)
            wide = torch.zeros(self.width, self.columns * self.width, dtype=self.weight(0).dtype)
            if copy and frozen:
                wide[:, : frozen * self.width] = self.get_buffer(f"lateral_{level}")
            self.register_buffer(f"lateral_{level}", wide)
        if not copy:
            self._start(torch.Generator().manual_seed(self.seed + self.columns))
        self.to(device)
        self.columns += 1
        place = torch.arange(old)
        place[self.rungs] = torch.arange(old, old + len(place[self.rungs]))
        self.phi_width += len(place[self.rungs])
        return place.to(device)

    def _fixed(self, name: str, wide: int, narrow: int, draw: torch.Generator) -> None:
        """A fixed (narrow, wide) matrix with orthonormal rows, or none where nothing has to shrink."""
        if wide > narrow:
            matrix = torch.linalg.qr(torch.randn(wide, narrow, generator=draw)).Q.T.contiguous()
            self.register_buffer(name, matrix * (wide / narrow) ** 0.5)  # unit variance per feature is kept
            self.state_names += (name,)
        else:
            self.register_buffer(name, None)

    def features(self, tokens: tuple[Tensor, ...]) -> Tensor:
        """f_n of all sites side by side, (B, N, L * width), float32."""
        reduced = []
        for level, site in enumerate(tokens):
            f = torch.nn.functional.layer_norm(site.float(), site.shape[-1:])
            matrix = getattr(self, f"project_{level}")
            reduced.append(f if matrix is None else f @ matrix.T)
        return torch.cat(reduced, -1)

    def weight(self, level: int) -> Tensor:
        """W_l, (width, what comes from below)."""
        return self.get_buffer(f"weight_{level}")

    def weights(self) -> dict[str, Tensor]:
        """The plastic tensors by name: W_l and b_l, and V_l where columns are frozen."""
        names = ("weight", "bias", "lateral")
        return {n: self.get_buffer(n) for n in self.state_names if n.startswith(names)}

    def _frozen(self, drives: list[Tensor], below: Tensor) -> list[list[Tensor]]:
        """z_l of every frozen column, (B, width) each."""
        columns: list[list[Tensor]] = []
        for k in range(self.columns - 1):
            z, states = below, []
            for level, x in enumerate(drives):
                weight, bias = (self.get_buffer(f"column_{k}_{n}_{level}") for n in ("weight", "bias"))
                a = torch.nn.functional.linear(z, weight, bias) + x
                if k and level:
                    beside = torch.cat([column[level - 1] for column in columns], -1)
                    a = a + beside @ self.get_buffer(f"column_{k}_lateral_{level}").T
                z = self.activation.f(a)
                states.append(z)
            columns.append(states)
        return columns

    def climb(
        self, drive: Tensor, context: Tensor, state: Tensor | None, weights: dict[str, Tensor] | None = None
    ) -> Climb:
        """From the drives of all rungs (B, L * width) to phi. `weights` stands in for the ladder's own."""
        own = self.weights() if weights is None else weights
        drives = list(drive.split(self.width, -1))
        below = z = context.to(drive.dtype)
        frozen = self._frozen(drives, below)
        lateral = [below[:, :0]] if frozen else []
        for level in range(1, self.depth) if frozen else ():
            lateral.append(torch.cat([column[level - 1] for column in frozen], -1))
            drives[level] = drives[level] + lateral[level] @ own[f"lateral_{level}"].T
        pre, states = [], []
        for level, x in enumerate(drives):
            a = torch.nn.functional.linear(z, own[f"weight_{level}"], own[f"bias_{level}"]) + x
            z = self.activation.f(a)
            pre.append(a)
            states.append(z)
        hidden = (drive @ self.expand_weight.T + self.expand_bias).sigmoid()
        if self.reads == "top":
            phi = torch.cat([z, torch.ones_like(z[:, :1]), *(column[-1] for column in frozen)], -1)
            return Climb(below, drives, pre, states, hidden, phi, lateral)
        parts = [drive, *(states[level] for level in self.read), hidden]
        if self.state_width:
            if state is None:
                raise ValueError("this ladder was made for percepts with a state, and none was given")
            extra = torch.nn.functional.layer_norm(state.to(drive.dtype), state.shape[-1:])
            matrix = self.get_buffer("project_state") if self.project_state is not None else None
            parts.append(extra if matrix is None else extra @ matrix.T)
        parts.append(torch.ones_like(drive[:, :1]))
        parts += [z for column in frozen for z in column]
        return Climb(below, drives, pre, states, hidden, torch.cat(parts, -1), lateral)

    def split(self, phi_side: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """A tensor (B, D) that lives where phi does, cut into what reaches x, the z_l and the expansion; 0
        for what phi does not have."""
        count, rungs = len(phi_side), self.rungs
        at_x, at_read = phi_side[:, : rungs.start], phi_side[:, rungs]
        at_x = at_x if self.reads != "top" else phi_side.new_zeros(count, self.depth * self.width)
        unread = [phi_side.new_zeros(count, self.width)] * (self.depth - len(self.read))
        at_z = unread + list(at_read.split(self.width, -1) if self.read else ())
        return at_x, at_z, phi_side[:, rungs.stop : rungs.stop + self.expansion]

    def with_rungs(self, phi: Tensor, states: Sequence[Tensor] | Tensor) -> Tensor:
        """phi (B, D) with these z_l, (B, width) each, in the place of its own."""
        read = [states[level] for level in self.read]
        return torch.cat([phi[:, : self.rungs.start], *read, phi[:, self.rungs.stop :]], -1)

    def from_expansion(self, hidden: Tensor, at_hidden: Tensor) -> Tensor:
        """Feedback at the expansion (B, H) brought down to the drives, (B, L * width)."""
        return (at_hidden * hidden * (1 - hidden)) @ self.expand_weight

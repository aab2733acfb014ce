"""The positions of a batch of sequences, looked up by plain integer index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from positions.channels import SlotLayout
from positions.errors import PositionError
from positions.plan import Plan

if TYPE_CHECKING:
    from positions.rotary import PlannedRotary


@dataclass(frozen=True, eq=False)
class PositionTable:
    """One row of positions a sample, padded to a common length S.

    positions: (B, S, K, 3) float64; padding holds 0.
    next_position: (B,) float64, the position of index S; index S + n stands n steps further.
    exact: (B,) bool, rows whose angles are always the plan's own, in float64. The stock rotary
        embedding multiplies positions in float32, so a row with a position that float32 cannot
        hold is such a row.
    layout: how slots are dealt out to channels.
    """

    positions: Tensor
    next_position: Tensor
    exact: Tensor
    layout: SlotLayout = "contiguous"

    @classmethod
    def from_plans(
        cls,
        plans: Sequence[Plan],
        mask: Tensor | None = None,
        *,
        exact: bool | None = None,
        device: torch.device | str | None = None,
    ) -> PositionTable:
        """Build a table from one plan a sample.

        mask: (B, S) attention mask, true (1) at the tokens of each plan, padded on either side;
            by default plans are padded on the right.
        exact: force the plan's own float64 angles (True) or the stock ones (False) for all rows.
        device: where the table is to live (that of the mask by default).

        Raises PositionError where the mask and the plans do not match.
        """
        if not plans:
            raise PositionError("plans is empty: expected one plan a sample")
        lengths = torch.tensor([len(plan) for plan in plans])
        if mask is None:
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
        counts = mask.bool().sum(-1).cpu()
        if mask.ndim != 2 or not torch.equal(counts, lengths):
            raise PositionError(
                f"the plans have {lengths.tolist()} tokens and the attention mask "
                f"{tuple(mask.shape)} has {counts.tolist()}: expected one row a plan with as many "
                "true entries as the plan has tokens"
            )
        layouts = {plan.slots.layout for plan in plans if plan.slots is not None}
        if len(layouts) > 1:
            raise PositionError(f"plans mix slot layouts {sorted(layouts)}: expected one")
        widths = {plan.positions.shape[1] for plan in plans}
        slots = max(widths)
        if not widths <= {1, slots}:
            raise PositionError(f"plans mix slot counts {sorted(widths)}: expected one (or 1)")
        positions = torch.zeros(*mask.shape, slots, 3, dtype=torch.float64)
        for row, plan in enumerate(plans):
            positions[row, mask[row].bool().cpu()] = plan.positions.expand(-1, slots, 3)
        if exact is None:
            rounded = positions.float().double() != positions
            needs = rounded.flatten(1).any(1)
        else:
            needs = torch.full((len(plans),), exact)
        table = cls(
            positions,
            torch.tensor([plan.next_position for plan in plans], dtype=torch.float64),
            needs,
            layouts.pop() if layouts else "contiguous",
        )
        return table.to(mask.device if device is None else device)

    def __len__(self) -> int:
        """Rows (samples, or beams after an expansion)."""
        return self.positions.shape[0]

    @property
    def slots(self) -> int:
        """K, the positions that each token carries."""
        return self.positions.shape[2]

    @property
    def length(self) -> int:
        """S, the padded length."""
        return self.positions.shape[1]

    def lookup(self, index: Tensor) -> Tensor:
        """Positions of the tokens at `index`.

        index: (B, q) or (1, q) integers, counted along the padded row.
        Returns (B, q, K, 3) float64.
        """
        if index.ndim != 2 or index.shape[0] not in (1, len(self)):
            raise PositionError(
                f"position_ids of shape {tuple(index.shape)} for a table of {len(self)} rows: "
                f"expected ({len(self)}, q) or (1, q); expand the table as the inputs were "
                "(repeat_interleave for beams, select for a reordering)"
            )
        if index.is_floating_point():
            raise PositionError(
                f"position_ids are {index.dtype}: expected integer indices into the plan"
            )
        index = index.to(self.positions.device).expand(len(self), -1)
        row = torch.arange(len(self), device=index.device)[:, None]
        known = self.positions[row, index.clamp(max=self.length - 1)]
        later = self.next_position[:, None] + (index - self.length)
        return torch.where((index < self.length)[..., None, None], known, later[..., None, None])

    def planned(self, positions: Tensor) -> Tensor:
        """(B, q) bool: which looked-up tokens need angles that the stock module cannot give."""
        several = (positions != positions[:, :, :1]).flatten(2).any(-1)
        return several | self.exact[:, None]

    def select(self, rows: Tensor | Sequence[int]) -> PositionTable:
        """The table of these rows, in this order (a batch reordered, or beams picked)."""
        index = torch.as_tensor(rows, device=self.positions.device)
        return replace(
            self,
            positions=self.positions[index],
            next_position=self.next_position[index],
            exact=self.exact[index],
        )

    def repeat_interleave(self, times: int) -> PositionTable:
        """Each row `times` times, as `generate` expands its inputs for beams and samples."""
        rows = torch.arange(len(self), device=self.positions.device)
        return self.select(rows.repeat_interleave(times))

    def then(self, other: PositionTable) -> PositionTable:
        """This table with `other` behind it: a later turn on the same cache.

        Indices go on counting: the first of `other` is index `length`. Tokens that were generated
        in between belong to `other` (as text from this table's `next_position` on).
        """
        slots = max(self.slots, other.slots)
        widths_fit = {self.slots, other.slots} <= {1, slots}
        if len(self) != len(other) or not widths_fit or (self.layout != other.layout and slots > 1):
            raise PositionError(
                f"a table of {len(other)} rows and {other.slots} slots ({other.layout}) behind one "
                f"of {len(self)} rows and {self.slots} slots ({self.layout}): expected the same"
            )
        parts = [table.positions.expand(-1, -1, slots, -1) for table in (self, other)]
        return replace(other, positions=torch.cat(parts, dim=1), exact=self.exact | other.exact)

    def to(self, device: torch.device | str) -> PositionTable:
        """The same table on another device."""
        return replace(
            self,
            positions=self.positions.to(device),
            next_position=self.next_position.to(device),
            exact=self.exact.to(device),
        )

    def on(self, rotary_emb: nn.Module) -> PlannedRotary:
        """Attach to a rotary embedding: `with table.on(model.rotary_emb): ...`."""
        from positions.rotary import PlannedRotary

        planned = PlannedRotary(rotary_emb)
        try:
            planned.table = self
        except PositionError:
            planned.remove()
            raise
        return planned

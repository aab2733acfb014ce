"""The positions of a batch of sequences, looked up by integer index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from positions.channels import SlotLayout
from positions.errors import PositionError
from positions.plan import Plan


@dataclass(frozen=True, eq=False)
class PositionTable:
    """Positions of the tokens at indices `start`, ..., `start` + S - 1 of each sample.

    Rows are padded to a common length S; the positions of padding are not used. The table does not
    know tokens before `start`: their keys are cached, already rotated.

    Args:
        positions: (B, S, K, 3) float64, the K slots (t, h, w) of each token.
        next_position: (B,) float64, the position of index `start` + S. Each later index is one
            position further.
        exact: (B,) bool, rows whose cos and sin are always computed in float64. The stock rotary
            embedding multiplies positions in float32, so a row with a position that float32 cannot
            hold is such a row.
        layout: how slots share the rotary channels.
        start: the index of the first token of the table.
        in_order: every lookup asks for the S tokens of the table, in order. This holds for a table
            that is made for one forward. A lookup then returns `positions` without reading the
            index.
        own_angles: whether some token needs angles that the stock module cannot compute: slots
            that differ, or a row of `exact`. By default decided from the tensors.
        one_axis: whether t = h = w everywhere. By default decided from the tensors.

    On an accelerator, deciding `own_angles` and `one_axis` from the tensors waits for the device;
    a caller that knows them states them.
    """

    positions: Tensor
    next_position: Tensor
    exact: Tensor
    layout: SlotLayout = "contiguous"
    start: int = 0
    in_order: bool = False
    own_angles: bool = None  # type: ignore[assignment]
    one_axis: bool = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.own_angles is None:
            own = bool(self.exact.any()) or _slots_differ(self.positions)
            object.__setattr__(self, "own_angles", own)
        if self.one_axis is None:
            object.__setattr__(self, "one_axis", _axes_agree(self.positions))

    @classmethod
    def from_plans(
        cls,
        plans: Sequence[Plan],
        mask: Tensor | None = None,
        *,
        exact: bool | None = None,
        device: torch.device | str | None = None,
    ) -> PositionTable:
        """Build a table from one plan per sample.

        Args:
            mask: (B, S) attention mask, true (1) at the tokens of each plan. Rows may be padded on
                either side. By default plans are padded on the right.
            exact: whether cos and sin of all rows are computed in float64 (True) or by the stock
                module (False). By default decided for each row.
            device: where the table is stored. By default the device of `mask`.

        Raises:
            PositionError: the mask does not fit the plans, or the plans differ in slots.
        """
        if not plans:
            raise PositionError("plans is empty: expected one plan per sample")
        lengths = torch.tensor([len(plan) for plan in plans])
        if mask is None:
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
        real = mask.bool().cpu()
        counts = real.sum(-1)
        if mask.ndim != 2 or not torch.equal(counts, lengths):
            raise PositionError(
                f"the plans have {lengths.tolist()} tokens and the attention mask "
                f"{tuple(mask.shape)} has {counts.tolist()}: expected one row per plan with as "
                "many true entries as the plan has tokens"
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
            positions[row, real[row]] = plan.positions.expand(-1, slots, 3)
        if exact is None:
            exact_rows = (positions.float().double() != positions).flatten(1).any(1)
        else:
            exact_rows = torch.full((len(plans),), exact)
        table = cls(
            positions,
            torch.tensor([plan.next_position for plan in plans], dtype=torch.float64),
            exact_rows,
            layouts.pop() if layouts else "contiguous",
        )
        return table.to(mask.device if device is None else device)

    def __len__(self) -> int:
        """B: samples, or beams after an expansion."""
        return self.positions.shape[0]

    @property
    def slots(self) -> int:
        """K, the number of positions of each token."""
        return self.positions.shape[2]

    @property
    def length(self) -> int:
        """S, the padded length."""
        return self.positions.shape[1]

    def lookup(self, index: Tensor) -> Tensor:
        """Return the positions of the tokens at `index`, (B, q, K, 3) float64.

        Args:
            index: (B, q) or (1, q) integers, counted along the padded row: `start` is the first
                token of the table. Values below `start` give no meaningful position.

        Raises:
            PositionError: `index` is not of integers, has other rows than the table, or, where the
                table is `in_order`, other columns than the table.
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
        if self.in_order:
            if index.shape[1] != self.length:
                raise PositionError(
                    f"position_ids of shape {tuple(index.shape)} for a table of the "
                    f"{self.length} tokens of one forward: expected ({len(self)}, {self.length})"
                )
            return self.positions
        index = index.to(self.positions.device).expand(len(self), -1) - self.start
        row = torch.arange(len(self), device=index.device)[:, None]
        known = self.positions[row, index.clamp(0, self.length - 1)]
        later = self.next_position[:, None] + (index - self.length)
        return torch.where((index < self.length)[..., None, None], known, later[..., None, None])

    def needs_own_angles(self, positions: Tensor) -> Tensor:
        """(B, q) bool: which looked-up tokens need angles that the stock module cannot compute.

        Args:
            positions: (B, q, K, 3), from `lookup`.
        """
        differ = (positions != positions[:, :, :1]).flatten(2).any(-1)
        return differ | self.exact[:, None]

    def select(self, rows: Tensor | Sequence[int]) -> PositionTable:
        """Return the table of these rows, in this order (a reordered batch, or selected beams)."""
        index = torch.as_tensor(rows, device=self.positions.device)
        return replace(
            self,
            positions=self.positions[index],
            next_position=self.next_position[index],
            exact=self.exact[index],
        )

    def repeat_interleave(self, times: int) -> PositionTable:
        """Repeat each row `times` times, as `generate` expands its inputs for beams and samples."""
        rows = torch.arange(len(self), device=self.positions.device)
        return self.select(rows.repeat_interleave(times))

    def then(self, other: PositionTable) -> PositionTable:
        """Return this table followed by `other`: a later turn on the same cache.

        The first token of `other` gets index `start` + S of this table. Tokens that were generated
        in between belong to `other` (as text from this table's `next_position` on).

        Raises:
            PositionError: the tables differ in rows, slots or slot layout.
        """
        slots = max(self.slots, other.slots)
        one_layout = 1 in (self.slots, other.slots) or self.layout == other.layout
        if len(self) != len(other) or not {self.slots, other.slots} <= {1, slots} or not one_layout:
            raise PositionError(
                f"a table of {len(other)} rows and {other.slots} slots ({other.layout}) after one "
                f"of {len(self)} rows and {self.slots} slots ({self.layout}): expected the same"
            )
        parts = [table.positions.expand(-1, -1, slots, -1) for table in (self, other)]
        return replace(
            self,
            positions=torch.cat(parts, dim=1),
            next_position=other.next_position,
            exact=self.exact | other.exact,
            layout=self.layout if self.slots == slots else other.layout,
            in_order=False,
            own_angles=self.own_angles or other.own_angles,
            one_axis=self.one_axis and other.one_axis,
        )

    def to(self, device: torch.device | str) -> PositionTable:
        """Return the same table on another device."""
        return replace(
            self,
            positions=self.positions.to(device),
            next_position=self.next_position.to(device),
            exact=self.exact.to(device),
        )


def _slots_differ(positions: Tensor) -> bool:
    return positions.shape[2] > 1 and bool((positions != positions[:, :, :1]).any())


def _axes_agree(positions: Tensor) -> bool:
    return bool((positions == positions[..., :1]).all())

"""Row-wise Adagrad on the rows a step touched, whatever the size of the table."""

from __future__ import annotations

from torch import Tensor

from learners.blocks.optimizers import EPSILON


def rows_adagrad(weight: Tensor, rows: Tensor, gradient: Tensor, sums: Tensor, *, rate: float) -> None:
    """One step, in place, of the rows named alone: no other row is read or written.

    The same as `row_adagrad` of `optimizers.py` with a dense gradient that is 0 elsewhere.

    :param weight: [N, D]; rows: [U] distinct; gradient: [U, D]; sums: [N], a sum of mean squares for each row.
    """
    grown = sums[rows] + gradient.square().mean(dim=1)
    sums[rows] = grown
    weight[rows] -= rate * gradient / (grown.sqrt() + EPSILON).unsqueeze(1)

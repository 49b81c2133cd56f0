"""Sampling the next event of a point process by thinning (Lewis and Shedler 1979, Ogata 1981).

Windows of doubling width; in each the bound is probed anew AHEAD of the samples, inter-arrival times are
accumulated (the official PromptTPP code does neither, and is wrong by a factor 50 on a constant rate), and
a candidate whose intensity is above the bound is an error instead of a silent bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Intensity = Callable[[Tensor], Tensor]
"""Rates [B, N] at N times [B, N] from now, both float64 in one unit of time."""


class BoundExceeded(ArithmeticError):
    """The intensity rises between two probes above the bound: use more probes or a larger margin."""


def next_times(
    intensity: Intensity,
    rows: int,
    draws: int,
    *,
    generator: torch.Generator,
    window: float,
    probes: int = 16,
    margin: float = 1.5,
    windows: int = 80,
) -> Tensor:
    """Independent draws of the time to the next event.

    :param window: width of the first window, in the intensity's unit of time.
    :param margin: bound over the highest probe of the window.
    :param windows: after so many doublings a draw without an event is inf.
    :returns: [rows, draws] float64.
    :raises BoundExceeded: see there.
    """
    times = torch.full((rows, draws), torch.inf, dtype=torch.float64)
    at = torch.zeros((rows, draws), dtype=torch.float64)
    open_ = torch.ones((rows, draws), dtype=torch.bool)
    end = 0.0
    grid = torch.linspace(0.0, 1.0, probes, dtype=torch.float64)
    for _ in range(windows):
        start, end = end, end + window
        window *= 2.0
        rates = intensity((start + (end - start) * grid).expand(rows, probes))
        bound = margin * rates.amax(dim=1, keepdim=True)  # [rows, 1]
        inside = open_.clone()
        while bool(inside.any()):
            steps = torch.empty_like(at).exponential_(generator=generator) / bound
            at = torch.where(inside, at + steps, at)
            inside = inside & (at < end)
            rate = intensity(torch.where(inside, at, start))
            if bool((inside & (rate > bound)).any()):
                raise BoundExceeded(f"intensity above its bound between {start} and {end}")
            luck = torch.rand(at.shape, dtype=torch.float64, generator=generator)
            accepted = inside & (luck * bound < rate)
            times = torch.where(accepted, at, times)
            open_, inside = open_ & ~accepted, inside & ~accepted
        if not bool(open_.any()):
            break
        # The process has no memory beyond the history: who left the window starts anew at its end.
        at = torch.where(open_, torch.full_like(at, end), at)
    return times

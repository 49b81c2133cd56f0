"""What a computation's last bits depend on, beside its input and its code."""

from __future__ import annotations

import torch


def device_class(*, threads: int | None = None) -> str:
    """What two machines must share to get the same bytes: torch build, instruction set, threads.

    :param threads: on which it computes; None: as many as torch is set to.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu/{capability}/torch-{torch.__version__}/threads-{threads or torch.get_num_threads()}"

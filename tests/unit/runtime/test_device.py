"""What two machines must share to get the same bytes."""

from __future__ import annotations

import torch

from runtime.device_class import device_class


def test_the_device_class_names_what_the_bytes_depend_on() -> None:
    one = device_class(threads=1)
    assert torch.__version__ in one
    assert torch.backends.cpu.get_cpu_capability() in one
    assert device_class(threads=2) != one


def test_threads_that_are_not_named_are_those_torch_is_set_to() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert device_class() == device_class(threads=threads)
    finally:
        torch.set_num_threads(before)

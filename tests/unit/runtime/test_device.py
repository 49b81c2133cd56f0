"""What two machines must share to get the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from runtime.device import device_class


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_device_class_names_what_the_bytes_depend_on() -> None:
    one = device_class()
    assert torch.__version__ in one
    assert torch.backends.cpu.get_cpu_capability() in one
    torch.set_num_threads(2)
    assert device_class() != one


def test_threads_that_are_named_count_and_not_those_of_the_moment() -> None:
    assert device_class(threads=2) != device_class() == device_class(threads=1)

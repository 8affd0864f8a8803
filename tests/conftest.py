"""Tests of small things run on one thread each: several would only wait for one another."""

import gc
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def released() -> Iterator[None]:
    """What a file's tests left attached goes with it: trainers stand in cycles, and tests count the taps."""
    yield
    gc.collect()

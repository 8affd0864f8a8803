"""Tests of small things run on one thread each: several would only wait for one another."""

import gc

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def released() -> None:
    """What the files before left attached is gone: trainers stand in cycles, and tests count the taps. (Not
    behind a file: its last test still holds its fixtures then.)"""
    gc.collect()

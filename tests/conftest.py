"""Tests of small things run on one thread each: several would only wait for one another."""

import gc
import signal

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def released() -> None:
    """What the files before left attached is gone: trainers stand in cycles, and tests count the taps. (Not
    behind a file: its last test still holds its fixtures then.)"""
    gc.collect()

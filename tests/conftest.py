"""Tests of small things run on one thread each: several would only wait for one another."""

import torch

torch.set_num_threads(1)

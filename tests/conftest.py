"""One thread a process: the tests are small, and so the timings in them mean something."""

import torch

torch.set_num_threads(1)

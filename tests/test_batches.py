"""Batches are functions of (seed, step), whatever they come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import adapters
import interp
from adapters.protocol import Family
from interp.training.batches import batches

DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


class Mean(Family):
    """One number, the mean of the data."""

    def __init__(self):
        super().__init__((4,))
        self.w = nn.Parameter(torch.ones(()))

    def loss(self, batch, generator=None):
        x = batch["x"] if isinstance(batch, dict) else batch
        return (self.w - x.mean()).square()


class Rows(Dataset):
    """A map-style set that also draws, as augmentation does."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index] + torch.rand(()), LABELS[index]


class Endless(IterableDataset):
    """Thirty rows one after the other, of unknown number."""

    def __iter__(self):
        return iter(DATA[:30])


SOURCES = {
    "tensor": lambda: DATA,
    "mapping": lambda: {"x": DATA, "label": LABELS},
    "dataset": Rows,
    "tensors": lambda: TensorDataset(DATA),
    "loader": lambda: DataLoader(Rows(), batch_size=16, shuffle=True),
    "seeded": lambda: DataLoader(Rows(), 16, shuffle=True, generator=torch.Generator()),
    "iterable": Endless,
}


@pytest.mark.parametrize("name", SOURCES)
def test_batches_begun_later_are_the_same_batches(name):
    def stream(start, count):
        found = batches(SOURCES[name](), 16, seed=3, start=start)
        for step in range(start, start + count):
            torch.manual_seed(step)  # as the trainer does
            batch = next(found)
            yield batch["x"] if isinstance(batch, dict) else batch

    whole = list(stream(0, 9))
    for start in (1, 2, 5):
        for a, b in zip(stream(start, 4), whole[start : start + 4], strict=True):
            assert torch.equal(a, b)
    sizes = [len(batch) for batch in whole]
    wanted = {"loader": [16, 16, 8], "seeded": [16, 16, 8], "iterable": [16, 14]}.get(name, [16])
    assert sizes == [wanted[k % len(wanted)] for k in range(9)]


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order():
    rows = torch.arange(48.0)[:, None]
    found = batches(rows, 16, seed=0)
    epochs = [torch.cat([next(found) for _ in range(3)]).flatten() for _ in range(2)]
    assert all(torch.equal(epoch.sort().values, rows.flatten()) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_more_rows_asked_than_there_are_gives_them_all():
    assert len(next(batches(DATA, 100, seed=0))) == 40


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_data_trains(name):
    assert interp.train(Mean(), SOURCES[name](), 3, progress=False).step == 3


def test_float64_data_train_a_float32_family():
    family = adapters.create("flow_matching", shape=(4,), classes=3, width=8)
    interp.train(family, {"x": DATA.double(), "label": LABELS}, 2, progress=False)
    assert all(p.dtype == torch.float32 for p in family.parameters())

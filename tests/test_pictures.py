"""Samples with labels as the data have them, and the pictures of them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

import adapters
from interp import plot
from interp.errors import OptionError
from interp.training.pictures import draw_labels, sample


def test_labels_come_by_frequency_and_row():
    labels = draw_labels(30_000, [0.5, 0.0, 0.2, 0.3], seed=0)
    counts = torch.bincount(labels, minlength=4)
    # Binomial standard deviations are below 87; five of these.
    assert (counts - torch.tensor([15_000, 0, 6000, 9000])).abs().max() < 435
    assert counts[1] == 0
    assert torch.equal(draw_labels(100, [0.5, 0.0, 0.2, 0.3], seed=0), labels[:100])


def test_samples_do_not_depend_on_the_batch_size():
    model = adapters.create("flow_matching", shape=(4,), classes=3, width=8)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    a, la = sample(model, 7, seed=3, batch_size=7)
    b, lb = sample(model, 7, seed=3, batch_size=2)
    assert torch.equal(la, lb)
    # Matrix products of other heights may sum in another order: float32, 64 evaluations.
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_grid_shows_each_image_in_its_place(tmp_path):
    images = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 1, 8, 8)
    plot.grid(images, tmp_path / "g.png", columns=3, size=240)
    with Image.open(tmp_path / "g.png") as image:
        pixels = torch.tensor(list(image.convert("L").tobytes())).reshape(image.height, image.width)
    height, width = pixels.shape
    centres = [
        pixels[height * (2 * (k // 3) + 1) // 4, width * (2 * (k % 3) + 1) // 6] for k in range(6)
    ]
    assert [int(c) for c in centres] == [0, 51, 102, 153, 204, 255]


@pytest.mark.parametrize("shape", [(9, 2), (9, 1), (9, 3, 5), (1, 3, 8, 8)])
def test_other_samples_have_a_picture_too(tmp_path, shape):
    plot.grid(torch.zeros(shape), tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as image:
        assert image.width > 100
    with pytest.raises(OptionError, match="at least one row"):
        plot.grid(torch.zeros(0, 1, 8, 8), tmp_path / "g.png")


def test_pictures_leave_the_users_pyplot_alone(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    plot.loss_curve([(k, 1 / k) for k in range(1, 200)], tmp_path / "l.png")
    named = {"critic": [(k, -1 / k) for k in range(1, 200)], "generator": [(5, 0.5), (10, 0.1)]}
    plot.loss_curve(named, tmp_path / "n.png")
    plot.grid(torch.zeros(5, 2), tmp_path / "g.png")
    assert plt.get_fignums() == []
    assert matplotlib.get_backend() == before

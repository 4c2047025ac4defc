"""Real networks of diffusers, tiny and trained for seconds on scikit-learn's digits, saved and loaded.

A test must not fail for what another library warns of when it is imported or its networks are used.
"""

import warnings

import pytest
import torch
from sklearn.datasets import load_digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import diffusers
    except ImportError:  # the tests beside this file skip themselves
        diffusers = None


@pytest.fixture(autouse=True)
def _their_warnings_are_theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tiny_unet(channels=1, **options):
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(16, 32),
        layers_per_block=1, norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), **options,
    )  # fmt: skip


def tiny_dit(out_channels=1):
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=1, out_channels=out_channels,
        num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=10, dropout=0.0,
    )  # fmt: skip


def train(net, loss, steps):
    """A few seconds of Adam on the digits, in [-1, 1] as diffusers' pipelines have them."""
    images, labels = load_digits(return_X_y=True)
    data = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(labels)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(data), (32,), generator=generator)
        value = loss(net, data[rows], labels[rows], generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:5]) * 20 / 5  # it learned something
    return net.eval()


@pytest.fixture(scope="session")
def unet_pipeline(tmp_path_factory):
    """The folder of a DDPMPipeline whose UNet2DModel tells the noise."""
    torch.manual_seed(0)
    scheduler = diffusers.DDPMScheduler()

    def loss(net, x, labels, generator):
        noise = torch.randn(x.shape, generator=generator)
        index = torch.randint(1000, (len(x),), generator=generator)
        found = net(scheduler.add_noise(x, noise, index), index).sample
        return (found - noise).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = train(tiny_unet(), loss, 80)
        folder = tmp_path_factory.mktemp("unet")
        diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory):
    """The folder of a DiT that tells the flow noise - data, by label, and of its scheduler."""
    torch.manual_seed(0)

    def loss(net, x, labels, generator):
        noise = torch.randn(x.shape, generator=generator)
        sigma = torch.rand(len(x), generator=generator)
        s = sigma[:, None, None, None]
        found = net((1 - s) * x + s * noise, timestep=1000 * sigma, class_labels=labels).sample
        return (found - (noise - x)).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = train(tiny_dit(), loss, 100)
        folder = tmp_path_factory.mktemp("dit")
        net.save_pretrained(folder / "transformer")
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.save_pretrained(folder / "scheduler")
    return folder

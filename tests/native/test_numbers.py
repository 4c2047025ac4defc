"""Compiled networks give torch's numbers: random networks, every kind of layer, our own networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import interp
from adapters.networks import MLP, DiT, UNet

ACTIVATIONS = [
    nn.SiLU,
    nn.GELU,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.ELU,
    nn.Mish,
    nn.LeakyReLU,
    nn.Softplus,
]


class Residual(nn.Sequential):
    def forward(self, h):
        return h + super().forward(h)


class Attention(nn.Module):
    """Over the positions of an image, by the function or written out."""

    def __init__(self, channels, heads, written):
        super().__init__()
        self.heads, self.written = heads, written
        self.project = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, h):
        n, c, height, width = h.shape
        q, k, v = (
            self.project(h)
            .reshape(n, 3, self.heads, c // self.heads, -1)
            .transpose(-1, -2)
            .unbind(1)
        )
        if self.written:
            mixed = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v
        else:
            mixed = scaled_dot_product_attention(q, k, v)
        return h + mixed.transpose(-1, -2).reshape(n, c, height, width)


class Told(nn.Module):
    """A network told the time by a concatenation, a sum or a product, and perhaps a label."""

    def __init__(self, inner, how, labels, size):
        super().__init__()
        self.inner, self.how = inner, how
        self.embed = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, size))
        self.table = nn.Embedding(5, size) if labels else None

    def forward(self, t, x, label=None):
        t = t.reshape(-1, 1)
        e = self.embed(torch.cat([t, (3 * t).cos()], dim=1))
        if self.table is not None and label is not None:
            e = e + self.table(label)
        e = e.reshape(len(e), -1, *[1] * (x.ndim - 2))
        h = (
            torch.cat([x, e.expand(len(x), e.shape[1], *x.shape[2:])], 1)
            if self.how == "cat"
            else (x + e if self.how == "add" else x * (1 + e))
        )
        return self.inner(h)[:, : x.shape[1]]


@st.composite
def vectors(draw):
    """A network on vectors."""
    size = draw(st.integers(1, 9))
    how = draw(st.sampled_from(["cat", "add", "mul"]))
    width, layers = size * (2 if how == "cat" else 1), []
    for _ in range(draw(st.integers(0, 3))):
        wide = draw(st.integers(1, 40))
        layers += [
            nn.Linear(width, wide, bias=draw(st.booleans())),
            draw(st.sampled_from(ACTIVATIONS))(),
        ]
        width = wide
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(width))
        if draw(st.booleans()):
            layers.append(Residual(nn.Linear(width, width), nn.Dropout(0.5)))
    network = Told(nn.Sequential(*layers, nn.Linear(width, size)), how, draw(st.booleans()), size)
    return network, (size,)


@st.composite
def images(draw):
    """A network on images: convolutions of any stride, norms, pooling, attention, and back."""
    channels, side = draw(st.integers(1, 3)), draw(st.sampled_from([4, 6, 8]))
    how = draw(st.sampled_from(["cat", "add", "mul"]))
    c, layers = channels * (2 if how == "cat" else 1), []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 2]))
        wide = 4 * draw(st.integers(1, 3))
        layers.append(nn.Conv2d(c, wide, 1, bias=draw(st.booleans())))
        kernel, dilation = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
        layers.append(
            nn.Conv2d(
                wide,
                wide,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=groups,
            )
        )
        layers.append(
            draw(st.sampled_from([nn.Identity(), nn.GroupNorm(2, wide), nn.BatchNorm2d(wide)]))
        )
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        layers += draw(
            st.sampled_from(
                [
                    [],
                    [nn.Conv2d(wide, wide, 3, stride=2, padding=1), nn.Upsample(scale_factor=2)],
                    [nn.MaxPool2d(2), nn.ConvTranspose2d(wide, wide, 2, 2)],
                    [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)],
                    [nn.AvgPool2d(2), nn.ConvTranspose2d(wide, wide, 4, 2, 1, groups=2)],
                    [Attention(wide, 2, draw(st.booleans()))],
                ]
            )
        )
        c = wide
    network = Told(
        nn.Sequential(*layers, nn.Conv2d(c, channels, 3, padding=1)),
        how,
        draw(st.booleans()),
        channels,
    )
    return network, (channels, side, side)


@settings(deadline=None, max_examples=40)
@given(
    drawn=st.one_of(vectors(), images()), rows=st.sampled_from([1, 2, 3, 17]), seed=st.integers(0, 99),
    each=st.booleans(), labelled=st.booleans(),
)  # fmt: skip
def test_random_networks_give_the_numbers_of_torch(drawn, rows, seed, each, labelled):
    network, shape = drawn
    generator = torch.Generator().manual_seed(seed)
    network.double().eval().requires_grad_(False)
    for name, p in [*network.named_parameters(), *network.named_buffers()]:
        if p.is_floating_point():
            p.normal_(0, 0.5, generator=generator)
            if name.endswith("running_var"):
                p.abs_()
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    t = torch.rand(rows if each else (), generator=generator, dtype=torch.float64)
    label = torch.randint(5, (rows,), generator=generator)
    cond = {"label": label} if labelled and network.table is not None else {}
    compiled = interp.compile(network)
    exact, ours = network(t, x, **cond), compiled(t, x, **cond)
    assert not compiled.uncompiled
    scale = float(exact.abs().max())
    # Sums of at most some hundred products, in another order, a few layers deep; a norm of numbers
    # that are almost equal multiplies it by up to 1 / sqrt(eps).
    assert float((ours - exact).abs().max()) <= 1e-10 * (1 + scale)
    network.float()
    x, t = x.float(), t.float()
    torchs, ours = network(t, x, **cond), compiled(t, x, **cond)
    assert ours.dtype == torch.float32
    # In single precision: as near to the truth as torch comes.
    theirs = float((torchs - exact).abs().max())
    assert float((ours - exact).abs().max()) <= 20 * theirs + 1e-5 * (1 + scale)


NETWORKS = {
    "mlp": lambda: (MLP((8,), width=24, classes=3), (8,)),
    "unet": lambda: (UNet((1, 8, 8), width=16, classes=3), (1, 8, 8)),
    "dit": lambda: (DiT((1, 8, 8), width=32, classes=3), (1, 8, 8)),
}


def trained(network):
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if not p.any():
            p.data.normal_(0, 0.05, generator=generator)
    return network.requires_grad_(False)


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_compile_whole(name):
    network, shape = NETWORKS[name]()
    trained(network)
    compiled = interp.compile(network)
    for rows in (1, 3):
        x, label = torch.randn(rows, *shape), torch.arange(rows)
        for t in (torch.tensor(0.3), torch.rand(rows, dtype=torch.float64)):
            for cond in ({}, {"label": label}):
                expected = network(t, x, **cond)
                # Float32, some dozen layers of numbers of order 1.
                torch.testing.assert_close(compiled(t, x, **cond), expected, rtol=1e-5, atol=1e-5)
    assert compiled.uncompiled == []


def test_a_row_does_not_depend_on_the_others():
    network, shape = NETWORKS["unet"]()
    compiled = interp.compile(trained(network).double())
    x, t = torch.randn(40, *shape, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    whole = compiled(t, x)
    parts = torch.cat([compiled(t, x[:1]), compiled(t, x[1:8]), compiled(t, x[8:])])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-13)  # products in other blocks


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_threads_do_not_change_the_numbers(threads):
    network, shape = NETWORKS["dit"]()
    x, t = torch.randn(64, *shape), torch.tensor(0.2)
    one = interp.compile(trained(network), threads=1)(t, x)
    # Float32; rows are cut into other blocks.
    torch.testing.assert_close(
        interp.compile(network, threads=threads)(t, x), one, rtol=0, atol=1e-6
    )


def test_it_is_a_model_in_torch_too():
    network, shape = NETWORKS["mlp"]()
    trained(network)
    compiled = interp.compile(network)
    x, t = torch.randn(3, *shape, requires_grad=True), torch.tensor(0.4)
    (ours,) = torch.autograd.grad(compiled(t, x).sum(), x)
    (theirs,) = torch.autograd.grad(network(t, x).sum(), x)
    torch.testing.assert_close(ours, theirs)
    ours = torch.func.grad(lambda x: compiled(t, x).sum())(x.detach())
    torch.testing.assert_close(ours, theirs)

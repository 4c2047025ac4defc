"""The shared networks: what goes in, what comes out, what a derivative can pass through."""

from __future__ import annotations

import pytest
import torch

from adapters import networks
from adapters.networks import MLP, DiT, UNet
from adapters.networks.between import halvings
from interp.errors import OptionError, UnknownName

SHAPES = [(1, 8, 8), (3, 28, 28), (2, 7, 9), (5,), (2, 3)]


def trained(network):
    """The network with random weights where it starts with zeros."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if not p.any():
            p.data.normal_(0, 0.05, generator=generator)
    return network


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [None, 4])
def test_a_network_starts_at_zero_and_keeps_shape_and_dtype(shape, classes):
    network, kind = networks.resolve(None, shape, classes, width=8)
    assert kind == ("unet" if len(shape) == 3 else "mlp")
    x = torch.randn(3, *shape)
    out = network(torch.rand(3, dtype=torch.float64), x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert not out.any()


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_one_time_for_all_rows_is_the_same_as_one_a_row(shape):
    network = trained(networks.resolve(None, shape, 4, width=8)[0]).double()
    x, t = torch.randn(3, *shape, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    label = torch.tensor([0, 3, 4])
    rows, one = network(t.expand(3), x, label), network(t, x, label)
    assert rows.any()
    # Float64: what differs is the order of sums, some ulp of numbers of order 1.
    torch.testing.assert_close(rows, one, atol=1e-12, rtol=1e-12)
    alone = torch.cat([network(t, x[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, one, atol=1e-12, rtol=1e-12)  # rows do not see one another


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
def test_the_label_counts_and_none_is_the_null_label(shape):
    network = trained(networks.resolve(None, shape, 4, width=8)[0])
    x, t = torch.randn(2, *shape), torch.tensor(0.5)
    null = network(t, x, torch.full((2,), 4))
    torch.testing.assert_close(network(t, x), null)
    assert not torch.allclose(network(t, x, torch.zeros(2, dtype=torch.int64)), null)
    with pytest.raises(OptionError, match="without labels"):
        networks.resolve(None, shape, None, width=8)[0](t, x, torch.zeros(2, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own, at first use
@pytest.mark.parametrize("network", [UNet((1, 8, 8), width=8), MLP((1, 8, 8), width=16)])
def test_forward_mode_passes_through_and_agrees_with_backward_mode(network):
    network = trained(network).double()
    x, e = (torch.randn(2, 1, 8, 8, dtype=torch.float64) for _ in range(2))
    t = torch.tensor(0.4, dtype=torch.float64)
    _, forward = torch.func.jvp(lambda x: network(t, x), (x,), (e,))
    _, pull = torch.func.vjp(lambda x: network(t, x), x)
    # <J e, w> = <e, J^T w>: the two modes share no derivative formula.
    w = torch.randn_like(x)
    torch.testing.assert_close((forward * w).sum(), (pull(w)[0] * e).sum())


def test_a_block_of_a_dit_starts_as_nothing_and_sees_every_patch():
    network = DiT((1, 8, 8), width=32, depth=1, classes=2)
    h, e = torch.randn(2, 16, 32), torch.randn(1, 32)
    torch.testing.assert_close(network.blocks[0](h, e), h)
    trained(network)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    network(torch.tensor(0.3), x)[0, 0, 0, 0].backward()
    assert x.grad.ne(0).all()
    with pytest.raises(OptionError, match="patch"):
        DiT((1, 9, 8))


def test_what_a_network_cannot_be_is_refused():
    with pytest.raises(UnknownName, match="unet"):
        networks.resolve("u-net", (1, 8, 8))
    with pytest.raises(OptionError, match="channels, height, width"):
        networks.resolve("unet", (8,))
    with pytest.raises(OptionError, match="cannot be halved 2 times"):
        UNet((1, 10, 10), multipliers=[1, 2, 2])
    with pytest.raises(OptionError, match="width=0"):
        networks.resolve("mlp", (8,), width=0)
    own, name = networks.resolve(torch.nn.Identity(), (8,))
    assert isinstance(own, torch.nn.Identity)
    with pytest.raises(OptionError, match=r"network of the user's own.*Identity"):
        networks.resolve(name, (8,))


# From one shape to another


@pytest.mark.parametrize(
    ("image", "other"),
    [
        ((1, 8, 8), (5,)),
        ((3, 28, 28), (4, 7, 7)),
        ((1, 8, 12), (2, 4, 6)),
        ((2, 9, 7), (3,)),
        ((1, 4, 4), (6, 4, 4)),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_image_goes_down_to_a_latent_and_up_again(image, other, batch_norm):
    down = networks.between("conv", image, other, 8, batch_norm).eval()
    up = networks.between("conv", other, image, 8, batch_norm).eval()
    x = torch.randn(3, *image)
    z = down(x)
    assert (z.shape[1:], up(z).shape) == (other, x.shape)
    torch.testing.assert_close(torch.cat([down(x[:1]), down(x[1:])]), z)  # rows are alone
    assert networks.between("mlp", image, other, 8)(x).shape == z.shape


def test_where_halving_ends():
    sides = [halvings((1, side, side), (9,)) for side in (4, 7, 8, 12, 28, 32, 64)]
    assert sides == [0, 0, 1, 2, 2, 3, 4]  # while even and above 4
    with pytest.raises(OptionError, match="28 x 28 or 14 x 14 or 7 x 7"):
        halvings((1, 28, 28), (4, 4, 4))


def test_networks_given_one_by_one_are_as_many_as_there_are_parts():
    a, b = torch.nn.Identity(), torch.nn.Identity()
    makers = dict.fromkeys(("encoder", "decoder"), lambda kind: torch.nn.Linear(1, 1))
    assert networks.several((a, b), (3,), makers) == ([a, b], "own:Identity Identity")
    assert networks.several(None, (3,), makers)[1] == "mlp"
    assert networks.several(None, (1, 8, 8), makers)[1] == "conv"
    with pytest.raises(OptionError, match="one nn.Module each for encoder, decoder"):
        networks.several((a,), (3,), makers)
    with pytest.raises(OptionError, match="networks of the user's own"):
        networks.several("own:Identity Identity", (3,), makers)

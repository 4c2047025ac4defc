"""Guidance on handwritten digits: what labels, a classifier and half of an image make of one trained model.

    free        u + w (c - u), classifier-free, by its own labels: w = 0 knows none, 1 guides nothing
    classifier  the model without labels, and w times the gradient of a classifier of noisy digits
    inpainting  the upper half of held-out digits is given, the lower one is drawn (posterior guidance)

A random forest that was trained on real digits says how many samples are of the label that was asked for; the
spread is that of the samples about the mean of their label, beside the data's own. One run of EDM serves all;
on its path beta is 1 from the beginning, where the linear path's is 0 and a gradient tells no velocity.

    python benchmarks/guidance.py --steps 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

import adapters
import interp
from adapters.networks import MLP
from interp import guidance, plot
from interp.training import data

SEED = 0
SCALES = (0.0, 1.0, 2.0, 4.0)
CLASSES = 10
DOCS = Path(__file__).parent.parent / "docs"
HALF = 4  # rows of an image that are given


class NoisyClassifier(nn.Module):
    """log p(y | x_t), by an MLP that is told the time."""

    def __init__(self, path: interp.Interpolant) -> None:
        super().__init__()
        self.path, self.net, self.head = path, MLP((64,)), nn.Linear(64, CLASSES)

    def logits(self, t: Tensor, x: Tensor) -> Tensor:
        """(rows, classes)."""
        out: Tensor = self.head(self.net(t.to(x.dtype), self._scaled(t, x)))
        return out

    def _scaled(self, t: Tensor, x: Tensor) -> Tensor:
        scale = (1 + self.path.sigma(t) ** 2).rsqrt().to(x.dtype)
        return x.flatten(1) * scale.reshape(-1, 1)

    def log_prob(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
        """Of each row's label."""
        return log_softmax(self.logits(t, x), 1).gather(1, label[:, None])[:, 0]

    def fit(self, x: Tensor, label: Tensor, steps: int) -> None:
        """By cross entropy at even times of the path."""
        generator = torch.Generator().manual_seed(SEED)
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        for _ in range(steps):
            at = torch.randint(len(x), (256,), generator=generator)
            t = torch.rand(256, generator=generator, dtype=torch.float64)
            noise = torch.randn(x[at].shape, generator=generator)
            loss = cross_entropy(self.logits(t, self.path.at(t, noise, x[at])), label[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class Judge:
    """A forest that has seen real digits alone."""

    def __init__(self, x: Tensor, label: Tensor) -> None:
        from sklearn.ensemble import RandomForestClassifier

        self.forest = RandomForestClassifier(300, random_state=SEED)
        self.forest.fit(x.flatten(1).numpy(), label.numpy())

    def right(self, x: Tensor, label: Tensor) -> float:
        """The share of rows that it finds to be of their label."""
        found = torch.from_numpy(self.forest.predict(x.flatten(1).numpy()))
        return (found == label).double().mean().item()


def spread(x: Tensor, label: Tensor) -> float:
    """The root mean square distance of an element from its label's mean."""
    parts = [x[label == k] for k in range(CLASSES)]
    return torch.cat([part - part.mean(0) for part in parts]).square().mean().sqrt().item()


def measured(steps: int, rows: int) -> tuple[list[dict[str, object]], Tensor]:
    """The table, and the picture's images: ten columns, a digit each."""
    train, held_out = data.load("digits"), data.load("digits", split="test")
    assert train.label is not None
    assert held_out.label is not None
    judge = Judge(train.x, train.label)
    torch.manual_seed(SEED)
    family = adapters.create(
        "edm", train.shape, network="mlp", width=256, classes=CLASSES, levels=train.levels
    )
    interp.train(family, train.columns, steps, seed=SEED, progress=False, ema=0.995)
    noisy = NoisyClassifier(family.path)
    noisy.fit(train.x, train.label, steps)
    label = torch.arange(rows) % CLASSES
    sampler = {"seed": SEED, "method": "heun", "steps": 20}
    own = {
        "guided by": "real digits",
        "scale": "",
        "right": judge.right(held_out.x, held_out.label),
    }
    table: list[dict[str, object]] = [{**own, "spread": spread(held_out.x, held_out.label)}]
    shown = []
    for scale in SCALES:
        x = family.sample(rows, label=label, guidance=scale, **sampler)
        shown.append(x[:CLASSES])
        table.append(_row("its own labels", scale, x, label, judge))
    for scale in SCALES:

        def by_classifier(model: Any, scale: float = scale) -> Any:
            return guidance.classifier(
                model, lambda t, at: noisy.log_prob(t, at, label), family.path, scale
            )

        x = family.sample(rows, guidance=by_classifier, **sampler)
        table.append(_row("a classifier", scale, x, label, judge))
    first = [int((held_out.label == k).nonzero()[0]) for k in range(CLASSES)]
    order = torch.tensor(first + [i for i in range(len(held_out.x)) if i not in first])
    truth, named = held_out.x[order], held_out.label[order]

    def inpainted(model: Any) -> Any:
        return guidance.posterior(
            model, family.path, lambda x: x[..., :HALF, :], truth[..., :HALF, :], 0.05,
            covariance="isotropic",
        )  # fmt: skip

    x = family.sample(len(truth), guidance=inpainted, **{**sampler, "steps": 40})
    table.append(_row("the upper half", 1.0, x, named, judge))
    blank = truth.clone()
    blank[..., HALF:, :] = train.x.mean(0)[..., HALF:, :]
    table.append(_row("the upper half, the rest the mean of all", "", blank, named, judge))
    given = truth.clone()
    given[..., HALF:, :] = 0.0
    return table, torch.cat([*shown, given[:CLASSES], x[:CLASSES], truth[:CLASSES]])


def _row(by: str, scale: object, x: Tensor, label: Tensor, judge: Judge) -> dict[str, object]:
    x = x.clamp(-1, 1)
    return {
        "guided by": by,
        "scale": scale,
        "right": judge.right(x, label),
        "spread": spread(x, label),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=500)
    args = parser.parse_args()
    table, images = measured(args.steps, args.rows)
    for row in table:
        print(*(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()), sep="  ")
    plot.grid(images, DOCS / "guidance.png", columns=CLASSES)
    print(
        f"written to {report.write('guidance', ('interp', 'torch'), SEED, table=table, **vars(args))}"
    )


if __name__ == "__main__":
    main()

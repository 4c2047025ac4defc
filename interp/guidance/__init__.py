"""Guidance: wrappers of a model, so that every family, term and solver has them.

    guide        u + scale (c - u): classifier-free guidance and autoguidance, over an interval, rescaled
    projected    the same with less of the part along the data estimate
    classifier   a classifier's gradient added to the score
    posterior    a linear measurement's: inpainting, deblurring and other inverse problems
    perturbed    the model with its attention spoilt, a worse one for `guide`

Each takes a model(t, x, **cond) and gives one of the same signature and view.
"""

from .attention import Perturbed, perturbed
from .inverse import Posterior, posterior
from .likelihood import Classified, classifier
from .line import Guided, guide
from .projection import Projected, projected

__all__ = [
    "Classified", "Guided", "Perturbed", "Posterior", "Projected", "classifier", "guide", "perturbed",
    "posterior", "projected",
]  # fmt: skip

"""Models made elsewhere under our solvers, and our solvers in pipelines made elsewhere.

    path, model = interp.from_diffusers(unet, scheduler)     # or a pipeline, or a folder
    path, model = interp.from_k_diffusion(denoiser, sigma_max=80.0)
    pipe.scheduler = interp.InterpScheduler.from_config(pipe.scheduler.config, method="heun")

diffusers itself is needed by InterpScheduler and to load folders, and imported by nothing else here.
"""

from __future__ import annotations

"""The engine's side of native fields."""

from rust_solvers import Decoder, Network, UserKernel, ddpm_step, flow_matching_step

__all__ = ["Decoder", "Network", "UserKernel", "ddpm_step", "flow_matching_step"]

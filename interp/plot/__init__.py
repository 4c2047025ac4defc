"""Pictures."""
from .curves import log_snr, schedules
from .density import density
from .fields import velocity
from .images import grid, loss_curve
from .pairs import coupling
from .trajectories import trajectories

//! The size of the next step, from the error of the last ones.

/// The PI controller of Hairer, Norsett and Wanner (Solving ODEs II, IV.2; `dopri5`):
/// factor = 0.9 err^(-1/p + 0.75 b) err_before^b with b = 0.04, kept within [0.2, 10].
pub struct Controller {
    exponent: f64,
    before: f64,
    after_rejection: bool,
}

const SAFETY: f64 = 0.9;
const MEMORY: f64 = 0.04;
const SHRINK: f64 = 0.2;
const GROW: f64 = 10.0;
/// An error this small says no more than that the step may grow; it also starts the memory.
const SMALLEST_ERROR: f64 = 1e-4;

impl Controller {
    /// `order` is p: the local error estimate scales as the step to the power p.
    pub fn new(order: f64) -> Self {
        let exponent = 1.0 / order - 0.75 * MEMORY;
        Controller { exponent, before: SMALLEST_ERROR, after_rejection: false }
    }

    /// The factor after a step with scaled error `error <= 1`.
    pub fn accepted(&mut self, error: f64) -> f64 {
        let factor = if error == 0.0 {
            GROW
        } else {
            SAFETY * error.powf(-self.exponent) * self.before.powf(MEMORY)
        };
        let most = if self.after_rejection { 1.0 } else { GROW };
        self.before = error.max(SMALLEST_ERROR);
        self.after_rejection = false;
        factor.clamp(SHRINK, most)
    }

    /// The factor after a step that was refused; a NaN or an infinity shrinks it as far as may be.
    pub fn rejected(&mut self, error: f64) -> f64 {
        self.after_rejection = true;
        let factor = SAFETY * error.powf(-self.exponent);
        if factor.is_finite() { factor.clamp(SHRINK, 1.0) } else { SHRINK }
    }
}

/// The first step of a run (Hairer, Norsett and Wanner, Solving ODEs I, II.4, algorithm 4.14).
pub mod starting_step {
    /// A trial Euler step: a hundredth of the scaled state over the scaled slope.
    pub fn trial(size: f64, speed: f64) -> f64 {
        if size < 1e-5 || speed < 1e-5 { 1e-6 } else { 0.01 * size / speed }
    }

    /// The step whose local error would be about 1 %, from the slope's change over the trial step.
    pub fn refined(trial: f64, speed: f64, change: f64, order: f64) -> f64 {
        let largest = speed.max(change);
        let step = if largest <= 1e-15 {
            (trial * 1e-3).max(1e-6)
        } else {
            (0.01 / largest).powf(1.0 / order)
        };
        // A field that overflows over the trial step leaves that step as it is.
        if step.is_finite() { step.min(100.0 * trial) } else { trial }
    }
}

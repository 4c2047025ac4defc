//! The size of the next step, from the error of the last ones.

/// A digital filter of the last three errors (Soderlind 2003, ACM Trans. Math. Softw. 29):
/// factor = 0.9 err^-g_0 err_before^-g_1 err_older^-g_2, kept within [0.2, 10].
/// A step that was refused is followed by one of the length that its error alone asks for.
pub struct Controller {
    gains: [f64; 3],
    refused: f64,
    before: f64,
    older: f64,
    after_rejection: bool,
}

const SAFETY: f64 = 0.9;
const SHRINK: f64 = 0.2;
const GROW: f64 = 10.0;
/// An error this small says no more than that the step may grow.
const SMALLEST_ERROR: f64 = 1e-4;

impl Controller {
    /// The error scales as the step to the power `order`.
    pub fn new(gains: [f64; 3], order: f64) -> Self {
        let refused = 1.0 / order;
        Controller { gains, refused, before: 1.0, older: 1.0, after_rejection: false }
    }

    /// The factor after a step with scaled error `error <= 1`.
    pub fn accepted(&mut self, error: f64) -> f64 {
        let [now, before, older] = self.gains;
        let factor = if error == 0.0 {
            GROW
        } else {
            let memory = self.before.powf(-before) * self.older.powf(-older);
            SAFETY * error.powf(-now) * memory
        };
        let most = if self.after_rejection { 1.0 } else { GROW };
        self.older = self.before;
        self.before = error.max(SMALLEST_ERROR);
        self.after_rejection = false;
        factor.clamp(SHRINK, most)
    }

    /// The factor after a step that was refused; a NaN or an infinity shrinks it as far as may be.
    pub fn rejected(&mut self, error: f64) -> f64 {
        self.after_rejection = true;
        let factor = SAFETY * error.powf(-self.refused);
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

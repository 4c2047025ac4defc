//! Butcher tableaus: the coefficients of explicit Runge-Kutta methods.

/// `k_i = f(t + c_i h, y + h sum_j a_ij k_j)`, `y_new = y + h sum_j b_j k_j`.
pub struct Tableau {
    /// One row a stage, then those of the extra stages, which only dense output needs.
    pub a: Vec<Vec<f64>>,
    pub b: Vec<f64>,
    pub c: Vec<f64>,
    /// Rows of weights of the local error, `h sum_j error_j k_j`; none without an embedded method.
    pub error: Vec<Vec<f64>>,
    /// Rows of weights of the dense output; none where it is the cubic Hermite one.
    pub dense: Vec<Vec<f64>>,
    /// Order of the error estimate plus one, as the controller uses it.
    pub order: f64,
}

impl Tableau {
    pub fn stages(&self) -> usize {
        self.b.len()
    }

    /// First same as last: the last stage is taken at `y_new`, and is the next step's first.
    pub fn fsal(&self) -> bool {
        let last = self.stages() - 1;
        last > 0 && self.b[last] == 0.0 && self.a[last][..last] == self.b[..last]
    }

    /// Where the slope at `y_new` is kept: the last stage, or after all stages.
    pub fn end(&self) -> usize {
        self.stages() - usize::from(self.fsal())
    }

    /// Slopes of a step, that at its end and the extra ones included.
    pub fn slopes(&self) -> usize {
        self.a.len().max(self.end() + 1)
    }

    /// The extra stages.
    pub fn extra(&self) -> std::ops::Range<usize> {
        self.stages()..self.a.len()
    }

    /// Whether the error estimate asks for the slope at `y_new`.
    pub fn error_at_end(&self) -> bool {
        let end = self.end();
        self.error.iter().any(|row| row.get(end).is_some_and(|&w| w != 0.0))
    }

    /// Operands of the longest combination: of a stage, the new state, or dense output.
    pub fn terms(&self) -> usize {
        let row = self.a.iter().chain([&self.b]).map(|row| nonzero(row)).max().unwrap_or(0) + 1;
        let kept = |&j: &usize| {
            let weighs = self.dense.iter().any(|row| row.get(j).is_some_and(|&w| w != 0.0));
            weighs || j == 0 || j == self.end()
        };
        row.max((0..self.slopes()).filter(kept).count() + 2)
    }

    /// Slopes in the longest error estimate.
    pub fn error_terms(&self) -> usize {
        self.error.iter().map(|row| nonzero(row)).max().unwrap_or(0)
    }

    /// The state at `theta` of a step, as weights `(e, w)` of `(1 - e) y + e y_new + h sum_j w_j k_j`:
    /// cubic Hermite, and theta^2 (1 - theta)^2 times the rows of `dense`, in the basis
    /// 1, theta, theta (1 - theta), theta^2 (1 - theta).
    pub fn between(&self, theta: f64) -> (f64, Vec<f64>) {
        let rest = 1.0 - theta;
        let bump = theta * theta * rest * rest;
        let basis = [1.0, theta, theta * rest, theta * theta * rest];
        let mut weights = vec![0.0; self.slopes()];
        for (power, row) in basis.iter().zip(&self.dense) {
            weights.iter_mut().zip(row).for_each(|(w, d)| *w += bump * power * d);
        }
        weights[0] += theta * rest * rest;
        weights[self.end()] -= theta * theta * rest;
        (theta * theta * (3.0 - 2.0 * theta), weights)
    }
}

fn nonzero(row: &[f64]) -> usize {
    row.iter().filter(|&&w| w != 0.0).count()
}

/// The time of a stage at `c` of the step from `t` to `next`; the end itself is hit exactly.
pub fn stage_time(c: f64, t: f64, next: f64) -> f64 {
    if c == 1.0 { next } else { t + c * (next - t) }
}

/// One error out of the norms of the estimates: a second, of lower order, makes the first one safer
/// (Hairer, Norsett and Wanner, Solving ODEs I, II.10).
pub fn estimate(norms: &[f64]) -> f64 {
    match *norms {
        [e, low] if e != 0.0 => e * e / (e * e + 0.01 * low * low).sqrt(),
        [e, ..] => e,
        [] => f64::NAN,
    }
}

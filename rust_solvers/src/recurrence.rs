//! One-step recurrences on a fixed grid, `y_new = a y + b f(t, y) + noise`: Euler-Maruyama and its
//! exponential forms, whose coefficients differ from step to step.

use crate::brownian::{Increments, Path};
use crate::kernels::{Noise, noisy_update, non_finite_rows};
use crate::real::Real;
use crate::system::{Outcome, Status, System};

/// `y_new = a y + b f(t, y) + s dW`, with dW the increment of W over the step; where the system has
/// a diffusion g(t, y) of its own, `+ s g(t, y) dW`.
pub struct Recurrence {
    pub grid: Vec<f64>,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub s: Vec<f64>,
}

/// Run the recurrence from `y` (rows of length `row`), saving at those `saves` that are grid times.
pub fn integrate<T: Real, S: System<T>>(
    system: &mut S,
    steps: &Recurrence,
    path: Path,
    row: usize,
    saves: &[f64],
    mut y: S::Buffer,
) -> Result<Outcome<S::Buffer>, S::Error> {
    let noisy = steps.grid.windows(2).zip(&steps.s).filter(|(_, s)| **s != 0.0);
    let noisy = noisy.map(|(ends, _)| (ends[0], ends[1])).collect();
    let mut increments = Increments::new(path, noisy, false);
    let mut next_y = system.buffer()?;
    let last = steps.grid.len() - 1;
    let done = |status, t, y, n: usize, h: f64, rows| Outcome {
        status,
        t,
        y,
        accepted: n as u64,
        rejected: 0,
        step: h.abs(),
        rows,
    };
    let mut saved = 0;
    let mut save = |system: &mut S, t: f64, y: &S::Buffer| {
        while saves.get(saved) == Some(&t) {
            let y = y.as_ref();
            system.save(saved, |out| out.copy_from_slice(y))?;
            saved += 1;
        }
        Ok(())
    };
    save(system, steps.grid[0], &y)?;
    for i in 0..last {
        let (t, next) = (steps.grid[i], steps.grid[i + 1]);
        if i % ANNOUNCE == 0 {
            system.announce(&steps.grid[i..(i + ANNOUNCE).min(last)])?;
        }
        let slope = system.slope(&mut y)?;
        let diffusion = system.diffusion(&mut y)?;
        let (out, y_now, slope_now) = (next_y.as_mut(), y.as_ref(), slope.as_ref());
        let diffusion_now = diffusion.as_ref().map(AsRef::as_ref);
        let (a, b, scale) = (steps.a[i], steps.b[i], steps.s[i]);
        let bad = system.compute(|| {
            // No normal is drawn that would be multiplied by zero.
            let w = (scale != 0.0).then(|| increments.over_next().0);
            match w {
                Some(w) => {
                    let noise = Noise { w, scale, diffusion: diffusion_now };
                    noisy_update(out, (a, y_now), (b, slope_now), &noise)
                }
                None => crate::kernels::combine(out, &[(a, y_now), (b, slope_now)]),
            }
        });
        if bad {
            let rows = [slope_now, next_y.as_ref()]
                .iter()
                .map(|v| non_finite_rows(v, row))
                .find(|rows| !rows.is_empty())
                .unwrap_or_default();
            return Ok(done(Status::NonFinite, t, y, i, next - t, rows));
        }
        std::mem::swap(&mut y, &mut next_y);
        save(system, next, &y)?;
        if system.accepted(next, &mut y)? {
            return Ok(done(Status::Stopped, next, y, i + 1, next - t, Vec::new()));
        }
    }
    let h = steps.grid[last] - steps.grid[last - 1];
    Ok(done(Status::Done, steps.grid[last], y, last, h, Vec::new()))
}

/// Times announced ahead.
const ANNOUNCE: usize = 64;

//! Explicit Runge-Kutta methods from a tableau, on a fixed grid or with adaptive steps.

use crate::controller::{Controller, starting_step};
use crate::kernels::{Norm, Term, Tolerance, combine, error_norm, non_finite_rows};
use crate::real::Real;
use crate::system::{Outcome, Status, System};
use crate::tableau::{Tableau, estimate, stage_time};

/// What an adaptive run is steered by.
pub struct Adaptive {
    pub from: f64,
    pub to: f64,
    pub tolerance: Tolerance,
    /// The first step; chosen from the field where it is absent.
    pub first_step: Option<f64>,
    pub max_steps: u64,
    /// Of the controller, the newest error first.
    pub gains: [f64; 3],
    pub norm: Norm,
}

impl Adaptive {
    pub fn forward(&self) -> f64 {
        if self.to >= self.from { 1.0 } else { -1.0 }
    }

    /// Below this a step no longer moves the time at either end of the run.
    pub fn smallest(&self) -> f64 {
        4.0 * f64::EPSILON * self.from.abs().max(self.to.abs()).max(f64::MIN_POSITIVE)
    }

    /// A first step of at least the smallest, and at most the run.
    pub fn bounded(&self, step: f64) -> f64 {
        let span = (self.to - self.from).abs();
        step.clamp(self.smallest().min(span), span)
    }

    /// Length and end of a step of `h` from `t`. The last step lands on the end exactly, and a
    /// hundredth longer rather than leave a sliver over (as Hairer's dopri5 does).
    pub fn step(&self, t: f64, h: f64) -> (f64, f64) {
        let left = (self.to - t).abs();
        if 1.01 * h >= left { (left, self.to) } else { (h, t + self.forward() * h) }
    }
}

/// Grid, or two ends and tolerances.
pub enum Steps {
    Fixed(Vec<f64>),
    Adaptive(Adaptive),
}

/// One run: the state between two steps and the slopes of the current one.
pub struct Run<'a, T: Real, S: System<T>> {
    system: &'a mut S,
    tableau: &'a Tableau,
    row: usize,
    saves: &'a [f64],
    saved: usize,
    y: S::Buffer,
    stage: S::Buffer,
    slopes: Vec<Option<S::Slope>>,
}

/// Times announced ahead on a fixed grid: enough to make their tensors cheaply, no more.
const ANNOUNCE: usize = 64;

impl<'a, T: Real, S: System<T>> Run<'a, T, S> {
    /// A run from the state `y`, rows of length `row`, saving at the times `saves` on the way.
    pub fn new(
        system: &'a mut S,
        tableau: &'a Tableau,
        row: usize,
        saves: &'a [f64],
        y: S::Buffer,
    ) -> Result<Self, S::Error> {
        let stage = system.buffer()?;
        let slopes = (0..tableau.slopes()).map(|_| None).collect();
        Ok(Run { system, tableau, row, saves, saved: 0, y, stage, slopes })
    }

    pub fn integrate(mut self, steps: &Steps) -> Result<Outcome<S::Buffer>, S::Error> {
        match steps {
            Steps::Fixed(grid) => {
                self.save_state(grid[0])?;
                self.fixed(grid)
            }
            Steps::Adaptive(adaptive) => {
                self.save_state(adaptive.from)?;
                self.adaptive(adaptive)
            }
        }
    }

    fn fixed(mut self, grid: &[f64]) -> Result<Outcome<S::Buffer>, S::Error> {
        let steps = grid.len() - 1;
        let end = self.tableau.end();
        let ahead = match self.tableau.extra().len() {
            0 => ANNOUNCE.div_ceil(self.tableau.stages()),
            _ => 1, // the times of extra stages are announced when the step is done
        };
        let mut announced = 0;
        for n in 0..steps {
            let (t, next) = (grid[n], grid[n + 1]);
            if n == announced {
                announced = (n + ahead).min(steps);
                self.announce_grid(&grid[n..=announced], announced == steps)?;
            }
            if self.slopes[0].is_none() {
                self.slopes[0] = Some(self.system.slope(&mut self.y)?);
            }
            if self.advance(next - t)? {
                return Ok(self.failed(Status::NonFinite, t, (n as u64, 0), next - t));
            }
            let (last, dense) = (n + 1 == steps, self.saves_before(t, next));
            if !dense {
                self.slopes.fill_with(|| None); // not needed any more: one state less in memory
            }
            // The slope at the step's end: the next step's first, and what dense output needs.
            if !last || dense {
                if last {
                    self.system.announce(&[next])?;
                }
                self.slopes[end] = Some(self.system.slope(&mut self.stage)?);
            }
            if dense && self.save_inside(t, next)? {
                return Ok(self.failed(Status::NonFinite, t, (n as u64, 0), next - t));
            }
            if self.accept(next)? {
                return Ok(self.outcome(Status::Stopped, next, (n as u64 + 1, 0), next - t));
            }
        }
        let (t, step) = (grid[steps], grid[steps] - grid[steps - 1]);
        Ok(self.outcome(Status::Done, t, (steps as u64, 0), step))
    }

    /// The times at which the field will be asked on a piece of the grid: every stage's (the first
    /// step's first one included, later ones being the end slopes of the step before), step by step.
    fn announce_grid(&mut self, grid: &[f64], to_the_end: bool) -> Result<(), S::Error> {
        let stages = self.tableau.end();
        let mut times = Vec::with_capacity(grid.len() * (stages + 1));
        if self.slopes[0].is_none() {
            times.push(grid[0]);
        }
        for (n, ends) in grid.windows(2).enumerate() {
            let c = &self.tableau.c[1..stages];
            times.extend(c.iter().map(|&c| stage_time(c, ends[0], ends[1])));
            if n + 2 < grid.len() || !to_the_end {
                times.push(ends[1]);
            }
        }
        self.system.announce(&times)
    }

    /// Evaluate the stages of a step of length `h` (announced before) and leave the new state in
    /// `stage`. Returns whether it holds a NaN or an infinity.
    fn advance(&mut self, h: f64) -> Result<bool, S::Error> {
        for i in 1..self.tableau.end() {
            self.combine(&self.tableau.a[i], h);
            self.slopes[i] = Some(self.system.slope(&mut self.stage)?);
        }
        Ok(self.combine(&self.tableau.b, h))
    }

    /// `stage = y + h sum_j weights_j k_j`; whether a NaN or an infinity came out.
    fn combine(&mut self, weights: &[f64], h: f64) -> bool {
        let terms = stage_terms(self.y.as_ref(), &self.slopes, weights, h);
        let out = self.stage.as_mut();
        self.system.compute(|| combine(out, &terms))
    }

    fn adaptive(mut self, run: &Adaptive) -> Result<Outcome<S::Buffer>, S::Error> {
        let smallest = run.smallest();
        let (end, early) = (self.tableau.end(), self.tableau.error_at_end());
        let (mut t, mut accepted, mut rejected) = (run.from, 0, 0);
        self.system.announce(&[t])?;
        let first = self.system.slope(&mut self.y)?;
        let bad = non_finite_rows(first.as_ref(), self.row);
        self.slopes[0] = Some(first);
        if !bad.is_empty() {
            return Ok(self.failed(Status::NonFinite, t, (0, 0), 0.0));
        }
        let mut h = match run.first_step {
            Some(step) => step,
            None => self.starting_step(run)?,
        };
        let mut controller = Controller::new(run.gains, self.tableau.order);
        while t != run.to {
            if accepted + rejected >= run.max_steps {
                return Ok(self.failed(Status::TooManySteps, t, (accepted, rejected), h));
            }
            let (step, next) = run.step(t, h);
            let c = &self.tableau.c[1..=end];
            let times: Vec<f64> = c.iter().map(|&c| stage_time(c, t, next)).collect();
            self.system.announce(&times)?;
            let mut error = f64::NAN;
            if !self.advance(next - t)? {
                if early {
                    self.slopes[end] = Some(self.system.slope(&mut self.stage)?);
                }
                error = self.error(next - t, run);
            }
            if error <= 1.0 {
                let dense = self.saves_before(t, next);
                if !early && (dense || next != run.to) {
                    self.slopes[end] = Some(self.system.slope(&mut self.stage)?);
                }
                if dense && self.save_inside(t, next)? {
                    return Ok(self.failed(Status::NonFinite, t, (accepted, rejected), h));
                }
                t = next;
                accepted += 1;
                if self.accept(t)? {
                    return Ok(self.outcome(Status::Stopped, t, (accepted, rejected), step));
                }
                h = step * controller.accepted(error);
            } else {
                rejected += 1;
                h = step * controller.rejected(error);
                if h < smallest {
                    let mut end = self.failed(Status::NonFinite, t, (accepted, rejected), h);
                    if end.rows.is_empty() {
                        end.status = Status::StepUnderflow;
                    }
                    return Ok(end);
                }
            }
        }
        Ok(self.outcome(Status::Done, t, (accepted, rejected), h))
    }

    /// The new state becomes the state, the slope there the first one. Whether to stop.
    fn accept(&mut self, t: f64) -> Result<bool, S::Error> {
        std::mem::swap(&mut self.y, &mut self.stage);
        self.save_state(t)?;
        let end = self.slopes[self.tableau.end()].take();
        self.slopes.fill_with(|| None);
        self.slopes[0] = end;
        self.system.accepted(t, &mut self.y)
    }

    /// The scaled local error of the step whose slopes are at hand; NaN if one is not finite.
    fn error(&mut self, h: f64, run: &Adaptive) -> f64 {
        let (y, new) = (self.y.as_ref(), self.stage.as_ref());
        let slopes = &self.slopes;
        let norms = self.tableau.error.iter().map(|row| {
            let terms: Vec<Term<T>> = weighted(slopes, row, h).collect();
            self.system.compute(|| error_norm(&terms, (y, new), run.tolerance, run.norm))
        });
        estimate(&norms.collect::<Vec<f64>>())
    }

    /// The first step after Hairer, Norsett and Wanner (Solving ODEs I, II.4); one evaluation.
    /// Not below the smallest, whatever a field of enormous values would ask for.
    fn starting_step(&mut self, run: &Adaptive) -> Result<f64, S::Error> {
        let norm = |system: &S, terms: &[Term<T>], y: &[T]| {
            system.compute(|| error_norm(terms, (y, y), run.tolerance, run.norm))
        };
        let y = self.y.as_ref();
        let slope = self.slopes[0].as_ref().map(AsRef::as_ref).unwrap_or_default();
        let size = norm(self.system, &[(1.0, y)], y);
        let speed = norm(self.system, &[(1.0, slope)], y);
        let trial = run.bounded(starting_step::trial(size, speed));
        self.combine(&[1.0], run.forward() * trial);
        self.system.announce(&[run.from + run.forward() * trial])?;
        let moved = self.system.slope(&mut self.stage)?;
        let slope = self.slopes[0].as_ref().map(AsRef::as_ref).unwrap_or_default();
        let terms = [(1.0, moved.as_ref()), (-1.0, slope)];
        let change = norm(self.system, &terms, self.y.as_ref()) / trial;
        let step = starting_step::refined(trial, speed, change, self.tableau.order);
        Ok(run.bounded(step))
    }

    /// Whether an output time is waiting strictly before the end `next` of the step from `t`.
    fn saves_before(&self, t: f64, next: f64) -> bool {
        self.saves.get(self.saved).is_some_and(|&time| (next - time) * (next - t) > 0.0)
    }

    /// Dense output at the output times strictly inside the step from `t` to `next`, all of whose
    /// slopes are at hand but those of the extra stages. Whether a NaN or an infinity came out.
    fn save_inside(&mut self, t: f64, next: f64) -> Result<bool, S::Error> {
        let h = next - t;
        self.extra_stages(t, next)?;
        let mut bad = false;
        while self.saves_before(t, next) {
            let (towards, weights) = self.tableau.between((self.saves[self.saved] - t) / h);
            let mut terms = vec![(1.0 - towards, self.y.as_ref()), (towards, self.stage.as_ref())];
            terms.extend(weighted(&self.slopes, &weights, h));
            bad |= self.system.save(self.saved, |out| combine(out, &terms))?;
            self.saved += 1;
        }
        Ok(bad)
    }

    /// The stages that only dense output needs, in memory that nothing else does.
    fn extra_stages(&mut self, t: f64, next: f64) -> Result<(), S::Error> {
        let extra = self.tableau.extra();
        if extra.is_empty() {
            return Ok(());
        }
        let c = &self.tableau.c[extra.clone()];
        let times: Vec<f64> = c.iter().map(|&c| stage_time(c, t, next)).collect();
        self.system.announce(&times)?;
        let mut stage = self.system.buffer()?;
        for i in extra {
            let terms = stage_terms(self.y.as_ref(), &self.slopes, &self.tableau.a[i], next - t);
            let out = stage.as_mut();
            self.system.compute(|| combine(out, &terms));
            self.slopes[i] = Some(self.system.slope(&mut stage)?);
        }
        Ok(())
    }

    /// Save the state itself for the output times that are exactly `t`.
    fn save_state(&mut self, t: f64) -> Result<(), S::Error> {
        while self.saves.get(self.saved) == Some(&t) {
            let y = self.y.as_ref();
            self.system.save(self.saved, |out| out.copy_from_slice(y))?;
            self.saved += 1;
        }
        Ok(())
    }

    /// A run that failed: the rows are those of a slope or of the new state that are not finite.
    fn failed(self, status: Status, t: f64, steps: (u64, u64), step: f64) -> Outcome<S::Buffer> {
        let slopes = self.slopes.iter().flatten().map(AsRef::as_ref);
        let mut rows: Vec<usize> = if status == Status::NonFinite {
            slopes
                .chain([self.stage.as_ref()])
                .map(|v| non_finite_rows(v, self.row))
                .find(|rows| !rows.is_empty())
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        rows.sort_unstable();
        Outcome { rows, ..self.outcome(status, t, steps, step) }
    }

    fn outcome(self, status: Status, t: f64, steps: (u64, u64), step: f64) -> Outcome<S::Buffer> {
        let (accepted, rejected) = steps;
        Outcome { status, t, y: self.y, accepted, rejected, step: step.abs(), rows: Vec::new() }
    }
}

/// `y + h sum_j weights_j k_j`, term by term.
fn stage_terms<'a, T: Real, K: AsRef<[T]>>(
    y: &'a [T],
    slopes: &'a [Option<K>],
    weights: &'a [f64],
    h: f64,
) -> Vec<Term<'a, T>> {
    let mut terms = Vec::with_capacity(weights.len() + 1);
    terms.push((1.0, y));
    terms.extend(weighted(slopes, weights, h));
    terms
}

/// The slopes that have a weight, each with `h` times it.
fn weighted<'a, T: Real, K: AsRef<[T]>>(
    slopes: &'a [Option<K>],
    weights: &'a [f64],
    h: f64,
) -> impl Iterator<Item = Term<'a, T>> {
    let used = move |(k, w): (&'a Option<K>, &'a f64)| {
        k.as_ref().filter(|_| *w != 0.0).map(|k| (h * w, k.as_ref()))
    };
    slopes.iter().zip(weights).filter_map(used)
}

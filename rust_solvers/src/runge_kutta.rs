//! Explicit Runge-Kutta methods from a tableau, on a fixed grid or with adaptive steps.

use crate::controller::{Controller, starting_step};
use crate::kernels::{Term, Tolerance, combine, error_norm, non_finite_rows};
use crate::real::Real;
use crate::system::{Outcome, Status, System};

/// A Butcher tableau: `k_i = f(t + c_i h, y + h sum_j a_ij k_j)`, `y_new = y + h sum_j b_j k_j`.
pub struct Tableau {
    pub a: Vec<Vec<f64>>,
    pub b: Vec<f64>,
    pub c: Vec<f64>,
    /// Weights of the local error estimate, `h sum_j error_j k_j`; empty without an embedded method.
    pub error: Vec<f64>,
    /// Weights of the quartic part of the dense output; empty where it is the cubic Hermite one.
    pub dense: Vec<f64>,
    /// Order of the error estimate plus one, as the controller uses it.
    pub order: f64,
}

impl Tableau {
    /// First same as last: the last stage is taken at `y_new`, and is the next step's first.
    pub fn fsal(&self) -> bool {
        let last = self.a.len() - 1;
        last > 0 && self.b[last] == 0.0 && self.a[last][..last] == self.b[..last]
    }
}

/// What an adaptive run is steered by.
pub struct Adaptive {
    pub from: f64,
    pub to: f64,
    pub tolerance: Tolerance,
    /// The first step; chosen from the field where it is absent.
    pub first_step: Option<f64>,
    pub max_steps: u64,
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
        let slopes = tableau.a.iter().map(|_| None).collect();
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
        let mut announced = 0;
        for n in 0..steps {
            let (t, next) = (grid[n], grid[n + 1]);
            if n == announced {
                announced = (n + ANNOUNCE.div_ceil(self.tableau.c.len())).min(steps);
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
            let end = if !last || dense {
                if last {
                    self.system.announce(&[next])?;
                }
                Some(self.system.slope(&mut self.stage)?)
            } else {
                None
            };
            let bad = match &end {
                Some(end) => self.save_inside(t, next, end.as_ref())?,
                None => false,
            };
            if bad {
                self.slopes[0] = end;
                return Ok(self.failed(Status::NonFinite, t, (n as u64, 0), next - t));
            }
            std::mem::swap(&mut self.y, &mut self.stage);
            self.save_state(next)?;
            self.slopes.fill_with(|| None);
            self.slopes[0] = end;
            self.system.accepted(next, &mut self.y)?;
        }
        let (t, step) = (grid[steps], grid[steps] - grid[steps - 1]);
        Ok(self.outcome(Status::Done, t, (steps as u64, 0), step))
    }

    /// The times at which the field will be asked on a piece of the grid: every stage's (the first
    /// step's first one included, later ones being the end slopes of the step before), step by step.
    fn announce_grid(&mut self, grid: &[f64], to_the_end: bool) -> Result<(), S::Error> {
        let stages = self.evaluated_stages();
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

    /// Stages that have to be evaluated within a step: all, or all but the one at the step's end.
    fn evaluated_stages(&self) -> usize {
        self.tableau.c.len() - usize::from(self.tableau.fsal())
    }

    /// Evaluate the stages of a step of length `h` (announced before) and leave the new state in
    /// `stage`. Returns whether it holds a NaN or an infinity.
    fn advance(&mut self, h: f64) -> Result<bool, S::Error> {
        for i in 1..self.evaluated_stages() {
            self.combine(&self.tableau.a[i], h);
            self.slopes[i] = Some(self.system.slope(&mut self.stage)?);
        }
        Ok(self.combine(&self.tableau.b, h))
    }

    /// `stage = y + h sum_j weights_j k_j`; whether a NaN or an infinity came out.
    fn combine(&mut self, weights: &[f64], h: f64) -> bool {
        let mut terms: Vec<Term<T>> = Vec::with_capacity(weights.len() + 1);
        terms.push((1.0, self.y.as_ref()));
        terms.extend(weighted(&self.slopes, weights, h));
        let out = self.stage.as_mut();
        self.system.compute(|| combine(out, &terms))
    }

    fn adaptive(mut self, run: &Adaptive) -> Result<Outcome<S::Buffer>, S::Error> {
        let forward = if run.to >= run.from { 1.0 } else { -1.0 };
        // Below this a step no longer moves the time at either end of the run.
        let smallest = 4.0 * f64::EPSILON * run.from.abs().max(run.to.abs()).max(f64::MIN_POSITIVE);
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
            None => self.starting_step(run, forward, smallest)?,
        };
        let mut controller = Controller::new(self.tableau.order);
        let stages = self.tableau.c.len();
        while t != run.to {
            if accepted + rejected >= run.max_steps {
                return Ok(self.failed(Status::TooManySteps, t, (accepted, rejected), h));
            }
            let left = (run.to - t).abs();
            // The last step lands on the end exactly, and a hundredth longer rather than leave a sliver
            // over (as Hairer's dopri5 does).
            let (step, next) = if 1.01 * h >= left { (left, run.to) } else { (h, t + forward * h) };
            let c = &self.tableau.c[1..];
            let times: Vec<f64> = c.iter().map(|&c| stage_time(c, t, next)).collect();
            self.system.announce(&times)?;
            let bad = self.advance(next - t)?;
            let end = if bad { None } else { Some(self.system.slope(&mut self.stage)?) };
            let error = match &end {
                Some(_) => {
                    self.slopes[stages - 1] = end;
                    self.error(next - t, run.tolerance)
                }
                None => f64::NAN,
            };
            if error <= 1.0 {
                // Finite, or the error would not be: so is what lies between.
                let end = self.slopes[stages - 1].take();
                if let Some(end) = &end {
                    self.save_inside(t, next, end.as_ref())?;
                }
                std::mem::swap(&mut self.y, &mut self.stage);
                t = next;
                accepted += 1;
                self.save_state(t)?;
                self.slopes.fill_with(|| None);
                self.slopes[0] = end;
                self.system.accepted(t, &mut self.y)?;
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

    /// The scaled local error of the step whose slopes are at hand; NaN if one is not finite.
    fn error(&mut self, h: f64, tolerance: Tolerance) -> f64 {
        let terms: Vec<Term<T>> = weighted(&self.slopes, &self.tableau.error, h).collect();
        let (y, new) = (self.y.as_ref(), self.stage.as_ref());
        self.system.compute(|| error_norm(&terms, y, new, tolerance))
    }

    /// The first step after Hairer, Norsett and Wanner (Solving ODEs I, II.4); one evaluation.
    /// Not below `smallest`, whatever a field of enormous values would ask for.
    fn starting_step(
        &mut self,
        run: &Adaptive,
        forward: f64,
        smallest: f64,
    ) -> Result<f64, S::Error> {
        let tolerance = run.tolerance;
        let norm = |system: &S, v: &[T], y: &[T]| {
            system.compute(|| error_norm(&[(1.0, v)], y, y, tolerance))
        };
        let span = (run.to - run.from).abs();
        let y = self.y.as_ref();
        let slope = self.slopes[0].as_ref().map(AsRef::as_ref).unwrap_or_default();
        let (size, speed) = (norm(self.system, y, y), norm(self.system, slope, y));
        let trial = starting_step::trial(size, speed).clamp(smallest.min(span), span);
        let mut weights = vec![0.0; self.slopes.len()];
        weights[0] = 1.0;
        self.combine(&weights, forward * trial);
        self.system.announce(&[run.from + forward * trial])?;
        let moved = self.system.slope(&mut self.stage)?;
        let slope = self.slopes[0].as_ref().map(AsRef::as_ref).unwrap_or_default();
        let y = self.y.as_ref();
        let moved = moved.as_ref();
        let change = self
            .system
            .compute(|| error_norm(&[(1.0, moved), (-1.0, slope)], y, y, tolerance) / trial);
        Ok(starting_step::refined(trial, speed, change, self.tableau.order)
            .clamp(smallest.min(span), span))
    }

    /// Whether an output time is waiting strictly before the end `next` of the step from `t`.
    fn saves_before(&self, t: f64, next: f64) -> bool {
        self.saves.get(self.saved).is_some_and(|&time| (next - time) * (next - t) > 0.0)
    }

    /// Dense output at the output times strictly inside the step from `t` to `next`, whose slope at
    /// the end is `end`: cubic Hermite, plus theta^2 (1 - theta)^2 h sum_j d_j k_j where the tableau
    /// has such weights. Whether a NaN or an infinity came out.
    fn save_inside(&mut self, t: f64, next: f64, end: &[T]) -> Result<bool, S::Error> {
        let h = next - t;
        let stages = self.slopes.len();
        let dense = &self.tableau.dense;
        let mut bad = false;
        while let Some(&time) = self.saves.get(self.saved) {
            if (next - time) * h <= 0.0 {
                break;
            }
            let theta = (time - t) / h;
            let rest = 1.0 - theta;
            let end_part = theta * theta * (3.0 - 2.0 * theta);
            let bump = theta * theta * rest * rest;
            let mut weights = vec![0.0; stages];
            weights.iter_mut().zip(dense).for_each(|(w, d)| *w = bump * d);
            weights[0] += theta * rest * rest;
            // Where there are such weights the method is FSAL: its last slope is `end`.
            let last = dense.last().map_or(0.0, |d| bump * d);
            let mut terms: Vec<Term<T>> =
                vec![(1.0 - end_part, self.y.as_ref()), (end_part, self.stage.as_ref())];
            terms.extend(weighted(&self.slopes, &weights, h));
            terms.push((h * (last - theta * theta * rest), end));
            bad |= self.system.save(self.saved, |out| combine(out, &terms))?;
            self.saved += 1;
        }
        Ok(bad)
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

/// The time of a stage at `c` of the step from `t` to `next`; the end itself is hit exactly.
fn stage_time(c: f64, t: f64, next: f64) -> f64 {
    if c == 1.0 { next } else { t + c * (next - t) }
}

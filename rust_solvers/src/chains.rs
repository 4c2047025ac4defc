//! Chains on an energy U at temperature T: Langevin and Hamiltonian dynamics, with and without
//! acceptance. The same recipe stands in `interp/solvers/torch_backend/chains.py`.
//!
//! ```text
//! langevin     x - h dU + sqrt(2 h T) z
//! mala         the same, accepted with probability min(1, exp r)
//! underdamped  BAOAB of unit mass (Leimkuhler, Matthews, arXiv 1203.5428)
//! hmc          leapfrog steps of unit mass, accepted
//! ```
//!
//! The normals and the uniform number of a step are keyed by (seed, row, element, step).

use crate::effective::Effective;
use crate::kernels::{CHUNK, non_finite_rows};
use crate::philox::{Key, Rows, fill_normals, philox};
use crate::real::Real;
use crate::threads::share;

/// The world as a chain sees it.
pub trait World<T: Real> {
    /// Memory for a state.
    type Buffer: AsRef<[T]> + AsMut<[T]>;
    type Error;

    fn buffer(&mut self) -> Result<Self::Buffer, Self::Error>;
    /// dU/dx at x, into `slope`, and U of each row where it is known, the energy being that of the
    /// `level`. The buffer holds the same content afterwards.
    fn energy(
        &mut self,
        level: usize,
        x: &mut Self::Buffer,
        slope: &mut [T],
    ) -> Result<Option<Vec<f64>>, Self::Error>;
    /// Run work that touches no Python.
    fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;
    fn save(&mut self, index: usize, x: &[T]) -> Result<(), Self::Error>;
    /// Tell of a step; whether the chain should stop there.
    fn moved(&mut self, step: u64, x: &mut Self::Buffer) -> Result<bool, Self::Error>;
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dynamics {
    Langevin,
    Mala,
    Underdamped { friction: f64 },
    Hmc { leapfrog: usize },
}

/// What a run is to do.
pub struct Task {
    pub dynamics: Dynamics,
    pub temperature: f64,
    /// The step size of each level.
    pub step_sizes: Vec<f64>,
    /// Steps of each level.
    pub steps: u64,
    /// Steps that look for a step size first, and the acceptance at which they aim.
    pub adapt: u64,
    pub target: f64,
    /// After every so many steps of a level its state is saved; 0 for never.
    pub save_every: u64,
    /// How many rows there are.
    pub count: usize,
    pub rows: Rows,
    pub key: Key,
}

/// Why a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    /// Whoever was told of a step wanted no other.
    Stopped,
    /// The energy or its slope is not finite at the start.
    BadStart,
    /// No step size was found at which anything is accepted.
    NothingAccepted,
    NonFinite,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Stopped => "stopped",
            Status::BadStart => "bad_start",
            Status::NothingAccepted => "nothing_accepted",
            Status::NonFinite => "non_finite",
        }
    }
}

/// How a run ended: the last good state, and what was counted on the way.
pub struct Ended<B> {
    pub status: Status,
    pub x: B,
    pub step: u64,
    pub step_size: f64,
    /// The mean acceptance, where there was an energy to tell.
    pub acceptance: Option<f64>,
    pub effective: f64,
    /// The steps at which states were saved.
    pub saved: Vec<u64>,
    /// Rows that were not finite, where that ended the run.
    pub rows: Vec<usize>,
}

/// The step size at which the mean acceptance is the target (Hoffman, Gelman, 1111.4246, 3.2).
struct DualAveraging {
    anchor: f64,
    target: f64,
    gap: f64,
    average: f64,
    count: f64,
}

impl DualAveraging {
    fn new(step_size: f64, target: f64) -> Self {
        let anchor = (10.0 * step_size).ln();
        DualAveraging { anchor, target, gap: 0.0, average: 0.0, count: 0.0 }
    }

    /// The next step size, after a step of this acceptance.
    fn update(&mut self, acceptance: f64) -> f64 {
        self.count += 1.0;
        let n = self.count;
        let share = 1.0 / (n + 10.0);
        self.gap = (1.0 - share) * self.gap + share * (self.target - acceptance);
        let log_step = self.anchor - n.sqrt() / 0.05 * self.gap;
        let weight = n.powf(-0.75);
        self.average = weight * log_step + (1.0 - weight) * self.average;
        log_step.exp()
    }
}

/// A state with its energy and slope.
struct Point<B, T> {
    x: B,
    value: Option<Vec<f64>>,
    slope: Vec<T>,
}

/// A chain in progress.
pub struct Chain<'a, T: Real, W: World<T>> {
    world: &'a mut W,
    task: &'a Task,
    level: usize,
    h: f64,
    step: u64,
    point: Point<W::Buffer, T>,
    /// Where the next step leads; after it, the point before it.
    next: Point<W::Buffer, T>,
    /// Without the half kick that ends a step of BAOAB.
    momentum: Vec<f64>,
    normals: Vec<f32>,
    /// The sum and the number of acceptance rates.
    accepted: (f64, f64),
}

/// `out[i] = value(i)`, on several threads.
fn fill<U: Send>(out: &mut [U], value: impl Fn(usize) -> U + Sync) {
    share(out, CHUNK, 2, |from, piece| {
        piece.iter_mut().enumerate().for_each(|(i, out)| *out = value(from + i));
    });
}

/// Run the task from x; at most `columns` elements of a row count for the effective size.
pub fn run<T: Real, W: World<T>>(
    world: &mut W,
    task: &Task,
    x: W::Buffer,
    columns: usize,
) -> Result<Ended<W::Buffer>, W::Error> {
    let len = x.as_ref().len();
    let mut effective = Effective::new(len, task.rows.len, columns);
    let point = |x| Point { x, value: None, slope: vec![T::ZERO; len] };
    let next = point(world.buffer()?);
    let mut chain = Chain {
        world,
        task,
        level: 0,
        h: 0.0,
        step: 0,
        point: point(x),
        next,
        momentum: Vec::new(),
        normals: vec![0.0; len],
        accepted: (0.0, 0.0),
    };
    let (mut saved, mut status, mut rows) = (Vec::new(), Status::Done, Vec::new());
    for (level, &h) in task.step_sizes.iter().enumerate() {
        (status, rows) = chain.level(level, h, &mut effective, &mut saved)?;
        if status != Status::Done {
            break;
        }
    }
    let (total, count) = chain.accepted;
    Ok(Ended {
        status,
        x: chain.point.x,
        step: chain.step,
        step_size: chain.h,
        acceptance: (count > 0.0).then_some(total / count),
        effective: effective.size(),
        saved,
        rows,
    })
}

impl<T: Real, W: World<T>> Chain<'_, T, W> {
    /// All steps at one level, of size h; how they ended, and in which rows.
    fn level(
        &mut self,
        level: usize,
        h: f64,
        effective: &mut Effective,
        saved: &mut Vec<u64>,
    ) -> Result<(Status, Vec<usize>), W::Error> {
        (self.level, self.h) = (level, h);
        let here = &mut self.point;
        here.value = self.world.energy(level, &mut here.x, &mut here.slope)?;
        let bad = self.bad_rows();
        if !bad.is_empty() {
            return Ok((Status::BadStart, bad));
        }
        if self.task.adapt > 0 && !self.adapt()? {
            return Ok((Status::NothingAccepted, Vec::new()));
        }
        for n in 1..=self.task.steps {
            self.advance()?;
            self.step += 1;
            let lost = self.lost_rows();
            if !lost.is_empty() {
                std::mem::swap(&mut self.point, &mut self.next);
                return Ok((Status::NonFinite, lost));
            }
            effective.add(self.point.x.as_ref());
            if self.task.save_every > 0 && n.is_multiple_of(self.task.save_every) {
                self.world.save(saved.len(), self.point.x.as_ref())?;
                saved.push(self.step);
            }
            if self.world.moved(self.step, &mut self.point.x)? {
                return Ok((Status::Stopped, Vec::new()));
            }
        }
        Ok((Status::Done, Vec::new()))
    }

    fn advance(&mut self) -> Result<(), W::Error> {
        match self.task.dynamics {
            Dynamics::Langevin => self.langevin(false),
            Dynamics::Mala => self.langevin(true),
            Dynamics::Underdamped { friction } => self.underdamped(friction),
            Dynamics::Hmc { leapfrog } => self.hmc(leapfrog),
        }
    }

    /// Find the step size; whether anything was accepted on the way.
    fn adapt(&mut self) -> Result<bool, W::Error> {
        let mut search = DualAveraging::new(self.h, self.task.target);
        let mut seen = 0.0;
        for _ in 0..self.task.adapt {
            self.accepted = (0.0, 0.0);
            self.advance()?;
            self.step += 1;
            seen += self.accepted.0;
            self.h = search.update(self.accepted.0);
        }
        self.h = search.average.exp();
        self.accepted = (0.0, 0.0);
        Ok(seen > 0.0)
    }

    /// Rows in which the slope or the energy is not finite.
    fn bad_rows(&self) -> Vec<usize> {
        let mut rows = non_finite_rows(&self.point.slope, self.task.rows.len);
        let values = self.point.value.as_deref().unwrap_or_default();
        rows.extend((0..values.len()).filter(|&r| !values[r].is_finite()));
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// Rows in which the state or the slope is not finite.
    fn lost_rows(&self) -> Vec<usize> {
        let row = self.task.rows.len;
        let mut rows = non_finite_rows(self.point.x.as_ref(), row);
        rows.extend(non_finite_rows(&self.point.slope, row));
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// Normals like x, of this step and draw.
    fn draw(&mut self, draw: u64) {
        let Task { rows, key, .. } = *self.task;
        let (node, normals) = (4 * self.step + draw, &mut self.normals);
        self.world.compute(|| {
            share(normals, CHUNK, 8, |from, out| fill_normals(out, from, rows, key, node));
        });
    }

    /// The energy at the next point.
    fn look(&mut self) -> Result<(), W::Error> {
        let next = &mut self.next;
        next.value = self.world.energy(self.level, &mut next.x, &mut next.slope)?;
        Ok(())
    }

    fn langevin(&mut self, metropolis: bool) -> Result<(), W::Error> {
        self.draw(0);
        let (h, size) = (self.h, (2.0 * self.h * self.task.temperature).sqrt());
        let (x, slope, z) = (self.point.x.as_ref(), &self.point.slope[..], &self.normals[..]);
        let out = self.next.x.as_mut();
        self.world.compute(|| {
            fill(out, |i| {
                T::from_f64(x[i].to_f64() - h * slope[i].to_f64() + size * f64::from(z[i]))
            });
        });
        self.look()?;
        let counted = metropolis || self.step.is_multiple_of(8);
        if let Some(ratio) = counted.then(|| self.langevin_ratio()).flatten() {
            self.count(&ratio);
            if metropolis {
                self.refuse(&ratio);
            }
        }
        std::mem::swap(&mut self.point, &mut self.next);
        Ok(())
    }

    /// Metropolis and Hastings's log ratio of the Langevin proposal, for each row.
    fn langevin_ratio(&self) -> Option<Vec<f64>> {
        let (h, t, row) = (self.h, self.task.temperature, self.task.rows.len);
        let (old, new) = (&self.point, &self.next);
        let pairs = old.value.as_ref()?.iter().zip(new.value.as_ref()?);
        let (from, to) = (old.x.as_ref(), new.x.as_ref());
        let ratio = |(r, (u, v)): (usize, (&f64, &f64))| {
            let (mut forth, mut back) = (0.0, 0.0);
            for i in r * row..(r + 1) * row {
                let moved = to[i].to_f64() - from[i].to_f64();
                forth += (moved + h * old.slope[i].to_f64()).powi(2);
                back += (h * new.slope[i].to_f64() - moved).powi(2);
            }
            (u - v) / t + (forth - back) / (4.0 * h * t)
        };
        Some(pairs.enumerate().map(ratio).collect())
    }

    /// Count what would be accepted.
    fn count(&mut self, ratio: &[f64]) {
        let rate = |r: &f64| if r.is_nan() { 0.0 } else { r.min(0.0).exp() };
        let total: f64 = ratio.iter().map(rate).sum();
        let mean = if ratio.is_empty() { 1.0 } else { total / ratio.len() as f64 };
        self.accepted = (self.accepted.0 + mean, self.accepted.1 + 1.0);
    }

    /// Let the next point be this one in those rows that refuse it, by a uniform number of each.
    fn refuse(&mut self, ratio: &[f64]) {
        let Task { rows, key, .. } = *self.task;
        let node = 4 * self.step + 3;
        let (old, new) = (&self.point, &mut self.next);
        for (r, &ratio) in ratio.iter().enumerate() {
            let row = rows.first.wrapping_add(r as u32);
            let [word, ..] = philox([0, row, node as u32, (node >> 32) as u32], key);
            let uniform = (f64::from(word) + 0.5) / 4_294_967_296.0;
            if uniform.ln() < ratio {
                continue;
            }
            let at = r * rows.len..(r + 1) * rows.len;
            new.x.as_mut()[at.clone()].copy_from_slice(&old.x.as_ref()[at.clone()]);
            new.slope[at.clone()].copy_from_slice(&old.slope[at]);
            if let (Some(new), Some(old)) = (&mut new.value, &old.value) {
                new[r] = old[r];
            }
        }
    }

    fn underdamped(&mut self, friction: f64) -> Result<(), W::Error> {
        let (h, t) = (self.h, self.task.temperature);
        let first = self.momentum.is_empty();
        if first {
            self.draw(1);
            self.momentum = self.normals.iter().map(|&z| t.sqrt() * f64::from(z)).collect();
        }
        self.draw(0);
        // The half kick that ends a step and the one that begins the next are at the same slope.
        let kick = if first { 0.5 * h } else { h };
        let kept = (-friction * h).exp();
        let size = (t * (1.0 - kept * kept)).sqrt();
        let (x, slope, z) = (self.point.x.as_ref(), &self.point.slope[..], &self.normals[..]);
        let (v, out) = (&mut self.momentum, self.next.x.as_mut());
        self.world.compute(|| {
            let halves = |i: usize, v: f64| {
                let before = v - kick * slope[i].to_f64();
                (before, kept * before + size * f64::from(z[i]))
            };
            fill(out, |i| {
                let (before, after) = halves(i, v[i]);
                T::from_f64(x[i].to_f64() + 0.5 * h * before + 0.5 * h * after)
            });
            share(v, CHUNK, 2, |from, v| {
                v.iter_mut().enumerate().for_each(|(i, v)| *v = halves(from + i, *v).1);
            });
        });
        self.look()?;
        std::mem::swap(&mut self.point, &mut self.next);
        Ok(())
    }

    fn hmc(&mut self, leapfrog: usize) -> Result<(), W::Error> {
        self.draw(0);
        let (h, t) = (self.h, self.task.temperature);
        let mut v: Vec<f64> = self.normals.iter().map(|&z| t.sqrt() * f64::from(z)).collect();
        let begun = self.kinetic(&v);
        self.next.x.as_mut().copy_from_slice(self.point.x.as_ref());
        self.next.slope.copy_from_slice(&self.point.slope);
        for _ in 0..leapfrog {
            let (x, slope, v) = (self.next.x.as_mut(), &self.next.slope[..], &mut v);
            let kick = |v: &mut [f64], slope: &[T]| {
                share(v, CHUNK, 2, |from, v| {
                    let slope = &slope[from..from + v.len()];
                    v.iter_mut().zip(slope).for_each(|(v, s)| *v -= 0.5 * h * s.to_f64());
                });
            };
            self.world.compute(|| {
                kick(v, slope);
                share(x, CHUNK, 2, |from, x| {
                    let v = &v[from..from + x.len()];
                    x.iter_mut().zip(v).for_each(|(x, v)| *x = T::from_f64(x.to_f64() + h * v));
                });
            });
            self.look()?;
            let slope = &self.next.slope[..];
            self.world.compute(|| kick(v, slope));
        }
        let ended = self.kinetic(&v);
        let (Some(old), Some(new)) = (&self.point.value, &self.next.value) else { return Ok(()) };
        let ratio = |r: usize| (old[r] - new[r]) / t + (begun[r] - ended[r]) / t;
        let ratio: Vec<f64> = (0..old.len()).map(ratio).collect();
        self.count(&ratio);
        self.refuse(&ratio);
        std::mem::swap(&mut self.point, &mut self.next);
        Ok(())
    }

    /// Half the square of the momentum, of each row.
    fn kinetic(&self, v: &[f64]) -> Vec<f64> {
        let row = self.task.rows.len;
        let half = |r: usize| 0.5 * v[r * row..(r + 1) * row].iter().map(|v| v * v).sum::<f64>();
        (0..self.task.count).map(half).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::stream_key;
    use proptest::prelude::*;

    /// U = k x^2 / 2, of each row the sum over its elements.
    struct Well {
        k: f64,
        row: usize,
        len: usize,
        seen: Vec<u64>,
    }

    impl World<f64> for Well {
        type Buffer = Vec<f64>;
        type Error = std::convert::Infallible;

        fn buffer(&mut self) -> Result<Vec<f64>, Self::Error> {
            Ok(vec![0.0; self.len])
        }
        fn energy(
            &mut self,
            _: usize,
            x: &mut Vec<f64>,
            slope: &mut [f64],
        ) -> Result<Option<Vec<f64>>, Self::Error> {
            slope.iter_mut().zip(&*x).for_each(|(s, x)| *s = self.k * x);
            let energy = |x: &[f64]| 0.5 * self.k * x.iter().map(|x| x * x).sum::<f64>();
            Ok(Some(x.chunks(self.row).map(energy).collect()))
        }
        fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
            work()
        }
        fn save(&mut self, index: usize, _: &[f64]) -> Result<(), Self::Error> {
            assert_eq!(index, self.seen.len() / 2);
            Ok(())
        }
        fn moved(&mut self, step: u64, _: &mut Vec<f64>) -> Result<bool, Self::Error> {
            self.seen.push(step);
            Ok(false)
        }
    }

    fn ended(dynamics: Dynamics, x: &[f64], first: u32, row: usize, steps: u64) -> Ended<Vec<f64>> {
        let mut world = Well { k: 2.0, row, len: x.len(), seen: Vec::new() };
        let task = Task {
            dynamics,
            temperature: 0.7,
            step_sizes: vec![0.3],
            steps,
            adapt: 0,
            target: 0.8,
            save_every: 2,
            count: x.len() / row,
            rows: Rows { len: row, first },
            key: stream_key(5, 7),
        };
        let Ok(ended) = run(&mut world, &task, x.to_vec(), 1 << 16);
        ended
    }

    fn dynamics() -> impl Strategy<Value = Dynamics> {
        prop_oneof![
            Just(Dynamics::Langevin),
            Just(Dynamics::Mala),
            (0.0f64..5.0).prop_map(|friction| Dynamics::Underdamped { friction }),
            (1usize..5).prop_map(|leapfrog| Dynamics::Hmc { leapfrog }),
        ]
    }

    proptest! {
        #[test]
        fn a_row_does_not_know_its_neighbours(
            dynamics in dynamics(), row in 1usize..9, rows in 2usize..8, steps in 1u64..20,
            first: u32, cut in 1usize..8,
        ) {
            let x: Vec<f64> = (0..row * rows).map(|i| (i as f64).sin()).collect();
            let cut = 1 + cut % (rows - 1);
            let whole = ended(dynamics, &x, first, row, steps);
            let (head, tail) = x.split_at(cut * row);
            let mut parts = ended(dynamics, head, first, row, steps).x;
            parts.extend(ended(dynamics, tail, first.wrapping_add(cut as u32), row, steps).x);
            prop_assert_eq!(whole.x, parts);
            prop_assert_eq!(whole.saved, (1..=steps / 2).map(|k| 2 * k).collect::<Vec<_>>());
            prop_assert!(whole.acceptance.is_none_or(|rate| (0.0..=1.0).contains(&rate)));
        }
    }

    /// The laws that are left of N(0, T / k), exactly, after a chain has forgotten its start.
    #[test]
    fn the_variance_of_a_harmonic_well() {
        let (t, k, h, rows) = (0.7, 2.0, 0.3, 5_000);
        for (dynamics, variance) in [
            (Dynamics::Langevin, t / (k * (1.0 - h * k / 2.0))),
            (Dynamics::Mala, t / k),
            (Dynamics::Underdamped { friction: 1.0 }, t / k),
            (Dynamics::Hmc { leapfrog: 5 }, t / k),
        ] {
            let x = ended(dynamics, &vec![0.5; rows], 0, 1, 30).x;
            let found = x.iter().map(|x| x * x).sum::<f64>() / rows as f64;
            // Five standard errors.
            let bound = 5.0 * variance * (2.0 / rows as f64).sqrt();
            assert!((found - variance).abs() < bound, "{dynamics:?}: {found}, not {variance}");
        }
    }

    #[test]
    fn what_leaves_every_bound_ends_at_the_state_before() {
        let mut world = Well { k: -1e200, row: 1, len: 3, seen: Vec::new() };
        let task = Task {
            dynamics: Dynamics::Langevin,
            temperature: 1.0,
            step_sizes: vec![1.0],
            steps: 50,
            adapt: 0,
            target: 0.8,
            save_every: 0,
            count: 3,
            rows: Rows { len: 1, first: 0 },
            key: stream_key(5, 7),
        };
        let Ok(ended) = run(&mut world, &task, vec![1e-3; 3], 1 << 16);
        assert_eq!((ended.status, ended.rows), (Status::NonFinite, vec![0, 1, 2]));
        assert!(ended.x.iter().all(|x| x.is_finite()));
    }
}

//! Programmes: recurrences on a fixed grid, whose coefficients were worked out before the run.
//!
//! A programme is a list of stages. A stage may ask the field for its slope at the current state,
//! kept as `p y + q f(t, y)`, and then makes the next state, a linear combination of the state at
//! the step's start, the current one, slopes of this step and of earlier ones, and normals. So
//! Euler-Maruyama, DDIM, multistep and singlestep exponential integrators are one loop.

use std::collections::VecDeque;

use crate::brownian::{Increments, Path};
use crate::kernels::{Term, combine, kick, non_finite_rows};
use crate::philox::{Key, Rows, fill_normals};
use crate::real::Real;
use crate::system::{Outcome, Status, System};
use crate::threads::share;

/// What a combination may be of.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// The state at the end of the last step.
    Start,
    /// The state that the stage begins with: that of the stage before.
    Here,
    /// What a slot holds.
    Slope(usize),
}

/// Normals, one or two for each element.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// `size (W(to) - W(from)) + area H` with H the space-time Levy area over the same interval.
    Increment { from: f64, to: f64, size: f64, area: f64 },
    /// `size` times standard normals keyed by a number, independent of W.
    Fresh { number: u64, size: f64 },
}

/// Ask the field at `time`, and keep `p y + q f` in a slot.
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub time: f64,
    pub p: f64,
    pub q: f64,
    pub slot: usize,
}

/// One stage: an evaluation if any, then the next state.
#[derive(Clone, Debug)]
pub struct Stage {
    pub evaluation: Option<Evaluation>,
    pub terms: Vec<(f64, Operand)>,
    /// What is added, multiplied by the system's diffusion at the evaluation where it has one.
    pub noise: Vec<Draw>,
    /// The time at which the new state ends a step.
    pub end: Option<f64>,
    /// How many output times the new state is for.
    pub saves: usize,
}

/// The stages of a run from `start`, of which the first state is for `saves` output times.
#[derive(Clone, Debug)]
pub struct Programme {
    pub start: f64,
    pub saves: usize,
    pub slots: usize,
    pub stages: Vec<Stage>,
}

/// What the normals of a run come from.
pub struct Source {
    pub path: Path,
    pub rows: Rows,
    /// Of fresh normals.
    pub key: Key,
}

/// The normals of a run, in their order.
struct Normals<T> {
    increments: Increments<T>,
    rows: Rows,
    key: Key,
    fresh: Vec<f32>,
    values: Vec<f64>,
}

impl<T: Real> Normals<T> {
    fn new(source: Source, programme: &Programme, elements: usize) -> Self {
        let draws = || programme.stages.iter().flat_map(|stage| &stage.noise);
        let steps = draws().filter_map(|draw| match *draw {
            Draw::Increment { from, to, .. } => Some((from, to)),
            Draw::Fresh { .. } => None,
        });
        let area = draws().any(|draw| matches!(draw, Draw::Increment { area, .. } if *area != 0.0));
        Normals {
            increments: Increments::new(source.path, steps.collect(), area),
            rows: source.rows,
            key: source.key,
            fresh: Vec::new(),
            values: vec![0.0; elements],
        }
    }

    /// Add a draw to `out`, multiplied by a diffusion where there is one.
    fn add(&mut self, draw: Draw, out: &mut [T], diffusion: Option<&[T]>) -> bool {
        match draw {
            Draw::Increment { size, area, .. } => {
                let (w, h) = self.increments.over_next();
                if area == 0.0 {
                    return kick(out, w, size, diffusion);
                }
                for ((value, w), h) in self.values.iter_mut().zip(w).zip(h) {
                    *value = size * w.to_f64() + area * h.to_f64();
                }
                kick(out, &self.values, 1.0, diffusion)
            }
            Draw::Fresh { number, size } => {
                let (rows, key) = (self.rows, self.key);
                self.fresh.resize(self.values.len(), 0.0);
                share(&mut self.fresh, 1024, 8, |from, out| {
                    fill_normals(out, from, rows, key, number);
                });
                kick(out, &self.fresh, size, diffusion)
            }
        }
    }
}

/// What a slot holds: what the field returned, or else a combination of it with the state.
struct Slot<T, P> {
    slope: Option<P>,
    made: Vec<T>,
}

impl<T, P: AsRef<[T]>> Slot<T, P> {
    fn values(&self) -> &[T] {
        self.slope.as_ref().map_or(&self.made, AsRef::as_ref)
    }
}

/// Run a programme from `y`, of rows of length `row`.
pub fn integrate<T: Real, S: System<T>>(
    system: &mut S,
    programme: &Programme,
    source: Option<Source>,
    row: usize,
    y: S::Buffer,
) -> Result<Outcome<S::Buffer>, S::Error> {
    let elements = y.as_ref().len();
    let mut normals = source.map(|source| Normals::new(source, programme, elements));
    let mut slots: Vec<Slot<T, S::Slope>> =
        (0..programme.slots).map(|_| Slot { slope: None, made: Vec::new() }).collect();
    let (mut start, mut here, mut free) = (y, None::<S::Buffer>, Vec::new());
    let (mut t, mut step, mut accepted, mut saved) = (programme.start, 0.0, 0, 0);
    let mut ahead = Ahead::new(programme);
    save(system, &mut saved, programme.saves, &start)?;
    for (i, stage) in programme.stages.iter().enumerate() {
        let at = here.as_mut().unwrap_or(&mut start);
        let mut diffusion = None;
        if let Some(Evaluation { p, q, slot, .. }) = stage.evaluation {
            if let Some(times) = ahead.next_block() {
                system.announce(&times)?;
            }
            let Slot { slope: kept, made } = &mut slots[slot];
            // The memory of the old one is in the cache: the field's result should get it.
            *kept = None;
            let slope = system.slope(at)?;
            diffusion = system.diffusion(at)?;
            if p == 0.0 && q == 1.0 {
                *kept = Some(slope);
            } else {
                let (y, f) = (at.as_ref(), slope.as_ref());
                made.resize(y.len(), T::ZERO);
                system.compute(|| combine(made, &[(p, y), (q, f)]));
            }
        }
        let mut out = match free.pop() {
            Some(buffer) => buffer,
            None => system.buffer()?,
        };
        let (begun, now) = (start.as_ref(), here.as_ref().unwrap_or(&start).as_ref());
        let (result, diffusion) = (out.as_mut(), diffusion.as_ref().map(AsRef::as_ref));
        let operands: Vec<Term<T>> = stage
            .terms
            .iter()
            .map(|&(c, operand)| match operand {
                Operand::Start => (c, begun),
                Operand::Here => (c, now),
                Operand::Slope(slot) => (c, slots[slot].values()),
            })
            .collect();
        let bad = system.compute(|| {
            let Some(normals) = normals.as_mut().filter(|_| !stage.noise.is_empty()) else {
                return combine(result, &operands);
            };
            if let ([Draw::Increment { size, area, .. }], None) = (&stage.noise[..], diffusion)
                && *area == 0.0
            {
                // What nothing multiplies is an operand like the others.
                let mut operands = operands.clone();
                operands.push((*size, normals.increments.over_next().0));
                return combine(result, &operands);
            }
            let bad = combine(result, &operands);
            stage.noise.iter().fold(bad, |bad, &draw| bad | normals.add(draw, result, diffusion))
        });
        if bad {
            let rows = [operands.last().map_or(begun, |(_, v)| v), out.as_ref()]
                .iter()
                .map(|v| non_finite_rows(v, row))
                .find(|rows| !rows.is_empty())
                .unwrap_or_default();
            let end = programme.stages[i..].iter().find_map(|stage| stage.end).unwrap_or(t);
            let (step, status) = ((end - t).abs(), Status::NonFinite);
            return Ok(Outcome { status, t, y: start, accepted, rejected: 0, step, rows });
        }
        match stage.end {
            Some(end) => {
                free.extend(here.take());
                free.push(std::mem::replace(&mut start, out));
                (step, t) = ((end - t).abs(), end);
                accepted += 1;
                save(system, &mut saved, stage.saves, &start)?;
                if system.accepted(t, &mut start)? {
                    let (status, rows) = (Status::Stopped, Vec::new());
                    return Ok(Outcome { status, t, y: start, accepted, rejected: 0, step, rows });
                }
            }
            None => free.extend(here.replace(out)),
        }
    }
    let rows = Vec::new();
    Ok(Outcome { status: Status::Done, t, y: start, accepted, rejected: 0, step, rows })
}

fn save<T: Real, S: System<T>>(
    system: &mut S,
    saved: &mut usize,
    count: usize,
    y: &S::Buffer,
) -> Result<(), S::Error> {
    for _ in 0..count {
        system.save(*saved, |out| out.copy_from_slice(y.as_ref()))?;
        *saved += 1;
    }
    Ok(())
}

/// The times of the evaluations, announced in blocks.
struct Ahead {
    times: VecDeque<f64>,
    announced: usize,
}

impl Ahead {
    const BLOCK: usize = 64;

    fn new(programme: &Programme) -> Self {
        let times = programme.stages.iter().filter_map(|s| s.evaluation.as_ref()).map(|e| e.time);
        Ahead { times: times.collect(), announced: 0 }
    }

    /// Called before each evaluation: the next block of times, where none is left of the last one.
    fn next_block(&mut self) -> Option<Vec<f64>> {
        if self.announced > 0 {
            self.announced -= 1;
            return None;
        }
        let block: Vec<f64> = self.times.drain(..self.times.len().min(Self::BLOCK)).collect();
        self.announced = block.len().saturating_sub(1);
        Some(block)
    }
}

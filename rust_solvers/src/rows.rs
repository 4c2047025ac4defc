//! Explicit Runge-Kutta methods with steps of its own for each row.
//!
//! All rows try a step at once, each its own; those that are done leave the batch. What a row sees is
//! what it would see alone, operation by operation: its neighbours cost it nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::controller::{Controller, starting_step};
use crate::kernels::{Term, combine, error_norm, non_finite_rows};
use crate::real::Real;
use crate::runge_kutta::Adaptive;
use crate::system::{Outcome, Rows, Status};
use crate::tableau::{Tableau, estimate, stage_time};
use crate::threads::share;

/// How a row ended.
#[derive(Clone, Copy)]
pub struct Ended {
    pub status: Status,
    pub t: f64,
    pub accepted: u64,
    pub rejected: u64,
    /// Evaluations that the row asked for; the batch may have made more.
    pub nfe: u64,
    /// The last step tried.
    pub step: f64,
}

/// How a run ended, as a whole and for each row.
pub type Whole<B> = (Outcome<B>, Vec<Ended>);

/// A row on its way.
struct Row {
    /// Its place in the batch.
    index: usize,
    so_far: Ended,
    h: f64,
    controller: Controller,
    saved: usize,
    /// Length and end of the step that is being tried.
    step: f64,
    next: f64,
    /// Why it leaves the batch.
    over: Option<Status>,
}

pub struct Run<'a, T: Real, S: Rows<T>> {
    system: &'a mut S,
    tableau: &'a Tableau,
    run: &'a Adaptive,
    /// Elements in a row.
    row: usize,
    saves: &'a [f64],
    rows: Vec<Row>,
    y: Vec<T>,
    /// The slopes at y.
    first: Vec<T>,
    stage: S::Buffer,
    /// The other slopes of the step; the place of the first one stays empty.
    slopes: Vec<Option<S::Slope>>,
    /// The state of every row of the batch: where it ended, or where an observer last saw it.
    all: S::Buffer,
    ended: Vec<Ended>,
}

impl<'a, T: Real, S: Rows<T>> Run<'a, T, S> {
    /// A run of rows of length `row` from the state `all`, saving at the times `saves` on the way.
    pub fn new(
        system: &'a mut S,
        tableau: &'a Tableau,
        run: &'a Adaptive,
        row: usize,
        saves: &'a [f64],
        all: S::Buffer,
    ) -> Result<Self, S::Error> {
        let so_far = Ended {
            status: Status::Done,
            t: run.from,
            accepted: 0,
            rejected: 0,
            nfe: 0,
            step: 0.0,
        };
        let y = all.as_ref().to_vec();
        let count = y.len().checked_div(row).unwrap_or(0);
        let fresh = |index| Row {
            index,
            so_far,
            h: run.first_step.unwrap_or(0.0),
            controller: Controller::new(run.gains, tableau.order),
            saved: 0,
            step: 0.0,
            next: run.from,
            over: None,
        };
        let rows: Vec<Row> = (0..count).map(fresh).collect();
        let stage = system.buffer()?;
        let slopes = (0..tableau.slopes()).map(|_| None).collect();
        let ended = vec![so_far; count];
        let first = Vec::new();
        Ok(Run { system, tableau, run, row, saves, rows, y, first, stage, slopes, all, ended })
    }

    pub fn integrate(mut self) -> Result<Whole<S::Buffer>, S::Error> {
        for r in 0..self.rows.len() {
            self.save_state(r)?;
        }
        if !self.rows.is_empty() {
            self.begin()?;
        }
        while !self.rows.is_empty() {
            self.round()?;
        }
        Ok(self.outcome())
    }

    /// The first slopes, and the first steps after Hairer, Norsett and Wanner (I, II.4).
    fn begin(&mut self) -> Result<(), S::Error> {
        self.stage.as_mut().copy_from_slice(&self.y);
        let start = vec![self.run.from; self.rows.len()];
        self.first = self.system.slope_at(&start, &mut self.stage)?.as_ref().to_vec();
        let bad = non_finite_rows(&self.first, self.row);
        self.rows.iter_mut().for_each(|r| r.so_far.nfe += 1);
        bad.iter().for_each(|&r| self.rows[r].over = Some(Status::NonFinite));
        self.retire()?;
        if self.run.first_step.is_some() || self.rows.is_empty() {
            return Ok(());
        }
        let (run, forward) = (self.run, self.run.forward());
        let speeds = self.each(|this, r| {
            let (y, slope) = (this.of(&this.y, r), this.of(&this.first, r));
            (this.norm(&[(1.0, y)], r), this.norm(&[(1.0, slope)], r))
        });
        for (row, &(size, speed)) in self.rows.iter_mut().zip(&speeds) {
            row.step = run.bounded(starting_step::trial(size, speed));
            row.next = run.from + forward * row.step;
            row.so_far.nfe += 1;
        }
        self.combine(&[1.0], |row| forward * row.step);
        let times: Vec<f64> = self.rows.iter().map(|row| row.next).collect();
        let moved = self.system.slope_at(&times, &mut self.stage)?;
        let changes = self.each(|this, r| {
            let terms = [(1.0, this.of(moved.as_ref(), r)), (-1.0, this.of(&this.first, r))];
            this.norm(&terms, r) / this.rows[r].step
        });
        for ((row, &(_, speed)), &change) in self.rows.iter_mut().zip(&speeds).zip(&changes) {
            let step = starting_step::refined(row.step, speed, change, self.tableau.order);
            row.h = run.bounded(step);
        }
        Ok(())
    }

    /// One step tried by every row.
    fn round(&mut self) -> Result<(), S::Error> {
        let (end, early) = (self.tableau.end(), self.tableau.error_at_end());
        for row in &mut self.rows {
            (row.step, row.next) = self.run.step(row.so_far.t, row.h);
            row.so_far.nfe += end as u64 - 1;
        }
        for i in 1..end {
            self.stage_slope(i)?;
        }
        let bad = self.combine(&self.tableau.b, |row| row.next - row.so_far.t);
        if early && bad.iter().any(|&bad| !bad) {
            self.end_slope()?;
            self.rows
                .iter_mut()
                .zip(&bad)
                .for_each(|(row, &bad)| row.so_far.nfe += u64::from(!bad));
        }
        let errors = self.each(|this, r| if bad[r] { f64::NAN } else { this.error(r) });
        let taken: Vec<bool> = errors.iter().map(|&error| error <= 1.0).collect();
        if !early {
            self.late_end_slope(&taken)?;
        }
        self.save_inside(&taken)?;
        for r in 0..self.rows.len() {
            if self.rows[r].over.is_none() {
                if taken[r] { self.accept(r, errors[r])? } else { self.reject(r, errors[r]) }
            }
        }
        self.tell()?;
        self.slopes.fill_with(|| None);
        self.retire()
    }

    fn accept(&mut self, r: usize, error: f64) -> Result<(), S::Error> {
        let at = r * self.row..(r + 1) * self.row;
        self.y[at.clone()].copy_from_slice(&self.stage.as_ref()[at.clone()]);
        if let Some(end) = &self.slopes[self.tableau.end()] {
            self.first[at.clone()].copy_from_slice(&end.as_ref()[at]);
        }
        let row = &mut self.rows[r];
        row.so_far.t = row.next;
        row.so_far.accepted += 1;
        row.h = row.step * row.controller.accepted(error);
        row.so_far.step = row.h;
        self.save_state(r)?;
        let row = &mut self.rows[r];
        if row.so_far.t == self.run.to {
            row.over = Some(Status::Done);
        } else if row.so_far.accepted + row.so_far.rejected >= self.run.max_steps {
            row.over = Some(Status::TooManySteps);
        }
        Ok(())
    }

    fn reject(&mut self, r: usize, error: f64) {
        let finite = error.is_finite();
        let row = &mut self.rows[r];
        row.so_far.rejected += 1;
        row.h = row.step * row.controller.rejected(error);
        row.so_far.step = row.h;
        if row.h < self.run.smallest() {
            row.over = Some(if finite { Status::StepUnderflow } else { Status::NonFinite });
        } else if row.so_far.accepted + row.so_far.rejected >= self.run.max_steps {
            row.over = Some(Status::TooManySteps);
        }
    }

    /// The slope at the end of the step, for those rows that go on or save on the way.
    fn late_end_slope(&mut self, taken: &[bool]) -> Result<(), S::Error> {
        let wanted: Vec<bool> = (0..self.rows.len())
            .map(|r| taken[r] && (self.rows[r].next != self.run.to || self.saves_before(r)))
            .collect();
        if wanted.iter().any(|&wanted| wanted) {
            self.end_slope()?;
        }
        let rows = self.rows.iter_mut().zip(&wanted);
        rows.for_each(|(row, &wanted)| row.so_far.nfe += u64::from(wanted));
        Ok(())
    }

    fn end_slope(&mut self) -> Result<(), S::Error> {
        let times: Vec<f64> = self.rows.iter().map(|row| row.next).collect();
        let end = self.tableau.end();
        self.slopes[end] = Some(self.system.slope_at(&times, &mut self.stage)?);
        Ok(())
    }

    /// Evaluate stage `i` in `stage`.
    fn stage_slope(&mut self, i: usize) -> Result<(), S::Error> {
        let c = self.tableau.c[i];
        self.combine(&self.tableau.a[i], |row| row.next - row.so_far.t);
        let times: Vec<f64> =
            self.rows.iter().map(|row| stage_time(c, row.so_far.t, row.next)).collect();
        self.slopes[i] = Some(self.system.slope_at(&times, &mut self.stage)?);
        Ok(())
    }

    /// Dense output at the output times strictly inside the steps that were taken.
    fn save_inside(&mut self, taken: &[bool]) -> Result<(), S::Error> {
        let wanted: Vec<usize> =
            (0..self.rows.len()).filter(|&r| taken[r] && self.saves_before(r)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let extra = self.tableau.extra();
        if !extra.is_empty() {
            // The extra stages take the place of the new states, which come back after them.
            let new = self.stage.as_ref().to_vec();
            wanted.iter().for_each(|&r| self.rows[r].so_far.nfe += extra.len() as u64);
            for i in extra {
                self.stage_slope(i)?;
            }
            self.stage.as_mut().copy_from_slice(&new);
        }
        for r in wanted {
            let (t, h) = (self.rows[r].so_far.t, self.rows[r].next - self.rows[r].so_far.t);
            while self.saves_before(r) {
                let at = self.rows[r].saved;
                let (towards, weights) = self.tableau.between((self.saves[at] - t) / h);
                let place = r * self.row..(r + 1) * self.row;
                let (y, new) = (&self.y[place.clone()], &self.stage.as_ref()[place.clone()]);
                let mut terms = vec![(1.0 - towards, y), (towards, new)];
                let slopes = values(&self.first, &self.slopes);
                terms.extend(weighted(&slopes, &weights, h, place));
                let index = self.rows[r].index;
                let bad = self.system.save_row(at, index, |out| combine(out, &terms))?;
                if bad {
                    self.rows[r].over = Some(Status::NonFinite);
                    break;
                }
                self.rows[r].saved += 1;
            }
        }
        Ok(())
    }

    fn saves_before(&self, r: usize) -> bool {
        let row = &self.rows[r];
        let (t, next) = (row.so_far.t, row.next);
        self.saves.get(row.saved).is_some_and(|&time| (next - time) * (next - t) > 0.0)
    }

    fn save_state(&mut self, r: usize) -> Result<(), S::Error> {
        while self.saves.get(self.rows[r].saved) == Some(&self.rows[r].so_far.t) {
            let y = &self.y[r * self.row..(r + 1) * self.row];
            let row = &mut self.rows[r];
            self.system.save_row(row.saved, row.index, |out| out.copy_from_slice(y))?;
            row.saved += 1;
        }
        Ok(())
    }

    /// Tell an observer where every row is; the rows that it names stop there.
    fn tell(&mut self) -> Result<(), S::Error> {
        if !self.system.watched() {
            return Ok(());
        }
        let mut times: Vec<f64> = self.ended.iter().map(|row| row.t).collect();
        for (r, row) in self.rows.iter().enumerate() {
            times[row.index] = row.so_far.t;
            let at = row.index * self.row..(row.index + 1) * self.row;
            self.all.as_mut()[at].copy_from_slice(&self.y[r * self.row..(r + 1) * self.row]);
        }
        let stopped = self.system.moved(&times, &mut self.all)?;
        for row in &mut self.rows {
            if row.over.is_none_or(|status| status == Status::Done) && stopped.contains(&row.index)
            {
                row.over = Some(Status::Stopped);
            }
        }
        Ok(())
    }

    /// Rows that are over leave the batch; what is left moves together.
    fn retire(&mut self) -> Result<(), S::Error> {
        let mut kept = 0;
        for r in 0..self.rows.len() {
            let row = &self.rows[r];
            let from = r * self.row..(r + 1) * self.row;
            if let Some(status) = row.over {
                self.ended[row.index] = Ended { status, ..row.so_far };
                let at = row.index * self.row..(row.index + 1) * self.row;
                self.all.as_mut()[at].copy_from_slice(&self.y[from]);
            } else {
                self.y.copy_within(from.clone(), kept * self.row);
                self.first.copy_within(from, kept * self.row);
                self.rows.swap(kept, r); // those before `kept` stay in order
                kept += 1;
            }
        }
        if kept == self.rows.len() {
            return Ok(());
        }
        self.rows.truncate(kept);
        self.y.truncate(kept * self.row);
        self.first.truncate(kept * self.row);
        let rows: Vec<usize> = self.rows.iter().map(|row| row.index).collect();
        if kept > 0 {
            self.system.select(&rows)?;
            self.stage = self.system.buffer()?;
        }
        Ok(())
    }

    /// `stage = y + h sum_j weights_j k_j`, each row with its own h; which rows are not finite.
    fn combine(&mut self, weights: &[f64], h: impl Fn(&Row) -> f64 + Sync) -> Vec<bool> {
        let bad: Vec<AtomicBool> = self.rows.iter().map(|_| AtomicBool::new(false)).collect();
        let (rows, y, row) = (&self.rows, &self.y, self.row);
        let slopes = values(&self.first, &self.slopes);
        let out = self.stage.as_mut();
        self.system.compute(|| {
            share(out, row, 1, |from, piece| {
                for (i, out) in piece.chunks_mut(row).enumerate() {
                    let r = from / row + i;
                    let h = h(&rows[r]);
                    let at = r * row..(r + 1) * row;
                    let mut terms = vec![(1.0, &y[at.clone()])];
                    terms.extend(weighted(&slopes, weights, h, at));
                    bad[r].store(combine(out, &terms), Ordering::Relaxed);
                }
            });
        });
        bad.into_iter().map(AtomicBool::into_inner).collect()
    }

    /// A number or two for each row.
    fn each<R>(&self, work: impl Fn(&Self, usize) -> R) -> Vec<R> {
        (0..self.rows.len()).map(|r| work(self, r)).collect()
    }

    /// The part of row `r` in the values of all rows.
    fn of<'b>(&self, values: &'b [T], r: usize) -> &'b [T] {
        &values[r * self.row..(r + 1) * self.row]
    }

    /// The norm of `terms` measured against the row's state alone.
    fn norm(&self, terms: &[Term<T>], r: usize) -> f64 {
        let y = self.of(&self.y, r);
        error_norm(terms, (y, y), self.run.tolerance, self.run.norm)
    }

    /// The scaled local error of a row's step.
    fn error(&self, r: usize) -> f64 {
        let row = &self.rows[r];
        let ends = (self.of(&self.y, r), self.of(self.stage.as_ref(), r));
        let slopes = values(&self.first, &self.slopes);
        let norms = self.tableau.error.iter().map(|weights| {
            let at = r * self.row..(r + 1) * self.row;
            let terms = weighted(&slopes, weights, row.next - row.so_far.t, at);
            error_norm(&terms, ends, self.run.tolerance, self.run.norm)
        });
        estimate(&norms.collect::<Vec<f64>>())
    }

    /// The run as a whole: the first row that failed says why it did.
    fn outcome(self) -> Whole<S::Buffer> {
        let whole = |status| matches!(status, Status::Done | Status::Stopped);
        let failed = self.ended.iter().find(|row| !whole(row.status));
        let worst = failed.map_or(Status::Done, |row| row.status);
        let bad = self.ended.iter().enumerate().filter(|(_, row)| !whole(row.status));
        let outcome = Outcome {
            status: worst,
            t: failed.map_or(self.run.to, |row| row.t),
            y: self.all,
            accepted: self.ended.iter().map(|row| row.accepted).sum(),
            rejected: self.ended.iter().map(|row| row.rejected).sum(),
            step: failed.map_or(0.0, |row| row.step),
            rows: bad.map(|(index, _)| index).collect(),
        };
        (outcome, self.ended)
    }
}

/// All slopes of a step, the first among them.
fn values<'a, T, K: AsRef<[T]>>(first: &'a [T], slopes: &'a [Option<K>]) -> Vec<Option<&'a [T]>> {
    let mut values: Vec<Option<&[T]>> =
        slopes.iter().map(|k| k.as_ref().map(AsRef::as_ref)).collect();
    values[0] = Some(first);
    values
}

/// The slopes of a row that have a weight, each with `h` times it.
fn weighted<'a, T>(
    values: &[Option<&'a [T]>],
    weights: &[f64],
    h: f64,
    at: Range<usize>,
) -> Vec<Term<'a, T>> {
    let all = values.iter().zip(weights).filter(|(_, w)| **w != 0.0);
    all.filter_map(|(k, w)| k.map(|k| (h * w, &k[at.clone()]))).collect()
}

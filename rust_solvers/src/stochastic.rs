//! One-step methods for SDEs made by hand, on a grid or with adaptive steps on the Brownian tree.
//!
//! A scheme is stochastic Runge-Kutta in the widest form that is needed here (Roessler, SIAM J. Numer.
//! Anal. 48, 2010): each stage asks for the drift, the diffusion or the diffusion's correction at a
//! state that is y plus slopes so far, weighted by the step and by what the path does over it.

use multiversion::multiversion;

use crate::brownian::{Increments, Path, Value, step};
use crate::controller::Controller;
use crate::kernels::{CHUNK, Tolerance, non_finite_rows};
use crate::real::Real;
use crate::system::{Outcome, Status, System};
use crate::threads::share;

/// What multiplies a slope beside its weight, h being the step, W and H of the path over it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Basis {
    /// h
    Step,
    /// W
    W,
    /// sqrt(|h|)
    Root,
    /// I10 / |h| = H + W / 2
    Area,
    /// I11 = (W^2 - |h|) / 2, without |h| where the calculus is Stratonovich's
    Double,
    /// I11 / sqrt(|h|)
    DoubleOverRoot,
    /// I111 / |h| = (W^3 / |h| - 3 W) / 6
    Triple,
}

/// `weight` times the basis times a slope, counted in the order in which they were asked for.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    pub slope: usize,
    pub basis: Basis,
    pub weight: f64,
}

/// What a stage asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ask {
    Drift,
    Diffusion,
    /// The diffusion's own derivative along itself, g dg/dx.
    Correction,
}

/// A slope at the time t + c h and the state y + terms.
#[derive(Debug)]
pub struct Stage {
    pub c: f64,
    pub ask: Ask,
    pub terms: Vec<Term>,
}

#[derive(Debug)]
pub struct Scheme {
    pub stages: Vec<Stage>,
    pub end: Vec<Term>,
    /// The local error estimate; empty without.
    pub error: Vec<Term>,
    pub ito: bool,
    /// Whether H is used.
    pub area: bool,
}

/// How the noise acts on a row of the state.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// One Brownian motion an element.
    Diagonal,
    /// One a row.
    Scalar,
    /// So many a row, through a matrix of the row's length times them.
    Matrix(usize),
}

impl Layout {
    /// Brownian motions of a row of that length.
    pub fn channels(self, row: usize) -> usize {
        match self {
            Layout::Diagonal => row,
            Layout::Scalar => 1,
            Layout::Matrix(m) => m,
        }
    }
}

/// What an adaptive run is steered by.
pub struct Adaptive {
    pub to: f64,
    pub tolerance: Tolerance,
    pub first_step: f64,
    pub max_steps: u64,
    pub gains: [f64; 3],
    pub order: f64,
}

/// A slope that was asked for, or a matrix's product with W.
enum Slope<S> {
    Taken(S),
    Made(Vec<f64>),
}

/// A diffusion as it acts on the state: by the noise of each element, or multiplied by W already.
struct Kick<'a, S> {
    slope: &'a S,
    made: Option<Vec<f64>>,
}

impl<'a, S> Kick<'a, S> {
    fn new<T: Real>(slope: &'a S, w: &[f64], layout: Layout, row: usize) -> Self
    where
        S: AsRef<[T]>,
    {
        let made = match layout {
            Layout::Matrix(m) => Some(contracted(slope.as_ref(), w, row, m)),
            _ => None,
        };
        Kick { slope, made }
    }

    fn numbers<T>(&self) -> Numbers<'_, T>
    where
        S: AsRef<[T]>,
    {
        match &self.made {
            Some(v) => Numbers::Made(v),
            None => Numbers::Taken(self.slope.as_ref()),
        }
    }
}

/// The numbers of a slope.
enum Numbers<'a, T> {
    Taken(&'a [T]),
    Made(&'a [f64]),
}

fn numbers<T, S: AsRef<[T]>>(slopes: &[Slope<S>]) -> Vec<Numbers<'_, T>> {
    let mut views = Vec::with_capacity(slopes.len());
    for slope in slopes {
        views.push(match slope {
            Slope::Taken(v) => Numbers::Taken(v.as_ref()),
            Slope::Made(v) => Numbers::Made(v),
        });
    }
    views
}

/// W and H over a step, one an element of the state (a matrix: one a channel), and its length.
struct Noise<'a> {
    w: &'a [f64],
    area: &'a [f64],
    h: f64,
    ito: bool,
}

impl Noise<'_> {
    /// The basis at the elements from `from` on, into `out`.
    fn fill(&self, basis: Basis, from: usize, out: &mut [f64]) {
        let h = self.h.abs();
        let w = self.w.get(from..).unwrap_or_default();
        let double = |w: f64| 0.5 * (w * w - if self.ito { h } else { 0.0 });
        fn each(out: &mut [f64], w: &[f64], value: impl Fn(f64) -> f64) {
            out.iter_mut().zip(w).for_each(|(out, &w)| *out = value(w));
        }
        match basis {
            Basis::Step => out.fill(self.h),
            Basis::Root => out.fill(h.sqrt()),
            Basis::W => each(out, w, |w| w),
            Basis::Double => each(out, w, double),
            Basis::DoubleOverRoot => each(out, w, |w| double(w) / h.sqrt()),
            Basis::Triple => each(out, w, |w| w * (w * w / h - 3.0) / 6.0),
            Basis::Area => {
                let area = self.area.get(from..).unwrap_or_default();
                for ((out, w), area) in out.iter_mut().zip(w).zip(area) {
                    *out = area + 0.5 * w;
                }
            }
        }
    }
}

/// One run: a scheme, a state, and the buffers of a step.
pub struct Run<'a, T: Real, S: System<T>> {
    pub system: &'a mut S,
    pub scheme: &'a Scheme,
    pub layout: Layout,
    /// Elements in a row of the state.
    pub row: usize,
    pub saves: &'a [f64],
    saved: usize,
    y: S::Buffer,
    stage: S::Buffer,
    end: S::Buffer,
    slopes: Vec<Slope<S::Slope>>,
    wide: [Vec<f64>; 2],
    _element: std::marker::PhantomData<T>,
}

impl<'a, T: Real, S: System<T>> Run<'a, T, S> {
    pub fn new(
        system: &'a mut S,
        scheme: &'a Scheme,
        layout: Layout,
        row: usize,
        saves: &'a [f64],
        y: S::Buffer,
    ) -> Result<Self, S::Error> {
        let (stage, end) = (system.buffer()?, system.buffer()?);
        Ok(Run {
            system,
            scheme,
            layout,
            row,
            saves,
            saved: 0,
            y,
            stage,
            end,
            slopes: Vec::new(),
            wide: [Vec::new(), Vec::new()],
            _element: std::marker::PhantomData,
        })
    }

    /// On a grid.
    pub fn fixed(mut self, grid: &[f64], path: Path) -> Result<Outcome<S::Buffer>, S::Error> {
        let steps = grid.windows(2).map(|ends| (ends[0], ends[1])).collect();
        let mut increments = Increments::new(path, steps, self.scheme.area);
        self.save_state(grid[0])?;
        let mut taken = 0;
        for ends in grid.windows(2) {
            let (t, next) = (ends[0], ends[1]);
            let (w, area) = increments.over_next();
            if self.advance(t, next, w, area)? {
                return Ok(self.outcome(Status::NonFinite, t, (taken, 0), next - t));
            }
            taken += 1;
            if self.accept(next)? {
                return Ok(self.outcome(Status::Stopped, next, (taken, 0), next - t));
            }
        }
        let last = grid.len() - 1;
        Ok(self.outcome(Status::Done, grid[last], (taken, 0), grid[last] - grid[last - 1]))
    }

    /// The reversible Heun method on a grid: see `interp/solvers/reversible_heun.py`. The scheme has
    /// no part in it.
    pub fn reversible(mut self, grid: &[f64], path: Path) -> Result<Outcome<S::Buffer>, S::Error> {
        let steps = grid.windows(2).map(|ends| (ends[0], ends[1])).collect();
        let mut increments = Increments::new(path, steps, false);
        self.save_state(grid[0])?;
        self.stage.as_mut().copy_from_slice(self.y.as_ref());
        let (mut f, mut g) = self.both(grid[0])?;
        // The state less the other one of the pair, which lies in `stage`.
        let mut lag = vec![0.0; self.y.as_ref().len()];
        for (taken, ends) in grid.windows(2).enumerate() {
            let (t, next) = (ends[0], ends[1]);
            let (w, _) = increments.over_next();
            let (layout, row) = (self.layout, self.row);
            let noise = Noise { w, area: &[], h: next - t, ito: false };
            let noise = widened(noise, layout, row, &mut self.wide);
            let term = |slope, basis, weight| Term { slope, basis, weight };
            let kick = Kick::new(&g, w, layout, row);
            let slopes = [Numbers::Taken(f.as_ref()), kick.numbers(), Numbers::Made(&lag)];
            let terms = [term(0, Basis::Step, 1.0), term(1, Basis::W, 1.0), term(2, Basis::W, 1.0)];
            let (out, y) = (self.stage.as_mut(), self.y.as_ref());
            let lost = self.system.compute(|| combine(out, Some(y), &terms, &slopes, &noise));
            let kicked = kick.made;
            let (f_end, g_end) = self.both(next)?;
            let noise = Noise { w, area: &[], h: next - t, ito: false };
            let noise = widened(noise, layout, row, &mut self.wide);
            let kick = Kick { slope: &g, made: kicked };
            let kick_end = Kick::new(&g_end, w, layout, row);
            let slopes = [
                Numbers::Taken(f.as_ref()),
                Numbers::Taken(f_end.as_ref()),
                kick.numbers(),
                kick_end.numbers(),
            ];
            let half = |slope, basis| term(slope, basis, 0.5);
            let terms =
                [half(0, Basis::Step), half(1, Basis::Step), half(2, Basis::W), half(3, Basis::W)];
            let (out, y) = (self.end.as_mut(), self.y.as_ref());
            let bad = self.system.compute(|| combine(out, Some(y), &terms, &slopes, &noise));
            if bad || lost {
                if !bad {
                    std::mem::swap(&mut self.end, &mut self.stage);
                }
                return Ok(self.outcome(Status::NonFinite, t, (taken as u64, 0), next - t));
            }
            let (z, hat) = (self.end.as_ref(), self.stage.as_ref());
            share(&mut lag, CHUNK, 1, |from, lag| {
                for (i, lag) in lag.iter_mut().enumerate() {
                    *lag = z[from + i].to_f64() - hat[from + i].to_f64();
                }
            });
            (f, g) = (f_end, g_end);
            if self.accept(next)? {
                return Ok(self.outcome(Status::Stopped, next, (taken as u64 + 1, 0), next - t));
            }
        }
        let last = grid.len() - 1;
        let taken = last as u64;
        Ok(self.outcome(Status::Done, grid[last], (taken, 0), grid[last] - grid[last - 1]))
    }

    /// Drift and diffusion at `stage`.
    fn both(&mut self, t: f64) -> Result<(S::Slope, S::Slope), S::Error> {
        self.system.announce(&[t])?;
        let f = self.system.slope(&mut self.stage)?;
        Ok((f, self.system.diffusion_at(t, false, &mut self.stage)?))
    }

    /// With steps that end at times of the tree: a refused one is tried again on the same path.
    pub fn adaptive(
        mut self,
        from: f64,
        goal: &Adaptive,
        path: Path,
    ) -> Result<Outcome<S::Buffer>, S::Error> {
        let room = |n| (vec![0.0; n], vec![0.0; if self.scheme.area { n } else { 0 }]);
        let [mut here, mut there, mut over] = std::array::from_fn(|_| room(path.elements));
        let value = |p: &mut (Vec<f64>, Vec<f64>), t: f64| {
            path.at(&[t], &mut [Value { w: &mut p.0, integral: &mut p.1 }]);
        };
        let forward = if goal.to >= from { 1.0 } else { -1.0 };
        let (mut t, mut h, mut accepted, mut rejected) = (from, goal.first_step, 0, 0);
        let mut controller = Controller::new(goal.gains, goal.order);
        self.save_state(t)?;
        while t != goal.to {
            if accepted + rejected >= goal.max_steps {
                return Ok(self.outcome(Status::TooManySteps, t, (accepted, rejected), h));
            }
            let stop = self.saves.get(self.saved).copied().unwrap_or(goal.to);
            let Some(next) = path.root.time_after(t, forward * h, stop) else {
                return Ok(self.outcome(Status::StepUnderflow, t, (accepted, rejected), h));
            };
            value(&mut here, t);
            value(&mut there, next);
            let start = Value { w: &mut here.0, integral: &mut here.1 };
            let end = (&there.0[..], &there.1[..]);
            step((&mut over.0, &mut over.1), start, end, next - t);
            let bad = self.advance(t, next, &over.0, &over.1)?;
            let error =
                if bad { f64::NAN } else { self.error(next - t, &over.0, &over.1, goal.tolerance) };
            let tried = (next - t).abs();
            if error <= 1.0 {
                accepted += 1;
                t = next;
                h = tried * controller.accepted(error);
                if self.accept(t)? {
                    return Ok(self.outcome(Status::Stopped, t, (accepted, rejected), tried));
                }
            } else {
                rejected += 1;
                h = tried * controller.rejected(error);
                if bad && path.root.time_after(t, forward * h, stop).is_none() {
                    return Ok(self.outcome(Status::NonFinite, t, (accepted, rejected), h));
                }
            }
        }
        Ok(self.outcome(Status::Done, t, (accepted, rejected), h))
    }

    /// Make the state at the end of a step; whether it holds a NaN or an infinity.
    fn advance(&mut self, t: f64, next: f64, w: &[f64], area: &[f64]) -> Result<bool, S::Error> {
        self.slopes.clear();
        for stage in &self.scheme.stages {
            let at = if stage.c == 1.0 { next } else { t + stage.c * (next - t) };
            if !stage.terms.is_empty() {
                let noise = Noise { w, area, h: next - t, ito: self.scheme.ito };
                let noise = widened(noise, self.layout, self.row, &mut self.wide);
                let out = self.stage.as_mut();
                let (y, slopes) = (self.y.as_ref(), numbers(&self.slopes));
                self.system.compute(|| combine(out, Some(y), &stage.terms, &slopes, &noise));
            }
            let state = if stage.terms.is_empty() { &mut self.y } else { &mut self.stage };
            let slope = match stage.ask {
                Ask::Drift => {
                    self.system.announce(&[at])?;
                    Slope::Taken(self.system.slope(state)?)
                }
                ask => {
                    let taken = self.system.diffusion_at(at, ask == Ask::Correction, state)?;
                    match self.layout {
                        Layout::Matrix(m) => {
                            Slope::Made(contracted(taken.as_ref(), w, self.row, m))
                        }
                        _ => Slope::Taken(taken),
                    }
                }
            };
            self.slopes.push(slope);
        }
        let noise = Noise { w, area, h: next - t, ito: self.scheme.ito };
        let noise = widened(noise, self.layout, self.row, &mut self.wide);
        let (out, y, slopes) = (self.end.as_mut(), self.y.as_ref(), numbers(&self.slopes));
        let end = &self.scheme.end;
        Ok(self.system.compute(|| combine(out, Some(y), end, &slopes, &noise)))
    }

    /// The scaled local error of the step just made.
    fn error(&mut self, h: f64, w: &[f64], area: &[f64], tolerance: Tolerance) -> f64 {
        let noise = Noise { w, area, h, ito: self.scheme.ito };
        let noise = widened(noise, self.layout, self.row, &mut self.wide);
        let out = self.stage.as_mut();
        combine(out, None, &self.scheme.error, &numbers(&self.slopes), &noise);
        let (e, y, end) = (self.stage.as_ref(), self.y.as_ref(), self.end.as_ref());
        let square = |i: usize| {
            let size = y[i].abs().max(end[i].abs()).to_f64();
            let e = e[i].to_f64();
            if e == 0.0 { 0.0 } else { (e / (tolerance.atol + tolerance.rtol * size)).powi(2) }
        };
        ((0..e.len()).map(square).sum::<f64>() / e.len().max(1) as f64).sqrt()
    }

    /// Go on from the end of the step; whether somebody wants to stop there.
    fn accept(&mut self, t: f64) -> Result<bool, S::Error> {
        std::mem::swap(&mut self.y, &mut self.end);
        self.save_state(t)?;
        self.system.accepted(t, &mut self.y)
    }

    fn save_state(&mut self, t: f64) -> Result<(), S::Error> {
        while self.saves.get(self.saved) == Some(&t) {
            let y = self.y.as_ref();
            self.system.save(self.saved, |out| out.copy_from_slice(y))?;
            self.saved += 1;
        }
        Ok(())
    }

    fn outcome(self, status: Status, t: f64, steps: (u64, u64), h: f64) -> Outcome<S::Buffer> {
        let rows = if status == Status::NonFinite {
            non_finite_rows(self.end.as_ref(), self.row)
        } else {
            Vec::new()
        };
        let (accepted, rejected) = steps;
        Outcome { status, t, y: self.y, accepted, rejected, step: h.abs(), rows }
    }
}

/// The noise with one number an element of the state, where a row shares one.
fn widened<'a>(
    noise: Noise<'a>,
    layout: Layout,
    row: usize,
    wide: &'a mut [Vec<f64>; 2],
) -> Noise<'a> {
    if !matches!(layout, Layout::Scalar) {
        return noise;
    }
    for (wide, narrow) in wide.iter_mut().zip([noise.w, noise.area]) {
        wide.clear();
        wide.extend(narrow.iter().flat_map(|&v| std::iter::repeat_n(v, row)));
    }
    Noise { w: &wide[0], area: &wide[1], ..noise }
}

/// The matrix of each row times its noise.
fn contracted<T: Real>(matrix: &[T], w: &[f64], row: usize, channels: usize) -> Vec<f64> {
    let mut out = vec![0.0; w.len() / channels.max(1) * row];
    for (r, (out, w)) in out.chunks_mut(row.max(1)).zip(w.chunks(channels)).enumerate() {
        for (e, out) in out.iter_mut().enumerate() {
            let at = (r * row + e) * channels;
            let products = matrix[at..at + channels].iter().zip(w).map(|(g, w)| g.to_f64() * w);
            *out = products.sum();
        }
    }
    out
}

/// `out = y + terms`, or the terms alone; whether a NaN or an infinity came out. A slope that is a
/// matrix's product with W already has its W.
fn combine<T: Real>(
    out: &mut [T],
    y: Option<&[T]>,
    terms: &[Term],
    slopes: &[Numbers<'_, T>],
    noise: &Noise<'_>,
) -> bool {
    let bad = std::sync::atomic::AtomicU32::new(0);
    share(out, CHUNK, terms.len().max(1), |first, piece| {
        let (mut sum, mut factors) = ([0.0f64; CHUNK], [0.0f64; CHUNK]);
        for (k, out) in piece.chunks_mut(CHUNK).enumerate() {
            let from = first + k * CHUNK;
            let sum = &mut sum[..out.len()];
            match y {
                Some(y) => {
                    let y = &y[from..from + sum.len()];
                    sum.iter_mut().zip(y).for_each(|(s, y)| *s = y.to_f64());
                }
                None => sum.fill(0.0),
            }
            for term in terms {
                match slopes[term.slope] {
                    Numbers::Taken(v) => {
                        let factors = &mut factors[..sum.len()];
                        noise.fill(term.basis, from, factors);
                        add(sum, term.weight, factors, &v[from..from + factors.len()]);
                    }
                    Numbers::Made(v) => {
                        let v = &v[from..from + sum.len()];
                        sum.iter_mut().zip(v).for_each(|(s, v)| *s += term.weight * v);
                    }
                }
            }
            bad.fetch_or(round(out, sum), std::sync::atomic::Ordering::Relaxed);
        }
    });
    bad.into_inner() != 0
}

/// `sum += weight factors v`.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn add<T: Real>(sum: &mut [f64], weight: f64, factors: &[f64], v: &[T]) {
    for ((s, factor), v) in sum.iter_mut().zip(factors).zip(v) {
        *s += weight * factor * v.to_f64();
    }
}

/// `out = sum` in its own precision; not 0 where a NaN or an infinity came out.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn round<T: Real>(out: &mut [T], sum: &[f64]) -> u32 {
    let mut bad = 0;
    for (out, s) in out.iter_mut().zip(sum) {
        *out = T::from_f64(*s);
        bad |= out.non_finite();
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brownian::Root;
    use crate::philox::{Rows, stream_key};
    use proptest::prelude::*;

    /// dX = a dt + b dW, with a drift and a diffusion of each element that nothing changes; of a
    /// matrix's row b is the sum over its channels.
    struct Constant {
        drift: Vec<f64>,
        diffusion: Vec<f64>,
        saved: Vec<Vec<f64>>,
        times: usize,
    }

    impl System<f64> for Constant {
        type Buffer = Vec<f64>;
        type Slope = Vec<f64>;
        type Error = std::convert::Infallible;

        fn buffer(&mut self) -> Result<Vec<f64>, Self::Error> {
            Ok(vec![f64::NAN; self.drift.len()])
        }
        fn announce(&mut self, times: &[f64]) -> Result<(), Self::Error> {
            self.times += times.len();
            Ok(())
        }
        fn slope(&mut self, _: &mut Vec<f64>) -> Result<Vec<f64>, Self::Error> {
            assert!(self.times > 0, "a slope at a time that was not announced");
            self.times -= 1;
            Ok(self.drift.clone())
        }
        fn diffusion(&mut self, _: &mut Vec<f64>) -> Result<Option<Vec<f64>>, Self::Error> {
            Ok(None)
        }
        fn diffusion_at(
            &mut self,
            _: f64,
            correction: bool,
            y: &mut Vec<f64>,
        ) -> Result<Vec<f64>, Self::Error> {
            Ok(if correction { vec![0.0; y.len()] } else { self.diffusion.clone() })
        }
        fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
            work()
        }
        fn save<R>(
            &mut self,
            index: usize,
            write: impl FnOnce(&mut [f64]) -> R,
        ) -> Result<R, Self::Error> {
            assert_eq!(index, self.saved.len());
            self.saved.push(vec![0.0; self.drift.len()]);
            Ok(write(&mut self.saved[index]))
        }
        fn accepted(&mut self, _: f64, _: &mut Vec<f64>) -> Result<bool, Self::Error> {
            Ok(false)
        }
    }

    /// Any scheme that is exact where nothing depends on time and state: its weights of the drift add
    /// up to one, as those of the diffusion do.
    fn scheme() -> impl Strategy<Value = Scheme> {
        let basis = prop_oneof![Just(Basis::Step), Just(Basis::W), Just(Basis::Root)];
        let inner = (0usize..8, basis, -2.0f64..2.0);
        let stage = (0.0f64..=1.0, any::<bool>(), prop::collection::vec(inner, 0..3));
        prop::collection::vec((stage, -2.0f64..2.0), 0..5).prop_map(|some| {
            let ends = [(0.0, Ask::Drift), (1.0, Ask::Diffusion)];
            let mut scheme =
                Scheme { stages: vec![], end: vec![], error: vec![], ito: true, area: false };
            let mut left = [1.0, 1.0];
            let mut push = |c: f64, ask: Ask, terms: Vec<Term>, weight: Option<f64>| {
                let (kind, basis) =
                    if ask == Ask::Drift { (0, Basis::Step) } else { (1, Basis::W) };
                let weight = weight.unwrap_or(left[kind]);
                left[kind] -= weight;
                let slope = scheme.stages.len();
                scheme.stages.push(Stage { c, ask, terms });
                scheme.end.push(Term { slope, basis, weight });
            };
            for (slope, ((c, drift, terms), weight)) in some.into_iter().enumerate() {
                let ask = if drift { Ask::Drift } else { Ask::Diffusion };
                let terms = terms.into_iter().filter(|(at, ..)| *at < slope);
                let terms = terms.map(|(slope, basis, weight)| Term { slope, basis, weight });
                push(c, ask, terms.collect(), Some(weight));
            }
            ends.into_iter().for_each(|(c, ask)| push(c, ask, vec![], None));
            scheme
        })
    }

    const SPAN: (f64, f64) = (-1.0, 3.0);

    fn path(rows: usize, channels: usize, first: u32) -> Path {
        Path {
            root: Root { from: SPAN.0, to: SPAN.1, depth: 24 },
            rows: Rows { len: channels, first },
            key: stream_key(11, 1),
            elements: rows * channels,
        }
    }

    fn motion(path: &Path, t: f64) -> Vec<f64> {
        let mut w = vec![0.0; path.elements];
        path.at(&[t], &mut [Value { w: &mut w, integral: &mut [] }]);
        w
    }

    #[derive(Clone, Copy, Debug)]
    enum Way {
        Fixed,
        Reversible,
        Adaptive,
    }

    #[derive(Debug)]
    struct Case {
        layout: Layout,
        rows: usize,
        row: usize,
        first: u32,
    }

    impl Case {
        fn system(&self) -> Constant {
            let columns = if let Layout::Matrix(m) = self.layout { m } else { 1 };
            let number = |i: usize| ((i * 7 + 3) % 11) as f64 / 5.0 - 1.0;
            // The same for every row, so that rows can be cut out.
            let of_rows = |n: usize, from: usize| {
                (0..self.rows * n).map(move |i| number(i % n + from)).collect()
            };
            Constant {
                drift: of_rows(self.row, 0),
                diffusion: of_rows(self.row * columns, 5),
                saved: vec![],
                times: 0,
            }
        }

        /// The states at the `saves`, by the engine.
        fn run(&self, scheme: &Scheme, way: Way, grid: &[f64], saves: &[f64]) -> Vec<Vec<f64>> {
            let mut system = self.system();
            let path = path(self.rows, self.layout.channels(self.row), self.first);
            let y = vec![0.25; self.rows * self.row];
            let Ok(run) = Run::new(&mut system, scheme, self.layout, self.row, saves, y);
            let goal = Adaptive {
                to: *grid.last().unwrap_or(&0.0),
                tolerance: Tolerance { rtol: 0.0, atol: 0.05 },
                first_step: 0.3,
                max_steps: 10_000,
                gains: [1.0, 0.0, 0.0],
                order: 1.0,
            };
            let Ok(outcome) = match way {
                Way::Fixed => run.fixed(grid, path),
                Way::Reversible => run.reversible(grid, path),
                Way::Adaptive => run.adaptive(grid[0], &goal, path),
            };
            assert_eq!(outcome.status, Status::Done);
            let mut states = system.saved;
            states.push(outcome.y);
            states
        }

        /// The same in closed form.
        fn exact(&self, from: f64, t: f64) -> Vec<f64> {
            let channels = self.layout.channels(self.row);
            let path = path(self.rows, channels, self.first);
            let (start, end) = (motion(&path, from), motion(&path, t));
            let system = self.system();
            let state = |i: usize| {
                let (r, e) = (i / self.row, i % self.row);
                let w = |c: usize| end[r * channels + c] - start[r * channels + c];
                let kick = match self.layout {
                    Layout::Diagonal => system.diffusion[i] * w(e),
                    Layout::Scalar => system.diffusion[i] * w(0),
                    Layout::Matrix(m) => (0..m).map(|c| system.diffusion[i * m + c] * w(c)).sum(),
                };
                0.25 + (t - from) * system.drift[i] + kick
            };
            (0..self.rows * self.row).map(state).collect()
        }
    }

    fn case() -> impl Strategy<Value = Case> {
        let layout = prop_oneof![
            Just(Layout::Diagonal),
            Just(Layout::Scalar),
            (1usize..4).prop_map(Layout::Matrix),
        ];
        (layout, 1usize..5, 1usize..6, any::<u32>()).prop_map(|(layout, rows, row, first)| Case {
            layout,
            rows,
            row,
            first,
        })
    }

    fn grid() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(SPAN.0..=SPAN.1, 2..30).prop_map(|mut grid| {
            grid.sort_by(f64::total_cmp);
            grid.dedup();
            grid
        })
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        // Sums of up to 30 steps of a few terms of size one.
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-11)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever the scheme, the grid, the direction and the noise: dX = a dt + b dW is solved
        /// exactly, at every output time.
        #[test]
        fn constant_coefficients_are_solved_exactly(
            case in case(), scheme in scheme(), mut grid in grid(), reversible: bool, back: bool,
        ) {
            prop_assume!(grid.len() > 1);
            if back {
                grid.reverse();
            }
            let way = if reversible { Way::Reversible } else { Way::Fixed };
            let saves: Vec<f64> = grid.iter().copied().step_by(2).collect();
            let states = case.run(&scheme, way, &grid, &saves);
            let end = grid[grid.len() - 1];
            prop_assert_eq!(states.len(), saves.len() + 1);
            for (state, &t) in states.iter().zip(saves.iter().chain([&end])) {
                prop_assert!(close(state, &case.exact(grid[0], t)), "{:?} at {}", case.layout, t);
            }
        }

        /// However often a step is refused, the path stays the same.
        #[test]
        fn refused_steps_draw_nothing_anew(
            case in case(), ends in (SPAN.0..=SPAN.1, SPAN.0..=SPAN.1), mut scheme in scheme(),
            size in 0.01f64..1.0,
        ) {
            prop_assume!((ends.0 - ends.1).abs() > 0.05);
            // An error of the size of W, so that steps are refused now and then.
            let slope = scheme.stages.len() - 1;
            scheme.error = vec![Term { slope, basis: Basis::W, weight: size }];
            let states = case.run(&scheme, Way::Adaptive, &[ends.0, ends.1], &[]);
            prop_assert!(close(&states[0], &case.exact(ends.0, ends.1)));
        }

        #[test]
        fn a_row_does_not_know_its_neighbours(
            case in case(), scheme in scheme(), grid in grid(), reversible: bool,
        ) {
            prop_assume!(grid.len() > 1);
            let way = if reversible { Way::Reversible } else { Way::Fixed };
            let whole = case.run(&scheme, way, &grid, &[]).remove(0);
            for r in 0..case.rows {
                let first = case.first.wrapping_add(r as u32);
                let alone = Case { rows: 1, first, ..case };
                let state = alone.run(&scheme, way, &grid, &[]).remove(0);
                prop_assert_eq!(&whole[r * case.row..(r + 1) * case.row], &state[..]);
            }
        }
    }
}

//! What a stepper needs of the world outside it: memory, a field, and somebody to report to.

use crate::real::Real;

/// The world as a stepper sees it. The Python border implements it over torch's tensors, the tests
/// over vectors.
pub trait System<T: Real> {
    /// Memory for a state, of the system's length.
    type Buffer: AsRef<[T]> + AsMut<[T]>;
    /// What the field returned: readable for as long as it is kept.
    type Slope: AsRef<[T]>;
    type Error;

    /// A new buffer with whatever content.
    fn buffer(&mut self) -> Result<Self::Buffer, Self::Error>;
    /// Say at which times the next calls of the field will be, in order.
    fn announce(&mut self, times: &[f64]) -> Result<(), Self::Error>;
    /// The field at the next announced time. The buffer holds the same content afterwards.
    fn slope(&mut self, y: &mut Self::Buffer) -> Result<Self::Slope, Self::Error>;
    /// The diffusion at the time of the last slope, where the system has one.
    fn diffusion(&mut self, y: &mut Self::Buffer) -> Result<Option<Self::Slope>, Self::Error>;
    /// The diffusion at t, or its derivative along itself; a matrix has more elements than the state.
    fn diffusion_at(
        &mut self,
        t: f64,
        correction: bool,
        y: &mut Self::Buffer,
    ) -> Result<Self::Slope, Self::Error>;
    /// Run work that touches no Python.
    fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;
    /// Let `write` fill the place of the `index`-th output time; gives what it gives.
    fn save<R>(
        &mut self,
        index: usize,
        write: impl FnOnce(&mut [T]) -> R,
    ) -> Result<R, Self::Error>;
    /// Tell of an accepted step: its end and the state there. Whether the run should stop there.
    fn accepted(&mut self, t: f64, y: &mut Self::Buffer) -> Result<bool, Self::Error>;
}

/// A system whose rows may be at times of their own, and drop out.
pub trait Rows<T: Real>: System<T> {
    /// From here on states hold these rows of the batch alone, in this order.
    fn select(&mut self, rows: &[usize]) -> Result<(), Self::Error>;
    /// The field at a time for each row. The buffer holds the same content afterwards.
    fn slope_at(&mut self, times: &[f64], y: &mut Self::Buffer)
    -> Result<Self::Slope, Self::Error>;
    /// Let `write` fill the place of a row of the batch at the `index`-th output time.
    fn save_row<R>(
        &mut self,
        index: usize,
        row: usize,
        write: impl FnOnce(&mut [T]) -> R,
    ) -> Result<R, Self::Error>;
    /// Whether somebody wants to be told of steps.
    fn watched(&self) -> bool;
    /// Tell where all rows of the batch are; which of them should stop there.
    fn moved(&mut self, times: &[f64], y: &mut Self::Buffer) -> Result<Vec<usize>, Self::Error>;
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    /// Whoever was told of a step wanted no other.
    Stopped,
    NonFinite,
    StepUnderflow,
    TooManySteps,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Stopped => "stopped",
            Status::NonFinite => "non_finite",
            Status::StepUnderflow => "step_underflow",
            Status::TooManySteps => "too_many_steps",
        }
    }
}

/// How a run ended: the state at `t`, the last good one, and what was counted on the way.
pub struct Outcome<B> {
    pub status: Status,
    pub t: f64,
    pub y: B,
    pub accepted: u64,
    pub rejected: u64,
    /// The last step tried, in absolute value.
    pub step: f64,
    /// Rows that were not finite, where that ended the run.
    pub rows: Vec<usize>,
}

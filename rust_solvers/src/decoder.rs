//! A decoder of latents: a network, its weights, and the scale of its latents.

use std::sync::{Arc, Mutex};

use crate::network::{Lent, Loan, Number, Program, Run};
use crate::real::Precision;

/// Where the weights of a decoder lie: whoever makes one keeps them there.
pub trait Weights: Send {
    fn lent(&self) -> Vec<Lent<'_>>;
}

/// A network from latents to images.
pub struct Decoder<W> {
    program: Arc<Program>,
    weights: W,
    run: Mutex<Run>,
}

impl<W: Weights> Decoder<W> {
    /// # Errors
    /// In words, where the program is not one of (t, latents).
    pub fn new(program: Arc<Program>, weights: W) -> Result<Self, String> {
        let kinds: Vec<Precision> = program.inputs().map(|v| v.precision).collect();
        if kinds != [program.precision(); 2] {
            return Err("not a decoder of latents".into());
        }
        Ok(Decoder { program, weights, run: Mutex::new(Run::default()) })
    }

    /// Numbers in a row of latents, and of images.
    pub fn lengths(&self) -> (usize, usize) {
        (self.program.inputs().nth(1).map_or(0, |v| v.len), self.program.len())
    }

    pub fn precision(&self) -> Precision {
        self.program.precision()
    }

    /// `out <- clamp(decode(z / scale + shift), -1, 1)`.
    ///
    /// # Errors
    /// In words, where lengths do not fit.
    pub fn decode<T: Number>(
        &self,
        z: &[T],
        out: &mut [T],
        (scale, shift): (f64, f64),
    ) -> Result<(), String> {
        let (from, to) = self.lengths();
        let rows = out.len() / to.max(1);
        if T::PRECISION != self.precision() || rows * to != out.len() || rows * from != z.len() {
            return Err("latents and images of other lengths than the decoder has".into());
        }
        let (a, b) = (T::from_f64(1.0 / scale), T::from_f64(shift));
        let latents: Vec<T> = z.iter().map(|&z| a * z + b).collect();
        let t = [T::ZERO];
        let (weights, inputs) = (self.weights.lent(), [T::lend(&t), T::lend(&latents)]);
        let mut run = self.run.lock().map_err(|_| "a decoder that failed before".to_string())?;
        run.prepare(&self.program, &weights, rows);
        let loan = Loan { weights: &weights, inputs: &inputs };
        run.call(&self.program, loan, out, usize::MAX)?;
        crate::network::Function::Clamp(-1.0, 1.0).apply(out);
        Ok(())
    }
}

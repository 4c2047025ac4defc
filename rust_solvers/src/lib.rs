//! The integration engine of interp.
//!
//! The core knows no Python: kernels over slices, Philox noise, a Brownian tree, Runge-Kutta and
//! recurrence steppers generic over a [`system::System`]. One module, `border`, speaks Python and
//! gives the steppers the memory of torch's tensors.

pub mod block;
mod border;
pub mod brownian;
pub mod c;
pub mod chains;
pub mod controller;
pub mod decoder;
pub mod effective;
pub mod kernels;
pub mod network;
pub mod philox;
pub mod real;
pub mod recurrence;
pub mod rows;
pub mod runge_kutta;
pub mod steps;
pub mod stochastic;
pub mod system;
pub mod tableau;
pub mod threads;

//! The one place where Rust and Python meet.

mod borrowed;
mod chain;
mod dlpack;
mod kernel;
mod memory;
mod native;
mod noise;
mod recurrence;
mod runge_kutta;
mod steps;
mod stochastic;
mod system;
mod tensor;

use pyo3::prelude::*;

pub(crate) use steps::decode;

#[pymodule]
fn rust_solvers(module: &Bound<'_, PyModule>) -> PyResult<()> {
    crate::threads::own();
    module.add_class::<memory::Lender>()?;
    module.add_class::<native::Network>()?;
    module.add_class::<kernel::UserKernel>()?;
    module.add_class::<steps::Decoder>()?;
    module.add_function(wrap_pyfunction!(tensor::finite, module)?)?;
    module.add_function(wrap_pyfunction!(steps::ddpm_step, module)?)?;
    module.add_function(wrap_pyfunction!(steps::flow_matching_step, module)?)?;
    module.add_function(wrap_pyfunction!(runge_kutta::runge_kutta, module)?)?;
    module.add_function(wrap_pyfunction!(runge_kutta::runge_kutta_rows, module)?)?;
    module.add_function(wrap_pyfunction!(recurrence::recurrence, module)?)?;
    module.add_function(wrap_pyfunction!(stochastic::stochastic, module)?)?;
    module.add_function(wrap_pyfunction!(stochastic::reversible_heun, module)?)?;
    module.add_function(wrap_pyfunction!(chain::chain, module)?)?;
    module.add_function(wrap_pyfunction!(noise::normals, module)?)?;
    module.add_function(wrap_pyfunction!(noise::brownian, module)?)?;
    module.add_function(wrap_pyfunction!(noise::philox_words, module)?)
}

//! From the run file as written to the [`Plan`]: layered (file, environment, flags, `--set`),
//! resolved, checked once.

mod builder;
mod choice;
mod file;
pub mod keys;
mod load;
pub(crate) mod number;
mod plan;
mod reference;
mod table;
#[cfg(test)]
mod tests;

pub use builder::PlanBuilder;
pub use choice::{
    Activations, AlphaSchedule, BackwardMode, DeviceSpec, Divergence, Dtype, HeadMode, Init,
    Method, MicroRows, ObjectiveSchedule, OnNonfinite, Pool, ProbeScore, Rho, ScheduleKind, Score,
    Signal, Statistic, Tail,
};
pub use file::{EMBEDDED, Origin, Overrides, RunFile, Written};
pub(crate) use load::largest_divisor;
pub use load::{Resolved, ResolvedValue, load, resolve};
pub(crate) use plan::flatten;
pub use plan::{
    CheckpointPlan, DataPlan, EvalPlan, Level, LogPlan, MachinePlan, ObjectivePlan, OptimPlan,
    Plan, SchedulePlan, SelectPlan, ShapePlan,
};
pub use reference::reference;

//! From the run file as written to the [`Plan`]: layered (file, environment, flags, `--set`), resolved, checked once.

mod choice;
mod plan;

pub use choice::{
    BackwardMode, Birth, DeviceSpec, Divergence, Dtype, HeadMode, Method, MicroRows, Pool, ScheduleKind, Score, Tail,
};
pub use plan::{
    CheckpointPlan, DataPlan, EvalPlan, LogPlan, MachinePlan, ObjectivePlan, OptimPlan, Plan, SchedulePlan, SelectPlan,
    ShapePlan,
};

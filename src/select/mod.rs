//! Which tokens matter: a score per position, the value-at-risk selector that keeps its tail, and
//! what moves it.

mod adaptive;
mod carried;
mod hierarchical;

mod mixture;
mod score;
mod selector;
mod state;
mod step;
mod step_pool;

pub use adaptive::{AdaEslm, EasyShare};
pub use carried::Carried;
pub use hierarchical::{judge_sequences, probe_rows};
pub use mixture::{Mixture, Rows};
pub use score::{Ranking, ScoreContext};
use score::{score_is_finite, score_of};
pub use selector::{Selection, Selector, kept_of};
pub use state::{Observed, SelectionState};
pub use step::{ByRow, Decision, OwnScore, StepSelection};
pub use step_pool::StepPool;

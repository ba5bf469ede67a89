//! A teacher from a folder writes its signal.

use super::session::check_tokenizer;
use crate::config::Dtype;
use crate::data::prepare::DataDir;
use crate::error::Result;
use crate::ops::matmul::Precision;
use crate::progress::Progress;
use crate::signal::{TeacherId, WriteOptions, Written, write};
use crate::store::names::ModelFolder;
use crate::teacher::Teacher;
use crate::world::World;
use candle_core::Device;

/// How a teacher works.
#[derive(Debug, Clone)]
pub struct Working {
    /// Where.
    pub device: Device,
    /// How its products are computed.
    pub dtype: Dtype,
    /// How its matrices are stored.
    pub stored: Dtype,
}

/// Runs the teacher in `folder`, called `name`, over the training tokens of `data` and writes what it
/// says of them, as [`write()`] does. Errs where the data are of another tokenizer.
pub fn write_signal(
    name: &str,
    folder: &ModelFolder,
    data: &DataDir,
    working: &Working,
    options: &WriteOptions,
    world: &World,
    progress: &dyn Progress,
) -> Result<Written> {
    let Working { device, dtype, stored } = working;
    let precision = Precision::of(*dtype, device)?;
    check_tokenizer(name, folder, data)?;
    data.train.check_vocab(folder.checked_config()?.vocab_size)?;
    let identity = folder.identity()?;
    let id = TeacherId {
        name: name.to_string(),
        weights: Some(identity.weights),
        function: identity.function,
        revision: folder.revision(),
        dtype: Some(match dtype == stored {
            true => dtype.to_string(),
            false => format!("{dtype}, stored as {stored}"),
        }),
    };
    let model = folder.load(device)?;
    let config = model.config.clone();
    let teacher = Teacher::new(model, &config)?.working_at(precision, *stored)?;
    write(&teacher, id, &data.train, options, world, progress)
}

//! The page of presets.

use super::grouped;
use crate::store::preset::{Init, Preset, Provider, Role, all};

pub(super) fn page() -> String {
    let table = |role: Role, how: &str| {
        let rows: String = all().iter().filter(|p| p.role == role).map(row).collect();
        format!(
            "| name | parameters | blocks x width | heads | context | vocabulary | {how} | licence |\n\
             |---|---:|---|---:|---:|---:|---|---|\n{rows}"
        )
    };
    format!(
        "# Presets

A preset is a name for a model: its shape, and where its weights come from. Each is a TOML file in `teachers/` or
`students/` that shows how its parameters add up. Any folder or Hub id of a model that loads works in place of a preset.

## Teachers

For `--teacher NAME`, and wherever a command takes a MODEL.

{}
## Students

For `--student NAME`. A student that is initialised at random takes its vocabulary from its teacher, or else from the data.
The sizes here hold for the vocabulary beside them; a run shows the true size. A teacher's name works as a student, too: it
means the shape.

{}",
        table(Role::Teacher, "weights"),
        table(Role::Student, "first weights")
    )
}

fn row(preset: &Preset) -> String {
    let shape = &preset.shape;
    let weights = match (&preset.source, &preset.init) {
        (Some(Provider::Hub { repo, .. }), _) => format!("`{repo}`"),
        (Some(Provider::Generated {}), _) => "pretrained here".into(),
        (None, Some(Init::TeacherLayers { layers })) => {
            let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
            format!("blocks {} of the teacher", layers.join(", "))
        }
        (None, Some(Init::Checkpoint { path })) => format!("`{path}`"),
        (None, Some(Init::Scratch {}) | None) => "random".into(),
    };
    format!(
        "| `{}` | {} | {} x {} | {} | {} | {} | {weights} | {} |\n",
        preset.name,
        grouped(preset.parameters),
        shape.n_layer,
        grouped(shape.n_embd),
        shape.n_head,
        grouped(shape.n_positions),
        grouped(shape.vocab_size),
        preset.licence
    )
}

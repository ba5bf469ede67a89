//! `signal write | import | mix | verify | inspect | ls`: what a teacher says of a data folder, on disk.

use super::Printer;
use super::model::kept;
use super::number::whole;
use super::seats::{own_device, seated};
use crate::config::{DeviceSpec, Dtype};
use crate::data::prepare::DataDir;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::report::text::{Screen, Table, amount, bytes, count, decimal, percent, quoted};
use crate::runs::plan_behind;
use crate::signal::{
    ImportOptions, Inspected, Kind, Listed, MOST_DRAWS, Mixed, MixedPart, Shard, Verified, Window,
    WriteOptions, Written, import, inspect, list, mix, verify,
};
use crate::store::Where;
use crate::store::hub::HubOptions;
use crate::store::names::{Kind as ModelKind, find};
use crate::train::session::device;
use crate::train::signal::{Working, write_signal};
use crate::train::threads::use_everywhere;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Write what a teacher says of the data to disk, once for every run that learns from it
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SignalArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SignalCommand,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd signal write --teacher gpt2-medium --data data/mine --out signals/medium
  eslm-kd signal write --teacher gpt2-medium --data data/mine --out signals/medium --shard 2/8
  eslm-kd signal import --input said.jsonl.gz --data data/mine --out signals/served --context 1024
  eslm-kd signal mix signals/medium=0.7 signals/served=0.3 --out signals/both
  eslm-kd signal verify signals/medium        exit status 3 if anything is damaged
  eslm-kd signal inspect signals/medium       bytes per token, entropy, ids
  eslm-kd signal ls signals
  eslm-kd distill --signal signals/medium --data data/mine --student gpt2-30m";

/// What the verb can do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum SignalCommand {
    /// Run a teacher over the training tokens of a data folder and write what it says.
    #[command(after_help = EXAMPLES)]
    Write(SignalWriteArgs),
    /// Make a signal of what a served teacher said of the training tokens: the log-probabilities of
    /// vLLM or of an OpenAI-compatible server.
    #[command(after_help = EXAMPLES)]
    Import(SignalImportArgs),
    /// Let several signals of the same data be heard as one, by weight; nothing is copied.
    #[command(after_help = EXAMPLES)]
    Mix(SignalMixArgs),
    /// Read every block against its hash, and name what is damaged.
    #[command(after_help = EXAMPLES)]
    Verify(SignalDirArgs),
    /// Say what a signal is of and what its bytes are for.
    #[command(after_help = EXAMPLES)]
    Inspect(SignalDirArgs),
    /// List the signals in a folder.
    #[command(after_help = EXAMPLES)]
    Ls(SignalLsArgs),
}

/// Arguments of `signal write`.
#[derive(Debug, Clone, clap::Args)]
pub struct SignalWriteArgs {
    /// The teacher: preset, model folder, GGUF file or Hub id.
    #[arg(long, env = "ESLM_KD_TEACHER", hide_env_values = true, value_name = "NAME")]
    pub teacher: String,
    /// Folder written by `prepare`.
    #[arg(long, env = "ESLM_KD_DATA", hide_env_values = true, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder of the signal; the same command goes on with what is there of it.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What a position holds: sampled=N draws (in planes with sampled=8+8+16), top-k=N entries, or
    /// none for scores alone.
    #[arg(long, value_name = "KIND", default_value = "sampled=50")]
    pub signal: Asked,
    /// Tokens that the teacher reads at once; students train on as many. Without it, what the
    /// teacher holds, at most 1,024.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub context: Option<u32>,
    /// Tokens by which its windows advance; fewer than the context gives every token left context,
    /// at more cost; without it, the context.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub stride: Option<u32>,
    /// Temperature of the distribution that is drawn from.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f32,
    /// Seed of the draws; a run beside its teacher with this seed draws the same.
    #[arg(long, env = "ESLM_KD_SEED", hide_env_values = true, value_name = "N", default_value_t = 42, value_parser = whole::<u64>(0..=i64::MAX))]
    pub seed: u64,
    /// Write part I of N, counted from 0: parts may be written at once, by processes or machines.
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    pub shard: ShardOf,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(
        long,
        env = "ESLM_KD_DEVICE",
        hide_env_values = true,
        value_name = "DEVICE",
        default_value = "auto"
    )]
    pub device: DeviceSpec,
    /// How the teacher's products are computed and its matrices stored (f32, bf16).
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub dtype: Dtype,
}

/// Arguments of `signal import`.
#[derive(Debug, Clone, clap::Args)]
pub struct SignalImportArgs {
    /// What was said, in the order of the data: JSON lines or Parquet, also .gz and .zst.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub input: Vec<PathBuf>,
    /// Folder written by `prepare`, whose training tokens the teacher read.
    #[arg(long, env = "ESLM_KD_DATA", hide_env_values = true, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder of the signal.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Tokens of the windows that the teacher read, one behind the other; each prompt has one more,
    /// the token that follows. Students train on as many.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub context: u32,
    /// Entries to keep of each position; without it, as many as the first has.
    #[arg(long, value_name = "K", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub top_k: Option<u32>,
    /// What the teacher is called; without it, as the first input.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Ids that the teacher has, where they are more than the data's tokenizer has.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub vocab_size: Option<u32>,
}

/// Arguments of `signal mix`.
#[derive(Debug, Clone, clap::Args)]
pub struct SignalMixArgs {
    /// Folders of signals, each with its weight, a positive number whose share in the sum counts; or
    /// all without, which weighs them alike.
    #[arg(value_name = "DIR[=WEIGHT]", num_args = 1.., required = true)]
    pub signals: Vec<Weighed>,
    /// Folder of the mix, which names the signals and has to be kept beside them.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// A signal's folder.
#[derive(Debug, Clone, clap::Args)]
pub struct SignalDirArgs {
    /// Folder written by `signal write`, `import` or `mix`.
    #[arg(value_name = "DIR")]
    pub signal: PathBuf,
}

/// Arguments of `signal ls`.
#[derive(Debug, Clone, clap::Args)]
pub struct SignalLsArgs {
    /// Where to look; without it, here.
    #[arg(value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

/// A kind as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Draws by plane.
    Sampled(Vec<u32>),
    /// Entries.
    TopK(u32),
    /// Scores.
    None,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong =
            || format!("expected sampled=N, sampled=N+N+..., top-k=N or none, found {text:?}");
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(wrong);
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            Some(("sampled", draws)) => {
                let planes =
                    draws.split('+').map(number).collect::<std::result::Result<Vec<_>, _>>()?;
                let sum: u64 = planes.iter().map(|n| u64::from(*n)).sum();
                if sum > MOST_DRAWS.into() {
                    return Err(format!("{sum} draws; expected at most {MOST_DRAWS}"));
                }
                Ok(Self::Sampled(match planes.as_slice() {
                    [all] => Kind::planes_of(*all),
                    _ => planes,
                }))
            }
            Some(("top-k", k)) => number(k).map(Self::TopK),
            _ => Err(wrong()),
        }
    }
}

/// `DIR` or `DIR=WEIGHT`: what follows the last `=` is a weight if it is a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed(pub PathBuf, pub Option<f64>);

impl FromStr for Weighed {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let split = text.rsplit_once('=').and_then(|(dir, w)| Some((dir, w.parse::<f64>().ok()?)));
        match split {
            Some(("", _)) => Err(format!("expected DIR or DIR=WEIGHT, found {text:?}")),
            Some((dir, weight)) => Ok(Self(dir.into(), Some(weight))),
            None => Ok(Self(text.into(), None)),
        }
    }
}

/// `I/N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardOf(pub Shard);

impl FromStr for ShardOf {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, of)) if index < of && of <= 99_999 => Ok(Self(Shard { index, of })),
            _ => Err(format!("expected I/N with I from 0 to N - 1, as 0/8, found {text:?}")),
        }
    }
}

/// Runs the verb.
pub fn run(args: &SignalArgs, ui: &Printer) -> Result<()> {
    let alone = |work: &dyn Fn() -> Result<()>| ui.world().alone(work);
    match &args.command {
        SignalCommand::Write(args) => {
            let written = written(args, ui)?;
            ui.result(&written, |_| {
                let temperature = (args.signal != Asked::None).then_some(args.temperature);
                written_text(&written, &args.data, &settings(temperature))
            })
        }
        SignalCommand::Import(args) => alone(&|| {
            let written = imported(args, ui)?;
            ui.result(&written, |_| written_text(&written, &args.data, ""))
        }),
        SignalCommand::Mix(args) => alone(&|| {
            let made = mixed(args)?;
            ui.result(&made, |_| mixed_text(&made))
        }),
        SignalCommand::Verify(args) => alone(&|| {
            let found = verify(&args.signal, ui)?;
            ui.result(&found, |_| verified_text(&found))?;
            complaint(&found).map_or(Ok(()), Err)
        }),
        SignalCommand::Inspect(args) => alone(&|| {
            let found = inspect(&args.signal, ui)?;
            ui.result(&found, |screen| inspected_text(&found, screen))
        }),
        SignalCommand::Ls(args) => alone(&|| {
            if !args.dir.is_dir() {
                return Err(Error::data(format!("{}: expected a folder", args.dir.display())));
            }
            let found = list(&args.dir)?;
            ui.result(&found, |screen| list_text(&found, &args.dir, screen))
        }),
    }
}

/// `signal write` without its printing.
pub fn written(args: &SignalWriteArgs, ui: &Printer) -> Result<Written> {
    let world = ui.world();
    let seat = seated(0, ui)?;
    if !(args.temperature.is_finite() && args.temperature >= 1e-3) {
        return Err(Error::usage(format!(
            "--temperature: expected at least 0.001, found {}",
            args.temperature
        )));
    }
    let data = DataDir::open(&args.data)?;
    let hub = HubOptions::from_env(ui.offline());
    let at = Where { hub: &hub, progress: ui };
    let device = device(own_device(args.device, seat))?;
    let folder = world.root_first(|| find(&kept(&args.teacher), ModelKind::Teacher, at))?;
    let shape = folder.checked_config()?;
    let context = args.context.unwrap_or_else(|| shape.n_positions.min(1024) as u32);
    let stride = args.stride.unwrap_or(context);
    if stride > context {
        return Err(Error::usage(format!(
            "--stride {stride} would skip tokens: expected at most --context, {context}"
        )));
    }
    if let Some(trained) = plan_behind(&folder.dir).map(|plan| plan.data.context as u64)
        && trained < u64::from(context)
    {
        ui.note(&format!(
            "note: {} was trained on {} of context and reads {} here; --context {trained} is what it knows",
            args.teacher,
            amount(trained, "tokens"),
            count(context.into())
        ));
    }
    let kind = match &args.signal {
        Asked::Sampled(planes) => {
            Kind::Sampled { planes: planes.clone(), seed: args.seed, temperature: args.temperature }
        }
        Asked::TopK(k) => Kind::TopK { k: *k, temperature: args.temperature },
        Asked::None => Kind::Scores,
    };
    let window = Window { context, stride };
    if args.shard.0 != Shard::ALL && world.size() > 1 {
        return Err(Error::usage(format!(
            "--shard is for jobs that do not know of each other; {} processes divide the signal by themselves: leave it out",
            world.size()
        )));
    }
    let options = WriteOptions { out: args.out.clone(), kind, window, shard: args.shard.0 };
    let working = Working { device, dtype: args.dtype, stored: args.dtype };
    write_signal(&args.teacher, &folder, &data, &working, &options, world, ui)
}

/// `signal import` without its printing.
pub fn imported(args: &SignalImportArgs, ui: &Printer) -> Result<Written> {
    use_everywhere(0)?;
    let data = DataDir::open(&args.data)?;
    let first = args.input.first().and_then(|path| path.file_name()).unwrap_or_default();
    let options = ImportOptions {
        inputs: args.input.clone(),
        out: args.out.clone(),
        context: args.context,
        top_k: args.top_k,
        name: args.name.clone().unwrap_or_else(|| first.to_string_lossy().into_owned()),
        vocab_size: args.vocab_size,
    };
    import(&data.train, &options, ui)
}

/// `signal mix` without its printing.
pub fn mixed(args: &SignalMixArgs) -> Result<Mixed> {
    let weighed = args.signals.iter().filter(|signal| signal.1.is_some()).count();
    if let Some(without) = args.signals.iter().find(|signal| signal.1.is_none())
        && weighed > 0
    {
        return Err(Error::usage(format!(
            "{}: expected a weight as the others have, found none; write {}=WEIGHT, or give no weights at all",
            without.0.display(),
            without.0.display()
        )));
    }
    let signals = args.signals.iter().map(|Weighed(dir, w)| (dir.clone(), w.unwrap_or(1.0)));
    mix(&signals.collect::<Vec<_>>(), &args.out)
}

fn mixed_text(made: &Mixed) -> String {
    let kind = &made.header.signal;
    let setting = settings(kind.temperature());
    format!(
        "{}: {kind}, {}\nnext: eslm-kd distill --signal {} --data DIR --student NAME{setting}",
        made.header.teacher.name,
        amount(made.header.positions_in_all(), "tokens"),
        quoted(&made.signal)
    )
}

/// What a run of this signal must set that is not what a run file says by itself.
/// Scores alone have no temperature.
fn settings(temperature: Option<f32>) -> String {
    match temperature {
        None => " --set objective.lambda=0".into(),
        Some(1.0) => String::new(),
        Some(tau) => format!(" --set objective.temperature={tau}"),
    }
}

fn written_text(written: &Written, data: &Path, settings: &str) -> String {
    let speed = match written.computed {
        0 => "it was there already".to_string(),
        n => format!("{} tokens/s", count((n as f64 / written.seconds.max(1e-9)) as u64)),
    };
    let out = quoted(&written.signal);
    let next = match written.complete {
        true => {
            let data = quoted(data);
            format!("next: eslm-kd distill --signal {out} --data {data} --student NAME{settings}")
        }
        false => format!("next: the other shards of {out}, each with its own --shard"),
    };
    format!(
        "{}, {}, {} bytes per token, {speed}\n{next}",
        amount(written.positions, "tokens"),
        bytes(written.bytes),
        decimal(written.bytes_per_token, 1)
    )
}

fn verified_text(found: &Verified) -> String {
    let mut text: String = found.damaged.iter().map(|line| format!("{line}\n")).collect();
    text.extend(found.missing.iter().map(|file| format!("{file}: missing\n")));
    text + &format!(
        "{}: {} of {} read",
        found.signal.display(),
        amount(found.positions, "positions"),
        amount(found.blocks, "blocks")
    )
}

fn complaint(found: &Verified) -> Option<Error> {
    let (damaged, missing) = (found.damaged.len() as u64, found.missing.len() as u64);
    if damaged + missing == 0 {
        return None;
    }
    let counted = [(damaged, "part", "damaged"), (missing, "shard", "missing")];
    let of =
        |(n, unit, what): (u64, &str, &str)| format!("{} {what}", amount(n, &format!("{unit}s")));
    let what: Vec<String> = counted.into_iter().filter(|c| c.0 > 0).map(of).collect();
    let how = if damaged > 0 { "each is named above; without the file, " } else { "" };
    Some(Error::new(
        ErrorKind::Data,
        format!(
            "{}: {}; {how}the command that wrote the signal writes it again, with --shard where it was divided",
            found.signal.display(),
            what.join(", ")
        ),
    ))
}

fn inspected_text(found: &Inspected, screen: &Screen) -> String {
    let header = &found.header;
    let teacher = match &header.teacher.revision {
        Some(revision) => format!("{} ({revision})", header.teacher.name),
        None => header.teacher.name.clone(),
    };
    let line = |name: &str, text: String| format!("{name:<12}{text}\n");
    let part = |part: &MixedPart| {
        line("part", format!("{} of {}", decimal(part.weight, 4), part.signal.display()))
    };
    let mut out = line("teacher", teacher)
        + &found.parts.iter().map(part).collect::<String>()
        + &line("signal", header.signal.to_string())
        + &line("windows", header.window.to_string())
        + &line(
            "positions",
            format!("{} in {}", count(found.positions), amount(found.shards.into(), "shards")),
        )
        + &line("entropy", format!("{:.4} nats, NLL of the data {:.4}", found.entropy, found.nll))
        + &line("hash", found.hash.clone());
    let mut table = Table::new(["bytes per token", ""]);
    for (name, value) in [
        ("all", found.bytes_per_token),
        ("signal", found.row_bytes_per_token),
        ("NLL and entropy", found.scalar_bytes_per_token),
        ("lengths", found.length_bytes_per_token),
        ("headers", found.frame_bytes_per_token),
    ] {
        table.row([name.to_string(), decimal(value, 2)]);
    }
    out += &table.on(screen);
    if !found.histogram.is_empty() {
        let mut table = Table::new(["ids of a position", "positions", "share"]);
        for (upper, positions) in &found.histogram {
            let from = upper / 2 + 1;
            let ids = if from >= *upper { upper.to_string() } else { format!("{from} to {upper}") };
            let share = percent(*positions as f64 / found.positions.max(1) as f64);
            table.row([ids, count(*positions), share]);
        }
        out += &format!("\n\n{}\nmean {} ids", table.on(screen), decimal(found.ids, 2));
    }
    out
}

fn list_text(found: &[Listed], dir: &Path, screen: &Screen) -> String {
    if found.is_empty() {
        return format!("no signal in {}", dir.display());
    }
    let mut table =
        Table::new(["signal", "teacher", "holds", "context", "tokens", "size", "shards"]);
    for one in found {
        let shards = format!("{} of {}", one.shards.0, one.shards.1);
        table.row([
            one.signal.display().to_string(),
            one.teacher.clone(),
            one.damage.clone().unwrap_or_else(|| one.kind.clone()),
            count(one.context.into()),
            count(one.positions),
            bytes(one.bytes),
            shards,
        ]);
    }
    table.on(screen)
}

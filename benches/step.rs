//! One whole training step, by phase: plain, with selection, distilling. Prints a table.
//!
//! `cargo bench --bench step -- [SHAPE] [RUNS] [DTYPE] [--device DEVICE] [--teacher SHAPE] [--rows
//! B] [--only TEXT] [--serve NAME]`, with SHAPE one of `124m` (B 4 x T 256), `14m` (B 8 x T 256, V
//! 8192), `llama-135m` (the preset, B 4 x T 256) and `124m-long` (B 32 x T 1024, for a GPU), and
//! DTYPE one of `f32` and `bf16`. `--only` takes the steps whose name contains TEXT; the teacher's
//! SHAPE is `355m` or `774m`. `cargo bench --bench step -- growth [RUNS]` says how a step's cost
//! grows with B, T, V and the share that is kept.
//!
//! Every step is taken in turn with a plain one, each in a process of its own, so that a ratio is
//! between medians of the same minutes. `--serve` does one step per line on stdin and answers with
//! its seconds: `benches/peers` asks two programs in turn that way.

mod ceilings;

use ceilings::{matmul_ceiling, median};
use eslm_kd::config::{
    self, BackwardMode, DeviceSpec, Dtype, HeadMode, Method, MicroRows, Overrides, Plan, Rho,
    RunFile, Score, Signal,
};
use eslm_kd::data::loader::Batch;
use eslm_kd::data::tokens::{TokenFile, TokenOrigin};
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::ops::gpu;
use eslm_kd::progress::Silent;
use eslm_kd::report::text::{count, decimal};
use eslm_kd::signal::{Kind, Shard, Stored, TeacherId, Window, WriteOptions, write};
use eslm_kd::store::preset;
use eslm_kd::teacher::Teacher;
use eslm_kd::testing::random_batch;
use eslm_kd::train::Trainer;
use eslm_kd::train::events::Phases;
use eslm_kd::train::session::device;
use eslm_kd::world::World;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// A kind of step.
#[derive(Clone, Copy)]
struct Arm {
    name: &'static str,
    alpha: f64,
    score: Score,
    lambda: f64,
    backward: BackwardMode,
    alpha_seq: f64,
    /// Whether the teacher is stored in bf16 where products are f32; where they are bf16, it is.
    narrow_teacher: bool,
    signal: Heard,
}

/// In what form the teacher is heard.
#[derive(Clone, Copy, PartialEq)]
enum Heard {
    /// All of its output, beside the step.
    Dense,
    /// 50 draws, from the disk.
    Sampled,
    /// 64 entries, from the disk.
    TopK,
}

const PLAIN: Arm = Arm {
    name: "plain",
    alpha: 0.0,
    score: Score::Entropy,
    lambda: 0.0,
    backward: BackwardMode::Exact,
    alpha_seq: 0.0,
    narrow_teacher: false,
    signal: Heard::Dense,
};

const fn keep(name: &'static str, alpha: f64, backward: BackwardMode) -> Arm {
    Arm { name, alpha, backward, ..PLAIN }
}

const ARMS: [Arm; 18] = [
    PLAIN,
    keep("keep 0.9, exact", 0.1, BackwardMode::Exact),
    keep("keep 0.5, exact", 0.5, BackwardMode::Exact),
    keep("keep 0.2, exact", 0.8, BackwardMode::Exact),
    keep("keep 0.9, sparse", 0.1, BackwardMode::Sparse),
    keep("keep 0.5, sparse", 0.5, BackwardMode::Sparse),
    keep("keep 0.2, sparse", 0.8, BackwardMode::Sparse),
    keep("sampled, rho 0.5", 0.0, BackwardMode::Sampled),
    keep("keep 0.5, sampled, rho 0.5", 0.5, BackwardMode::Sampled),
    Arm { alpha_seq: 0.25, ..keep("hierarchical 0.25", 0.0, BackwardMode::Exact) },
    Arm { alpha_seq: 0.25, ..keep("hierarchical 0.25, keep 0.5", 0.5, BackwardMode::Exact) },
    Arm { name: "dense KD", lambda: 0.5, ..PLAIN },
    Arm { name: "dense KD, bf16 teacher", lambda: 0.5, narrow_teacher: true, ..PLAIN },
    Arm { name: "stored KD, 50 draws", lambda: 0.5, signal: Heard::Sampled, ..PLAIN },
    Arm { name: "stored KD, top 64", lambda: 0.5, signal: Heard::TopK, ..PLAIN },
    Arm {
        name: "stored ESLM-KD, 50 draws, entropy, keep 0.2",
        alpha: 0.8,
        lambda: 0.5,
        signal: Heard::Sampled,
        ..PLAIN
    },
    Arm { name: "ESLM-KD, entropy, keep 0.2", alpha: 0.8, lambda: 0.5, ..PLAIN },
    Arm { name: "ESLM-KD, kl, keep 0.2", alpha: 0.8, lambda: 0.5, score: Score::Kl, ..PLAIN },
];

/// Shapes of a student and its teacher, and the sequences of a step.
#[derive(Clone)]
struct Scale {
    student: Gpt2Config,
    teacher: Gpt2Config,
    rows: usize,
    context: usize,
    dtype: Dtype,
    device: DeviceSpec,
}

fn main() {
    eslm_kd::allocator::keep_freed_memory(); // as the program does
    let mut words: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments = words.clone();
    let mut option = |name: &str| {
        let at = words.iter().position(|w| w == name)?;
        let value = words.get(at + 1).cloned().unwrap_or_else(|| panic!("{name} wants a value"));
        words.drain(at..at + 2);
        Some(value)
    };
    let (only, serve, rows, of_teacher) =
        (option("--only"), option("--serve"), option("--rows"), option("--teacher"));
    let device: DeviceSpec = option("--device").map_or(DeviceSpec::Cpu, |d| d.parse().unwrap());
    let shape = words.first().map_or("14m", String::as_str);
    let runs: usize = words.get(1).map_or(5, |r| r.parse().expect("RUNS is a number"));
    let dtype = words.get(2).map_or(Dtype::F32, |d| d.parse().unwrap());
    let medium = Gpt2Config::new(50257, 1024, 1024, 24, 16);
    let mut scale = match shape {
        "124m" | "124m-long" => Scale {
            student: Gpt2Config::new(50257, 1024, 768, 12, 12),
            teacher: medium.clone(),
            rows: if shape == "124m" { 4 } else { 32 },
            context: if shape == "124m" { 256 } else { 1024 },
            dtype,
            device,
        },
        "llama-135m" => Scale {
            student: preset::student(shape).expect("a preset").shape.clone(),
            teacher: preset::teacher("smollm2-360m").expect("a preset").shape.clone(),
            rows: 4,
            context: 256,
            dtype,
            device,
        },
        "14m" => Scale {
            student: Gpt2Config::new(8192, 256, 384, 6, 6),
            teacher: Gpt2Config::new(8192, 256, 512, 8, 8),
            rows: 8,
            context: 256,
            dtype,
            device,
        },
        "growth" => small(),
        other => panic!("expected 124m, 124m-long, llama-135m, 14m or growth, found {other}"),
    };
    match of_teacher.as_deref() {
        None => {}
        Some("355m") => scale.teacher = medium,
        Some("774m") => scale.teacher = Gpt2Config::new(50257, 1024, 1280, 36, 20),
        Some(other) => panic!("expected a teacher of 355m or 774m, found {other}"),
    }
    if let Some(rows) = rows {
        scale.rows = rows.parse().expect("--rows takes a number");
    }
    if let Some(name) = serve {
        let arm = ARMS
            .iter()
            .find(|arm| arm.name == name)
            .unwrap_or_else(|| panic!("no step is called {name}"));
        return serve_steps(*arm, &scale);
    }
    if shape == "growth" {
        return growth(runs);
    }
    let ceiling = matmul_ceiling(&open(&scale), dtype);
    println!(
        "{shape}: {} parameters, {} x {} tokens, {runs} runs after one, {dtype} on {device}; products reach {} GFLOP/s",
        count(scale.student.parameters() as u64),
        scale.rows,
        count(scale.context as u64),
        decimal(ceiling, 0),
    );
    println!(
        "{:<28} {:>8} {:>7} {:>8} {:>7} {:>8} {:>6} {:>8}  seconds by phase",
        "step", "median s", "tok/s", "plain s", "ratio", "GFLOP", "peak", "peak MB"
    );
    // AdamW's moments take memory with their first update only.
    let mut plain = Server::start(PLAIN.name, &arguments, 2);
    for arm in
        ARMS.iter().filter(|arm| only.as_ref().is_none_or(|only| arm.name.contains(only.as_str())))
    {
        let mut steps = Server::start(arm.name, &arguments, 2);
        println!("{}", row(*arm, &mut steps, &mut plain, &scale, runs, ceiling));
    }
}

/// Takes steps of `arm` and plain ones in turn.
fn row(
    arm: Arm,
    steps: &mut Server,
    plain: &mut Server,
    scale: &Scale,
    runs: usize,
    ceiling: f64,
) -> String {
    let (mut times, mut of_plain) = (Vec::new(), Vec::new());
    for run in 0..runs {
        if run % 2 == 0 {
            times.push(steps.take(Asked::Time).seconds);
            of_plain.push(plain.take(Asked::Time).seconds);
        } else {
            of_plain.push(plain.take(Asked::Time).seconds);
            times.push(steps.take(Asked::Time).seconds);
        }
    }
    // On a GPU these are steps of their own: to tell phases apart is to wait between them.
    let apart: Vec<Answer> = (0..runs).map(|_| steps.take(Asked::Phases)).collect();
    let Answer { peak, flops, .. } = apart[runs - 1];
    let (seconds, plain) = (median(times), median(of_plain));
    let [forward, scan, teacher, select, head, backward, optimizer] =
        std::array::from_fn(|i| median(apart.iter().map(|a| a.phases[i]).collect()));
    format!(
        "{:<28} {seconds:>8.3} {:>7} {plain:>8.3} {:>7.3} {:>8} {:>5.0}% {:>8}  fwd {forward:.3} scan {scan:.3} teacher {teacher:.3} \
         select {select:.4} head {head:.3} bwd {backward:.3} opt {optimizer:.3}",
        arm.name,
        decimal((scale.rows * scale.context) as f64 / seconds, 0),
        seconds / plain,
        decimal(flops / 1e9, 1),
        100.0 * flops / 1e9 / seconds / ceiling,
        decimal(peak / 1e6, 0),
    )
}

/// This program in another process, taking one kind of step: two trainers in one would share an
/// allocator, which no run does.
struct Server {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What is wanted of a step.
#[derive(Clone, Copy)]
enum Asked {
    Time,
    /// The seconds of each phase by itself.
    Phases,
}

/// What a server said of a step.
struct Answer {
    seconds: f64,
    /// Bytes at the peak so far.
    peak: f64,
    flops: f64,
    phases: [f64; 7],
}

impl Server {
    /// Ready after `warm_up` steps.
    fn start(arm: &str, arguments: &[String], warm_up: usize) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(program);
        command.args(arguments).args(["--serve", arm]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("this program again");
        let asks = process.stdin.take().expect("a pipe");
        let mut answers = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut ready = String::new();
        answers.read_line(&mut ready).expect("an answer");
        assert_eq!(ready.trim(), "ready");
        let mut server = Self { process, asks, answers };
        (0..warm_up).for_each(|_| _ = server.take(Asked::Time));
        server
    }

    fn take(&mut self, asked: Asked) -> Answer {
        let line: &[u8] = match asked {
            Asked::Time => b"\n",
            Asked::Phases => b"phases\n",
        };
        self.asks.write_all(line).expect("a server that listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        let numbers: Vec<f64> =
            answer.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        let &[seconds, peak, flops, ref phases @ ..] = numbers.as_slice() else {
            panic!("an answer of {answer:?}")
        };
        Answer { seconds, peak, flops, phases: phases.try_into().expect("seven phases") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// 4 blocks of width 256 on 8 x 256 tokens of a vocabulary of 8,192.
fn small() -> Scale {
    let shape = Gpt2Config::new(8192, 256, 256, 4, 4);
    Scale {
        student: shape.clone(),
        teacher: shape,
        rows: 8,
        context: 256,
        dtype: Dtype::F32,
        device: DeviceSpec::Cpu,
    }
}

/// Prints seconds of a step as one size at a time doubles, and the exponent that a straight line
/// through their logarithms has.
fn growth(runs: usize) {
    println!(
        "4 blocks of width 256, B 8, T 256, V 8,192, every row kept, but for what varies; {runs} runs after one, medians"
    );
    let with = |change: &dyn Fn(&mut Scale)| {
        let mut scale = small();
        change(&mut scale);
        scale
    };
    let sizes = |sizes: &[usize], set: &dyn Fn(&mut Scale, usize)| {
        sizes.iter().map(|&size| (size as f64, PLAIN, with(&|s| set(s, size)))).collect::<Vec<_>>()
    };
    let shares = |backward: BackwardMode| {
        let arm = |share: f64| (share, Arm { alpha: 1.0 - share, backward, ..PLAIN }, small());
        [0.125, 0.25, 0.5, 0.999].map(arm).to_vec()
    };
    let series = [
        ("B", sizes(&[2, 4, 8, 16], &|s, b| s.rows = b)),
        (
            "T, tokens constant",
            sizes(&[128, 256, 512, 1024], &|s, t| {
                (s.context, s.rows, s.student.n_positions) = (t, 2048 / t, t);
            }),
        ),
        ("V", sizes(&[4096, 8192, 16384, 32768], &|s, v| s.student.vocab_size = v)),
        ("keep, exact", shares(BackwardMode::Exact)),
        ("keep, sparse", shares(BackwardMode::Sparse)),
    ];
    for (name, points) in series {
        let mut measured = Vec::new();
        for (size, arm, scale) in points {
            let mut steps = Steps::new(arm, &scale);
            steps.take();
            measured.push((size, median((0..runs).map(|_| steps.take().0).collect())));
        }
        let shown = |size: f64| if size < 1.0 { size.to_string() } else { count(size as u64) };
        let shown: Vec<String> =
            measured.iter().map(|(size, s)| format!("{}: {s:.3} s", shown(*size))).collect();
        println!("{name:<20} {}  exponent {:.2}", shown.join(", "), exponent(&measured));
    }
}

/// Slope of the least-squares line through the logarithms.
fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / logs.len() as f64;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let (up, down) = logs
        .iter()
        .fold((0.0, 0.0), |(up, down), p| (up + (p.0 - x) * (p.1 - y), down + (p.0 - x).powi(2)));
    up / down
}

/// One step per line on stdin; its seconds, the peak memory so far in bytes, its FLOPs and the
/// seconds of its phases on stdout, which on a GPU are told apart where the line says `phases`.
fn serve_steps(arm: Arm, scale: &Scale) {
    let mut steps = Steps::new(arm, scale);
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        steps.trainer.phases_apart = line.expect("stdin can be read") == "phases";
        let (seconds, Taken { phases: p, flops }) = steps.take();
        println!(
            "{seconds} {} {flops} {} {} {} {} {} {} {}",
            peak_memory(&steps.trainer),
            p.forward,
            p.scan,
            p.teacher,
            p.select,
            p.head,
            p.backward,
            p.optimizer
        );
    }
}

/// A trainer that takes the same step again and again.
struct Steps {
    trainer: Trainer,
    batch: Batch,
    done: u64,
    /// Holds the signal that is read.
    _signal: Option<tempfile::TempDir>,
}

struct Taken {
    phases: Phases,
    flops: f64,
}

impl Steps {
    fn new(arm: Arm, scale: &Scale) -> Self {
        let device = open(scale);
        let model = Gpt2::scratch(scale.student.clone(), 1, &device).unwrap();
        let batch = random_batch(scale.rows, scale.context, scale.student.vocab_size);
        let stored = written(arm.signal, scale);
        let live = arm.lambda > 0.0 && stored.is_none();
        let teacher = live.then(|| {
            Teacher::new(Gpt2::scratch(scale.teacher.clone(), 2, &device).unwrap(), &scale.student)
                .unwrap()
        });
        let signal = stored.as_ref().map(|place| Arc::new(Stored::open(place.path()).unwrap()));
        let trainer = Trainer::new(plan(arm, scale), model, teacher).unwrap().learning_from(signal);
        Self { trainer, batch, done: 0, _signal: stored }
    }

    fn take(&mut self) -> (f64, Taken) {
        let start = Instant::now();
        let report = self.trainer.step(self.done, 0, &self.batch).unwrap();
        device_of(&self.trainer).synchronize().unwrap();
        self.done += 1;
        (
            start.elapsed().as_secs_f64(),
            Taken { phases: report.sums.phases, flops: report.sums.flops.total() },
        )
    }
}

/// What a small teacher without training says of the batch's positions, on disk. It is nowhere sure:
/// hardly a draw falls on the same id as another, so that there is more to read than of a real one.
fn written(signal: Heard, scale: &Scale) -> Option<tempfile::TempDir> {
    let kind = match signal {
        Heard::Dense => return None,
        Heard::Sampled => Kind::Sampled { planes: Kind::planes_of(50), seed: 1, temperature: 1.0 },
        Heard::TopK => Kind::TopK { k: 64, temperature: 1.0 },
    };
    let context = scale.context;
    let shape = Gpt2Config::new(scale.student.vocab_size, context, 32, 1, 2);
    let model = Gpt2::scratch(shape.clone(), 2, &candle_core::Device::Cpu).unwrap();
    let teacher = Teacher::new(model, &shape).unwrap();
    let tokens = vec![0; scale.rows * context + 1];
    let vocab_size = scale.student.vocab_size as u32;
    let origin = TokenOrigin { vocab_size, eot: 0, tokenizer_hash: [0; 32] };
    let tokens = Arc::new(TokenFile::from_tokens(&tokens, origin, 1, 0).unwrap());
    let place = tempfile::tempdir().unwrap();
    let options = WriteOptions {
        out: place.path().to_path_buf(),
        kind,
        window: Window { context: context as u32, stride: context as u32 },
        shard: Shard::ALL,
    };
    let id = TeacherId {
        name: "random".into(),
        weights: None,
        function: None,
        revision: None,
        dtype: None,
    };
    write(&teacher, id, &tokens, &options, &World::SOLO, &Silent).unwrap();
    Some(place)
}

fn open(scale: &Scale) -> candle_core::Device {
    device(scale.device).unwrap()
}

fn device_of(trainer: &Trainer) -> &candle_core::Device {
    trainer.student.params.wte().device()
}

fn plan(arm: Arm, scale: &Scale) -> Plan {
    let file = RunFile::embedded("quickstart").unwrap();
    let mut plan = config::load(Some(&file), &Overrides::default()).unwrap().plan;
    plan.method = Method::Eslm;
    (plan.data.rows, plan.data.context) = (scale.rows, scale.context);
    plan.objective.signal = match arm.signal {
        Heard::Dense => Signal::Dense,
        Heard::Sampled => Signal::Sampled,
        Heard::TopK => Signal::TopK,
    };
    (plan.select.alpha, plan.select.score, plan.objective.lambda) =
        (arm.alpha, arm.score, arm.lambda);
    (plan.select.alpha_seq, plan.select.exit_layer) = (arm.alpha_seq, scale.student.n_layer / 4);
    (plan.select.burn_in, plan.select.ramp) = (0, 0);
    plan.machine.dtype = scale.dtype;
    plan.machine.teacher_dtype = if arm.narrow_teacher { Dtype::Bf16 } else { scale.dtype };
    plan.machine.micro_rows = MicroRows::Rows(scale.rows);
    (plan.machine.head, plan.machine.backward, plan.machine.rho) =
        (HeadMode::Keep, arm.backward, Rho::Share(0.5));
    plan
}

/// The most memory so far, in bytes: of a GPU's tensors, else of the process; 0 where the system
/// does not say.
fn peak_memory(trainer: &Trainer) -> u64 {
    if let Some(memory) = gpu::memory(device_of(trainer)).unwrap() {
        return memory.peak;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

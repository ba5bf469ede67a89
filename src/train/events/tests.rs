use super::*;
use crate::error::Error;
use crate::progress::Progress;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

fn step(step: u64) -> Event {
    Event::Step(StepEvent {
        step,
        loss: 2.5,
        seconds: step as f64,
        kept_share: 0.5,
        ..StepEvent::default()
    })
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_line_per_step_and_validation_with_every_promised_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut sink = Jsonl::create(&path).unwrap();
    let val = ValEvent { step: 0, val_loss: 9.5, tokens: 0, flops: 2.5, seconds: 0.0 };
    sink.event(&Event::Note("not a metric".into())).unwrap();
    sink.event(&Event::Validation(val)).unwrap();
    sink.event(&step(1)).unwrap();
    let lines = lines(&path); // read while the sink is still open: every line is already there
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[0],
        json!({ "step": 0, "val_loss": 9.5, "tokens": 0, "flops": 2.5, "seconds": 0.0 })
    );
    let keys = "step loss full_loss kept alpha var cvar grad_norm lambda temperature lr tokens tokens_per_second flops seconds kept_loss \
                dropped_loss kept_share score_mean easy_share flops_by_part seconds_by_phase";
    for key in keys.split_whitespace() {
        assert!(lines[1].get(key).is_some(), "{key} is missing from {}", lines[1]);
    }
    for key in ["student_forward", "student_backward", "teacher", "scoring"] {
        assert!(lines[1]["flops_by_part"].get(key).is_some(), "{key}");
    }
    for key in ["data", "forward", "scan", "teacher", "select", "head", "backward", "optimizer"] {
        assert!(lines[1]["seconds_by_phase"].get(key).is_some(), "{key}");
    }
    assert_eq!(lines[1]["loss"], 2.5);
}

#[test]
fn numbers_that_are_not_finite_become_null() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut sink = Jsonl::create(&path).unwrap();
    let bad = StepEvent {
        step: 3,
        loss: f64::NAN,
        var: Some(f64::NEG_INFINITY),
        flops: f64::INFINITY,
        flops_by_part: Flops { teacher: f64::INFINITY, ..Flops::default() },
        seconds_by_phase: Phases { data: f64::NAN, ..Phases::default() },
        ..StepEvent::default()
    };
    sink.event(&Event::Step(bad)).unwrap();
    let line = &lines(&path)[0];
    for value in [&line["loss"], &line["var"], &line["flops"], &line["dropped_loss"]] {
        assert!(value.is_null(), "{line}");
    }
    assert!(
        line["flops_by_part"]["teacher"].is_null() && line["seconds_by_phase"]["data"].is_null()
    );
}

#[test]
fn resuming_drops_later_lines_and_the_one_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut sink = Jsonl::create(&path).unwrap();
    for s in 1..=6 {
        sink.event(&step(s)).unwrap();
        sink.event(&Event::Validation(ValEvent { step: s, ..ValEvent::default() })).unwrap();
    }
    drop(sink);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"step\":3,\"lo"); // a crash in the middle of a write
    std::fs::write(&path, text).unwrap();
    let mut sink = Jsonl::resume(&path, 4, Some(3)).unwrap();
    sink.event(&step(5)).unwrap();
    let steps: Vec<u64> = lines(&path).iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(
        steps,
        [1, 1, 2, 2, 3, 3, 4, 5],
        "a validation that the checkpoint does not know of goes"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary is left");

    let fresh = folder.path().join("new").join("metrics.jsonl");
    Jsonl::resume(&fresh, 4, None).unwrap().event(&step(5)).unwrap();
    assert_eq!(lines(&fresh).len(), 1);

    // Nothing was saved yet: everything begins again.
    let mut sink = Jsonl::create(&path).unwrap();
    sink.event(&Event::Validation(ValEvent::default())).unwrap();
    sink.event(&step(1)).unwrap();
    drop(Jsonl::resume(&path, 0, None).unwrap());
    assert!(lines(&path).is_empty());
}

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Progress for Recorder {
    fn start(&self, label: &str, total: Option<u64>, unit: &str) {
        self.0.lock().unwrap().push(format!("start {label} {total:?} {unit}"));
    }
    fn advance(&self, n: u64) {
        self.0.lock().unwrap().push(format!("advance {n}"));
    }
    fn finish(&self) {
        self.0.lock().unwrap().push("finish".into());
    }
    fn finish_with(&self, outcome: &str) {
        self.0.lock().unwrap().push(format!("end {outcome}"));
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

#[test]
fn the_terminal_shows_progress_figures_and_time_left() {
    let recorder = Recorder::default();
    let mut sink = Terminal::new(&recorder, Duration::from_secs(3600));
    let label = "student".to_string();
    sink.event(&Event::RunStarted { label, step: 10, steps: 100, seconds: 10.0 }).unwrap();
    for s in [20, 21, 100] {
        sink.event(&step(s)).unwrap();
    }
    sink.event(&Event::Finished(Summary { step: 100, seconds: 100.0, ..Summary::default() }))
        .unwrap();
    let said = recorder.0.lock().unwrap();
    assert_eq!(said[0], "start student Some(100) steps");
    assert_eq!(said[1..3], ["advance 10", "advance 10"]);
    // 10 steps in 10 seconds of this session, 80 to go.
    assert!(
        said[3].contains("step 20/100")
            && said[3].contains("kept 50.0 %")
            && said[3].ends_with("1 min 20 s left"),
        "{}",
        said[3]
    );
    assert_eq!(said[4..6], ["advance 1", "advance 79"], "step 21 came too soon for a line");
    assert!(said[6].contains("step 100/100") && said[6].ends_with("0.0 s left"));
    assert!(said[7].starts_with("end 100 steps, ") && said[7].ends_with(" in 1 min 40 s"));
    assert_eq!(said.len(), 8, "one line with one time: {said:?}");
}

#[test]
fn a_line_of_figures_fits_the_terminal() {
    #[derive(Default)]
    struct Window(Option<usize>, Mutex<Vec<String>>);
    impl Progress for Window {
        fn start(&self, _: &str, _: Option<u64>, _: &str) {}
        fn advance(&self, _: u64) {}
        fn finish(&self) {}
        fn note(&self, text: &str) {
            self.1.lock().unwrap().push(text.into());
        }
        fn width(&self) -> Option<usize> {
            self.0
        }
        fn left(&self, _: f64) -> bool {
            self.0.is_some()
        }
    }
    let figures = |width| {
        let window = Window(width, Mutex::default());
        let mut sink = Terminal::new(&window, Duration::ZERO);
        let label = "x".to_string();
        let steps = 100_000;
        sink.event(&Event::RunStarted { label, step: 0, steps, seconds: 0.0 }).unwrap();
        let step = StepEvent {
            step: 98_760,
            loss: 10.5,
            full_loss: Some(11.25),
            kept_share: 0.5,
            lr: 1e-3,
            tokens_per_second: 123_456.7,
            seconds: 98_760.0,
            ..StepEvent::default()
        };
        sink.event(&Event::Step(step)).unwrap();
        window.1.into_inner().unwrap().remove(0)
    };
    let whole =
        "step 98,760/100,000  loss 10.5000  full 11.2500  kept 50.0 %  lr 1.00e-3  123,457 tok/s";
    assert_eq!(figures(Some(200)), whole, "the bar has the time that is left");
    for width in [60, 80] {
        let line = figures(Some(width));
        assert!(line.len() <= width && line.starts_with("step 98,760/100,000  loss 10.5000"));
        assert!(line.contains("full 11.2500"), "{line}");
    }
    let piped = figures(None);
    assert!(piped.len() <= 80 && piped.ends_with("20 min 40 s left"), "{piped}");
}

#[test]
fn a_tee_serves_every_sink_and_returns_the_first_failure() {
    struct Failing;
    impl EventSink for Failing {
        fn event(&mut self, _: &Event) -> Result<()> {
            Err(Error::data("full"))
        }
    }
    let recorder = Recorder::default();
    let terminal = Terminal::new(&recorder, Duration::ZERO);
    let mut tee = Tee(vec![Box::new(Null), Box::new(Failing), Box::new(terminal)]);
    assert_eq!(tee.event(&Event::Note("hello".into())).unwrap_err().to_string(), "full");
    assert_eq!(*recorder.0.lock().unwrap(), ["hello"]);
}

//! Costs by hand, and the plans that must cost them.

use super::memory::logit_bytes;
use super::*;
use crate::config::{Overrides, RunFile, load};
use crate::model::Parts;
use crate::model::parts::{Biases, Blocks, Mlp, Norm, Positions, RopeScaling, Rotary, Window};

fn plan(text: &str) -> Plan {
    load(Some(&RunFile { name: "run.toml".into(), text: text.into() }), &Overrides::default())
        .unwrap()
        .plan
}

fn gpt2() -> Gpt2Config {
    Gpt2Config::new(50257, 1024, 768, 12, 12)
}

/// One sequence of 124M at full context, `head = keep`.
const ONE: &str = "method = 'eslm'\n[data]\nrows = 1\n[machine]\nhead = 'keep'\nmicro_rows = 1\n";

#[test]
fn the_blocks_equal_a_count_by_hand() {
    // D 2, F 8, L 1, V 5, one sequence of T 3: matrices 2*6 + 2*2 + 2*8 + 8*2 = 48 multiply-adds
    // per token.
    let cfg = Gpt2Config::new(5, 3, 2, 1, 1);
    // Pairs 1 + 2 + 3 = 6; attention 2 products x D 2 x 6 = 24 multiply-adds.
    assert_eq!(trunk_forward(&cfg, 1, 3), 2 * (3 * 48 + 24));
    assert_eq!(trunk_backward_dense(&cfg, 1, 3), 2 * (2 * 3 * 48 + 60));
    // One kept row: keys and values (8 per token) for 3 rows; 40 for one row; attention for 2 keys
    // on average.
    assert_eq!(trunk_backward_exact(&cfg, 1, 3, 1), 2 * (2 * (3 * 8 + 40) + 5 * 2 * 2));
    assert_eq!(head_forward(&cfg, 3), 2 * 3 * 10);
    assert_eq!(head_backward(&cfg, 2), 2 * 2 * 2 * 10);
}

#[test]
fn shared_keys_and_a_gated_mlp_equal_a_count_by_hand() {
    // D 6, heads 3 of width 4 on one of keys, F 5, T 3: queries 6*12, keys and values 6*8, output
    // 12*6, gate and up 6*10, down 5*6 = 282 multiply-adds per token.
    let parts = Parts {
        n_kv_head: Some(1),
        head_dim: Some(4),
        positions: Positions::Rotary(Rotary::new(1e4, RopeScaling::Default)),
        norm: Norm::Rms,
        mlp: Mlp { gated: true, ..Mlp::default() },
        biases: Biases { qkv: false, output: false, mlp: false },
        ..Parts::default()
    };
    let cfg = Gpt2Config { n_inner: Some(5), parts, ..Gpt2Config::new(5, 3, 6, 1, 3) };
    assert_eq!(cfg.block_elements(ParamKind::is_matrix), 282);
    assert_eq!(cfg.parameters(), 5 * 6 + 282 + 3 * 6, "embedding, block, three norms");
    // Pairs 6; attention 2 products x Q 12 x 6 = 144.
    assert_eq!(trunk_forward(&cfg, 1, 3), 2 * (3 * 282 + 144));
    assert_eq!(trunk_backward_dense(&cfg, 1, 3), 2 * (2 * 3 * 282 + 5 * 12 * 6));
    // One kept row: 48 for keys and values of 3 rows, 234 for one row; attention over 2 keys.
    assert_eq!(trunk_backward_exact(&cfg, 1, 3, 1), 2 * (2 * (3 * 48 + 234) + 5 * 12 * 2));
    let mine = plan("[data]\nrows = 1\ncontext = 3\n[machine]\nmicro_rows = 1\n");
    // Per token: x and mid 2 D, queries and output 2 Q, keys and values 2 K, gate and up, statistics.
    let block = 2 * 6 + 2 * 12 + 8 + 10 + 4;
    assert_eq!(tape_bytes(&cfg, &mine, 3), 4 * 3 * (block + 2 * 6 + 2));
}

#[test]
fn a_window_leaves_keys_out() {
    // T 5, window 2: 1 + 2 + 2 + 2 + 2 = 9 pairs where there were 15; the first block has it alone.
    let parts =
        Parts { window: Some(Window { size: 2, blocks: Blocks::Of(vec![0]) }), ..Parts::default() };
    let whole = Gpt2Config::new(5, 5, 2, 2, 1);
    let cfg = Gpt2Config { parts, ..whole.clone() };
    assert_eq!(trunk_forward(&whole, 3, 5) - trunk_forward(&cfg, 3, 5), 3 * 2 * 2 * 2 * (15 - 9));
    let of = |cfg| trunk_backward_dense(cfg, 3, 5);
    assert_eq!(of(&whole) - of(&cfg), 3 * 2 * 5 * 2 * (15 - 9));
    assert!(trunk_backward_sparse(&cfg, 3, 5, 6) < trunk_backward_sparse(&whole, 3, 5, 6));
    // A window that holds everything costs what none does.
    let parts = Parts { window: Some(Window { size: 5, blocks: Blocks::All }), ..Parts::default() };
    let wide = Gpt2Config { parts, ..whole.clone() };
    assert_eq!(trunk_backward_exact(&wide, 3, 5, 4), trunk_backward_exact(&whole, 3, 5, 4));
}

#[test]
fn a_second_block_is_always_dense() {
    let shape = |layers| Gpt2Config::new(5, 3, 2, layers, 1);
    let extra = trunk_backward_exact(&shape(2), 1, 3, 1) - trunk_backward_exact(&shape(1), 1, 3, 1);
    assert_eq!(extra, trunk_backward_dense(&shape(1), 1, 3));
}

#[test]
fn exact_selection_saves_what_the_mathematics_says() {
    // Published for 124M at T = 1024: 2.2, 11 and 17.6 % of the step at keep 0.9, 0.5 and 0.2.
    let plan = plan(ONE);
    let dense = flops_per_step(&gpt2(), None, &plan, 0.0).total();
    for (alpha, saved) in [(0.1, 2.2), (0.5, 11.0), (0.8, 17.6)] {
        let percent = 100.0 * (1.0 - flops_per_step(&gpt2(), None, &plan, alpha).total() / dense);
        assert!((percent - saved).abs() < 0.6, "alpha {alpha}: {percent:.2} %, expected {saved} %");
    }
}

#[test]
fn heads_cost_what_the_mathematics_says() {
    let keep = plan(ONE);
    let recompute = plan(&ONE.replace("'keep'", "'recompute'"));
    let unit = head_forward(&gpt2(), 1024) as f64;
    let trunk = trunk_forward(&gpt2(), 1, 1024);
    for (k, recomputed) in [(1.0f64, 3.0), (0.5, 1.0 + 3.0 * 0.5)] {
        let head = |plan: &Plan| {
            let f = flops_per_step(&gpt2(), None, plan, 1.0 - k);
            let kept = kept_rows(plan, 1.0 - k);
            (f.total() - (trunk + trunk_backward_exact(&gpt2(), 1, 1024, kept)) as f64) / unit
        };
        assert!((head(&keep) - (1.0 + 2.0 * k)).abs() < 1e-9);
        // With nothing to select every row's gradient is formed from the logits in hand.
        assert!((head(&recompute) - recomputed).abs() < 1e-9);
    }
}

#[test]
fn a_teacher_runs_its_head_only_where_it_is_read() {
    let teacher = Gpt2Config::new(50257, 1024, 1024, 24, 16);
    let rows = |extra: &str, alpha: f64| {
        let plan = plan(&format!("teacher = 't'\n{ONE}{extra}"));
        let f = flops_per_step(&gpt2(), Some(&teacher), &plan, alpha);
        let of = |flops: f64, shape: &Gpt2Config| flops / head_forward(shape, 1) as f64;
        let dropped = f.scoring - head_forward(&gpt2(), 1024 - kept_rows(&plan, alpha)) as f64;
        (of(f.teacher - trunk_forward(&teacher, 1, 1024) as f64, &teacher), of(dropped, &teacher))
    };
    assert_eq!(
        rows("[select]\nscore = 'entropy'\n", 0.5),
        (512.0, 0.0),
        "entropy needs no teacher: kept rows only"
    );
    assert_eq!(rows("[select]\nscore = 'kl'\n", 0.5), (512.0, 512.0));
    assert_eq!(rows("[select]\nscore = 'kl'\n", 0.0), (1024.0, 0.0));
    assert_eq!(rows("[select]\nscore = 'kl'\n[objective]\nlambda = 0\n", 0.5), (512.0, 512.0));
    let silent = |extra: &str, alpha| {
        let plan = plan(&format!("teacher = 't'\n{ONE}{extra}[objective]\nlambda = 0\n"));
        flops_per_step(&gpt2(), Some(&teacher), &plan, alpha).teacher == 0.0
    };
    assert!(
        silent("[select]\nscore = 'entropy'\n", 0.5)
            && silent("[select]\nscore = 'kl'\n", 0.0)
            && !silent("[select]\nscore = 'kl'\n", 0.5)
    );
}

#[test]
fn dense_backward_saves_in_the_head_alone() {
    let plan = plan(&format!("{ONE}backward = 'dense'\n"));
    let at = |alpha| flops_per_step(&gpt2(), None, &plan, alpha).total();
    assert_eq!(at(0.0) - at(0.5), head_backward(&gpt2(), 512) as f64);
}

#[test]
fn fewer_rows_in_every_block_save_what_the_mathematics_says() {
    // One block of D 2, F 8, T 3 and one row with gradient: 48 multiply-adds twice; scores, dP and
    // dQ meet 2 keys on average, dK and dV the row itself.
    let cfg = Gpt2Config::new(5, 3, 2, 1, 1);
    assert_eq!(trunk_backward_sparse(&cfg, 1, 3, 1), 2 * (2 * 48 + 3 * 2 * 2 + 2 * 2));
    assert_eq!(trunk_backward_sparse(&cfg, 1, 3, 3), trunk_backward_dense(&cfg, 1, 3));
    // Keys and values in all blocks, the rest as in the exact backward's last block.
    let two = Gpt2Config::new(5, 3, 2, 2, 1);
    assert_eq!(trunk_backward_sampled(&two, 3, 2, 6), 2 * trunk_backward_exact(&cfg, 1, 3, 1));
    assert_eq!(trunk_backward_sampled(&two, 3, 6, 6), trunk_backward_dense(&two, 1, 3));
    // Half of the keys and values: 2 x 4 multiply-adds twice, of three rows.
    assert_eq!(
        trunk_backward_sampled(&two, 3, 6, 3),
        trunk_backward_dense(&two, 1, 3) - 3 * 2 * 2 * 8
    );
    // 124M at T = 1024: 6.7, 33 and 53 % of the step, up to attention's constant share.
    let dense = flops_per_step(&gpt2(), None, &plan(ONE), 0.0).total();
    let sparse = plan(&format!("{ONE}backward = 'sparse'\n"));
    assert_eq!(flops_per_step(&gpt2(), None, &sparse, 0.0).total(), dense);
    for (alpha, saved) in [(0.1, 6.7), (0.5, 33.0), (0.8, 53.0)] {
        let percent = 100.0 * (1.0 - flops_per_step(&gpt2(), None, &sparse, alpha).total() / dense);
        assert!((percent - saved).abs() < 1.5, "alpha {alpha}: {percent:.2} %, expected {saved} %");
    }
    let sampled = |rho| plan(&format!("{ONE}backward = 'sampled'\nrho = {rho}\n"));
    assert_eq!(flops_per_step(&gpt2(), None, &sampled(1.0), 0.0).total(), dense);
    let half = flops_per_step(&gpt2(), None, &sampled(0.5), 0.0).total() / dense;
    assert!(half < 0.85, "{half}");
}

#[test]
fn a_run_is_the_sum_of_its_steps() {
    let teacher = Gpt2Config::new(50257, 1024, 1024, 24, 16);
    for (lambda, head) in [(0.0, "keep"), (0.5, "keep"), (0.0, "recompute"), (0.5, "recompute")] {
        // Alpha moves by 1/16 per step of the ramp, so that no row is rounded and the mean is
        // exact.
        let text = format!(
            "steps = 20\nteacher = 't'\n[select]\nscore = 'kl'\nalpha = 0.5\nburn_in = 5\nramp = 8\n[objective]\nlambda = {lambda}\n[machine]\nhead = '{head}'"
        );
        let plan = settle(&gpt2(), &plan(&text));
        let at = |step| flops_per_step(&gpt2(), Some(&teacher), &plan, plan.alpha_at(step)).total();
        let sum: f64 = (0..20).map(at).sum();
        let run = flops_of_run(&gpt2(), Some(&teacher), &plan);
        assert!((run - sum).abs() <= 1e-12 * sum, "{lambda} {head}: {run} {sum}");
    }
}

#[test]
fn a_step_whose_lambda_is_0_costs_what_a_run_without_distillation_does() {
    let teacher = Gpt2Config::new(50257, 1024, 1024, 24, 16);
    let of = |objective: &str| {
        let text = format!(
            "steps = 6\nteacher = 't'\n[select]\nscore = 'entropy'\nalpha = 0.5\nburn_in = 0\nramp = 0\n[objective]\n{objective}"
        );
        flops_of_run(&gpt2(), Some(&teacher), &settle(&gpt2(), &plan(&text)))
    };
    let (always, never) = (of("lambda = 0.5"), of("lambda = 0.0"));
    assert!(always > 1.5 * never);
    for ends in ["lambda = 0.5\nlambda_end = 0.0", "lambda = 0.0\nlambda_end = 0.5"] {
        let want = always - (always - never) / 6.0;
        assert!((of(ends) - want).abs() <= 1e-12 * want, "{ends}");
    }
}

#[test]
fn a_mixture_gives_gradient_to_its_share_of_the_dropped_rows() {
    let rows = |weight: f64, alpha: f64| {
        let text = "[data]\nrows = 4\ncontext = 10\n[select]\nrest_rate = 0.3\n";
        gradient_rows(&plan(&format!("{text}cvar_weight = {weight}\n")), alpha.into())
    };
    assert_eq!((rows(1.0, 0.5), rows(0.5, 0.5)), (20, 26));
    assert_eq!((rows(1.0, 0.0), rows(0.5, 0.0)), (40, 40));
}

#[test]
fn kept_rows_round_up_per_pool() {
    let p = plan("[data]\nrows = 3\ncontext = 10\n[machine]\nmicro_rows = 1\n");
    assert_eq!([0.0, 0.1, 0.15, 0.99].map(|a| kept_rows(&p, a)), [30, 27, 27, 3]);
    let p = plan(
        "[data]\nrows = 4\ncontext = 10\n[machine]\nmicro_rows = 2\n[select]\npool = 'micro-batch'\n",
    );
    assert_eq!([0.0, 0.15, 0.99].map(|a| kept_rows(&p, a)), [40, 34, 2]);
}

#[test]
fn mean_keep_is_the_mean_over_the_steps() {
    for text in [
        "burn_in = 3\nramp = 4",
        "ramp = 50",
        "burn_in = 40",
        "burn_in = 0",
        "burn_in = 8\nramp = 30",
    ] {
        let data = "[data]\nrows = 3\ncontext = 7";
        let p = plan(&format!("steps = 20\n{data}\n[select]\nalpha = 0.4\n{text}\n"));
        // Pools of seven positions, of which a share is rounded up.
        let kept = |step: u64| ((1.0 - p.alpha_at(step)) * 7.0 - 1e-9).ceil() / 7.0;
        let mean = (0..20).map(kept).sum::<f64>() / 20.0;
        assert!((mean_keep(&p) - mean).abs() < 1e-12, "{text}: {} {mean}", mean_keep(&p));
    }
}

#[test]
fn settling_fits_the_budgets_and_divides_the_rows() {
    for (text, cfg) in [
        ("", gpt2()),
        ("[data]\nrows = 30\ncontext = 128\n", Gpt2Config::new(2048, 256, 128, 4, 4)),
        ("teacher = 't'\n[data]\nrows = 96\ncontext = 256\n[select]\nscore = 'kl'\n", gpt2()),
    ] {
        let settled = settle(&cfg, &plan(text));
        let MicroRows::Rows(micro) = settled.machine.micro_rows else { panic!("not settled") };
        assert!(settled.data.rows.is_multiple_of(micro));
        assert_eq!(settled.machine.head, HeadMode::Keep);
        let m = memory(&cfg, None, &settled);
        let stored = logit_bytes(&cfg, &settled, micro as u64);
        let budget = Budget::of(settled.machine.device);
        assert!(
            m.activations + stored <= budget.micro_batch && stored <= budget.kept_logits,
            "{m:?}"
        );
        // Settling again changes nothing.
        assert_eq!(settle(&cfg, &settled), settled);
    }
    // 16 sequences of 206 MB of logits are too many to keep.
    let many = plan("[machine]\nmicro_rows = 16\n");
    assert_eq!(settle(&gpt2(), &many).machine.head, HeadMode::Recompute);
    // A GPU has room for more.
    let micro_rows = |device: &str| {
        settle(&gpt2(), &plan(&format!("[data]\nrows = 32\n[machine]\ndevice = '{device}'\n")))
            .machine
            .micro_rows
    };
    assert_eq!((micro_rows("cpu"), micro_rows("cuda")), (MicroRows::Rows(1), MicroRows::Rows(16)));
    // A vocabulary whose logits alone burst the budget still trains, one sequence at a time.
    let wide = Gpt2Config::new(400_000, 1024, 64, 1, 1);
    let settled = settle(&wide, &plan(""));
    assert_eq!(settled.machine.head, HeadMode::Recompute);
}

#[test]
fn the_disk_holds_what_a_run_of_so_many_steps_writes() {
    let weights = 4 * 124_439_808;
    let disk = |steps: &str, more: &str| {
        let disk =
            disk_at_peak(&gpt2(), &plan(&format!("steps = {steps}\n[checkpoint]\n{more}")), 7);
        let one = 3 * weights + 7;
        let model = if disk.with_model { weights + 7 } else { 0 };
        assert_eq!(disk.bytes, disk.checkpoints * one + model, "a tokenizer in each");
        (disk.checkpoints, disk.with_model)
    };
    assert_eq!(disk("60", "every = 500"), (1, true));
    assert_eq!(disk("500", "every = 500"), (1, true), "the last is the one at the end");
    assert_eq!(disk("1000", "every = 500"), (2, true));
    assert_eq!(disk("1001", "every = 500"), (3, false), "an old one goes after the new one stands");
    assert_eq!(disk("9999", "every = 0"), (1, true));
    assert_eq!(disk("9999", "every = 500\nkeep = 1"), (2, false));
    assert_eq!(
        disk("1500", "every = 500\nkeep = 1\nkeep_best = 2\n[eval]\nevery = 500"),
        (3, true)
    );
}

#[test]
fn memory_follows_the_parameters() {
    let p = plan(ONE);
    let m = memory(&gpt2(), None, &p);
    assert_eq!(m.weights, 4 * 124_439_808);
    assert_eq!((m.gradients, m.moments), (m.weights, 2 * m.weights));
    // Stored, and the gradient of 4,096 columns.
    assert_eq!(m.logits, 4 * 1024 * (50257 + 4096));
    // Per token: 12 blocks x (6 x 768 + 3072 + 4) + 2 x 768 + 2 floats.
    assert_eq!(m.activations, 4 * 1024 * (12 * (6 * 768 + 3072 + 4) + 2 * 768 + 2));
    assert_eq!(m.scratch, (4 * 1024 * (4 * 768 + 3 * 3072_u64)).saturating_sub(m.logits));
    assert_eq!(
        m.total(),
        m.weights * 4 + m.logits + m.activations + m.scratch + m.batch + m.program
    );
    // Columns of both, or 256 rows in a burn-in, whichever is more; with nothing selected, 256
    // rows; inputs of 12 blocks, and all of one.
    let with = |settings: &str| memory(&gpt2(), None, &plan(&format!("{ONE}{settings}")));
    let recomputed = memory(&gpt2(), None, &plan(&ONE.replace("keep", "recompute")));
    assert_eq!(recomputed.logits, 4 * 256 * 50257);
    assert_eq!(with("[select]\nalpha = 0\n").logits, 4 * 256 * 50257);
    let again = with("activations = 'recompute'\n");
    assert_eq!(again.activations, 4 * 1024 * (12 * 768 + 6 * 768 + 3072 + 4 + 2 * 768 + 2));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let p = plan("teacher = 'big'\nlayers = [0, 9]\n[data]\ncontext = 64\n");
    let shape = |vocab, positions| Gpt2Config::new(vocab, positions, 8, 2, 2);
    let fails = |s: Gpt2Config, t: Gpt2Config| check_fit(&s, Some(&t), &p).unwrap_err().to_string();
    assert!(fails(shape(10, 32), shape(10, 64)).contains("32 positions of the student gpt2-124m"));
    assert!(fails(shape(10, 64), shape(10, 48)).contains("48 positions of the teacher big"));
    assert!(
        fails(shape(10, 64), shape(11, 64)).contains("the teacher has 11 tokens, the student 10")
    );
    assert!(fails(shape(10, 64), shape(10, 64)).contains("layer 9"));
    // 1.24e8 parameters, 1,024 positions: 1.2e12 operations of a sequence at most.
    let step = |rows: usize| check_fit(&gpt2(), None, &plan(&format!("[data]\nrows = {rows}\n")));
    step(800_000).unwrap();
    assert!(step(900_000).is_err());
    let exit = |layer: usize| {
        let text =
            format!("[select]\nalpha_seq = 0.5\nexit_layer = {layer}\n[machine]\nmicro_rows = 4\n");
        check_fit(&gpt2(), None, &plan(&text))
    };
    assert!(exit(11).is_ok());
    assert!(exit(12).unwrap_err().to_string().contains("leaves no block to save"));
}

#[test]
fn what_no_machine_can_do_is_refused_for_what_it_is() {
    let refused = |shape: &Gpt2Config, text: &str| {
        let plan = plan(text);
        let settled = settle(shape, &plan);
        let needed = memory(shape, None, &settled);
        let fits = check_fit(shape, None, &plan);
        fits.and_then(|()| check_memory(&needed, 64 << 30, &settled)).err().map(|e| e.to_string())
    };
    let says = |said: Option<String>, parts: &[&str]| {
        let said = said.unwrap();
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    };
    // A usual number of tokens, and many that a machine still reads.
    assert_eq!(refused(&gpt2(), "[data]\nrows = 8192\ncontext = 1024\n"), None);
    let wide = Gpt2Config::new(300, 128, 300_000, 2, 100);
    says(
        refused(&wide, "[data]\ncontext = 128\n"),
        &["the student's weights", "this machine has 64.0 GiB", "choose a smaller student"],
    );
    let small = Gpt2Config::new(300, 128, 16, 2, 2);
    says(
        refused(&small, "[data]\nrows = 100_000_000\ncontext = 128\n[machine]\nmicro_rows = 1\n"),
        &["215 GiB of it for the tokens of a step", "lower data.rows"],
    );
    says(
        refused(&gpt2(), "[data]\nrows = 100_000_000\ncontext = 1024\n"),
        &["124,439,808 parameters", "data.rows = 100,000,000", "EFLOP"],
    );
}

#[test]
fn processes_divide_memory_and_spare_a_pass_for_scores() {
    let settled = |text: &str| settle(&gpt2(), &plan(text));
    let of = |text: &str, processes| memory_among(&gpt2(), None, &settled(text), processes);
    let (one, four) = (of("", 1), of("[machine]\ngroups = 4\n", 4));
    assert_eq!((four.weights, four.gradients), (one.weights, one.gradients));
    assert_eq!(four.moments, one.moments / 4);
    assert!(four.batch < one.batch && four.on_the_way > 0 && one.on_the_way == 0);
    // A sum of gradients waits for each doubling of a process's groups.
    for (groups, processes, sums) in [(4, 1, 3), (4, 2, 2), (4, 4, 1), (8, 1, 4), (3, 1, 3)] {
        let text = format!("[data]\nrows = 24\n[machine]\ngroups = {groups}\n");
        assert_eq!(of(&text, processes).gradients, sums * one.gradients, "{groups}, {processes}");
    }
    // Scores take a pass of their own where a process has several micro-batches.
    let step = settled(
        "method = 'eslm'\n[data]\nrows = 8\n[select]\npool = 'step'\nalpha = 0.5\n[machine]\ngroups = 2\nmicro_rows = 4\n",
    );
    let [one, two] = [1, 2].map(|n| flops_per_step_among(&gpt2(), None, &step, step.level(), n));
    let forward = trunk_forward(&gpt2(), 8, 1024) + head_forward(&gpt2(), 8 * 1024);
    assert_eq!(one.scoring - two.scoring, forward as f64);
    assert_eq!(Flops { scoring: 0.0, ..one }, Flops { scoring: 0.0, ..two });
}

use super::*;
use crate::compare::testing::{arm, summary};

/// Plain and four others; "far" did not learn.
fn five() -> Summary {
    summary(vec![
        arm("plain", &[4.50, 4.52, 4.51], 1e9),
        arm("loss", &[4.40, 4.41, 4.43], 0.8e9),
        arm("far", &[9.0, 9.4, 9.2], 1e9),
        arm("random", &[4.60, 4.63, 4.60], 0.8e9),
        arm("entropy", &[4.45, 4.44, 4.47], 0.8e9),
    ])
}

/// Parts of the page from a heading to the next.
fn parts(page: &str) -> Vec<&str> {
    page.split("<h2>").collect()
}

#[test]
fn every_table_is_sorted_by_result() {
    let page = page(&five());
    let wanted = ["loss", "entropy", "plain", "random", "far"];
    let mut tables = 0;
    for table in page.split("<tbody>").skip(1) {
        let body = table.split("</tbody>").next().unwrap();
        let rows: Vec<&str> = body.split("<tr>").skip(1).collect();
        let found = rows.iter().map(|row| {
            let head = row.split("</th>").next().unwrap().split("</svg>").nth(1).unwrap();
            head.split('<').next().unwrap().trim()
        });
        let found: Vec<&str> = found.collect();
        let wanted: Vec<&str> = wanted.into_iter().filter(|w| found.contains(w)).collect();
        assert_eq!(found, wanted);
        assert!(found.len() >= 4);
        tables += 1;
    }
    assert_eq!(tables, 4, "results, differences, arms, deciles");
}

#[test]
fn an_arm_has_one_colour_in_every_part() {
    let s = five();
    let page = page(&s);
    for (i, label) in ["plain", "loss", "far", "random", "entropy"].iter().enumerate() {
        let class = format!("k{i}");
        assert_eq!(crate::report::chart::colour_class(s.style(i)), class);
        // Rows of tables, with the picture inside.
        let rows = page.split("<tr>").map(|row| row.split("</tr>").next().unwrap());
        for row in rows.filter(|row| row.contains(&format!("</svg>{label}<"))) {
            for svg in row.split("<svg class=\"").skip(1) {
                let found = svg.split('"').next().unwrap();
                assert!(found.ends_with(&class), "{label}: {found}");
            }
        }
        // Legends and numbers of charts.
        for item in page.split("<li>").filter(|item| item.contains(&format!("</svg>{label}</li>")))
        {
            assert!(item.starts_with(&format!("<svg class=\"key {class}\"")), "{item:.90}");
        }
        let number =
            format!("{{&quot;name&quot;:&quot;{label}&quot;,&quot;key&quot;:&quot;{class}&quot;");
        assert!(page.matches(&number).count() >= 3, "{label}");
        let any = format!("{{&quot;name&quot;:&quot;{label}&quot;,&quot;key&quot;");
        assert_eq!(page.matches(&any).count(), page.matches(&number).count());
    }
    // It does not move when a run is missing, nor with the results.
    let mut fewer = five();
    fewer.arms.remove(1);
    assert_eq!((fewer.style(1), fewer.style(3)), (2, 4));
}

#[test]
fn one_outlier_leaves_room_for_the_others_and_is_marked() {
    let s = five();
    let page = page(&s);
    let results = parts(&page).into_iter().find(|p| p.starts_with("Results")).unwrap();
    assert!(results.contains("4.400 to 4.630"), "the scale of the strips is that of the others");
    let far = results.split("<tr>").find(|r| r.contains("</svg>far<")).unwrap();
    assert!(far.contains("class=\"off full\"") && far.contains("seed 2: 9.4000"), "{far}");
    let near = results.split("<tr>").find(|r| r.contains("</svg>loss<")).unwrap();
    assert!(!near.contains("class=\"off"), "{near}");
    let differences: Vec<_> = s.arms.iter().filter_map(|a| a.to_baseline).collect();
    let reach = results::reach(&differences);
    assert!(reach > 0.1 && reach < 0.5, "{reach}");
    let part = parts(&page).into_iter().find(|p| p.starts_with("Differences")).unwrap();
    let far = part.split("<tr>").find(|r| r.contains("</svg>far<")).unwrap();
    assert!(far.contains("class=\"off full\"") && far.contains("+4.6900"), "{far}");
    // The charts, too: an arrow, and an axis of the others.
    let charts = parts(&page).into_iter().find(|p| p.starts_with("Validation during")).unwrap();
    assert!(charts.contains("far ends at 9.2000"), "{charts:.300}");
    for chart in curves(&s, &groups(&s)[0]) {
        assert!(chart.range.0 > 4.0 && chart.range.1 < 6.5, "{:?}", chart.range);
    }
}

#[test]
fn the_first_line_is_the_verdict_and_names_are_escaped() {
    let mut arms = vec![arm("plain", &[4.5, 4.6], 1e9), arm("loss", &[4.4, 4.6], 1e9)];
    arms[1].arm.label = "<script>x".into();
    arms[1].state.label = "<script>x".into();
    let page = page(&summary(arms));
    let first = page.split("</h1>").nth(1).unwrap();
    assert!(
        first.starts_with("<p class=\"first open\">Use &lt;script&gt;x, but that may be chance: "),
        "{first:.120}"
    );
    assert!(!page.contains("<script>x"));
}

#[test]
fn more_arms_than_colours_share_no_colour_in_a_chart() {
    let many = (0..18).map(|i| arm(&format!("a{i}"), &[5.0 - 0.1 * f64::from(i)], 1e9)).collect();
    let s = summary(many);
    let groups = groups(&s);
    assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 4]);
    for group in groups {
        let mut colours: Vec<usize> =
            group.iter().map(|&i| crate::report::chart::colour(s.style(i))).collect();
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), group.len());
    }
}

#[test]
fn the_page_says_why_nothing_was_tested_and_what_was_validated() {
    let of = |plain: &[f64], loss: &[f64]| {
        summary(vec![arm("plain", plain, 1e9), arm("loss", loss, 1e9)])
    };
    let seeds = "at least two seeds of both arms";
    for (s, says, not) in [
        (of(&[4.5], &[4.4]), seeds, "no spread"),
        (of(&[4.5, 4.6], &[4.5, 4.6]), "no spread to test against", seeds),
    ] {
        let page = page(&s);
        assert_eq!(page.matches(says).count(), 2, "above and below the table: {says}");
        assert!(!page.contains(not), "{not}");
        assert!(!page.contains("0.000 to"), "a scale of nothing");
    }
    // 101 tokens, 16 a sequence.
    for (rows, tokens, says) in [
        (3, 0, Some("the first 3 sequences (eval.rows), not all")),
        (3, 60, Some("the first 3 sequences (eval.rows), not all")),
        (200, 60, Some("the first 60 tokens (eval.tokens), not all")),
        (200, 0, None),
        (0, 200, None),
    ] {
        let mut s = of(&[4.5], &[4.4]);
        for arm in &mut s.arms {
            let plan = &mut arm.arm.plan;
            (plan.data.context, plan.eval.stride) = (16, 16);
            (plan.eval.rows, plan.eval.tokens) = (rows, tokens);
        }
        let page = page(&s);
        match says {
            Some(says) => assert!(page.contains(says), "{rows} {tokens}"),
            None => assert!(!page.contains("not all"), "{rows} {tokens}"),
        }
    }
}

#[test]
fn a_difference_says_which_is_subtracted_from_which() {
    let s = summary(vec![
        arm("plain", &[4.50, 4.52, 4.61], 1e9),
        arm("loss", &[4.50, 4.53, 4.57], 1e9),
    ]);
    let page = page(&s);
    assert!(page.contains("The arm's CE minus that of the other"), "{page}");
    assert!(Verdict::of(&s).text.contains("'s loss minus "), "{}", Verdict::of(&s).text);
}

/// Heads that wrap were pushed over one another in a window of 500 px; a table scrolls instead.
#[test]
fn a_table_in_a_narrow_window_is_as_wide_as_it_is() {
    let page = page(&five());
    let narrow = page.split("@media (max-width:640px)").nth(1).unwrap();
    let narrow = narrow.split("@media").next().unwrap();
    assert!(narrow.contains(".wide table{width:max-content}"));
    assert!(!narrow.contains("th.r{white-space:normal}"));
}

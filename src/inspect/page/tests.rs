use super::super::tests::found;
use super::*;
use crate::config::Score;
use std::collections::BTreeSet;

/// The tags of the tokens, and what is inside of them.
fn tokens(page: &str) -> Vec<(String, String)> {
    let text = page.split("<div class=\"text\"").nth(1).unwrap().split("</div>").next().unwrap();
    let spans = text.split("<span ").skip(1).map(|span| {
        let (tag, inside) = span.split_once('>').unwrap();
        (tag.to_string(), inside.trim_end_matches("</span>").to_string())
    });
    spans.collect()
}

#[test]
fn the_page_shows_every_token_once_and_every_level() {
    let found = found(Score::Kl, true);
    let page = page(&found);
    let tokens = tokens(&page);
    assert_eq!(tokens.len(), found.tokens.len());
    let kept = tokens.iter().filter(|(tag, _)| tag.contains(" kept")).count();
    assert_eq!(kept, figures(&found).filter(|f| f.kept).count());
    for level in &found.levels {
        let words = format!(
            "alpha {}: VaR {}, CVaR {}",
            level.alpha,
            fitting(level.var),
            fitting(level.cvar)
        );
        assert!(page.contains(&words), "{words}");
    }
    assert!(page.contains("&lt;") && !page.contains("<four>"), "text is escaped");
    assert!(page.contains("KL(teacher || model)"));
}

#[test]
fn a_token_that_is_markup_stays_text() {
    let mut found = found(Score::Loss, false);
    found.tokens[3].text = "<script>alert(\"1\")</script>".into();
    found.model = "<img src=x>".into();
    let page = page(&found);
    assert!(page.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;"));
    assert_eq!(page.matches("<script>").count(), 1, "that of the page");
    assert!(!page.contains("<img"));
}

#[test]
fn a_character_over_several_tokens_is_shown_once_and_whole() {
    let found = found(Score::Loss, false);
    let tokens = tokens(&page(&found));
    let whole: Vec<&(String, String)> = tokens.iter().filter(|(_, inside)| inside == "✓").collect();
    assert_eq!(whole.len(), 1);
    assert!(whole[0].0.contains("part 1 of 3 of &quot;✓&quot;: \\xE2"), "{}", whole[0].0);
    // The others are there with figures of their own, and with nothing to read.
    let parts: Vec<&(String, String)> =
        tokens.iter().filter(|(tag, _)| tag.contains(" part\"")).collect();
    assert_eq!(parts.len(), 3, "one of ï, two of ✓");
    assert!(parts.iter().all(|(tag, inside)| inside.is_empty() && tag.contains("score ")));
    assert!(
        parts.iter().all(|(tag, _)| tag.contains("data-of=\"ï\"") || tag.contains("data-of=\"✓\""))
    );
    let text: String = tokens.iter().map(|(_, inside)| inside.as_str()).collect();
    assert!(text.contains("naïve geese &amp; &lt;four&gt;"), "{text}");
    assert!(!text.contains("\\x"));
}

#[test]
fn tokens_can_be_reached_by_keys_and_fingers() {
    let page = page(&found(Score::Loss, false));
    let tokens = tokens(&page);
    let stops = tokens.iter().filter(|(tag, _)| tag.contains("tabindex=\"0\"")).count();
    assert_eq!(stops, 1, "one stop of the tab key; the arrows go on from there");
    assert!(tokens.iter().all(|(tag, _)| tag.contains("title=\"id ")), "and without a script");
    assert!(page.contains("<div class=\"detail\" role=\"status\" aria-live=\"polite\" hidden>"));
    for heard in ["'click'", "'keydown'", "ArrowRight", "ArrowDown", "Escape", "pointerType"] {
        assert!(page.contains(heard), "{heard}");
    }
}

#[test]
fn shades_divide_the_tokens_evenly_and_each_has_a_colour() {
    let found = found(Score::Loss, false);
    let scale = Scale::of(&found);
    let mut counts = [0usize; SHADES];
    figures(&found).for_each(|f| counts[scale.shade(f.score)] += 1);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 1, "{counts:?}");
    let page = page(&found);
    for i in 0..SHADES {
        assert!(page.contains(&format!(".s{i}{{background:var(--s{i})}}")));
        assert_eq!(page.matches(&format!("--s{i}:#")).count(), 2, "by day and by night");
    }
}

#[test]
fn a_legend_has_digits_enough() {
    let scale = Scale { bounds: vec![0.00012, 0.00015, 0.0002, 0.0004, 3.0] };
    let names = scale.names();
    let different: BTreeSet<&String> = names.iter().map(|(_, name)| name).collect();
    assert_eq!((names.len(), different.len()), (6, 6), "{names:?}");
    assert_eq!(names[1].1, "0.000120 to 0.000150");
    let plain = Scale { bounds: vec![1.0, 2.0, 3.0, 4.0, 5.0] };
    assert_eq!(plain.names()[1].1, "1.00 to 2.00");
    // Ties: a shade that no token has is not in the legend.
    let ties = Scale { bounds: vec![0.0, 0.0, 0.0, 1.0, 2.0] };
    let names: Vec<String> = ties.names().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["below 0.00", "0.00 to 1.00", "1.00 to 2.00", "2.00 and above"]);
}

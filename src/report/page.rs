//! The skeleton of a self-contained HTML page: one file with its style and its script, nothing
//! fetched; for a screen of any width, light or dark, and for paper.
//!
//! What the script adds is values under a pointer, a finger or the arrow keys; everything else is
//! there without it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// What every page has in common.
const STYLE: &str = concat!(include_str!("chart.css"), include_str!("page.css"));
const SCRIPT: &str = include_str!("page.js");

/// How every page begins, by which an earlier one is known.
pub const BEGINS: &str = "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
                          <meta name=\"generator\" content=\"eslm-kd\">";

/// A whole page. With `refresh` it loads itself again after that many seconds.
pub fn page(title: &str, refresh: Option<u32>, body: &Markup) -> String {
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content="eslm-kd";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(seconds) = refresh { meta http-equiv="refresh" content=(seconds); }
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main { (body) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    whole.into_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_html_means_something_by_is_escaped() {
        let text = page("x < y", None, &html! { p title="\"<b>\"" { "a<script>&" } });
        assert!(text.starts_with(BEGINS), "an earlier page is known by it");
        assert!(text.contains("<title>x &lt; y</title>"));
        assert!(text.contains("<p title=\"&quot;&lt;b&gt;&quot;\">a&lt;script&gt;&amp;</p>"));
    }

    #[test]
    fn a_page_needs_nothing_else_and_knows_both_schemes() {
        let text = page("t", None, &html! {});
        for outside in ["http:", "https:", "url(", "@import", "<link", "src="] {
            assert!(!text.contains(outside), "{outside}");
        }
        assert_eq!(text.matches("<script>").count(), 1);
        assert_eq!(text.matches("</script>").count(), 1, "the script does not end itself");
        assert!(
            text.contains("prefers-color-scheme:dark") && text.contains("content=\"light dark\"")
        );
        // Every colour that the light scheme names has another in the dark one.
        let (light, rest) = STYLE.split_once("@media (prefers-color-scheme:dark)").unwrap();
        let dark = rest.split_once("}}").unwrap().0;
        let names = |text: &str| -> std::collections::BTreeSet<String> {
            let found = text.split("--").skip(1).filter_map(|rest| rest.split_once(':'));
            found.map(|(name, _)| name.to_string()).filter(|n| !n.contains([')', ' '])).collect()
        };
        let root = light.split_once(":root{").unwrap().1.split_once('}').unwrap().0;
        assert_eq!(names(root), names(dark));
    }

    #[test]
    fn a_page_loads_itself_again_only_when_it_is_told() {
        assert!(
            page("t", Some(5), &html! {}).contains("<meta http-equiv=\"refresh\" content=\"5\">")
        );
        assert!(!page("t", None, &html! {}).contains("http-equiv"));
    }
}

//! The skeleton of a self-contained HTML page: no script, nothing fetched, black on white, fit for
//! paper.

/// A whole page: `style` is CSS after the common rules, `body` is HTML.
pub fn page(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{}</title><style>{style}</style></head>\n<body>{body}</body></html>\n",
        escape(title)
    )
}

/// Text inside HTML or SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_html_means_something_by_is_escaped() {
        assert_eq!(escape("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
        assert!(page("x < y", "", "<p>z</p>").contains("<title>x &lt; y</title>"));
    }
}

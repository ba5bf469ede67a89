//! Numbers of flags that are no keys of a run file, read as those of keys are.

use crate::config::number;
use crate::report::text::count;
use std::ops::RangeInclusive;

/// A parser of whole numbers in a range.
pub(super) fn whole<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let found =
            number::whole(text).filter(|n| range.contains(n)).and_then(|n| T::try_from(n).ok());
        found.ok_or_else(|| match *range.end() {
            most if is_larger(text, most) => {
                format!("expected a whole number of at most {}", count(most.unsigned_abs()))
            }
            most if most >= i64::from(u32::MAX) => {
                format!("expected a whole number of at least {}", range.start())
            }
            most => {
                let most = count(most.unsigned_abs());
                format!("expected a whole number between {} and {most}", range.start())
            }
        })
    }
}

/// Whether a text says a whole number above `most`, perhaps one that no integer holds.
fn is_larger(text: &str, most: i64) -> bool {
    let whole = text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    whole
        && number::finite(text).is_some_and(|x| x >= most as f64)
        && number::whole(text).is_none_or(|n| n > most)
}

/// A finite number; what its range is, the verb says.
pub(super) fn finite(text: &str) -> Result<f64, String> {
    number::finite(text).ok_or_else(|| "expected a finite number".to_string())
}

//! Which elements of which parameters a process steps, and so keeps moments of.

use crate::model::{Layout, ParamSpec};
use std::ops::Range;
use std::sync::Arc;

/// Places in each parameter of a layout, ascending. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held(Arc<[Vec<Range<usize>>]>);

impl Held {
    /// Every element.
    pub fn all(layout: &Layout) -> Self {
        let all = |spec: &ParamSpec| std::iter::once(0..spec.elements()).collect();
        Self(layout.entries().iter().map(all).collect())
    }

    /// These places, by parameter; those that touch become one.
    pub(super) fn of(places: Vec<Vec<Range<usize>>>) -> Self {
        let joined = |places: Vec<Range<usize>>| {
            let mut all: Vec<Range<usize>> = Vec::new();
            for place in places {
                match all.last_mut().filter(|last| last.end == place.start) {
                    Some(last) => last.end = place.end,
                    None => all.push(place),
                }
            }
            all
        };
        Self(places.into_iter().map(joined).collect())
    }

    /// Of each parameter, in the layout's order.
    pub fn by_parameter(&self) -> impl Iterator<Item = &[Range<usize>]> + Clone {
        self.0.iter().map(Vec::as_slice)
    }
}

/// The number of elements in `places`.
pub(super) fn elements(places: &[Range<usize>]) -> usize {
    places.iter().map(Range::len).sum()
}

/// `places` in pieces of `most` elements.
pub(super) fn cut(places: &[Range<usize>], most: usize) -> impl Iterator<Item = Range<usize>> {
    let one = move |place: &Range<usize>| {
        let end = place.end;
        place.clone().step_by(most).map(move |begin| begin..end.min(begin + most))
    };
    places.iter().flat_map(one)
}

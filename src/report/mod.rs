//! For people: the skeleton of a page, its charts, and numbers in words.

pub mod chart;
pub mod page;
pub mod text;

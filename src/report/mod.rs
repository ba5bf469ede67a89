//! For people: the skeleton of a page, and numbers in words.

pub mod page;
pub mod text;

//! For people: the skeleton of a page, its charts, tables, numbers in words, and what a terminal shows
//! of them.

pub mod chart;
pub mod page;
pub mod screen;
pub mod table;
pub mod text;

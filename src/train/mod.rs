//! Training: the learning rate, what is reported, what is saved.

pub mod schedule;

//! The one integration test binary: each file tests one promise of the crate from outside.

mod bad_numbers;
mod cli;
mod compare;
mod costs;
mod crossings; // every choice with every other, against one slow step in plain tensor operations
mod curves; // the loss curve of each kind of run, pinned
mod decoders; // whole runs of models other than GPT-2
mod docs; // links, quotes, reference pages, and the commands of the book
mod extended;
mod families; // of decoders, against transformers
mod faults;
mod full_disk;
mod hostile;
mod hub;
mod hub_around;
mod hub_binary;
mod hub_places;
mod hub_store;
mod hub_waits;
mod inputs; // pipes, and what merely stands in the place of a file
mod inspect;
mod keys; // every key of a run file does what its line says
mod laws;
mod layers;
mod mistakes; // what a new user gets wrong, and what is said then
mod mixed; // several signals heard as one
mod models;
mod moved;
mod parity;
mod places; // where results go
mod ranks; // several processes, by MPI
mod report;
mod run;
mod run_lists;
mod sampled;
mod selection;
mod signal;
mod sizes;
mod sound; // models whose files are as they were written
mod steps;
mod support;
mod terminal; // what a person sees, by the width of the window

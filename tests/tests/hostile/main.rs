//! Attacks of one app, or of a stranger, on all others: what a neighbour notices, and what the attack
//! leaves behind. Each runs alone, because what is measured is the machine.

mod bodies;
mod compiling;
mod computing;
mod language;
mod memory;
mod neighbour;
mod protocol;
mod stored;
mod wire;
mod words;

//! What is left of an image when the host dies: everything that was flushed, and at worst leaks.

mod fragile;
mod growth;
mod snapshots;
mod writes;

//! The `negsync` command.
fn main() {}

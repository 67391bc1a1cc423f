//! The examples run as they are.

#[path = "../examples/catch_up.rs"]
mod catch_up;
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn catch_up_gets_everything() {
    catch_up::main().unwrap();
}

#[test]
fn embed_answers_a_sync() {
    embed::main().unwrap();
}

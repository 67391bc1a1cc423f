//! The command line in shells and manual pages. `scripts/check-operations` passes the same text to
//! zsh, fish and mandoc.

use crate::support::process::negsync;
use std::io::Write;
use std::process::{Command, Stdio};

/// The words of `--help` that begin with two dashes, and the names of its commands.
fn flags(help: &str) -> Vec<String> {
    let words = help.split(|c: char| c.is_whitespace() || ",[]<>=`".contains(c));
    let mut flags: Vec<String> =
        words.filter(|word| word.starts_with("--")).map(str::to_owned).collect();
    flags.sort();
    flags.dedup();
    flags
}

fn commands() -> Vec<String> {
    let help = negsync(&["--help"], "").stdout;
    let list = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
    let first = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    list.lines().map(first).filter(|name| name != "help").collect()
}

/// Runs a checker of this machine over a text; any output is an error.
fn checked_by(program: &str, arguments: &[&str], text: &str) {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        return eprintln!("*** LEFT OUT: {program} is not installed");
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{program}: {said}");
}

#[test]
fn completions_know_every_command_and_every_flag() {
    let commands = commands();
    assert!(commands.len() >= 9, "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = negsync(&["completions", shell], "");
        assert!(script.status.success(), "{}", script.stderr);
        for command in &commands {
            assert!(script.stdout.contains(command), "{shell}: {command}");
            for flag in flags(&negsync(&[command, "--help"], "").stdout) {
                let written = if shell == "fish" { &flag[2..] } else { &*flag };
                assert!(script.stdout.contains(written), "{shell}: {command} {flag}");
            }
        }
    }
    checked_by("bash", &["-n"], &negsync(&["completions", "bash"], "").stdout);
    let unknown = negsync(&["completions", "ksh"], "");
    assert!(!unknown.status.success() && unknown.stderr.contains("bash"), "{}", unknown.stderr);
}

#[test]
fn there_is_a_page_of_the_manual_for_every_command() {
    for command in commands().iter().map(String::as_str).chain([""]) {
        let arguments: Vec<&str> = ["man", command].into_iter().filter(|w| !w.is_empty()).collect();
        let page = negsync(&arguments, "");
        assert!(page.status.success(), "{}", page.stderr);
        assert!(page.stdout.contains(".SH NAME") && page.stdout.contains(".SH OPTIONS"));
        let help: Vec<&str> = [command, "--help"].into_iter().filter(|w| !w.is_empty()).collect();
        for flag in flags(&negsync(&help, "").stdout) {
            let written = flag.replace('-', "\\-");
            assert!(page.stdout.contains(&written), "{command} {flag}: {}", page.stdout);
        }
        checked_by("groff", &["-man", "-ww", "-z", "-Kutf8"], &page.stdout);
    }
    let unknown = negsync(&["man", "nonsense"], "");
    assert!(!unknown.status.success() && unknown.stderr.contains("nonsense"), "{}", unknown.stderr);
}

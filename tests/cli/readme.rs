//! The README's two relays: its lines are run unchanged, and print the shown output.

use crate::support::http::http;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const README: &str = include_str!("../../README.md");
const PATIENCE: Duration = Duration::from_secs(30);

/// The text between a line and the end of its code block.
fn block<'text>(text: &'text str, begin: &str) -> &'text str {
    let (_, rest) = text.split_once(begin).unwrap();
    rest.split_once("```").unwrap().0
}

/// Each command with its output.
fn steps(transcript: &str) -> Vec<(&str, Vec<&str>)> {
    let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in transcript.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push((command, Vec::new())),
            None => steps.last_mut().unwrap().1.push(line),
        }
    }
    steps
}

/// A line without the part that differs from run to run: its duration in seconds.
fn without_seconds(line: &str) -> String {
    let words = line.split(' ').collect::<Vec<_>>();
    let is_number =
        |place: usize| words.get(place + 1) == Some(&"s") && words[place].parse::<f64>().is_ok();
    let word = |place: usize| if is_number(place) { "?" } else { words[place] };
    (0..words.len()).map(word).collect::<Vec<_>>().join(" ")
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a line in a shell, with the built program in its path.
fn shell(line: &str, folder: &Path) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_negsync"));
    let others = std::env::var("PATH").unwrap();
    let path = format!("{}:{others}", program.parent().unwrap().display());
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder).env("PATH", path);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_relays_of_the_readme_converge_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    std::os::unix::fs::symlink(examples, folder.join("examples")).unwrap();
    let section = README.split_once("## Two relays converge").unwrap().1;
    let transcript = block(section, "```console\n");
    let two = block(section, "```toml\n");
    // The printed address of each relay, and its address here.
    let mut addresses: Vec<(String, String)> = Vec::new();
    let mut relays = Vec::new();
    for (line, printed) in steps(transcript) {
        let here = |text: &str| {
            addresses.iter().fold(text.to_owned(), |text, (said, is)| text.replace(said, is))
        };
        let said = |text: &str| {
            addresses.iter().fold(text.to_owned(), |text, (said, is)| text.replace(is, said))
        };
        std::fs::write(folder.join("two.toml"), here(two)).unwrap();
        let Some(relay) = line.strip_suffix(" &") else {
            let ended = shell(&here(line), folder).output().unwrap();
            let stdout = String::from_utf8(ended.stdout).unwrap();
            let lines: Vec<String> =
                stdout.lines().map(|line| without_seconds(&said(line))).collect();
            let expected: Vec<String> = printed.iter().map(|line| without_seconds(line)).collect();
            assert_eq!(lines, expected, "{line}");
            continue;
        };
        // On any free port, and without a shell between the test and the relay.
        let line = format!("exec {relay} --listen 127.0.0.1:0");
        let mut relay = Killed(shell(&line, folder).spawn().unwrap());
        let mut first = String::new();
        BufReader::new(relay.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = |line: &str| line.trim_end().rsplit_once("ws://").unwrap().1.to_owned();
        let (said, is) = (address(printed[0]), address(&first));
        assert_eq!(first.trim_end().replace(&is, &said), printed[0]);
        addresses.push((said, is));
        relays.push(relay);
    }
    let [_, second] = addresses.as_slice() else { panic!("{addresses:?}") };
    assert!(section.contains(&format!("http://{}/", second.0)), "the page's address");
    let second: SocketAddr = second.1.parse().unwrap();
    let began = Instant::now();
    loop {
        let page = http(second, "GET", "/", &["Accept: text/html"]).await.body;
        if page.contains("● in step") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

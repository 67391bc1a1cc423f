use super::*;
use std::collections::BTreeMap;
use std::path::Path;

const SHIPPED: &str = include_str!("../../relay.toml");

fn keys(value: &toml::Value, path: &str, found: &mut Vec<String>) {
    match value.as_table() {
        Some(table) => {
            table.iter().for_each(|(key, value)| keys(value, &format!("{path}.{key}"), found));
        }
        None => found.push(path.to_owned()),
    }
}

#[test]
fn the_shipped_file_holds_every_key_with_its_default() {
    let shipped = Config::parse(SHIPPED, Path::new("relay.toml")).unwrap();
    assert_eq!(shipped, Config::default());
    let mut in_file = Vec::new();
    keys(&toml::Value::Table(toml::from_str(SHIPPED).unwrap()), "", &mut in_file);
    let mut in_program = Vec::new();
    keys(&toml::Value::try_from(Config::default()).unwrap(), "", &mut in_program);
    in_file.sort();
    in_program.sort();
    assert_eq!(in_file, in_program);
}

#[test]
fn every_key_says_when_a_change_takes_effect() {
    let mut in_program = Vec::new();
    keys(&toml::Value::try_from(Config::default()).unwrap(), "", &mut in_program);
    let in_program: Vec<&str> = in_program.iter().map(|key| &key[1..]).collect();
    let mut described: Vec<String> =
        Config::keys().into_iter().map(|key| key.name).filter(|key| key != "peer").collect();
    described.sort();
    assert_eq!(described, in_program);
}

/// The comment above a key ends with its mark; keys that share a comment share the mark.
#[test]
fn the_shipped_file_says_of_every_key_when_a_change_takes_effect() {
    let (mut section, mut comment, mut found) = ("", "", BTreeMap::new());
    for line in SHIPPED.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if line.starts_with("# [[peer]]") {
            section = "peer";
        } else if let Some(text) = line.strip_prefix("# ").filter(|text| !is_commented(text)) {
            comment = text;
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            found.insert(format!("{section}.{key}"), comment);
        }
    }
    for ConfigKey { name, takes_effect } in Config::keys() {
        let is_its = |key: &str| key == name || key.starts_with(&format!("{name}."));
        let comments: Vec<_> = found.iter().filter(|(key, _)| is_its(key)).collect();
        assert!(!comments.is_empty(), "{name} is not in relay.toml");
        for (key, comment) in comments {
            assert!(comment.ends_with(takes_effect.mark()), "{key}: {comment}");
        }
    }
}

/// Whether it is a key of the example peer in comments.
fn is_commented(text: &str) -> bool {
    text.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
}

//! The one line by which people pass a key on: `farside-ed25519 BASE64 NAME`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::key::{KeyError, PublicKey};

/// The first word, so that nobody takes it for ssh's.
pub const KIND: &str = "farside-ed25519";
pub const NAME_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLine {
    pub key: PublicKey,
    /// What the machine calls itself; whoever trusts it may call it otherwise.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineError {
    /// Not three words, and the kind.
    Words(usize),
    Kind(String),
    Base64,
    Key(KeyError),
    Name(String),
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(count) => write!(f, "a key line is `{KIND} BASE64 NAME`, three words and not {count}"),
            Self::Kind(word) => write!(f, "a key line begins with {KIND} and not with {word:?}"),
            Self::Base64 => f.write_str("the second word is not base64 of a key; was the line cut?"),
            Self::Key(e) => write!(f, "the second word: {e}"),
            Self::Name(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for LineError {}

/// Whether `name` may name a peer: it becomes a file's name, and is shown in logs and commands.
///
/// # Errors
/// One line that says what a name is.
pub fn check_name(name: &str) -> Result<(), LineError> {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if letters && (1..=NAME_MAX).contains(&name.len()) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_MAX).collect();
    Err(LineError::Name(format!(
        "{shown:?} is no name: 1 to {NAME_MAX} letters, digits, '.', '_' and '-', the first no '.' or '-'"
    )))
}

impl FromStr for KeyLine {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let [kind, base64, name] = words[..] else { return Err(LineError::Words(words.len())) };
        if kind != KIND {
            return Err(LineError::Kind(kind.chars().take(NAME_MAX).collect()));
        }
        let bytes = STANDARD.decode(base64).map_err(|_| LineError::Base64)?;
        let key = PublicKey::from_bytes(&bytes).map_err(LineError::Key)?;
        check_name(name)?;
        Ok(Self { key, name: name.into() })
    }
}

impl fmt::Display for KeyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND} {} {}", STANDARD.encode(self.key.0), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> KeyLine {
        KeyLine { key: PublicKey([7; 32]), name: "dpu".into() }
    }

    #[test]
    fn a_line_is_there_and_back() {
        let text = line().to_string();
        assert_eq!(text, "farside-ed25519 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc= dpu");
        assert_eq!(text.parse(), Ok(line()));
        assert_eq!(format!("  {text}\n").parse(), Ok(line()));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let good = line().to_string();
        for (text, part) in [
            (String::new(), "three words"),
            (good.replace(" dpu", ""), "and not 2"),
            (format!("{good} x"), "and not 4"),
            (good.replace("farside-", "ssh-"), "ssh-ed25519"),
            (good.replace("c= ", "c "), "cut?"),
            (good.replace("Bwc= ", " "), "not 30"),
            (good.replacen("BwcHBwcH", "", 1), "26"),
            (good.replace("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc", &"A".repeat(43)), "proves nothing"),
            (good.replace("dpu", "../x"), "no name"),
            (good.replace("dpu", ".x"), "no name"),
            (good.replace("dpu", "-x"), "no name"),
            (good.replace("dpu", &"x".repeat(65)), "no name"),
        ] {
            let said = text.parse::<KeyLine>().unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn a_name_may_be_as_long_as_a_host_name() {
        assert_eq!(check_name(&"x".repeat(64)), Ok(()));
        assert_eq!(check_name("a.b_c-9"), Ok(()));
        assert!(check_name("").is_err());
    }
}

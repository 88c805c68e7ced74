//! Which variables of the caller's environment a command gets.
//!
//! ```text
//!   a rule for every command          all of them
//!   a rule for some commands          all but those that make a program load something else; with `env`, those it names
//!   a rule that has `args` as well    those that `env` names, plain values of a few (`PLAIN`), and a PATH of its own
//! ```
//!
//! A variable may say what an argument says: TAR_OPTIONS has options in it, GIT_* and PYTHONSTARTUP name programs, others
//! configure loaders, ALSA, Kerberos, GL or apt. Nobody can list them all, so a rule that tells arguments apart hands on
//! only what it names.

use std::fmt;

use super::glob::TextGlob;

/// By these a program is made to load or run something else than itself. A rule that allows some commands and not all
/// would otherwise allow everything to whoever can put a file on this machine.
const LEADING_ASTRAY: [&str; 37] = [
    "BASHOPTS",
    "BASH_ENV",
    "BASH_FUNC_*",
    "CDPATH",
    "ENV",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GIO_EXTRA_MODULES",
    "GLIBC_TUNABLES",
    "GST_PLUGIN_*",
    "GTK_MODULES",
    "GTK_PATH",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "LD_*",
    "LOCALDOMAIN",
    "LOCPATH",
    "LUA_*",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "OPENSSL_*",
    "P11_*",
    "PERL*",
    "PS4",
    "PYTHON*",
    "QEMU_MODULE_DIR",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "RUBY*",
    "SASL_PATH",
    "SHELLOPTS",
    "TCLLIBPATH",
    "TZDIR",
];

/// What a variable's value must be made of.
type Value = fn(&[u8]) -> bool;

/// Variables that a rule with `args` hands on unnamed, while their value is what is said here; and why that is harmless.
/// What is missing on purpose: HOME and XDG_*, because the configuration files there name programs; PATH, because a
/// command finds other programs by it (`SAFE_PATH` takes its place); LANGUAGE, NLSPATH and LOCPATH, because they are
/// paths of translations, which are format strings; USER and LOGNAME, because programs believe them; LISTEN_FDS and
/// NOTIFY_SOCKET, because they say what the command talks to.
const PLAIN: [(&str, Value, &str); 18] = [
    ("LANG", is_word, LOCALE),
    ("LC_ADDRESS", is_word, LOCALE),
    ("LC_ALL", is_word, LOCALE),
    ("LC_COLLATE", is_word, LOCALE),
    ("LC_CTYPE", is_word, LOCALE),
    ("LC_IDENTIFICATION", is_word, LOCALE),
    ("LC_MEASUREMENT", is_word, LOCALE),
    ("LC_MESSAGES", is_word, LOCALE),
    ("LC_MONETARY", is_word, LOCALE),
    ("LC_NAME", is_word, LOCALE),
    ("LC_NUMERIC", is_word, LOCALE),
    ("LC_PAPER", is_word, LOCALE),
    ("LC_TELEPHONE", is_word, LOCALE),
    ("LC_TIME", is_word, LOCALE),
    ("TERM", is_word, "the name of a terminal below this machine's terminfo; a / or a first . would lead out of it"),
    ("TZ", is_zone, "a zone by rule or one name; a path, after a : or not, would be a file of the caller's choice"),
    ("COLUMNS", is_number, "how wide the terminal is"),
    ("LINES", is_number, "how high it is"),
];

const LOCALE: &str = "the name of one of this machine's locales; a / would make it a path";

/// The directories of programs that root alone changes on a usual machine; /usr/local is not one of them everywhere.
const SAFE_PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

fn is_word(value: &[u8]) -> bool {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"_.@+-".contains(b);
    value.first() != Some(&b'.') && value.iter().all(fine)
}

/// `UTC`, `CET-1CEST,M3.5.0,M10.5.0`.
fn is_zone(value: &[u8]) -> bool {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"_.,+-<>".contains(b);
    value.first() != Some(&b'.') && value.iter().all(fine)
}

fn is_number(value: &[u8]) -> bool {
    value.iter().all(u8::is_ascii_digit)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Environment {
    /// All of it: the rule holds no command back either.
    All,
    /// All but what leads a program astray.
    Harmless,
    Named(Vec<TextGlob>),
    /// For a rule with `args`: what `env` names, what is plain, and a safe PATH.
    Plain(Vec<TextGlob>),
}

impl Environment {
    /// Leaves the command what it gets of the caller's environment, `NAME=value` each.
    pub fn narrow(&self, variables: &mut Vec<Vec<u8>>) {
        variables.retain(|variable| self.hands_on(variable));
        let has_path = || variables.iter().any(|variable| variable.starts_with(b"PATH="));
        if matches!(self, Self::Plain(_)) && !has_path() {
            variables.push(SAFE_PATH.into());
        }
    }

    fn hands_on(&self, variable: &[u8]) -> bool {
        let (name, value) = match variable.iter().position(|b| *b == b'=') {
            Some(at) => (&variable[..at], Some(&variable[at + 1..])),
            None => (variable, None),
        };
        let named = |globs: &[TextGlob]| globs.iter().any(|glob| glob.matches(name));
        match self {
            Self::All => true,
            Self::Harmless => !leads_astray(name),
            Self::Named(globs) => named(globs),
            Self::Plain(globs) => named(globs) || value.is_some_and(|value| is_plain(name, value)),
        }
    }
}

fn leads_astray(name: &[u8]) -> bool {
    LEADING_ASTRAY.iter().any(|known| match known.strip_suffix('*') {
        Some(start) => name.starts_with(start.as_bytes()),
        None => name == known.as_bytes(),
    })
}

fn is_plain(name: &[u8], value: &[u8]) -> bool {
    PLAIN.iter().any(|(known, fits, _)| known.as_bytes() == name && fits(value))
}

/// For `farside policy check`.
impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |globs: &[TextGlob]| globs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        match self {
            Self::All => f.write_str("the whole environment"),
            Self::Harmless => f.write_str("the environment without LD_* and its like"),
            Self::Named(globs) if globs.is_empty() => f.write_str("no variable"),
            Self::Named(globs) => write!(f, "the variables that `env` names ({})", list(globs)),
            Self::Plain(globs) => {
                let plain: Vec<&str> = PLAIN.iter().map(|(name, ..)| *name).filter(|n| !n.starts_with("LC_")).collect();
                let named = if globs.is_empty() { String::new() } else { format!("{}, ", list(globs)) };
                write!(f, "{named}plain values of {} LC_*", plain.join(" "))?;
                if globs.iter().any(|glob| glob.matches(b"PATH")) { Ok(()) } else { write!(f, ", and {SAFE_PATH}") }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(names: &[&str]) -> Vec<TextGlob> {
        names.iter().map(|name| TextGlob::parse(name).unwrap()).collect()
    }

    #[test]
    fn variables_that_lead_astray_are_left_out_unless_they_are_named() {
        for (variable, harmless) in [
            ("LD_PRELOAD=/x", false),
            ("PATH=/bin", true),
            ("HOME=", true),
            ("BASH_FUNC_x%%=()", false),
            ("ENV=x", false),
        ] {
            assert_eq!(Environment::Harmless.hands_on(variable.as_bytes()), harmless, "{variable}");
            assert!(Environment::All.hands_on(variable.as_bytes()));
        }
        let named = Environment::Named(globs(&["LD_LIBRARY_PATH"]));
        assert!(
            named.hands_on(b"LD_LIBRARY_PATH=/x") && !named.hands_on(b"LD_PRELOAD=/x") && !named.hands_on(b"PATH=")
        );
    }

    #[test]
    fn beside_arguments_only_named_and_plain_variables_count() {
        let plain = Environment::Plain(globs(&["GIT_DIR"]));
        for (variable, is) in [
            ("GIT_DIR=/x", true),
            ("GIT_SSH=/x", false),
            ("TAR_OPTIONS=--to-command=x", false),
            ("PYTHONSTARTUP=/x", false),
            ("KRB5_CONFIG=/x", false),
            ("HOME=/x", false),
            ("PATH=/x", false),
            ("LANG=de_DE.UTF-8@euro", true),
            ("LANG=../x", false),
            ("LC_ALL=C", true),
            ("LC_ALL=/x", false),
            ("LC_MINE=C", false),
            ("LANGUAGE=de", false),
            ("LANG", false),
            ("TZ=CET-1CEST,M3.5.0,M10.5.0", true),
            ("TZ=:UTC", false),
            ("TZ=/x", false),
            ("TZ=..", false),
            ("TERM=xterm-256color", true),
            ("TERM=x/y", false),
            ("COLUMNS=80", true),
            ("COLUMNS=x", false),
        ] {
            assert_eq!(plain.hands_on(variable.as_bytes()), is, "{variable}");
        }
    }

    #[test]
    fn a_command_without_a_path_of_the_callers_gets_a_safe_one() {
        let narrowed = |environment: Environment| {
            let mut variables = vec![b"PATH=/tmp".to_vec(), b"LANG=C".to_vec()];
            environment.narrow(&mut variables);
            variables.into_iter().map(|v| String::from_utf8(v).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(narrowed(Environment::Plain(Vec::new())), ["LANG=C", SAFE_PATH]);
        assert_eq!(narrowed(Environment::Plain(globs(&["PATH"]))), ["PATH=/tmp", "LANG=C"]);
        assert_eq!(narrowed(Environment::Named(globs(&["LANG"]))), ["LANG=C"]);
    }
}

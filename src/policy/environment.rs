//! Which variables of the caller's environment a command gets.

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Environment {
    /// All of it: the rule holds no command back either.
    All,
    /// All but what leads a program astray.
    Harmless,
    Named(Vec<TextGlob>),
}

impl Environment {
    /// Whether the command gets `NAME=value`.
    pub fn hands_on(&self, variable: &[u8]) -> bool {
        let name = variable.split(|b| *b == b'=').next().unwrap_or(variable);
        match self {
            Self::All => true,
            Self::Harmless => !leads_astray(name),
            Self::Named(globs) => globs.iter().any(|glob| glob.matches(name)),
        }
    }
}

fn leads_astray(name: &[u8]) -> bool {
    LEADING_ASTRAY.iter().any(|known| match known.strip_suffix('*') {
        Some(start) => name.starts_with(start.as_bytes()),
        None => name == known.as_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let named = Environment::Named(vec![TextGlob::parse("LD_LIBRARY_PATH").unwrap()]);
        assert!(
            named.hands_on(b"LD_LIBRARY_PATH=/x") && !named.hands_on(b"LD_PRELOAD=/x") && !named.hands_on(b"PATH=")
        );
    }
}

//! Patterns: of paths, where `*` stays within a component, and of plain text, where it does not.
//!
//! ```text
//!   *    any bytes (of one component)      **   any components, as a component of its own
//!   ?    one byte (not '/')                \x   x itself
//! ```
//!
//! Matched in time length × pattern, whatever the pattern: the other side chooses the text, and perhaps knows the pattern.

use std::fmt;

use crate::limits::PATH_MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    One,
    Any,
}

/// A pattern without components: an argument, the name of a variable, an abstract socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextGlob(Vec<Piece>);

impl TextGlob {
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        if text.len() > PATH_MAX {
            return Err(GlobError::Long);
        }
        let mut pieces = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            pieces.push(match byte {
                b'\\' => Piece::Byte(bytes.next().ok_or(GlobError::Backslash)?),
                b'*' if pieces.last() == Some(&Piece::Any) => return Err(GlobError::Stars),
                b'*' => Piece::Any,
                b'?' => Piece::One,
                b'[' | b']' | b'{' | b'}' => return Err(GlobError::Bracket(char::from(byte))),
                0 => return Err(GlobError::Nul),
                other => Piece::Byte(other),
            });
        }
        Ok(Self(pieces))
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        runs(&self.0, text, |p| *p == Piece::Any, |p, b| *p == Piece::One || *p == Piece::Byte(*b))
    }

    /// What it stands for when it has no wildcard.
    fn literal(&self) -> Option<Vec<u8>> {
        self.0.iter().map(|p| if let Piece::Byte(b) = p { Some(*b) } else { None }).collect()
    }
}

/// As it is written.
impl fmt::Display for TextGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Any => bytes.push(b'*'),
                Piece::One => bytes.push(b'?'),
                Piece::Byte(b) if br"*?\[]{}".contains(b) => bytes.extend([b'\\', *b]),
                Piece::Byte(b) => bytes.push(*b),
            }
        }
        f.write_str(&String::from_utf8_lossy(&bytes))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Name(TextGlob),
    Across,
}

/// A pattern of absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathGlob {
    parts: Vec<Part>,
}

impl PathGlob {
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        let rest = text.strip_prefix('/').ok_or(GlobError::Relative)?;
        let part = |name: &str| match name {
            "" | "." | ".." => Err(GlobError::Component),
            "**" => Ok(Part::Across),
            name => TextGlob::parse(name).map(Part::Name),
        };
        if text.len() > PATH_MAX {
            return Err(GlobError::Long);
        }
        let mut parts: Vec<Part> =
            if rest.is_empty() { Vec::new() } else { rest.split('/').map(part).collect::<Result<_, _>>()? };
        if parts.last() == Some(&Part::Across) {
            // At the end it is what lies below: one component, and any behind it.
            parts.insert(parts.len() - 1, Part::Name(TextGlob(vec![Piece::Any])));
        }
        Ok(Self { parts })
    }

    /// Whether the absolute path is one of them. One with `..`, `.` or an empty component never is. `/a/**` is what lies
    /// below /a, and not /a.
    pub fn matches(&self, path: &[u8]) -> bool {
        let Some(names) = components(path) else { return false };
        runs(&self.parts, &names, |p| *p == Part::Across, |p, n| matches!(p, Part::Name(glob) if glob.matches(n)))
    }

    /// Every absolute path: nothing is held back.
    pub fn is_everything(&self) -> bool {
        let anything = Part::Name(TextGlob(vec![Piece::Any]));
        let names = self.parts.iter().filter(|p| **p != Part::Across).collect::<Vec<_>>();
        names == [&anything] && self.parts.len() > 1
    }

    /// The leading components that are written out, as a path; the pattern with others in their place.
    pub fn fixed(&self) -> Vec<u8> {
        self.leading().into_iter().flat_map(|name| [b"/", &name[..]].concat()).collect()
    }

    /// `None` when `path` is not one as the kernel writes them.
    pub fn with_fixed(&self, path: &[u8]) -> Option<Self> {
        let names = components(path)?;
        let literal = |name: &&[u8]| Part::Name(TextGlob(name.iter().map(|b| Piece::Byte(*b)).collect()));
        let mut parts: Vec<Part> = names.iter().map(literal).collect();
        parts.extend(self.parts[self.leading().len()..].iter().cloned());
        Some(Self { parts })
    }

    fn leading(&self) -> Vec<Vec<u8>> {
        let name = |part: &Part| if let Part::Name(glob) = part { glob.literal() } else { None };
        self.parts.iter().map_while(name).collect()
    }
}

/// The components of an absolute path as the kernel writes it.
pub(super) fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    let rest = path.strip_prefix(b"/")?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let names: Vec<&[u8]> = rest.split(|b| *b == b'/').collect();
    names.iter().all(|n| !matches!(*n, b"" | b"." | b"..")).then_some(names)
}

/// The text against the pattern: when something does not fit, the last `any` takes one more. Going back further never
/// helps, since an earlier `any` could take no more than the last one can.
fn runs<P, T>(pattern: &[P], text: &[T], any: impl Fn(&P) -> bool, fits: impl Fn(&P, &T) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && any(&pattern[p]) {
            back = Some((p, t));
            p += 1;
        } else if p < pattern.len() && fits(&pattern[p], &text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, taken)) = back {
            back = Some((star, taken + 1));
            p = star + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(any)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GlobError {
    Relative,
    Component,
    Stars,
    Backslash,
    Bracket(char),
    Nul,
    Long,
}

impl fmt::Display for GlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative => f.write_str("a path is absolute: begin with /"),
            Self::Component => f.write_str("a path has no empty component, no . and no .."),
            Self::Stars => f.write_str("** stands alone between two /, and there are no more stars than two"),
            Self::Backslash => f.write_str("a \\ stands before the letter that it means"),
            Self::Bracket(c) => write!(f, "{c} has no meaning here: write a rule for each, or \\{c} for the letter"),
            Self::Nul => f.write_str("a NUL"),
            Self::Long => write!(f, "longer than {PATH_MAX} bytes"),
        }
    }
}

impl std::error::Error for GlobError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_its_component() {
        for (pattern, path, is) in [
            ("/usr/bin/qemu-*", "/usr/bin/qemu-kvm", true),
            ("/usr/bin/qemu-*", "/usr/bin/qemu-", true),
            ("/usr/bin/qemu-*", "/usr/bin/qemu-x/y", false),
            ("/usr/bin/qemu-*", "/usr/bin/qemu", false),
            ("/usr/*/x", "/usr/a/x", true),
            ("/usr/*/x", "/usr/a/b/x", false),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a", false),
            ("/a/**", "/ab", false),
            ("/a/**/z", "/a/z", true),
            ("/a/**/z", "/a/b/c/z", true),
            ("/a/**/z", "/a/b/c/zz", false),
            ("/a/**/b/**", "/a/b", false),
            ("/a/**/b/**", "/a/b/c", true),
            ("/a/**/b/**", "/a/x/b", false),
            ("/**", "/x", true),
            ("/**", "/", false),
            ("/", "/", true),
            ("/", "/x", false),
            ("/a?c", "/abc", true),
            ("/a?c", "/a/c", false),
            ("/a\\*", "/a*", true),
            ("/a\\*", "/ab", false),
            ("/**", "/a/../b", false),
            ("/**", "/a//b", false),
            ("/**", "relative", false),
            ("/**", "/a/", false),
        ] {
            assert_eq!(PathGlob::parse(pattern).unwrap().matches(path.as_bytes()), is, "{pattern} {path}");
        }
    }

    #[test]
    fn in_text_a_star_is_anything() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("*", "a/b", true),
            ("LC_*", "LC_ALL", true),
            ("LC_*", "XLC_ALL", false),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xbxa", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(TextGlob::parse(pattern).unwrap().matches(text.as_bytes()), is, "{pattern} {text}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = PathGlob::parse(&format!("/{}b", "*a".repeat(500))).unwrap();
        let across = PathGlob::parse(&format!("{}/b", "/**/*a*a".repeat(200))).unwrap();
        let text = format!("/{}", "a".repeat(4000));
        let started = std::time::Instant::now();
        assert!(!pattern.matches(text.as_bytes()) && !across.matches("/aaa".repeat(1000).as_bytes()));
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_said() {
        for (text, error) in [
            ("usr", GlobError::Relative),
            ("/a/../b", GlobError::Component),
            ("/a//b", GlobError::Component),
            ("/a/", GlobError::Component),
            ("/a**", GlobError::Stars),
            ("/***", GlobError::Stars),
            ("/a\\", GlobError::Backslash),
            ("/[ab]", GlobError::Bracket('[')),
            ("/{a,b}", GlobError::Bracket('{')),
            ("/a\0", GlobError::Nul),
        ] {
            assert_eq!(PathGlob::parse(text).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_out_can_be_another_path() {
        let glob = PathGlob::parse("/var/run/vm-*/**").unwrap();
        assert_eq!(glob.fixed(), b"/var/run");
        let moved = glob.with_fixed(b"/run").unwrap();
        assert!(moved.matches(b"/run/vm-1/x") && !moved.matches(b"/var/run/vm-1/x"));
        assert_eq!(PathGlob::parse("/**").unwrap().fixed(), b"");
    }

    #[test]
    fn everything_is_known_as_such() {
        for (pattern, is) in
            [("/**", true), ("/**/**", true), ("/*", false), ("/*/**", false), ("/a/**", false), ("/", false)]
        {
            assert_eq!(PathGlob::parse(pattern).unwrap().is_everything(), is, "{pattern}");
        }
    }
}

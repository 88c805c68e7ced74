//! Paths as bytes: what is below what. Pure.

/// What of `path` is below `prefix`, with its '/'; empty when they are the same.
pub(super) fn below<'p>(path: &'p [u8], prefix: &[u8]) -> Option<&'p [u8]> {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// `a` and `b` with exactly one '/' between them; `a` alone when `b` is empty or '/'.
pub(super) fn join(a: &[u8], b: &[u8]) -> Vec<u8> {
    let a = a.strip_suffix(b"/").unwrap_or(a);
    let b = b.strip_prefix(b"/").unwrap_or(b);
    if b.is_empty() && !a.is_empty() { a.to_vec() } else { [a, b"/", b].concat() }
}

/// Whether a component is `..`.
pub(super) fn climbs(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').any(|part| part == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_cut_at_whole_components() {
        assert_eq!(below(b"/a/bc", b"/a/b"), None);
        assert_eq!(below(b"/a/b", b"/a/b"), Some(&b""[..]));
        assert_eq!(below(b"/a/b/c", b"/"), Some(&b"/a/b/c"[..]));
        assert_eq!(join(b"/", b"/x"), b"/x");
        assert_eq!(join(b"/src/", b""), b"/src");
        assert_eq!(join(b"/src", b"/"), b"/src");
        assert_eq!(join(b"/", b""), b"/");
        assert_eq!(join(b"", b""), b"/");
    }
}

//! `tcp://HOST:PORT`, as the guide writes addresses, and plain `HOST:PORT`.

/// The environment variable that both ends of rexec take their address from.
pub const CMD_NET_ADDR: &str = "CMD_NET_ADDR";

/// `HOST:PORT` of what was typed.
///
/// # Errors
/// One line that says what is wrong and what would be right.
pub fn parse(text: &str) -> Result<String, String> {
    let bare = match text.split_once("://") {
        None => text,
        Some(("tcp", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{text}: {scheme}:// is not supported; write tcp://HOST:PORT")),
    };
    let Some((host, port)) = bare.rsplit_once(':') else {
        return Err(format!("{text}: no port; write tcp://HOST:PORT"));
    };
    if port.parse::<u16>().is_err() {
        return Err(format!("{text}: {port:?} is no port number (0 to 65535)"));
    }
    let closed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !closed) {
        return Err(format!("{text}: no host; write tcp://HOST:PORT, and an IPv6 address in brackets"));
    }
    Ok(bare.to_owned())
}

/// The address in `CMD_NET_ADDR`; `None` when it is not set.
///
/// # Errors
/// As `parse`, naming the variable.
pub fn from_env() -> Result<Option<String>, String> {
    match std::env::var(CMD_NET_ADDR) {
        Ok(text) => parse(&text).map(Some).map_err(|e| format!("{CMD_NET_ADDR}={e}")),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(e) => Err(format!("{CMD_NET_ADDR}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_the_guide_writes_them() {
        assert_eq!(parse("tcp://192.168.1.1:6666").unwrap(), "192.168.1.1:6666");
        assert_eq!(parse("0.0.0.0:7777").unwrap(), "0.0.0.0:7777");
        assert_eq!(parse("tcp://[::1]:7777").unwrap(), "[::1]:7777");
        assert_eq!(parse("tcp://host.example:1").unwrap(), "host.example:1");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in
            [("tcp://1.2.3.4", "no port"), ("udp://1.2.3.4:5", "udp://"), ("tcp://:5", "no host"), ("a:99999", "99999")]
        {
            let said = parse(text).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
        assert!(parse("tcp://::1:80").is_err());
    }
}

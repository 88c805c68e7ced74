//! Addresses that a peer may come from: one, or a network as `10.0.0.0/8`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    addr: IpAddr,
    bits: u8,
}

impl Network {
    /// An IPv4 address is the same whether it comes as such or mapped into IPv6.
    pub fn holds(&self, ip: IpAddr) -> bool {
        match (self.addr, ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => same(own.to_bits().into(), ip.to_bits().into(), 32 - self.bits),
            (IpAddr::V6(own), IpAddr::V6(ip)) => same(own.to_bits(), ip.to_bits(), 128 - self.bits),
            _ => false,
        }
    }

    /// The address, when it is one alone: it can be dialled.
    pub fn single(&self) -> Option<IpAddr> {
        (self.bits == width(self.addr)).then_some(self.addr)
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn same(a: u128, b: u128, free: u8) -> bool {
    (a ^ b).checked_shr(free.into()).unwrap_or(0) == 0
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address; write 192.168.10.11, fd00::1, or a network as 10.0.0.0/8");
        let (addr, bits) = text.split_once('/').map_or((text, None), |(addr, bits)| (addr, Some(bits)));
        let addr = addr.parse::<IpAddr>().map_err(|_| wrong())?.to_canonical();
        let bits = match bits {
            None => width(addr),
            Some(bits) => bits.parse().ok().filter(|b| *b <= width(addr)).ok_or_else(wrong)?,
        };
        let free = width(addr) - bits;
        let own = match addr {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        if free > 0 && own.trailing_zeros() < free.into() && own != 0 {
            return Err(format!("{text:?} has bits behind its {bits}: write the network's own address"));
        }
        Ok(Self { addr, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(addr) => addr.fmt(f),
            None => write!(f, "{}/{}", self.addr, self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_begins_alike() {
        for (network, addr, is) in [
            ("192.168.10.11", "192.168.10.11", true),
            ("192.168.10.11", "::ffff:192.168.10.11", true),
            ("192.168.10.11", "192.168.10.12", false),
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("fd00::/16", "fd00:1::1", true),
            ("fd00::/16", "fd01::1", false),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.holds(addr.parse().unwrap()), is, "{network} {addr}");
            assert_eq!(network.to_string().parse(), Ok(network));
        }
    }

    #[test]
    fn what_is_no_network_is_said() {
        for text in ["", "host", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/x", "10.0.0.0/", "::1/129", "10.0.0.0/8/8"] {
            let said = text.parse::<Network>().unwrap_err();
            assert!(said.contains(&format!("{text:?}")), "{said}");
        }
    }
}

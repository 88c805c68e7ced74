//! Whose operation has completed: packed into the engine's token.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Wake,
    LinkRecv,
    LinkSend,
    LocalSource,
    LocalSink,
    LocalHangup,
}

/// `index` is the lane's or the port's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) what: What,
    pub(super) pair: usize,
    pub(super) index: usize,
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        assert!(self.pair < 1 << 24 && self.index < 1 << 32, "far fewer pairs and streams than that");
        (self.what as u64) << 56 | (self.pair as u64) << 32 | self.index as u64
    }

    pub(super) fn unpack(v: u64) -> Self {
        let what = match v >> 56 {
            0 => What::Wake,
            1 => What::LinkRecv,
            2 => What::LinkSend,
            3 => What::LocalSource,
            4 => What::LocalSink,
            5 => What::LocalHangup,
            n => unreachable!("no token begins with {n}"),
        };
        let part = |v: u64| usize::try_from(v).expect("64-bit machines");
        Self { what, pair: part(v >> 32 & 0xff_ffff), index: part(v & 0xffff_ffff) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_unpacked_as_it_was_packed() {
        for what in [What::Wake, What::LinkRecv, What::LinkSend, What::LocalSource, What::LocalSink, What::LocalHangup]
        {
            let token = Token { what, pair: 0xab_cdef, index: 0xdead_beef };
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}

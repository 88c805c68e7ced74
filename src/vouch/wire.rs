//! The records between an asker and a daemon.

use std::net::SocketAddr;

use crate::auth::{Binding, PublicKey, VOUCHER_MAX};
use crate::fdpass::Mode;
use crate::limits::FDS_MAX;
use crate::link::{Ends, Judged, Shown};
use crate::wire::codec::{Decoder, Encoder, clip};
use crate::wire::{ProtocolError, WireResult, bad};

const MAGIC: &[u8; 8] = b"farvch1\0";
const COMMAND_MAGIC: &[u8; 8] = b"farcmd1\0";
const ADDR_MAX: usize = 64;
const TEXT_MAX: usize = 1 << 10;
/// What a command's stream begins with: the length of its request.
const FIRST_MAX: usize = 16;
pub(super) const ASK_MAX: usize = 8 + 4 + ADDR_MAX + 4 + FIRST_MAX + 4 + FDS_MAX;
const _: () = assert!(ASK_MAX >= 8 + 32 + 32 + 2 * (4 + ADDR_MAX));
pub(super) const ANSWER_MAX: usize = 8 + 1 + 4 + TEXT_MAX + 4 + VOUCHER_MAX;

/// What a daemon is asked for.
pub(super) enum Ask {
    /// Its word, on a connection whose other end has shown this.
    Word(Shown),
    /// Its session, for a command.
    Carriage(CommandAsk),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct CommandAsk {
    pub(super) to: SocketAddr,
    pub(super) first: Vec<u8>,
    /// Of each fd that came with it.
    pub(super) modes: Vec<Mode>,
}

pub(super) fn encode_command(ask: &CommandAsk) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(COMMAND_MAGIC).bytes(ask.to.to_string().as_bytes()).bytes(&ask.first);
    let modes: Vec<u8> = ask.modes.iter().map(|mode| *mode as u8).collect();
    e.bytes(&modes);
    e.finish()
}

fn decode_command(d: &mut Decoder<'_>) -> WireResult<CommandAsk> {
    let to = addr(d)?;
    let first = d.bytes(FIRST_MAX)?.to_vec();
    let mode = |code: &u8| match *code {
        n if n == Mode::Inherited as u8 => Ok(Mode::Inherited),
        n if n == Mode::Stdin as u8 => Ok(Mode::Stdin),
        n if n == Mode::Output as u8 => Ok(Mode::Output),
        n => Err(ProtocolError(format!("an fd of kind {n}"))),
    };
    let modes = d.bytes(FDS_MAX)?.iter().map(mode).collect::<WireResult<_>>()?;
    Ok(CommandAsk { to, first, modes })
}

/// What the far node has shown.
pub(super) fn encode_ask(shown: &Shown) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(MAGIC).raw(&shown.binding).raw(&shown.key.0);
    e.bytes(shown.ends.here.to_string().as_bytes()).bytes(shown.ends.there.to_string().as_bytes());
    e.finish()
}

pub(super) fn decode_ask(bytes: &[u8]) -> WireResult<Ask> {
    let mut d = Decoder::new("ask of a program", bytes);
    if bytes.starts_with(COMMAND_MAGIC) {
        d.raw(COMMAND_MAGIC.len())?;
        let ask = decode_command(&mut d)?;
        d.end()?;
        return Ok(Ask::Carriage(ask));
    }
    magic(&mut d)?;
    let binding: Binding = d.raw(32)?.try_into().expect("32 bytes were asked");
    let key = PublicKey::from_bytes(d.raw(32)?).map_err(|e| ProtocolError(e.to_string()))?;
    let ends = Ends { here: addr(&mut d)?, there: addr(&mut d)? };
    d.end()?;
    Ok(Ask::Word(Shown { key, ends, binding, dialled: true, role: None }))
}

fn magic(d: &mut Decoder<'_>) -> WireResult<()> {
    if d.raw(MAGIC.len())? != MAGIC {
        bad!("not of this release");
    }
    Ok(())
}

fn addr(d: &mut Decoder<'_>) -> WireResult<SocketAddr> {
    let text = String::from_utf8_lossy(d.bytes(ADDR_MAX)?).into_owned();
    text.parse().map_err(|_| ProtocolError(format!("{text:?} is no address")))
}

/// A yes with a name and a voucher, or why not.
pub(super) fn encode_answer(answer: &Result<Judged, String>) -> Vec<u8> {
    let mut e = Encoder::new();
    let (yes, text, voucher) = match answer {
        Ok(judged) => (1, &judged.name, &judged.voucher[..]),
        Err(why) => (0, why, &[][..]),
    };
    e.raw(MAGIC).u8(yes).bytes(clip(text, TEXT_MAX)).bytes(voucher);
    e.finish()
}

pub(super) fn decode_answer(bytes: &[u8]) -> WireResult<Result<Judged, String>> {
    let mut d = Decoder::new("answer to an ask for a voucher", bytes);
    magic(&mut d)?;
    let yes = d.u8()?;
    let text = String::from_utf8_lossy(d.bytes(TEXT_MAX)?).into_owned();
    let voucher = d.bytes(VOUCHER_MAX)?.to_vec();
    d.end()?;
    Ok(if yes == 1 { Ok(Judged { name: text, voucher }) } else { Err(text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::SecretKey;

    #[test]
    fn what_was_asked_and_answered_arrives_and_no_cut_of_it_does() {
        let (here, there) = ("127.0.0.1:1".parse().unwrap(), "[2001:db8::1]:65535".parse().unwrap());
        let key = SecretKey::generate().public();
        let ask = encode_ask(&Shown { key, ends: Ends { here, there }, binding: [3; 32], dialled: true, role: None });
        assert!(ask.len() <= ASK_MAX);
        let Ok(Ask::Word(got)) = decode_ask(&ask) else { panic!("another ask") };
        assert_eq!((got.key, got.ends, got.binding), (key, Ends { here, there }, [3; 32]));
        let answers = [Ok(Judged { name: "host".into(), voucher: vec![1; VOUCHER_MAX] }), Err("é".repeat(TEXT_MAX))];
        for answer in &answers {
            let bytes = encode_answer(answer);
            assert!(bytes.len() <= ANSWER_MAX);
            assert_eq!(decode_answer(&bytes).unwrap().is_ok(), answer.is_ok());
            assert!(decode_answer(&bytes[..bytes.len() - 1]).is_err());
        }
        assert!((0..ask.len()).all(|cut| decode_ask(&ask[..cut]).is_err()));
    }

    #[test]
    fn a_commands_ask_arrives_and_no_cut_of_it_does() {
        let modes = [Mode::Stdin, Mode::Output, Mode::Inherited].into_iter().cycle().take(FDS_MAX).collect();
        let asked = CommandAsk { to: "[2001:db8::1]:65535".parse().unwrap(), first: vec![1; 4], modes };
        let ask = encode_command(&asked);
        assert!(ask.len() <= ASK_MAX);
        assert!(matches!(decode_ask(&ask), Ok(Ask::Carriage(got)) if got == asked));
        assert!((0..ask.len()).all(|cut| decode_ask(&ask[..cut]).is_err()));
        assert!(decode_ask(&[&ask[..ask.len() - 1], &[Mode::Passed as u8]].concat()).is_err());
    }
}

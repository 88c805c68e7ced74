//! Cuts a link's byte stream into frames, however the bytes arrive.
//!
//! ```text
//!   Head ──16 bytes──▶ Body (control: collected here) ──▶ Head
//!                 └──▶ Data (payload is named, never copied: the caller owns the bytes) ──▶ Head
//! ```

use super::WireResult;
use super::frame::{FrameType, HEADER_LEN, Header};

#[derive(Debug)]
enum State {
    Head,
    Body(Header),
    Data { header: Header, left: usize, first: bool },
}

/// What the first bytes of the input are.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// All of the input is used up.
    More,
    /// A whole frame that is not DATA; the first `used` bytes of the input are done with.
    Control { used: usize, header: Header, body: Vec<u8> },
    /// After `skip` bytes come `take` bytes of DATA payload. `first` and `last`: of the frame.
    Data { skip: usize, take: usize, header: Header, first: bool, last: bool },
}

#[derive(Debug)]
pub struct Parser {
    state: State,
    /// A header, or a control frame's body, as far as it has come.
    part: Vec<u8>,
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Head, part: Vec::with_capacity(HEADER_LEN) }
    }
}

impl Parser {
    /// Looks at `input`; the caller drops what the step says and calls again until `More`.
    ///
    /// # Errors
    /// A header that cannot be; the link must be closed.
    pub fn step(&mut self, input: &[u8]) -> WireResult<Step> {
        let mut used = 0;
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(header) = self.head(input, &mut used)? else { return Ok(Step::More) };
                    self.state = match header.kind {
                        FrameType::Data => State::Data { header, left: header.len as usize, first: true },
                        _ => State::Body(header),
                    };
                }
                State::Body(header) => {
                    let header = *header;
                    let want = header.len as usize - self.part.len();
                    let take = want.min(input.len() - used);
                    self.part.extend_from_slice(&input[used..used + take]);
                    used += take;
                    if take < want {
                        return Ok(Step::More);
                    }
                    self.state = State::Head;
                    return Ok(Step::Control { used, header, body: std::mem::take(&mut self.part) });
                }
                State::Data { header, left, first } => {
                    let take = (*left).min(input.len() - used);
                    let last = take == *left;
                    if take == 0 && !last {
                        return Ok(Step::More);
                    }
                    let step = Step::Data { skip: used, take, header: *header, first: *first, last };
                    *left -= take;
                    *first = false;
                    if last {
                        self.state = State::Head;
                    }
                    return Ok(step);
                }
            }
        }
    }

    /// The link is lost, and the next one begins behind what was given out: what was not is forgotten.
    pub fn rewind(&mut self) {
        self.part.clear();
        if !matches!(self.state, State::Data { first: false, .. }) {
            self.state = State::Head;
        }
    }

    /// Whether the last frame is whole: an end here cuts nothing.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head) && self.part.is_empty()
    }

    /// The next header, or `None` when the input ends inside it.
    fn head(&mut self, input: &[u8], used: &mut usize) -> WireResult<Option<Header>> {
        if self.part.is_empty()
            && let Some(whole) = input[*used..].first_chunk::<HEADER_LEN>()
        {
            *used += HEADER_LEN;
            return Header::decode(whole).map(Some);
        }
        let take = (HEADER_LEN - self.part.len()).min(input.len() - *used);
        self.part.extend_from_slice(&input[*used..*used + take]);
        *used += take;
        let Some(whole) = self.part.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::decode(whole)?;
        self.part.clear();
        Ok(Some(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: FrameType, body: &[u8]) -> Vec<u8> {
        let mut out = Header { len: u32::try_from(body.len()).unwrap(), ..Header::new(kind, 1) }.encode().to_vec();
        out.extend_from_slice(body);
        out
    }

    /// Feeds `bytes` in pieces of `size` and writes down what came out.
    fn run(bytes: &[u8], size: usize) -> Vec<(FrameType, Vec<u8>)> {
        let mut parser = Parser::default();
        let mut out: Vec<(FrameType, Vec<u8>)> = Vec::new();
        for piece in bytes.chunks(size) {
            let mut rest = piece;
            loop {
                match parser.step(rest).unwrap() {
                    Step::More => break,
                    Step::Control { used, header, body } => {
                        out.push((header.kind, body));
                        rest = &rest[used..];
                    }
                    Step::Data { skip, take, header, first, .. } => {
                        if first {
                            out.push((header.kind, Vec::new()));
                        }
                        out.last_mut().unwrap().1.extend_from_slice(&rest[skip..skip + take]);
                        rest = &rest[skip + take..];
                    }
                }
            }
        }
        out
    }

    #[test]
    fn frames_come_out_the_same_however_the_bytes_are_cut() {
        let frames = [
            (FrameType::Open, b"request".to_vec()),
            (FrameType::Data, b"0123456789abcdef0123456789".to_vec()),
            (FrameType::Data, Vec::new()),
            (FrameType::Credit, Vec::new()),
            (FrameType::Recipe, vec![7; 300]),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, body)| frame(*kind, body)).collect();
        for size in 1..=bytes.len() {
            assert_eq!(run(&bytes, size), frames, "in pieces of {size}");
        }
    }

    #[test]
    fn garbage_is_an_error_at_its_first_header() {
        assert!(Parser::default().step(&[0xff; 64]).is_err());
    }
}

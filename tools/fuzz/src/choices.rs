//! A list of bytes as a list of choices: how a fuzzer's input, or a seed's, decides what happens next.
//!
//! No derive and no format of its own: the same few bytes mean the same choice in every release of every crate, so that
//! an input that was kept goes on meaning what it meant.

pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte; 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// Some number below `n`, from as few bytes as can reach it.
    pub fn below(&mut self, n: usize) -> usize {
        let mut value = usize::from(self.byte());
        let mut reach = 256;
        while reach < n {
            value = value << 8 | usize::from(self.byte());
            reach <<= 8;
        }
        value % n.max(1)
    }

    /// One of them; most inputs should not need a long number to reach an interesting one.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }
}

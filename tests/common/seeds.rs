//! Random bytes from a seed: the same everywhere, so that a failure is named by its number.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

/// xorshift64*.
pub struct Seed(u64);

impl Seed {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// At most `n`.
    pub fn up_to(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n as u64 + 1)).expect("n is a usize")
    }

    pub fn number<T: TryFrom<u64>>(&mut self) -> T {
        let shift = 64 - 8 * size_of::<T>();
        T::try_from(self.next() >> shift).unwrap_or_else(|_| unreachable!("as many bits as it has"))
    }

    pub fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.up_to(all.len() - 1)].clone()
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// Runs `promise` for each seed; one that fails is named.
pub fn for_seeds(seeds: std::ops::RangeInclusive<u64>, promise: impl Fn(&mut Seed) + std::panic::RefUnwindSafe) {
    for seed in seeds {
        let failed = std::panic::catch_unwind(|| promise(&mut Seed::new(seed))).is_err();
        assert!(!failed, "seed {seed}, see above");
    }
}

//! What the fuzz target `texts` starts from, here without libFuzzer: each kept input whole, cut, and with bytes of
//! others, from seeds.

#[path = "common/seeds.rs"]
mod seeds;
#[path = "../tools/fuzz/src/texts.rs"]
#[allow(unreachable_pub, reason = "the fuzzer's own")]
mod texts;

use std::path::Path;

use seeds::{Seed, for_seeds};

fn kept() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/fuzz/corpus/texts");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn every_kept_text_and_every_cut_of_it_is_a_value_or_an_error() {
    for input in kept() {
        for len in 0..=input.len() {
            texts::try_text(&input[..len]);
        }
    }
}

#[test]
fn so_is_one_with_parts_of_others_in_it() {
    let kept = kept();
    for_seeds(1..=2000, |seed: &mut Seed| {
        let mut input = seed.one_of(&kept);
        for _ in 0..=seed.up_to(4) {
            let other = seed.one_of(&kept);
            let from = seed.up_to(other.len());
            let part = &other[from..(from + seed.up_to(40)).min(other.len())];
            let at = 1 + seed.up_to(input.len() - 1);
            let end = (at + seed.up_to(20)).min(input.len());
            input.splice(at..end, part.iter().copied());
        }
        texts::try_text(&input);
    });
}

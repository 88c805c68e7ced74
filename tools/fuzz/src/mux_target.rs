//! libFuzzer's target `mux`: the first byte chooses between two honest ends and one that has a hostile peer.
#![no_main]

mod choices;
mod hostile;
mod world;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((which, input)) = input.split_first() else { return };
    if which & 1 == 0 {
        world::run(input);
    } else {
        hostile::run(input);
    }
});

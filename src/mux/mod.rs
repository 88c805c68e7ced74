//! Streams over links: a pure state machine.

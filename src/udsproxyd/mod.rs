//! Unix sockets of one machine, used from the other.

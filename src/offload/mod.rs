//! The rootfs, and bringing the offload up and down.

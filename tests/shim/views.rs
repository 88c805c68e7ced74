//! One socket seen through several paths.

//! near (next)

//! Links between two nodes: how they are dialled and accepted, and the mux that runs over them.

pub mod conn;

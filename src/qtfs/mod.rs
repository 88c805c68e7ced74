//! The services' files: FUSE on the near side, a file server on the far side.

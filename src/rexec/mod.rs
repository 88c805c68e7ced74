//! Remote execution: the stand-in on the near side, the server on the far side.

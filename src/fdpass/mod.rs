//! fds that cross: fd to recipe on the near side, recipe to fd on the far side.

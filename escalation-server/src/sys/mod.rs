//! The kernel, and the only room with `unsafe` in it. Each function is one system call, or a few
//! that make sense only together, under its own name.

pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod notify;
pub(crate) mod process;
pub(crate) mod socket;

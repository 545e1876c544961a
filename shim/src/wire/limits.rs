//! Hard limits of the protocol. A peer that passes one loses its connection.

/// Bytes of one message on the socket; longer requests travel in a memfd.
pub const MAX_INLINE: usize = 64 * 1024;
/// Bytes of a request in a memfd: the kernel's own bound on argv and environment is 6 MiB.
pub const MAX_REQUEST: usize = 8 * 1024 * 1024;
/// Strings in argv, or in the environment.
pub const MAX_STRINGS: usize = 1 << 20;
/// Bytes of the path of an executable (`PATH_MAX`).
pub const MAX_PATH: usize = 4096;
/// Bytes of a denial's reason.
pub const MAX_REASON: usize = 4096;
/// Bytes of a profile that is asked for while a session runs.
pub const MAX_PROFILE: usize = 16 * 1024;
/// Words of a rule that is asked for.
pub const MAX_PREFIX: usize = 64;
/// Functions of the shell's stack that travel with a request.
pub const MAX_FUNCTIONS: usize = 32;
/// Bytes of a job's text, a script's name or a function's name; longer ones are cut.
pub const MAX_TEXT: usize = 4096;
/// Descriptors in one message (`SCM_MAX_FD`, unix(7)).
pub const MAX_FDS: usize = 253;
/// Descriptors handed over for one command.
pub const MAX_HANDOVER: usize = 4096;

/// The protocol by which a process inside asks for its context's request socket: `socket(AF_UNIX,
/// SOCK_SEQPACKET, …)`, answered by the server (seccomp_unotify(2)). No protocol of the kernel's.
pub const REQUEST_PROTOCOL: i32 = 0x504f_5354;

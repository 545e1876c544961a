//! Attacks, one file for each way out. Each is first shown to work where nothing defends, then to fail
//! inside a session.

mod attack;
mod core_pattern;
mod denied;
mod descriptors;
mod devices;
mod escalation;
mod families;
mod files;
mod foreign_calls;
mod git_directory;
mod handles;
mod handover;
mod hard_links;
mod io_uring;
mod leftovers;
mod metadata;
mod namespaces;
mod nodes;
mod planted;
mod predecessors;
mod preload;
mod privileges;
mod proc_files;
mod programs;
mod ptrace;
mod races;
mod rename;
mod repository;
mod served_sockets;
mod setuid;
mod shared_memory;
mod signals;
mod sockets;
mod state;
mod terminal;

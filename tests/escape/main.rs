//! Attacks. Each is first shown to work where nothing defends, then to fail inside a session.

mod denied;
mod escalation;
mod handover;
mod repository;
mod sandbox;
mod served_sockets;

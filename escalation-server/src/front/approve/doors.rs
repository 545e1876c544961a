//! The control sockets of this user's sessions, and what is said over them.

use std::fs::{DirBuilder, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::approval::{Choice, Order, Reply, State};
use crate::session::{Directories, control_directory, operator_token, short_path};
use crate::sys::socket;

/// How long a session may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The sessions that can be spoken to.
pub(super) struct Doors {
    directory: File,
    token: String,
}

impl Doors {
    pub(super) fn find() -> Result<Self, String> {
        let directories = Directories::find()?;
        let path = control_directory(&directories.state);
        let owner =
            directories.state.ancestors().find_map(|path| path.metadata().ok()).map(|found| found.uid());
        let own = owner == Some(geteuid().as_raw());
        // Made by another user, root for one, it would be in its owner's way.
        let may_look = own || (geteuid().is_root() && directories.state.exists());
        if !may_look {
            return Err(format!(
                "{} is not this user's: run this as the one whose sessions it is about (sudo -u USER -H postern approve)",
                directories.state.display()
            ));
        }
        let made = if own {
            directories
                .make_state()
                .and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(&path))
        } else {
            Ok(())
        };
        let directory = made
            .and_then(|()| File::open(&path))
            .map_err(|error| format!("no session can be seen from here: {}: {error}", path.display()))?;
        let token =
            operator_token(&directories.state).map_err(|error| format!("the operator token: {error}"))?;
        Ok(Self { directory, token })
    }

    /// Ids of the sessions.
    pub(super) fn sessions(&self) -> Vec<String> {
        let listed = std::fs::read_dir(short_path(&self.directory, ".")).into_iter().flatten().flatten();
        let mut ids: Vec<String> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        ids
    }

    /// Opens a session's socket and says what is wanted. None if it has ended.
    fn say(&self, session: &str, order: &Order) -> Result<Option<UnixStream>, String> {
        let Ok(mut stream) = UnixStream::connect(short_path(&self.directory, session)) else {
            return Ok(None);
        };
        let server = socket::peer(&stream).map_err(|error| error.to_string())?;
        if server.uid != geteuid().as_raw() && !geteuid().is_root() {
            return Err(format!("the socket of {session} is not this user's: nothing was sent"));
        }
        let line = serde_json::to_string(order).map_err(|error| error.to_string())?;
        Ok(writeln!(stream, "{line}").is_ok().then_some(stream))
    }

    /// A session's state now, and after each change, until it ends. None if it has.
    pub(super) fn watch(&self, session: &str) -> Result<Option<impl Iterator<Item = Reply> + use<>>, String> {
        let order = Order::Watch { token: self.token.clone() };
        Ok(self.say(session, &order)?.map(replies))
    }

    /// What a session says to an order.
    fn ask(&self, session: &str, order: &Order) -> Result<Option<Reply>, String> {
        let Some(stream) = self.say(session, order)? else { return Ok(None) };
        // One that is stopped keeps nobody from the others.
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        Ok(replies(stream).next())
    }

    /// The state of every session.
    pub(super) fn states(&self) -> Result<Vec<State>, String> {
        let order = Order::Watch { token: self.token.clone() };
        let mut states = Vec::new();
        for session in self.sessions() {
            match self.ask(&session, &order)? {
                Some(Reply::State(state)) => states.push(state),
                Some(Reply::Refused(what)) => return Err(what),
                Some(Reply::Done) | None => {}
            }
        }
        Ok(states)
    }

    /// Carries an order out in the session that it is about.
    fn order(&self, session: &str, order: &Order) -> Result<(), String> {
        match self.ask(session, order)? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Refused(what)) => Err(what),
            Some(Reply::State(_)) | None => Err(format!(
                "the session {session} has ended, or did not answer in {} s and may do yet: look at `postern approve --list`",
                PATIENCE.as_secs()
            )),
        }
    }

    pub(super) fn answer(&self, session: &str, prompt: &str, choice: Choice) -> Result<(), String> {
        let order = Order::Answer { token: self.token.clone(), prompt: prompt.to_owned(), choice };
        self.order(session, &order)
    }

    pub(super) fn revoke(&self, session: &str, grant: &str) -> Result<(), String> {
        let order = Order::Revoke { token: self.token.clone(), grant: grant.to_owned() };
        self.order(session, &order)
    }
}

/// What comes over a connection, until it ends or is no reply.
fn replies(stream: UnixStream) -> impl Iterator<Item = Reply> {
    BufReader::new(stream).lines().map_while(|line| serde_json::from_str(&line.ok()?).ok())
}

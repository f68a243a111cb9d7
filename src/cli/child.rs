//! A command that is run for somebody: signals go on to it, and its exit code is this command's.
//!
//! Never changes what it reads or writes.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{self, SignalKind, signal};

use super::failure::Failure;
use super::output::to_stderr;

/// A running command.
pub struct Child {
    child: tokio::process::Child,
    signals: Vec<(Signal, unix::Signal)>,
}

impl Child {
    /// Starts the command. One that cannot be started ends as in a shell: 127 if there is none, else 126.
    pub fn start(command: &[OsString], environment: &[(&str, OsString)]) -> Result<Self, Failure> {
        let failed = |error| Failure::caused("cannot wait for signals".into(), error);
        // Before it starts: a signal from here on is for the command.
        let signals = FORWARDED.iter().map(|(kind, signal_sent)| Ok((*signal_sent, signal(kind())?)));
        let signals = signals.collect::<io::Result<_>>().map_err(failed)?;
        let (program, arguments) =
            command.split_first().map_or((OsStr::new(""), &[][..]), |(first, rest)| (first, rest));
        let started = Command::new(program).args(arguments).envs(environment.iter().cloned()).spawn();
        match started {
            Ok(child) => Ok(Self { child, signals }),
            Err(error) => {
                let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
                let failure = Failure::caused(format!("cannot run `{}`", program.display()), error);
                to_stderr(&failure.to_string());
                Err(Failure::Command { code })
            }
        }
    }

    /// Waits for its end. An exit code other than 0 is a failure with that code; death by a signal is 128 and its
    /// number, as in a shell.
    pub async fn end(&mut self) -> Result<(), Failure> {
        let Self { child, signals } = self;
        loop {
            let waiting = signals.iter_mut().map(|(sent, received)| {
                Box::pin(async move {
                    received.recv().await;
                    *sent
                })
            });
            let received = futures_util::future::select_all(waiting);
            let sent = tokio::select! {
                status = child.wait() => {
                    let failed = |error| Failure::caused("cannot wait for the command".into(), error);
                    return match code(status.map_err(failed)?) {
                        0 => Ok(()),
                        code => Err(Failure::Command { code }),
                    };
                }
                (sent, _, _) = received => sent,
            };
            forward(child, sent);
        }
    }
}

fn forward(child: &tokio::process::Child, sent: Signal) {
    let from_keyboard = matches!(sent, Signal::INT | Signal::QUIT) && in_foreground();
    let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    // A terminal sends what was typed to the command itself too.
    if let (Some(id), false) = (id, from_keyboard) {
        // One that has just ended needs no signal.
        let _ = kill_process(id, sent);
    }
}

/// Whether a terminal sends its signals to this process and its children.
fn in_foreground() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal()
        && rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}

fn code(status: ExitStatus) -> u8 {
    // Neither is above 255: exit codes are bytes, and there are 64 signals.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// What is sent on to the command.
const FORWARDED: [(fn() -> SignalKind, Signal); 4] = [
    (SignalKind::terminate, Signal::TERM),
    (SignalKind::interrupt, Signal::INT),
    (SignalKind::hangup, Signal::HUP),
    (SignalKind::quit, Signal::QUIT),
];

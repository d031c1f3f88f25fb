use std::io;

use nix::sys::signal::Signal;
use ringfence::{Error, ErrorKind};

use crate::exit_codes;

/// Why a verb did not do what it was asked for, and the exit code that says so.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library's answer.
    Ringfence(Error),
    /// Something that only the program knows.
    Own {
        /// One of [`exit_codes`].
        code: u8,
        /// For the person.
        message: String,
    },
    /// A signal asked us to end before there was anything to do. There is nothing to say.
    Interrupted(Signal),
    /// Whoever read our output wants no more of it. There is nobody to say anything to.
    OutputClosed,
}

impl Failure {
    /// A failure that only the program knows.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self::Own { code, message: message.into() }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Ringfence(error) => exit_codes::of(error),
            Self::Own { code, .. } => *code,
            Self::Interrupted(signal) => exit_codes::of_signal(*signal as i32),
            Self::OutputClosed => exit_codes::of_signal(Signal::SIGPIPE as i32),
        }
    }

    /// The message, where there is one.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Self::Ringfence(error) if error.kind() == ErrorKind::InvalidTtl => {
                Some(format!("{error}: name another one with --ttl, or with ?ttl= in the URL"))
            }
            Self::Ringfence(error) => Some(error.to_string()),
            Self::Own { message, .. } => Some(message.clone()),
            Self::Interrupted(_) | Self::OutputClosed => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ringfence(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::new(exit_codes::IO, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringfence::Locks;

    use super::*;

    /// Who has said nothing of a TTL has one all the same, which some backends do not know.
    #[tokio::test]
    async fn whoever_has_a_ttl_that_the_backend_does_not_know_is_told_where_to_say_another_one() {
        let locks = Locks::connect("memory:").await.unwrap();
        let error = locks.lock("a").ttl(Duration::ZERO).try_acquire().await.unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.code(), exit_codes::USAGE);
        let message = failure.message().unwrap();
        assert!(message.ends_with(": name another one with --ttl, or with ?ttl= in the URL"), "{message}");
    }
}

use std::fmt;
use std::sync::Arc;

use crate::token::FencingToken;

/// What went wrong, by whose fault and what to do about it.
///
/// May grow: match with a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The lock name is no lock name. Mend the caller.
    InvalidName,
    /// The TTL is outside the range. Mend the caller.
    InvalidTtl,
    /// The text is no token, or the number cannot be one. Mend the caller.
    InvalidToken,
    /// The URL, its scheme or one of its keys. Mend the configuration.
    InvalidUrl,
    /// Another limit or rule of the request. Mend the caller.
    InvalidRequest,
    /// The idempotency key was used before, for a request with another fingerprint. Mend the caller, which must draw a key for
    /// each request.
    KeyReused,
    /// The wait ended before the name was free. Nothing is left behind.
    WaitElapsed,
    /// The lease is gone or can no longer be proven.
    Lost,
    /// The fence refused the token: a higher one was seen, or its lease is over. Nothing was written.
    Stale,
    /// Somebody else changed the value between the read and the write, in every try. Nothing was written.
    Conflict,
    /// Two holders were given one sequence: the lock service has lost its memory. Nothing was written; alarm somebody.
    TokenCollision,
    /// The record was written without having been opened with this token. Nothing was written.
    NotOpened,
    /// The backend does not promise what was asked for. Use another backend.
    Unsupported,
    /// A limit of the store is reached: waiters, records, disk.
    Full,
    /// The backend cannot be reached or does not answer.
    Unavailable,
    /// The backend refuses us: permissions, ownership, a place where a store must not be. Or we refuse it: its certificate is
    /// not to be trusted.
    Refused,
    /// What the store holds is damaged or not ours. Nothing was changed; it is for a person to decide.
    Corrupt,
    /// A bug of Ringfence. Please report it.
    Bug,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "every error is one of the two")]
pub enum Retry {
    /// The same call will fail the same way until something else changes.
    Never,
    /// The same call may succeed later.
    Later,
}

/// Whether the operation took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "an operation that certainly took effect is no error")]
pub enum Effect {
    /// It did not.
    None,
    /// It may have. An acquire never says so: it is withdrawn, or waited out, before its error is returned.
    Unknown,
}

/// The one error of Ringfence: what kind, whether to retry, whether it took effect.
///
/// `Display` is one line that names the thing, says what was expected and what to do. It never shows a secret.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    effect: Effect,
    message: String,
    mark: Option<FencingToken>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind, without effect, with the retry advice that is right for most errors of the kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::WaitElapsed | ErrorKind::Conflict | ErrorKind::Full | ErrorKind::Unavailable => {
                Retry::Later
            }
            _ => Retry::Never,
        };
        let message = message.into();
        Self(Box::new(Inner { kind, retry, effect: Effect::None, message, mark: None, source: None }))
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// The same error of a fence whose mark was in the way.
    #[must_use]
    pub fn with_mark(mut self, mark: FencingToken) -> Self {
        self.0.mark = Some(mark);
        self
    }

    /// The same error of an operation that may have taken effect.
    #[must_use]
    pub fn with_unknown_effect(mut self) -> Self {
        self.0.effect = Effect::Unknown;
        self
    }

    /// The same error of an operation whose effect, if it had one, has been undone or waited out.
    #[must_use]
    pub fn without_effect(mut self) -> Self {
        self.0.effect = Effect::None;
        self
    }

    /// The same error, with what it is about in front of the message.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Whether the operation took effect.
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// The mark of the fence that refused, where it was the mark that was in the way: of [`ErrorKind::Stale`], but for a token
    /// whose lease is over without a later one, and of [`ErrorKind::TokenCollision`].
    pub fn mark(&self) -> Option<FencingToken> {
        self.0.mark
    }

    /// The message without its cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, retry, effect, .. } = &*self.0;
        write!(f, "{kind:?} (retry: {retry:?}, effect: {effect:?}): {self}")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

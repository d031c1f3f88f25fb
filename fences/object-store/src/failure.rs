//! Why a store failed, as an error of ours.

use object_store::Error as StoreError;
use ringfence_core::{Error, ErrorKind};

/// What to do about a store that is of no use.
pub(crate) const ELSEWHERE: &str = "take a store that writes on condition (S3, R2, Azure, GCS), or keep small values in the records of \
    a backend, as `local:/some/dir?fence=mark` does in a directory";

/// An error of the store's that says nothing of a condition.
pub(crate) fn explain(error: StoreError) -> Error {
    let (kind, advice) = match &error {
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
            return Error::new(ErrorKind::Unsupported, format!("it can refuse no stale write: {ELSEWHERE}"))
                .because(error);
        }
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            (ErrorKind::Refused, "the store refuses us: we need the rights to get and to put objects")
        }
        StoreError::InvalidPath { .. } | StoreError::UnknownConfigurationKey { .. } => {
            (ErrorKind::InvalidRequest, "the store does not take it")
        }
        StoreError::NotFound { .. } => (ErrorKind::Refused, "there is no such bucket, or we may not see it"),
        _ => (ErrorKind::Unavailable, "the store cannot be reached or does not answer"),
    };
    Error::new(kind, advice).because(error)
}

/// Whether the store says that the condition of a put did not hold.
pub(crate) fn is_condition(error: &StoreError) -> bool {
    matches!(error, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })
}

/// Whether the put may have landed all the same.
pub(crate) fn is_unknown(error: &StoreError) -> bool {
    matches!(error, StoreError::Generic { .. } | StoreError::JoinError { .. })
}

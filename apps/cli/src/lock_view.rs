//! A lock as `ls`, `show` and `evict` print it: our JSON, which is API, beside the library's own types.

use ringfence::{FencingToken, HolderInfo, HolderState, LockName, LockState, Mode};
use serde::Serialize;

use crate::print::millis;

/// A lock, its holders in the order of their grants, and those who wait, the next one first.
#[derive(Debug, Serialize)]
pub(crate) struct LockView<'a> {
    name: &'a LockName,
    holders: Vec<HolderView<'a>>,
    waiters: Vec<WaiterView<'a>>,
}

/// One that holds.
#[derive(Debug, Serialize)]
pub(crate) struct HolderView<'a> {
    #[serde(flatten)]
    who: WhoView<'a>,
    #[serde(flatten)]
    mode: ModeView,
    token: FencingToken,
    /// Null where nobody knows.
    age_ms: Option<u64>,
    /// Null where nobody knows.
    remaining_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct WaiterView<'a> {
    #[serde(flatten)]
    who: WhoView<'a>,
    #[serde(flatten)]
    mode: ModeView,
    age_ms: Option<u64>,
}

/// Who it is.
#[derive(Debug, Serialize)]
pub(crate) struct WhoView<'a> {
    label: &'a str,
    host: &'a str,
    pid: u32,
    metadata: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
enum ModeView {
    Exclusive,
    Shared,
    Permit { permits: u32 },
}

impl<'a> From<&'a LockState> for LockView<'a> {
    fn from(state: &'a LockState) -> Self {
        Self {
            name: &state.name,
            holders: state.holders.iter().map(HolderView::from).collect(),
            waiters: state
                .waiters
                .iter()
                .map(|waiter| WaiterView {
                    who: (&waiter.holder).into(),
                    mode: waiter.mode.into(),
                    age_ms: waiter.age.map(millis),
                })
                .collect(),
        }
    }
}

impl<'a> From<&'a HolderState> for HolderView<'a> {
    fn from(state: &'a HolderState) -> Self {
        Self {
            who: (&state.holder).into(),
            mode: state.mode.into(),
            token: state.token,
            age_ms: state.age.map(millis),
            remaining_ms: state.remaining.map(millis),
        }
    }
}

impl<'a> From<&'a HolderInfo> for WhoView<'a> {
    fn from(holder: &'a HolderInfo) -> Self {
        Self { label: holder.label(), host: holder.host(), pid: holder.pid(), metadata: holder.metadata() }
    }
}

impl From<Mode> for ModeView {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Exclusive => Self::Exclusive,
            Mode::Shared => Self::Shared,
            Mode::Permit(limit) => Self::Permit { permits: limit.get() },
        }
    }
}

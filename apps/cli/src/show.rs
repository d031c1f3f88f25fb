use clap::Args;
use ringfence::{HolderInfo, LockName, LockState};

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::lock_view::LockView;
use crate::print::{self, duration, until_lapse, visible};

/// Show who holds a lock, since when, and who waits
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Which lock
    name: String,
}

/// Shows one lock, a free one as well.
pub(crate) async fn run(args: ShowArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.name)?;
    let state = global.connect().await?.inspect(&name).await?;
    if global.json {
        print::json(&LockView::from(&state))?;
    } else {
        print::line(&describe(&state))?;
    }
    Ok(exit_codes::OK)
}

fn describe(state: &LockState) -> String {
    let mut lines = Vec::new();
    match state.holders.len() {
        0 => lines.push(format!("{} is free", visible(state.name.as_str()))),
        1 => lines.push(format!("{} is held", visible(state.name.as_str()))),
        holders => lines.push(format!("{} is held by {holders}", visible(state.name.as_str()))),
    }
    for holder in &state.holders {
        lines.push(format!("  holder     {}", visible(&holder.holder.to_string())));
        lines.extend(metadata(&holder.holder));
        lines.push(format!("  mode       {}", holder.mode));
        lines.push(format!("  token      {}", holder.token));
        let held_for = holder.age.map_or_else(|| "unknown".to_owned(), duration);
        lines.push(format!("  held for   {held_for}"));
        lines.push(match holder.remaining.map(until_lapse) {
            Some(Some(remaining)) => format!("  lapses in  {remaining}, unless it is renewed"),
            Some(None) => "  lapses     never by itself".to_owned(),
            None => "  lapses     with its client, unknown when".to_owned(),
        });
    }
    for (place, waiter) in state.waiters.iter().enumerate() {
        lines.push(format!("  waiter {}   {}", place + 1, visible(&waiter.holder.to_string())));
        lines.extend(metadata(&waiter.holder));
        let since = waiter.age.map_or_else(String::new, |age| format!(", for {} now", duration(age)));
        lines.push(format!("  wants      {}{since}", waiter.mode));
    }
    lines.join("\n")
}

fn metadata(holder: &HolderInfo) -> Option<String> {
    (!holder.metadata().is_empty()).then(|| format!("  metadata   {}", visible(holder.metadata())))
}

#[cfg(test)]
mod tests {
    use ringfence::{FencingToken, HolderState, Mode, Nonce, WaiterState};

    use super::*;

    /// A lock of a backend that keeps no times, which another client holds.
    fn without_times() -> LockState {
        let who = |label| HolderInfo::new(label, "web-1", 42).unwrap();
        let token = FencingToken::of_grant(7, Nonce::from_u64(1).unwrap()).unwrap();
        let holder = HolderState::new(who("report"), Mode::Exclusive, token, None, None);
        let waiter = WaiterState::new(who("second"), Mode::Shared, None);
        LockState::new("orders".parse().unwrap(), vec![holder], vec![waiter])
    }

    #[test]
    fn a_time_that_nobody_knows_is_unknown_and_not_zero() {
        let said = describe(&without_times());
        assert!(said.contains("\n  held for   unknown\n"), "{said}");
        assert!(said.contains("\n  lapses     with its client, unknown when\n"), "{said}");
        assert!(said.ends_with("\n  wants      shared"), "{said}");
        let json = serde_json::to_string(&LockView::from(&without_times())).unwrap();
        assert_eq!(json.matches(r#""remaining_ms":null"#).count(), 1, "{json}");
        assert_eq!(json.matches(r#""age_ms":null"#).count(), 2, "{json}");
    }
}

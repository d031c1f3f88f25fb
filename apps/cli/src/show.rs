use ringfence::{HolderInfo, LockName, LockState};

use crate::cli::{Global, ShowArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::lock_view::LockView;
use crate::print::{self, duration, visible};

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
        lines.push(format!("  held for   {}", duration(holder.age)));
        lines.push(format!("  lapses in  {}, unless it is renewed", duration(holder.remaining)));
    }
    for (place, waiter) in state.waiters.iter().enumerate() {
        lines.push(format!("  waiter {}   {}", place + 1, visible(&waiter.holder.to_string())));
        lines.extend(metadata(&waiter.holder));
        lines.push(format!("  wants      {}, for {} now", waiter.mode, duration(waiter.age)));
    }
    lines.join("\n")
}

fn metadata(holder: &HolderInfo) -> Option<String> {
    (!holder.metadata().is_empty()).then(|| format!("  metadata   {}", visible(holder.metadata())))
}
